"""Which token may see which, from the numbers of the documents packed into a row."""

import tensorflow as tf


def same_document(query_packs: tf.Tensor, key_packs: tf.Tensor) -> tf.Tensor:
    """Returns whether i and j are in the same document, bool [B, L, M], from their pack numbers, [B, L] and [B, M]."""
    query, key = query_packs[:, :, tf.newaxis], key_packs[:, tf.newaxis, :]
    return tf.logical_and(tf.equal(query, key), key > 0)


def query_positions(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns the first L positions of x, [B, M, D], as [B, L, D]; L is that of the mask, [B, L, M] or [B, L]."""
    if mask.shape[1] is not None and mask.shape[1] == x.shape[1]:
        return x  # a slice of everything would be a copy in the backward pass
    return x[:, : tf.shape(mask)[1]]
