"""Makes a run of a BERT that Hugging Face's or Google's software wrote, to fine-tune, embed with, and export.

  shatter convert --from=all-MiniLM-L6-v2 --model_dir=runs/minilm

DIR is the directory of a Hugging Face BERT (config.json, model.safetensors, and vocab.txt or tokenizer.json) or of a
sentence-transformers model with one, or holds a checkpoint of Google's code or of Model Garden (bert_config.json,
vocab.txt, bert_model.ckpt.*). MODEL_DIR is then what `shatter train` would have written: give it to --init_checkpoint,
or to `shatter export`. What would not give the same outputs is refused, and what is left out is printed.
"""

import argparse

from shatter_tf.console import importing, new_parser, run, say


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("convert", __doc__)
    parser.add_argument("--from", required=True, metavar="DIR", help="a BERT that other software wrote")
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="new or empty directory")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.converting import job

    for line in job.convert(getattr(args, "from"), args.model_dir):
        say(line)


if __name__ == "__main__":
    run(main)
