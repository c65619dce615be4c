"""The BERT baselines: packing, positions, norms, and settings that come back from a config."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from shatter_tf.encoders.bert.config import POSITIONS, BertConfig
from shatter_tf.encoders.bert.encoder import BertBaseline

SIZES = dict(
    vocab_size=50,
    hidden_size=12,
    num_layers=2,
    num_attention_heads=3,
    intermediate_size=10,
    max_position_embeddings=32,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    initializer_range=0.5,  # so that attention is not nearly uniform
)
RNG = np.random.default_rng(0)
variants = pytest.mark.parametrize("norm_first", [False, True])
positions = pytest.mark.parametrize("positions", POSITIONS)


def encode(encoder, ids, packs):
    ids, packs = tf.constant(ids, tf.int32), tf.constant(packs, tf.int32)
    return encoder(dict(input_word_ids=ids, input_mask=packs, input_type_ids=tf.zeros_like(ids)))["sequence_output"]


@positions
@variants
def test_padding_and_other_documents_have_no_influence(positions, norm_first):
    encoder = BertBaseline(BertConfig(positions=positions, norm_first=norm_first, **SIZES))
    ids, packs = RNG.integers(1, 50, [1, 11]), [[1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]]
    other = ids.copy()
    other[0, [5, 9]] = ids[0, [5, 9]] % 49 + 1
    before, after = encode(encoder, ids, packs).numpy(), encode(encoder, other, packs).numpy()
    np.testing.assert_allclose(before[0, :4], after[0, :4], atol=1e-6)
    assert np.abs(before[0, 4:9] - after[0, 4:9]).max() > 1e-3


@positions
def test_only_absolute_positions_depend_on_where_a_document_begins(positions):
    encoder = BertBaseline(BertConfig(positions=positions, **SIZES))
    words = RNG.integers(1, 50, 5)
    start, end = np.zeros([1, 12], int), np.zeros([1, 12], int)
    start[0, :5] = end[0, 7:] = words
    difference = encode(encoder, start, start > 0)[0, :5] - encode(encoder, end, end > 0)[0, 7:]
    assert (np.abs(difference).max() < 1e-5) == (not positions.startswith("absolute"))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_rotations_are_those_of_float32_angles(policy):
    tf_keras.mixed_precision.set_global_policy(policy)
    encoder = BertBaseline(BertConfig(positions="rotary", **{**SIZES, "max_position_embeddings": 512}))
    encode(encoder, [[1, 2]], [[1, 1]])
    attention = encoder._transformer_layers[0]._attention_layer
    angles = np.arange(512)[:, np.newaxis] * np.repeat(10_000.0 ** -np.array([0, 0.5]), 2)
    for tables, function in (
        ((attention.q_sin_vec, attention.k_sin_vec), np.sin),
        ((attention.q_cos_vec, attention.k_cos_vec), np.cos),
    ):
        for table in tables:
            np.testing.assert_allclose(tf.cast(table, tf.float32)[0, :, 0], function(angles), atol=4e-3)


@positions
def test_the_order_of_words_counts(positions):
    encoder = BertBaseline(BertConfig(positions=positions, **SIZES))
    if positions == "relative_bias":  # it starts near 0, where order hardly matters
        for variable in encoder.variables or (encode(encoder, [[1, 2]], [[1, 1]]), encoder.variables)[1]:
            if "rel_embedding" in variable.name:
                variable.assign(tf.random.normal(variable.shape))
    ids = np.array([[7, 8, 9, 10, 11]])
    swapped = ids[:, [0, 1, 3, 2, 4]]
    difference = encode(encoder, ids, ids > 0)[0, 0] - encode(encoder, swapped, ids > 0)[0, 0]
    assert np.abs(difference).max() > 1e-4


@positions
@variants
def test_every_weight_is_tracked_and_gets_a_gradient(positions, norm_first):
    encoder = BertBaseline(BertConfig(positions=positions, norm_first=norm_first, **SIZES))
    encoder.freeze_pooler()
    ids = RNG.integers(1, 50, [2, 9])
    with tf.GradientTape() as tape:
        # Cubes: the plain sum of a layer normalization's outputs does not depend on its inputs, nor do their squares.
        loss = tf.reduce_sum(encode(encoder, ids, ids > 0) ** 3)
    names = [variable.name for variable in encoder.trainable_variables]
    assert sum("final_layer_norm" in name for name in names) == 2 * norm_first
    assert sum("rel_embedding" in name for name in names) == 2 * positions.endswith("relative_bias")
    assert all(gradient is not None for gradient in tape.gradient(loss, encoder.trainable_variables))
    assert not any("pooler" in name for name in names)


def test_pooling_by_the_mean_is_of_tokens_alone_and_needs_no_pooler():
    encoder = BertBaseline(BertConfig(pooling="mean", **SIZES))
    ids = np.array([[7, 8, 9, 0, 0]])
    inputs = dict(input_word_ids=ids, input_mask=(ids > 0).astype(np.int32), input_type_ids=0 * ids)
    outputs = encoder({name: tf.constant(value, tf.int32) for name, value in inputs.items()})
    expected = outputs["sequence_output"][:, :3].numpy().mean(axis=1)
    np.testing.assert_allclose(outputs["pooled_output"], expected, atol=1e-6)
    assert not any("pooler" in variable.name for variable in encoder.trainable_variables)


@positions
def test_config_and_checkpoint_round_trip(positions, tmp_path):
    encoder = BertBaseline(BertConfig(positions=positions, norm_first=True, **SIZES))
    ids = RNG.integers(1, 50, [1, 9])
    expected = encode(encoder, ids, ids > 0)
    path = tf.train.Checkpoint(encoder=encoder).write(str(tmp_path / "checkpoint"))
    again = BertBaseline.from_config(encoder.get_config())
    encode(again, ids, ids > 0)
    tf.train.Checkpoint(encoder=again).read(path).assert_consumed()
    np.testing.assert_array_equal(encode(again, ids, ids > 0), expected)


def test_problems():
    with pytest.raises(ValueError, match="positions='spiral' is not one of absolute"):
        BertBaseline(BertConfig(positions="spiral", **SIZES))
    with pytest.raises(ValueError, match="no output_range"):
        BertBaseline(BertConfig(positions="rotary", output_range=1, **{**SIZES, "hidden_size": 24}))
    with pytest.raises(ValueError, match="num_attention_heads=0 is not positive; dropout_rate=1.5 is not"):
        BertBaseline(BertConfig(**{**SIZES, "num_layers": 0, "num_attention_heads": 0, "dropout_rate": 1.5}))
    with pytest.raises(ValueError, match="heads of an even width"):
        BertBaseline(BertConfig(positions="rotary", **{**SIZES, "hidden_size": 9}))
