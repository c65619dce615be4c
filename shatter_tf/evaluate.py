"""Measures a run or an export on a labelled file: scores, calibration, the worst mistakes, pictures, predictions.

  shatter evaluate --model=runs/labels --input=test.csv
  shatter evaluate --model=served/labels --input=test.csv --output=predicted.csv --json=test.json --pictures=pictures

The file is of any format that training reads. Classifiers get accuracy, precision, recall and F1 of each label, their
macro and micro means, the calibration error, and the temperature that makes it small, for `shatter export
--temperature`; models of numbers get correlations and errors; taggers what seqeval computes; models of answers exact
match and F1, as SQuAD does. Labels that the model does not know count as wrong.

--output is JSON Lines (.jsonl), CSV or TSV: the columns of each row, and its prediction.
"""

import argparse

from shatter_tf.console import importing, names, new_parser, run


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("evaluate", __doc__)
    parser.add_argument("--model", required=True, metavar="DIR", help="a run of `shatter train`, or an export of it")
    parser.add_argument("--input", required=True, metavar="FILE", help="labelled rows, of any format")
    parser.add_argument("--output", metavar="FILE", help="gets each row with its prediction: .jsonl, .csv or .tsv")
    parser.add_argument("--json", metavar="FILE", help="gets all figures")
    parser.add_argument("--pictures", metavar="DIR", help="gets pictures: confusion, reliability")
    parser.add_argument(
        "--text_fields", default=[], type=names, metavar="A[,B]", help="columns of the texts [by their names]"
    )
    parser.add_argument("--label_field", default="", metavar="C", help="column of the label [by its name]")
    parser.add_argument("--label_separator", default="", metavar="S", help="between several labels in a cell [none]")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load an export with operations that no export needs, which may read and write files or run code",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.measuring.evaluation import job, kind

    source = kind.Source(args.input, args.text_fields, args.label_field, args.label_separator)
    job.evaluate(args.model, source, args.output, args.json, args.pictures, args.trust)


if __name__ == "__main__":
    run(main)
