"""Single-headed attention whose values depend on a soft partition of relative positions.

    s_ij = (x_i Wq + bq) . x_j / sqrt(D) + sum_p f_p(j - i) (x_i U + u)_p     scores: no key projection
    a_ij = m_ij sigmoid(s_ij - 5)                                            one map, of other tokens: m_ii = 0
    n_ip = sum_j f_p(j - i) a_ij + 0.01 sum_j a_ij                           how much of part p is attended to
    y_ip = (1 / n_ip) sum_j f_p(j - i) a_ij (x_j Wv_p + bv_p)                part p reads with its own values
    y_i  = concat_p(y_ip) [Wo + bo]                                          the projection is optional

Letters, in formulas, shapes and einsums alike:
    B batch, L query position i, M key position j, D model width, P parts p, E = D / P part width.
"""

import math
from typing import Optional

import tensorflow as tf

from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.partition import position_partition
from shatter_tf.layers.dropout import dropout
from shatter_tf.layers.masks import same_document

# Keeps the normalizer of a fully masked row finite. Rows whose entries are all this small stay smaller than others.
EPSILON = 1e-6

# The same for a part, large enough for its reciprocal to fit in float16.
PART_EPSILON = 3e-5

# A part that gets less than this share of a row's attention fades out.
SMALL_SHARE = 1e-2


def attention_mask(packs: tf.Tensor, num_queries: Optional[int] = None) -> tf.Tensor:
    """Returns m_ij: whether j is another token of i's document, for the first queries i and every j.

    Documents packed into one row are numbered 1, 2, 3, …; 0 is padding. A plain 0/1 mask is the special case of one
    document. Padding attends to nothing and nothing attends to it. Nor does a token attend to itself: the residual
    connection provides it already, and parts near 0 are then free for its neighbors.

    Args:
      packs: document numbers, integer [B, M].
      num_queries: L; None takes all.

    Returns:
      bool [B, L, M].

    Example:
    >>> attention_mask(tf.constant([[1, 1, 2, 0]]))[0].numpy().astype(int).tolist()
    [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]

    Source: that a token does not attend to itself is ours; docs/log.md has the measurement behind it.
    """
    queries = packs if num_queries is None else packs[:, :num_queries]
    i, j = (tf.range(t.shape[1] or tf.shape(t)[1]) for t in (queries, packs))
    return tf.logical_and(same_document(queries, packs), i[:, tf.newaxis] != j)


def mask_and_partition(
    config: ShatterConfig, packs: tf.Tensor, dtype, num_queries: Optional[int] = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns m_ij, bool [B, L, M], and f_p(j - i), [P, L, M] in `dtype`: what all layers of an encoder share.

    Args:
      config: supplies the partition.
      packs, num_queries: as for `attention_mask`.
      dtype: the compute dtype of the layers, so that none casts the partition again.
    """
    mask = attention_mask(packs, num_queries)
    queries, keys = (mask.shape[axis] or tf.shape(mask)[axis] for axis in (1, 2))
    return mask, tf.cast(position_partition(config, keys, queries), dtype)


def attention_scores(query: tf.Tensor, x: tf.Tensor, from_positions: Optional[tf.Tensor]) -> tf.Tensor:
    """Returns s_ij = q_i . x_j / sqrt(D) + sum_p f_p(j - i) b_ip as float32 [B, L, M].

    Args, all in the compute dtype, in which the sum is also computed:
      query: q, [B, L, D].
      x: the layer's input, [B, M, D].
      from_positions: the second term, [B, L, M], or None.

    Source: Shatter drops the key projection because, with one head, the query and key matrices are one bilinear form.
    """
    scores = tf.matmul(query / math.sqrt(x.shape[-1]), x, transpose_b=True)
    if from_positions is not None:
        scores += from_positions
    return tf.cast(scores, tf.float32)


def attention_map(config: ShatterConfig, scores: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Returns a_ij as float32 [B, L, M], divided by the row's n_i if all parts share one.

    Masked entries and rows are exactly zero.

    Args:
      config: supplies the sigmoid's bias and the normalizer: "none" and "part_row_sum" (n_i = 1; for the latter see
        `normalize_parts`), "row_sum" (n_i = sum_j a_ij) or "unit_length" (n_i = sqrt(sum_j a_ij^2)).
      scores: s, float32 [B, L, M].
      mask: m, bool [B, L, M]; or how many tokens each key stands for, float32.

    Source: the sigmoid is the paper's. Its bias is ours: far below its midpoint it is nearly an exponential, which a
    normalizer turns into a softmax, but it needs no row maximum and cannot overflow. The normalizers are ours, too.
    """
    attention = tf.cast(mask, tf.float32) * tf.sigmoid(scores - config.sigmoid_bias)
    if config.normalizer == "row_sum":
        attention /= tf.reduce_sum(attention, axis=-1, keepdims=True) + EPSILON
    elif config.normalizer == "unit_length":
        attention *= tf.math.rsqrt(tf.reduce_sum(tf.square(attention), axis=-1, keepdims=True) + EPSILON)
    return attention


@tf.custom_gradient
def part_values(attention: tf.Tensor, partition: tf.Tensor, value: tf.Tensor):
    """Returns concat_p sum_j f_p(j - i) a_ij v_jp as [B, L, D].

    Args, in the compute dtype, like the result:
      attention: a, [B, L, M].
      partition: f, [P, L, M]; it has no gradient.
      value: v, [B, P, M, E].
    """
    batch_size = tf.shape(attention)[0]
    length = tf.shape(attention)[1]
    parts, width = value.shape[1], value.shape[3]

    def gradient(dy):
        dy = tf.reshape(dy, [batch_size, length, parts, width])
        d_attention = tf.reduce_sum(tf.einsum("BLPE,BPME->BPLM", dy, value) * partition, axis=1)
        # The products of the forward pass, recomputed. If a compiler saw that they are the same, it would keep them
        # until now, [B, P, L, M], P times the memory of the map; adding a zero that it cannot recognize prevents that.
        zero = 0.0 * tf.reduce_sum(dy[:1, :1, 0, 0])  # also for a batch of no rows
        products = (attention + zero)[:, tf.newaxis] * partition
        return d_attention, None, tf.einsum("BPLM,BLPE->BPME", products, dy)

    y = tf.einsum("BPLM,BPME->BLPE", attention[:, tf.newaxis] * partition, value)
    return tf.reshape(y, [batch_size, length, parts * width]), gradient


def part_totals(attention: tf.Tensor, partition: tf.Tensor) -> tf.Tensor:
    """Returns sum_j f_p(j - i) a_ij, [B, L, P]; arguments as for `part_values`."""
    return tf.einsum("BLM,PLM->BLP", attention, partition)


def normalize_parts(y: tf.Tensor, totals: tf.Tensor) -> tf.Tensor:
    """Returns y_ip / n_ip with n_ip = t_ip + 0.01 sum_q t_iq, t_ip = sum_j f_p(j - i) a_ij: each part's own normalizer.

    Args, in the compute dtype, like the result:
      y: [B, L, D], part after part.
      totals: t, [B, L, P], see `part_totals`.

    Source: ours. Near parts hold a token or two, far ones dozens: divided by one n_i, what is read from the near
    ones would start a tenth as large as what is read from the far ones. A part that gets less than a hundredth of the
    row's attention fades out; using its share instead of its total learns better (docs/log.md).
    """
    totals = tf.cast(totals, tf.float32)
    totals += SMALL_SHARE * tf.reduce_sum(totals, axis=-1, keepdims=True) + PART_EPSILON
    # A list, because LiteRT's converter gets the reciprocal of a product plus a number wrong.
    scale = tf.cast([1.0] / totals, y.dtype)
    # Repeated over the width of a part by a matrix product: accelerators are slow at splitting an axis.
    parts = totals.shape[-1]
    width = y.shape[-1]
    return y * tf.matmul(scale, tf.repeat(tf.eye(parts, dtype=y.dtype), width // parts, axis=1))


def attend(
    config: ShatterConfig,
    query: tf.Tensor,
    position_bias: Optional[tf.Tensor],
    x: tf.Tensor,
    value: tf.Tensor,
    mask: tf.Tensor,
    partition: tf.Tensor,
    dropout_keys: Optional[tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what is read, y, [B, L, D] in the compute dtype, and the attention map, float32 [B, L, M].

    Args:
      config: supplies the sigmoid's bias, the normalizer and the dropout rate.
      query, position_bias: q, [B, L, D], and b, [B, L, P] or None; see `attention_scores`.
      x, value: what is attended to, [B, M, D], and its values, [B, P, M, E].
      mask, partition: m, bool [B, L, M], and f, [P, L, M] of any float dtype.
      dropout_keys: see `dropout.dropout`. A part's normalizer counts what is left, so its mean is over the tokens
        that were not dropped.
    """
    y, totals, attention = read_parts(config, query, position_bias, x, value, mask, partition, dropout_keys)
    return normalize_parts(y, totals) if config.normalizer == "part_row_sum" else y, attention


def read_parts(
    config: ShatterConfig,
    query: tf.Tensor,
    position_bias: Optional[tf.Tensor],
    x: tf.Tensor,
    value: tf.Tensor,
    mask: tf.Tensor,
    partition: tf.Tensor,
    dropout_keys: Optional[tf.Tensor],
    places: Optional[tuple[tf.Tensor, tf.Tensor]] = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns sum_j f_p(j - i) a_ij v_jp, [B, L, D], sum_j f_p(j - i) a_ij, [B, L, P], and the map; see `attend`."""
    partition = tf.cast(partition, x.dtype)
    from_positions = tf.einsum("BLP,PLM->BLM", position_bias, partition) if position_bias is not None else None
    attention = attention_map(config, attention_scores(query, x, from_positions), mask)
    kept = dropout(tf.cast(attention, x.dtype), config.attention_dropout_rate, dropout_keys, places)
    return part_values(kept, partition, value), part_totals(kept, partition), attention
