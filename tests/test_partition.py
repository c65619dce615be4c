"""Partitions of unity: closed forms and the oracle."""

import numpy as np
import pytest
import reference
import tensorflow as tf

from shatter_tf.encoders.shatter.config import PARTITIONS, ShatterConfig
from shatter_tf.encoders.shatter.partition import far_parts, position_partition, soft_partition
from shatter_tf.encoders.shatter.squashing import squash

FAMILIES = pytest.mark.parametrize("family", PARTITIONS)


def at_length(config, length):
    """f_p of all relative positions in a row of `length` tokens, in order: [P, 2 length - 1]."""
    return soft_partition(config, tf.range(1 - length, length)).numpy()


def config(family, parts=6, scale=3.0):
    return ShatterConfig(hidden_size=2 * parts, num_parts=parts, partition=family, squashing_scale=scale)


@FAMILIES
@pytest.mark.parametrize("parts", [1, 5, 6])
def test_matches_the_oracle(family, parts):
    actual = position_partition(config(family, parts), 11)
    expected = reference.partition(11, parts, family, 3.0)
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@FAMILIES
@pytest.mark.parametrize("parts", [1, 2, 12])
def test_parts_sum_to_one_and_are_not_negative_at_every_length(family, parts):
    # A shorter row's is the middle of the longest one's, so one comparison covers every length up to 4096.
    longest = at_length(config(family, parts), 4096)
    assert longest.min() >= 0
    np.testing.assert_allclose(longest.sum(axis=0), 1, atol=2e-6)
    for length in (1, 2, 3, 128, 129, 4095):
        table = at_length(config(family, parts), length)
        np.testing.assert_allclose(table, longest[:, 4096 - length : 4095 + length], rtol=1e-5, atol=1e-7)


@FAMILIES
def test_some_rows_are_a_part_of_all(family):
    whole = position_partition(config(family), 11).numpy()
    np.testing.assert_allclose(position_partition(config(family), 11, num_queries=3), whole[:, :3], rtol=1e-6)


@FAMILIES
def test_symmetric(family):
    table = at_length(config(family), 50)
    np.testing.assert_allclose(table, table[::-1, ::-1], atol=2e-6)


def test_the_nearest_positions_fall_apart():
    # 8 parts: knots at |r| = 3/2, 5 and infinity, and one below 1.
    table = at_length(config("linear", parts=8, scale=1.0), 6)
    np.testing.assert_allclose(table[6, 10], 1, atol=1e-5)  # r = +5
    np.testing.assert_allclose(table[1, 0], 1, atol=1e-5)  # r = -5
    np.testing.assert_allclose(table[4:6, 6], [1 / 3, 2 / 3], atol=1e-5)  # r = +1
    assert not table[4:, 4].any()  # r = -1 belongs to no part of what follows
    assert not table[4, 7:].any()  # r = +2 not to the part of r = +1


@pytest.mark.parametrize(("parts", "scale"), [(6, 1.0), (7, 0.6), (8, 2.0), (12, 1.0), (24, 1.0)])
def test_far_positions_belong_to_pairs_of_mirror_images(parts, scale):
    distance, pairs = far_parts(config("linear", parts, scale))
    table = at_length(config("linear", parts, scale), 512)
    left, right = table[:, : 512 - distance], table[:, 511 + distance :]
    assert np.all(np.delete(left, [p for p, _ in pairs], axis=0) < 1e-6)
    assert np.all(np.delete(right, [q for _, q in pairs], axis=0) < 1e-6)
    assert np.any(np.delete(table[:, 510 + distance], [q for _, q in pairs]))  # and no smaller distance would do
    for p, q in pairs:
        np.testing.assert_allclose(left[p, ::-1], right[q], atol=2e-6)


@pytest.mark.parametrize("parts", [2, 4, 6, 8, 12, 16, 24])
def test_every_part_has_a_position_but_a_token_itself(parts):
    table = at_length(config("linear", parts=parts, scale=1.0), 512)
    table[:, 511] = 0  # r = 0
    assert table.max(axis=1).min() > 0.2


def test_neighboring_far_positions_are_told_apart():
    t = squash(tf.constant([256, 257]), 2.0, 12).numpy()
    assert t.dtype == np.float32
    assert t[0] < t[1]


@FAMILIES
def test_no_quadratic_constant_in_the_graph(family):
    graph = tf.function(lambda n: position_partition(config(family), n)).get_concrete_function(
        tf.TensorSpec([], tf.int32)
    )
    assert len(graph.graph.as_graph_def().SerializeToString()) < 100_000
