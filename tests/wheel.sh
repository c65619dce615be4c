#!/usr/bin/env bash
# Runs the README's ways in from text and from labels with an installed shatter_tf and nothing else, in an empty directory; only the hour of
# pretraining is cut to seconds. `make test-wheel` runs it:
#
#   tests/wheel.sh ENVIRONMENT
set -euo pipefail
ENVIRONMENT=$(cd "$1" && pwd)
README=$(cd "$(dirname "$0")/.." && pwd)/README.md
BASE=$(mktemp -d)
trap 'rm -rf "$BASE"' EXIT
cd "$BASE"
export PATH="$ENVIRONMENT/bin:$PATH"
unset PYTHONPATH

fail() {
  echo "tests/wheel.sh: $*" >&2
  exit 1
}

# Runs a command, shows how long it took, and insists that standard error stays empty, but for progress bars and what is
# said of the data, whose validation rows are training rows, too.
run() {
  local begin=$SECONDS
  "$@" >out.txt 2>err.txt || fail "$* ended with $?: $(cat out.txt err.txt)"
  ! grep -qvE '^$|%\|.*/s]$|^warning: validation rows that' err.txt || fail "$* wrote to standard error: $(cat err.txt)"
  echo "$((SECONDS - begin)) s  $*"
}

# The package is the wheel's, and what the slim requirements leave out is not there.
python - <<'PYTHON'
import importlib.util
import shatter_tf
assert "site-packages" in shatter_tf.__file__, shatter_tf.__file__
import shatter_tf.converting.job  # what it needs is there
assert not any(map(importlib.util.find_spec, ("cv2", "kaggle", "pycocotools")))
PYTHON

run shatter --help
run shatter configs
[ "$(wc -l <out.txt)" -ge 5 ] || fail "shatter configs lists $(wc -l <out.txt) configs"
run shatter doctor
grep -q '^tensorflow  *2\.20' out.txt || fail "shatter doctor does not name TensorFlow's version: $(cat out.txt)"

python - <<'PYTHON'
import pathlib
animals = ["the cat sat on the mat", "a big dog ran very fast", "the old horse ate the hay"]
plants = ["the old tree was small and red", "a green leaf fell from the oak", "then the rose grew by the wall"]
documents = [f"{text}\n{text} {i}" for i in range(100) for text in animals + plants]
pathlib.Path("my_text").mkdir()
pathlib.Path("my_text/a.txt").write_text("\n\n".join(documents) + "\n")
rows = [f"{text}\t{label}\n" for label, texts in (("animal", animals), ("plant", plants)) for text in texts]
pathlib.Path("my_labels").mkdir()
pathlib.Path("my_labels/train.tsv").write_text("".join(rows * 20))
pathlib.Path("my_labels/dev.tsv").write_text("".join(rows))
PYTHON

# The commands, a line each.
python - "$README" >commands.txt <<'PYTHON'
import re, sys
page = open(sys.argv[1]).read().split("## Three ways in")[1].split("\n## ")[0].replace("\\\n", " ")
commands = re.findall(r"^    (shatter .+)$", page, re.M)
assert len(commands) == 8, commands
print("\n".join(commands).replace("--budget=60m", "--budget=40s"))
PYTHON

while read -r command <&3; do
  if [[ $command == *" train "*labels* && $command != *init_checkpoint* ]]; then rm -rf model served; fi
  eval "run $command"
done 3<commands.txt
grep -q '"label": "\(animal\|plant\)"' out.txt || fail "no label predicted: $(cat out.txt)"

run shatter predict --model=served/model 'the cat sat on the mat' 'a green leaf fell from the oak'
labels=$(python -c 'import json, sys; print(*(json.loads(line)["label"] for line in sys.stdin))' <out.txt)
[ "$labels" = "animal plant" ] || fail "predicted $labels, not animal plant"
