"""What a directory to be converted holds, whatever wrote it."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from shatter_tf.converting.weights import MASKED_LM, POOLER, Stored
from shatter_tf.encoders.bert.config import BertConfig
from shatter_tf.errors import UserError, first_line

_PRETRAINED_LENGTH = 512  # of the texts that most BERTs were trained on


@dataclasses.dataclass
class Source:
    """A BERT that was read.

    Attributes:
      kind: what it is, for a user.
      config: of the encoder.
      weights: by Google's names, and those of the embedding map by its own.
      transposed: whether kernels are stored as [out, in].
      vocabulary, lower_case, normalizer: of the tokenizer.
      seq_length: the longest text it is for, in tokens.
      files: the paths of the weights.
      left_out: what the directory has that is not converted.
      notes: what was decided without being said there.
    """

    kind: str
    config: BertConfig
    weights: dict[str, Stored]
    transposed: bool
    vocabulary: list[str]
    lower_case: bool
    normalizer: str
    seq_length: int
    files: list[str]
    left_out: list[str]
    notes: list[str]

    @property
    def has_masked_lm(self) -> bool:
        return any(name.startswith(MASKED_LM) for name in self.weights)

    @property
    def has_pooler(self) -> bool:
        return any(name.startswith(POOLER) for name in self.weights)


def usual_length(config: BertConfig) -> int:
    """Returns the length of texts where nothing says it."""
    return min(_PRETRAINED_LENGTH, config.max_position_embeddings)


def has(directory: str, name: str) -> bool:
    """Returns whether a file is there."""
    return tf.io.gfile.exists(os.path.join(directory, name))


@contextlib.contextmanager
def understood(path: str) -> Iterator[None]:
    """Raises UserError for what goes wrong where a file, or one in a directory, does not hold what it should."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise UserError(f"{path}: it does not hold what it should ({error!r}); copy it again") from error


def read_json(path: str, kind: type = dict) -> Any:
    """Returns what a JSON file holds; raises UserError for a file that is missing, damaged or not a `kind`."""
    try:
        with tf.io.gfile.GFile(path) as f:
            content = json.load(f)
    except tf.errors.NotFoundError as error:
        raise UserError(f"{path}: no such file; it belongs to the model") from error
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({first_line(error)}); copy it again") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: a JSON {type(content).__name__}, where a {kind.__name__} is expected; copy it again")
    return content


def read_config(path: str, settings: dict[str, Any], activations: dict[str, str]) -> BertConfig:
    """Returns the encoder's config for the settings of a config.json or bert_config.json, whose names are the same.

    Args:
      path: of the file.
      settings: its content.
      activations: ours by the file's.

    Raises:
      UserError: that names each field which is missing, or which no encoder can be built with.
    """
    problems = []
    sizes = dict(
        vocab_size="vocab_size",
        hidden_size="hidden_size",
        num_layers="num_hidden_layers",
        num_attention_heads="num_attention_heads",
        intermediate_size="intermediate_size",
        max_position_embeddings="max_position_embeddings",
        type_vocab_size="type_vocab_size",
    )
    rates = dict(
        dropout_rate=("hidden_dropout_prob", 0.1),
        attention_dropout_rate=("attention_probs_dropout_prob", 0.1),
        initializer_range=("initializer_range", 0.02),
    )
    chosen: dict[str, Any] = {}
    for ours, name in sizes.items():
        chosen[ours] = settings.get(name)
        if type(chosen[ours]) is not int or chosen[ours] < 1:
            problems.append(f"{name}={_shown(chosen[ours])} is not a positive whole number")
    for ours, (name, default) in rates.items():
        chosen[ours] = settings.get(name, default)
        if type(chosen[ours]) not in (int, float) or not 0 <= chosen[ours] < 1:
            problems.append(f"{name}={_shown(chosen[ours])} is not a number from 0 to 1")

    activation = settings.get("hidden_act", "gelu")
    if activation not in activations:
        problems.append(f"hidden_act={_shown(activation)} is not one of {', '.join(activations)}")
    if not problems:
        config = BertConfig(**chosen, hidden_activation=activations[activation], pooling="mean")
        problems = config.problems()
    if problems:
        raise UserError(f"{path}: {', '.join(problems)}")
    return config


def _shown(value: Any) -> str:
    return "(missing)" if value is None else str(value)
