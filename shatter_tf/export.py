"""Exports a fine-tuned model as a SavedModel that takes raw strings, for TF Serving or any TensorFlow.

  python -m shatter_tf.export --model_dir=runs/topics --export_dir=serving/topics

It writes EXPORT_DIR/<version>/ from the checkpoint whose evaluation was best (--checkpoint=latest: from the newest).
The signature `serving_default` takes `text`, or `text_a` and `text_b`, strings [B]; it returns `label`, string [B],
`probabilities`, float32 [B, labels], and `labels`, string [B, labels].
"""

import argparse
import os

from shatter_tf.command_line import UserError, quieten_logging, run


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shatter_tf.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="a run of shatter/classify")
    parser.add_argument("--export_dir", required=True, metavar="DIR", help="gets a new version")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="[best]")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    import tensorflow as tf

    from shatter_tf import model_dir, serving

    quieten_logging()
    finished = model_dir.read(args.model_dir)
    module, checkpoint = serving.load_classifier(finished, args.model_dir, best=args.checkpoint == "best")
    version = serving.next_version(args.export_dir)
    target = os.path.join(args.export_dir, str(version))
    temporary = os.path.join(args.export_dir, f"incomplete-{version}")  # TF Serving looks at names that are numbers
    try:
        tf.saved_model.save(module, temporary, signatures={"serving_default": module.serving_default})
        tf.io.gfile.rename(temporary, target)
    except tf.errors.OpError as error:
        raise UserError(f"--export_dir={args.export_dir}: cannot be written ({error.message})") from error
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)
    size = sum(tf.io.gfile.stat(os.path.join(d, f)).length for d, _, files in tf.io.gfile.walk(target) for f in files)
    print(f"exported {checkpoint} to {target} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
