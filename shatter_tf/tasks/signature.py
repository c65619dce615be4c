"""What is served of a trained model: functions of texts, each in three parts that its graph has once.

    answers = decode(predict(pad(inputs)), rest),     inputs, rest = encode(texts)

A task writes the parts; serving/servable.py pads between them and makes TensorFlow functions of them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf

from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.base import INPUTS

Tensors = dict[str, tf.Tensor]


def as_they_are(outputs: Tensors, rest: Any) -> Tensors:
    """Returns the model's outputs: the `decode` of functions whose answers are numbers."""
    return outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
    """One function of a served model.

    The first dimension of all that it takes and gives is the batch, of any size, also 0: TF Serving cuts and joins
    batches there. Answers are float32, int32 or strings, which JSON has.

    Attributes:
      takes: the inputs in order, with their names.
      encode: from the inputs to what `predict` takes, by name, and to whatever else `decode` needs. Where
        `input_word_ids` is ragged, as the tokenizer gives it, the encoder's inputs are padded in between.
      predict: calls the model. Its graph may be there twice, for lengths that are known and for those that are not.
      decode: from what `predict` returns, and what `encode` left for it, to the answers by name.
    """

    takes: tuple[tf.TensorSpec, ...]
    encode: Callable[..., tuple[dict, Any]]
    predict: Callable[[Tensors], Tensors]
    decode: Callable[[Tensors, Any], Tensors] = as_they_are


def strings(*names: str) -> tuple[tf.TensorSpec, ...]:
    """Returns the specs of inputs that are strings [B]."""
    return tuple(tf.TensorSpec([None], tf.string, name) for name in names)


def encode_texts(tokenizer: Tokenizer, seq_length: int) -> Callable[..., tuple[dict, None]]:
    """Returns the `encode` of functions of a text, or of a pair of texts, and nothing else."""

    def encode(text: tf.Tensor, pair: Optional[tf.Tensor] = None):
        return tokenizer.encode(text, pair, seq_length), None

    return encode


def token_ids(predict: Callable[[Tensors], Tensors], decode: Callable[[Tensors, Any], Tensors]) -> Signature:
    """Returns the function of the encoder's inputs, int32 [B, L], for clients with a tokenizer of their own."""

    def encode(*ids: tf.Tensor):
        return dict(zip(INPUTS, ids, strict=True)), None

    return Signature(tuple(tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS), encode, predict, decode)


def embed(encoder, tokenizer: Tokenizer, seq_length: int) -> Signature:
    """Returns the function from `text` to `embedding`, float32 [B, D]: the encoder's `text_vectors`."""
    return Signature(strings("text"), encode_texts(tokenizer, seq_length), lambda inputs: embedding(encoder, inputs))


def embedding(encoder, inputs: Tensors, training: bool = False) -> Tensors:
    """Returns `embedding`, float32 [B, D], for the encoder's inputs."""
    outputs = encoder(inputs, training=training)["sequence_output"]
    return dict(embedding=encoder.text_vectors(outputs, inputs["input_mask"]))
