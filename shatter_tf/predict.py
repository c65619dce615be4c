"""Predicts with an exported model: one JSON line for each text.

  python -m shatter_tf.predict --model=served/labels 'A star is a ball of plasma held together by gravity.'
  python -m shatter_tf.predict --model=served/labels < texts.txt
  python -m shatter_tf.predict --model=serving/encoder --signature=fill_mask 'The cat sat on the [MASK].'
  python -m shatter_tf.predict --model=served/labels --signature=embed < texts.txt

Texts are arguments, or lines of standard input; the two texts of a pair, or a question and its context, are separated
by a tab. A model of single texts treats tabs as white space.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator

from shatter_tf.command_line import UserError, first_line, new_parser, quieten_logging, run

_BATCH_SIZE = 32


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("predict", __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="made by shatter_tf.export")
    parser.add_argument("--signature", default="serving_default", metavar="NAME", help="[serving_default]")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="read from standard input when there is none")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    import tensorflow as tf
    import tensorflow_text as _  # noqa: F401  registers the tokenizer's operations

    quieten_logging()
    signatures = _load(latest_version(args.model)).signatures
    of_texts = {
        name: signature
        for name, signature in signatures.items()
        if all(spec.dtype == tf.string for spec in signature.structured_input_signature[1].values())
    }
    if args.signature not in of_texts:
        why = "takes ids, not text; for text " if args.signature in signatures else ""
        raise UserError(f"--signature={args.signature}: {why}the model has {', '.join(of_texts)}")
    signature = of_texts[args.signature]
    # As files have them: a question before its context.
    names = sorted(signature.structured_input_signature[1], key=lambda name: (name != "question", name))
    # Bytes, because not every text is UTF-8; the model reads invalid UTF-8 as U+FFFD.
    texts = map(os.fsencode, args.texts) if args.texts else (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    for batch in _batches(texts):
        columns = [text.split(b"\t") if len(names) > 1 else [text] for text in batch]
        for text, fields in zip(batch, columns, strict=True):
            if len(fields) != len(names):
                raise UserError(f"{_plain(text)!r}: the model takes {' and '.join(names)}, separated by tabs")
        inputs = {name: tf.constant(column) for name, column in zip(names, zip(*columns, strict=True), strict=True)}
        outputs = {name: value.numpy() for name, value in signature(**inputs).items()}
        for i, fields in enumerate(columns):
            answer = _answer({name: _plain(value[i]) for name, value in outputs.items()})
            asked = dict(zip(names, map(_plain, fields), strict=True))
            print(json.dumps({**asked, **answer}, ensure_ascii=False), flush=True)


def _load(path: str):
    """Returns the SavedModel in a directory; raises UserError, also for `graph.unsafe_operations`."""
    import tensorflow as tf

    from shatter_tf import graph

    try:
        unsafe = graph.unsafe_operations(path)
        model = None if unsafe else tf.saved_model.load(path)
    except Exception as error:  # whose class depends on where the damage is
        raise UserError(f"--model={path}: cannot be loaded ({first_line(error)}); export it again") from error
    if unsafe:
        raise UserError(f"--model={path}: not loaded, its graph has {', '.join(sorted(unsafe))}; no export has")
    return model


def _plain(value):
    """Returns a NumPy value in a form that JSON has: text, numbers rounded to six decimals, lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if getattr(value, "ndim", 0):
        return [_plain(item) for item in value]
    return round(value.item(), 6) if value.dtype.kind == "f" else value.item()


def _answer(outputs: dict) -> dict:
    """Returns one row's outputs in the form that is easiest to read."""
    if "labels" in outputs:
        probabilities = dict(zip(outputs["labels"], outputs["probabilities"], strict=True))
        return dict(label=outputs["label"], probability=max(outputs["probabilities"]), probabilities=probabilities)
    if "tokens" in outputs:  # a dict for each [MASK]; the batch may have had texts with more
        masks = zip(outputs["tokens"], outputs["probabilities"], strict=True)
        return dict(masks=[dict(zip(tokens, values, strict=True)) for tokens, values in masks if tokens[0]])
    if "tags" in outputs:
        tagged = zip(outputs["words"], outputs["tags"], outputs["probabilities"], strict=True)
        return dict(words=[dict(word=w, tag=tag, probability=p) for w, tag, p in tagged if w])
    return outputs


def latest_version(model: str) -> str:
    """Returns the directory of a SavedModel: `model` itself, or its highest version; raises UserError."""
    from tensorflow.io import gfile

    versions = [name.rstrip("/") for name in gfile.listdir(model)] if gfile.isdir(model) else []
    numbers = sorted((int(name) for name in versions if name.isdigit()), reverse=True)
    for path in (model, *(f"{model}/{number}" for number in numbers)):
        if gfile.exists(f"{path}/saved_model.pb"):
            return path
    raise UserError(f"--model={model}: no SavedModel there; make one with `python -m shatter_tf.export`")


def _batches(texts: Iterator[bytes]) -> Iterator[list[bytes]]:
    while batch := list(itertools.islice(texts, _BATCH_SIZE)):
        yield batch


if __name__ == "__main__":
    run(main)
