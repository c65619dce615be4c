#!/usr/bin/env bash
# Goes from text to an answer with an installed shatter_tf and nothing else, in an empty directory. `make test-wheel`
# runs it:
#
#   tests/wheel.sh ENVIRONMENT
set -euo pipefail
ENVIRONMENT=$(cd "$1" && pwd)
BASE=$(mktemp -d)
trap 'rm -rf "$BASE"' EXIT
cd "$BASE"
export PATH="$ENVIRONMENT/bin:$PATH"
unset PYTHONPATH

fail() {
  echo "tests/wheel.sh: $*" >&2
  exit 1
}

# Runs a command, shows how long it took, and insists that standard error stays empty, but for progress bars.
run() {
  local begin=$SECONDS
  "$@" >out.txt 2>err.txt || fail "$* ended with $?: $(cat out.txt err.txt)"
  ! grep -qvE '^$|%\|.*/s]$' err.txt || fail "$* wrote to standard error: $(cat err.txt)"
  echo "$((SECONDS - begin)) s  $*"
}

# The package is the wheel's, and what the slim requirements leave out is not there.
python - <<'PYTHON'
import importlib.util
import shatter_tf
assert "site-packages" in shatter_tf.__file__, shatter_tf.__file__
assert not any(map(importlib.util.find_spec, ("cv2", "kaggle", "pycocotools")))
PYTHON

run shatter --help
run shatter configs
[ "$(wc -l <out.txt)" -ge 15 ] || fail "shatter configs lists $(wc -l <out.txt) configs"
run shatter doctor
grep -q '^tensorflow  *2\.20' out.txt || fail "shatter doctor does not name TensorFlow's version: $(cat out.txt)"

python - <<'PYTHON'
import pathlib
animals = ["the cat sat on the mat", "a big dog ran very fast", "the old horse ate the hay"]
plants = ["the old tree was small and red", "a green leaf fell from the oak", "then the rose grew by the wall"]
documents = [f"{text}\n{text} {i}" for i in range(100) for text in animals + plants]
pathlib.Path("text.txt").write_text("\n\n".join(documents) + "\n")
rows = [f"{text}\t{label}\n" for label, texts in (("animal", animals), ("plant", plants)) for text in texts]
pathlib.Path("labels").mkdir()
pathlib.Path("labels/train.tsv").write_text("".join(rows * 20))
pathlib.Path("labels/dev.tsv").write_text("".join(rows))
PYTHON

run shatter prepare --input=text.txt --output_dir=corpus --vocab_size=150 --seq_length=32
run shatter train --experiment=shatter/pretrain --config=tiny --data_dir=corpus --model_dir=runs/pretrain \
  --params_override=trainer.train_steps=20,task.train_data.global_batch_size=8
run shatter train --experiment=shatter/classify --config=classify --data_dir=labels --model_dir=runs/classify \
  --init_checkpoint=runs/pretrain --params_override=trainer.train_steps=60,task.train_data.global_batch_size=8
run shatter export --model_dir=runs/classify --export_dir=served
run shatter predict --model=served 'the cat sat on the mat' 'a green leaf fell from the oak'

# Six memorised sentences.
labels=$(python -c 'import json, sys; print(*(json.loads(line)["label"] for line in sys.stdin))' <out.txt)
[ "$labels" = "animal plant" ] || fail "predicted $labels, not animal plant"
