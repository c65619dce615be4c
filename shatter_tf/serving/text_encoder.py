"""Strings to vectors as one Keras layer, for search, and for `compile` and `fit`. `load_text_encoder` makes one."""

import weakref
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import tensorflow as tf
import tf_keras

from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.base import INPUTS
from shatter_tf.encoders.registry import EncoderConfig, build_encoder, settings_of
from shatter_tf.errors import UserError
from shatter_tf.tasks.retrieval import unit_length
from shatter_tf.tasks.signature import embedding
from shatter_tf.training.precision import policy_scope

# The graphs of `encode`, by their layers: as attributes they would be saved with every model.
_GRAPHS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@tf_keras.utils.register_keras_serializable(package="shatter_tf")
class TextEncoder(tf_keras.layers.Layer):
    """A tokenizer and an encoder: strings [B] or [B, 1] to the encoder's `text_vectors`, float32 [B, D].

    `encoder` and `tokenizer` are its parts; use those where single tokens matter. Saved with a model, in Keras's or
    the SavedModel format, it includes its vocabulary.

    Args:
      encoder: settings of the encoder, `type` and that type's own, as a dict.
      vocabulary: wordpieces in the order of their ids.
      lower_case: whether the vocabulary is uncased.
      seq_length: longest input in tokens; longer texts are cut. Batches are padded to their longest text, or to
        `seq_length` where that is beyond the encoder's `longest_dynamic`.
      normalizer: of the tokenizer, which explains it.

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
    >>> layer.encode(["Glass", "glass glass glass", ""]).shape
    (3, 8)
    >>> layer.similarity("Glass", ["glass", "GLASS"]).round(3).tolist()
    [[1.0, 1.0]]
    """

    def __init__(
        self,
        encoder: dict,
        vocabulary: list[str],
        lower_case: bool,
        seq_length: int = 128,
        normalizer: str = "",
        **kwargs,
    ):
        super().__init__(**kwargs)
        config = EncoderConfig()
        config.override(encoder, is_strict=True)
        family = settings_of(config)
        if seq_length > family.longest:
            raise UserError(f"seq_length={seq_length} is longer than the encoder's {family.longest} positions")
        if seq_length < 3:
            raise UserError(f"seq_length={seq_length}: two special tokens leave no room for text")

        self.seq_length = seq_length
        self.tokenizer = Tokenizer(vocabulary, lower_case, normalizer)
        self._padded_length = seq_length if seq_length > family.longest_dynamic else None
        with policy_scope(self.dtype_policy):
            self.encoder = build_encoder(config, use_pooler=False, use_embedding=True)
            self.encoder(self.encoder.inputs)  # creates its weights, so that they can be restored at once

        self._settings = dict(
            encoder={"type": config.type, config.type: family.as_dict()},
            vocabulary=list(vocabulary),
            lower_case=lower_case,
            seq_length=seq_length,
            normalizer=normalizer,
        )

    def call(self, text, training=None):
        text = tf.convert_to_tensor(text)
        if text.shape.rank == 2 and text.shape[1] == 1:
            text = text[:, 0]
        if text.shape.rank != 1:
            raise ValueError(f"TextEncoder takes strings [B] or [B, 1], not {text.shape}")
        inputs = self.tokenizer.pad(self.tokenizer.encode(text, None, self.seq_length), self._padded_length)
        return embedding(self.encoder, inputs, training)["embedding"]

    # === Search ===

    def encode(
        self, texts: Union[str, Sequence[str]], batch_size: int = 64, dimensions: Optional[int] = None
    ) -> np.ndarray:
        """Returns the vectors of any number of texts, float32 [N, D], in their order.

        Args:
          texts: strings; a single one counts as a list of one.
          batch_size: texts that are computed at a time, of about the same length.
          dimensions: how many of a vector's first numbers to return, divided by their length: for encoders that were
            trained with such `task.matryoshka`. None returns all as they are.

        Raises:
          UserError: for more `dimensions` than a vector has, or none.
          TypeError: for what is no string.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        odd = next((text for text in texts if not isinstance(text, str)), None)
        if odd is not None or batch_size < 1:
            raise TypeError(f"encode takes strings, and batches of at least 1, not {odd!r} and {batch_size}")
        family = self.encoder.config
        size = family.embedding_dimensions or family.hidden_size
        if dimensions is not None and not 0 < dimensions <= size:
            raise UserError(f"dimensions={dimensions}: a vector has {size}")

        vectors = np.zeros([len(texts), size], np.float32)
        if texts:
            tokens = self.tokenizer.tokenize_all(texts)
            order = np.argsort(tokens.row_lengths().numpy(), kind="stable")
            for begin in range(0, len(texts), batch_size):
                rows = order[begin : begin + batch_size]
                encoded = self.tokenizer.combine([tf.gather(tokens, rows)], self.seq_length)
                vectors[rows] = self._graph()(self.tokenizer.pad(encoded, self._padded_length)).numpy()
        return vectors if dimensions is None else unit_length(vectors[:, :dimensions])

    def _graph(self):
        """Returns the function from the encoder's inputs to vectors, as a graph that is traced once."""
        if self not in _GRAPHS:
            spec = {name: tf.TensorSpec([None, self._padded_length], tf.int32, name) for name in INPUTS}
            encoder = self.encoder
            _GRAPHS[self] = tf.function(lambda x: embedding(encoder, x)["embedding"], [spec], autograph=False)
        return _GRAPHS[self]

    def similarity(
        self, first: Union[str, Sequence[str], np.ndarray], second: Union[str, Sequence[str], np.ndarray]
    ) -> np.ndarray:
        """Returns the cosine of each of `first` with each of `second`, float32 [N, M]: the nearer to 1, the more alike.

        Args:
          first, second: texts, or vectors as `encode` returns them, [N, D] and [M, D].
        """
        a, b = (
            unit_length(
                np.atleast_2d(part) if isinstance(part, np.ndarray) and part.dtype.kind == "f" else self.encode(part)
            )
            for part in (first, second)
        )
        return a @ b.T

    def get_config(self):
        return {**super().get_config(), **self._settings}
