"""What every family of encoders answers about itself, so that nothing else has to ask which family it is.

A family is a folder: a config (`Family`), which says what the encoder is like, and an encoder, which keeps the contract
of Model Garden's BertEncoderV2. `PackedEncoder` is that contract with everything but the blocks.
"""

import dataclasses
import random
from collections.abc import Iterable
from typing import Any, ClassVar, Optional

import numpy as np
import tensorflow as tf
import tf_keras
from official.modeling import hyperparams, tf_utils
from official.nlp.modeling import layers

from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.layers.dropout import dropout, row_keys, site_keys
from shatter_tf.layers.norms import rms_norm
from shatter_tf.layers.pooling import mean_of_tokens
from shatter_tf.layers.windows import Windows

POOLINGS = ("mean", "first_token")
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


@dataclasses.dataclass
class Family:
    """A mixin for the config of a family of encoders, a Model Garden config with these fields or more:

    vocab_size, hidden_size, num_layers, intermediate_size, hidden_activation, type_vocab_size, dropout_rate,
    attention_dropout_rate, initializer_range and pooling.

    Attributes:
      embedding_pooling: how the one vector of a text is made, that `embed` gives and search compares: "mean" of the
        tokens' vectors, or the "first_token"'s.
      embedding_dimensions: width of that vector, to which a linear map then takes it; 0 has no map, and hidden_size.
      embedding_unit_length: whether that vector is divided by its length.
      title: what tables and model cards call the family.
      sizes: the names of the fields that must be positive.
      own_names: fields that correspond to another family's under another name, by that name.
      own_defaults: fields whose default is part of what the family is, and is not taken over from another family.
      computation: the names of the fields that no weights depend on, and no short text's result; a run may change them.
    """

    embedding_pooling: str = "mean"
    embedding_dimensions: int = 0
    embedding_unit_length: bool = False

    title: ClassVar[str] = ""
    sizes: ClassVar[tuple[str, ...]] = ("vocab_size", "hidden_size", "num_layers", "intermediate_size")
    own_names: ClassVar[dict[str, str]] = {}
    own_defaults: ClassVar[tuple[str, ...]] = ()
    computation: ClassVar[tuple[str, ...]] = ()

    def problems(self) -> list[str]:
        """Returns one line for each value that no encoder can be built with."""
        found = out_of_range(self, self.sizes)
        if self.pooling not in self.poolings():
            found.append(f"pooling={self.pooling!r} is not one of {', '.join(self.poolings())}")
        if self.embedding_pooling not in POOLINGS:
            found.append(f"embedding_pooling={self.embedding_pooling!r} is not one of {', '.join(POOLINGS)}")
        if self.embedding_dimensions < 0:
            found.append(f"embedding_dimensions={self.embedding_dimensions} is negative; 0 is hidden_size")
        try:
            feed_forward_activation(self.hidden_activation)
        except ValueError:
            found.append(
                f"hidden_activation={self.hidden_activation}: no such activation; try squared_relu, relu or gelu"
            )
        return found

    def poolings(self) -> tuple[str, ...]:
        """Returns what `pooling` may be."""
        return POOLINGS

    @property
    def longest(self) -> int:
        """The longest input in tokens."""
        return self.max_sequence_length

    @property
    def longest_dynamic(self) -> int:
        """The longest input whose length may be unknown when the graph is made; longer ones are padded to a length."""
        return self.longest

    def size_like(self, other: "Family", chosen: dict[str, Any]) -> dict[str, Any]:
        """Returns the settings, by name, that make this encoder as large as one of another family.

        Args:
          other: the config of that encoder.
          chosen: settings that a user gave for it; only they override `own_defaults`.
        """
        settings = {}
        for field in dataclasses.fields(other):
            name = self.own_names.get(field.name, field.name)
            if name in self.__dict__ and (name not in self.own_defaults or field.name in chosen):
                settings[name] = getattr(other, field.name)
        return settings


@dataclasses.dataclass
class Attention:
    """What is drawn of an encoder's attention to one text of L tokens.

    Attributes:
      maps: for each layer, the shares in which every token attends to every other, [L, L].
      totals: for each layer, how much every token attends to each part, [L, P].
    """

    maps: list[np.ndarray]
    totals: list[np.ndarray]


class Drawable:
    """A mixin for encoders: what can be drawn of one. None stands for what a family cannot show."""

    def parts_at(self, r: np.ndarray) -> Optional[np.ndarray]:
        """Returns how relative positions [R] are shared among the parts, [P, R]."""
        return None

    def attention_to(self, inputs: dict[str, tf.Tensor]) -> Optional[Attention]:
        """Returns what is attended to in one text, the encoder's inputs with B = 1."""
        return None


class Embedder:
    """A mixin for encoders, layers with a `config`: the one vector of a text, to search and compare texts by."""

    # Set by `add_embedding_map`: Keras does not track what a class has already.
    embedding_map: Optional[tf_keras.layers.Layer]

    def add_embedding_map(self) -> None:
        """Sets `embedding_map`, None unless the config has one; it is frozen until a task trains it."""
        config = self.config
        self.embedding_map = None
        if not config.embedding_dimensions:
            return
        self.embedding_map = tf_keras.layers.Dense(
            config.embedding_dimensions,
            kernel_initializer=tf_keras.initializers.TruncatedNormal(stddev=config.initializer_range),
            name="embedding_map",
            dtype=tf.float32,
            trainable=False,
        )
        with tf.name_scope(self.embedding_map.name):
            self.embedding_map.build([None, config.hidden_size])

    def text_vectors(self, sequence_output: tf.Tensor, input_mask: tf.Tensor) -> tf.Tensor:
        """Returns one vector for each row, float32 [B, embedding_dimensions]; see `Family`.

        Args:
          sequence_output: what the encoder returned, [B, L, D].
          input_mask: int32 [B, L], 0 for padding.
        """
        h = tf.cast(sequence_output, tf.float32)
        vectors = mean_of_tokens(h, input_mask) if self.config.embedding_pooling == "mean" else h[:, 0]
        if self.embedding_map is not None:
            vectors = self.embedding_map(vectors)
        # Rows without tokens have no direction.
        return tf.math.l2_normalize(vectors, axis=-1) if self.config.embedding_unit_length else vectors


def out_of_range(config: hyperparams.Config, sizes: Iterable[str]) -> list[str]:
    """Returns one line for each of these sizes that is not positive, and for each dropout rate outside [0, 1)."""
    found = [f"{name}={getattr(config, name)} is not positive" for name in sizes if getattr(config, name) <= 0]

    for name in ("dropout_rate", "attention_dropout_rate"):
        if not 0 <= getattr(config, name) < 1:
            found.append(f"{name}={getattr(config, name)} is not in [0, 1)")
    return found


def as_config(config, kind: type):
    """Returns `config`, a `kind` or the dict of one, copied and checked; raises ValueError that lists every problem."""
    # A copy, so that what is built does not change when its caller's settings do.
    config = config.replace() if isinstance(config, kind) else kind(**config)
    if config.problems():
        raise ValueError("; ".join(config.problems()))
    return config


class PackedEncoder(Drawable, Embedder, tf_keras.layers.Layer):
    """BertEncoderV2's contract for rows of packed documents: embeddings, blocks that a family adds, and pooling.

    Subclasses set `config_class` and implement `add_layers` and `encode`.

    Inputs, a dict of int32 [B, L]:
      input_word_ids: wordpiece ids.
      input_mask: 1 for tokens and 0 for padding, or pack numbers 1, 2, 3, … for documents packed into one row;
        tokens attend only within their own number, and padding has exactly no influence.
      input_type_ids: segment numbers; optional, zeros when absent.
      input_word_embeddings: optional, float [B, L, D] in place of the vectors of `input_word_ids`.

    Returns a dict:
      sequence_output: [B, L, D].
      pooled_output: [B, D], see `config.pooling`.
      encoder_outputs: a list of [B, L, D], one for each block.
      and what `encode` adds.

    Args:
      config: sizes and choices.
      output_dropout_rate: dropout of `sequence_output` and `pooled_output` in training, for heads, whose own dropout
        would not resume exactly.

    Attributes:
      windows: how inputs that are longer than a window are read, if they are; a task may set it.

    Raises:
      ValueError: for impossible configs, and for inputs whose static length is beyond `config.longest`.
    """

    config_class: ClassVar[type]
    norm = staticmethod(rms_norm)  # of the embeddings

    def __init__(self, config, output_dropout_rate: float = 0.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.config = config = as_config(config, self.config_class)
        self.output_dropout_rate = output_dropout_rate
        self.windows: Optional[Windows] = None

        initializer = self.initializer()
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
        self.embeddings_layer_norm = self.norm("embeddings_layer_norm")
        self.add_layers()

        self.pooler = None
        if config.pooling == "first_token":
            self.pooler = tf_keras.layers.Dense(
                config.hidden_size,
                activation="tanh",
                kernel_initializer=tf_utils.clone_initializer(initializer),
                name="pooler",
                dtype=self.dtype_policy,
            )
        self.add_embedding_map()
        self.inputs = {name: tf_keras.Input((None,), dtype=tf.int32, name=name) for name in INPUTS}

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

    def initializer(self) -> tf_keras.initializers.Initializer:
        """Returns a new initializer of matrices."""
        return tf_keras.initializers.TruncatedNormal(stddev=self.config.initializer_range)

    def add_layers(self) -> None:
        """Sets `self.blocks`, the layers of which each has an output of its own, and whatever else `encode` needs."""
        raise NotImplementedError

    def call(self, inputs, training=None):
        word_ids = inputs["input_word_ids"]
        if not self.windows and word_ids.shape[1] is not None and word_ids.shape[1] > self.config.longest:
            raise ValueError(
                f"the input is {word_ids.shape[1]} tokens long, but the encoder takes at most {self.config.longest}"
            )
        mask = inputs["input_mask"]
        if self.windows:
            inputs = self.windows.fold(inputs)
            word_ids = inputs["input_word_ids"]
        keys = None
        if training:
            keys = row_keys(self._dropout_seed, self._batches.assign_add(1), tf.shape(word_ids)[0])

        packs = tf.cast(inputs["input_mask"], tf.int32)
        h, outputs, more = self.encode(self.embed(inputs, keys), packs, keys, training)

        pooled = self.pool(h, packs, more)
        if self.windows:
            h = self.windows.unfold(h, mask)
            outputs = [self.windows.unfold(output, mask) for output in outputs]
            pooled = self.windows.pool(pooled, h, mask)
            keys = None if keys is None else tf.reshape(keys, [tf.shape(mask)[0], -1])[:, 0]  # of the first windows
        if keys is not None:
            output_keys = site_keys(keys, len(self.blocks))
            pooled = dropout(pooled[:, tf.newaxis], self.output_dropout_rate, output_keys)[:, 0]
            h = dropout(h, self.output_dropout_rate, output_keys)
        return dict(sequence_output=h, pooled_output=pooled, encoder_outputs=outputs, **more)

    def embed(self, inputs: dict[str, tf.Tensor], keys: Optional[tf.Tensor]) -> tf.Tensor:
        """Returns what the first block gets, [B, L, D] in the compute dtype: normed sums of embeddings."""
        word_ids = inputs["input_word_ids"]
        h = inputs.get("input_word_embeddings")
        if h is None:
            h = self.word_embeddings(word_ids)

        type_ids = inputs.get("input_type_ids")
        h += self.type_embeddings(tf.zeros_like(word_ids) if type_ids is None else type_ids)
        return dropout(tf.cast(self.embeddings_layer_norm(h), self.compute_dtype), self.config.dropout_rate, keys)

    def encode(
        self, h: tf.Tensor, packs: tf.Tensor, keys: Optional[tf.Tensor], training: bool
    ) -> tuple[tf.Tensor, list[tf.Tensor], dict[str, Any]]:
        """Returns what the blocks make of embeddings.

        Args:
          h: [B, L, D] in the compute dtype.
          packs: document numbers, int32 [B, L]; 0 for padding.
          keys: of dropout, uint32 [B]; None outside training. Site i of `site_keys` is for block i; the embeddings have
            the keys themselves, and the outputs site len(self.blocks).
          training: whether gradients will be asked for.

        Returns:
          [B, L, D]; each block's output, a list of [B, L, D]; and what else the encoder returns, by name.
        """
        raise NotImplementedError

    def pool(self, h: tf.Tensor, packs: tf.Tensor, more: dict[str, Any]) -> tf.Tensor:
        """Returns one vector for each row, [B, D]; arguments are as `encode` returns them."""
        return mean_of_tokens(h, packs) if self.pooler is None else self.pooler(h[:, 0])

    def get_embedding_table(self) -> tf.Variable:
        """Returns the word embeddings, float32 [vocab_size, D]; the masked-LM head shares them."""
        return self.word_embeddings.embeddings

    def get_embedding_layer(self) -> tf_keras.layers.Layer:
        """Returns the layer of the word embeddings."""
        return self.word_embeddings

    @property
    def transformer_layers(self) -> list[tf_keras.layers.Layer]:
        """The blocks, in order."""
        return self.blocks

    @property
    def pooler_layer(self) -> Optional[tf_keras.layers.Layer]:
        """The layer that makes `pooled_output` from the first token; None where there is no such layer."""
        return self.pooler

    def freeze_pooler(self) -> None:
        """Freezes an unused pooler, to avoid warnings about missing gradients."""
        if self.pooler is not None:
            self.pooler.trainable = False

    def get_config(self):
        own = dict(config=self.config.as_dict(), output_dropout_rate=self.output_dropout_rate)
        return {**super().get_config(), **own}
