"""From the vectors of tokens to one vector of a text."""

import tensorflow as tf


def mean_of_tokens(h: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean, [B, D], of h, [B, L, D], over tokens that are not padding; zeros where there are none.

    Example:
    >>> mean_of_tokens(tf.constant([[[1.0], [3.0], [9.0]]]), tf.constant([[1, 1, 0]])).numpy().tolist()
    [[2.0]]
    """
    weights = tf.cast(input_mask[:, : tf.shape(h)[1], tf.newaxis] > 0, tf.float32)
    total = tf.reduce_sum(weights * tf.cast(h, tf.float32), axis=1)
    return tf.cast(tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=1)), h.dtype)
