"""The Smart Bird encoder: BERT with sparse attention, whose equations are at the top of sketch.py.

h <- N(h + attention(h));       h <- N(h + feed_forward(h));       N is layer normalization
"""

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams
from official.nlp.modeling import layers

from shatter_tf.encoders.base import PackedEncoder, as_config
from shatter_tf.encoders.smart_bird.config import SmartBirdConfig
from shatter_tf.encoders.smart_bird.sketch import attend, sampled_indices, sampled_mask
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.layers.dropout import dropout, random_keys, site_keys
from shatter_tf.layers.norms import layer_norm


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class SmartBirdBlock(tf_keras.layers.Layer):
    """BERT's block, in which each head reads only the keys that were sampled for it.

    Inputs, called as `block(h, chosen, scores, dropout_keys)`:
      h: [B, L, D].
      chosen, scores: the keys that are read and the sketch's scores, from `sampled_mask` or `sampled_indices`.
      dropout_keys: uint32 [B]; see `dropout.dropout`. Without them, training draws keys of its own; outside training
        they are ignored.

    Returns:
      [B, L, D] in the compute dtype.

    Raises:
      ValueError: when `config` has values that no encoder can be built with.

    Example:
    >>> block = SmartBirdBlock(SmartBirdConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16))
    >>> block(tf.random.normal([1, 5, 8]), tf.ones([1, 2, 5, 5], tf.bool), tf.zeros([1, 1, 5, 5])).shape
    TensorShape([1, 5, 8])
    """

    def __init__(self, config: SmartBirdConfig, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config = as_config(config, SmartBirdConfig)
        width = config.hidden_size
        inner = config.intermediate_size
        heads = config.num_attention_heads

        self.query = self._dense("BLD,DHE->BHLE", (heads, None, width // heads), "HE", "query")
        self.key = self._dense("BLD,DHE->BHLE", (heads, None, width // heads), "HE", "key")
        self.value = self._dense("BLD,DHE->BHLE", (heads, None, width // heads), "HE", "value")
        self.attention_output = self._dense("BHLE,HED->BLD", (None, width), "D", "attention_output")
        self.attention_layer_norm = layer_norm("attention_layer_norm")

        self.activation = feed_forward_activation(config.hidden_activation)
        self.intermediate = self._dense("BLD,DF->BLF", (None, inner), "F", "intermediate")
        self.output_dense = self._dense("BLF,FD->BLD", (None, width), "D", "output")
        self.output_layer_norm = layer_norm("output_layer_norm")

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

    def build(self, input_shape):
        self.sketch_weight = None
        if self.config.sketch != "nearest":
            # b_h; "bias" in its name keeps it out of weight decay, which would draw it from 1 to 0.
            self.sketch_weight = self.add_weight(
                "sketch_bias_weight", [self.config.num_attention_heads], tf.float32, "ones", experimental_autocast=False
            )
        super().build(input_shape)

    def call(self, h, chosen, scores=None, dropout_keys=None, training=None):
        h = tf.cast(h, self.compute_dtype)
        keys = [None] * 3
        if training:
            dropout_keys = random_keys(tf.shape(h)[0]) if dropout_keys is None else dropout_keys
            keys = [site_keys(dropout_keys, site) for site in range(3)]

        # Attention.
        bias = None if self.sketch_weight is None else self.sketch_weight[:, tf.newaxis, tf.newaxis] * scores
        y = attend(self.config, self.query(h), self.key(h), self.value(h), chosen, bias, keys[0])
        h += dropout(self.attention_output(y), self.config.dropout_rate, keys[1])
        h = tf.cast(self.attention_layer_norm(h), self.compute_dtype)

        # Feed-forward.
        y = self.output_dense(self.activation(self.intermediate(h)))
        h += dropout(y, self.config.dropout_rate, keys[2])
        return tf.cast(self.output_layer_norm(h), self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "config": self.config.as_dict()}


@hyperparams.bind(SmartBirdConfig)
@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class SmartBirdEncoder(PackedEncoder):
    """Token ids to contextual vectors: BERT's embeddings, a sketch that samples keys, and blocks that read them.

    Inputs, outputs and arguments are those of `PackedEncoder`. Outside training the noise is a constant: the same text
    always reads the same keys. Inputs of unknown length are masked, at any length; see `config.dense_up_to`.

    Example:
    >>> encoder = SmartBirdEncoder(
    ...     SmartBirdConfig(vocab_size=100, hidden_size=8, num_layers=1, num_attention_heads=2, intermediate_size=16)
    ... )
    >>> ids = tf.constant([[2, 17, 42, 3]])
    >>> encoder(dict(input_word_ids=ids, input_mask=tf.ones_like(ids)))["sequence_output"].shape
    TensorShape([1, 4, 8])
    """

    config_class = SmartBirdConfig
    norm = staticmethod(layer_norm)

    def add_layers(self):
        config = self.config
        self.position_embeddings = self._positions("position_embeddings")
        self.blocks = [
            SmartBirdBlock(config, name=f"block_{i}", dtype=self.dtype_policy) for i in range(config.num_layers)
        ]
        if config.sketch == "nearest":
            return
        # Wq' and Wk' keep the scale of u: with `initializer_range`, A would be uniform and hardly begin to learn.
        self.sketch = self._projection("sketch", self.initializer())
        self.sketch_positions = self._positions("sketch_positions")
        self.sketch_query = self._projection("sketch_query", tf_keras.initializers.LecunNormal())
        self.sketch_key = self._projection("sketch_key", tf_keras.initializers.LecunNormal())
        for layer in (self.sketch, self.sketch_positions, self.sketch_query, self.sketch_key):
            layer.trainable = config.sketch == "learned"

    def _positions(self, name):
        longest = self.config.max_sequence_length
        return layers.PositionEmbedding(longest, self.initializer(), name=name, dtype=self.dtype_policy)

    def _projection(self, name, initializer):
        return tf_keras.layers.Dense(
            self.config.sketch_size, use_bias=False, kernel_initializer=initializer, name=name, dtype=self.dtype_policy
        )

    def embed(self, inputs, keys):
        words = inputs.get("input_word_embeddings")
        if words is None:
            words = self.word_embeddings(inputs["input_word_ids"])
        return super().embed({**inputs, "input_word_embeddings": words + self.position_embeddings(words)}, keys)

    def encode(self, h, packs, keys, training):
        config = self.config
        query = None
        key = None
        if config.sketch != "nearest":
            sketch = self.sketch(h)
            sketch += self.sketch_positions(sketch)
            query, key = self.sketch_query(sketch), self.sketch_key(sketch)

        # Outside training one key for all rows: what a text reads must not depend on its place in a batch.
        noise_keys = tf.zeros([1], tf.uint32) if keys is None else site_keys(keys, len(self.blocks) + 1)
        sample = sampled_indices if config.gathers(packs.shape[1]) else sampled_mask
        chosen, scores = sample(config, query, key, packs, noise_keys)

        outputs = []
        for i, block in enumerate(self.blocks):
            h = block(h, chosen, scores, None if keys is None else site_keys(keys, i))
            outputs.append(h)
        return h, outputs, {}
