"""Exports for phones and other small devices: the signature `token_ids` as a LiteRT (TensorFlow Lite) model."""

import math
import tempfile

import numpy as np
import tensorflow as tf

from shatter_tf.encoders.base import INPUTS
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.serving.samples import relative_difference, sample_texts
from shatter_tf.serving.servable import Servable

FILE = "assets.extra/token_ids.tflite"  # in the directory of an export


def convert_and_check(servable: Servable, weights: str, tolerance: float) -> tuple[bytes, str]:
    """Returns the LiteRT model, and a line on it.

    Args:
      servable: what is exported.
      weights: "float32" or "int8", see `convert`.
      tolerance: how much its outputs may differ from the trained model's.

    Raises:
      UserError: when they differ by more (what rounding to eight bits costs is for the user to judge, if it is finite),
        and when there is no room for temporary files.
    """
    try:
        model = convert(servable, int8_weights=weights == "int8")
    except (tf.errors.OpError, OSError) as error:
        directory = tempfile.tempdir or "none found"
        raise UserError(
            f"{argument('litert')}={weights}: temporary files cannot be written, directory: {directory} "
            f"({first_line(error)}); make room there, or set TMPDIR to another directory"
        ) from error
    found = difference(servable, model, tf.constant(sample_texts(servable, 3, 12)))
    if not (found <= tolerance or (weights == "int8" and math.isfinite(found))):
        raise UserError(
            f"{argument('litert')}={weights}: what was converted differs from the trained model by {found:.1e}; "
            "nothing was written"
        )
    return model, (
        f"LiteRT: {FILE}, {len(model) / 1e6:.1f} MB, weights in {weights}, for 1 x {servable.seq_length} tokens, at "
        f"most {found:.1e} from the trained model"
    )


def convert(servable: Servable, int8_weights: bool) -> bytes:
    """Returns a LiteRT model with built-in operations only, for one text of the full length.

    It takes the encoder's inputs, int32 [1, seq_length], padded, and gives the numbers that `token_ids` does; strings,
    including tokenization and label names, are left to the device's own code.

    Args:
      servable: what is exported.
      int8_weights: stores the large weights in eight bits, at a quarter of the size; products round the other
        operand to eight bits, too.
    """
    root = servable.trackable()
    specs = [tf.TensorSpec([1, servable.seq_length], tf.int32, name) for name in INPUTS]
    root.token_ids = tf.function(
        lambda *inputs: _numbers(servable, dict(zip(INPUTS, inputs, strict=True))),
        input_signature=specs,
        autograph=False,
    )
    # Given a function, the converter would write the same files, and go on without signatures where it cannot.
    with tempfile.TemporaryDirectory() as directory:
        tf.saved_model.save(root, directory, signatures=root.token_ids.get_concrete_function())
        converter = tf.lite.TFLiteConverter.from_saved_model(directory)
        if int8_weights:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()


def difference(servable: Servable, model: bytes, texts: tf.Tensor) -> float:
    """Returns the largest difference between LiteRT's outputs for strings [N] and the trained model's.

    For outputs beyond 1, it is relative to the largest. NaN where either gives NaN.
    """
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_content=model).get_signature_runner()
    differences = []
    for text in tf.unstack(texts):
        inputs = servable.encoder_inputs(text[tf.newaxis], full=True)
        outputs = run(**{name: value.numpy() for name, value in inputs.items()})
        for name, value in _numbers(servable, inputs).items():
            differences.append(relative_difference(outputs[name], value.numpy()))
    return float(np.max(differences))


def _numbers(servable: Servable, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the numbers that `token_ids` gives for the encoder's inputs."""
    return servable.signatures["token_ids"].predict(inputs)
