"""Exports a run as a SavedModel that takes raw strings, for TF Serving or any TensorFlow.

  python -m shatter_tf.export --model_dir=runs/labels --export_dir=served/labels

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
import contextlib
import math
import os
import uuid
from collections.abc import Iterator

from shatter_tf.command_line import UserError, first_line, new_parser, quieten_logging, run

_TOLERANCE = 1e-4  # between the trained model's float32 outputs and the exported one's


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("export", __doc__)
    parser.add_argument("--model_dir", required=True, metavar="DIR", help="a run of shatter_tf.train")
    parser.add_argument("--export_dir", required=True, metavar="DIR", help="gets a new version")
    parser.add_argument("--checkpoint", choices=("best", "latest"), default="best", help="[best]")
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16"),
        default="float32",
        help="how they are stored; bfloat16 is half the size, and computed with in float32 [float32]",
    )
    parser.add_argument(
        "--litert", choices=("float32", "int8"), help="also write assets.extra/token_ids.tflite, weights stored so"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    import tensorflow as tf

    from shatter_tf import model_dir, saved_model, serving
    from shatter_tf.files import check_name, publish

    quieten_logging()
    check_name(args.export_dir, "--export_dir")
    finished = model_dir.read(args.model_dir)
    trained, checkpoint = serving.load(finished, args.model_dir, best=args.checkpoint == "best")
    servable = trained
    if args.weights == "bfloat16":
        servable = serving.servable(finished, serving.in_bfloat16(finished.params.task, trained.model))
    export_dir = args.export_dir.rstrip("/")
    temporary = os.path.join(export_dir, f"{saved_model.INCOMPLETE}{uuid.uuid4().hex}")
    try:
        with _writing(export_dir):
            target = os.path.join(export_dir, str(saved_model.next_version(export_dir)))
            saved_model.remove_leftovers(export_dir)
            tf.saved_model.save(servable.trackable(), temporary, signatures=servable.functions)
        difference = saved_model.difference(servable, temporary)
        if not difference <= _TOLERANCE:
            raise UserError(
                f"{checkpoint}: what was exported differs from the trained model by {difference:.1e}, more than "
                f"{_TOLERANCE}; nothing was written to --export_dir={export_dir}"
            )
        if servable is not trained:
            difference = saved_model.difference(trained, temporary)
        notes = [f"Its outputs are at most {difference:.1e} from the trained model's, for texts of random wordpieces."]
        if args.litert:
            notes.append(_write_litert(trained, temporary, args.litert, export_dir))
            print(notes[-1])
        with _writing(export_dir):
            saved_model.write_warmup_requests(servable, temporary, os.path.basename(export_dir))
            saved_model.write_card(finished, args.model_dir, checkpoint, servable, temporary, target, notes)
            if tf.io.gfile.exists(target):
                raise UserError(f"{target}: written by another export meanwhile; export again, for the next version")
            publish(temporary, target, last="saved_model.pb")
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)
    print(
        f"exported {checkpoint} to {target} ({saved_model.size(target) / 1e6:.1f} MB); signatures "
        f"{', '.join(servable.functions)}; at most {difference:.1e} from the trained model"
    )


@contextlib.contextmanager
def _writing(export_dir: str) -> Iterator[None]:
    """Within it, errors of the disk or the object store are raised as UserError."""
    import tensorflow as tf

    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"--export_dir={export_dir}: cannot be written ({first_line(error)})") from error


def _write_litert(servable, directory: str, weights: str, export_dir: str) -> str:
    """Writes the LiteRT model to an export's directory and returns a line about it; raises UserError."""
    import tensorflow as tf

    from shatter_tf import litert, saved_model

    model = litert.convert(servable, int8_weights=weights == "int8")
    difference = litert.difference(servable, model, tf.constant(saved_model.sample_texts(servable, 3, 12)))
    # Whether the error of rounding to eight bits is acceptable is for the user to judge, as long as it is finite.
    if not (difference <= _TOLERANCE or (weights == "int8" and math.isfinite(difference))):
        raise UserError(
            f"--litert={weights}: what was converted differs from the trained model by {difference:.1e}; "
            "nothing was written"
        )
    path = os.path.join(directory, "assets.extra", "token_ids.tflite")
    with _writing(export_dir):
        tf.io.gfile.makedirs(os.path.dirname(path))
        with tf.io.gfile.GFile(path, "wb") as f:
            f.write(model)
    return (
        f"LiteRT: {os.path.relpath(path, directory)}, {len(model) / 1e6:.1f} MB, weights in {weights}, for 1 x "
        f"{servable.seq_length} tokens, at most {difference:.1e} from the trained model"
    )


if __name__ == "__main__":
    run(main)
