"""Classifiers whose probabilities are those of logits that are divided by a temperature. Decisions stay."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.errors import UserError, argument
from shatter_tf.tasks.base import BaseTask, TaskAnswers
from shatter_tf.tasks.signature import Signature, Tensors


def check(temperature: float, config: TaskAnswers, experiment: str) -> None:
    """Raises UserError unless `temperature` is a positive number, and the task that of a classifier."""
    where = f"{argument('temperature')}={temperature:g}"
    if not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"{where}: give a positive number, as `shatter evaluate` fits one")
    if config.class_labels() is None and not getattr(config, "multi_label", False):
        raise UserError(f"{where}: only labels of texts have probabilities that it changes, not a run of {experiment}")


class WithTemperature:
    """A task that serves other probabilities of labels; all else is the task's own.

    Args:
      task: of classification.
      temperature: positive.
    """

    def __init__(self, task: BaseTask, temperature: float):
        self._task = task
        self._temperature = temperature

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def signatures(self, model: tf_keras.Model, tokenizer: Tokenizer) -> dict[str, Signature]:
        """Returns the task's, in which `predict` gives other probabilities, if it gives any."""

        def changed(predict: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
            return lambda inputs: scaled(predict(inputs), self._temperature)

        signatures = self._task.signatures(model, tokenizer)
        return {
            name: dataclasses.replace(signature, predict=changed(signature.predict))
            for name, signature in signatures.items()
        }


def scaled(outputs: Tensors, temperature: float) -> Tensors:
    """Returns a classifier's outputs with probabilities at a temperature.

    These are p^(1/T), normalized, which is softmax(logits / T). Where a text may have several labels, it is
    sigmoid(logit / T), and thresholds move with the probabilities.

    Args:
      outputs: `probabilities`, float32 [B, labels], and with several labels `thresholds`, float32 [labels]; others, and
        outputs without probabilities, stay.
      temperature: T > 0.

    Example:
    >>> scaled(dict(probabilities=tf.constant([[0.8, 0.2]])), 0.5)["probabilities"].numpy().round(3).tolist()
    [[0.9409999847412109, 0.05900000035762787]]
    """
    if "probabilities" not in outputs:
        return outputs
    if "thresholds" in outputs:
        names = ("probabilities", "thresholds")
        return {**outputs, **{name: _each(outputs[name], temperature) for name in names}}
    return {**outputs, "probabilities": _normalized(outputs["probabilities"], temperature)}


def _normalized(probabilities: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns softmax(log p / T) over the last axis."""
    # The largest becomes 1, so that not all powers are 0. Log would be an operation more than exports have.
    highest = tf.reduce_max(probabilities, axis=-1, keepdims=True)
    powers = tf.pow(probabilities / highest, 1 / temperature)
    return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)


def _each(probabilities: tf.Tensor, temperature: float) -> tf.Tensor:
    """Returns sigmoid(logit / T) of each probability."""
    return _normalized(tf.stack([1 - probabilities, probabilities], axis=-1), temperature)[..., 1]
