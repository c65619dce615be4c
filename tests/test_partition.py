"""Partitions of unity: closed forms and the oracle."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from shatter_tf.config import PARTITIONS, SQUASHINGS, ShatterConfig
from shatter_tf.partition import partition_table, position_partition, squash

FAMILIES = pytest.mark.parametrize("family", PARTITIONS)
SQUASHED = pytest.mark.parametrize("squashing", SQUASHINGS)


def config(family, squashing="log", parts=6, scale=37.0):
    return ShatterConfig(
        hidden_size=2 * parts, num_parts=parts, partition=family, squashing=squashing, squashing_scale=scale
    )


@FAMILIES
@SQUASHED
@pytest.mark.parametrize("parts", [5, 6])
def test_matches_the_oracle(family, squashing, parts):
    actual = position_partition(config(family, squashing, parts), 11)
    expected = reference.partition(11, parts, family, squashing, 37.0)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@FAMILIES
@SQUASHED
@pytest.mark.parametrize("parts", [1, 2, 12])
def test_parts_sum_to_one_and_are_not_negative_at_every_length(family, squashing, parts):
    # A shorter table is the middle of the longest one, so one comparison covers every length up to 4096.
    longest = partition_table(config(family, squashing, parts, scale=512.0), 4096).numpy()
    assert longest.min() >= 0
    np.testing.assert_allclose(longest.sum(axis=0), 1, atol=2e-6)
    for length in (1, 2, 3, 128, 129, 4095):
        table = partition_table(config(family, squashing, parts, scale=512.0), length).numpy()
        np.testing.assert_allclose(table, longest[:, 4096 - length : 4095 + length], rtol=1e-5, atol=1e-7)


@FAMILIES
def test_symmetric(family):
    table = partition_table(config(family), 50).numpy()
    np.testing.assert_allclose(table, table[::-1, ::-1], atol=2e-6)


@pytest.mark.parametrize(("squashing", "scale"), [("log", 127.0), ("geometric", 100.0)])
def test_near_positions_fall_to_parts_of_their_own(squashing, scale):
    # With log squashing that needs the scale 2^(P-1) - 1, with geometric it always holds.
    table = partition_table(config("linear", squashing, parts=8, scale=scale), 3).numpy()
    np.testing.assert_allclose(table[4, 3], 1, atol=1e-5)  # r = +1
    np.testing.assert_allclose(table[3, 1], 1, atol=1e-5)  # r = -1
    np.testing.assert_allclose(table[3:5, 2], 0.5, atol=1e-5)  # r = 0


def test_geometric_knots():
    # 16 parts up to 128: the knots are the powers of two, so each of those positions belongs to one part alone.
    table = partition_table(config("linear", "geometric", parts=16, scale=128.0), 129).numpy()
    for power in range(8):
        np.testing.assert_allclose(table[8 + power, 128 + 2**power], 1, atol=1e-5)
        np.testing.assert_allclose(table[7 - power, 128 - 2**power], 1, atol=1e-5)


def test_neighbouring_far_positions_stay_distinct_under_bfloat16(bfloat16_policy):
    del bfloat16_policy
    t = squash(tf.constant([256, 257]), config("linear", scale=4096.0)).numpy()
    assert t.dtype == np.float32
    assert t[0] < t[1]


@pytest.fixture
def bfloat16_policy():
    import tf_keras

    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")


@FAMILIES
def test_no_quadratic_constant_in_the_graph(family):
    graph = tf.function(lambda n: position_partition(config(family), n)).get_concrete_function(
        tf.TensorSpec([], tf.int32)
    )
    assert len(graph.graph.as_graph_def().SerializeToString()) < 100_000
