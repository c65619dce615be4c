"""A model_dir: all that a run leaves behind to be resumed, exported or used as --init_checkpoint.

experiment.json   the experiment's name, casing, the hashes of vocabulary and training data
params.yaml       every setting, including the label names
vocab.txt         the vocabulary
normalizer.json   how text is normalized for it, if not in our own way
ckpt-*, best/     checkpoints: the newest, and the one whose evaluation was best
data.json         what the training data is like
metrics.json      the metrics of the last evaluation, and of simple models on the same rows
history.jsonl     those of every evaluation in training, with the seconds of training before it
train/, validation/   TensorBoard
teacher/          what a teacher made of the texts, if it has read them before training
not_finite.npz    the batch at which training went wrong, if it did
.lock             empty; held by the process that trains here
"""

import contextlib
import dataclasses
import hashlib
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
from shatter_tf.data.vocabulary import (
    NORMALIZER_FILE,
    check_normalizer,
    is_of_hash,
    read_vocabulary,
    vocabulary_hash,
    write_normalizer,
)
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import INCOMPLETE, LOCK_FILE, check_name, contents, held, write_whole
from shatter_tf.tasks.base import TEACHER_DIR, Data
from shatter_tf.tasks.registry import get_experiment

EXPERIMENT_FILE, PARAMS_FILE = "experiment.json", "params.yaml"

# Settings of Model Garden's tasks that older runs list, and that never had an effect.
_GONE = ("hub_module_url", "init_cls_pooler", "scale_loss")

# What Hugging Face's and Google's software writes.
_OF_OTHERS = ("config.json", "bert_config.json")

METRICS_FILE, HISTORY_FILE, NOT_FINITE_FILE = "metrics.json", "history.jsonl", "not_finite.npz"
DATA_FILE = "data.json"

# Where data was found, which does not change what it is.
_LOCATION = ("where", "path", "lines")

# What older runs did not hash; `check` compares it.
_NOT_HASHED = ("normalizer",)


@dataclasses.dataclass
class Run:
    """An experiment with every setting resolved, and the vocabulary its token ids belong to.

    Attributes:
      data: opened; a run that was read from its directory has none.
      chosen: settings that nobody gave, to be told to the user, by short names.
      before: what `model_dir` holds, if it is resumed.
      data_sha256: the hash of the training data's content, once it was needed.
      facts: what the training data is like, once that was reported.
      normalizer: of the tokenizer, as `lower_case` is.
      converted_from: of what other software wrote and `shatter convert` read: its name, and the SHA-256 of its weights.
      converted: whether training started from such weights, or from what was trained from them.
    """

    experiment: str
    params: cfg.ExperimentConfig
    vocabulary: list[str]
    lower_case: bool
    data: Optional[Data] = None
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    before: Optional["Run"] = None
    data_sha256: Optional[str] = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    normalizer: str = ""
    converted_from: Optional[dict[str, str]] = None
    converted: bool = False

    @property
    def labels(self) -> list[str]:
        return list(getattr(self.params.task.train_data, "labels", []))


def exists(model_dir: str) -> bool:
    return tf.io.gfile.exists(os.path.join(model_dir, EXPERIMENT_FILE))


def read(model_dir: str, name: str = "model_dir") -> Run:
    """Returns the run that left `model_dir`, the argument `name`; raises UserError when it holds no run."""
    where = f"{argument(name)}={model_dir}"
    if not exists(model_dir):
        folder = os.path.dirname(model_dir.rstrip("/"))
        run = next((path for path in (folder, os.path.dirname(folder)) if path and exists(path)), None)
        if run:
            raise UserError(f"{where}: a part of the training directory {run}; give that: {argument(name)}={run}")
        convertible = [file for file in _OF_OTHERS if tf.io.gfile.exists(os.path.join(model_dir, file))]
        if convertible:
            raise UserError(
                f"{where}: not a training directory, but {convertible[0]} is there: make a run of it with `shatter "
                f"convert --from={model_dir} --model_dir=…`"
            )
        raise UserError(f"{where}: not a training directory (it has no {EXPERIMENT_FILE})")
    try:
        with tf.io.gfile.GFile(os.path.join(model_dir, EXPERIMENT_FILE)) as f:
            about = json.load(f)
        experiment = about["experiment"]
        lower_case = about["lower_case"]
        normalizer = about.get("normalizer", "")
        check_normalizer(normalizer, f"{EXPERIMENT_FILE}: normalizer={normalizer}")
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
    if not is_of_hash(vocabulary, sha256):
        raise UserError(f"{os.path.join(model_dir, VOCABULARY_FILE)}: not the vocabulary the model was trained with")
    data_sha256 = about.get("data_sha256")
    run = Run(experiment, params, vocabulary, lower_case, data_sha256=data_sha256, normalizer=normalizer)
    run.converted_from = about.get("converted_from")
    run.converted = about.get("converted", False)
    return run


def check(model_dir: str, run: Run) -> None:
    """Raises UserError unless `run` may start or resume in `model_dir`; changes nothing."""
    check_name(model_dir, argument("model_dir"))
    if not tf.io.gfile.exists(model_dir):
        return
    if not tf.io.gfile.isdir(model_dir):
        raise UserError(f"{argument('model_dir')}={model_dir}: a file; name a new directory")
    if _only_begun(model_dir, run):
        return
    if not exists(model_dir):
        raise UserError(f"{argument('model_dir')}={model_dir}: not empty, and not a training directory; name a new one")
    before = read(model_dir)
    if before.converted_from:
        raise UserError(
            f"{argument('model_dir')}={model_dir}: made by `shatter convert`, which no training changes; start from it "
            f"with {argument('init_checkpoint')}={model_dir}, and name a new {argument('model_dir')}"
        )
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
    if (before.vocabulary, before.lower_case, before.normalizer) != (run.vocabulary, run.lower_case, run.normalizer):
        raise UserError(
            f"{argument('model_dir')}={model_dir}: was trained with another vocabulary; name a new directory"
        )
    if before.labels != run.labels:
        raise UserError(f"{argument('model_dir')}={model_dir}: was trained with other labels; name a new directory")


def _only_begun(model_dir: str, run: Run) -> bool:
    """Whether `model_dir` holds only what `write` leaves when it is killed or finds the disk full."""
    files = [VOCABULARY_FILE, *([NORMALIZER_FILE] if run.normalizer else []), PARAMS_FILE, EXPERIMENT_FILE]
    names = sorted(name for name in contents(model_dir) if name.rstrip("/") != TEACHER_DIR)
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
    write_normalizer(model_dir, run.normalizer, run.lower_case)
    write_whole(os.path.join(model_dir, PARAMS_FILE), yaml.safe_dump(_plain(run.params.as_dict()), sort_keys=False))
    if run.facts:
        write_whole(os.path.join(model_dir, DATA_FILE), json.dumps(run.facts, indent=1, ensure_ascii=False) + "\n")
    about = dict(
        experiment=run.experiment,
        lower_case=run.lower_case,
        normalizer=run.normalizer,
        vocabulary_sha256=vocabulary_hash(run.vocabulary),
        data_sha256=run.data_sha256 or (content_hash(run.data.train) if run.data else None),
        shatter_tf=__version__,
        tensorflow=tf.__version__,
    )
    if run.converted_from:
        about["converted_from"] = run.converted_from
    if run.converted:
        about["converted"] = True
    write_whole(os.path.join(model_dir, EXPERIMENT_FILE), json.dumps(about, indent=1) + "\n")


def content_hash(data: Any) -> Optional[str]:
    """Returns the SHA-256 of what a task trains on, wherever it was found: rows, questions or a corpus's description.

    None for data of another kind, which a plugin may have.
    """
    digest = hashlib.sha256()
    try:
        for item in data if isinstance(data, list) else [data]:
            digest.update(json.dumps(item, default=_content).encode() + b"\n")
    except TypeError:
        return None
    return digest.hexdigest()


def _content(item: Any) -> list:
    """Returns the content of a dataclass; raises TypeError for anything else."""
    return [
        getattr(item, field.name) for field in dataclasses.fields(item) if field.name not in _LOCATION + _NOT_HASHED
    ]


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


def best_entry(history: list[dict], metric: str, comparison: str) -> Optional[dict]:
    """Returns the entry of a history whose checkpoint is kept as the best, or None if the metric was never finite.

    Of entries with the same metric it is the one with the lowest loss, and of those the last.

    Example:
    >>> history = [dict(step=step, f1=0.0, loss=loss) for step, loss in ((1, 0.9), (2, 0.5), (3, 0.5), (4, 0.7))]
    >>> best_entry(history, "f1", "higher")["step"]
    3
    """
    sign = 1 if comparison == "higher" else -1

    def goodness(numbered: tuple[int, dict]) -> tuple[float, float, int]:
        number, entry = numbered
        loss = entry.get("loss", math.inf)
        return sign * entry[metric], -math.inf if math.isnan(loss) else -loss, number

    finite = [numbered for numbered in enumerate(history) if math.isfinite(numbered[1].get(metric, math.nan))]
    return max(finite, key=goodness)[1] if finite else None


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
