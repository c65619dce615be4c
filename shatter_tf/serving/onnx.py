"""Exports for ONNX Runtime: the signature `token_ids` as an ONNX model, of any number of texts of any length."""

import importlib.util
import logging

import numpy as np
import tensorflow as tf

from shatter_tf.encoders.base import INPUTS
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.serving.samples import relative_difference, sample_texts
from shatter_tf.serving.servable import Servable

FILE = "assets.extra/token_ids.onnx"  # in the directory of an export

_OPSET = 18  # ONNX Runtime 1.14 and later


def check() -> None:
    """Raises UserError where what converts and checks is not installed."""
    for name in ("tf2onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{argument('onnx')}: needs {name}; pip install 'shatter_tf[onnx]'")


def convert_and_check(servable: Servable, tolerance: float) -> tuple[bytes, str]:
    """Returns the ONNX model, and a line on it.

    Args:
      servable: what is exported.
      tolerance: how much its outputs may differ from the trained model's.

    Raises:
      UserError: when they differ by more, and when it cannot be converted.
    """
    try:
        model = convert(servable)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{argument('onnx')}: cannot be converted ({first_line(error)})") from error
    found = difference(servable, model)
    if not found <= tolerance:
        raise UserError(
            f"{argument('onnx')}: what was converted differs from the trained model by {found:.1e}; nothing was written"
        )
    length = servable.seq_length if _is_static(servable) else f"up to {servable.seq_length}"
    return model, (
        f"ONNX: {FILE}, {len(model) / 1e6:.1f} MB, for any number of texts of {length} tokens, at most {found:.1e} "
        "from the trained model"
    )


def convert(servable: Servable) -> bytes:
    """Returns an ONNX model that takes the encoder's inputs, int32 [B, L], and gives the numbers that `token_ids` does.

    Strings, including tokenization and label names, are left to the caller's own code. L is free, but for encoders that
    read such long texts in parts: these take `seq_length`.
    """
    import tf2onnx

    length = servable.seq_length if _is_static(servable) else None
    specs = [tf.TensorSpec([None, length], tf.int32, name) for name in INPUTS]
    function = tf.function(
        lambda *inputs: servable.signatures["token_ids"].predict(dict(zip(INPUTS, inputs, strict=True))),
        input_signature=specs,
        autograph=False,
    )
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # it tells every step otherwise
    model, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=_OPSET)
    _spell_out_sigmoids(model.graph)
    return model.SerializeToString()


def _spell_out_sigmoids(graph) -> None:
    """Replaces sigmoids in an ONNX graph by 1 / (1 + exp(-x)).

    ONNX Runtime's own is wrong far below its midpoint (1.32 on a CPU: by 0.03 % at -8, by 1 % at -12), where most
    attention is.
    """
    from onnx import helper

    nodes = []
    for node in graph.node:
        if node.op_type != "Sigmoid":
            nodes.append(node)
            continue
        x, y, name = node.input[0], node.output[0], node.name
        nodes += [
            helper.make_node("Neg", [x], [f"{y}/neg"], f"{name}/neg"),
            helper.make_node("Exp", [f"{y}/neg"], [f"{y}/exp"], f"{name}/exp"),
            helper.make_node("Add", [f"{y}/exp", f"{y}/one"], [f"{y}/sum"], f"{name}/add"),
            helper.make_node("Reciprocal", [f"{y}/sum"], [y], f"{name}/reciprocal"),
        ]
        graph.initializer.append(helper.make_tensor(f"{y}/one", 1, [], [1.0]))  # 1: float32
    del graph.node[:]
    graph.node.extend(nodes)


def difference(servable: Servable, model: bytes) -> float:
    """Returns the largest difference between ONNX Runtime's outputs and the trained model's, for batches of some sizes.

    For outputs beyond 1, it is relative to the largest. NaN where either gives NaN.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    differences = []
    for number, words in ((1, 1), (3, 12), (2, servable.seq_length)):
        texts = tf.constant(sample_texts(servable, number, words))
        inputs = servable.encoder_inputs(texts, full=_is_static(servable))
        outputs = dict(zip(names, session.run(names, {key: t.numpy() for key, t in inputs.items()}), strict=True))
        for name, expected in servable.signatures["token_ids"].predict(inputs).items():
            differences.append(relative_difference(outputs[name], expected.numpy()))
    return float(np.max(differences))


def _is_static(servable: Servable) -> bool:
    """Returns whether the length must be known when the graph is made."""
    return servable.seq_length > servable.encoder.config.longest_dynamic
