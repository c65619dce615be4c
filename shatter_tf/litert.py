"""Exports for phones and other small devices: the signature `token_ids` as a LiteRT (TensorFlow Lite) model."""

import numpy as np
import tensorflow as tf

from shatter_tf.saved_model import relative_difference
from shatter_tf.serving import INPUTS, Servable


def convert(servable: Servable, int8_weights: bool) -> bytes:
    """Returns a LiteRT model with built-in operations only, for one text of the full length.

    It takes the encoder's inputs, int32 [1, seq_length], padded, and gives the numbers that `token_ids` does; strings,
    including tokenisation and label names, are left to the device's own code.

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
    converter = tf.lite.TFLiteConverter.from_concrete_functions([root.token_ids.get_concrete_function()], root)
    if int8_weights:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def _numbers(servable: Servable, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: value for name, value in servable.predict(inputs).items() if value.dtype == tf.float32}


def difference(servable: Servable, model: bytes, texts: tf.Tensor) -> float:
    """Returns the largest difference between LiteRT's outputs for strings [N] and the trained model's.

    For outputs beyond 1, it is relative to the largest. NaN where either gives NaN.
    """
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_content=model).get_signature_runner()
    differences = []
    for text in tf.unstack(texts):
        inputs = servable.tokenizer.pad(servable.encode(text[tf.newaxis]), servable.seq_length)
        outputs = run(**{name: value.numpy() for name, value in inputs.items()})
        for name, value in _numbers(servable, inputs).items():
            differences.append(relative_difference(outputs[name], value.numpy()))
    return float(np.max(differences))
