"""Dropout by a hash: as random as is needed, and a function of its keys alone."""

import numpy as np
import pytest
import tensorflow as tf

from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.encoder import ShatterEncoder
from shatter_tf.layers.dropout import dropout, row_keys, site_keys

SHAPE = (8, 64, 96)


def dropped(step=1, site=0, seed=0, rate=0.1):
    keys = site_keys(row_keys(seed, step, SHAPE[0]), site)
    return np.asarray(dropout(tf.ones(SHAPE), rate, keys) == 0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_row_token_and_feature_loses_the_same_share(rate):
    zeros = dropped(rate=rate)
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        number = np.prod([SHAPE[i] for i in others])
        standard_error = np.sqrt(rate * (1 - rate) / number)
        assert np.abs(zeros.mean(others) - rate).max() < 4.5 * standard_error


def test_what_is_dropped_does_not_depend_on_neighbours_rows_sites_steps_or_seeds():
    zeros = dropped()
    pairs = [(zeros[:, :, 1:], zeros[:, :, :-1]), (zeros[:, 1:], zeros[:, :-1]), (zeros[1:], zeros[:-1])]
    pairs += [(zeros, dropped(step=step)) for step in range(2, 20)]
    pairs += [(zeros, dropped(site=site)) for site in range(1, 20)]
    pairs += [(zeros, dropped(seed=seed)) for seed in range(1, 20)]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4.5 / np.sqrt(one.size)


def test_the_mean_stays():
    x = tf.random.stateless_normal(SHAPE, [0, 0]) + 3.0
    y = dropout(x, 0.1, row_keys(0, 1, SHAPE[0]))
    np.testing.assert_allclose(tf.reduce_mean(y), tf.reduce_mean(x), rtol=0.01)
    np.testing.assert_allclose(y[y != 0], x[y != 0] / 0.9, rtol=1e-6)


def test_an_encoder_counts_its_batches_and_a_copy_goes_on_alike(tmp_path):
    config = ShatterConfig(vocab_size=31, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=8)
    inputs = dict(input_word_ids=tf.constant([[2, 7, 9, 3]]), input_mask=tf.ones([1, 4], tf.int32))

    def call(encoder, training=True):
        return encoder(inputs, training=training)["sequence_output"].numpy()

    encoder, copy = ShatterEncoder(config), ShatterEncoder(config)
    copy._dropout_seed = encoder._dropout_seed  # as after starting the command again
    first = call(encoder)
    path = tf.train.Checkpoint(encoder=encoder).write(str(tmp_path / "checkpoint"))
    second = call(encoder)
    assert np.any(first != second)
    tf.train.Checkpoint(encoder=copy).read(path)
    call(copy, training=False)
    np.testing.assert_array_equal(call(copy), second)


def test_two_replicas_drop_what_one_does():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = tf.random.stateless_normal([4, 3, 5], [0, 0])
    dataset = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(x).unbatch().batch(4))

    @tf.function
    def on_replicas(rows):
        return strategy.run(lambda rows: dropout(rows, 0.5, row_keys(0, 1, 2)), args=(rows,))

    parts = strategy.experimental_local_results(on_replicas(next(iter(dataset))))
    np.testing.assert_array_equal(tf.concat(parts, axis=0), dropout(x, 0.5, row_keys(0, 1, 4)))
