"""The BP-Transformer encoder: tokens read near tokens one by one and far ones in ever longer spans.

    token i   a_i = softmax over the nodes u that i reads of q_i . (k_u + r_type(i, u)) / sqrt(K)
    span u    a_u = softmax over the tokens i of u of q_u . k_i / sqrt(K)
    both      o = concat over heads of (sum a v) Wo;    h <- N(h + o);    h <- N(h + W2 relu(W1 h + b1) + b2)

Tokens and spans have the same weights, and N is layer normalization. Spans begin at zero: the first block's queries of
spans are zero, and spans become means. A relation vector of theirs, the same for all their tokens, would cancel.

graph.py says which nodes and types there are, and has the letters; D is the model width, M = L + all spans' states.
"""

import math
from typing import Optional

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from shatter_tf.encoders.base import PackedEncoder, as_config
from shatter_tf.encoders.bpt import graph
from shatter_tf.encoders.bpt.config import BptConfig
from shatter_tf.encoders.bpt.graph import axis_size, grouped, ungrouped
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.layers.dropout import dropout, random_keys, site_keys
from shatter_tf.layers.norms import layer_norm


def read_by_tokens(
    config: BptConfig,
    query: tf.Tensor,
    nodes: dict[int, tf.Tensor],
    relations: tf.Tensor,
    maps: graph.Maps,
    dropout_keys: Optional[tf.Tensor],
) -> tf.Tensor:
    """Returns sum_u a_iu v_u for all tokens i, [B, H, L, K].

    Args:
      config: the bands, and the dropout rate.
      query: q / sqrt(K), [B, H, L, K].
      nodes: k and v by level, [B, H, n S, 2K].
      relations: r of every type, [types, K].
      maps: which nodes are read, and their types.
      dropout_keys: uint32 [B] or None.
    """
    *bands, _ = graph.bands(config, query.shape[2])
    scores, values = [], []
    for band, types in zip(bands, maps.types, strict=True):
        key, value = tf.split(graph.windows(config, band, nodes), 2, axis=-1)
        groups = grouped(query, band.group)
        r = tf.tensordot(tf.one_hot(types, relations.shape[0], dtype=relations.dtype), relations, 1)
        score = tf.matmul(groups, key, transpose_b=True) + tf.einsum("BHNGK,GCK->BHNGC", groups, r)
        scores.append(ungrouped(score, axis_size(query, 2)))
        values.append(value)

    attention = _attention(
        tf.concat(scores, axis=-1), tf.concat(maps.tokens, axis=-1), config.attention_dropout_rate, dropout_keys
    )
    attention = tf.split(attention, [band.columns for band in bands], axis=-1)
    y = [tf.matmul(grouped(a, band.group), v) for a, band, v in zip(attention, bands, values, strict=True)]
    return tf.add_n([ungrouped(t, axis_size(query, 2)) for t in y])


def read_by_spans(
    config: BptConfig,
    queries: dict[int, tf.Tensor],
    tokens: tf.Tensor,
    maps: graph.Maps,
    dropout_keys: Optional[tf.Tensor],
) -> list[tf.Tensor]:
    """Returns sum_i a_ui v_i for the spans u of every level, [B, H, n S, K].

    Args:
      config: the bands, and the dropout rate.
      queries: q / sqrt(K) by level, [B, H, n S, K].
      tokens: k and v, [B, H, L, 2K].
      maps: which tokens are read.
      dropout_keys: uint32 [B] or None.
    """
    found = []
    for site, (band, mask) in enumerate(zip(graph.bands(config, tokens.shape[2]), maps.spans, strict=True)):
        key, value = tf.split(grouped(tokens, band.group), 2, axis=-1)
        scores = tf.matmul(graph.spans(band, queries), key, transpose_b=True)
        keys = None if dropout_keys is None else site_keys(dropout_keys, site)
        y = tf.matmul(_attention(scores, mask, config.attention_dropout_rate, keys), value)

        for level, share in band.shares:
            found.append(ungrouped(y[:, :, :, :share], axis_size(queries[level.height], 2)))
            y = y[:, :, :, share:]
    return found


def _attention(scores: tf.Tensor, mask: tf.Tensor, rate: float, dropout_keys: Optional[tf.Tensor]) -> tf.Tensor:
    """Returns the softmax of [B, ..., C], after dropout; masked entries and rows are exactly zero."""
    attention = tf.nn.softmax(tf.where(mask, tf.cast(scores, tf.float32), tf.float32.min))
    attention = tf.cast(tf.where(mask, attention, 0.0), scores.dtype)
    if dropout_keys is None:
        return attention
    shape = tf.shape(attention)
    rows = tf.reshape(attention, [shape[0], -1, attention.shape[-1]])
    return tf.reshape(dropout(rows, rate, dropout_keys), shape)


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class BptBlock(tf_keras.layers.Layer):
    """Attention and feed-forward of tokens and spans, each with a residual and a norm after it.

    Inputs, called as `block(h, packs, maps, dropout_keys)`:
      h: [B, M, D]: tokens, then spans, level by level, node by node and state by state; see `graph.levels`.
      packs: document numbers, int32 [B, L]; 0 for padding.
      maps: what all blocks share; see `graph.make_maps`. Without them the block makes its own.
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
        kwargs = dict(kernel_initializer="glorot_uniform", name=name, dtype=self.dtype_policy)
        return tf_keras.layers.Dense(units, **kwargs, **choices)

    def build(self, input_shape):
        config = self.config
        types = (config.clip_level + 1) * (2 * config.neighbors + 1)
        shape = [types, config.hidden_size // config.num_attention_heads]
        self.relations = self.add_weight("relations", shape, initializer="glorot_uniform")
        super().build(input_shape)

    def call(self, h, packs, maps=None, dropout_keys=None, training=None):
        h = tf.cast(h, self.compute_dtype)
        rate = self.config.dropout_rate
        keys = [None] * 4
        if training:
            dropout_keys = random_keys(tf.shape(h)[0]) if dropout_keys is None else dropout_keys
            keys = [site_keys(dropout_keys, site) for site in range(4)]

        # Attention.
        maps = graph.make_maps(self.config, packs) if maps is None else maps
        y = self.output_projection(self._read(h, packs, maps, keys[:2]))
        h = tf.cast(self.attention_layer_norm(h + dropout(y, rate, keys[2])), self.compute_dtype)

        # Feed-forward.
        y = self.output_dense(self.intermediate(h))
        return tf.cast(self.output_layer_norm(h + dropout(y, rate, keys[3])), self.compute_dtype)

    def _read(self, h, packs, maps, keys):
        """Returns what tokens and spans read, [B, M, D]."""
        config = self.config
        heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        heights = [level.height for level in graph.levels(config, packs.shape[1])]
        sizes = graph.numbers_of_states(config, packs)

        def by_level(*projections):
            x = [tf.reshape(t, [-1, sum(sizes), heads, width]) for t in projections]
            x = tf.transpose(tf.concat(x, axis=-1), [0, 2, 1, 3])
            return dict(zip(heights, tf.split(x, sizes, axis=2), strict=True))

        queries = by_level(self.query(h) / math.sqrt(width))
        nodes = by_level(self.key(h), self.value(h))
        relations = tf.cast(self.relations, h.dtype)
        y = [read_by_tokens(config, queries[0], nodes, relations, maps, keys[0])]
        y += read_by_spans(config, queries, nodes[0], maps, keys[1])
        return tf.reshape(tf.transpose(tf.concat(y, axis=2), [0, 2, 1, 3]), [-1, sum(sizes), heads * width])

    def get_config(self):
        return {**super().get_config(), "config": self.config.as_dict()}


@hyperparams.bind(BptConfig)
@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class BptEncoder(PackedEncoder):
    """Token ids to contextual vectors: embeddings without positions, then blocks of tokens and spans.

    Inputs, outputs and arguments are those of `PackedEncoder`; documents of a row must be numbered in order. It also
    returns `root_output`, [B, D]: the state of the span of all tokens, for a row's first document; zeros for
    rows without tokens.

    Example:
    >>> encoder = BptEncoder(
    ...     BptConfig(vocab_size=100, hidden_size=8, num_layers=1, num_attention_heads=2, intermediate_size=16)
    ... )
    >>> ids = tf.constant([[2, 17, 42, 3]])
    >>> encoder(dict(input_word_ids=ids, input_mask=tf.ones_like(ids)))["sequence_output"].shape
    TensorShape([1, 4, 8])

    Source: Ye et al. 2019, arXiv 1911.04070. Their code has dropout of embeddings before the norm, here it is after it,
    as in all our encoders. It can also restrict tokens to what is on their left.
    """

    config_class = BptConfig
    norm = staticmethod(layer_norm)

    def add_layers(self):
        config = self.config
        self.blocks = [BptBlock(config, name=f"block_{i}", dtype=self.dtype_policy) for i in range(config.num_layers)]

    def encode(self, h, packs, keys, training):
        length = axis_size(packs, 1)
        _, *of_spans = graph.numbers_of_states(self.config, packs)
        h = tf.pad(h, [[0, 0], [0, sum(of_spans)], [0, 0]])  # spans begin at zero
        maps = graph.make_maps(self.config, packs)

        outputs = []
        for i, block in enumerate(self.blocks):
            h = block(h, packs, maps, None if keys is None else site_keys(keys, i), training=training)
            outputs.append(h[:, :length])

        root = h[:, -self.config.span_states]
        some = tf.reduce_any(packs > 0, axis=1, keepdims=True)
        return outputs[-1], outputs, dict(root_output=tf.where(some, root, tf.zeros_like(root)))

    def pool(self, h, packs, more):
        return more["root_output"] if self.config.pooling == "root" else super().pool(h, packs, more)
