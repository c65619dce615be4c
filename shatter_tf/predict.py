"""Predicts with an exported model: one JSON line for each text.

  python -m shatter_tf.predict --model=serving/topics 'A star is a ball of plasma held together by gravity.'
  python -m shatter_tf.predict --model=serving/topics < texts.txt

Texts are arguments, or lines of standard input; a pair is two texts with a tab between.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator

from shatter_tf.command_line import UserError, quieten_logging, run

_BATCH_SIZE = 32


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shatter_tf.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="made by shatter_tf.export")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="read from standard input when there is none")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    import tensorflow as tf
    import tensorflow_text as _  # noqa: F401  registers the tokenizer's operations

    quieten_logging()
    signature = tf.saved_model.load(latest_version(args.model)).signatures["serving_default"]
    names = sorted(signature.structured_input_signature[1])
    texts = iter(args.texts) if args.texts else (line.rstrip("\n") for line in sys.stdin)
    for batch in _batches(texts):
        columns = [text.split("\t") for text in batch]
        for text, fields in zip(batch, columns, strict=True):
            if len(fields) != len(names):
                raise UserError(f"{text!r}: the model takes {' and '.join(names)}, separated by tabs")
        inputs = {name: tf.constant(column) for name, column in zip(names, zip(*columns, strict=True), strict=True)}
        outputs = {name: value.numpy() for name, value in signature(**inputs).items()}
        for i, fields in enumerate(columns):
            labels = [label.decode() for label in outputs["labels"][i]]
            probabilities = [round(float(p), 6) for p in outputs["probabilities"][i]]
            line = dict(zip(names, fields, strict=True))
            line["label"] = outputs["label"][i].decode()
            line["probability"] = max(probabilities)
            line["probabilities"] = dict(zip(labels, probabilities, strict=True))
            print(json.dumps(line, ensure_ascii=False), flush=True)


def latest_version(model: str) -> str:
    """Returns the directory of a SavedModel: `model` itself, or its highest version; raises UserError."""
    from tensorflow.io import gfile

    versions = [name.rstrip("/") for name in gfile.listdir(model)] if gfile.isdir(model) else []
    numbers = sorted((int(name) for name in versions if name.isdigit()), reverse=True)
    for path in (model, *(f"{model}/{number}" for number in numbers)):
        if gfile.exists(f"{path}/saved_model.pb"):
            return path
    raise UserError(f"--model={model}: no SavedModel there; make one with `python -m shatter_tf.export`")


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(texts, _BATCH_SIZE)):
        yield batch


if __name__ == "__main__":
    run(main)
