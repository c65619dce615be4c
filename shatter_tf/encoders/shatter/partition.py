"""Soft partitions of relative positions: f_p(r) >= 0 with sum_p f_p(r) = 1 (Shatter, arXiv 2108.13032).

A partition is a function of t(r) in [0, 1] (squashing.py). Everything here is float32, whatever f is rounded to
afterwards: bfloat16 cannot tell positions 256 and 257 apart.
"""

import math
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.squashing import squash


def linear(t: tf.Tensor, num_parts: int, parts: Optional[Sequence[int]] = None) -> tf.Tensor:
    """Piecewise-linear hats on P equidistant knots: f_p(t) = max(0, 1 - |t (P - 1) - p|). Source: ours.

    Args:
      t: squashed positions in [0, 1], float32, shape S.
      num_parts: P.
      parts: the p to return; all, if left out.

    Returns:
      float32 [parts, *S]; at most two parts are non-zero at any t.

    Example:
    >>> linear(tf.constant([0.0, 0.25, 1.0]), 3).numpy().tolist()
    [[1.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    parts = range(num_parts) if parts is None else parts
    knots = tf.reshape(tf.constant(list(parts), tf.float32), [-1] + [1] * t.shape.rank)
    return tf.nn.relu(1.0 - tf.abs(t * (num_parts - 1.0) - knots))


def bernstein(t: tf.Tensor, num_parts: int, parts: Optional[Sequence[int]] = None) -> tf.Tensor:
    """Bernstein polynomials of degree P - 1: f_p(t) = C(P-1, p) t^p (1 - t)^(P-1-p).

    The paper partitions by polynomials of the relative position; these are the natural ones that are non-negative and
    sum to one.

    Args:
      t: squashed positions in [0, 1], float32, shape S.
      num_parts: P.
      parts: the p to return; all, if left out.

    Returns:
      float32 [parts, *S].

    Example:
    >>> bernstein(tf.constant([0.0, 0.5]), 3).numpy().tolist()
    [[1.0, 0.25], [0.0, 0.5], [0.0, 0.25]]
    """
    degree = num_parts - 1
    parts = range(num_parts) if parts is None else parts
    return tf.stack([math.comb(degree, p) * t**p * (1.0 - t) ** (degree - p) for p in parts])


FAMILIES = {"linear": linear, "bernstein": bernstein}


def soft_partition(config: ShatterConfig, r: tf.Tensor, parts: Optional[Sequence[int]] = None) -> tf.Tensor:
    """Returns f_p(r), float32 [parts, *S], of relative positions r in tokens, of any shape S and real dtype.

    Args:
      config: supplies the family, the squashing's scale and P.
      r: relative positions j - i.
      parts: the p to return; all, if left out.

    Example:
    >>> config = ShatterConfig(hidden_size=8, num_parts=4)
    >>> f = soft_partition(config, tf.range(-99, 100))
    >>> f.shape
    TensorShape([4, 199])
    >>> float(tf.reduce_max(tf.abs(tf.reduce_sum(f, axis=0) - 1.0))) < 1e-6
    True
    """
    t = squash(r, config.squashing_scale, config.num_parts)
    return FAMILIES[config.partition](t, config.num_parts, parts)


def far_parts(config: ShatterConfig) -> tuple[int, list[tuple[int, int]]]:
    """Returns a distance in tokens, and the parts that are not zero from there on, in pairs of one on either side.

    Hats have compact support: from the distance on, only the outermost two at either end are left, the inner pair
    first. For other families, and for few parts, it returns 0 and no pairs. The two of a pair are mirror images:
    f_p(-r) = f_(P - 1 - p)(r).

    Example:
    >>> config = ShatterConfig(hidden_size=12, num_parts=12)
    >>> far_parts(config)
    (21, [(1, 10), (0, 11)])
    >>> f = soft_partition(config, tf.constant([-21, 21, 5_000]))
    >>> bool(tf.reduce_all(f[2:-2] < 1e-6))
    True
    """
    distance, last = config.far_distance, config.num_parts - 1
    return distance, [(1, last - 1), (0, last)] if distance else []


def position_partition(config: ShatterConfig, length, num_queries=None) -> tf.Tensor:
    """Returns f_p(j - i) for queries i = 0, 1, … and every key j, float32 [P, num_queries, L].

    It depends only on positions: an encoder computes it once per forward pass and hands it to every layer. That is
    done when the graph runs, so that no quadratic constant is stored.

    Args:
      config: supplies the family, the squashing's scale and P.
      length: L, the number of keys; an int or an int32 scalar tensor, like num_queries.
      num_queries: None takes as many as there are keys.

    Example:
    >>> position_partition(ShatterConfig(hidden_size=8, num_parts=4), 10, num_queries=3).shape
    TensorShape([4, 3, 10])
    """
    queries = tf.range(length if num_queries is None else num_queries)
    return soft_partition(config, tf.range(length)[tf.newaxis, :] - queries[:, tf.newaxis])
