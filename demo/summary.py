"""Prints the demo's last line: its results, as JSON.  python demo/summary.py OUT SECONDS"""

import collections
import json
import sys

out, seconds = sys.argv[1:]


def metric(run: str, name: str) -> float:
    with open(f"{out}/{run}/metrics.json") as f:
        return round(json.load(f)[name], 4)


with open(f"{out}/topics/dev.tsv", encoding="utf-8") as f:
    topics = collections.Counter(line.rstrip("\n").split("\t")[1] for line in f)
print(
    json.dumps(
        dict(
            masked_lm_accuracy=metric("pretrain", "masked_lm_accuracy"),
            classify_accuracy=metric("topics_model", "cls_accuracy"),
            majority=round(max(topics.values()) / sum(topics.values()), 4),
            from_scratch_accuracy=metric("from_scratch", "cls_accuracy"),
            seconds=int(seconds),
        )
    )
)
