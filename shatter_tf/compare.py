"""Compares settings: trains a grid of variants, learning rates and seeds, and plots the results.

  shatter compare --grid=research/ladder.yaml --data_dir=corpus --output_dir=runs/ladder
  shatter compare --grid=research/ladder.yaml --data_dir=corpus --output_dir=runs/ladder --time_steps=20

Every run is an ordinary `shatter train`; the whole grid is checked before the first. Stop it at any time:
the same command resumes where it was, in the middle of a run too. Start it several times, on one GPU each
(CUDA_VISIBLE_DEVICES) or on machines that share a disk, and they share the runs. OUTPUT_DIR gets results.jsonl (a line
for each finished run), report.md and figures, updated after every run, and each run's settings, log and checkpoints.

--time_steps measures how long a training step of each variant takes, in turn in one process, so that variations in the
machine's speed affect all alike; the report's wall-clock is then steps times that. Run it on an idle machine.

A grid is YAML:

  experiment: shatter/pretrain
  config: mini                                 # or config_file: a YAML file of your own
  settings: {trainer.train_steps: 1000}        # of every run, dotted or nested
  under: task.model.encoder                    # what the keys of variants are relative to; nothing if left out
  learning_rates: [1e-3]
  seeds: [0, 1, 2]
  reference: bert                              # the variant that others are measured against
  plot: [bert, shatter]                        # curves to draw; all if left out
  evaluate_at: [512]                           # other lengths, in tokens, to evaluate at when pretraining ends
  variants:
    shatter: {}
    narrow: {shatter.num_parts: 4}
    bert: {type: bert, learning_rates: [5e-4, 1e-3]}

A variant may have its own learning_rates, seeds, data_dir, init_checkpoint, init_teacher, and `settings` with full
names.
"""

import argparse

from shatter_tf.console import importing, new_parser, run


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("compare", __doc__)
    parser.add_argument("--grid", required=True, metavar="F", help="YAML; see above")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where runs, results and report go")
    parser.add_argument("--data_dir", metavar="DIR", help="prepared corpus, or labelled text")
    parser.add_argument("--time_steps", type=int, default=0, metavar="N", help="only time N steps of each variant")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.measuring import comparison

    comparison.compare(args.grid, args.output_dir, args.data_dir, args.time_steps)


if __name__ == "__main__":
    run(main)
