"""BP-Transformer: its bands against lists of edges, its states against an oracle, and what holds for any weights."""

import itertools

import numpy as np
import pytest
import reference_bpt as reference
import tensorflow as tf
import tf_keras
from layer_checks import check_layer

from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.encoders.bpt.config import BptConfig
from shatter_tf.encoders.bpt.encoder import BptBlock, BptEncoder, _attention
from shatter_tf.encoders.bpt.graph import bands, numbers_of_states, relation_types
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.layers.dropout import row_keys

B, L, H, K = 3, 13, 5, 7  # distinct primes: a transposed axis cannot pass
D = H * K
MASKS = {
    "full": np.ones((B, L), np.int32),
    "padded": np.array([[1] * L, [1] * 4 + [0] * 9, [0, 0, 1, 1, 0] + [1] * 5 + [0] * 3], np.int32),
    "packed": np.array([[1] * 5 + [2] * 8, [1] * 2 + [2] + [3] * 3 + [4] * 4 + [0] * 3, [1, 1, 0, 2, 2, 2] + [3] * 7]),
}


def make_config(**choices):
    sizes = dict(vocab_size=37, hidden_size=D, num_layers=2, num_attention_heads=H, intermediate_size=11)
    rates = dict(dropout_rate=0.0, attention_dropout_rate=0.0, initializer_range=0.3)
    return BptConfig(**{**sizes, **rates, "max_sequence_length": 29, "neighbors": 2, "clip_level": 1, **choices})


def batch(mask="full", length=L, seed=0):
    packs = MASKS[mask] if isinstance(mask, str) else np.array(mask, np.int32)
    ids = np.random.default_rng(seed).integers(1, 37, packs.shape)
    return dict(input_word_ids=tf.constant(ids, tf.int32), input_mask=tf.constant(packs, tf.int32))


def built(cls=BptEncoder, seed=7, **choices):
    """Returns an encoder or block all of whose weights, zero biases and unit gammas included, matter."""
    layer = cls(make_config(**choices))
    if cls is BptEncoder:
        layer(batch())
    else:
        layer(vectors(layer.config), tf.constant(MASKS["full"]))
    rng = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(variable + rng.normal(0, 0.2, variable.shape).astype(np.float32))
    return layer


def vectors(config, length=L):
    """Tokens' vectors, and spans' zeros, [B, M, D]."""
    numbers = numbers_of_states(config, tf.zeros([B, length]))
    tokens = np.random.default_rng(1).normal(size=(B, length, D))
    return tf.constant(np.pad(tokens, [[0, 0], [0, sum(numbers[1:])], [0, 0]]), tf.float32)


def weights_of(block):
    names = dict(
        wq=block.query.kernel, wk=block.key.kernel, wv=block.value.kernel, wo=block.output_projection.kernel,
        relations=block.relations, g1=block.attention_layer_norm.gamma, b1=block.attention_layer_norm.beta,
        w1=block.intermediate.kernel, c1=block.intermediate.bias, w2=block.output_dense.kernel,
        c2=block.output_dense.bias, g2=block.output_layer_norm.gamma, b2=block.output_layer_norm.beta,
    )  # fmt: skip
    return {name: np.asarray(value, np.float64) for name, value in names.items()}


def read_by_bands(config, length, known_length):
    """Returns the type of each node, (its first token, its size), that each token reads: a dict for each token."""
    found = [{} for _ in range(length)]
    for band in [band for band in bands(config, known_length) if band.columns]:
        types, begin = relation_types(config, band), 0
        for height, _, nearest in band.levels:
            window = (band.group >> height) + config.neighbors + 1
            for i, (side, x) in itertools.product(range(length), itertools.product((0, 1), range(window))):
                node = (i // band.group * band.group >> height) + x
                node += nearest if side else -nearest - config.neighbors - 1
                kind = types[i % band.group, begin + side * window + x]
                if kind >= 0 and 0 <= node << height < length:
                    assert (node << height, 1 << height) not in found[i]
                    found[i][node << height, 1 << height] = kind
            begin += 2 * window
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("length", "clip"), [(16, 5), (64, 2), (1, 0), (13, 1), (29, 3), (100, 0)])
def test_bands_hold_the_edges_and_types_of_the_graph(k, length, clip):
    config = make_config(neighbors=k, clip_level=clip, max_sequence_length=128)
    expected = [reference.edges(i, length, k, clip) for i in range(length)]
    assert read_by_bands(config, length, length) == expected
    assert read_by_bands(config, length, None) == expected

    for nodes in expected:
        tokens = [token for begin, size in nodes for token in range(begin, begin + size) if token < length]
        assert sorted(tokens) == list(range(length))


def assert_matches_the_oracle(encoder, packs):
    config, inputs = encoder.config, batch(packs)
    outputs = encoder(inputs)
    embedded = np.asarray(encoder.embed(inputs, None), np.float64)
    for row, documents in enumerate(np.array(packs)):
        states = reference.first_states(embedded[row], documents)
        for block, actual in zip(encoder.blocks, outputs["encoder_outputs"], strict=True):
            states = reference.block(states, documents, weights_of(block), H, config.neighbors, config.clip_level)
            for (i, size, _), h in states.items():
                if size == 1:
                    np.testing.assert_allclose(actual[row, i], h, atol=3e-5)

        largest = max(size for _, size, _ in states)
        root = next(h for (_, size, _), h in states.items() if size == largest)
        np.testing.assert_allclose(outputs["pooled_output"][row], root, atol=3e-5)
    np.testing.assert_array_equal(outputs["sequence_output"], outputs["encoder_outputs"][-1])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("k", "clip"), [(1, 2), (2, 1), (3, 0)])
def test_the_encoder_matches_the_oracle(mask, k, clip):
    assert_matches_the_oracle(built(neighbors=k, clip_level=clip), MASKS[mask])
    if mask != "packed":
        assert_matches_the_oracle(built(neighbors=k, clip_level=clip, many_documents=False), MASKS[mask])


@pytest.mark.parametrize("k", [1, 4])
def test_a_long_row_matches_the_oracle(k):
    """Of levels of spans that do not fit into the smallest group."""
    encoder = built(neighbors=k, num_layers=2, max_sequence_length=151)
    assert_matches_the_oracle(encoder, [[1] * 67 + [2] * 2 + [3] * 71 + [0] * 11])


@pytest.mark.parametrize("k", [L - 1, L + 4])
def test_neighbors_enough_make_it_dense_attention_with_relative_keys(k):
    block = built(BptBlock, neighbors=k)
    h, weights = vectors(block.config), weights_of(block)
    # The rest of the block is the oracle's, too.
    actual = block(h, tf.constant(MASKS["full"]))
    for row in range(B):
        tokens = np.asarray(h[row, :L], np.float64)
        y = tokens + reference.dense(tokens, weights["relations"], weights, H, k)
        y = np.array([reference.layer_norm(x, weights["g1"], weights["b1"]) for x in y])
        y += np.maximum(y @ weights["w1"] + weights["c1"], 0) @ weights["w2"] + weights["c2"]
        y = np.array([reference.layer_norm(x, weights["g2"], weights["b2"]) for x in y])
        np.testing.assert_allclose(actual[row, :L], y, atol=2e-5)


def test_spans_of_the_first_block_are_means():
    block = built(BptBlock, many_documents=False)
    h = vectors(block.config)
    actual = block(h, tf.constant(MASKS["full"]))

    value = block.value(h[:, :L])
    pairs = tf.stack([tf.reduce_mean(value[:, i : i + 2], axis=1) for i in range(0, L, 2)], axis=1)
    y = block.attention_layer_norm(block.output_projection(pairs))
    y = block.output_layer_norm(y + block.output_dense(block.intermediate(y)))
    np.testing.assert_allclose(actual[:, L : L + 7], y, atol=1e-5)


@pytest.mark.parametrize("pooling", ["root", "mean"])
@pytest.mark.parametrize("many_documents", [True, False])
@pytest.mark.parametrize("longer", [16, 29])
def test_padding_has_exactly_no_influence(pooling, many_documents, longer):
    encoder = built(pooling=pooling, many_documents=many_documents)
    short = batch()
    padded = {key: tf.pad(t, [[0, 0], [0, longer - L]]) for key, t in short.items()}
    other = dict(padded, input_word_ids=padded["input_word_ids"] + 5 * tf.cast(padded["input_mask"] == 0, tf.int32))
    expected, actual, same = encoder(short), encoder(padded), encoder(other)
    for key, cut in (("sequence_output", np.s_[:, :L]), ("pooled_output", np.s_[:])):
        np.testing.assert_allclose(actual[key][cut], expected[key][cut], atol=1e-5)
        np.testing.assert_array_equal(same[key][cut], actual[key][cut])


@pytest.mark.parametrize("many_documents", [True, False])
def test_documents_and_padding_have_exactly_no_influence_on_others(many_documents):
    encoder = built(many_documents=many_documents, pooling="mean")
    inputs = batch("packed")
    words = tf.gather(encoder.get_embedding_table(), inputs["input_word_ids"])
    document = MASKS["packed"] == 2
    with tf.GradientTape() as tape:
        tape.watch(words)
        outputs = encoder(dict(inputs, input_word_embeddings=words))["sequence_output"]
        loss = tf.reduce_sum(tf.sin(outputs[document]))
    gradient = tape.gradient(loss, words).numpy()
    assert not np.any(gradient[~document])
    assert np.all(np.abs(gradient[document]).max(axis=-1) > 0)

    changed = encoder(dict(inputs, input_word_embeddings=tf.where(document[..., None], words, words[:, ::-1])))
    np.testing.assert_array_equal(changed["sequence_output"][document], outputs[document])


def test_documents_that_begin_with_spans_are_as_if_alone():
    encoder = built()
    first, second = batch([[1] * 8]), batch([[1] * 5], seed=1)
    packed = {key: tf.concat([first[key], second[key]], axis=1) for key in first}
    packed["input_mask"] = tf.constant([[1] * 8 + [2] * 5])
    together = encoder(packed)["sequence_output"]
    np.testing.assert_allclose(together[:, :8], encoder(first)["sequence_output"], atol=1e-5)
    np.testing.assert_allclose(together[:, 8:], encoder(second)["sequence_output"], atol=1e-5)


def test_one_state_is_enough_for_one_document():
    two, one = built(), built(many_documents=False)
    one.set_weights(two.get_weights())
    for key in ("sequence_output", "pooled_output"):
        np.testing.assert_allclose(one(batch())[key], two(batch())[key], atol=1e-5)


def test_the_root_of_one_token_is_a_span():
    encoder = built()
    alone, padded = encoder(batch([[1]])), encoder(batch([[1] + [0] * 10]))
    np.testing.assert_allclose(padded["pooled_output"], alone["pooled_output"], atol=1e-5)


def test_empty_rows_are_finite_and_no_rows_give_no_gradient():
    encoder = built()
    outputs = encoder(batch(np.zeros((2, L))))
    assert all(np.all(np.isfinite(t)) for t in tf.nest.flatten(outputs))
    assert not np.any(outputs["pooled_output"])

    with tf.GradientTape() as tape:
        outputs = encoder(batch(np.zeros((0, L))), training=True)
        loss = tf.reduce_sum(outputs["sequence_output"]) + tf.reduce_sum(outputs["pooled_output"])
    assert not any(np.any(tf.convert_to_tensor(g)) for g in tape.gradient(loss, encoder.trainable_variables))


def test_masked_entries_and_rows_are_exactly_zero():
    scores = tf.Variable(tf.random.normal([1, 2, 3]))
    with tf.GradientTape() as tape:
        attention = _attention(scores, tf.constant([[[True, False, True], [False] * 3]]), 0.0, None)
        loss = tf.reduce_sum(tf.sin(attention))
    assert (attention.numpy() == 0).tolist() == [[[False, True, False], [True] * 3]]
    assert np.all(np.isfinite(tape.gradient(loss, scores)))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_lengths_that_are_not_known_change_nothing(jit_compile):
    encoder = built(num_layers=1, neighbors=1, max_sequence_length=100)
    spec = {key: tf.TensorSpec([None, None], tf.int32) for key in batch()}
    served = tf.function(lambda inputs: encoder(inputs), input_signature=[spec], jit_compile=jit_compile)
    for length in (37,) if jit_compile else (1, 2, 5, 16, 37, 100):
        inputs = batch([[1] * (length // 2) + [2] * (length - length // 2)])
        actual, expected = served(inputs), encoder(inputs)
        for key in ("sequence_output", "pooled_output"):
            np.testing.assert_allclose(actual[key], expected[key], atol=1e-5)


def test_static_shapes_stay_static_and_nothing_is_gathered():
    block = built(BptBlock)
    spec = tf.TensorSpec(vectors(block.config).shape), tf.TensorSpec([B, L], tf.int32)
    graph = tf.function(lambda h, packs: block(h, packs), autograph=False).get_concrete_function(*spec)
    assert graph.outputs[0].shape == spec[0].shape
    assert not [op.type for op in graph.graph.get_operations() if "Gather" in op.type or "PyFunc" in op.type]


def test_litert_gives_the_same_values():
    from ai_edge_litert.interpreter import Interpreter

    encoder, inputs = built(num_layers=1), batch([[1] * 5 + [2] * 6 + [0] * 2])
    spec = {key: tf.TensorSpec([1, L], tf.int32, key) for key in inputs}
    served = tf.function(lambda **x: {"h": encoder(x)["sequence_output"]}, autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([served.get_concrete_function(**spec)], encoder)
    run = Interpreter(model_content=converter.convert()).get_signature_runner()
    actual = run(**{key: value.numpy() for key, value in inputs.items()})["h"]
    np.testing.assert_allclose(actual, encoder(inputs)["sequence_output"], atol=1e-5)


def test_xla_gives_the_same_values_and_gradients():
    block = built(BptBlock, neighbors=1, dropout_rate=0.3, attention_dropout_rate=0.3)
    packs = tf.constant([[1] * 11 + [2] * 17 + [3] * 5 + [0] * 4] * B)
    h, keys = vectors(block.config, 37), row_keys(seed=0, step=1, batch_size=B)

    def value_and_gradients():
        with tf.GradientTape() as tape:
            tape.watch(h)
            y = block(h, packs, dropout_keys=keys, training=True)
            loss = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(loss, [h, *block.trainable_variables])]

    compiled = tf.function(value_and_gradients, jit_compile=True, autograph=False)
    for expected, actual in zip(value_and_gradients(), compiled(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * max(1.0, float(tf.reduce_max(expected))))


def test_dropout_follows_from_its_keys_and_is_for_training_only():
    block = built(BptBlock, dropout_rate=0.5, attention_dropout_rate=0.5)
    arguments = vectors(block.config), tf.constant(MASKS["packed"]), None
    keys = row_keys(seed=0, step=1, batch_size=B)
    dropped = block(*arguments, keys, training=True)
    np.testing.assert_array_equal(block(*arguments, keys, training=True), dropped)
    assert np.any(block(*arguments, training=True) != dropped)
    np.testing.assert_array_equal(block(*arguments, keys), block(*arguments))
    assert np.any(block(*arguments) != dropped)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(num_attention_heads=3), "hidden_size=35 is not divisible by num_attention_heads=3"),
        (dict(neighbors=0, clip_level=-1), "neighbors=0 is not positive; clip_level=-1"),
        (dict(pooling="first_token"), "pooling='first_token' is not one of root, mean"),
    ],
)
def test_impossible_configs_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        BptEncoder(make_config(**choices))


def test_is_sized_like_another_family():
    shatter = BptConfig().size_like(ShatterConfig(num_parts=6, max_sequence_length=77), {})
    bert = BptConfig().size_like(BertConfig(num_attention_heads=6, max_position_embeddings=77), {})
    assert shatter["num_attention_heads"] == bert["num_attention_heads"] == 6
    assert shatter["max_sequence_length"] == bert["max_sequence_length"] == 77
    assert not {"hidden_activation", "pooling"} & {*shatter, *bert}


def test_a_keras_model_round_trips(tmp_path):
    encoder = BptEncoder(make_config(num_layers=1))
    data = {**batch(), "input_type_ids": tf.zeros([B, L], tf.int32)}
    inputs = {key: tf_keras.Input((None,), dtype=tf.int32, name=key) for key in data}
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(encoder(inputs)["pooled_output"]))
    expected = model(data)
    model.save(tmp_path / "model.keras")
    restored = tf_keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(restored(data), expected, atol=1e-6)


# The harness: settings that are not the defaults.
CONFIG = make_config(
    hidden_size=15, num_attention_heads=3, hidden_activation="gelu", type_vocab_size=3, pooling="mean", dropout_rate=0.2
)


def _weights(name, *kinds):
    return {f"{name}/{kind}" for kind in kinds}


BLOCK = {
    "relations",
    *(name for dense in ("query", "key", "value", "output_projection") for name in _weights(dense, "kernel")),
    *(name for dense in ("intermediate", "output") for name in _weights(dense, "kernel", "bias")),
    *(name for norm in ("attention_layer_norm", "output_layer_norm") for name in _weights(norm, "gamma", "beta")),
}
ENCODER = {
    *("word_embeddings/embeddings", "type_embeddings/embeddings"),
    *_weights("embeddings_layer_norm", "gamma", "beta"),
    *(f"block_{i}/{name}" for i in range(2) for name in BLOCK),
}


def _call_block(layer, training=False):
    return layer(vectors(CONFIG)[..., :15], tf.constant(MASKS["packed"]), training=training)


def _call_encoder(layer, training=False):
    types = tf.constant(np.arange(B * L).reshape(B, L) % 3, tf.int32)
    return layer({**batch("packed"), "input_type_ids": types}, training=training)


@pytest.mark.parametrize(
    ("cls", "call", "names"), [(BptBlock, _call_block, BLOCK), (BptEncoder, _call_encoder, ENCODER)]
)
def test_layer(cls, call, names, tmp_path):
    check_layer(lambda: cls(CONFIG), call, names, tmp_path)
