"""One harness for every layer: what any layer of this package must do."""

import numpy as np
import tensorflow as tf
import tf_keras


def check_layer(build, call, names: set[str], tmp_path) -> None:
    """Runs all checks on one layer.

    Args:
      build: returns a new layer, with settings that are not the defaults.
      call: takes a layer and gives its outputs (a nest of tensors) on fixed inputs; `training` defaults to False.
      names: the expected names of its trainable weights, relative to the layer.
      tmp_path: for files.
    """
    layer = build()
    call(layer)
    _check_weights(layer, names)
    _check_round_trips(layer, call, tmp_path)
    _check_gradients(layer, call)
    _check_compiled(layer, call)
    _check_bfloat16(layer, build, call)


def _check_weights(layer, names):
    own = {variable.name.split("/", 1)[1].removesuffix(":0") for variable in layer.trainable_weights}
    assert own == names
    # A Keras 3 sub-layer would run, but its weights would be missing here.
    assert len(layer.trainable_variables) == len(names)


def _randomize(layer):
    rng = np.random.default_rng(3)
    for variable in layer.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.1, variable.shape).astype(np.float32))


def _check_round_trips(layer, call, tmp_path):
    _randomize(layer)
    outputs = call(layer)
    clone = type(layer).from_config(layer.get_config())
    assert clone.get_config() == layer.get_config()
    call(clone)
    clone.set_weights(layer.get_weights())
    _assert_same(call(clone), outputs)

    fresh = type(layer).from_config(layer.get_config())
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "checkpoint"))
    call(fresh)
    tf.train.Checkpoint(layer=fresh).read(path).assert_consumed()
    _assert_same(call(fresh), outputs)

    class Served(tf.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
            self.outputs = tf.function(lambda: call(layer), input_signature=[], autograph=False)

    tf.saved_model.save(Served(), str(tmp_path / "saved_model"))
    loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
    _assert_same(loaded.outputs(), outputs)


def _check_gradients(layer, call):
    with tf.GradientTape() as tape:
        outputs = [tf.cast(t, tf.float32) for t in tf.nest.flatten(call(layer, training=True))]
        loss = tf.add_n([tf.reduce_sum(tf.sin(t)) for t in outputs])
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, layer.trainable_variables), strict=True
    ):
        assert gradient is not None, variable.name
        assert np.all(np.isfinite(tf.convert_to_tensor(gradient))), variable.name
        assert np.any(tf.convert_to_tensor(gradient)), variable.name


def _check_compiled(layer, call):
    outputs = call(layer)
    _assert_same(tf.function(lambda: call(layer))(), outputs, atol=1e-4)
    _assert_same(tf.function(lambda: call(layer), jit_compile=True, autograph=False)(), outputs, atol=1e-4)


def _check_bfloat16(exact, build, call):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    layer = build()
    call(layer)
    layer.set_weights(exact.get_weights())
    outputs = call(layer)
    for rounded, tensor in zip(tf.nest.flatten(outputs), tf.nest.flatten(call(exact)), strict=True):
        np.testing.assert_allclose(tf.cast(rounded, tf.float32), tensor, atol=0.1)
    assert {variable.dtype for variable in layer.trainable_variables} == {tf.float32}
    assert tf.bfloat16 in {tensor.dtype for tensor in tf.nest.flatten(outputs)}
    tf_keras.mixed_precision.set_global_policy("float32")

    clone = type(layer).from_config(layer.get_config())  # under another policy
    call(clone)
    clone.set_weights(exact.get_weights())
    _assert_same(call(clone), outputs)


def _assert_same(actual, expected, atol=1e-6):
    tf.nest.assert_same_structure(actual, expected)
    for a, e in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=atol)
