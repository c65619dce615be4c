"""Strings to vectors as one Keras layer, for `compile` and `fit`. `load_text_encoder` in load.py makes one of a run."""

import tensorflow as tf
import tf_keras

from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.registry import EncoderConfig, build_encoder, settings_of
from shatter_tf.errors import UserError
from shatter_tf.tasks.signature import embedding
from shatter_tf.training.precision import policy_scope


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class TextEncoder(tf_keras.layers.Layer):
    """A tokenizer and an encoder: strings [B] or [B, 1] to the mean of the last vectors over tokens, float32 [B, D].

    `encoder` and `tokenizer` are its parts; use those where single tokens matter. Saved with a model, in Keras's or
    the SavedModel format, it includes its vocabulary.

    Args:
      encoder: settings of the encoder, `type` and that type's own, as a dict.
      vocabulary: wordpieces in the order of their ids.
      lower_case: whether the vocabulary is uncased.
      seq_length: longest input in tokens; longer texts are cut. Batches are padded to their longest text, or to
        `seq_length` where that is beyond the encoder's `longest_dynamic`.

    Raises:
      UserError: when `seq_length` is beyond what the encoder takes, or leaves no room for text.
      ValueError: for inputs of another shape.

    Example:
    >>> import tensorflow as tf
    >>> from shatter_tf.data.vocabulary import SPECIAL_TOKENS
    >>> sizes = dict(vocab_size=64, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=8)
    >>> encoder = dict(type="shatter", shatter=sizes)
    >>> layer = TextEncoder(encoder, [*SPECIAL_TOKENS, "glass"], lower_case=True, seq_length=16)
    >>> layer(tf.constant(["Glass", "glass glass glass"])).shape
    TensorShape([2, 8])
    """

    def __init__(self, encoder: dict, vocabulary: list[str], lower_case: bool, seq_length: int = 128, **kwargs):
        super().__init__(**kwargs)
        config = EncoderConfig()
        config.override(encoder, is_strict=True)
        family = settings_of(config)
        if seq_length > family.longest:
            raise UserError(f"seq_length={seq_length} is longer than the encoder's {family.longest} positions")
        if seq_length < 3:
            raise UserError(f"seq_length={seq_length}: two special tokens leave no room for text")

        self.seq_length = seq_length
        self.tokenizer = Tokenizer(vocabulary, lower_case)
        self._padded_length = seq_length if seq_length > family.longest_dynamic else None
        with policy_scope(self.dtype_policy):
            self.encoder = build_encoder(config, use_pooler=False)
            self.encoder(self.encoder.inputs)  # creates its weights, so that they can be restored at once

        self._settings = dict(
            encoder={"type": config.type, config.type: family.as_dict()},
            vocabulary=list(vocabulary),
            lower_case=lower_case,
            seq_length=seq_length,
        )

    def call(self, text, training=None):
        text = tf.convert_to_tensor(text)
        if text.shape.rank == 2 and text.shape[1] == 1:
            text = text[:, 0]
        if text.shape.rank != 1:
            raise ValueError(f"TextEncoder takes strings [B] or [B, 1], not {text.shape}")
        inputs = self.tokenizer.pad(self.tokenizer.encode(text, None, self.seq_length), self._padded_length)
        return embedding(self.encoder, inputs, training)["embedding"]

    def get_config(self):
        return {**super().get_config(), **self._settings}
