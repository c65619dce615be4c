"""Attention over long sequences in blocks of queries: what `equations.attend` reads, in memory that grows with L.

Computed all at once, L tokens need maps of L x L. Here each block's maps, masks and partitions are computed in its turn
and recomputed in the backward pass. And where the partition has compact support, as hats do (`partition.far_parts`),
only keys near a block are read by all parts:

    near   a window of keys around every block. Windows differ only in their contents, so all blocks are read at once
    far    all other keys, block by block. Those on the left belong to parts 1 and 0, those on the right to P - 2 and
           P - 1, which are the same functions of |r|. So two parts, an inner and an outer one, serve both sides, and
           the side that a key is on determines which part's values it takes

Letters in shapes are those of equations.py; N is the number of blocks, Q the queries in one, W the keys in a window.
Source: ours.
"""

from collections.abc import Callable
from typing import Optional

import tensorflow as tf

from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.equations import (
    attention_map,
    attention_scores,
    normalize_parts,
    part_values,
    read_parts,
)
from shatter_tf.encoders.shatter.partition import far_parts, soft_partition
from shatter_tf.layers.dropout import dropout
from shatter_tf.layers.masks import same_document


def attend_in_blocks(
    config: ShatterConfig,
    query: tf.Tensor,
    position_bias: Optional[tf.Tensor],
    x: tf.Tensor,
    value: tf.Tensor,
    packs: tf.Tensor,
    dropout_keys: Optional[tf.Tensor],
) -> tf.Tensor:
    """Returns what `attend` reads, [B, L, D], a block of `config.query_block_size` queries at a time.

    Args:
      config, query, position_bias, x, value: as for `attend`; the length must be static, and all positions are queries.
      packs: document numbers, int32 [B, L]; see `attention_mask`.
      dropout_keys: see `dropout.dropout`; the same entries are dropped as by `attend`.

    Example:
    >>> from shatter_tf.encoders.shatter.attention import ShatterAttention
    >>> from shatter_tf.encoders.shatter.equations import mask_and_partition
    >>> layer = ShatterAttention(ShatterConfig(hidden_size=16, num_parts=8, query_block_size=8))
    >>> x, packs = tf.random.normal([2, 40, 16]), tf.ones([2, 40], tf.int32)
    >>> at_once, _ = layer(x, packs, mask_and_partition(layer.config, packs, tf.float32))
    >>> in_blocks, _ = layer(x, packs)
    >>> bool(tf.reduce_max(tf.abs(at_once - in_blocks)) < 1e-5)
    True
    """
    distance, _ = far_parts(config)
    packs = packs[:, :, tf.newaxis]
    queries, keys = dict(query=query, packs=packs), dict(x=x, packs=packs, value=value)
    if position_bias is not None:
        queries["position_bias"] = position_bias
    if dropout_keys is not None:
        keys["dropout_keys"] = dropout_keys
    # A normalizer shared by all parts needs the whole row at once.
    per_part = config.normalizer in ("none", "part_row_sum")
    if per_part and distance and config.query_block_size + 2 * distance < x.shape[1]:
        # Every tensor is an argument: what is recomputed must not capture others.
        near = tf.recompute_grad(lambda *tensors: read_near(config, *tensors, config.query_block_size, distance))(
            queries, keys
        )
        far = _block_by_block(_read_far, config, queries, _far_keys(config, keys))
        y, totals = near[0] + far[0], near[1] + far[1]
    else:
        y, totals = _block_by_block(_read_all, config, queries, keys)
    return normalize_parts(y, totals) if config.normalizer == "part_row_sum" else y


def _block_by_block(read: Callable, config: ShatterConfig, queries: dict, keys: dict) -> list[tf.Tensor]:
    """Returns what `read(config, block, keys)` reads, [B, Q, D] and [B, Q, P], for all blocks: [B, L, D], [B, L, P]."""
    x = keys["x"]
    size = config.query_block_size
    blocks = dict(start=tf.range(0, x.shape[1], size), **{name: cut(t, size) for name, t in queries.items()})

    @tf.recompute_grad
    def read_block(block, keys):
        # Without an axis for B: with one row, the TPU compiler would make it the axis that it pads to 128 entries.
        return tuple(tf.reshape(t, [-1, t.shape[-1]]) for t in read(config, block, keys))

    rows = x.shape[0] and x.shape[0] * size
    outputs = tf.map_fn(
        lambda block: read_block(block, keys),
        blocks,
        fn_output_signature=tuple(tf.TensorSpec([rows, k], x.dtype) for k in (config.hidden_size, config.num_parts)),
        parallel_iterations=1,  # one block's memory at a time
    )
    return [join(t, size, x.shape[1]) for t in outputs]


def _read_all(config: ShatterConfig, block: dict, keys: dict) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads all keys with all parts."""
    length = keys["x"].shape[1]
    i, j = block["start"] + tf.range(config.query_block_size), tf.range(length)
    r = j - i[:, tf.newaxis]
    mask = tf.logical_and(same_document(block["packs"][..., 0], keys["packs"][..., 0]), r != 0)
    return _read(config, block, keys, mask, soft_partition(config, r), (i * length, j))


def read_near(
    config: ShatterConfig, queries: dict, keys: dict, size: int, distance: int, stride: Optional[int] = None
) -> list[tf.Tensor]:
    """Reads the windows around all blocks with all parts, and returns [B, L, D] and [B, L, P].

    Args:
      config: supplies the partition.
      queries: `query`, `packs` and perhaps `position_bias`, [B, L, K].
      keys: `x` and `packs`, [B, L, K], `value`, [B, P, L, E], and perhaps `dropout_keys`.
      size: queries in a block.
      distance: keys on either side of a block.
      stride: what tells the entries of one query from those of the next in dropout; L, if left out.
    """
    batch_size = tf.shape(keys["x"])[0]
    length = keys["x"].shape[1]
    stride = stride or length
    i, j = tf.range(size), tf.range(-distance, size + distance)
    r = j - i[:, tf.newaxis]  # the same in every window

    blocks = {name: tf.reshape(cut(t, size), [-1, size, t.shape[-1]]) for name, t in queries.items()}
    windows = {name: _windows(keys[name], size, distance) for name in ("x", "packs", "value")}
    starts = tf.range(0, length, size)
    if "dropout_keys" in keys:
        windows["dropout_keys"] = tf.tile(keys["dropout_keys"], starts.shape)
    starts = tf.repeat(starts, batch_size)[:, tf.newaxis]
    mask = tf.logical_and(same_document(blocks["packs"][..., 0], windows["packs"][..., 0]), r != 0)
    read = _read(config, blocks, windows, mask, soft_partition(config, r), ((starts + i) * stride, starts + j))
    return [join(t, size, length) for t in read]


def _read(config, block, keys, mask, partition, places) -> tuple[tf.Tensor, tf.Tensor]:
    bias = block.get("position_bias")
    dropout_keys = keys.get("dropout_keys")
    operands = (block["query"], bias, keys["x"], keys["value"], mask, partition, dropout_keys, places)
    y, totals, _ = read_parts(config, *operands)
    return y, totals


def _far_keys(config: ShatterConfig, keys: dict) -> dict:
    """Returns `keys` with the inner and the outer part's values and partition, for `_read_far`.

    value: [B, 2, L, 2 E + 2], values for the left and for the right, then a one for each side, for the totals.
    partition: [2, Q, L + (N - 1) Q], of which each block uses L columns, the first block the last ones.
    """
    x = keys["x"]
    value = keys["value"]
    size = config.query_block_size
    _, pairs = far_parts(config)
    ones = tf.ones_like(value[:, 0, :, :2])
    both = [tf.concat([value[:, left], value[:, right], ones], axis=-1) for left, right in pairs]
    r = tf.range(-((x.shape[1] - 1) // size) * size, x.shape[1]) - tf.range(size)[:, tf.newaxis]
    partition = soft_partition(config, tf.abs(r), [right for _, right in pairs])
    return {**keys, "value": tf.stack(both, axis=1), "partition": tf.cast(partition, x.dtype)}


def _read_far(config: ShatterConfig, block: dict, keys: dict) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads all keys outside the block's window with the two outermost parts on their side."""
    x = keys["x"]
    start = block["start"]
    size = config.query_block_size
    width = config.hidden_size // config.num_parts
    length = x.shape[1]
    distance, pairs = far_parts(config)
    i, j = start + tf.range(size), tf.range(length)
    left, right = j < start - distance, j >= start + size + distance
    partition = tf.slice(keys["partition"], [0, 0, keys["partition"].shape[-1] - length - start], [2, size, length])

    from_positions = None
    if "position_bias" in block:
        bias = tf.split(block["position_bias"], config.num_parts, axis=-1)
        from_positions = tf.add_n([partition[k] * tf.where(left, bias[p], bias[q]) for k, (p, q) in enumerate(pairs)])
    outside = tf.where(tf.logical_or(left, right), keys["packs"][..., 0], 0)
    mask = same_document(block["packs"][..., 0], outside)
    attention = attention_map(config, attention_scores(block["query"], x, from_positions), mask)
    places = i * length, j
    kept = dropout(tf.cast(attention, x.dtype), config.attention_dropout_rate, keys.get("dropout_keys"), places)

    side = tf.cast(tf.stack([left, right], axis=-1), x.dtype)
    on_side = tf.concat([tf.repeat(side, width, axis=-1), side], axis=-1)
    read = tf.split(part_values(kept, partition, keys["value"] * on_side), [2 * width, 2] * 2, axis=-1)
    return _among_all(config, read[0], read[2]), _among_all(config, read[1], read[3])


def _among_all(config: ShatterConfig, inner: tf.Tensor, outer: tf.Tensor) -> tf.Tensor:
    """Puts what the inner and the outer part read on both sides, [B, Q, 2 K], in its place among all, [B, Q, P K]."""
    (inner_left, inner_right), (outer_left, outer_right) = (tf.split(t, 2, axis=-1) for t in (inner, outer))
    between = tf.zeros_like(tf.repeat(outer_left, config.num_parts - 4, axis=-1))
    return tf.concat([outer_left, inner_left, between, inner_right, outer_right], axis=-1)


def cut(t: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts [B, L, K] into [N, B, Q, K]; the last block is padded with zeros."""
    number = -(-t.shape[1] // size)
    t = tf.pad(t, [[0, 0], [0, number * size - t.shape[1]], [0, 0]])
    return tf.transpose(tf.reshape(t, [-1, number, size, t.shape[-1]]), [1, 0, 2, 3])


def join(t: tf.Tensor, size: int, length: int) -> tf.Tensor:
    """Joins blocks, [N, B, Q, K] or that with some axes merged, into [B, L, K]."""
    number = -(-length // size)
    k = t.shape[-1]
    t = tf.transpose(tf.reshape(t, [number, -1, size, k]), [1, 0, 2, 3])
    return tf.reshape(t, [-1, number * size, k])[:, :length]


def _windows(t: tf.Tensor, size: int, distance: int) -> tf.Tensor:
    """Returns the window of [B, ..., L, K] around each block, [N B, ..., W, K], with zeros beyond the ends."""
    length, width = t.shape[-2:]
    starts = range(0, length, size)
    number = len(starts)
    axis = t.shape.rank - 2
    t = tf.pad(t, [[0, 0]] * axis + [[distance, distance + number * size - length], [0, 0]])
    if distance == size:  # a window is three blocks, which need no slice for every window
        blocks = tf.reshape(t, tf.concat([tf.shape(t)[:axis], [number + 2, size, width]], axis=0))
        windows = tf.concat([blocks[..., i : i + number, :, :] for i in range(3)], axis=-2)
        windows = tf.transpose(windows, [axis, *range(axis), axis + 1, axis + 2])
    else:
        windows = tf.stack([t[..., start : start + size + 2 * distance, :] for start in starts])
    return tf.reshape(windows, [-1, *t.shape[1:axis], size + 2 * distance, width])
