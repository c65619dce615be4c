"""BERT as a fair baseline: Model Garden's encoder with what a good modern BERT has, on exactly what Shatter sees.

What differs from Model Garden's BertEncoderV2: packed documents are kept apart, a pre-norm encoder ends with a layer
normalization, and positions may be absolute embeddings, T5's relative biases, both, or RoFormer's rotations.
"""

from typing import Optional

import tensorflow as tf
import tf_keras
from official.modeling import hyperparams, tf_utils
from official.nlp.modeling import layers, networks
from official.projects.roformer.roformer_encoder_block import RoformerEncoderBlock

from shatter_tf.encoders.base import Drawable, Embedder, as_config
from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.layers.masks import same_document
from shatter_tf.layers.pooling import mean_of_tokens
from shatter_tf.layers.windows import Windows


class SameDocumentMask(layers.SelfAttentionMask):
    """Model Garden's self-attention mask, made to understand pack numbers, so that BERT sees what Shatter sees."""

    def call(self, inputs, to_mask=None):
        return tf.cast(same_document(to_mask, to_mask), inputs.dtype)


class _NoPositions(tf_keras.layers.Layer):
    """Replaces BERT's absolute position embeddings with zeros."""

    def call(self, inputs):
        return tf.zeros_like(inputs)


class _RelativeAttention(tf_keras.layers.MultiHeadAttention):
    """Multi-head attention with T5's learned bias for each head and bucket of relative positions."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.position_bias = layers.RelativePositionBias(
            self._num_heads,
            # T5's own standard deviation of 1 would drown scores that start near 0.
            embeddings_initializer=tf_keras.initializers.TruncatedNormal(stddev=0.02),
            name="relative_position_bias",
        )

    def _masked_softmax(self, attention_scores, attention_mask=None):
        rows = attention_scores[:, 0]
        bias = self.position_bias(rows, tf.linalg.matrix_transpose(rows))
        return super()._masked_softmax(attention_scores + tf.cast(bias, attention_scores.dtype), attention_mask)


class _RelativeBlock(layers.TransformerEncoderBlock):
    def build(self, input_shape):
        super().build(input_shape)
        self._attention_layer = _RelativeAttention(
            num_heads=self._num_heads,
            key_dim=self._key_dim,
            dropout=self._attention_dropout_rate,
            kernel_initializer=tf_utils.clone_initializer(self._attention_initializer),
            name="self_attention",
        )


def _rotations(length: int, width: int, dtype: str) -> list[tf.Tensor]:
    """Returns the sines and cosines of RoFormer's angles, each [1, length, 1, width], computed in float32."""
    frequencies = 10_000.0 ** (-tf.range(0, width, 2, tf.float32) / width)
    angles = tf.repeat(tf.range(length, dtype=tf.float32)[:, tf.newaxis] * frequencies, 2, axis=-1)
    return [tf.cast(t, dtype)[tf.newaxis, :, tf.newaxis] for t in (tf.sin(angles), tf.cos(angles))]


class _RotaryBlock(RoformerEncoderBlock):
    def build(self, input_shape):
        super().build(input_shape)
        # Model Garden computes angles in the compute dtype; bfloat16 rounds that of position 127 by up to a quarter.
        attention = self._attention_layer
        sine, cosine = _rotations(self._q_max_sequence_length, self._attention_head_size, self.compute_dtype)
        attention.q_sin_vec = attention.k_sin_vec = sine
        attention.q_cos_vec = attention.k_cos_vec = cosine

    def call(self, inputs, output_range=None):
        del output_range  # BertConfig.problems rejects it
        return super().call(inputs)


class _NormedBlock(tf_keras.layers.Layer):
    """The last block of a pre-norm encoder, and the layer normalization after it."""

    def __init__(self, block: tf_keras.layers.Layer, **kwargs):
        super().__init__(**kwargs)
        self.block = block
        self.layer_norm = tf_keras.layers.LayerNormalization(epsilon=1e-12, dtype=tf.float32, name="final_layer_norm")

    def call(self, inputs, output_range=None):
        output = self.block(inputs, output_range=output_range)
        h, *scores = output if isinstance(output, tuple) else (output,)
        h = tf.cast(self.layer_norm(h), h.dtype)
        return (h, *scores) if scores else h


@hyperparams.bind(BertConfig)
@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class BertBaseline(Drawable, Embedder, networks.BertEncoderV2):
    """Model Garden's BertEncoderV2 with BertConfig's settings; the same inputs and outputs as ShatterEncoder.

    Example:
    >>> encoder = BertBaseline(
    ...     BertConfig(vocab_size=100, hidden_size=8, num_layers=1, num_attention_heads=2, positions="rotary")
    ... )
    >>> ids = tf.constant([[2, 17, 42, 3]])
    >>> inputs = dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))
    >>> encoder(inputs)["sequence_output"].shape
    TensorShape([1, 4, 8])
    """

    config_class = BertConfig

    def __init__(self, config: BertConfig, **kwargs):
        config = as_config(config, BertConfig)
        sizes = dict(
            num_attention_heads=config.num_attention_heads,
            inner_dim=config.intermediate_size,
            inner_activation=feed_forward_activation(config.hidden_activation),
            output_dropout=config.dropout_rate,
            attention_dropout=config.attention_dropout_rate,
            norm_first=config.norm_first,
        )
        scores = dict(return_attention_scores=config.return_attention_scores)
        initializer = tf_keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        super().__init__(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            max_sequence_length=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            embedding_width=config.embedding_size,
            initializer=initializer,
            output_range=config.output_range,
            return_word_embeddings=config.return_word_embeddings,
            **sizes,
            **scores,
            **kwargs,
        )
        self.config = config
        self.windows: Optional[Windows] = None
        self._attention_mask_layer = SameDocumentMask(name="self_attention_mask")
        if not config.positions.startswith("absolute"):
            self._position_embedding_layer = _NoPositions(name="position_embedding")
        block = layers.TransformerEncoderBlock
        choices = scores
        if config.positions.endswith("relative_bias"):
            block = _RelativeBlock
        elif config.positions == "rotary":
            longest = config.max_position_embeddings
            block = _RotaryBlock
            choices = dict(q_max_sequence_length=longest, kv_max_sequence_length=longest)
        blocks = [
            block(
                kernel_initializer=tf_utils.clone_initializer(initializer),
                name=f"transformer/layer_{i}",
                **sizes,
                **choices,
            )
            for i in range(config.num_layers)
        ]
        if config.norm_first:
            blocks[-1] = _NormedBlock(blocks[-1], name="last_block")
        self._transformer_layers = blocks
        self.add_embedding_map()
        if config.pooling == "mean":
            self.freeze_pooler()

    def call(self, inputs):
        mask = inputs["input_mask"]
        inputs = self.windows.fold(inputs) if self.windows else inputs
        inputs = {**inputs, "input_mask": tf.cast(inputs["input_mask"], tf.int32)}
        outputs = super().call(inputs)
        if self.config.pooling == "mean":
            outputs["pooled_output"] = mean_of_tokens(outputs["sequence_output"], inputs["input_mask"])
        if self.windows:
            h = outputs["sequence_output"] = self.windows.unfold(outputs["sequence_output"], mask)
            outputs["encoder_outputs"] = [self.windows.unfold(output, mask) for output in outputs["encoder_outputs"]]
            outputs["pooled_output"] = self.windows.pool(outputs["pooled_output"], h, mask)
        return outputs

    def freeze_pooler(self) -> None:
        """Freezes an unused pooler, which BertEncoderV2 always has, to avoid warnings about missing gradients."""
        self.pooler_layer.trainable = False

    def get_config(self):
        return {**tf_keras.layers.Layer.get_config(self), "config": self.config.as_dict()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)
