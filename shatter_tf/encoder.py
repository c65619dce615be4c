"""The Shatter encoder: a drop-in replacement for Model Garden's BertEncoderV2, bound to ShatterConfig.

post-norm:  h <- N(h + attention(h));       h <- N(h + feed_forward(h))
pre-norm:   h <- h + attention(N(h));       h <- h + feed_forward(N(h));       N after the last block

    N(h) = h / sqrt(mean(h^2) + 1e-6) * g         no mean subtracted and no bias added: it learns as well as layer
                                                  normalisation and is cheaper (docs/log.md, docs/performance.md)
"""

import random
from collections.abc import Callable
from typing import Optional

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams, tf_utils
from official.nlp.modeling import layers
from official.nlp.modeling.layers.transformer_encoder_block import RMSNorm

from shatter_tf.attention import ShatterAttention, as_config, attention_mask, query_positions
from shatter_tf.config import ShatterConfig
from shatter_tf.dropout import dropout, random_keys, row_keys, site_keys
from shatter_tf.partition import position_partition


def _layer_norm(name: str) -> tf_keras.layers.Layer:
    """Returns a layer for N (Zhang and Sennrich 2019, arXiv 1910.07467), with float32 in and out."""
    # Every norm has "layer_norm" in its name: that is what keeps it out of weight decay.
    return RMSNorm(dtype=tf.float32, name=name)


@tf.custom_gradient
def squared_relu(x: tf.Tensor):
    """Returns max(x, 0)^2, of x's shape and dtype. Source: So et al. 2021, arXiv 2109.08668.

    Example:
    >>> squared_relu(tf.constant([-1.0, 3.0])).numpy().tolist()
    [0.0, 9.0]
    """
    relu = tf.nn.relu(x)
    # A custom derivative, so that one tensor is kept for it: relu's own would keep the signs of x as well.
    return tf.square(relu), lambda dy: 2.0 * dy * relu


def feed_forward_activation(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the activation that `hidden_activation` names; raises ValueError when there is none.

    Example:
    >>> feed_forward_activation("gelu")(tf.constant([0.0])).numpy().tolist()
    [0.0]
    """
    if name == "squared_relu":
        return squared_relu
    return tf_utils.get_activation(name)


def _recomputed(block, *args, **kwargs) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns h -> block(h, ...)[0] for training, whose backward pass recomputes the block instead of storing it."""
    return tf.recompute_grad(lambda h: block(h, *args, **kwargs, training=True)[0])


def mean_of_tokens(h: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
    """Returns the mean, [B, D], of h, [B, L, D], over tokens that are not padding; zeros where there are none.

    Example:
    >>> mean_of_tokens(tf.constant([[[1.0], [3.0], [9.0]]]), tf.constant([[1, 1, 0]])).numpy().tolist()
    [[2.0]]
    """
    weights = tf.cast(input_mask[:, : tf.shape(h)[1], tf.newaxis] > 0, tf.float32)
    total = tf.reduce_sum(weights * tf.cast(h, tf.float32), axis=1)
    return tf.cast(tf.math.divide_no_nan(total, tf.reduce_sum(weights, axis=1)), h.dtype)


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class ShatterEncoderBlock(tf_keras.layers.Layer):
    """Attention and feed-forward with residuals and a norm before or after each.

    Inputs, called as `block(h, mask, partition, dropout_keys)`, or as `block(h, packs, …)` for attention in blocks of
    queries:
      h: [B, M, D].
      mask, partition, packs, dropout_keys: as for ShatterAttention.

    Returns:
      ([B, L, D] in the compute dtype, the attention map as float32 [B, L, M], or None in blocks of queries).

    Raises:
      ValueError: when `config` has values that no encoder can be built with.

    Example:
    >>> config = ShatterConfig(hidden_size=8, num_parts=2, intermediate_size=16)
    >>> h, mask = tf.random.normal([1, 5, 8]), attention_mask(tf.ones([1, 5], tf.int32))
    >>> h, _ = ShatterEncoderBlock(config)(h, mask, position_partition(config, 5))
    >>> h.shape
    TensorShape([1, 5, 8])
    """

    def __init__(self, config: ShatterConfig, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config = as_config(config)
        initializer = tf_keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        self.attention = ShatterAttention(config, name="attention", dtype=self.dtype_policy)
        self.attention_layer_norm = _layer_norm("attention_layer_norm")
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
        self.output_layer_norm = _layer_norm("output_layer_norm")

    def call(self, h, mask, partition=None, dropout_keys=None, training=None):
        h = tf.cast(h, self.compute_dtype)
        norm_first, rate = self.config.norm_first, self.config.dropout_rate
        if training and dropout_keys is None:
            dropout_keys = random_keys(tf.shape(h)[0])
        keys = [None if dropout_keys is None else site_keys(dropout_keys, site) for site in range(3)]

        x = self.attention_layer_norm(h) if norm_first else h
        y, attention = self.attention(x, mask, partition, keys[0])
        h = query_positions(h, mask) + dropout(y, rate, keys[1])
        if not norm_first:
            h = tf.cast(self.attention_layer_norm(h), self.compute_dtype)

        y = self.output_dense(self.intermediate(self.output_layer_norm(h) if norm_first else h))
        h = h + dropout(y, rate, keys[2])
        if not norm_first:
            h = tf.cast(self.output_layer_norm(h), self.compute_dtype)
        return h, attention

    def get_config(self):
        return {**super().get_config(), "config": self.config.as_dict()}


@hyperparams.bind(ShatterConfig)
@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class ShatterEncoder(tf_keras.layers.Layer):
    """Token ids to contextual vectors: embeddings without positions, then blocks that share one partition.

    It keeps BertEncoderV2's contract, so that Model Garden's tasks take it through
    `EncoderConfig(type="any", any=ShatterConfig(...))`.

    Inputs, a dict of int32 [B, L]:
      input_word_ids: wordpiece ids.
      input_mask: 1 for tokens and 0 for padding, or pack numbers 1, 2, 3, … for documents packed into one row;
        tokens attend only within their own number, and padding has exactly no influence.
      input_type_ids: segment numbers; optional, zeros when absent.
      input_word_embeddings: optional, float [B, L, D] in place of the vectors of `input_word_ids`.

    Returns a dict:
      sequence_output: [B, L, D].
      pooled_output: [B, D], the mean over tokens (within `config.output_range`, if set) or a projection of the first
        one; see `config.pooling`.
      encoder_outputs: a list of [B, L, D], one for each block.
      attention_scores: a list of float32 [B, 1, L, L], one for each block, when `config.return_attention_scores`.

    Args:
      config: sizes and choices.
      output_dropout_rate: dropout of `sequence_output` and `pooled_output` in training, for heads, whose own dropout
        would not resume exactly.

    Raises:
      ValueError: for impossible configs, and for inputs whose static length is beyond `config.max_sequence_length`.

    Example:
    >>> encoder = ShatterEncoder(
    ...     ShatterConfig(vocab_size=100, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=16)
    ... )
    >>> ids = tf.constant([[2, 17, 42, 3]])
    >>> encoder(dict(input_word_ids=ids, input_mask=tf.ones_like(ids)))["sequence_output"].shape
    TensorShape([1, 4, 8])
    """

    def __init__(self, config: ShatterConfig, output_dropout_rate: float = 0.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config = as_config(config)
        self.output_dropout_rate = output_dropout_rate
        initializer = tf_keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        self.word_embeddings = layers.OnDeviceEmbedding(
            config.vocab_size,
            config.hidden_size,
            initializer=initializer,
            name="word_embeddings",
            dtype=self.dtype_policy,
        )
        self.type_embeddings = layers.OnDeviceEmbedding(
            config.type_vocab_size,
            config.hidden_size,
            initializer=tf_utils.clone_initializer(initializer),
            use_one_hot=True,
            name="type_embeddings",
            dtype=self.dtype_policy,
        )
        self.embeddings_layer_norm = _layer_norm("embeddings_layer_norm")
        self.blocks = [
            ShatterEncoderBlock(config, name=f"block_{i}", dtype=self.dtype_policy) for i in range(config.num_layers)
        ]
        self.final_layer_norm = _layer_norm("final_layer_norm") if config.norm_first else None
        self.pooler = None
        if config.pooling == "first_token":
            self.pooler = tf_keras.layers.Dense(
                config.hidden_size,
                activation="tanh",
                kernel_initializer=tf_utils.clone_initializer(initializer),
                name="pooler",
                dtype=self.dtype_policy,
            )
        self.inputs = {
            name: tf_keras.Input((None,), dtype=tf.int32, name=name)
            for name in ("input_word_ids", "input_mask", "input_type_ids")
        }

        # Dropout follows from these two: the seed of the process, and how many batches were trained on.
        self._dropout_seed = random.randrange(2**31)
        self._batches = self.add_weight(
            "batches",
            shape=(),
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    @classmethod
    def from_model_dir(cls, model_dir: str) -> "ShatterEncoder":
        """Returns the encoder of any run of shatter_tf.train, with the weights of its best or else newest checkpoint.

        A pooler that no loss of the run depended on is random; it is trained from now on.

        Raises:
          UserError: when `model_dir` holds no run of a Shatter encoder, or no checkpoint.
        """
        # They build on this module.
        from shatter_tf.command_line import UserError
        from shatter_tf.text_encoder import TextEncoder

        encoder = TextEncoder.from_model_dir(model_dir).encoder
        if not isinstance(encoder, cls):
            raise UserError(f"{model_dir}: its encoder is a {type(encoder).__name__}, not a {cls.__name__}")
        if encoder.pooler is not None:
            encoder.pooler.trainable = True
        return encoder

    def call(self, inputs, training=None):
        word_ids = inputs["input_word_ids"]
        if word_ids.shape[1] is not None and word_ids.shape[1] > self.config.max_sequence_length:
            raise ValueError(
                f"the input is {word_ids.shape[1]} tokens long, but the encoder takes at most "
                f"max_sequence_length={self.config.max_sequence_length}"
            )
        length = word_ids.shape[1] or tf.shape(word_ids)[1]

        h = inputs.get("input_word_embeddings")
        if h is None:
            h = self.word_embeddings(word_ids)
        if inputs.get("input_type_ids") is not None:
            h += self.type_embeddings(inputs["input_type_ids"])
        else:
            h += self.type_embeddings(tf.zeros_like(word_ids))
        keys = None
        if training:
            keys = row_keys(self._dropout_seed, self._batches.assign_add(1), tf.shape(word_ids)[0])
        h = dropout(tf.cast(self.embeddings_layer_norm(h), self.compute_dtype), self.config.dropout_rate, keys)

        packs, last = tf.cast(inputs["input_mask"], tf.int32), self.blocks[-1]
        if self._in_query_blocks(word_ids.shape[1]):
            pairs = (packs,)
        else:
            pairs = (attention_mask(packs), self._partition(length))
        outputs, attention_scores = [], []
        for i, block in enumerate(self.blocks):
            if block is last and self.config.output_range is not None:
                mask = attention_mask(packs, self.config.output_range)
                pairs = (mask, self._partition(length, mask.shape[1] or tf.shape(mask)[1]))
            block_keys = None if keys is None else site_keys(keys, i)
            if training and self.config.recompute_blocks and not self.config.return_attention_scores:
                h = _recomputed(block, *pairs, dropout_keys=block_keys)(h)
            else:
                h, attention = block(h, *pairs, dropout_keys=block_keys)
            outputs.append(h)
            if self.config.return_attention_scores:
                attention_scores.append(attention[:, tf.newaxis])
        if self.final_layer_norm is not None:
            h = tf.cast(self.final_layer_norm(h), self.compute_dtype)
            outputs[-1] = h

        pooled = mean_of_tokens(h, packs) if self.pooler is None else self.pooler(h[:, 0])
        if keys is not None:
            output_keys = site_keys(keys, len(self.blocks))
            pooled = dropout(pooled[:, tf.newaxis], self.output_dropout_rate, output_keys)[:, 0]
            h = dropout(h, self.output_dropout_rate, output_keys)
        result = dict(sequence_output=h, pooled_output=pooled, encoder_outputs=outputs)
        if self.config.return_attention_scores:
            result["attention_scores"] = attention_scores
        return result

    def _partition(self, length, num_queries=None) -> tf.Tensor:
        """Returns the partition that blocks share, in the dtype they use it in, so that none casts it again."""
        return tf.cast(position_partition(self.config, length, num_queries), self.compute_dtype)

    def _in_query_blocks(self, length: Optional[int]) -> bool:
        """Whether a sequence of this static length is too long for its attention maps to be held at once."""
        return length is not None and length > self.config.query_block_size and not self.config.return_attention_scores

    def get_embedding_table(self) -> tf.Variable:
        """Returns the word embeddings, float32 [vocab_size, D]; the masked-LM head shares them."""
        return self.word_embeddings.embeddings

    @property
    def transformer_layers(self) -> list[ShatterEncoderBlock]:
        """The blocks, in order."""
        return self.blocks

    @property
    def pooler_layer(self) -> Optional[tf_keras.layers.Layer]:
        """The layer that makes `pooled_output` from the first token; None where that is the mean."""
        return self.pooler

    def get_embedding_layer(self) -> tf_keras.layers.Layer:
        """Returns the layer of the word embeddings."""
        return self.word_embeddings

    def get_config(self):
        own = dict(config=self.config.as_dict(), output_dropout_rate=self.output_dropout_rate)
        return {**super().get_config(), **own}
