"""Far tokens read in spans: against an oracle with lists of spans, and against attention to all tokens."""

import math

import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import sigmoid

from shatter_tf.encoders.shatter.attention import ShatterAttention
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.encoder import ShatterEncoder, ShatterEncoderBlock
from shatter_tf.encoders.shatter.equations import mask_and_partition
from shatter_tf.encoders.shatter.spans import attend_to_spans, levels_of
from shatter_tf.layers.dropout import row_keys

P, E = 8, 3  # parts that reach 5 tokens
D = P * E


def make_config(block=8, spans=4, far_keys="spans", **choices):
    sizes = dict(hidden_size=D, num_parts=P, intermediate_size=13, initializer_range=0.3, num_layers=2, vocab_size=20)
    sizes |= dict(dropout_rate=0.0, attention_dropout_rate=0.0, max_sequence_length=4096)
    sizes |= dict(far_keys=far_keys, near_block_size=block, spans_per_block=spans)
    return ShatterConfig(**sizes | choices)


def operands(length, batch=2, seed=0):
    """Query, position bias, x and value, all random and large enough to matter."""
    rng = np.random.default_rng(seed)
    shapes = [batch, length, D], [batch, length, P], [batch, length, D], [batch, P, length, E]
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]


def packs_of(*lengths, padding=0):
    return [number for number, length in enumerate(lengths, 1) for _ in range(length)] + [0] * padding


def spans_of(config, length):
    """For each query, the spans that it reads, as (first token, tokens), by a search from the whole down to blocks."""
    top = config.near_block_size
    while top < length:
        top *= 2

    def below(i, begin, size):
        if begin >= length:
            return []
        if abs(begin // size - i // size) > 1:  # a block that is not beside the query's own
            step = max(1, size // config.spans_per_block)
            return [(b, step) for b in range(begin, begin + size, step)]
        if size == config.near_block_size:
            return []
        return below(i, begin, size // 2) + below(i, begin + size // 2, size // 2)

    return [below(i, 0, top) for i in range(length)]


def oracle(config, query, position_bias, x, value, packs):
    """The equations of spans.py, one loop or line for each symbol."""
    query, position_bias, x, value = (np.asarray(t, np.float64) for t in (query, position_bias, x, value))
    block = config.near_block_size
    length = x.shape[1]

    def f(p, r):
        return reference.part(p, r, P, config.partition, config.squashing_scale)

    far = spans_of(config, length) if config.far_keys == "spans" else [[]] * length
    y = np.zeros((*x.shape[:2], P, E))
    for n in range(len(x)):
        for i in range(length):
            near = [(j, 1) for j in range(length) if abs(j // block - i // block) <= 1 and j != i]
            totals = np.zeros(P)
            for begin, size in near + far[i]:
                own = [j for j in range(begin, min(begin + size, length)) if packs[n][j] == packs[n][i] > 0]
                if not own:
                    continue
                share = np.array([np.mean([f(p, j - i) for j in range(begin, begin + size)]) for p in range(P)])
                mean_x, mean_v = x[n, own].mean(0), value[n][:, own].mean(1)
                score = query[n, i] @ mean_x / math.sqrt(D) + share @ position_bias[n, i]
                a = len(own) * sigmoid(score - config.sigmoid_bias)
                totals += share * a
                y[n, i] += (share * a)[:, np.newaxis] * mean_v
            if config.normalizer == "part_row_sum":
                y[n, i] /= (totals + 0.01 * totals.sum() + 3e-5)[:, np.newaxis]
    return y.reshape(x.shape)


@pytest.mark.parametrize("length", [7, 16, 17, 64, 100, 129])
@pytest.mark.parametrize(("block", "spans"), [(8, 4), (8, 1), (16, 8), (8, 64)])
def test_every_token_is_read_once(length, block, spans):
    config = make_config(block, spans)
    for i, far in enumerate(spans_of(config, length)):
        near = [j for j in range(length) if abs(j // block - i // block) <= 1]
        read = [*near, *(j for begin, size in far for j in range(begin, begin + size))]
        assert [j for j in sorted(read) if j < length] == [*range(length)]
        assert all(size <= max(1, min(abs(begin - i), abs(begin + size - 1 - i)) / spans) for begin, size in far)


CASES = [
    (40, 8, 4, [packs_of(40), packs_of(15, 4, 12, padding=9)]),
    (67, 8, 2, [packs_of(5, 50, 12), packs_of(33, 33, padding=1)]),
    (101, 8, 1, [packs_of(100, padding=1), packs_of(3, 44, 2, 9, 30, padding=13)]),
    (130, 16, 8, [packs_of(64, 66), packs_of(130)]),
    (75, 8, 16, [packs_of(20, 55), packs_of(75)]),
]


@pytest.mark.parametrize(("length", "block", "spans", "packs"), CASES)
@pytest.mark.parametrize("choices", [{}, dict(far_keys="none"), dict(normalizer="none")])
def test_against_the_oracle(length, block, spans, packs, choices):
    config = make_config(block, spans, **choices)
    inputs = operands(length)
    xla = length == 67  # compiling all would take long
    attend = tf.function(lambda *t: attend_to_spans(config, *t, None), jit_compile=xla, autograph=False)
    actual = attend(*inputs, tf.constant(packs))
    np.testing.assert_allclose(actual, oracle(config, *inputs, packs), rtol=5e-4, atol=3e-5)


def test_without_position_bias():
    config = make_config(8, 2)
    query, bias, x, value = operands(50)
    packs = [packs_of(50), packs_of(20, 20, padding=10)]
    expected = oracle(config, query, tf.zeros_like(bias), x, value, packs)
    actual = attend_to_spans(config, query, None, x, value, tf.constant(packs), None)
    np.testing.assert_allclose(actual, expected, rtol=5e-4, atol=3e-5)


def built(length=64, cls=ShatterAttention, **choices):
    """A layer with weights that matter, biases too."""
    layer = cls(make_config(**choices))
    x = operands(length)[2]
    layer(x, tf.ones(x.shape[:2], tf.int32))
    rng = np.random.default_rng(7)
    for variable in layer.variables:
        variable.assign(variable + rng.normal(0, 0.3, variable.shape).astype(np.float32))
    return layer, x


def at_once(layer, x, packs):
    """Attention to all tokens."""
    return layer(x, packs, mask_and_partition(layer.config, packs, tf.float32))[0]


PACKS = [packs_of(64), packs_of(20, 3, 35, padding=6)]


@pytest.mark.parametrize(
    "choices",
    [
        dict(block=32, spans=1),  # two blocks: all tokens are near
        dict(block=8, spans=64),  # every span is one token
        dict(block=8, spans=16),
        dict(block=16, spans=32, normalizer="none"),
    ],
)
def test_nothing_is_lost_where_spans_are_single_tokens(choices):
    layer, x = built(**choices)
    packs = tf.constant(PACKS)

    def value_and_gradients(read):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = read(layer, x, packs)
            loss = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(loss, [x, *layer.trainable_variables])]

    exact, in_spans = (value_and_gradients(read) for read in (at_once, lambda *args: layer(*args[1:])[0]))
    for expected, actual in zip(exact, in_spans, strict=True):
        largest = max(1.0, float(tf.reduce_max(tf.abs(expected))))
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-5 * largest)


def test_nothing_is_lost_where_the_tokens_of_a_span_are_the_same():
    """But for how the partition varies over a span; without a position bias that is next to nothing."""
    for use_position_bias, tolerance in ((False, 1e-4), (True, 3e-2)):
        layer, x = built(256, block=16, spans=8, use_position_bias=use_position_bias)
        x = tf.repeat(x[:, ::16], 16, axis=1)
        packs = tf.constant([packs_of(256), packs_of(64, 128, padding=64)])
        np.testing.assert_allclose(layer(x, packs)[0], at_once(layer, x, packs), atol=tolerance)


def test_what_spans_lose_becomes_less_with_their_number():
    x = tf.cumsum(operands(256)[2], axis=1) / 8.0  # smooth
    packs = tf.ones([2, 256], tf.int32)
    errors = []
    for spans in (1, 2, 4, 8, 64):
        layer, _ = built(256, block=8, spans=spans)
        errors.append(float(tf.reduce_mean(tf.abs(layer(x, packs)[0] - at_once(layer, x, packs)))))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 < errors[-2]


@pytest.mark.parametrize("choices", [{}, dict(attention_dropout_rate=0.5)])
def test_documents_do_not_see_each_other(choices):
    """Boundaries lie within spans; what changes in one document, or in padding, changes no bit of another."""
    layer, x = built(128, block=8, spans=2, **choices)
    packs = tf.constant([packs_of(37, 60, 21, padding=10)] * 2)
    keys = row_keys(0, 1, 2)
    before = layer(x, packs, None, keys, training=True)[0].numpy()
    for number in range(4):
        changed = tf.where((packs == number)[..., tf.newaxis], x + 1.0, x)
        after = layer(changed, packs, None, keys, training=True)[0].numpy()
        others = (packs != number).numpy()
        np.testing.assert_array_equal(after[others], before[others])
        assert number == 0 or np.abs(after - before)[~others].max() > 0.01


def test_a_document_is_read_as_if_it_were_alone():
    """Where it begins at a pair of the highest level that it fills, so that its spans are the same."""
    layer, x = built(256, block=8, spans=2)
    packs = tf.constant([packs_of(128, 70, padding=58)] * 2)
    together = layer(x, packs)[0]
    alone = layer(x[:, 128:], packs[:, 128:])[0]
    np.testing.assert_allclose(together[:, 128:198], alone[:, :70], rtol=1e-4, atol=1e-5)


def test_a_longer_row_reads_the_same():
    layer, x = built(300, block=8, spans=2)
    packs = tf.constant([packs_of(90, padding=210)] * 2)
    np.testing.assert_allclose(layer(x, packs)[0][:, :90], layer(x[:, :90], packs[:, :90])[0], rtol=1e-4, atol=1e-5)


def test_zeros_within_a_text_are_not_read():
    packs = np.array([packs_of(64), packs_of(30, 34)])
    packs[:, 5:64:7] = 0
    config = make_config(8, 2)
    inputs = operands(64)
    actual = attend_to_spans(config, *inputs, tf.constant(packs), None)
    np.testing.assert_allclose(actual, oracle(config, *inputs, packs), rtol=5e-4, atol=3e-5)


@pytest.mark.parametrize("choices", [{}, dict(attention_dropout_rate=0.3)])
def test_gradients_against_finite_differences(choices):
    config = make_config(8, 2, **choices)
    packs = tf.constant([packs_of(11, 40, 13)])
    keys = row_keys(0, 1, 1) if choices else None
    inputs = operands(64, batch=1)
    weights = tf.constant(np.random.default_rng(1).normal(size=[1, 64, D]), tf.float32)

    def loss(tensors):
        return tf.reduce_sum(weights * attend_to_spans(config, *tensors, packs, keys))

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = loss(inputs)
    gradients = tape.gradient(total, inputs)
    rng = np.random.default_rng(2)
    for i in range(len(inputs)):
        step = 3e-3 * tf.constant(rng.normal(size=inputs[i].shape), tf.float32)
        ends = [loss([*inputs[:i], inputs[i] + sign * step, *inputs[i + 1 :]]) for sign in (1, -1)]
        expected = float(tf.reduce_sum(gradients[i] * step))
        assert float(ends[0] - ends[1]) / 2 == pytest.approx(expected, rel=0.02, abs=2e-3)


def test_dropout_drops_spans_and_keeps_the_mean():
    config = make_config(8, 4, attention_dropout_rate=0.5, normalizer="none")
    packs = tf.ones([1, 64], tf.int32)
    inputs = operands(64, batch=1)
    attend = tf.function(lambda step: attend_to_spans(config, *inputs, packs, row_keys(0, step, 1)), autograph=False)
    drawn = [attend(tf.constant(step)).numpy() for step in range(300)]
    whole = attend_to_spans(config, *inputs, packs, None).numpy()
    error = np.abs(np.mean(drawn, axis=0) - whole)
    assert np.all(error < 6 * np.std(drawn, axis=0) / math.sqrt(300) + 1e-6)
    assert np.mean(np.std(drawn, axis=0) > 0) > 0.9  # the first tokens have nothing on their left


def test_bfloat16():
    layer, x = built(256, block=8, spans=4)
    half = ShatterAttention(layer.config, dtype="mixed_bfloat16")
    packs = tf.constant([packs_of(256), packs_of(90, 110, padding=56)])
    half(x, packs)
    half.set_weights(layer.get_weights())
    y = half(x, packs)[0]
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), layer(x, packs)[0], atol=0.1)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_encoder_learns_through_recomputed_blocks(jit_compile):
    """The gradients are the same whatever is kept for the backward pass."""
    ids = tf.constant(np.random.default_rng(0).integers(1, 20, [2, 70]), tf.int32)
    inputs = dict(input_word_ids=ids, input_mask=tf.constant([packs_of(70), packs_of(30, 31, padding=9)]))
    gradients = []
    weights = None
    for recompute_blocks in (False, True):
        encoder = ShatterEncoder(make_config(recompute_blocks=recompute_blocks))
        encoder(inputs)
        weights = weights or encoder.get_weights()
        encoder.set_weights(weights)

        @tf.function(jit_compile=jit_compile, autograph=False)
        def gradient(encoder=encoder):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.sin(encoder(inputs, training=True)["sequence_output"]))
            return [tf.convert_to_tensor(g) for g in tape.gradient(loss, encoder.trainable_variables)]

        gradients.append(gradient())
    for expected, actual in zip(*gradients, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("far_keys", ["spans", "none"])
def test_a_text_is_read_the_same_however_long_its_row_is(far_keys):
    """Also where the length is not known when the graph is made, up to two blocks."""
    layer, x = built(64, block=8, spans=2, far_keys=far_keys, cls=ShatterEncoderBlock)
    assert layer.config.longest_dynamic == 16
    signature = [tf.TensorSpec([2, None, D]), tf.TensorSpec([2, None], tf.int32)]
    dynamic = tf.function(lambda x, packs: layer(x, packs)[0], signature, autograph=False)
    for length in (1, 9, 16):
        packs = tf.constant([packs_of(length, padding=64 - length)] * 2)
        padded = layer(x, packs)[0][:, :length]
        np.testing.assert_allclose(dynamic(x[:, :length], packs[:, :length]), padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("far_keys", ["spans", "none"])
def test_the_length_need_not_be_known(far_keys):
    ids = tf.constant(np.random.default_rng(0).integers(1, 20, [2, 70]), tf.int32)
    encoder = ShatterEncoder(make_config(far_keys=far_keys, max_sequence_length=96))
    specs = [tf.TensorSpec([None, None], tf.int32)] * 2

    @tf.function(input_signature=specs, autograph=False)
    def encode(ids, mask):
        return encoder(dict(input_word_ids=ids, input_mask=mask))["sequence_output"]

    for length in (3, 16, 17, 70):
        inputs = dict(
            input_word_ids=ids[:, :length], input_mask=tf.constant([packs_of(length), packs_of(2, length - 2)])
        )
        expected = encoder(inputs)["sequence_output"]
        np.testing.assert_allclose(encode(*inputs.values()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [16, 70])
def test_output_range_is_a_part_of_the_output(length):
    ids = tf.constant(np.random.default_rng(0).integers(1, 20, [2, length]), tf.int32)
    inputs = dict(input_word_ids=ids, input_mask=tf.ones_like(ids))
    whole, part = (ShatterEncoder(make_config(output_range=output_range)) for output_range in (None, 3))
    expected = whole(inputs)
    part(inputs)
    part.set_weights(whole.get_weights())
    actual = part(inputs)["sequence_output"]
    assert actual.shape[1] == 3
    np.testing.assert_allclose(actual, expected["sequence_output"][:, :3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("choices", "problem"),
    [
        (dict(far_keys="words"), "far_keys='words' is not one of tokens, spans, none"),
        (dict(block=12), "near_block_size=12 is not a power of two"),
        (dict(spans=0), "spans_per_block=0"),
        (dict(block=4), "near_block_size=4: .* 5"),
        (dict(normalizer="row_sum"), "far_keys='spans' needs normalizer"),
        (dict(partition="bernstein"), "far_keys='spans' needs partition"),
    ],
)
def test_what_cannot_be_is_a_problem(choices, problem):
    with pytest.raises(ValueError, match=problem):
        ShatterAttention(make_config(**choices))


def test_levels_grow_with_the_logarithm_of_the_length():
    config = make_config(block=64, spans=32)
    for length, levels in ((128, 0), (129, 1), (512, 2), (4096, 5), (32_768, 8)):
        assert len(levels_of(config, length)[0]) == levels
