"""What a linear classifier makes of an encoder's vectors as they are: a probe, without fine-tuning.

    python research/probe.py --model=runs/student --data=data/tasks/rt [--rows=100,all] [--seeds=3]

Logistic regression on the vectors of `TextEncoder.encode`; its strength is chosen by five-fold cross-validation on the
training rows. With a number, so many rows of each class are drawn, once for each seed. Prints a line of JSON for each.
"""

import argparse
import json
import os

import numpy as np
from sklearn.linear_model import LogisticRegressionCV

from shatter_tf.data.labelled import LabelledDataConfig, load_rows
from shatter_tf.serving.load import load_text_encoder

STRENGTHS = np.logspace(-1, 3, 9)


def draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Returns the places of `per_class` random rows of each class."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)])


def probe(train: tuple[np.ndarray, np.ndarray], dev: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the accuracy on `dev` of a classifier that learns from `train`, vectors [rows, D] with labels."""
    scale = np.mean(np.linalg.norm(train[0], axis=1))  # the strengths are for vectors of about unit length
    model = LogisticRegressionCV(Cs=STRENGTHS, cv=5, max_iter=1000)
    model.fit(train[0] / scale, train[1])
    return float(model.score(dev[0] / scale, dev[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a model_dir")
    parser.add_argument("--data", required=True, help="a directory with train.tsv and dev.tsv")
    parser.add_argument("--rows", default="100,all", help="rows of each class, or all")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the rows")
    parser.add_argument("--seq_length", type=int, default=128, help="tokens that are read of a text")
    args = parser.parse_args()

    encoder = load_text_encoder(args.model, seq_length=args.seq_length)
    parts = []
    for split in ("train", "dev"):
        rows, _ = load_rows(LabelledDataConfig(input_path=os.path.join(args.data, f"{split}.tsv")))
        parts.append((encoder.encode([row.texts[0] for row in rows]), np.array([row.label for row in rows])))

    (vectors, labels), dev = parts
    for number in args.rows.split(","):
        draws = [slice(None)] if number == "all" else [draw(labels, int(number), seed) for seed in range(args.seeds)]
        scores = [probe((vectors[rows], labels[rows]), dev) for rows in draws]
        about = dict(model=args.model, data=os.path.basename(args.data), rows=number)
        print(json.dumps({**about, "mean": round(np.mean(scores), 4), "scores": [round(s, 4) for s in scores]}))


if __name__ == "__main__":
    main()
