"""Shatter's attention (the equations at the top of equations.py) as a Keras layer."""

from typing import Optional

import tensorflow as tf
import tf_keras

from shatter_tf.encoders.base import as_config
from shatter_tf.encoders.shatter.blockwise import attend_in_blocks
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.equations import attend, mask_and_partition
from shatter_tf.encoders.shatter.spans import attend_to_spans
from shatter_tf.layers.dropout import random_keys
from shatter_tf.layers.masks import query_positions


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class ShatterAttention(tf_keras.layers.Layer):
    """Shatter's self-attention, whose equations are at the top of equations.py.

    Inputs, called as `layer(x, packs, maps, dropout_keys)`:
      x: [B, M, D].
      packs: document numbers, int32 [B, M]; see `attention_mask`.
      maps: the mask, bool [B, L, M], and the partition, [P, L, M], which all layers share; see `mask_and_partition`.
        L < M computes only the first L positions. Without them the layer attends in blocks of queries, or to spans,
        where the static length is beyond `config.longest_at_once`, and else makes them itself.
      dropout_keys: uint32 [B]; see `dropout.dropout`. Without them, training draws keys of its own; outside training
        they are ignored.

    Returns:
      ([B, L, D] in the compute dtype, the attention map before dropout as float32 [B, L, M], or None in blocks).

    Raises:
      ValueError: when `config` has values that no encoder can be built with.

    Example:
    >>> layer = ShatterAttention(ShatterConfig(hidden_size=8, num_parts=2))
    >>> y, attention = layer(tf.random.normal([1, 5, 8]), tf.ones([1, 5], tf.int32))
    >>> y.shape, attention.shape
    (TensorShape([1, 5, 8]), TensorShape([1, 5, 5]))
    """

    def __init__(self, config: ShatterConfig, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = as_config(config, ShatterConfig)
        width = self.config.hidden_size
        parts = self.config.num_parts
        self.query = self._dense("BLD,DK->BLK", (None, width), "K", "query")
        self.value = self._dense("BMD,DPE->BPME", (parts, None, width // parts), "PE", "value")
        # Its name keeps it out of weight decay.
        self.position_bias: Optional[tf_keras.layers.Layer] = None
        if self.config.use_position_bias:
            self.position_bias = self._dense("BLD,DP->BLP", (None, parts), "P", "position_bias")
        self.output_projection: Optional[tf_keras.layers.Layer] = None
        if self.config.use_output_projection:
            self.output_projection = self._dense("BLD,DK->BLK", (None, width), "K", "output_projection")

    def _dense(self, equation, output_shape, bias_axes, name):
        initializer = tf_keras.initializers.TruncatedNormal(stddev=self.config.initializer_range)
        return tf_keras.layers.EinsumDense(
            equation,
            output_shape,
            bias_axes=bias_axes,
            kernel_initializer=initializer,
            name=name,
            dtype=self.dtype_policy,
        )

    def call(self, x, packs, maps=None, dropout_keys=None, training=None):
        x = tf.cast(x, self.compute_dtype)
        if not training:
            dropout_keys = None
        elif dropout_keys is None:
            dropout_keys = random_keys(tf.shape(x)[0])
        if maps is None and not self.config.attends_in_blocks(packs.shape[1]):
            maps = mask_and_partition(self.config, packs, self.compute_dtype)

        queries = x if maps is None else query_positions(x, maps[0])
        position_bias = self.position_bias(queries) if self.position_bias else None
        operands = (self.config, self.query(queries), position_bias, x, self.value(x))
        if maps is None:
            in_blocks = attend_in_blocks if self.config.far_keys == "tokens" else attend_to_spans
            y, attention = in_blocks(*operands, packs, dropout_keys), None
        else:
            y, attention = attend(*operands, *maps, dropout_keys)

        if self.output_projection is not None:
            y = self.output_projection(y)
        return y, attention

    def get_config(self):
        return {**super().get_config(), "config": self.config.as_dict()}
