"""What every task answers about itself, so that nothing else has to ask which task it is.

A task is a file: a config (`TaskAnswers`), which knows its data and its metric, and a task (`BaseTask`), Model Garden's
with what it lacks: exact losses, strict restores, data that resumes, and what it serves.
"""

import dataclasses
import functools
import os
import shlex
from collections.abc import Iterable
from typing import Any, ClassVar, Optional

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task
from official.core import config_definitions as cfg

from shatter_tf.checkpoints import restore_pretrained
from shatter_tf.console import notice
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.data.report import Report
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import (
    NORMALIZER_FILE,
    read_normalizer,
    read_vocabulary,
    suitable_size,
    train_vocabulary,
)
from shatter_tf.errors import UserError, argument
from shatter_tf.tasks import recipe
from shatter_tf.tasks.signature import Signature, embed, token_ids
from shatter_tf.tasks.step import Losses, LossScale, mean_loss, take_step, without_autograph

TEACHER_DIR = "teacher"  # in a model_dir: what a teacher made of the texts


@dataclasses.dataclass
class Pretrained:
    """What a run takes over from the one in `init_checkpoint`."""

    directory: str
    vocabulary: list[str]
    lower_case: bool
    normalizer: str = ""


@dataclasses.dataclass
class Teacher(Pretrained):
    """The run in `init_teacher`, which another learns from; `task` has its settings, and `weights` is their hash."""

    task: Optional[cfg.TaskConfig] = None
    weights: str = ""


@dataclasses.dataclass
class Data:
    """A run's data, opened once.

    Attributes:
      train, validation: what the task's loaders read from.
      vocabulary, lower_case, normalizer: of the tokenizer.
      problems: a line for everything in the data that would stop the run later.
      notes: a line for every file, which says how it was understood.
      unlabelled: rows like those of `train`, without labels, to learn from the teacher.
      teacher: the run that is learned from, if there is one.
      converted: whether training starts from weights that `shatter convert` read.
    """

    train: Any
    validation: Any
    vocabulary: list[str]
    lower_case: bool
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    normalizer: str = ""
    unlabelled: list = dataclasses.field(default_factory=list)
    teacher: Optional[Teacher] = None
    converted: bool = False

    def of(self, params: cfg.DataConfig) -> Any:
        """Returns what the loader of `params` reads from."""
        return self.train if params.is_training else self.validation

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that all loaders share."""
        return Tokenizer(self.vocabulary, self.lower_case, self.normalizer)


class TaskAnswers:
    """A mixin for the config of a task, a Model Garden TaskConfig.

    Attributes:
      main_metric: what picks the best checkpoint, unless `trainer.best_checkpoint_eval_metric` is set.
      learning_rate, train_steps: of the experiment's defaults; `recipe` replaces them where the data is known.
      texts: what the parts of an input are called.
      remote_hosts: whether machines without this package, TPU hosts, can read its data.
      whole_batches: whether a row's loss depends on the other rows of its batch.
      used: Model Garden's settings that have an effect here; all others are refused when they are changed.
    """

    main_metric: str
    learning_rate: ClassVar[float] = 1e-4
    train_steps: ClassVar[int] = 1_000
    texts: tuple[str, ...] = ("text",)
    remote_hosts: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = False
    used: ClassVar[tuple[str, ...]] = ("init_checkpoint", "model", "train_data", "validation_data", "name")

    def open_data(self, data_dir: Optional[str], pretrained: Optional[Pretrained]) -> tuple["TaskAnswers", Data]:
        """Opens the training and validation data, and returns the settings that follow from it.

        Args:
          data_dir: where both are, if the settings do not name them.
          pretrained: what the run starts from.

        Returns:
          A copy of this config with everything set that the data decides; and the data.

        Raises:
          UserError: for data that cannot be read.
        """
        raise NotImplementedError

    def learn_from(self, teacher: Teacher) -> None:
        """Sets what follows from a teacher; raises UserError where there is nothing to be learned from it."""
        raise UserError(f"{argument('init_teacher')}={teacher.directory}: this experiment has no use for a teacher")

    def problems_with(self, teacher: Teacher) -> list[str]:
        """Returns a line for everything in which a teacher does not fit the data, which has been opened."""
        return []

    def rows(self, data: Data) -> tuple[int, int]:
        """Returns how many rows a pass over the training data has, and over the validation data."""
        return len(data.train) + len(data.unlabelled), len(data.validation)

    def recipe(self, data: Data) -> recipe.Recipe:
        """Yields settings that suit the data and the encoder, by name; each holds unless it is set elsewhere."""
        return recipe.fine_tuning(self, self.rows(data)[0], data.converted)

    def follow(self, trainer: cfg.TrainerConfig) -> None:
        """Sets what is unset and follows from the settings of the training."""

    def too_few(self, data: Data) -> list[str]:
        """Returns a line if there are fewer rows than a batch has."""
        rows = self.rows(data)[0]
        batch_size = self.train_data.global_batch_size
        return [f"{rows} training rows are fewer than global_batch_size={batch_size}"] if rows < batch_size else []

    def suitable_config(self, data: Data, on_cpu: bool) -> str:
        """Returns the name of the config file whose encoder suits the data, where nobody says how large it is."""
        return recipe.FROM_SCRATCH

    def problems(self) -> list[str]:
        """Returns a line for every setting that would fail later."""
        return []

    def compared_by(self, trainer: cfg.TrainerConfig) -> tuple[str, int]:
        """Returns the metric that runs are compared by, and 1 where higher is better, else -1."""
        return trainer.best_checkpoint_eval_metric, 1 if trainer.best_checkpoint_metric_comp == "higher" else -1

    def class_labels(self) -> Optional[list[str]]:
        """Returns the labels, if each text has one of them; else None."""
        return None

    def sample_inputs(self, tokenizer: Tokenizer, length: int) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs, int32 [1, L <= length], for the beginning of the first validation text.

        Raises:
          UserError: when that text cannot be read, or the data has no texts to be looked at.
        """
        raise UserError(f"the data of {type(self).__name__} is not looked at for a text")

    def describe_limits(self, seq_length: int) -> str:
        """Returns what a served model does with long texts, for model cards."""
        return f"texts longer than {seq_length} wordpieces are cut"

    def measure_baseline(
        self, data: Data, most_rows: Optional[int] = None, before: Optional[dict] = None
    ) -> Optional[dict]:
        """Returns what simple models achieve on the data, as `baseline.measure` does; None if there are none."""
        return None

    def report(self, data: Data) -> Optional[Report]:
        """Returns what to say about the data before the first step; None if that was said when it was made."""
        return None

    def next_command(self, model_dir: str) -> str:
        """Returns the command that is usually wanted after training in `model_dir`."""
        served = os.path.join("served", os.path.basename(model_dir))
        return f"shatter export --model_dir={shlex.quote(model_dir)} --export_dir={shlex.quote(served)}"


@dataclasses.dataclass
class FineTuning(TaskAnswers):
    """A mixin for the config of a task that starts from a pretrained encoder.

    Attributes:
      restore_weights: False takes the vocabulary and the encoder's settings from `init_checkpoint`, but random weights,
        which shows what the same fine-tuning reaches without pretraining.
    """

    restore_weights: bool = True


def known_vocabulary(train: cfg.DataConfig, pretrained: Optional[Pretrained]) -> Optional[list[str]]:
    """Returns the vocabulary in the settings, or that of the pretraining run, or None.

    Sets `train.vocab_file` where a pretraining run has it, and `train.normalizer` and `train.lower_case` where a file
    beside the vocabulary says which.

    Raises:
      UserError: when the file cannot be used.
    """
    if train.vocab_file:
        vocabulary = read_vocabulary(train.vocab_file)
        _take_normalizer(train)
        return vocabulary
    if pretrained is None:
        if train.normalizer:
            raise UserError(
                f"task.train_data.normalizer={train.normalizer} is for a vocabulary that is given; set "
                "task.train_data.vocab_file, or leave it out"
            )
        return None
    train.vocab_file = os.path.join(pretrained.directory, VOCABULARY_FILE)
    return pretrained.vocabulary


def _take_normalizer(train: cfg.DataConfig) -> None:
    """Sets how text is normalized for the vocabulary file; raises UserError when the settings say something else."""
    found = read_normalizer(train.vocab_file)
    if found is None:
        return
    normalizer, lower_case = found
    for name, own, is_set in (
        ("normalizer", normalizer, train.normalizer != ""),
        ("lower_case", lower_case, not train.lower_case),
    ):
        value = getattr(train, name)
        if is_set and value != own:
            raise UserError(
                f"task.train_data.{name}={value} is not that of {train.vocab_file}, {own}, says {NORMALIZER_FILE} "
                "beside it; leave it out"
            )
        setattr(train, name, own)


def vocabulary_of(texts: Iterable[str], lower_case: bool) -> list[str]:
    """Returns a vocabulary trained on the texts of a task that starts from nothing, of a size that suits them."""
    texts = list(texts)
    return train_vocabulary(texts, suitable_size(sum(map(len, texts))), lower_case)


def refuse_tfds(config: cfg.TaskConfig, instead: str) -> None:
    """Raises UserError when the data of a task that cannot read TensorFlow Datasets names some; says what to give."""
    for name in ("train_data", "validation_data"):
        tfds_name = getattr(config, name).tfds_name
        if tfds_name:
            raise UserError(
                f"task.{name}.tfds_name={tfds_name}: this task does not read TensorFlow Datasets; give {instead}"
            )


def choose_tfds_splits(config: cfg.TaskConfig, data_dir: Optional[str]) -> None:
    """Sets the splits of TensorFlow Datasets that are not set; raises UserError when files are named, too."""
    for name, split in (("train_data", "train"), ("validation_data", "validation")):
        data = getattr(config, name)
        where = f"task.{name}.tfds_name={data.tfds_name}"
        if data.tfds_name and data_dir:
            raise UserError(
                f"{argument('data_dir')}={data_dir} and {where}: only one is read; leave out {argument('data_dir')}, "
                f"or set task.{name}.tfds_name=''"
            )
        if data.tfds_name and data.input_path:
            raise UserError(f"task.{name}.input_path={data.input_path} and {where}: only one is read; leave out one")
        data.tfds_split = data.tfds_split or (split if data.tfds_name else "")


class BaseTask(base_task.Task):
    """What all tasks do differently from Model Garden's.

    Subclasses add `weights` and `loss_sums`, and where they need it `evaluation_logs` and what aggregates these.

    Args:
      params: the task's config, a TaskAnswers.
      logging_dir, name: Model Garden's.
      data: of the run; loaders open what they need if it is left out.

    Attributes:
      loader_class: makes batches: `loader_class(data config, what it reads from, tokenizer)`, where it opens what
        is left out, with `load(input_context, start_step)`.
      objectives: the names of what `weights` and `loss_sums` return.
      aggregated_metrics: the names of the metrics that are computed from all predictions of an evaluation.
    """

    loader_class: ClassVar[type]
    objectives: ClassVar[tuple[str, ...]] = ("loss",)
    aggregated_metrics: tuple[str, ...] = ()

    def __init__(self, params, logging_dir=None, name=None, data: Optional[Data] = None):
        base_task.Task.__init__(self, params, logging_dir, name=name)
        self.data = data

    # === Data ===

    def build_inputs(
        self, params: cfg.DataConfig, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0
    ) -> tf.data.Dataset:
        """Returns batches from step `start_step` of training on; evaluation has only one beginning."""
        loader = self.build_loader(params)
        return without_autograph(loader.load)(input_context, start_step if params.is_training else 0)

    def build_loader(self, params: cfg.DataConfig):
        """Returns the loader of the training or the validation data; it opens what this task was not given."""
        if self.data is None:
            return self.loader_class(params)
        return self.loader_class(params, self.data.of(params), self.data.tokenizer)

    # === Model ===

    def pretrained_parts(self, model: tf_keras.Model) -> dict[str, tf_keras.layers.Layer]:
        """Returns the parts of a model that a pretraining run may have, by their names in checkpoints."""
        return dict(encoder=model.checkpoint_items["encoder"])

    def initialize(self, model):
        """Restores what `init_checkpoint` has, if it is set and its weights are wanted."""
        config = self.task_config
        if not config.init_checkpoint:
            return
        if getattr(config, "restore_weights", True):
            restore_pretrained(self.pretrained_parts(model), config.init_checkpoint, model)
        else:
            notice("starting from random weights, because task.restore_weights=false")

    def prepare(self) -> None:
        """Builds and restores what training and evaluation need beside the model, in the strategy's scope."""

    # === Steps ===

    def weights(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the weight of a batch for each objective, float32 []: its rows, by default.

        It must follow from the inputs only: it is known before the model is called.
        """
        return dict(loss=tf.reduce_sum(row_weights(inputs)))

    def loss_sums(self, inputs: dict[str, tf.Tensor], outputs) -> dict[str, tf.Tensor]:
        """Returns the summed losses of a batch for each objective, float32 []."""
        raise NotImplementedError

    def losses(self, inputs: dict[str, tf.Tensor], outputs) -> Losses:
        """Returns for each objective the sum of a batch's losses, and the weight to divide it by."""
        weights = self.weights(inputs)
        sums = self.loss_sums(inputs, outputs)
        return {name: (sums[name], weight) for name, weight in weights.items()}

    def build_losses(self, labels, model_outputs, metrics=None, aux_losses=None):
        """Returns the mean loss of a batch on its own, float32 []: Model Garden's name for it."""
        return mean_loss(self.losses(labels, model_outputs))

    @classmethod
    def create_optimizer(cls, optimizer_config, runtime_config=None, dp_config=None):
        """Returns Model Garden's optimizer, without its loss scaling: `train_step` has that."""
        return super().create_optimizer(optimizer_config, None, dp_config)

    @without_autograph
    def train_step(
        self,
        inputs,
        model,
        optimizer,
        metrics=None,
        accumulation_steps: int = 1,
        loss_scale: Optional[LossScale] = None,
    ):
        """Takes a step on the global batch; see `step.take_step`, whose `parts` is `accumulation_steps`."""
        return take_step(self, inputs, model, optimizer, metrics, accumulation_steps, loss_scale)

    @without_autograph
    def validation_step(self, inputs, model, metrics=None):
        """Returns the mean loss of a batch, `losses` as `step.take_step` does, and `evaluation_logs`."""
        outputs = self.inference_step(inputs, model)
        self.process_metrics(metrics or [], inputs, outputs)
        losses = self.losses(inputs, outputs)
        means = {name: (tf.math.divide_no_nan(total, weight), weight) for name, (total, weight) in losses.items()}
        return {self.loss: mean_loss(losses), "losses": means, **self.evaluation_logs(inputs, outputs)}

    def evaluation_logs(self, inputs: dict[str, tf.Tensor], outputs) -> dict[str, tf.Tensor]:
        """Returns what `aggregate_logs` collects of a batch, tensors [B, …] by name."""
        return {}

    def learning_problem(self, loss: float) -> Optional[str]:
        """Returns what a training loss says about a run that does not learn; None if all is well."""
        return None

    # === Serving ===

    def predict(self, model: tf_keras.Model, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what a trained model gives for the encoder's inputs, int32 [B, L], as float32 [B, …] by name."""
        raise NotImplementedError

    def decode(self, outputs: dict[str, tf.Tensor], rest: Any = None) -> dict[str, tf.Tensor]:
        """Returns the answers for what `predict` returned: by default the same. `rest` is for signatures' own."""
        return outputs

    def signatures(self, model: tf_keras.Model, tokenizer: Tokenizer) -> dict[str, Signature]:
        """Returns the functions that are served of a trained model, by name.

        Every task has `embed` and `token_ids`, which is `predict` and `decode`. Subclasses add `serving_default`, what
        the run was trained for.
        """
        encoder = self.pretrained_parts(model)["encoder"]
        return dict(
            embed=embed(encoder, tokenizer, self.task_config.train_data.seq_length),
            token_ids=token_ids(functools.partial(self.predict, model), self.decode),
        )


def row_weights(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns 1 for each row of a batch and 0 for padding rows, float32 [B]; see `batches_of_rows`."""
    rows = tf.shape(inputs["input_word_ids"])[:1]
    return inputs.get("row_weights", tf.ones(rows))


def label_weights(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns 1 for each row of a batch that has a label, and 0 for others and padding rows, float32 [B]."""
    weights = row_weights(inputs)
    return weights * tf.cast(inputs["has_label"], tf.float32) if "has_label" in inputs else weights


def rows_of_logs(logs: dict[str, list[tf.Tensor]], *names: str) -> dict[str, np.ndarray]:
    """Returns what all replicas logged under `names`, without padding rows."""
    logs = {name: np.concatenate([value.numpy() for value in logs[name]]) for name in ("row_weights", *names)}
    return {name: logs[name][logs["row_weights"] > 0] for name in names}
