"""Exports a run as a SavedModel that takes raw strings, for TF Serving or any TensorFlow.

  shatter export --model_dir=runs/labels --export_dir=served/labels

It writes EXPORT_DIR/<version>/ from the checkpoint whose evaluation was best (--checkpoint=latest: from the newest),
checks that it answers as the trained model does, and describes its inputs and outputs in its README.md. Signatures
take strings [B] unless stated otherwise:

  serving_default   what the run was trained for, from `text` (or text_a and text_b, or question and context):
                    label, probabilities, labels; score; words, tags, probabilities; answer, start, end, score;
                    for a pretraining run, what embed gives
  token_ids         input_word_ids, input_mask, input_type_ids, int32 [B, L], to the model's outputs
  embed             text to embedding, float32 [B, D]
  fill_mask         text with [MASK] to tokens and probabilities, [B, masks, 5]; for a pretraining run
"""

import argparse

from shatter_tf.console import importing, new_parser, run, say


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("export", __doc__)
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="a run of `shatter train`")
    parser.add_argument("--export_dir", required=True, metavar="DIR", help="gets a new version")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="[best]")
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16"),
        default="float32",
        help="how they are stored; bfloat16 is half the size, and computed with in float32 [float32]",
    )
    parser.add_argument("--onnx", action="store_true", help="also write assets.extra/token_ids.onnx, for ONNX Runtime")
    parser.add_argument(
        "--litert", choices=("float32", "int8"), help="also write assets.extra/token_ids.tflite, weights stored so"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="divide the logits of a classifier by this, as `shatter evaluate` fits it; labels stay the same [1]",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.serving import saved_model

    lines = saved_model.export(
        args.model_dir, args.export_dir, args.checkpoint, args.weights, args.litert, args.temperature, args.onnx
    )
    for line in lines:
        say(line)


if __name__ == "__main__":
    run(main)
