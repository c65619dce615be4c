"""Sparse attention: a small sketch of attention samples the keys that each query reads, once for all layers.

    u_i    = x_i Wu + p_i                                       the sketch of token i; x is what the first block gets
    s_ij   = (u_i Wq') . (u_j Wk') / sqrt(R)                    its scores
    A_ij   = exp(s_ij) / sum_{m != i} exp(s_im)                 how likely i is to draw j, within i's document
    G^h_ij = -log(-log U^h_ij)                                  Gumbel noise
    I^h_i  = {i} and the K greatest log A_ij + G^h_ij, j != i   K draws by A, without replacement
    a^h_ij = softmax_{j in I^h_i}(q^h_i . k^h_j / sqrt(E) + b_h log A_ij)
    y^h_i  = sum_j a^h_ij v^h_j

Adding a number to a row changes neither its order nor its softmax. So s_ij stands for log A_ij below: rows are never
summed, there is no logarithm of 0, and s_ii is the bias of the token itself, for which A has no share.

Sampling has no gradient: the sketch learns from what its bias does to the keys that were sampled.

Letters, in formulas, shapes and einsums alike:
    B batch, L query position i, M key position j, D model width, H heads h, E = D / H head width, R sketch width,
    S = K + 1 keys that a query reads (all M, if there are fewer), N blocks of Q queries.

Source: that a small attention map draws the keys of a sparse one, for each head its own, is Smart Bird's (Wu, Wu, Qi,
Jiao, Jiang, Huang, Xie 2021, arXiv 2108.09193). No code of theirs is public: the equations are ours.
"""

import math
from collections.abc import Callable
from typing import Optional

import numpy as np
import tensorflow as tf

from shatter_tf.encoders.smart_bird.config import SmartBirdConfig
from shatter_tf.layers.dropout import dropout, site_keys, uniform
from shatter_tf.layers.masks import same_document

# The pair (i, j) has the number i * _STRIDE + j, whatever length its row is padded to.
_STRIDE = 65_537

# A score whose share in a softmax is 0.
_MASKED = -1e9


def head_keys(keys: tf.Tensor, heads: int) -> tf.Tensor:
    """Returns a key for each head, uint32 [B, H], from each row's, uint32 [B]."""
    return site_keys(keys[:, tf.newaxis], np.arange(heads))


def sketch_scores(query: Optional[tf.Tensor], key: Optional[tf.Tensor]) -> Optional[tf.Tensor]:
    """Returns s_ij as float32 [B, L, M] from u Wq', [B, L, R], and u Wk', [B, M, R]; None without a sketch."""
    if query is None:
        return None
    return tf.cast(tf.matmul(query / math.sqrt(query.shape[-1]), key, transpose_b=True), tf.float32)


def ranks(
    config: SmartBirdConfig,
    scores: Optional[tf.Tensor],
    i: tf.Tensor,
    query_packs: tf.Tensor,
    key_packs: tf.Tensor,
    keys: tf.Tensor,
) -> tf.Tensor:
    """Returns what the keys are ranked by, log A_ij + G^h_ij up to a constant of the row, as float32 [B, H, L, M].

    Infinity for the token itself, so that it is always chosen; minus infinity outside its document. For the "nearest"
    keys it is minus the distance, to which the right adds half a token, so that there are no ties.

    Args:
      config: supplies H and the kind of sketch.
      scores: s, float32 [B, L, M], through which no gradient passes, or None.
      i: positions of the queries, int32 [L].
      query_packs, key_packs: document numbers, int32 [B, L] and [B, M]; 0 for padding.
      keys: of the noise, uint32 [B], or [1] for the same noise in all rows.

    Example:
    >>> config, packs = SmartBirdConfig(num_attention_heads=1, sketch="nearest"), tf.constant([[1, 1, 1, 2, 0]])
    >>> ranks(config, None, tf.range(1), packs[:, :1], packs, tf.zeros([1], tf.uint32)).numpy().tolist()
    [[[[inf, -1.25, -2.25, -inf, -inf]]]]
    """
    heads = config.num_attention_heads
    j = tf.range(tf.shape(key_packs)[1])
    if config.sketch == "nearest":
        distance = tf.abs(tf.cast(j - i[:, tf.newaxis], tf.float32) + 0.25)
        ranked = -tf.tile(distance[tf.newaxis, tf.newaxis], [1, heads, 1, 1])
    else:
        noise = -tf.math.log(-tf.math.log(uniform(head_keys(keys, heads), (i * _STRIDE, j))))
        ranked = tf.stop_gradient(scores)[:, tf.newaxis] + noise

    ranked = tf.where(tf.equal(i[:, tf.newaxis], j), np.float32(np.inf), ranked)
    return tf.where(same_document(query_packs, key_packs)[:, tf.newaxis], ranked, np.float32(-np.inf))


def sampled_mask(
    config: SmartBirdConfig, query: Optional[tf.Tensor], key: Optional[tf.Tensor], packs: tf.Tensor, keys: tf.Tensor
) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
    """Returns whether j is in I^h_i, bool [B, H, L, M], and s_ij, float32 [B, 1, L, M], or None without a sketch.

    Padding reads nothing and is not read; documents of at most S tokens are read whole. Of keys that tie for the last
    place, to the last bit, all are read.

    Args:
      config: supplies H, K and the kind of sketch.
      query, key: u Wq' and u Wk', [B, L, R], or None.
      packs: document numbers, int32 [B, L]; 0 for padding.
      keys: of the noise; see `ranks`.

    Example:
    >>> config, packs = SmartBirdConfig(num_attention_heads=2, sampled_keys=3), tf.ones([1, 9], tf.int32)
    >>> query, key = tf.random.normal([2, 1, 9, 4])
    >>> mask, scores = sampled_mask(config, query, key, packs, tf.zeros([1], tf.uint32))
    >>> np.unique(np.sum(mask, axis=-1)).tolist(), scores.shape
    ([4], TensorShape([1, 1, 9, 9]))
    """
    length = tf.shape(packs)[1]
    scores = sketch_scores(query, key)
    ranked = ranks(config, scores, tf.range(length), packs, packs, keys)

    # The least of the greatest, not the last one: for a slice of them, XLA would sort the rows.
    greatest = tf.math.top_k(ranked, tf.minimum(config.sampled_keys + 1, length)).values
    mask = tf.logical_and(ranked >= tf.reduce_min(greatest, axis=-1, keepdims=True), ranked > -np.inf)
    return mask, None if scores is None else scores[:, tf.newaxis]


def sampled_indices(
    config: SmartBirdConfig, query: Optional[tf.Tensor], key: Optional[tf.Tensor], packs: tf.Tensor, keys: tf.Tensor
) -> tuple[tf.Tensor, Optional[tf.Tensor]]:
    """Returns I^h_i, int32 [B, H, L, S], -1 standing for no key, and s_ij there, float32 [B, H, L, S], or None.

    The keys and arguments are those of `sampled_mask`, in memory that grows with the length; it must be static.

    Example:
    >>> config = SmartBirdConfig(num_attention_heads=1, sampled_keys=2, sketch="nearest")
    >>> indices, _ = sampled_indices(config, None, None, tf.constant([[1, 1, 1, 1, 2, 0]]), tf.zeros([1], tf.uint32))
    >>> indices[0, 0].numpy().tolist()
    [[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 2, 1], [4, -1, -1], [-1, -1, -1]]
    """
    shape = config.num_attention_heads, min(config.sampled_keys + 1, packs.shape[1])

    def greatest(block, shared):
        scores = sketch_scores(block.get("query"), shared.get("key"))
        ranked = ranks(config, scores, block["i"], block["packs"][..., 0], shared["packs"], shared["keys"])
        found, indices = tf.math.top_k(ranked, shape[1])
        return tf.where(found > -np.inf, indices, -1)

    def scores_there(block, shared):
        read = tf.gather(shared["key"], tf.maximum(block["indices"], 0), batch_dims=1)
        scores = tf.einsum("BLR,BHLSR->BHLS", block["query"] / math.sqrt(read.shape[-1]), read)
        return tf.cast(scores, tf.float32)

    queries = dict(packs=packs[..., tf.newaxis])
    shared = dict(packs=packs, keys=keys)
    if query is None:
        return _in_blocks(config, greatest, queries, shared, shape, tf.int32), None

    queries["query"] = tf.stop_gradient(query)
    shared["key"] = tf.stop_gradient(key)
    indices = _in_blocks(config, greatest, queries, shared, shape, tf.int32)

    queries = dict(query=query, indices=indices)
    return indices, _in_blocks(config, scores_there, queries, dict(key=key), shape, tf.float32)


def attend(
    config: SmartBirdConfig,
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    chosen: tf.Tensor,
    bias: Optional[tf.Tensor],
    keys: Optional[tf.Tensor],
) -> tf.Tensor:
    """Returns y^h_i, [B, H, L, E] in the compute dtype.

    Args:
      config: supplies the dropout rate, and Q for indices.
      query, key, value: q, [B, H, L, E], and k and v, [B, H, M, E], in the compute dtype.
      chosen: whether j is in I^h_i, bool [B, H, L, M], or I^h_i, int32 [B, H, L, S], -1 standing for no key. With
        indices, the length must be static, and memory does not grow with its square.
      bias: b_h s_ij, float32 and with the axes of `chosen`, or None.
      keys: of dropout, uint32 [B], which drop the same entries either way; None outside training.

    Example:
    >>> config, x = SmartBirdConfig(query_block_size=2), tf.random.normal([2, 3, 5, 4])
    >>> masked = attend(config, x, x, x, tf.constant([True, False, False, True, False]), None, None)
    >>> gathered = attend(config, x, x, x, tf.tile(tf.constant([[[[0, 3, -1]]]]), [2, 3, 5, 1]), None, None)
    >>> bool(tf.reduce_max(tf.abs(masked - gathered)) < 1e-6)
    True
    """
    query /= math.sqrt(query.shape[-1])
    if chosen.dtype == tf.bool:
        i, j = (tf.range(tf.shape(t)[2]) for t in (query, key))
        attention = _softmax(tf.matmul(query, key, transpose_b=True), bias, chosen)
        return tf.matmul(_drop(config, attention, keys, i, j), value)

    def read(block, shared):
        j = tf.maximum(block["chosen"], 0)
        key, value = (tf.gather(shared[name], j, batch_dims=2) for name in ("key", "value"))
        scores = tf.einsum("BHLE,BHLSE->BHLS", block["query"], key)
        attention = _softmax(scores, block.get("bias"), block["chosen"] >= 0)
        return tf.einsum("BHLS,BHLSE->BHLE", _drop(config, attention, shared.get("keys"), block["i"], j), value)

    queries = dict(query=query, chosen=chosen)
    shared = dict(key=key, value=value)
    if bias is not None:
        queries["bias"] = bias
    if keys is not None:
        shared["keys"] = keys
    return _in_blocks(config, read, queries, shared, (query.shape[1], query.shape[3]), query.dtype)


def _softmax(scores: tf.Tensor, bias: Optional[tf.Tensor], mask: tf.Tensor) -> tf.Tensor:
    """Returns a^h_ij in the dtype of the scores, exactly 0 where the mask is False; computed in float32."""
    biased = tf.cast(scores, tf.float32) if bias is None else tf.cast(scores, tf.float32) + bias
    # The product is for queries that read nothing.
    return tf.cast(tf.nn.softmax(tf.where(mask, biased, _MASKED)) * tf.cast(mask, tf.float32), scores.dtype)


def _drop(config: SmartBirdConfig, attention: tf.Tensor, keys: Optional[tf.Tensor], i, j) -> tf.Tensor:
    """Returns the map [B, H, L, S] after dropout that depends on the positions i, [L], and j, [S] or [B, H, L, S]."""
    if keys is None:
        return attention
    shape = tf.shape(attention)
    each = tf.reshape(head_keys(keys, config.num_attention_heads), [-1])

    # Every query is a row of its own, because each has other keys.
    rows = tf.tile(i * _STRIDE, tf.shape(each))[:, tf.newaxis]
    columns = j if j.shape.rank == 1 else tf.reshape(j, [-1, j.shape[-1]])
    flat = tf.reshape(attention, [-1, 1, shape[3]])
    flat = dropout(flat, config.attention_dropout_rate, tf.repeat(each, shape[2]), (rows, columns))
    return tf.reshape(flat, shape)


def _in_blocks(config: SmartBirdConfig, read: Callable, queries: dict, shared: dict, shape: tuple, dtype) -> tf.Tensor:
    """Returns [B, H, L, K] of `dtype`, where `shape` is H, K, computed for Q queries at a time.

    Args:
      config: supplies Q.
      read: from blocks of `queries`, to which "i", their positions, [Q], is added, and `shared`, makes [B, H, Q, K].
        The backward pass recomputes it, so it must not capture tensors.
      queries: tensors [B, ..., L, K].
      shared: any tensors.
    """
    rows, *_, length, _ = next(iter(queries.values())).shape
    size = min(config.query_block_size, length)
    number = -(-length // size)

    blocks = dict(i=tf.reshape(tf.range(number * size), [number, size]))
    for name, t in queries.items():
        padded = tf.pad(t, [[0, 0]] * (t.shape.rank - 2) + [[0, number * size - length], [0, 0]])
        blocks[name] = tf.stack(tf.split(padded, number, axis=-2))

    read_block = tf.recompute_grad(read)
    blocks = tf.map_fn(
        lambda block: read_block(block, shared),
        blocks,
        fn_output_signature=tf.TensorSpec([rows, shape[0], size, shape[1]], dtype),
        parallel_iterations=1,  # one block's memory at a time
    )
    # LiteRT's converter gets tf.concat of tf.unstack wrong.
    return tf.reshape(tf.transpose(blocks, [1, 2, 0, 3, 4]), [-1, shape[0], number * size, shape[1]])[:, :, :length]
