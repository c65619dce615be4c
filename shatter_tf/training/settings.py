"""From flags, files and data to an experiment with every setting in place, checked before any graph is built.

Later sources override earlier ones: the experiment's defaults; the encoder of --init_checkpoint; --config or
--config_file; --learning_rate and other flags for single settings, and --params_override. What is still unset is what
the run in --model_dir began with; else it follows from the data, the encoder's size, the device and train_steps.
"""

import contextlib
import copy
import functools
import os
from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf
from official.core import config_definitions as cfg

from shatter_tf.checkpoints import best_or_latest_checkpoint, fingerprint, newest_step
from shatter_tf.config_files import find_config
from shatter_tf.console import notice, warn
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.encoders import registry as encoders
from shatter_tf.errors import UserError, argument, collected, raise_all
from shatter_tf.files import real_path
from shatter_tf.tasks import registry
from shatter_tf.tasks.base import Data, Pretrained, Teacher
from shatter_tf.tasks.registry import get_experiment
from shatter_tf.training import checks, device, distribution, run_dir, trial
from shatter_tf.training.overrides import (
    ENCODER,
    dig,
    full_name,
    leaves,
    look_up,
    merge,
    nested,
    override_all,
    read_config_file,
)
from shatter_tf.training.run_dir import Run

# Settings that validation data takes over from training data unless they are set for it.
_SHARED_DATA_FIELDS = [
    "global_batch_size",
    "seq_length",
    "mask_rate",
    "shortest",
    "max_predictions_per_seq",
    "vocab_file",
    "lower_case",
    "normalizer",
    "doc_stride",
    "max_query_length",
    "labels",
    "text_fields",
    "label_field",
    "label_separator",
    "long_text",
    "max_windows",
    "length_buckets",
    "label_mean",
    "label_scale",
    "tfds_name",
    "tfds_data_dir",
]


# Whoever sets one of these says which encoder it is.
_SIZES = {"hidden_size", "num_layers", "num_parts", "num_attention_heads", "intermediate_size"}


def resolve(
    experiment: str,
    *,
    config: Optional[str] = None,
    config_file: Optional[str] = None,
    params_override: str = "",
    data_dir: Optional[str] = None,
    init_checkpoint: Optional[str] = None,
    init_teacher: Optional[str] = None,
    model_dir: Optional[str] = None,
    budget: Optional[float] = None,
    **flags: Any,
) -> Run:
    """Returns the run that the arguments, the flags of `shatter train`, describe, with its data opened.

    Args:
      budget: the seconds that the run may take, which then decide train_steps.
      **flags: `learning_rate`, and of FLAGS; None counts as not given.

    Raises:
      UserError: with everything in them, or in the files and devices they name, that would stop the run later; with
        only the names and types of settings where these are wrong.
    """
    experiment = registry.full_name(experiment)
    get_experiment(experiment)
    flags = {name: value for name, value in flags.items() if value is not None}
    if config and config_file:
        raise UserError(f"{argument('config')}={config} and {argument('config_file')}={config_file}: give one of them")
    if budget and "train_steps" in flags:
        raise UserError(f"{argument('budget')} sets the steps, and so does {argument('train_steps')}: give one of them")
    config_file = find_config(config) if config else config_file
    problems: list[str] = []
    initial = before = None
    step = 0
    if model_dir and run_dir.exists(model_dir):
        with collected(problems):
            before = run_dir.read(model_dir)
            before = before if before.experiment == experiment else None
            step = newest_step(model_dir) if before else 0
    initial_dir = init_checkpoint
    if init_checkpoint and step and before and before.params.task.init_checkpoint and not run_dir.exists(initial_dir):
        notice(f"{argument('init_checkpoint')}={init_checkpoint}: not there; {model_dir} has all that is needed of it")
        initial_dir = model_dir
    if init_checkpoint:
        with collected(problems):
            initial = run_dir.read(initial_dir, "init_checkpoint")

    teacher = None
    if init_teacher:
        with collected(problems):
            teacher = _read_teacher(init_teacher, model_dir)

    # Settings: what was given, then what the data decides, then what follows.
    params, given = combine(experiment, config_file, params_override, initial, init_checkpoint, flags)
    if params.task.init_checkpoint != (init_checkpoint if initial else ""):
        problems.append(
            f"task.init_checkpoint={params.task.init_checkpoint}: give {argument('init_checkpoint')}, which is checked"
        )
    if getattr(params.task, "init_teacher", "") != "":
        problems.append(
            f"task.init_teacher={params.task.init_teacher}: give {argument('init_teacher')}, which is checked"
        )
    if teacher:
        with collected(problems):
            params.task.learn_from(teacher)
    if before and not problems:
        problems += _changed_teacher(before.params.task, params.task)
    # A vocabulary that was trained on the task's own texts stays what it was, as does one whose file is gone.
    vocab_file = getattr(params.task.train_data, "vocab_file", None)  # a corpus has its own
    is_ours = not tf.io.gfile.exists(vocab_file) if vocab_file else not initial
    if before and is_ours and vocab_file is not None:
        params.task.train_data.vocab_file = os.path.join(model_dir, VOCABULARY_FILE)
        if vocab_file:
            given = merge(given, nested("task.train_data.vocab_file", params.task.train_data.vocab_file))
    converted = before.converted if before else _is_converted(initial, params.task)
    data = None
    if not problems:  # else it is not known which vocabulary the data is for
        pretrained = initial and Pretrained(initial_dir, initial.vocabulary, initial.lower_case, initial.normalizer)
        with collected(problems):
            params.task, data = params.task.open_data(data_dir, pretrained)
            problems += data.problems
            normalizer = getattr(params.task.train_data, "normalizer", data.normalizer)
            if normalizer != data.normalizer:  # of another package's task, which does not know it
                problems.append(f"task.train_data.normalizer={normalizer}: this task does not pass it to its Data")
            data.converted = converted
            if teacher:
                data.teacher = teacher
                problems += params.task.problems_with(teacher)
            if initial and initial.vocabulary != data.vocabulary:
                problems.append(
                    f"{argument('init_checkpoint')}={init_checkpoint}: its vocabulary is not the one of this run"
                )
    vocabulary = data.vocabulary if data else []
    chosen: dict = {}
    said: dict[str, Any] = {}
    if data:
        chosen, said = _choose(params, given, data, before, len(vocabulary), bool(initial))
        problems += params.task.too_few(data)
    _choose_device(params.runtime, before)
    resolved = derive(params, merge(chosen, given), len(vocabulary))

    # Checks.
    problems += checks.problems(resolved, len(vocabulary))
    if 0 < resolved.trainer.train_steps < step:
        problems.append(f"trainer.train_steps={resolved.trainer.train_steps}: the run has already taken {step} steps")
    run = Run(
        experiment,
        resolved,
        vocabulary,
        data.lower_case if data else True,
        data,
        {} if before else said,
        before,
        normalizer=data.normalizer if data else "",
        converted=converted,
    )
    if model_dir and data:
        with collected(problems):
            run_dir.check(model_dir, run)
    # A step is tried on one device: elsewhere it would say little, and each machine would find other steps.
    if budget and not distribution.problems(params.runtime) and distribution.count_replicas(params.runtime) != 1:
        problems.append(f"{argument('budget')} is for one device; give {argument('train_steps')}")
    if budget and budget <= trial.START_SECONDS:
        problems.append(f"{argument('budget')}: starting takes {trial.START_SECONDS:.0f} s; give more")
    raise_all(problems)
    if before:
        _tell_changes(given, before, run)

    # How long it may take: only now is it known that a step can be tried.
    if budget and before:
        notice(f"{argument('budget')} was for the start of this run; it goes on to {run.params.trainer.train_steps}")
    elif budget:
        way, seconds = trial.fastest(run)
        device.apply(params.runtime, way)
        params.trainer.train_steps = said["train_steps"] = trial.steps_within(budget, seconds, run)
        run.params = derive(params, merge(chosen, given), len(vocabulary))
    _warn_of_idle_steps(run.params)
    return run


def _is_converted(initial: Optional[Run], task: cfg.TaskConfig) -> bool:
    """Returns whether training starts from the weights of a run that was converted, or started from such a one."""
    return bool(initial and (initial.converted or initial.converted_from) and getattr(task, "restore_weights", True))


def _read_teacher(init_teacher: str, model_dir: Optional[str]) -> Teacher:
    """Returns the run to learn from; raises UserError when it cannot be read, or is the one that learns."""
    if model_dir and real_path(model_dir) == real_path(init_teacher):
        raise UserError(f"{argument('init_teacher')}={init_teacher}: a run cannot learn from itself")
    run = run_dir.read(init_teacher, "init_teacher")
    weights = fingerprint(best_or_latest_checkpoint(init_teacher, "init_teacher"))
    return Teacher(init_teacher, run.vocabulary, run.lower_case, run.normalizer, run.params.task, weights)


def _changed_teacher(before: cfg.TaskConfig, task: cfg.TaskConfig) -> list[str]:
    """Returns a line if a run would go on with another teacher than it began with, or without one."""
    was, now = (getattr(config, "teacher_weights", "") for config in (before, task))
    if was == now:
        return []
    if not now:
        return [f"the run began with {argument('init_teacher')}={before.init_teacher}; give it again"]
    return [
        f"{argument('init_teacher')}={task.init_teacher}: not the teacher that this run began with, or not with the "
        "same weights; name a new directory"
    ]


def _tell_changes(given: dict, before: Run, run: Run) -> None:
    """Says which of the settings that were given, and what data, are not those that the run in model_dir had so far."""
    old = before.params.as_dict()
    for name, value in leaves(given):
        was = look_up(old, name)
        if was is not None and was != value:
            notice(f"from here on {name}={value}; so far it was {was}")
    path, was = (settings.task.train_data.input_path for settings in (run.params, before.params))
    run.data_sha256 = run_dir.content_hash(run.data.train)
    if before.data_sha256 not in (None, run.data_sha256):
        warn(f"the training data is not what it was: from here on it is {path}, so far it was another {was}")
    elif before.data_sha256 is None and path != was:
        notice(f"from here on the training data is {path}; so far it was {was}")


def _choose_device(runtime: cfg.RuntimeConfig, before: Optional[Run]) -> None:
    """Computes as the run `before` did, or else in the way that is known to be fastest here, unless a way is set."""
    for name in ("enable_xla", "mixed_precision_dtype") if before else ():
        if getattr(runtime, name) == device.AUTO:
            setattr(runtime, name, getattr(before.params.runtime, name))
    device.choose(runtime)


def _choose(
    params: cfg.ExperimentConfig, given: dict, data: Data, before: Optional[Run], vocabulary_size: int, pretrained: bool
) -> tuple[dict, dict[str, Any]]:
    """Sets what was not given: as in the run `before`, or else as suits the data.

    Returns:
      These settings, nested; and what to tell a user of them, by short names.
    """
    chosen: dict = {}
    said: dict[str, Any] = {}

    def choose(name: str, value: Any) -> bool:
        nonlocal chosen
        if look_up(merge(chosen, given), name) is not None:
            return False
        if before:
            value = functools.reduce(getattr, name.split("."), before.params)
        setting = nested(name, value)
        params.override(copy.deepcopy(setting), is_strict=True)
        chosen = merge(chosen, setting)
        return True

    # The encoder's size.
    of_encoder = encoders.canonical(dig(given, *ENCODER))
    if before:
        _keep_encoder(before.params.task.model.encoder, of_encoder, choose)
    is_sized = any(not _SIZES.isdisjoint(of_encoder.get(family, {})) for family in encoders.FAMILIES)
    if not pretrained and not is_sized:
        on_cpu = not tf.config.list_physical_devices("GPU") and params.runtime.distribution_strategy != distribution.TPU
        said["encoder"] = params.task.suitable_config(data, on_cpu)
        like = read_config_file(find_config(said["encoder"]))
        for name, value in leaves(dig(like, *ENCODER), ".".join((*ENCODER, ""))):
            choose(name, value)

    _derive_encoder(params, merge(chosen, given), vocabulary_size)
    for flag, value in params.task.recipe(data):
        with contextlib.suppress(UserError):  # a schedule without one learning rate, which its user has set
            if choose(full_name(params, flag), value) and "validation_data" not in flag:
                said[flag.rpartition(".")[-1]] = value
    return chosen, said


def _keep_encoder(before: encoders.EncoderConfig, given: dict, choose: Callable[[str, Any], bool]) -> None:
    """Chooses the encoder `before` again, but for what is given for its family or, as that stands for all, Shatter."""
    family = given.get("type", before.type)
    if family != before.type:
        return
    own = before.get()
    of_family = {*given.get(family, {}), *(own.own_names.get(name, name) for name in given.get(encoders.DEFAULT, {}))}
    choose(".".join((*ENCODER, "type")), family)
    for name, value in own.as_dict().items():
        if name not in of_family:
            choose(".".join((*ENCODER, family, name)), value)


def combine(
    experiment: str,
    config_file: Optional[str],
    params_override: str,
    initial: Optional[Run] = None,
    init_checkpoint: Optional[str] = None,
    flags: Optional[dict[str, Any]] = None,
) -> tuple[cfg.ExperimentConfig, dict]:
    """Returns an experiment's settings with those of a pretraining run, a file and flags, and what these two give.

    Raises:
      UserError: for settings that do not exist, or have the wrong type.
    """
    params = get_experiment(experiment)
    if initial:
        params.task.model.encoder.override(initial.params.task.model.encoder.as_dict(), is_strict=True)
        params.task.init_checkpoint = init_checkpoint
        for name in ("lower_case", "normalizer"):
            if hasattr(params.task.train_data, name):
                setattr(params.task.train_data, name, getattr(initial, name))
    given = override_all(params, config_file, params_override, flags or {})
    _share_with_validation(params.task, given)
    return params, given


def _warn_of_idle_steps(params: cfg.ExperimentConfig) -> None:
    """Warns when the learning rate is zero before the end."""
    rate = params.trainer.optimizer_config.learning_rate
    steps = params.trainer.train_steps
    schedule = rate.get().as_dict()
    last = schedule.get("decay_steps", steps)
    if last < steps and not schedule.get("end_learning_rate", schedule.get("alpha")):
        warn(
            f"the learning rate is 0 from step {last} on, but trainer.train_steps={steps}; leave out "
            f"trainer.optimizer_config.learning_rate.{rate.type}.decay_steps, and it follows from that"
        )


def resolve_without_data(*, config_file: Optional[str] = None, params_override: str = "") -> cfg.ExperimentConfig:
    """Returns pretraining's settings as `resolve` does, for a vocabulary of the encoder's size; raises UserError."""
    params, given = combine("shatter/pretrain", config_file, params_override)
    size = params.task.model.encoder.shatter.vocab_size
    params = derive(params, given, size)
    raise_all(checks.problems(params, size))
    return params


def derive(params: cfg.ExperimentConfig, given: dict, vocabulary_size: int) -> cfg.ExperimentConfig:
    """Returns the settings with everything set that follows from others.

    Args:
      params: the settings, with what the data decides.
      given: what a user set.
      vocabulary_size: of the data; 0 if it could not be read.
    """
    params = params.replace()
    _share_with_validation(params.task, given)
    _derive_encoder(params, given, vocabulary_size)
    _derive_trainer(params, given)
    return params


def _share_with_validation(task: cfg.TaskConfig, explicit: dict) -> None:
    own = {*dig(explicit, "task", "validation_data")}
    if "seq_length" in own:
        own.add("max_predictions_per_seq")  # else longer rows would be masked less
    if "input_path" in own:
        own |= {"tfds_name", "tfds_data_dir"}
    for name in _SHARED_DATA_FIELDS:
        if hasattr(task.train_data, name) and name not in own:
            setattr(task.validation_data, name, copy.deepcopy(getattr(task.train_data, name)))


def _derive_encoder(params: cfg.ExperimentConfig, given: dict, vocabulary_size: int) -> None:
    """Fits the encoder to the vocabulary; Shatter's settings hold for other families too, unless set for them."""
    encoder = params.task.model.encoder
    given = encoders.canonical(dig(given, *ENCODER))
    default, chosen = given.get(encoders.DEFAULT, {}), given.get(encoder.type, {})
    pretrained = bool(params.task.init_checkpoint)
    if vocabulary_size and not pretrained and "vocab_size" not in default:
        encoder.shatter.vocab_size = -(-vocabulary_size // 64) * 64  # whole tiles of a matrix unit

    if encoder.type != encoders.DEFAULT and encoder.type in encoders.FAMILIES:
        own = encoder.get()
        sizes = own.size_like(encoder.shatter, default)
        if pretrained:  # the rest comes from the checkpoint
            names = {own.own_names.get(name, name) for name in default}
            sizes = {name: value for name, value in sizes.items() if name in names}
        own.override({**sizes, **chosen}, is_strict=True)


def _derive_trainer(params: cfg.ExperimentConfig, explicit: dict) -> None:
    """Derives unset settings of schedule and intervals from train_steps, and what makes a checkpoint the best."""
    trainer = params.trainer
    trainer.best_checkpoint_eval_metric = trainer.best_checkpoint_eval_metric or params.task.main_metric
    if "best_checkpoint_metric_comp" not in dig(explicit, "trainer"):
        errors = ("loss", "mean_squared_error")
        trainer.best_checkpoint_metric_comp = "lower" if trainer.best_checkpoint_eval_metric in errors else "higher"
    steps = trainer.train_steps
    params.task.follow(trainer)
    rate, warmup = trainer.optimizer_config.learning_rate.get(), trainer.optimizer_config.warmup.get()
    if getattr(rate, "decay_steps", 0) is None:
        rate.decay_steps = max(1, steps)
    if getattr(warmup, "warmup_steps", 0) is None:
        warmup.warmup_steps = max(0, steps // 10)
    trainer.steps_per_loop = min(trainer.steps_per_loop or max(1, min(100, steps // 20)), max(1, steps))
    loop = trainer.steps_per_loop
    trainer.summary_interval = trainer.summary_interval or loop
    # An evaluation every fifth of the run, at the end of a loop.
    trainer.validation_interval = trainer.validation_interval or -(-max(1, steps // 5) // loop) * loop
    trainer.checkpoint_interval = trainer.checkpoint_interval or trainer.validation_interval
