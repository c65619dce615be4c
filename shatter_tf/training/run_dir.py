"""A model_dir: all that a run leaves behind to be resumed, exported or used as --init_checkpoint.

experiment.json   the experiment's name, casing, the vocabulary's hash
params.yaml       every setting, including the label names
vocab.txt         the vocabulary
ckpt-*, best/     checkpoints: the newest, and the one whose evaluation was best
metrics.json      the metrics of the last evaluation, and of simple models on the same rows
history.jsonl     those of every evaluation in training, with the seconds of training before it
train/, validation/   TensorBoard
not_finite.npz    the batch at which training went wrong, if it did
.lock             empty; held by the process that trains here
"""

import contextlib
import dataclasses
import io
import json
import math
import os
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
import tensorflow as tf
import yaml
from official.core import config_definitions as cfg

from shatter_tf import __version__
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.data.vocabulary import read_vocabulary, vocabulary_hash
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import INCOMPLETE, LOCK_FILE, check_name, held, write_whole
from shatter_tf.tasks.base import Data
from shatter_tf.tasks.registry import get_experiment

EXPERIMENT_FILE, PARAMS_FILE = "experiment.json", "params.yaml"

# Settings of Model Garden's tasks that older runs list, and that never had an effect.
_GONE = ("hub_module_url", "init_cls_pooler", "scale_loss")

METRICS_FILE, HISTORY_FILE, NOT_FINITE_FILE = "metrics.json", "history.jsonl", "not_finite.npz"


@dataclasses.dataclass
class Run:
    """An experiment with every setting resolved, and the vocabulary its token ids belong to.

    Attributes:
      data: opened; a run that was read from its directory has none.
      chosen: settings that nobody gave, to be told to the user, by short names.
    """

    experiment: str
    params: cfg.ExperimentConfig
    vocabulary: list[str]
    lower_case: bool
    data: Optional[Data] = None
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        return list(getattr(self.params.task.train_data, "labels", []))


def exists(model_dir: str) -> bool:
    return tf.io.gfile.exists(os.path.join(model_dir, EXPERIMENT_FILE))


def read(model_dir: str, name: str = "model_dir") -> Run:
    """Returns the run that left `model_dir`, the argument `name`; raises UserError when it holds no run."""
    where = f"{argument(name)}={model_dir}"
    if not exists(model_dir):
        raise UserError(f"{where}: not a training directory (it has no {EXPERIMENT_FILE})")
    try:
        with tf.io.gfile.GFile(os.path.join(model_dir, EXPERIMENT_FILE)) as f:
            about = json.load(f)
        experiment = about["experiment"]
        lower_case = about["lower_case"]
        sha256 = about["vocabulary_sha256"]
        params = get_experiment(experiment)
        with tf.io.gfile.GFile(os.path.join(model_dir, PARAMS_FILE)) as f:
            settings = yaml.safe_load(f)
        if not isinstance(settings, dict) or not all(isinstance(part, dict) for part in settings.values()):
            raise ValueError(f"{PARAMS_FILE} holds no settings")
        for gone in _GONE:
            settings["task"].pop(gone, None)
        params.override(settings, is_strict=True)
    except (tf.errors.NotFoundError, ValueError, TypeError, LookupError, yaml.YAMLError) as error:
        raise UserError(f"{where}: damaged, or made by another version ({' '.join(str(error).split())})") from error
    vocabulary = read_vocabulary(os.path.join(model_dir, VOCABULARY_FILE))
    if vocabulary_hash(vocabulary) != sha256:
        raise UserError(f"{os.path.join(model_dir, VOCABULARY_FILE)}: not the vocabulary the model was trained with")
    return Run(experiment, params, vocabulary, lower_case)


def check(model_dir: str, run: Run) -> None:
    """Raises UserError unless `run` may start or resume in `model_dir`; changes nothing."""
    check_name(model_dir, argument("model_dir"))
    if not tf.io.gfile.exists(model_dir) or _only_begun(model_dir, run):
        return
    if not exists(model_dir):
        raise UserError(f"{argument('model_dir')}={model_dir}: not empty, and not a training directory; name a new one")
    before = read(model_dir)
    if before.experiment != run.experiment:
        raise UserError(
            f"{argument('model_dir')}={model_dir}: holds a run of {before.experiment}, not of {run.experiment}"
        )
    old = before.params.task.model.as_dict()
    new = run.params.task.model.as_dict()
    for model, encoder in ((old, before.params.task.model.encoder), (new, run.params.task.model.encoder)):
        for name in encoder.get().computation:
            model["encoder"][encoder.type].pop(name, None)
    changed = differences(old, new)
    if changed:
        raise UserError(
            f"{argument('model_dir')}={model_dir}: holds another model ({'; '.join(changed)}); name a new directory"
        )
    if before.vocabulary != run.vocabulary or before.lower_case != run.lower_case:
        raise UserError(
            f"{argument('model_dir')}={model_dir}: was trained with another vocabulary; name a new directory"
        )
    if before.labels != run.labels:
        raise UserError(f"{argument('model_dir')}={model_dir}: was trained with other labels; name a new directory")


def _only_begun(model_dir: str, run: Run) -> bool:
    """Whether `model_dir` holds only what `write` leaves when it is killed or finds the disk full."""
    files = [VOCABULARY_FILE, PARAMS_FILE, EXPERIMENT_FILE]
    names = sorted({*tf.io.gfile.listdir(model_dir)} - {LOCK_FILE})
    for i, file in enumerate(files):
        if names in (sorted(files[:i]), sorted([*files[:i], file + INCOMPLETE])):
            return not i or read_vocabulary(os.path.join(model_dir, VOCABULARY_FILE)) == run.vocabulary
    return False


@contextlib.contextmanager
def held_for_training(model_dir: str) -> Iterator[None]:
    """Keeps other processes from training in `model_dir`, which is created if needed.

    Raises:
      UserError: when another process trains there, or the directory cannot be created.
    """
    is_new = not tf.io.gfile.exists(model_dir)
    try:
        tf.io.gfile.makedirs(model_dir)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{argument('model_dir')}={model_dir}: cannot be made ({first_line(error)})") from error
    with held(model_dir) as free:
        if not free:
            raise UserError(
                f"{argument('model_dir')}={model_dir}: another process trains there; stop it, or name a new directory"
            )
        try:
            yield
        finally:
            if is_new:
                with contextlib.suppress(OSError):
                    # Remove the directory of a run that was refused; one with anything else in it stays.
                    if os.listdir(model_dir) == [LOCK_FILE]:
                        os.remove(os.path.join(model_dir, LOCK_FILE))
                    os.rmdir(model_dir)


def differences(old, new, key: str = "") -> list[str]:
    """Returns a line for each setting in which two nested dicts differ.

    Example:
    >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}})
    ['a.c was 2, not 3']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted({*old, *new}):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key} was {old}, not {new}"]


def write(model_dir: str, run: Run) -> None:
    """Records `run` in `model_dir`, which `check` has passed."""
    tf.io.gfile.makedirs(model_dir)
    write_whole(os.path.join(model_dir, VOCABULARY_FILE), "\n".join(run.vocabulary) + "\n")
    write_whole(os.path.join(model_dir, PARAMS_FILE), yaml.safe_dump(_plain(run.params.as_dict()), sort_keys=False))
    about = dict(
        experiment=run.experiment,
        lower_case=run.lower_case,
        vocabulary_sha256=vocabulary_hash(run.vocabulary),
        shatter_tf=__version__,
        tensorflow=tf.__version__,
    )
    write_whole(os.path.join(model_dir, EXPERIMENT_FILE), json.dumps(about, indent=1) + "\n")


def _plain(value):
    """Turns the tuples of Model Garden's configs into lists, which safe YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays in the format that numpy.load reads."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def read_metrics(model_dir: str) -> dict:
    """Returns the metrics of the last evaluation."""
    with tf.io.gfile.GFile(os.path.join(model_dir, METRICS_FILE)) as f:
        return json.load(f)


def read_baseline(model_dir: str) -> Optional[dict]:
    """Returns what `baseline.measure` returned for the last evaluation, if that is recorded."""
    try:
        return read_metrics(model_dir).get("baseline")
    except (tf.errors.NotFoundError, ValueError):
        return None


def write_metrics(model_dir: str, metrics: dict) -> None:
    """Replaces metrics.json."""
    write_whole(os.path.join(model_dir, METRICS_FILE), json.dumps(metrics, indent=1) + "\n")


def read_history(model_dir: str, last_step: Optional[int] = None) -> list[dict]:
    """Returns the evaluations during a run in order, those after `last_step` left out: step, seconds, metrics."""
    path = os.path.join(model_dir, HISTORY_FILE)
    if not tf.io.gfile.exists(path):
        return []
    try:
        with tf.io.gfile.GFile(path) as f:
            history = [json.loads(line) for line in f.read().splitlines()]
        if not all(math.isfinite(entry["step"] + entry["seconds"]) for entry in history):
            raise ValueError("a step or a time that is not finite")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({error!r}); fix or remove it: it holds the evaluations so far") from error
    return [entry for entry in history if last_step is None or entry["step"] <= last_step]


def write_history(model_dir: str, history: list[dict]) -> None:
    """Replaces history.jsonl."""
    write_whole(os.path.join(model_dir, HISTORY_FILE), "".join(json.dumps(entry) + "\n" for entry in history))
