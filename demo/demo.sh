#!/usr/bin/env bash
# The whole pipeline on real text: the commands of the tutorial, one after the other. `make demo` runs it.
# All output goes to demo/out.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=demo/out
source demo/run.sh
BEGIN=$(date +%s)

rm -rf $OUT
make_text $OUT

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
