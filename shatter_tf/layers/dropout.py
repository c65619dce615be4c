"""Dropout by a hash: what is dropped is a pure function of (seed, step, site, row of the global batch, place).

So nothing is stored for the backward pass, the same entries are dropped however a sequence is cut into blocks and a
batch into replicas, and a resumed run drops what the uninterrupted one would have. And it is cheap: on accelerators the
random numbers of TensorFlow's stateless generators cost many times what they are used for (docs/performance.md).

The hash is the finalizer of MurmurHash3 (Austin Appleby, public domain) on 32 bits, with a key added half-way and
without its last step, which mixes only the lower half: what is dropped depends on the upper one.
"""

from typing import Optional

import tensorflow as tf

_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: its multiples are evenly spread


def _unsigned(t) -> tf.Tensor:
    return tf.cast(t, tf.uint32)


def _mix(h: tf.Tensor, key=0) -> tf.Tensor:
    h = tf.bitwise.bitwise_xor(h, tf.bitwise.right_shift(h, _unsigned(16))) * _unsigned(0x85EBCA6B) + _unsigned(key)
    return tf.bitwise.bitwise_xor(h, tf.bitwise.right_shift(h, _unsigned(13))) * _unsigned(0xC2B2AE35)


def row_keys(seed, step, batch_size) -> tf.Tensor:
    """Returns a key for each row of this replica's batch, uint32 [B].

    Args:
      seed: any integer; a run's own.
      step: any integer, different for every step.
      batch_size: B; an int or an int32 scalar tensor.

    Example:
    >>> row_keys(seed=0, step=7, batch_size=3).shape
    TensorShape([3])
    """
    context = tf.distribute.get_replica_context()
    replica = context.replica_id_in_sync_group if context else 0
    rows = _unsigned(replica * batch_size + tf.range(batch_size))
    return _mix(rows * _unsigned(_GOLDEN), _mix(_unsigned(step), seed))


def random_keys(batch_size) -> tf.Tensor:
    """Returns keys that differ from call to call, uint32 [B]: for layers that are trained on their own."""
    seed, step = tf.unstack(tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32))
    return row_keys(seed, step, batch_size)


def site_keys(keys: tf.Tensor, site: int) -> tf.Tensor:
    """Returns keys for the `site`-th use of `keys`, of the same shape, so that it drops other entries."""
    return _mix(keys + _unsigned((site + 1) * _GOLDEN % 2**32))


def uniform(keys: tf.Tensor, places: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """Returns random numbers between 0 and 1, both excluded, float32 [..., L, M]: a pure function of its arguments.

    Args:
      keys: uint32 [...].
      places: two integer tensors, [L] and [M], whose sum identifies an entry.

    Example:
    >>> u = uniform(tf.constant([5], tf.uint32), (tf.range(300) * 1000, tf.range(1000)))
    >>> u.shape, abs(float(tf.reduce_mean(u)) - 0.5) < 0.003, bool(tf.reduce_all((u > 0) & (u < 1)))
    (TensorShape([1, 300, 1000]), True, True)
    """
    rows, columns = (_unsigned(t) * _unsigned(_GOLDEN) for t in places)
    number = _mix(rows[:, tf.newaxis] + columns, keys[..., tf.newaxis, tf.newaxis])
    # The middles of 2^23 intervals, which float32 holds exactly; the upper bits are the best mixed ones.
    return (tf.cast(tf.bitwise.right_shift(number, _unsigned(9)), tf.float32) + 0.5) * 2.0**-23


def dropout(x: tf.Tensor, rate: float, keys: Optional[tf.Tensor], places=None) -> tf.Tensor:
    """Returns x with a share `rate` of its entries set to zero, and the others scaled up to keep the mean.

    Args:
      x: [B, L, K], any float dtype.
      rate: at least 0 and less than 1.
      keys: uint32 [B]; None returns x unchanged, as outside training.
      places: two integer tensors, [L] or [B, L], and [K] or [B, K], whose sum identifies an entry within its row; if
        left out, that is its index in the row.

    Example:
    >>> x = tf.ones([2, 100, 10])
    >>> y = dropout(x, 0.25, row_keys(seed=0, step=1, batch_size=2))
    >>> sorted(set(y.numpy().ravel().tolist()))
    [0.0, 1.3333333730697632]
    >>> bool(tf.reduce_all(y == dropout(x, 0.25, row_keys(seed=0, step=1, batch_size=2))))
    True
    """
    if keys is None or not rate:
        return x
    if places is None:
        places = tf.range(tf.shape(x)[1]) * tf.shape(x)[2], tf.range(tf.shape(x)[2])
    # The sum of two products, not the product of a sum: so only rows and columns are multiplied, not every entry.
    rows, columns = (_unsigned(t) * _unsigned(_GOLDEN) for t in places)
    number = _mix(rows[..., :, tf.newaxis] + columns[..., tf.newaxis, :], keys[:, tf.newaxis, tf.newaxis])
    keep = number >= _unsigned(int(rate * 2**32))
    return tf.where(keep, x * tf.cast(1.0 / (1.0 - rate), x.dtype), tf.zeros_like(x))
