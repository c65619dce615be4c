"""Strings to vectors as one Keras layer, for `compile` and `fit`."""

from typing import Optional

import tensorflow as tf
import tf_keras

from shatter_tf import model_dir as model_dirs
from shatter_tf.checkpoints import best_checkpoint, restore_pretrained
from shatter_tf.command_line import UserError
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoder import mean_of_tokens
from shatter_tf.precision import policy_scope
from shatter_tf.tasks import EncoderConfig, build_encoder


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
        `seq_length` where that is beyond the encoder's `query_block_size`, because blocks need a static length.

    Raises:
      UserError: when `seq_length` is beyond what the encoder takes, or leaves no room for text.
      ValueError: for inputs of another shape.

    Example:
    >>> import tensorflow as tf
    >>> from shatter_tf.data.tokenizer import SPECIAL_TOKENS
    >>> sizes = dict(vocab_size=64, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=8)
    >>> layer = TextEncoder(dict(type="any", any=sizes), [*SPECIAL_TOKENS, "glass"], lower_case=True, seq_length=16)
    >>> layer(tf.constant(["Glass", "glass glass glass"])).shape
    TensorShape([2, 8])
    """

    def __init__(self, encoder: dict, vocabulary: list[str], lower_case: bool, seq_length: int = 128, **kwargs):
        super().__init__(**kwargs)
        config = EncoderConfig(type=encoder["type"])
        config.override(encoder, is_strict=True)
        own = config.get()
        longest = own.max_position_embeddings if config.type == "bert" else own.max_sequence_length
        if seq_length > longest:
            raise UserError(f"seq_length={seq_length} is longer than the encoder's {longest} positions")
        if seq_length < 3:
            raise UserError(f"seq_length={seq_length}: two special tokens leave no room for text")
        self._settings = dict(
            encoder={"type": config.type, config.type: own.as_dict()},
            vocabulary=list(vocabulary),
            lower_case=lower_case,
            seq_length=seq_length,
        )
        self.tokenizer, self.seq_length = Tokenizer(vocabulary, lower_case), seq_length
        self._padded_length = seq_length if seq_length > getattr(own, "query_block_size", seq_length) else None
        with policy_scope(self.dtype_policy):
            self.encoder = build_encoder(config, use_pooler=False)
            self.encoder(self.encoder.inputs)  # creates its weights, so that they can be restored at once

    @classmethod
    def from_model_dir(cls, model_dir: str, seq_length: Optional[int] = None, **kwargs) -> "TextEncoder":
        """Returns the encoder of any run of shatter_tf.train, with the weights of its best or else newest checkpoint.

        Args:
          model_dir: where the run lives.
          seq_length: of the layer; None takes the run's.

        Raises:
          UserError: when there is no run, or no checkpoint.
        """
        run = model_dirs.read(model_dir)
        task = run.params.task
        encoder = {"type": task.model.encoder.type, task.model.encoder.type: task.model.encoder.get().as_dict()}
        seq_length = task.train_data.seq_length if seq_length is None else seq_length
        layer = cls(encoder, run.vocabulary, run.lower_case, seq_length, **kwargs)
        checkpoint = best_checkpoint(model_dir) or model_dir
        restore_pretrained(dict(encoder=layer.encoder), checkpoint, layer.encoder)
        return layer

    def call(self, text, training=None):
        text = tf.convert_to_tensor(text)
        if text.shape.rank == 2 and text.shape[1] == 1:
            text = text[:, 0]
        if text.shape.rank != 1:
            raise ValueError(f"TextEncoder takes strings [B] or [B, 1], not {text.shape}")
        inputs = self.tokenizer.pad(self.tokenizer.encode(text, None, self.seq_length), self._padded_length)
        outputs = self.encoder(inputs, training=training)
        return mean_of_tokens(tf.cast(outputs["sequence_output"], tf.float32), inputs["input_mask"])

    def get_config(self):
        return {**super().get_config(), **self._settings}
