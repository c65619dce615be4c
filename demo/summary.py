"""Prints the demo's last line: its results, as JSON.  python demo/summary.py OUT SECONDS"""

import json
import sys

out, seconds = sys.argv[1:]


def metric(run: str, *names: str) -> float:
    with open(f"{out}/{run}/metrics.json") as f:
        value = json.load(f)
    for name in names:
        value = value[name]
    return round(value, 4)


print(
    json.dumps(
        dict(
            masked_lm_accuracy=metric("pretrain", "masked_lm_accuracy"),
            classify_accuracy=metric("topics_model", "cls_accuracy"),
            tf_idf=metric("topics_model", "baseline", "tf_idf"),
            majority=metric("topics_model", "baseline", "majority"),
            from_scratch_accuracy=metric("from_scratch", "cls_accuracy"),
            seconds=int(seconds),
        )
    )
)
