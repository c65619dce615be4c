"""Pretrains or fine-tunes an encoder, and evaluates it.

  python -m shatter_tf.train --experiment=shatter/pretrain --data_dir=corpus --model_dir=runs/pretrain \\
      --config_file=configs/pretrain_mini.yaml
  python -m shatter_tf.train --experiment=shatter/classify --data_dir=reviews --model_dir=runs/reviews \\
      --init_checkpoint=runs/pretrain --params_override=trainer.train_steps=2000

DATA_DIR is a corpus made by shatter_tf.prepare, or holds train and dev files: labelled texts to classify or regress
(.tsv, .csv or .jsonl), tagged words, with a blank line after each sentence (.tsv or .jsonl), or questions with their
contexts, in SQuAD's format (.json).
The same command resumes from the newest checkpoint in MODEL_DIR; on SIGTERM and Ctrl-C it saves one first (exit code
75: try again). Watch with `tensorboard --logdir=MODEL_DIR`.
"""

import argparse
import sys

from shatter_tf.console import new_parser, quieten_logging, run
from shatter_tf.training.preemption import StopRequest

MODES = ("train_and_eval", "train", "eval")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("train", __doc__)
    parser.add_argument(
        "--experiment",
        required=True,
        metavar="NAME",
        help="shatter/pretrain, classify, regress, tag or answer",
    )
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="where the run lives")
    parser.add_argument("--mode", choices=MODES, default="train_and_eval", help="[train_and_eval]")
    parser.add_argument("--config_file", metavar="F", help="YAML with settings that differ from the defaults")
    parser.add_argument("--data_dir", metavar="DIR", help="prepared corpus, or labelled text")
    parser.add_argument(
        "--init_checkpoint", metavar="DIR", help="model_dir to take vocabulary, encoder and weights from"
    )
    parser.add_argument("--params_override", default="", metavar="k=v,…", help="settings that win over CONFIG_FILE")
    args = parser.parse_args(argv)
    args.model_dir = args.model_dir.rstrip("/")
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    stop = StopRequest()
    if args.mode != "eval":
        stop.listen()
    from shatter_tf.training import job

    quieten_logging()
    code = job.run(stop=stop, **vars(args))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    run(main)
