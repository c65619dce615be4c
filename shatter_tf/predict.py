"""Predicts with an exported model: one JSON line for each text, or each row of a file.

  shatter predict --model=served/labels 'A star is a ball of plasma held together by gravity.'
  shatter predict --model=served/labels < texts.txt
  shatter predict --model=served/labels --input=reviews.csv --output=predicted.csv
  shatter predict --model=served/encoder --signature=fill_mask 'The cat sat on the [MASK].'
  shatter predict --model=served/labels --signature=embed < texts.txt
  shatter predict --model=served/labels --signature=embed --input=texts.txt --output=vectors.npy

Texts are arguments, or lines of standard input; the two texts of a pair, or a question and its context, are separated
by a tab. A model of single texts treats tabs as white space.

--input is a table of any format (CSV, TSV, JSON, Parquet, Arrow, what `datasets` saved), or a file with a text on each
line. --output is JSON Lines (.jsonl), CSV or TSV: the columns of each row, and its prediction. For embed it may also be
an array of the rows' vectors, float32 [rows, dimensions], that numpy.load reads (.npy).
"""

import argparse
import json
import os
import sys

from shatter_tf.console import importing, new_parser, run
from shatter_tf.errors import UserError, argument


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("predict", __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="made by `shatter export`")
    parser.add_argument("--signature", default="serving_default", metavar="NAME", help="[serving_default]")
    parser.add_argument("--input", metavar="FILE", help="a table, or a text on each line")
    parser.add_argument(
        "--output", metavar="FILE", help="gets the predictions: .jsonl, .csv, .tsv, or .npy [standard output]"
    )
    parser.add_argument(
        "--text_fields",
        default="",
        metavar="A[,B]",
        help="the columns of the texts; unless given, known by their names",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a model with operations that no export needs, which may read and write files or run code",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="read from standard input when left out")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    if args.input and args.texts:
        raise UserError(f"{argument('input')}={args.input} and TEXT: give one of them")
    if args.text_fields and not args.input:
        raise UserError(f"{argument('text_fields')}={args.text_fields}: only {argument('input')} has columns")

    if args.input or args.output:
        with importing(without="tf_keras"):  # of which TensorFlow makes optimizers known
            from shatter_tf.serving import predict_file, predictor
        fields = [name for name in args.text_fields.split(",") if name]
        texts = args.input or (text.decode("utf-8", "replace") for text in _texts(args.texts, predictor))
        predict_file.predict(args.model, texts, args.output, args.signature, args.trust, fields)
        return

    with importing(without="tf_keras"):  # of which TensorFlow makes optimizers known
        from shatter_tf.serving import predictor
    ascii_only = predictor.is_ascii_only(sys.stdout)
    for answer in predictor.predict(args.model, _texts(args.texts, predictor), args.signature, args.trust):
        print(json.dumps(answer, ensure_ascii=ascii_only), flush=True)


def _texts(given: list[str], predictor):
    """Returns the texts, as bytes, because not every text is UTF-8; the model reads invalid UTF-8 as U+FFFD."""
    return map(os.fsencode, given) if given else predictor.lines_of(sys.stdin.buffer)


if __name__ == "__main__":
    run(main)
