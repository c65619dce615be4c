"""The encoder as a whole: its contract, its boundaries, and its place in a Keras model."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.nlp.configs import encoders
from official.nlp.modeling import networks

from shatter_tf.encoders.registry import FAMILIES, EncoderConfig, build_encoder
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.encoder import ShatterEncoder
from shatter_tf.layers.activations import squared_relu


def small(**choices) -> ShatterConfig:
    sizes = dict(vocab_size=37, hidden_size=14, num_layers=3, num_parts=7, intermediate_size=11, max_sequence_length=53)
    return ShatterConfig(**{**sizes, **choices})


def batch(length=13, seed=0):
    ids = np.random.default_rng(seed).integers(5, 37, (2, length)).astype(np.int32)
    return dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=np.zeros_like(ids))


def test_model_garden_builds_it_from_a_config():
    encoder = encoders.build_encoder(encoders.EncoderConfig(type="any", any=small()))
    assert isinstance(encoder, ShatterEncoder)
    assert encoder.config == small()


def test_has_the_contract_of_bert_encoder_v2():
    shatter = ShatterEncoder(small(return_attention_scores=True))
    bert = networks.BertEncoderV2(
        37, hidden_size=14, num_layers=3, num_attention_heads=7, inner_dim=11, max_sequence_length=53,
        type_vocab_size=2, return_attention_scores=True,
    )  # fmt: skip
    ours, theirs = shatter(batch()), bert(batch())
    assert ours.keys() == theirs.keys()
    for key in ("sequence_output", "pooled_output"):
        assert ours[key].shape == theirs[key].shape
    assert [t.shape for t in ours["encoder_outputs"]] == [t.shape for t in theirs["encoder_outputs"]]
    assert [t.shape for t in ours["attention_scores"]] == [(2, 1, 13, 13)] * 3
    assert shatter.inputs.keys() == bert.inputs.keys()
    assert shatter.get_embedding_table().shape == (37, 14)
    assert shatter.get_embedding_layer() is shatter.word_embeddings
    assert len(shatter.transformer_layers) == len(bert.transformer_layers) == 3
    assert shatter.pooler_layer is None


def test_masks_of_any_type_and_vectors_in_place_of_words():
    encoder, inputs = ShatterEncoder(small()), batch()
    inputs["input_mask"][:, 9:] = 0
    expected = encoder(inputs)
    for mask in (inputs["input_mask"] > 0, inputs["input_mask"].astype(np.float32)):
        outputs = encoder({**inputs, "input_mask": mask})
        for key in ("sequence_output", "pooled_output"):
            np.testing.assert_array_equal(outputs[key], expected[key])
    vectors = tf.gather(encoder.get_embedding_table(), inputs["input_word_ids"])
    others = {**inputs, "input_word_ids": np.zeros_like(inputs["input_word_ids"]), "input_word_embeddings": vectors}
    np.testing.assert_array_equal(encoder(others)["sequence_output"], expected["sequence_output"])


def test_what_is_built_does_not_change_with_its_callers_settings():
    config = small()
    encoder = ShatterEncoder(config)
    expected = encoder(batch())["sequence_output"]
    config.num_layers, config.sigmoid_bias = 7, 0.0
    np.testing.assert_array_equal(encoder(batch())["sequence_output"], expected)
    assert encoder.get_config()["config"]["num_layers"] == 3


def test_type_ids_are_optional():
    encoder = ShatterEncoder(small())
    inputs = batch()
    with_types = encoder(inputs)["sequence_output"]
    del inputs["input_type_ids"]
    np.testing.assert_array_equal(encoder(inputs)["sequence_output"], with_types)


def test_packing_documents_changes_nothing():
    encoder = ShatterEncoder(small())
    first, second = batch(5), batch(8, seed=1)
    packed = {key: np.concatenate([first[key], second[key]], axis=1) for key in first}
    packed["input_mask"][:, 5:] = 2
    together = encoder(packed)["sequence_output"]
    np.testing.assert_allclose(together[:, :5], encoder(first)["sequence_output"], atol=1e-5)
    np.testing.assert_allclose(together[:, 5:], encoder(second)["sequence_output"], atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_padding_changes_nothing(pooling):
    encoder = ShatterEncoder(small(pooling=pooling))
    short = batch(9)
    padded = {key: np.pad(value, [[0, 0], [0, 6]]) for key, value in short.items()}
    expected, actual = encoder(short), encoder(padded)
    np.testing.assert_allclose(actual["sequence_output"][:, :9], expected["sequence_output"], atol=1e-5)
    np.testing.assert_allclose(actual["pooled_output"], expected["pooled_output"], atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_the_vector_of_a_text_is_what_the_settings_say(family):
    """Pooled, mapped, of length 1; the map is tracked, and frozen unless a task trains it."""
    kind = FAMILIES[family].config_class
    sizes = dict(vocab_size=37, hidden_size=12, num_layers=1, intermediate_size=11)
    inputs = batch(9)
    inputs["input_mask"][:, 6:] = 0

    def vectors(**choices):
        config = EncoderConfig()
        heads = {name: 3 for name in ("num_parts", "num_attention_heads") if hasattr(kind(), name)}
        config.override({"type": family, family: {**sizes, **heads, **choices}}, is_strict=True)
        encoder = build_encoder(config, use_pooler=False, use_embedding="embedding_dimensions" in choices)
        h = encoder(inputs)["sequence_output"]
        return encoder, h.numpy(), encoder.text_vectors(h, inputs["input_mask"]).numpy()

    _, h, found = vectors()
    np.testing.assert_allclose(found, h[:, :6].mean(axis=1), atol=1e-6)
    _, h, found = vectors(embedding_pooling="first_token")
    np.testing.assert_array_equal(found, h[:, 0])
    encoder, h, found = vectors(embedding_dimensions=5, embedding_unit_length=True)
    names = [variable.name for variable in encoder.trainable_variables if "embedding_map" in variable.name]
    assert len(names) == 2
    kernel, bias = encoder.embedding_map.get_weights()
    expected = h[:, :6].mean(axis=1) @ kernel + bias
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    encoder.embedding_map.trainable = False
    assert not [variable.name for variable in encoder.trainable_variables if "embedding_map" in variable.name]


def test_empty_rows_are_finite():
    outputs = ShatterEncoder(small())({key: np.zeros((2, 13), np.int32) for key in batch()})
    assert all(np.all(np.isfinite(t)) for t in tf.nest.flatten(outputs))
    assert not np.any(outputs["pooled_output"])


@pytest.mark.parametrize("query_block_size", [512, 4])
def test_no_rows_at_all_give_no_gradient(query_block_size):
    """As a replica gets them in Keras's own training, when a batch has fewer rows than there are replicas."""
    encoder = ShatterEncoder(small(query_block_size=query_block_size))
    none = tf.zeros([0, 9], tf.int32)
    with tf.GradientTape() as tape:
        outputs = encoder(dict(input_word_ids=none, input_mask=none), training=True)
        loss = tf.reduce_sum(outputs["sequence_output"]) + tf.reduce_sum(outputs["pooled_output"])
    for gradient in tape.gradient(loss, encoder.trainable_variables):
        assert not np.any(tf.convert_to_tensor(gradient))


def test_output_range_gives_the_first_positions():
    whole = ShatterEncoder(small())
    part = ShatterEncoder(small(output_range=4))
    expected = whole(batch())["sequence_output"]
    part(batch())
    part.set_weights(whole.get_weights())
    np.testing.assert_allclose(part(batch())["sequence_output"], expected[:, :4], atol=1e-5)


@pytest.mark.parametrize("output_range", [None, 4])
def test_long_inputs_are_done_in_blocks_of_queries(output_range):
    at_once = ShatterEncoder(small(output_range=output_range))
    in_blocks = ShatterEncoder(small(output_range=output_range, query_block_size=5))
    inputs = batch()
    inputs["input_mask"][1, 8:] = 2
    expected = at_once(inputs)
    in_blocks(inputs)
    in_blocks.set_weights(at_once.get_weights())
    actual = in_blocks(inputs)
    for key in ("sequence_output", "pooled_output"):
        assert actual[key].shape == expected[key].shape
        np.testing.assert_allclose(actual[key], expected[key], atol=1e-5)


@pytest.mark.parametrize("query_block_size", [512, 5])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_recomputed_blocks_have_the_same_gradients(query_block_size, jit_compile):
    choices = dict(num_layers=2, query_block_size=query_block_size, dropout_rate=0.3, attention_dropout_rate=0.3)
    encoders = [ShatterEncoder(small(recompute_blocks=recompute, **choices)) for recompute in (False, True)]
    for encoder in encoders:
        encoder(batch())
        encoder.set_weights(encoders[0].get_weights())
        encoder._dropout_seed = 1

    def gradients(encoder):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(encoder(batch(), training=True)["sequence_output"]))
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, encoder.trainable_variables)]

    compiled = tf.function(gradients, jit_compile=jit_compile, autograph=False)
    kept, recomputed = (compiled(encoder) for encoder in encoders)
    for expected, actual in zip(kept, recomputed, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)


def test_static_shapes_stay_static():
    encoder = ShatterEncoder(small())
    spec = {key: tf.TensorSpec([2, 13], tf.int32) for key in batch()}
    graph = tf.function(lambda x: encoder(x)["encoder_outputs"]).get_concrete_function(spec)
    assert [t.shape for t in graph.outputs] == [(2, 13, 14)] * 3


def test_no_pooler_and_no_missing_gradients_by_default():
    encoder = ShatterEncoder(small())
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(encoder(batch())["sequence_output"]))
    assert all(g is not None for g in tape.gradient(loss, encoder.trainable_variables))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(num_parts=3), "hidden_size=14 is not divisible by num_parts=3"),
        (dict(partition="cubic"), "partition='cubic' is not one of linear, bernstein"),
        (dict(num_layers=0, dropout_rate=1.0), "num_layers=0 is not positive; dropout_rate=1.0 is not in"),
    ],
)
def test_impossible_configs_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        ShatterEncoder(small(**choices))


def test_sequences_longer_than_the_table_are_refused():
    with pytest.raises(ValueError, match="54 tokens long.* at most 53"):
        ShatterEncoder(small())(batch(54))


def test_output_dropout_is_of_what_heads_get_in_training():
    encoder = ShatterEncoder(small(dropout_rate=0.0, attention_dropout_rate=0.0))
    plain = encoder(batch(), training=True)
    encoder.output_dropout_rate = 0.25
    assert ShatterEncoder.from_config(encoder.get_config()).output_dropout_rate == 0.25
    for name in ("sequence_output", "pooled_output"):
        np.testing.assert_array_equal(encoder(batch(), training=False)[name], plain[name])
        dropped = encoder(batch(), training=True)[name].numpy()
        assert 0.1 < np.mean(dropped == 0) < 0.4
        np.testing.assert_allclose(dropped[dropped != 0], (plain[name].numpy() / 0.75)[dropped != 0], rtol=1e-5)


def test_keras_model_round_trips(tmp_path):
    encoder = ShatterEncoder(small(norm_first=False, partition="bernstein"))
    inputs = {key: tf_keras.Input((None,), dtype=tf.int32, name=key) for key in batch()}
    model = tf_keras.Model(inputs, tf_keras.layers.Dense(3)(encoder(inputs)["pooled_output"]))
    model.compile("adam", "mse")
    model.fit(batch(), np.ones((2, 3)), verbose=0)
    expected = model(batch())
    model.save(tmp_path / "model.keras")
    restored = tf_keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(restored(batch()), expected, atol=1e-6)
    model.save(tmp_path / "saved_model", save_format="tf")
    restored = tf_keras.models.load_model(tmp_path / "saved_model")
    np.testing.assert_allclose(restored(batch()), expected, atol=1e-6)
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    np.testing.assert_allclose(served(batch(), training=False), expected, atol=1e-6)


def test_squared_relu_has_the_derivative_of_what_it_computes():
    x = tf.constant([-2.0, -0.1, 0.0, 0.5, 3.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        own, plain = squared_relu(x), tf.square(tf.nn.relu(x))
    np.testing.assert_array_equal(own, plain)
    np.testing.assert_array_equal(tape.gradient(own, x), tape.gradient(plain, x))
