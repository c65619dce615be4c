"""Smart Bird against its equations in NumPy, in closed forms, and in what must hold whatever its weights."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from layer_checks import check_layer

from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.encoders.bert.encoder import BertBaseline
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.smart_bird.config import SmartBirdConfig
from shatter_tf.encoders.smart_bird.encoder import SmartBirdBlock, SmartBirdEncoder
from shatter_tf.encoders.smart_bird.sketch import attend, sampled_indices, sampled_mask
from shatter_tf.layers.dropout import row_keys, site_keys, uniform

B, L, H, E, R, F, K = 3, 23, 2, 7, 5, 17, 10  # distinct primes, S = K + 1 too: a transposed axis cannot pass
D = H * E
PACKS = np.array([[1] * L, [1] * 14 + [2] * 3 + [3] * 4 + [0] * 2, [1] * 13 + [0] * 10], np.int32)
GATHERED = dict(dense_up_to=1, query_block_size=5)


def make_config(**choices):
    sizes = dict(vocab_size=31, hidden_size=D, num_layers=2, num_attention_heads=H, intermediate_size=F, sketch_size=R)
    sizes |= dict(hidden_activation="relu", sampled_keys=K, max_sequence_length=29, initializer_range=0.3)
    return SmartBirdConfig(**{**sizes, "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **choices})


def batch(packs=PACKS, seed=0):
    rng = np.random.default_rng(seed)
    ids, types = rng.integers(1, 31, packs.shape), rng.integers(0, 2, packs.shape)
    inputs = dict(input_word_ids=ids, input_mask=packs, input_type_ids=types)
    return {name: tf.constant(value, tf.int32) for name, value in inputs.items()}


def built(**choices):
    """Returns an encoder in which every weight has a value that matters."""
    encoder, rng = SmartBirdEncoder(make_config(**choices)), np.random.default_rng(7)
    encoder(batch())
    for variable in encoder.weights:
        if variable.dtype == tf.float32:
            variable.assign(variable + rng.normal(0, 0.3, variable.shape).astype(np.float32))
    return encoder


def like(encoder, **choices):
    """Returns an encoder with the weights of another and other settings."""
    other = SmartBirdEncoder(encoder.config.replace(**choices))
    other(batch())
    other.set_weights(encoder.get_weights())
    other._dropout_seed = encoder._dropout_seed
    return other


def output(encoder, inputs=None, **choices):
    return encoder(batch() if inputs is None else inputs, **choices)["sequence_output"]


# === The equations in NumPy ===


def mix(h, key=0):
    h = ((h ^ (h >> 16)) * 0x85EBCA6B + key) % 2**32
    return ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32


def noise(h, i, j, key=0):
    """G^h_ij; the key 0 is the constant of inference."""
    head_key = mix((key + (h + 1) * 0x9E3779B9) % 2**32)
    u = ((mix((int(i) * 65_537 + j) * 0x9E3779B9 % 2**32, head_key) >> 9) + 0.5) / 2**23
    return -np.log(-np.log(u))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def norm(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * layer.gamma.numpy() + layer.beta.numpy()


def dense(x, layer):
    return x @ layer.kernel.numpy().astype(np.float64) + layer.bias.numpy()


def log_shares(scores, packs):
    """log A_ij, [L, L]; A_ii is the token's own score over the same sum."""
    others = (packs[:, np.newaxis] == packs) & ~np.eye(len(packs), dtype=bool)
    total = np.where(others, np.exp(scores), 0).sum(-1, keepdims=True)
    return scores - np.log(np.where(total > 0, total, 1))


def attention(x, log_a, packs, block, number):
    heads = []
    for h in range(H):
        q, k, v = (
            x @ layer.kernel[:, h].numpy() + layer.bias[h, 0].numpy() for layer in (block.query, block.key, block.value)
        )
        y = np.zeros((len(x), E))
        for i in np.flatnonzero(packs):
            others = [j for j in range(len(x)) if packs[j] == packs[i] and j != i]
            drawn = sorted(others, key=lambda j: -log_a[i, j] - noise(h, i, j))[:number]
            chosen = [i, *drawn]
            scores = k[chosen] @ q[i] / np.sqrt(E) + block.sketch_weight[h].numpy() * log_a[i, chosen]
            y[i] = softmax(scores) @ v[chosen]
        heads.append(y @ block.attention_output.kernel[h].numpy())
    return sum(heads) + block.attention_output.bias.numpy()


def oracle(encoder, inputs):
    words, types, packs = (inputs[f"input_{name}"].numpy() for name in ("word_ids", "type_ids", "mask"))
    positions = encoder.position_embeddings.weights[0].numpy()[: words.shape[1]]
    embedded = encoder.word_embeddings.embeddings.numpy()[words] + encoder.type_embeddings.embeddings.numpy()[types]
    rows = []
    for x, row in zip(norm(embedded + positions, encoder.embeddings_layer_norm), packs, strict=True):
        u = x @ encoder.sketch.kernel.numpy() + encoder.sketch_positions.weights[0].numpy()[: len(x)]
        scores = (u @ encoder.sketch_query.kernel.numpy()) @ (u @ encoder.sketch_key.kernel.numpy()).T / np.sqrt(R)
        log_a = log_shares(scores, row)
        for block in encoder.blocks:
            x = norm(x + attention(x, log_a, row, block, encoder.config.sampled_keys), block.attention_layer_norm)
            inner = np.maximum(dense(x, block.intermediate), 0)
            x = norm(x + dense(inner, block.output_dense), block.output_layer_norm)
        rows.append(x)
    return np.stack(rows)


@pytest.mark.parametrize("choices", [{}, GATHERED])
def test_encoder_matches_the_oracle(choices):
    encoder = built(**choices)
    np.testing.assert_allclose(output(encoder), oracle(encoder, batch()), atol=2e-5)


# === Closed forms ===


@pytest.mark.parametrize(("sketch_weight", "uniform_shares"), [(0.0, False), (1.0, True)])
def test_all_keys_without_influence_of_the_sketch_are_bert(sketch_weight, uniform_shares):
    names = ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "hidden_activation")
    encoder = built(sampled_keys=L - 1)
    config = {name: getattr(encoder.config, name) for name in (*names, "dropout_rate", "attention_dropout_rate")}
    bert = BertBaseline(BertConfig(max_position_embeddings=29, pooling="mean", **config))
    bert(batch())

    # BERT's weights in its order.
    embeddings = [encoder.word_embeddings, encoder.position_embeddings, encoder.type_embeddings]
    ours = [layer.weights[0] for layer in embeddings] + encoder.embeddings_layer_norm.weights
    for block in encoder.blocks:
        block.sketch_weight.assign([sketch_weight] * H)
        projections = [weight for layer in (block.query, block.key, block.value) for weight in layer.weights]
        rest = (block.attention_output, block.attention_layer_norm, block.intermediate, block.output_dense)
        ours += projections + [weight for layer in (*rest, block.output_layer_norm) for weight in layer.weights]
    if uniform_shares:
        encoder.sketch_query.kernel.assign(tf.zeros([R, R]))
    bert.set_weights([*(tf.squeeze(w) if w.shape == (H, 1, E) else w for w in ours), *bert.pooler_layer.get_weights()])

    real = tf.constant(PACKS > 0)[..., tf.newaxis]
    np.testing.assert_allclose(
        tf.where(real, output(encoder), 0.0), tf.where(real, output(bert), 0.0), atol=1e-5, rtol=1e-5
    )
    np.testing.assert_allclose(encoder(batch())["pooled_output"], bert(batch())["pooled_output"], atol=1e-5)


def sketch_of(seed=0, shape=(B, L, R)):
    return [tf.constant(x, tf.float32) for x in np.random.default_rng(seed).normal(size=(2, *shape))]


def test_all_keys_are_dense_attention_with_the_logarithm_of_the_shares_as_a_bias():
    query, key = sketch_of()
    q, k, v = (tf.random.normal([B, H, L, E]) for _ in range(3))
    mask, scores = sampled_mask(
        make_config(sampled_keys=L - 1), query, key, tf.constant(PACKS), tf.zeros([1], tf.uint32)
    )
    y = attend(make_config(), q, k, v, mask, 0.7 * scores, None)
    for n, packs in enumerate(PACKS):
        log_a = log_shares(query[n].numpy() @ key[n].numpy().T / np.sqrt(R), packs)
        logits = np.einsum("hle,hme->hlm", q[n], k[n]) / np.sqrt(E) + 0.7 * log_a
        rows = softmax(np.where(packs[:, np.newaxis] == packs, logits, -np.inf)) * (packs > 0)[:, np.newaxis]
        np.testing.assert_allclose(y[n], rows @ v[n], atol=1e-5)


# === Sampling ===


def test_random_numbers_are_evenly_spread_and_do_not_depend_on_their_neighbors():
    places = tf.range(64) * 65_537, tf.range(96)
    sites = [uniform(site_keys(tf.zeros([1], tf.uint32), h), places) for h in range(20)]
    u, *others = (site[0].numpy() for site in sites)
    pairs = [(u[:, 1:], u[:, :-1]), (u[1:], u[:-1]), (u[2:, 1:], u[:-2, :-1]), *((u, other) for other in others)]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4.5 / np.sqrt(one.size)
    counts, _ = np.histogram(u, 50, (0, 1))
    assert np.abs(counts - u.size / 50).max() < 4.5 * np.sqrt(u.size / 50)


@pytest.mark.parametrize("number", [1, 2])
def test_keys_are_drawn_by_the_sketch(number):
    """10^4 draws: of one key with the frequencies A, and of two as without replacement."""
    draws, length, heads = 10_000, 5, 2
    query, key = sketch_of(shape=(1, length, R))
    config = make_config(sampled_keys=number, num_attention_heads=heads)
    packs = np.ones((draws, length), np.int32)
    keys = row_keys(seed=3, step=1, batch_size=draws)
    operands = (tf.repeat(t, draws, axis=0) for t in (query, key))
    mask, _ = sampled_mask(config, *operands, packs, keys)

    scores = query[0].numpy() @ key[0].numpy().T / np.sqrt(R)
    share = np.exp(log_shares(scores, packs[0])) * (1 - np.eye(length))
    expected = share
    if number == 2:  # first or, after another one, second
        expected = share + np.einsum("im,imj->ij", share / (1 - share), share[:, np.newaxis] * (1 - np.eye(length)))
    assert np.all(np.diagonal(mask, axis1=2, axis2=3))
    frequencies = np.mean(mask, axis=0) * (1 - np.eye(length))
    np.testing.assert_allclose(frequencies.sum(-1), number)
    assert np.all(np.abs(frequencies - expected) <= 3 * np.sqrt(expected * (1 - expected) / draws))


@pytest.mark.parametrize("sketch", ["learned", "nearest"])
@pytest.mark.parametrize("size", [1, 5, 23, 64])
def test_indices_are_those_of_the_mask_and_keep_to_the_document(sketch, size):
    config = make_config(sketch=sketch, query_block_size=size)
    operands = sketch_of() if sketch == "learned" else (None, None)
    mask, scores = sampled_mask(config, *operands, tf.constant(PACKS), row_keys(0, 1, B))
    indices, at_indices = sampled_indices(config, *operands, tf.constant(PACKS), row_keys(0, 1, B))
    assert indices.shape == (B, H, L, K + 1)
    np.testing.assert_array_equal(tf.reduce_any(tf.one_hot(indices, L, True, False, dtype=tf.bool), axis=-2), mask)

    same = (PACKS[:, :, np.newaxis] == PACKS[:, np.newaxis]) & (PACKS > 0)[:, np.newaxis]
    assert not np.any(mask.numpy() & ~same[:, np.newaxis])
    np.testing.assert_array_equal(np.sum(mask, -1), np.tile(np.minimum(K + 1, same.sum(-1))[:, np.newaxis], [1, H, 1]))
    if scores is not None:
        for n, h, i, s in np.argwhere(indices.numpy() >= 0)[::37]:
            np.testing.assert_allclose(at_indices[n, h, i, s], scores[n, 0, i, indices[n, h, i, s]], atol=1e-5)


def test_heads_draw_other_keys_and_inference_always_the_same():
    operands = make_config(), *sketch_of(), tf.constant(PACKS)
    mask, _ = sampled_mask(*operands, tf.zeros([1], tf.uint32))
    np.testing.assert_array_equal(mask, sampled_mask(*operands, tf.zeros([1], tf.uint32))[0])
    assert np.all(np.any(mask[:, 0] != mask[:, 1], axis=(1, 2)))
    encoder = built()
    np.testing.assert_array_equal(output(encoder), output(encoder))

    first_row_last = {name: tf.reverse(t, [0]) for name, t in batch().items()}
    np.testing.assert_allclose(tf.reverse(output(encoder, first_row_last), [0]), output(encoder), atol=1e-5)


def test_training_depends_on_its_keys_alone():
    encoder = built(dropout_rate=0.3, attention_dropout_rate=0.3)
    one, other = output(encoder, training=True), output(encoder, training=True)
    assert np.abs(one - other).max() > 0.1
    encoder._batches.assign(0)
    again = output(encoder, training=True), output(encoder, training=True)
    np.testing.assert_array_equal(again, (one, other))

    sampled_only = built()
    assert np.abs(output(sampled_only, training=True) - output(sampled_only, training=True)).max() > 0.1


# === Both ways to compute it ===


def values_and_gradients(encoder, inputs):
    with tf.GradientTape() as tape:
        outputs = encoder(inputs, training=True)
        real = tf.cast(inputs["input_mask"] > 0, tf.float32)[..., tf.newaxis]
        loss = tf.reduce_sum(real * tf.sin(outputs["sequence_output"]))
    gradients = tape.gradient(loss, encoder.trainable_variables)
    return [outputs["sequence_output"], outputs["pooled_output"], *map(tf.convert_to_tensor, gradients)]


@pytest.mark.parametrize(
    ("size", "jit_compile", "choices"),
    [
        (4, False, dict(attention_dropout_rate=0.5, dropout_rate=0.2)),
        (5, True, dict(attention_dropout_rate=0.5, dropout_rate=0.2)),
        (23, False, dict(sketch="random")),
        (5, False, dict(sketch="nearest")),
    ],
)
def test_gathered_keys_give_the_same_values_and_gradients_as_masked_ones(size, jit_compile, choices):
    masked = built(num_layers=1, **choices)
    gathered = like(masked, **{**GATHERED, "query_block_size": size})
    masked._batches.assign(5)
    gathered._batches.assign(5)
    run = tf.function(functools.partial(values_and_gradients, gathered), jit_compile=jit_compile, autograph=False)
    for expected, actual in zip(values_and_gradients(masked, batch()), run(batch()), strict=True):
        largest = max(1.0, float(tf.reduce_max(tf.abs(expected))))
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=2e-5 * largest)


@pytest.mark.parametrize("choices", [{}, GATHERED])
def test_half_precision_is_close(choices):
    encoder = built(sampled_keys=L - 1, **choices)  # where no rounding decides which keys are read
    expected = output(encoder)
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    rounded = output(like(encoder))
    assert rounded.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(rounded, tf.float32), expected, atol=0.15)


def test_an_unknown_length_and_more_padding_change_nothing():
    encoder = built()
    specs = {name: tf.TensorSpec([None, None], tf.int32) for name in batch()}
    dynamic = tf.function(functools.partial(output, encoder), input_signature=[specs])
    padded = {name: tf.pad(t, [[0, 0], [0, 6]]) for name, t in batch().items()}
    short = {name: t[:, :5] for name, t in batch().items()}
    np.testing.assert_allclose(dynamic(batch()), output(encoder), atol=1e-5)
    np.testing.assert_allclose(dynamic(padded)[:, :L], output(encoder), atol=1e-5)
    np.testing.assert_allclose(dynamic(short), output(encoder, short), atol=1e-5)


@pytest.mark.parametrize("choices", [{}, GATHERED])
def test_a_litert_model_gives_the_same(choices):
    from ai_edge_litert.interpreter import Interpreter

    encoder = built(**choices)
    run = tf.function(
        lambda *inputs: output(encoder, dict(zip(batch(), inputs, strict=True))),
        input_signature=[tf.TensorSpec([1, L], tf.int32, name) for name in batch()],
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([run.get_concrete_function()], encoder)
    model = Interpreter(model_content=converter.convert()).get_signature_runner()
    one_row = {name: t[1:2] for name, t in batch().items()}
    (converted,) = model(**{name: t.numpy() for name, t in one_row.items()}).values()
    np.testing.assert_allclose(converted, output(encoder, one_row), atol=1e-5)


# === Documents and padding ===


@pytest.mark.parametrize("choices", [{}, GATHERED])
def test_other_documents_and_padding_have_no_influence_and_no_gradient(choices):
    encoder = built(**choices)
    here = tf.constant(PACKS == 1)[..., tf.newaxis]
    vectors = tf.random.normal([B, L, D])

    def read(vectors):
        return tf.where(here, output(encoder, {**batch(), "input_word_embeddings": vectors}), 0.0)

    with tf.GradientTape() as tape:
        tape.watch(vectors)
        y = read(vectors)
        loss = tf.reduce_sum(tf.sin(y))
    np.testing.assert_array_equal(read(tf.where(here, vectors, 100.0 * vectors[::-1])), y)
    gradient = tape.gradient(loss, vectors)
    assert not np.any(tf.where(here, 0.0, gradient))
    assert np.any(gradient)


@pytest.mark.parametrize("choices", [{}, GATHERED])
def test_empty_rows_are_finite_and_no_rows_give_no_gradient(choices):
    encoder = built(**choices)
    assert all(np.all(np.isfinite(t)) for t in tf.nest.flatten(encoder(batch(np.zeros((2, 13), np.int32)))))
    for tensor in values_and_gradients(encoder, batch(np.zeros((0, 13), np.int32))):
        assert not np.any(tensor)


# === Settings and the harness ===


def test_settings():
    with pytest.raises(ValueError, match="sampled_keys=0 is not positive; hidden_size=14 is not divisible by .*=3"):
        SmartBirdEncoder(make_config(sampled_keys=0, num_attention_heads=3))
    with pytest.raises(ValueError, match="sketch='drawn' is not one of learned, random, nearest"):
        SmartBirdEncoder(make_config(sketch="drawn"))
    with pytest.raises(ValueError, match="30 tokens long, but the encoder takes at most 29"):
        output(built(), batch(np.ones((1, 30), np.int32)))
    assert make_config(dense_up_to=7).longest_dynamic == 7
    assert make_config().longest_dynamic == 29
    sizes = SmartBirdConfig().size_like(ShatterConfig(num_parts=4, hidden_size=8), {})
    assert (sizes["num_attention_heads"], sizes["hidden_size"], "hidden_activation" in sizes) == (4, 8, False)


def test_a_random_sketch_keeps_its_weights_and_the_nearest_keys_need_none():
    random, nearest = (
        {v.name.split("/", 1)[1].removesuffix(":0") for v in built(sketch=name).trainable_weights}
        for name in ("random", "nearest")
    )
    beta = {f"block_{i}/sketch_bias_weight" for i in range(2)}
    assert random == ENCODER - SKETCH - {"pooler/kernel", "pooler/bias"}
    assert nearest == random - beta


SKETCH = {"sketch/kernel", "sketch_positions/embeddings", "sketch_query/kernel", "sketch_key/kernel"}
LAYERS = ("query", "key", "value", "attention_output", "intermediate", "output")
BLOCK = {f"{name}/{w}" for name in LAYERS for w in ("kernel", "bias")} | {"sketch_bias_weight"}
BLOCK |= {f"{name}_layer_norm/{w}" for name in ("attention", "output") for w in ("gamma", "beta")}
ENCODER = {*SKETCH, *(f"{name}_embeddings/embeddings" for name in ("word", "position", "type"))}
ENCODER |= {*(f"embeddings_layer_norm/{w}" for w in ("gamma", "beta")), "pooler/kernel", "pooler/bias"}
ENCODER |= {f"block_{i}/{name}" for i in range(2) for name in BLOCK}


def call_block(config, layer, training=False):
    choose = sampled_indices if config.gathers(L) else sampled_mask
    vectors = tf.constant(np.random.default_rng(1).normal(size=(B, L, D)), tf.float32)
    return layer(vectors, *choose(config, *sketch_of(), tf.constant(PACKS), row_keys(0, 1, B)), training=training)


def call_encoder(layer, training=False):
    return layer(batch(), training=training)


@pytest.mark.parametrize("choices", [{}, GATHERED])
@pytest.mark.parametrize("cls", [SmartBirdBlock, SmartBirdEncoder])
def test_layer(cls, choices, tmp_path):
    rates = dict(dropout_rate=0.2, attention_dropout_rate=0.3, pooling="first_token", initializer_range=0.1)
    config = make_config(**{**rates, "type_vocab_size": 3, "sampled_keys": 19, **choices})
    call, names = (call_encoder, ENCODER) if cls is SmartBirdEncoder else (functools.partial(call_block, config), BLOCK)
    check_layer(lambda: cls(config), call, names, tmp_path)
