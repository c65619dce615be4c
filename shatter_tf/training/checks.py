"""Finds what is wrong with settings before anything is built: `problems`, a line for each.

Each part of the settings checks itself (`problems()` of data, tasks, trainers and encoders, and distribution.problems);
here are the checks of what several parts must agree on, and of Model Garden's own parts.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator

import tensorflow as tf
from official.core import config_definitions as cfg
from official.modeling import hyperparams, optimization

from shatter_tf.encoders.registry import FAMILIES, EncoderConfig
from shatter_tf.errors import argument, first_line, nearest
from shatter_tf.tasks.registry import metric_names
from shatter_tf.tasks.step import OPTIMIZERS
from shatter_tf.training import distribution
from shatter_tf.training.device import AUTO

# Model Garden's settings that have an effect here; what others say would be ignored. Tasks have their own `used`.
_USED_BY_TRAINER = (
    *("optimizer_config", "train_steps", "steps_per_loop", "summary_interval", "checkpoint_interval", "max_to_keep"),
    *("validation_steps", "validation_interval", "best_checkpoint_eval_metric", "best_checkpoint_metric_comp"),
)
_USED_BY_DATA = (
    *("input_path", "global_batch_size", "tfds_name", "tfds_split", "tfds_data_dir"),
    *("enable_tf_data_service", "tf_data_service_address"),
)

# Settings of optimizers: the share of a running mean that a step keeps.
_FRACTIONS = ("beta_1", "beta_2", "rho", "momentum")


def problems(params: cfg.ExperimentConfig, vocabulary_size: int) -> list[str]:
    """Returns a line for everything in the settings that would fail later, or have no effect.

    Args:
      params: with every setting in place.
      vocabulary_size: wordpieces; 0 where the data could not be read: then what depends on it is not checked.
    """
    task = params.task
    trainer = params.trainer
    of_task = [f"task.{problem}" for problem in task.problems()]
    of_devices = distribution.problems(params.runtime)
    found = [
        *_ignored(params),
        *_encoder_problems(task.model.encoder, vocabulary_size),
        *_data_problems(task, vocabulary_size),
        *of_task,
        *(f"trainer.{problem}" for problem in trainer.problems()),
        *_optimizer_problems(trainer.optimizer_config),
        *_precision_problems(params.runtime),
        *_remote_problems(params),
        *_batch_problems(params),
        *of_devices,
    ]

    # What can be told only where the rest is right.
    if vocabulary_size and not of_task:
        metric = trainer.best_checkpoint_eval_metric
        known = metric_names(task)
        if metric not in known:
            found.append(
                f"trainer.best_checkpoint_eval_metric={metric}: use {', '.join(known)}{nearest(metric, known)}"
            )
    replicas = None if of_devices else distribution.count_replicas(params.runtime)
    if replicas and trainer.accumulation_steps > 0:
        found += distribution.batch_problems(params, replicas)
    return found


def _ignored(params: cfg.ExperimentConfig) -> Iterator[str]:
    """Yields a line for every setting of Model Garden's that was changed without effect."""
    usual = type(params)(task=type(params.task)(), trainer=type(params.trainer)())
    parts = {
        "task": (params.task, usual.task, params.task.used),
        "trainer": (params.trainer, usual.trainer, _USED_BY_TRAINER),
        "runtime": (params.runtime, usual.runtime, distribution.USED),
        "task.train_data": (params.task.train_data, usual.task.train_data, _USED_BY_DATA),
        "task.validation_data": (params.task.validation_data, usual.task.validation_data, _USED_BY_DATA),
    }
    for path, (part, default, used) in parts.items():
        for name in _inherited(type(part)):
            value = getattr(part, name)
            if name not in used and value != getattr(default, name):
                yield f"{path}.{name}={value}: has no effect here; leave it out"


def _inherited(config_class: type[hyperparams.Config]) -> list[str]:
    """Returns the settings of a config that Model Garden declares, and not the classes built on its own."""
    own = {
        name
        for cls in config_class.__mro__
        if not cls.__module__.startswith("official.")
        for name in inspect.get_annotations(cls)
    }
    return [field.name for field in dataclasses.fields(config_class) if field.name not in own]


def _encoder_problems(config: EncoderConfig, vocabulary_size: int) -> Iterator[str]:
    if config.type not in FAMILIES:
        yield f"task.model.encoder.type={config.type}: use {', '.join(FAMILIES)}{nearest(str(config.type), FAMILIES)}"
        return

    encoder = config.get()
    path = f"task.model.encoder.{config.type}"
    for problem in encoder.problems():
        yield f"{path}.{problem}"
    for name in ("output_range", "return_attention_scores"):
        if getattr(encoder, name, None):
            yield f"{path}.{name}={getattr(encoder, name)} is for encoders in Python only; leave it out"
    if encoder.vocab_size < vocabulary_size:
        yield f"{path}.vocab_size={encoder.vocab_size} is less than the vocabulary's {vocabulary_size} wordpieces"


def _data_problems(task: cfg.TaskConfig, vocabulary_size: int) -> Iterator[str]:
    for name in ("vocab_file", "lower_case", "normalizer"):
        own, training = (getattr(data, name, None) for data in (task.validation_data, task.train_data))
        if own != training:
            yield f"task.validation_data.{name}={own} is not that of training, {training}; leave it out"
    if not 0 <= task.train_data.seed < 2**32:
        yield f"task.train_data.seed={task.train_data.seed} is not in [0, 2^32)"

    longest = task.model.encoder.get().longest if task.model.encoder.type in FAMILIES else None
    for name in ("train_data", "validation_data"):
        data = getattr(task, name)
        if data.global_batch_size < 1:
            yield f"task.{name}.global_batch_size={data.global_batch_size} is not positive"
        if data.seq_length < 8 and (data.seq_length or vocabulary_size):
            yield f"task.{name}.seq_length={data.seq_length} is less than 8"
        elif longest and data.seq_length > longest:
            yield f"task.{name}.seq_length={data.seq_length} is longer than the encoder's {longest} positions"
        for problem in data.problems():
            yield f"task.{name}.{problem}"


def _precision_problems(runtime: cfg.RuntimeConfig) -> Iterator[str]:
    precision = runtime.mixed_precision_dtype
    if precision not in (AUTO, None, "float32", "bfloat16", "float16"):
        yield f"runtime.mixed_precision_dtype={precision}: use {AUTO}, float32, bfloat16, float16"
    elif precision == "float16" and runtime.distribution_strategy == distribution.TPU:
        yield "runtime.mixed_precision_dtype=float16: TPUs have bfloat16; use that"

    if runtime.loss_scale is not None and precision != "float16":
        yield f"runtime.loss_scale={runtime.loss_scale} is for runtime.mixed_precision_dtype=float16"
    elif runtime.loss_scale not in (None, "dynamic"):
        yield f"runtime.loss_scale={runtime.loss_scale}: a fixed scale would not skip steps; use dynamic"


def _batch_problems(params: cfg.ExperimentConfig) -> Iterator[str]:
    steps = params.trainer.accumulation_steps
    if params.task.whole_batches and steps > 1:
        yield f"trainer.accumulation_steps={steps}: this task compares the rows of a batch, and needs it in one part"


def _remote_problems(params: cfg.ExperimentConfig) -> Iterator[str]:
    runtime = params.runtime
    data = params.task.train_data
    if runtime.distribution_strategy == distribution.TPU and runtime.tpu not in (None, "", "local"):
        remote = f"runtime.tpu={runtime.tpu}: its hosts have only TensorFlow, and cannot"
        if not params.task.remote_hosts:
            yield f"{remote} read text; fine-tune on a TPU VM, runtime.tpu=local, or on GPUs"
        if data.enable_tf_data_service:
            yield f"{remote} take batches of a tf.data service; leave it out"

    if runtime.distribution_strategy == distribution.MULTI_WORKER and getattr(data, "tfds_name", ""):
        yield (
            f"task.train_data.tfds_name={data.tfds_name}: reading it would start TensorFlow before the machines have "
            f"met; write it to files, and give {argument('data_dir')}"
        )


def _optimizer_problems(config: optimization.OptimizationConfig) -> list[str]:
    """Returns a line for every setting with which training would fail, or ascend where it should descend."""
    name = config.optimizer.type
    found = []
    if name not in OPTIMIZERS:
        found.append(
            f"trainer.optimizer_config.optimizer.type={name}: use {', '.join(OPTIMIZERS)}, whose gradients can be "
            "summed and clipped before they are applied"
        )
    if config.ema is not None:
        found.append("trainer.optimizer_config.ema: its optimizer cannot skip steps that are not finite; leave it out")
    for kind in ("optimizer", "learning_rate", "warmup"):
        part = getattr(config, kind)
        for key, value in (part.get() or hyperparams.Config()).as_dict().items():
            where = f"trainer.optimizer_config.{kind}.{part.type}.{key}={value}"
            numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, (int, float))]
            if any(n < 0 for n in numbers):
                found.append(f"{where} is negative")
            elif key in _FRACTIONS and any(n >= 1 for n in numbers):
                found.append(f"{where} is not in [0, 1)")
            elif key == "name" and value is not None and not re.fullmatch(r"[A-Za-z0-9.][\w./>-]*", value, re.ASCII):
                found.append(f"{where}: TensorFlow takes letters, digits and ._/>- for a name")
            elif key.endswith("decay_steps") and any(n < 1 for n in numbers):
                found.append(f"{where} is too few")
    if found:
        return found
    try:
        with tf.Graph().as_default():  # an eager tensor would start the devices, before strategies can choose them
            factory = optimization.OptimizerFactory(config)
            factory.build_optimizer(factory.build_learning_rate())
    except (ValueError, TypeError) as error:
        found.append(
            f"trainer.optimizer_config: no {name} with a {config.learning_rate.type} learning rate follows from its "
            f"settings ({first_line(error)})"
        )
    return found
