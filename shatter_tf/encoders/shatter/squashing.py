"""A monotone squashing of relative positions r = j - i, which resolves near ones finely and far ones coarsely."""

import math

import tensorflow as tf


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


def far_distance(scale: float, num_parts: int) -> int:
    """Returns the tokens from which on t lies between the last two of P knots, on either side.

    Example:
    >>> far_distance(1.0, num_parts=8), far_distance(1.0, num_parts=12)
    (5, 21)
    """
    # t(r) = (P - 2) / (P - 1)
    d, c = nearest(scale, num_parts)
    return math.ceil(1 + c * (num_parts - 3 - d * (num_parts - 1)) / 2)
