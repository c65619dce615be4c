"""Pretrains or fine-tunes an encoder, and evaluates it.

  python -m shatter_tf.train --experiment=shatter/pretrain --data_dir=corpus --model_dir=runs/pretrain \\
      --config_file=configs/pretrain_mini.yaml
  python -m shatter_tf.train --experiment=shatter/classify --data_dir=reviews --model_dir=runs/reviews \\
      --init_checkpoint=runs/pretrain --params_override=trainer.train_steps=2000

DATA_DIR is a corpus made by shatter_tf.prepare, or holds train and dev files (.tsv, .csv or .jsonl) of labelled text.
The same command goes on from the newest checkpoint in MODEL_DIR; SIGTERM and Ctrl-C save one first (exit code 75: try
again). Watch with `tensorboard --logdir=MODEL_DIR`.
"""

import argparse
import signal
import sys
import threading

from shatter_tf.command_line import UserError, quieten_logging, run

EX_TEMPFAIL = 75  # sysexits.h: what a scheduler should try again
MODES = ("train_and_eval", "train", "eval")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shatter_tf.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiment", required=True, metavar="NAME", help="shatter/pretrain or shatter/classify")
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


def stop_on_signals() -> threading.Event:
    """Returns what SIGTERM or Ctrl-C sets the first time; the second time they end the process as ever."""
    stop = threading.Event()

    def request(number, frame):
        del frame
        stop.set()
        signal.signal(number, before[number])

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    return stop


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    from shatter_tf import checkpoints, settings, trainer
    from shatter_tf import model_dir as model_dirs

    quieten_logging()
    resolved = settings.resolve(
        args.experiment,
        config_file=args.config_file,
        params_override=args.params_override,
        data_dir=args.data_dir,
        init_checkpoint=args.init_checkpoint,
    )
    model_dirs.check(args.model_dir, resolved)
    if args.mode == "eval":
        if not checkpoints.latest_checkpoint(args.model_dir):
            raise UserError(f"--model_dir={args.model_dir}: no checkpoint to evaluate")
    else:
        model_dirs.write(args.model_dir, resolved)
    session = trainer.Session(resolved, args.model_dir)
    print(session.describe(), flush=True)
    if args.mode == "eval" or (args.mode == "train_and_eval" and session.step >= resolved.params.trainer.train_steps):
        session.evaluate()
    elif not session.train(evaluate=args.mode == "train_and_eval", stop=stop_on_signals()):
        sys.exit(EX_TEMPFAIL)


if __name__ == "__main__":
    run(main)
