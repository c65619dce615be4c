"""What a run has trained, from its directory: its model, or only its encoder."""

from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory

from shatter_tf.checkpoints import best_or_latest_checkpoint, restore_model, restore_pretrained, while_training
from shatter_tf.encoders.registry import build_encoder
from shatter_tf.serving.text_encoder import TextEncoder
from shatter_tf.training import run_dir
from shatter_tf.training.device import fastest_policy
from shatter_tf.training.precision import policy_scope
from shatter_tf.training.run_dir import Run


def load_encoder(model_dir: str) -> tf_keras.layers.Layer:
    """Returns the encoder of any run, with the weights of its best or else newest checkpoint.

    A pooler that no loss of the run depended on is random; it is trained from now on.

    Raises:
      UserError: when there is no run, or no checkpoint.
    """
    encoder = build_encoder(run_dir.read(model_dir).params.task.model.encoder, use_pooler=True)
    encoder(encoder.inputs)  # creates its weights
    while_training(lambda: restore_pretrained(dict(encoder=encoder), best_or_latest_checkpoint(model_dir), encoder))
    return encoder


def load_text_encoder(model_dir: str, seq_length: Optional[int] = None, **kwargs) -> TextEncoder:
    """Returns the encoder of any run as a Keras layer of strings, with the weights that `load_encoder` takes.

    Its `encode` gives the vectors of any number of texts, and its `similarity` compares them.

    Args:
      model_dir: where the run lives.
      seq_length: of the layer; None takes the run's.
      **kwargs: of a Keras layer. Without `dtype` it computes in the precision that is fastest on this machine; with
        dtype="float32" its vectors are the same everywhere.

    Raises:
      UserError: when there is no run, or no checkpoint.
    """
    run = run_dir.read(model_dir)
    task = run.params.task
    family = task.model.encoder.type
    encoder = {"type": family, family: task.model.encoder.get().as_dict()}
    seq_length = task.train_data.seq_length if seq_length is None else seq_length
    kwargs.setdefault("dtype", fastest_policy())
    layer = TextEncoder(encoder, run.vocabulary, run.lower_case, seq_length, run.normalizer, **kwargs)
    items = dict(encoder=layer.encoder)
    while_training(lambda: restore_pretrained(items, best_or_latest_checkpoint(model_dir), layer.encoder))
    return layer


def load_model(run: Run, model_dir: str, best: bool = True, name: str = "model_dir") -> tuple[tf_keras.Model, str]:
    """Returns a run's model, in float32, with the weights of its best or else newest checkpoint, and that checkpoint.

    Raises:
      UserError: when there is no checkpoint, or it does not fit.
    """
    checkpoint = best_or_latest_checkpoint(model_dir, name, best)
    with policy_scope("float32"):
        model = task_factory.get_task(run.params.task).build_model()
    restore_model(model, checkpoint)
    return model, checkpoint


class _MatricesInBfloat16(tf_keras.mixed_precision.Policy):
    """Layers compute in float32, with matrices that are stored in bfloat16 and cast when they are read."""

    variable_dtype = "bfloat16"

    def __init__(self):
        super().__init__("float32")

    @staticmethod
    def create_variable(next_creator, **kwargs):
        """Leaves biases and norms in float32: they are small, and Keras's norms expect it."""
        if kwargs["dtype"] == tf.bfloat16 and len(kwargs["shape"]) < 2:
            initial_value = kwargs["initial_value"]
            kwargs.update(dtype=tf.float32, initial_value=lambda: tf.cast(initial_value(), tf.float32))
        return next_creator(**kwargs)


def in_bfloat16(task: cfg.TaskConfig, model: tf_keras.Model) -> tf_keras.Model:
    """Returns the model of `task` with its matrices rounded to bfloat16; it computes in float32."""
    policy = _MatricesInBfloat16()
    with policy_scope(policy), tf.variable_creator_scope(policy.create_variable):
        stored = task_factory.get_task(task).build_model()
    for variable, value in zip(stored.variables, model.variables, strict=True):
        variable.assign(tf.cast(value, variable.dtype))
    return stored
