"""The experiments by name: each is a task with a trainer's defaults.

An experiment is added by a line in EXPERIMENTS or, from outside this package, by `register`; docs/extending.md has the
steps. Other packages are found by plugins.py.

Settings left at None or 0 here are derived from others when a run starts; see training/settings.py.
"""

import dataclasses
import functools
from typing import Literal, Optional, Union

import tensorflow as tf
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.modeling import optimization

from shatter_tf import plugins
from shatter_tf.errors import UserError, argument, nearest
from shatter_tf.tasks.answer import QuestionAnsweringConfig
from shatter_tf.tasks.base import TaskAnswers
from shatter_tf.tasks.classify import ClassifyConfig
from shatter_tf.tasks.distil import DistilConfig
from shatter_tf.tasks.embed import EmbedConfig
from shatter_tf.tasks.masked_lm import PretrainConfig
from shatter_tf.tasks.regress import RegressConfig
from shatter_tf.tasks.tag import TagConfig

# Patterns in the names of variables that weight decay leaves alone: norms, biases, and what belongs to the partition.
NO_WEIGHT_DECAY = ["layer_norm", "LayerNorm", "bias"]

# Configs of tasks; Model Garden's task_factory binds each to its task.
EXPERIMENTS: dict[str, type[TaskAnswers]] = {}


@dataclasses.dataclass
class RuntimeConfig(cfg.RuntimeConfig):
    """Model Garden's runtime settings, of which two are chosen for the device unless they are set."""

    enable_xla: Union[bool, Literal["auto"]] = "auto"
    mixed_precision_dtype: Optional[str] = "auto"  # or float32, as None is, bfloat16, float16


@dataclasses.dataclass
class TrainerConfig(cfg.TrainerConfig):
    """Model Garden's trainer settings, and three of ours."""

    # Parts in which every replica processes its share of a batch, one after the other, to save memory.
    accumulation_steps: int = 1
    # Steps whose loss or gradients are not finite are skipped; this many in a row end the run.
    max_skipped_steps: int = 20
    # Evaluations in a row that are no better than the best, which end training; 0 trains to the end.
    patience: int = 0

    def problems(self) -> list[str]:
        """Returns a line for every value that would fail later."""
        positive = (
            *("train_steps", "steps_per_loop", "checkpoint_interval", "validation_interval", "summary_interval"),
            *("accumulation_steps", "max_skipped_steps", "max_to_keep"),
        )
        found = [f"{name}={getattr(self, name)} is not positive" for name in positive if getattr(self, name) < 1]
        if self.patience < 0:
            found.append(f"patience={self.patience} is negative; 0 trains to the end")
        if self.validation_steps < 1 and self.validation_steps != -1:
            found.append(f"validation_steps={self.validation_steps}: use -1 for all of the validation data")
        if self.best_checkpoint_metric_comp not in ("higher", "lower"):
            found.append(f"best_checkpoint_metric_comp={self.best_checkpoint_metric_comp}: use higher, lower")
        return found


def register(name: str, config_class: type[TaskAnswers]) -> None:
    """Makes `--experiment=name` stand for a task, here and for Model Garden's own driver."""
    EXPERIMENTS[name] = config_class
    exp_factory.register_config_factory(name)(functools.partial(_experiment, config_class))


def full_name(name: str) -> str:
    """Returns the name of an experiment, whose room may be left out.

    Example:
    >>> full_name("classify"), full_name("shatter/tag")
    ('shatter/classify', 'shatter/tag')
    """
    return f"shatter/{name}" if f"shatter/{name}" in EXPERIMENTS else name


def get_experiment(name: str) -> cfg.ExperimentConfig:
    """Returns the defaults of an experiment; raises UserError, with the nearest names, for an unknown one."""
    if name not in EXPERIMENTS:
        raise UserError(
            f"{argument('experiment')}={name}: no such experiment; use {', '.join(EXPERIMENTS)}"
            f"{nearest(name, EXPERIMENTS)}"
        )
    return _experiment(EXPERIMENTS[name])


def _experiment(config_class: type[TaskAnswers]) -> cfg.ExperimentConfig:
    task = config_class()
    task.train_data.global_batch_size = 32
    task.validation_data.global_batch_size = 0

    optimizer = dict(
        beta_2=0.98,
        epsilon=1e-6,
        weight_decay_rate=0.01,
        exclude_from_weight_decay=NO_WEIGHT_DECAY,
    )
    learning_rate = dict(initial_learning_rate=task.learning_rate, end_learning_rate=0.0)
    return cfg.ExperimentConfig(
        task=task,
        runtime=RuntimeConfig(),
        trainer=TrainerConfig(
            train_steps=task.train_steps,
            steps_per_loop=0,
            summary_interval=0,
            checkpoint_interval=0,
            validation_interval=0,
            max_to_keep=2,
            best_checkpoint_metric_comp="higher",
            optimizer_config=optimization.OptimizationConfig(
                dict(
                    optimizer=dict(type="adamw", adamw=optimizer),
                    learning_rate=dict(type="polynomial", polynomial=learning_rate),
                    warmup=dict(type="polynomial"),
                )
            ),
        ),
    )


def metric_names(config: cfg.TaskConfig) -> list[str]:
    """Returns the names of what an evaluation reports; starts no device."""
    with tf.Graph().as_default():
        task = task_factory.get_task(config)
        return ["loss", *(metric.name for metric in task.build_metrics(training=False)), *task.aggregated_metrics]


register("shatter/pretrain", PretrainConfig)
register("shatter/classify", ClassifyConfig)
register("shatter/regress", RegressConfig)
register("shatter/tag", TagConfig)
register("shatter/answer", QuestionAnsweringConfig)
register("shatter/embed", EmbedConfig)
register("shatter/distil", DistilConfig)
plugins.load()
