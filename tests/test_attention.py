"""The attention against its oracle, and the properties that must hold whatever its weights."""

import itertools

import numpy as np
import pytest
import reference
import tensorflow as tf
import tf_keras

from shatter_tf.encoders.shatter.attention import ShatterAttention
from shatter_tf.encoders.shatter.config import NORMALIZERS, PARTITIONS, ShatterConfig
from shatter_tf.encoders.shatter.encoder import ShatterEncoderBlock
from shatter_tf.encoders.shatter.equations import (
    PART_EPSILON,
    SMALL_SHARE,
    attend,
    attention_map,
    attention_mask,
    mask_and_partition,
    normalize_parts,
)
from shatter_tf.encoders.shatter.partition import position_partition
from shatter_tf.layers.dropout import dropout, row_keys

B, L, P, E = 3, 11, 5, 7  # distinct primes: a transposed axis cannot pass
D = P * E
MASKS = {
    "full": np.ones((B, L), np.int32),
    "padded": np.array([[1] * L, [1] * 4 + [0] * 7, [0] * L], np.int32),
    "packed": np.array([[1] * 5 + [2] * 6, [1] * 2 + [2] * 4 + [3] * 3 + [0] * 2, [1] * L], np.int32),
}


def make_config(**choices):
    sizes = dict(hidden_size=D, num_parts=P, intermediate_size=13, squashing_scale=3.0, initializer_range=0.3)
    return ShatterConfig(**{**sizes, "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **choices})


def randomize(layer):
    """Gives every weight, zero biases and unit gammas included, a value that matters."""
    rng = np.random.default_rng(7)
    for variable in layer.variables:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape).astype(np.float32))


def attention_weights(layer):
    weights = dict(
        wq=layer.query.kernel, bq=layer.query.bias, wv=layer.value.kernel, bv=tf.squeeze(layer.value.bias, 1)
    )
    for kernel, bias, part in (
        ("u", "bu", layer.position_bias),
        ("wo", "bo", layer.output_projection),
    ):
        if part is not None:
            weights.update({kernel: part.kernel, bias: part.bias})
    return {name: np.asarray(value, np.float64) for name, value in weights.items()}


def inputs(seed=0):
    return np.random.default_rng(seed).normal(size=(B, L, D)).astype(np.float32)


def call(layer, x, input_mask):
    packs = tf.constant(input_mask)
    return layer(tf.constant(x), packs, mask_and_partition(layer.config, packs, tf.float32))


def built(cls, **choices):
    layer = cls(make_config(**choices))
    call(layer, inputs(), MASKS["full"])
    randomize(layer)
    return layer


@pytest.mark.parametrize(("family", "mask"), itertools.product(PARTITIONS, MASKS))
@pytest.mark.parametrize(
    ("normalizer", "choices"),
    [
        *((normalizer, {}) for normalizer in NORMALIZERS),
        ("none", dict(use_output_projection=True)),
        ("part_row_sum", dict(sigmoid_bias=0.0)),
        ("part_row_sum", dict(use_position_bias=False)),
    ],
)
def test_attention_matches_the_oracle(family, mask, normalizer, choices):
    layer = built(ShatterAttention, partition=family, normalizer=normalizer, **choices)
    y, attention = call(layer, inputs(), MASKS[mask])
    f = reference.partition(L, P, family, 3.0)
    expected = reference.attention(
        inputs(), attention_weights(layer), MASKS[mask], f, normalizer, layer.config.sigmoid_bias
    )
    np.testing.assert_allclose(attention, expected[1], atol=2e-5 * np.abs(expected[1]).max())
    np.testing.assert_allclose(y, expected[0], atol=1e-5 * max(30, np.abs(expected[0]).max()))


@pytest.mark.parametrize(("family", "mask"), itertools.product(PARTITIONS, MASKS))
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_block_matches_the_oracle(family, mask, norm_first, policy):
    tf_keras.mixed_precision.set_global_policy(policy)
    layer = built(ShatterEncoderBlock, partition=family, norm_first=norm_first)
    h, _ = call(layer, inputs(), MASKS[mask])
    weights = attention_weights(layer.attention)
    names = dict(
        g1=layer.attention_layer_norm.scale, g2=layer.output_layer_norm.scale, w1=layer.intermediate.kernel,
        c1=layer.intermediate.bias, w2=layer.output_dense.kernel, c2=layer.output_dense.bias,
    )  # fmt: skip
    weights.update({name: np.asarray(tf.convert_to_tensor(v), np.float64) for name, v in names.items()})
    f = reference.partition(L, P, family, 3.0)
    expected = reference.block(inputs().astype(np.float64), weights, MASKS[mask], f, norm_first)
    assert h.dtype == layer.compute_dtype
    error = np.abs(tf.cast(h, tf.float32).numpy() - expected)
    scale = np.abs(expected).max()
    assert error.max() < (2e-5 if policy == "float32" else 0.06) * scale


def test_one_part_is_plain_single_head_attention():
    layer = ShatterAttention(make_config(num_parts=1))
    y, attention = call(layer, inputs(), MASKS["full"])
    value = inputs() @ layer.value.kernel[:, 0].numpy()
    total = attention.numpy().sum(axis=-1, keepdims=True)
    rows = attention.numpy() / (total + SMALL_SHARE * total + PART_EPSILON)
    np.testing.assert_allclose(y, rows @ value, atol=1e-4)


@pytest.mark.parametrize("family", PARTITIONS)
def test_equal_value_matrices_collapse_to_plain_attention(family):
    layer = built(ShatterAttention, partition=family, normalizer="unit_length")
    layer.value.kernel.assign(tf.repeat(layer.value.kernel[:, :1], P, axis=1))
    layer.value.bias.assign(tf.repeat(layer.value.bias[:1], P, axis=0))
    y, attention = call(layer, inputs(), MASKS["packed"])
    value = inputs() @ layer.value.kernel[:, 0].numpy() + layer.value.bias[0].numpy()
    sum_of_parts = y.numpy().reshape(B, L, P, E).sum(axis=2)
    np.testing.assert_allclose(sum_of_parts, attention.numpy() @ value, atol=1e-4)


@pytest.mark.parametrize("family", PARTITIONS)
def test_each_part_reads_a_mean_over_its_own_tokens(family):
    layer = built(ShatterAttention, partition=family)
    layer.value.kernel.assign(tf.zeros_like(layer.value.kernel))  # every token's value is the part's bias
    y, attention = call(layer, inputs(), MASKS["packed"])
    total = tf.einsum("BLM,PLM->BLP", attention, position_partition(layer.config, L)).numpy()
    share = total / (total + SMALL_SHARE * total.sum(axis=-1, keepdims=True) + PART_EPSILON)
    expected = share[..., np.newaxis] * layer.value.bias.numpy().reshape(P, E)
    np.testing.assert_allclose(y, expected.reshape(B, L, D), atol=1e-5)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("mask", ["padded", "packed"])
def test_other_documents_and_padding_have_no_influence_and_no_gradient(mask, normalizer):
    layer = built(ShatterAttention, normalizer=normalizer)
    numbers = MASKS[mask]
    here = tf.constant(numbers == 1)[..., tf.newaxis]
    x = tf.constant(inputs())
    elsewhere = tf.where(here, x, x + 100.0 * tf.constant(inputs(1)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.where(here, call(layer, x, numbers)[0], 0.0)
        total = tf.reduce_sum(tf.square(y))
    changed = tf.where(here, call(layer, elsewhere, numbers)[0], 0.0)
    np.testing.assert_array_equal(y, changed)
    gradient = tape.gradient(total, x)
    assert not np.any(tf.where(here, 0.0, gradient))
    assert np.any(gradient)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_fully_masked_row_is_zero_and_its_gradient_finite(normalizer):
    scores = tf.Variable(tf.random.normal([1, 3, 3]))
    with tf.GradientTape() as tape:
        attention = attention_map(make_config(normalizer=normalizer), scores, tf.zeros([1, 3, 3], tf.bool))
        total = tf.reduce_sum(attention)
    assert not np.any(attention)
    np.testing.assert_array_equal(tape.gradient(total, scores), np.zeros((1, 3, 3)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_row_without_attention_reads_zeros_in_half_precision(dtype):
    y = normalize_parts(tf.zeros([1, 2, D], dtype), tf.zeros([1, 2, P], dtype))
    np.testing.assert_array_equal(tf.cast(y, tf.float32), np.zeros((1, 2, D)))


def test_shift_equivariance():
    layer = built(ShatterEncoderBlock)
    x, numbers = inputs(), np.array([[1] * 6 + [0] * 5] * B, np.int32)
    shifted = call(layer, np.roll(x, 5, axis=1), np.roll(numbers, 5, axis=1))[0]
    np.testing.assert_allclose(call(layer, x, numbers)[0][:, :6], shifted[:, 5:], rtol=1e-6, atol=1e-5)


def test_fewer_queries_than_keys_give_the_first_positions():
    layer = built(ShatterEncoderBlock)
    x = tf.constant(inputs())
    packs = tf.constant(MASKS["packed"])
    whole = layer(x, packs)
    part = layer(x, packs, mask_and_partition(layer.config, packs, tf.float32, num_queries=4))
    np.testing.assert_allclose(part[0], whole[0][:, :4], atol=1e-5)
    assert part[1].shape == (B, 4, L)


def test_eager_graph_and_xla_agree():
    layer = built(ShatterEncoderBlock)
    x = tf.constant(inputs())
    packs = tf.constant(MASKS["packed"])

    def value_and_gradients():
        with tf.GradientTape() as tape:
            h, _ = layer(x, packs)
            loss = tf.reduce_sum(tf.sin(h))
        return [h, *tape.gradient(loss, layer.trainable_variables)]

    eager = value_and_gradients()
    for jit_compile in (False, True):
        compiled = tf.function(value_and_gradients, jit_compile=jit_compile, autograph=False)
        for expected, actual in zip(eager, compiled(), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-3)  # gradients are up to 30


def test_dropout_acts_on_the_one_map():
    """Entries of the map are dropped, for all parts alike: with values of ones, y tells which."""
    config = make_config(attention_dropout_rate=0.5, normalizer="none", partition="bernstein")
    rng = np.random.default_rng(2)
    query, x = (tf.constant(rng.normal(size=(B, L, D)), tf.float32) for _ in range(2))
    operands = (config, query, None, x, tf.ones([B, P, L, E]), attention_mask(tf.constant(MASKS["full"])))
    f = position_partition(config, L)
    keys = row_keys(seed=0, step=1, batch_size=B)
    y, attention = attend(*operands, f, keys)
    dropped = tf.reduce_sum(tf.reshape(y, [B, L, P, E])[..., 0], axis=-1)  # the parts sum to one
    kept = dropout(attention, 0.5, keys)
    assert 0.3 < np.mean(kept == 0) < 0.7
    np.testing.assert_allclose(dropped, tf.reduce_sum(kept, axis=-1), rtol=1e-4)


@pytest.mark.parametrize("cls", [ShatterAttention, ShatterEncoderBlock])
def test_dropout_is_for_training_only(cls):
    layer = built(cls, dropout_rate=0.5, attention_dropout_rate=0.5)
    x = tf.constant(inputs())
    packs = tf.constant(MASKS["full"])
    keys = row_keys(seed=0, step=1, batch_size=B)
    assert np.any(layer(x, packs, training=True)[0] != layer(x, packs, training=True)[0])
    with_keys = [layer(x, packs, dropout_keys=keys, training=True)[0] for _ in range(2)]
    np.testing.assert_array_equal(*with_keys)
    np.testing.assert_array_equal(layer(x, packs)[0], layer(x, packs)[0])
    np.testing.assert_array_equal(layer(x, packs, dropout_keys=keys, training=False)[0], layer(x, packs)[0])


@pytest.mark.parametrize(
    ("size", "choices"),
    [
        (4, {}),
        (5, dict(use_position_bias=False)),
        (11, {}),
        (4, dict(num_parts=E, squashing_scale=0.6)),  # few parts for keys more than 2 away from a block
        (3, dict(num_parts=E, squashing_scale=0.4, normalizer="none", use_position_bias=False)),
        (4, dict(num_parts=E, squashing_scale=0.6, normalizer="row_sum")),
        (4, dict(num_parts=E, squashing_scale=0.6, attention_dropout_rate=0.5, dropout_rate=0.5)),
    ],
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_blocks_of_queries_give_the_same_values_and_gradients(size, choices, jit_compile):
    layer = built(ShatterEncoderBlock, query_block_size=size, **choices)
    x = tf.constant(inputs())
    keys = row_keys(seed=0, step=1, batch_size=B)

    def value_and_gradients(packs, maps=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            h, _ = layer(x, packs, maps, keys, training=True)
            loss = tf.reduce_sum(tf.sin(h))
        return [h, *tape.gradient(loss, [x, *layer.trainable_variables])]

    in_blocks = tf.function(value_and_gradients, jit_compile=jit_compile, autograph=False)
    for name, packs in MASKS.items():
        packs = tf.constant(packs)
        at_once = value_and_gradients(packs, mask_and_partition(layer.config, packs, tf.float32))
        for expected, actual in zip(at_once, in_blocks(packs), strict=True):
            largest = float(tf.reduce_max(tf.abs(expected)))
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-4 * max(1.0, largest), err_msg=name)
