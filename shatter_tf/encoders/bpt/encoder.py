"""The BP-Transformer encoder: tokens read near tokens one by one and far ones in ever larger spans.

    token i   o_i = concat_h(sum_u a_iu v_u) Wo      a_i = softmax over the nodes u that i reads of q_i . (k_u + r_type(i,u)) / sqrt(K)
    span u    o_u = concat_h(sum_i a_ui v_i) Wo      a_u = softmax over u's tokens of q_u . k_i / sqrt(K)
    both      h <- N(h + o);  h <- N(h + W2 relu(W1 h + b1) + b2)        with the same weights; N is layer normalization

Spans begin at zero: in the first block their queries are zero, and they become means of their tokens' values. They have no
relation vectors: one that all tokens of a span have in common cancels in the softmax. What nodes there are, and which
reads which, is in graph.py, which also has the letters; D is the model width and M the number of all nodes' states.
"""

import math
from typing import Optional

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from shatter_tf.encoders.base import PackedEncoder, as_config
from shatter_tf.encoders.bpt.config import BptConfig
from shatter_tf.encoders.bpt.graph import (
    axis_size,
    bands,
    grouped,
    levels,
    make_masks,
    numbers_of_states,
    relation_types,
    span_groups,
    ungrouped,
    windows,
)
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.layers.dropout import dropout, random_keys, site_keys
from shatter_tf.layers.norms import layer_norm


def read_tokens(
    config: BptConfig,
    query: tf.Tensor,
    nodes: dict[int, tf.Tensor],
    relations: tf.Tensor,
    mask: tf.Tensor,
    dropout_keys: Optional[tf.Tensor],
) -> tf.Tensor:
    """Returns sum_u a_iu v_u for all tokens i, [B, H, L, K].

    Args:
      config: the levels, and the dropout rate.
      query: q / sqrt(K) of tokens, [B, H, L, K].
      nodes: by level, k and v, [B, H, n S, 2K].
      relations: r of all types, [types, K].
      mask: see `make_masks`.
      dropout_keys: uint32 [B] or None.
    """
    length = axis_size(query, 2)
    read = [band for band in bands(config, query.shape[2]) if band.columns]
    scores, values = [], []
    for band in read:
        groups = grouped(query, band.group)
        key, value = tf.split(windows(config, band, nodes), 2, axis=-1)
        # A product in place of a look-up has a dense gradient.
        chosen = tf.one_hot(relation_types(config, band), relations.shape[0], dtype=relations.dtype)
        r = tf.einsum("GCT,TK->GCK", chosen, relations)
        score = tf.matmul(groups, key, transpose_b=True) + tf.einsum("BHNGK,GCK->BHNGC", groups, r)
        scores.append(ungrouped(score, length))
        values.append(value)

    attention = _attention(tf.concat(scores, axis=-1), mask, config.attention_dropout_rate, dropout_keys)
    by_band = tf.split(attention, [band.columns for band in read], axis=-1)
    y = [tf.matmul(grouped(a, band.group), value) for band, a, value in zip(read, by_band, values, strict=True)]
    return tf.add_n([ungrouped(t, length) for t in y])


def read_spans(
    config: BptConfig,
    queries: dict[int, tf.Tensor],
    tokens: tf.Tensor,
    masks: list[tf.Tensor],
    dropout_keys: Optional[tf.Tensor],
) -> list[tf.Tensor]:
    """Returns sum_i a_ui v_i for the spans u of every level, [B, H, n S, K]."""
    read = []
    having_spans = [band for band in bands(config, tokens.shape[2]) if band.spans]
    for i, (band, mask) in enumerate(zip(having_spans, masks, strict=True)):
        key, value = tf.split(grouped(tokens, band.group), 2, axis=-1)
        scores = tf.matmul(span_groups(band, queries), key, transpose_b=True)
        site = None if dropout_keys is None else site_keys(dropout_keys, i)
        y = tf.matmul(_attention(scores, mask, config.attention_dropout_rate, site), value)

        y = tf.split(y, [share for _, share in band.spans], axis=3)
        read += [ungrouped(t, axis_size(queries[level.height], 2)) for t, (level, _) in zip(y, band.spans, strict=True)]
    return read


def _attention(scores: tf.Tensor, mask: tf.Tensor, rate: float, dropout_keys: Optional[tf.Tensor]) -> tf.Tensor:
    """Returns the softmax over the last axis of [B, ..., K], after dropout; masked entries and rows are exactly 0."""
    masked = tf.where(mask, tf.cast(scores, tf.float32), tf.float32.min)
    attention = tf.cast(tf.where(mask, tf.nn.softmax(masked), 0.0), scores.dtype)
    if dropout_keys is None:
        return attention

    shape = tf.shape(attention)
    rows = tf.reshape(attention, [shape[0], -1, attention.shape[-1]])
    return tf.reshape(dropout(rows, rate, dropout_keys), shape)


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class BptBlock(tf_keras.layers.Layer):
    """Attention and feed-forward of all nodes, with residuals and a norm after each; the equations are at the top.

    Inputs, called as `block(h, packs, masks, dropout_keys)`:
      h: [B, M, D]: tokens, then the spans level by level, node by node and state by state; see `levels`.
      packs: document numbers, int32 [B, L]; 0 for padding.
      masks: what blocks share; see `make_masks`. Without them the block makes its own.
      dropout_keys: uint32 [B]; see `dropout.dropout`. Without them, training draws keys of its own; outside training
        they are ignored.

    Returns:
      [B, M, D] in the compute dtype.

    Raises:
      ValueError: when `config` has values that no encoder can be built with.

    Example:
    >>> block = BptBlock(BptConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16, many_documents=False))
    >>> block(tf.random.normal([1, 5 + 3 + 1, 8]), tf.ones([1, 5], tf.int32)).shape
    TensorShape([1, 9, 8])
    """

    def __init__(self, config: BptConfig, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config = as_config(config, BptConfig)
        width = config.hidden_size
        self.query = self._dense(width, "query", use_bias=False)
        self.key = self._dense(width, "key", use_bias=False)
        self.value = self._dense(width, "value", use_bias=False)
        self.output_projection = self._dense(width, "output_projection", use_bias=False)
        self.attention_layer_norm = layer_norm("attention_layer_norm")

        activation = feed_forward_activation(config.hidden_activation)
        self.intermediate = self._dense(config.intermediate_size, "intermediate", activation=activation)
        self.output_dense = self._dense(width, "output")
        self.output_layer_norm = layer_norm("output_layer_norm")

    def _dense(self, units, name, **choices):
        choices.update(kernel_initializer="glorot_uniform", name=name, dtype=self.dtype_policy)
        return tf_keras.layers.Dense(units, **choices)

    def build(self, input_shape):
        config = self.config
        shape = [(config.clip_level + 1) * (2 * config.neighbors + 1), config.hidden_size // config.num_attention_heads]
        self.relations = self.add_weight("relations", shape, initializer="glorot_uniform")
        super().build(input_shape)

    def call(self, h, packs, masks=None, dropout_keys=None, training=None):
        h = tf.cast(h, self.compute_dtype)
        rate = self.config.dropout_rate
        masks = make_masks(self.config, packs) if masks is None else masks
        keys = [None] * 4
        if training:
            dropout_keys = random_keys(tf.shape(h)[0]) if dropout_keys is None else dropout_keys
            keys = [site_keys(dropout_keys, site) for site in range(4)]

        y = self.output_projection(self._attend(h, packs, masks, keys[:2]))
        h = tf.cast(self.attention_layer_norm(h + dropout(y, rate, keys[2])), self.compute_dtype)

        y = self.output_dense(self.intermediate(h))
        return tf.cast(self.output_layer_norm(h + dropout(y, rate, keys[3])), self.compute_dtype)

    def _attend(self, h, packs, masks, keys):
        """Returns what all nodes read, [B, M, D]."""
        config, width = self.config, self.config.hidden_size
        heads = config.num_attention_heads
        heights = [level.height for level in levels(config, packs.shape[1])]
        sizes = numbers_of_states(config, packs)

        def by_level(*projections):
            x = [tf.reshape(project(h), [-1, sum(sizes), heads, width // heads]) for project in projections]
            x = tf.transpose(tf.concat(x, axis=-1), [0, 2, 1, 3])
            return dict(zip(heights, tf.split(x, sizes, axis=2), strict=True))

        queries = by_level(lambda h: self.query(h) / math.sqrt(width // heads))
        nodes = by_level(self.key, self.value)
        relations = tf.cast(self.relations, h.dtype)
        y = [read_tokens(config, queries[0], nodes, relations, masks[0], keys[0])]
        y += read_spans(config, queries, nodes[0], masks[1], keys[1])
        return tf.reshape(tf.transpose(tf.concat(y, axis=2), [0, 2, 1, 3]), [-1, sum(sizes), width])

    def get_config(self):
        return {**super().get_config(), "config": self.config.as_dict()}


@hyperparams.bind(BptConfig)
@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class BptEncoder(PackedEncoder):
    """Token ids to contextual vectors: embeddings without positions, then blocks over the tokens and their spans.

    Inputs, outputs and arguments are those of `PackedEncoder`; documents of a row must be numbered in order. It also
    returns `root_output`, [B, D]: the state of the span of all tokens, of the first document if there are several.

    Example:
    >>> encoder = BptEncoder(
    ...     BptConfig(vocab_size=100, hidden_size=8, num_layers=1, num_attention_heads=2, intermediate_size=16)
    ... )
    >>> ids = tf.constant([[2, 17, 42, 3]])
    >>> encoder(dict(input_word_ids=ids, input_mask=tf.ones_like(ids)))["sequence_output"].shape
    TensorShape([1, 4, 8])

    Source: Ye et al. 2019, arXiv 1911.04070.
    """

    config_class = BptConfig
    norm = staticmethod(layer_norm)

    def add_layers(self):
        config = self.config
        self.blocks = [BptBlock(config, name=f"block_{i}", dtype=self.dtype_policy) for i in range(config.num_layers)]

    def encode(self, h, packs, keys, training):
        length = axis_size(packs, 1)
        masks = make_masks(self.config, packs)
        _, *of_spans = numbers_of_states(self.config, packs)
        h = tf.pad(h, [[0, 0], [0, sum(of_spans)], [0, 0]])  # spans begin at zero

        outputs = []
        for i, block in enumerate(self.blocks):
            h = block(h, packs, masks, None if keys is None else site_keys(keys, i), training=training)
            outputs.append(h[:, :length])

        root = h[:, -self.config.span_states]
        some = tf.reduce_any(packs > 0, axis=1, keepdims=True)
        return outputs[-1], outputs, dict(root_output=tf.where(some, root, tf.zeros_like(root)))

    def pool(self, h, packs, more):
        return more["root_output"] if self.config.pooling == "root" else super().pool(h, packs, more)
