"""Soft partitions of relative positions: f_p(r) >= 0 with sum_p f_p(r) = 1 (Shatter, arXiv 2108.13032).

A partition is a function of t(r) in [0, 1], a monotone squashing of the relative position r = j - i that resolves near
positions finely and far ones coarsely. Everything here is float32, whatever f is rounded to afterwards: bfloat16 cannot
tell positions 256 and 257 apart.
"""

import math
from collections.abc import Sequence
from typing import Optional

import tensorflow as tf

from shatter_tf.encoders.shatter.config import ShatterConfig


def squash(r: tf.Tensor, scale: float, num_parts: int) -> tf.Tensor:
    """Maps relative positions to [0, 1]: to where they lie among the P knots 0, 1/(P - 1), …, 1.

        t(r) = (1 + sgn(r) (d + (1 - d) (|r| - 1) / (|r| - 1 + c))) / 2     with d and c of `nearest`, and t(0) = 1/2

    It is monotone, and t(-r) = 1 - t(r). The outermost knots are infinitely far away.

    Args:
      r: relative positions j - i in tokens, any shape, whole numbers of any real dtype.
      scale: how far the parts reach, 1 being the default.
      num_parts: P.

    Returns:
      t, float32, the shape of `r`.

    Example:
    >>> t = squash(tf.constant([-5, 0, 1, 5]), scale=1.0, num_parts=8)
    >>> [round(7 * value, 3) for value in t.numpy().tolist()]
    [1.0, 3.5, 4.667, 6.0]

    Source: ours. It needs no maximum length, and puts most parts where they matter most, within a few tokens. Nothing
    of [0, 1] is left for r = 0, because no token attends to itself. docs/log.md has the measurements behind it.
    """
    r = tf.cast(r, tf.float32)
    d, c = nearest(scale, num_parts)
    further = tf.nn.relu(tf.abs(r) - 1.0)
    return 0.5 * (1.0 + tf.sign(r) * (d + (1.0 - d) * further / (further + c)))


def nearest(scale: float, num_parts: int) -> tuple[float, float]:
    """Returns d and c of `squash`: 2 t(1) - 1, and the distance from 1 at which t is half-way from there to the end.

    With an even number of parts from 6 on, r = 1 falls two thirds of the way from the first knot on its side to the
    second, which lies at 1 + scale / 2: a token's neighbor matters most, and so gets a part of its own and most of
    another. With other numbers it falls on the first knot, or half-way between the middle knot and the first.
    """
    if num_parts % 2 or num_parts < 6:
        return 1 / max(num_parts - 1, 1), scale
    return 7 / 3 / (num_parts - 1), scale * 0.75 * (num_parts - 4)


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
    number = config.num_parts
    if config.partition != "linear" or number < 6:
        return 0, []
    # Part P - 3 ends at the knot of part P - 2: t(r) = (P - 2) / (P - 1), which is where r is
    d, c = nearest(config.squashing_scale, number)
    distance = 1 + c * (number - 3 - d * (number - 1)) / 2
    return math.ceil(distance), [(1, number - 2), (0, number - 1)]


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
