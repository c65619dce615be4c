"""Predicts with an exported model: one JSON line for each text.

  shatter predict --model=served/labels 'A star is a ball of plasma held together by gravity.'
  shatter predict --model=served/labels < texts.txt
  shatter predict --model=served/encoder --signature=fill_mask 'The cat sat on the [MASK].'
  shatter predict --model=served/labels --signature=embed < texts.txt

Texts are arguments, or lines of standard input; the two texts of a pair, or a question and its context, are separated
by a tab. A model of single texts treats tabs as white space.
"""

import argparse
import json
import os
import sys

from shatter_tf.console import importing, new_parser, run


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("predict", __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="made by `shatter export`")
    parser.add_argument("--signature", default="serving_default", metavar="NAME", help="[serving_default]")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load a model with operations that no export needs, which may read and write files or run code",
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="read from standard input when left out")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing(without="tf_keras"):  # of which TensorFlow makes optimizers known
        from shatter_tf.serving import predictor

    # Bytes, because not every text is UTF-8; the model reads invalid UTF-8 as U+FFFD.
    texts = map(os.fsencode, args.texts) if args.texts else (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    for answer in predictor.predict(args.model, texts, args.signature, args.trust):
        print(json.dumps(answer, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    run(main)
