"""Experiments at toy size."""

import numpy as np
import tensorflow as tf
from official.core import config_definitions as cfg
from official.core import task_factory

# One layer, because most of the time of a test goes into tracing.
TINY = dict(hidden_size=12, num_layers=1, num_parts=3, intermediate_size=10, max_sequence_length=32)

# The same on every machine.
PLAIN = (
    "runtime.enable_xla=true,runtime.mixed_precision_dtype=float32,trainer.train_steps=1000,"
    "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=1e-3"
)


def tiny_override(**choices) -> str:
    sizes = {**TINY, "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **choices}
    return ",".join(f"task.model.encoder.shatter.{key}={value}" for key, value in sizes.items())


def real_rows(batch) -> dict[str, np.ndarray]:
    """Returns a batch without its padding rows."""
    batch = {key: value.numpy() for key, value in batch.items()}
    weights = batch.pop("row_weights", None)
    return batch if weights is None else {key: value[weights > 0] for key, value in batch.items()}


def one_step(params: cfg.ExperimentConfig, jit_compile=False):
    """Takes a train and an eval step; returns the task, the model, the optimizer and which variables changed."""
    task = task_factory.get_task(params.task)
    model = task.build_model()
    optimizer = task.create_optimizer(params.trainer.optimizer_config)
    metrics = task.build_metrics()
    data = next(iter(task.build_inputs(params.task.train_data)))
    train = tf.function(
        lambda x: task.train_step(x, model=model, optimizer=optimizer, metrics=metrics), jit_compile=jit_compile
    )
    logs = train(data)
    before = [variable.numpy() for variable in model.trainable_variables]
    train(data)
    changed = [np.any(v.numpy() != b) for v, b in zip(model.trainable_variables, before, strict=True)]
    validation = next(iter(task.build_inputs(params.task.validation_data)))
    evaluated = tf.function(lambda x: task.validation_step(x, model=model, metrics=metrics))(validation)
    assert np.isfinite(logs["loss"])
    assert np.isfinite(evaluated["loss"])
    return task, model, optimizer, changed
