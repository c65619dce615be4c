"""The Shatter encoder: blocks of attention and feed-forward layers, bound to ShatterConfig.

post-norm:  h <- N(h + attention(h));       h <- N(h + feed_forward(h))
pre-norm:   h <- h + attention(N(h));       h <- h + feed_forward(N(h));       N after the last block

    N(h) = h / sqrt(mean(h^2) + 1e-6) * g         no mean subtracted and no bias added: it learns as well as layer
                                                  normalization and is cheaper (docs/log.md, docs/performance.md)
"""

from collections.abc import Callable

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams, tf_utils

from shatter_tf.encoders.base import Attention, PackedEncoder, as_config
from shatter_tf.encoders.shatter.attention import ShatterAttention
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.equations import mask_and_partition, part_totals
from shatter_tf.encoders.shatter.partition import soft_partition
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.layers.dropout import dropout, random_keys, site_keys
from shatter_tf.layers.masks import query_positions
from shatter_tf.layers.norms import rms_norm


def _recomputed(block, *args, **kwargs) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns h -> block(h, ...)[0] for training, whose backward pass recomputes the block instead of storing it."""
    return tf.recompute_grad(lambda h: block(h, *args, **kwargs, training=True)[0])


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class ShatterEncoderBlock(tf_keras.layers.Layer):
    """Attention and feed-forward with residuals and a norm before or after each.

    Inputs, called as `block(h, packs, maps, dropout_keys)`:
      h: [B, M, D].
      packs, maps, dropout_keys: as for ShatterAttention.

    Returns:
      ([B, L, D] in the compute dtype, the attention map as float32 [B, L, M], or None in blocks of queries).

    Raises:
      ValueError: when `config` has values that no encoder can be built with.

    Example:
    >>> config = ShatterConfig(hidden_size=8, num_parts=2, intermediate_size=16)
    >>> h, _ = ShatterEncoderBlock(config)(tf.random.normal([1, 5, 8]), tf.ones([1, 5], tf.int32))
    >>> h.shape
    TensorShape([1, 5, 8])
    """

    def __init__(self, config: ShatterConfig, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config = as_config(config, ShatterConfig)
        initializer = tf_keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        self.attention = ShatterAttention(config, name="attention", dtype=self.dtype_policy)
        self.attention_layer_norm = rms_norm("attention_layer_norm")
        self.intermediate = tf_keras.layers.Dense(
            config.intermediate_size,
            activation=feed_forward_activation(config.hidden_activation),
            kernel_initializer=initializer,
            name="intermediate",
            dtype=self.dtype_policy,
        )
        self.output_dense = tf_keras.layers.Dense(
            config.hidden_size,
            kernel_initializer=tf_utils.clone_initializer(initializer),
            name="output",
            dtype=self.dtype_policy,
        )
        self.output_layer_norm = rms_norm("output_layer_norm")

    def call(self, h, packs, maps=None, dropout_keys=None, training=None):
        h = tf.cast(h, self.compute_dtype)
        norm_first = self.config.norm_first
        rate = self.config.dropout_rate
        keys = [None] * 3
        if training:
            dropout_keys = random_keys(tf.shape(h)[0]) if dropout_keys is None else dropout_keys
            keys = [site_keys(dropout_keys, site) for site in range(3)]

        # Attention.
        x = self.attention_layer_norm(h) if norm_first else h
        y, attention = self.attention(x, packs, maps, keys[0])
        h = (h if maps is None else query_positions(h, maps[0])) + dropout(y, rate, keys[1])
        if not norm_first:
            h = tf.cast(self.attention_layer_norm(h), self.compute_dtype)

        # Feed-forward.
        y = self.output_dense(self.intermediate(self.output_layer_norm(h) if norm_first else h))
        h = h + dropout(y, rate, keys[2])
        if not norm_first:
            h = tf.cast(self.output_layer_norm(h), self.compute_dtype)
        return h, attention

    def get_config(self):
        return {**super().get_config(), "config": self.config.as_dict()}


@hyperparams.bind(ShatterConfig)
@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class ShatterEncoder(PackedEncoder):
    """Token ids to contextual vectors: embeddings without positions, then blocks that share one partition.

    Inputs, outputs and arguments are those of `PackedEncoder`; it also returns `attention_scores`, a list of float32
    [B, 1, L, L], one for each block, when `config.return_attention_scores`. With `config.output_range` the last block
    computes only its first positions. Model Garden's tasks take it through
    `EncoderConfig(type="any", any=ShatterConfig(...))`.

    Example:
    >>> encoder = ShatterEncoder(
    ...     ShatterConfig(vocab_size=100, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=16)
    ... )
    >>> ids = tf.constant([[2, 17, 42, 3]])
    >>> encoder(dict(input_word_ids=ids, input_mask=tf.ones_like(ids)))["sequence_output"].shape
    TensorShape([1, 4, 8])
    """

    config_class = ShatterConfig

    def add_layers(self):
        config = self.config
        self.blocks = [
            ShatterEncoderBlock(config, name=f"block_{i}", dtype=self.dtype_policy) for i in range(config.num_layers)
        ]
        self.final_layer_norm = rms_norm("final_layer_norm") if config.norm_first else None

    def encode(self, h, packs, keys, training):
        if packs.shape[1] is None and self.config.far_keys != "tokens":
            return self._encode_any_length(h, packs, keys, training)
        return self._encode(h, packs, keys, training)

    def _encode_any_length(self, h, packs, keys, training):
        """Encodes rows whose length is not known when the graph is made: as if they were padded to the longest."""
        config = self.config
        length = tf.shape(packs)[1]

        def padded(t):
            t = tf.pad(t, [[0, 0], [0, config.max_sequence_length - length], *[[0, 0]] * (t.shape.rank - 2)])
            return tf.ensure_shape(t, [t.shape[0], config.max_sequence_length, *t.shape[2:]])

        def in_blocks():
            h_, outputs, more = self._encode(padded(h), padded(packs), keys, training)
            return h_[:, :length], [output[:, :length] for output in outputs], more

        return tf.cond(length <= config.longest_at_once, lambda: self._encode(h, packs, keys, training), in_blocks)

    def _encode(self, h, packs, keys, training):
        config = self.config
        last = self.blocks[-1]
        maps = None
        in_blocks = config.attends_in_blocks(packs.shape[1])
        if not in_blocks:
            maps = mask_and_partition(config, packs, self.compute_dtype)
        in_spans = in_blocks and config.far_keys != "tokens"

        outputs = []
        attention_scores = []
        for i, block in enumerate(self.blocks):
            if block is last and config.output_range is not None and not in_spans:
                maps = mask_and_partition(config, packs, self.compute_dtype, config.output_range)
            block_keys = None if keys is None else site_keys(keys, i)

            if training and config.recompute_blocks and not config.return_attention_scores:
                h = _recomputed(block, packs, maps, block_keys)(h)
            else:
                h, attention = block(h, packs, maps, block_keys)
            if block is last and in_spans:
                h = h[:, : config.output_range]
            outputs.append(h)
            if config.return_attention_scores:
                attention_scores.append(attention[:, tf.newaxis])

        if self.final_layer_norm is not None:
            h = tf.cast(self.final_layer_norm(h), self.compute_dtype)
            outputs[-1] = h
        return h, outputs, dict(attention_scores=attention_scores) if attention_scores else {}

    def parts_at(self, r):
        return soft_partition(self.config, r).numpy()

    def attention_to(self, inputs):
        packs = inputs["input_mask"]
        mask, partition = mask_and_partition(self.config, packs, tf.float32)
        h = self.embed(inputs, None)
        maps = []
        for block in self.blocks:
            h, attention = block(h, packs, (mask, partition))
            maps.append(attention)

        if self.config.normalizer == "part_row_sum":  # only shares of a row count then, and layers can be compared
            maps = [tf.math.divide_no_nan(a, tf.reduce_sum(a, -1, keepdims=True)) for a in maps]
        return Attention([a[0].numpy() for a in maps], [part_totals(a, partition)[0].numpy() for a in maps])
