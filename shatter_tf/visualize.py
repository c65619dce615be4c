"""Draws what a run has learned, and how: its parts, its attention, its curves and its mistakes.

  shatter visualize --model=runs/labels 'A star is a ball of plasma.' --output=star.png
  shatter visualize --model=runs/labels --output_dir=pictures

--output=FILE.png is one figure: the partition, and below it the attention. --output_dir=DIR gets

  partition.png   how relative positions are shared among the parts (of encoders with parts: Shatter)
  attention.png   what each token of a text reads in every layer, and from which parts (of the same)
  curves.png      the loss and the main metric against steps
  confusion.png   which label of the validation data is taken for which (of shatter/classify)

with the weights whose evaluation was best, or else the newest. What a run cannot show is reported and left out.
"""

import argparse

from shatter_tf.console import importing, new_parser, run


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("visualize", __doc__)
    parser.add_argument(
        "--model", "--model_dir", dest="model", required=True, metavar="DIR", help="a run of `shatter train`"
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", metavar="FILE.png", help="gets the partition and the attention")
    output.add_argument("--output_dir", metavar="DIR", help="gets all pictures, in place of older ones")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "text",
        nargs="?",
        default=argparse.SUPPRESS,  # or it would override --text
        metavar="TEXT",
        help="whose attention is shown; of pairs, two with a tab between [the first validation text's start]",
    )
    text.add_argument("--text", metavar="TEXT", help="the same; it may begin with a dash")
    parser.add_argument("--layer", type=int, metavar="N", help="show the attention of this layer only, from 1 on")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.measuring import run_pictures

    run_pictures.write(args.model, args.output, args.output_dir, args.text, args.layer)


if __name__ == "__main__":
    run(main)
