"""Pretrains or fine-tunes an encoder, and evaluates it.

  shatter train --experiment=shatter/pretrain --data_dir=corpus --model_dir=runs/pretrain --budget=60m
  shatter train --experiment=shatter/classify --data_dir=labels --model_dir=runs/classify \\
      --init_checkpoint=runs/pretrain

DATA_DIR is a corpus made by `shatter prepare`, or holds train and dev files: labelled texts or pairs (.csv, .tsv,
.jsonl, .json, .parquet, .arrow, or a directory of Hugging Face `datasets`), tagged words (.tsv, .conll, .jsonl), or
questions as in SQuAD (.json), each also packed (.gz, .bz2, .xz, .zst). Columns are told by their names. Without a dev
file, a tenth is held out by a hash of the text. What is not set follows from the data, the encoder and the device, and
is printed. The same command resumes from the newest checkpoint in MODEL_DIR, with the settings it began with; on
SIGTERM and Ctrl-C it saves one first (exit code 75). Watch with `tensorboard --logdir=MODEL_DIR`.
"""

import argparse
import sys

from shatter_tf.console import importing, names, new_parser, run, seconds
from shatter_tf.training.preemption import StopRequest

MODES = ("train_and_eval", "train", "eval")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("train", __doc__)
    parser.add_argument(
        "--experiment",
        required=True,
        metavar="NAME",
        help="pretrain, distil, embed, classify, regress, tag or answer, with or without shatter/ before it",
    )
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="where the run lives")
    parser.add_argument("--mode", choices=MODES, default="train_and_eval", help="[train_and_eval]")
    parser.add_argument("--config", metavar="NAME", help="a config that comes with the package; `shatter configs`")
    parser.add_argument("--config_file", metavar="F", help="YAML with settings that differ from the defaults")
    parser.add_argument("--data_dir", metavar="DIR", help="prepared corpus, or labelled text")
    parser.add_argument("--train_file", metavar="F", help="labelled text to train on, instead of DATA_DIR's")
    parser.add_argument("--dev_file", metavar="F", help="labelled text to validate on, likewise")
    parser.add_argument("--text_fields", metavar="A[,B]", type=names, help="columns that hold the text, or the pair")
    parser.add_argument("--label_field", metavar="C", help="column that holds the label")
    parser.add_argument(
        "--init_checkpoint", metavar="DIR", help="model_dir to take vocabulary, encoder and weights from"
    )
    parser.add_argument("--init_teacher", metavar="DIR", help="model_dir of the run to learn from")
    parser.add_argument("--unlabelled_file", metavar="F", help="texts without labels, to learn from the teacher")
    parser.add_argument(
        "--cache_teacher", action="store_const", const=True, help="let the teacher read all texts once, before training"
    )
    parser.add_argument(
        "--budget", metavar="T", type=seconds, help="how long to train, such as 60m or 1h30m; sets the steps"
    )
    parser.add_argument("--train_steps", metavar="N", type=int, help="how many steps to train")
    parser.add_argument("--learning_rate", metavar="X", type=float, help="at its peak")
    parser.add_argument("--batch_size", metavar="N", type=int, help="rows of a step, on all devices together")
    parser.add_argument("--seq_length", metavar="N", type=int, help="tokens of a row")
    parser.add_argument("--seed", metavar="N", type=int, help="of initial weights, order of rows, masks and dropout")
    parser.add_argument("--params_override", default="", metavar="k=v,…", help="any settings; win over the config's")
    args = parser.parse_args(argv)
    args.model_dir = args.model_dir.rstrip("/")
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    stop = StopRequest()
    if args.mode != "eval":
        stop.listen()
    with importing():
        from shatter_tf.training import job

    code = job.run(stop=stop, **vars(args))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run(main)
