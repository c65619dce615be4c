"""From flags, files and data to an experiment with every setting in place, checked before any graph is built.

Later sources override earlier ones: the experiment's defaults; the encoder of --init_checkpoint; --config_file;
--params_override. What is still unset then follows from the data and from train_steps.
"""

import collections.abc
import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Optional

import tensorflow as tf
import yaml
from official.core import config_definitions as cfg
from official.core import exp_factory
from official.modeling import hyperparams

from shatter_tf import distribution, preflight
from shatter_tf import model_dir as model_dirs
from shatter_tf.baselines import BertConfig
from shatter_tf.command_line import UserError, all_of, collected, nearest, say
from shatter_tf.config import ShatterConfig
from shatter_tf.data import labelled, question_answering, tagging
from shatter_tf.data.shards import VOCABULARY_FILE, Corpus
from shatter_tf.data.tokenizer import read_vocabulary
from shatter_tf.experiments import NAMES
from shatter_tf.model_dir import Run
from shatter_tf.tasks import RegressConfig

_SHARED_ENCODER_FIELDS = [
    field.name for field in dataclasses.fields(BertConfig) if hasattr(ShatterConfig(), field.name)
]
# Settings that validation data takes over from training data unless they are set for it.
_SHARED_DATA_FIELDS = [
    "global_batch_size",
    "seq_length",
    "mask_rate",
    "max_predictions_per_seq",
    "vocab_file",
    "lower_case",
    "doc_stride",
    "max_query_length",
    "labels",
    "text_fields",
    "label_field",
    "tfds_name",
    "tfds_data_dir",
]


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, as it is everywhere else."""


_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _load_yaml(text: str):
    settings = yaml.load(text, _YamlLoader)
    # Escapes in YAML can give halves of characters, which TensorFlow does not accept as text.
    json.dumps(settings, ensure_ascii=False, skipkeys=True, default=str).encode()
    return settings


def read_config_file(path: str, flag: str = "--config_file") -> dict:
    """Returns the settings in a YAML file, the value of `flag`; raises UserError."""
    try:
        with tf.io.gfile.GFile(path) as f:
            settings = _load_yaml(f.read())
    except tf.errors.OpError as error:
        raise UserError(f"{flag}={path}: no such file") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{flag}={path}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{flag}={path}: no settings in it")
    return settings


def parse_override(text: str) -> dict:
    """Returns the settings in k=v,k=v with dotted keys; raises UserError.

    Example:
    >>> parse_override("trainer.train_steps=10,task.model.num_classes=2")
    {'trainer': {'train_steps': 10}, 'task': {'model': {'num_classes': 2}}}
    """
    try:
        settings = _load_yaml(hyperparams.nested_csv_str_to_json_str(text)) if text else {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--params_override={text}: {' '.join(str(error).split())}; expected key=value,…") from error
    if not isinstance(settings, dict):
        raise UserError(f"--params_override={text}: expected key=value,…")
    return settings


def merge(first: dict, second: dict) -> dict:
    """Returns both nested dicts in one; where they disagree, the second wins."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def _dig(settings: dict, *path: str) -> dict:
    for key in path:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def _key_problems(config: hyperparams.Config, settings: dict, path: str = "") -> Iterator[str]:
    """Yields a line for every key that `config` does not have, and for every value of the wrong type."""
    hints = typing.get_type_hints(type(config))
    for key, value in settings.items():
        name = f"{path}{key}"
        if key not in config.__dict__:
            known = [k for k in config.__dict__ if not k.startswith("_")]
            suggestion = nearest(str(key), known) or f" (there are {', '.join(known)})"
            yield f"no setting {name}{suggestion}"
            continue
        current = config.__dict__[key]
        if isinstance(value, dict) and current is None:  # an optional config: one of its kind
            parts = typing.get_args(hints.get(key)) or (hints.get(key),)
            kinds = [part for part in parts if isinstance(part, type) and issubclass(part, hyperparams.Config)]
            current = kinds[0]() if kinds else None
        if isinstance(current, hyperparams.Config):
            if isinstance(value, dict):
                yield from _key_problems(current, value, name + ".")
            else:
                yield f"{name} holds settings of its own ({', '.join(current.as_dict())})"
        elif isinstance(value, dict):
            yield f"{name} has no settings of its own"
        elif key == "type" and isinstance(config, hyperparams.OneOfConfig) and value not in _choices(config):
            yield f"{name}={value!r}: there are {', '.join(filter(None, _choices(config)))}"
        elif not _fits(value, hints.get(key, Any)):
            yield f"{name}={value!r} is not {_TYPE_NAMES.get(hints[key], 'of the right type')}"


def _choices(config: hyperparams.OneOfConfig) -> list[Optional[str]]:
    """Returns what `type` may be: one of the config's parts, or None where that is its default."""
    parts = [key for key, value in config.__dict__.items() if isinstance(value, hyperparams.Config)]
    return [*parts, *([None] if type(config)().type is None else [])]


_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _fits(value, hint) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if typing.get_origin(hint) in (list, tuple, collections.abc.Sequence):
        return isinstance(value, (list, tuple))
    return True


def _make_floats(config: hyperparams.Config) -> None:
    """Turns whole numbers into floats where floats are expected: TensorFlow does not multiply one by the other."""
    for key, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, key, None)
        if isinstance(value, hyperparams.Config):
            _make_floats(value)
        elif type(value) is int and float in (hint, *typing.get_args(hint)):
            setattr(config, key, float(value))


def _override_all(params: cfg.ExperimentConfig, config_file: Optional[str], params_override: str) -> dict:
    """Overrides `params` with the file and the flag; returns the settings of both, merged."""
    of_file, of_flag = all_of(
        lambda: read_config_file(config_file) if config_file else {}, lambda: parse_override(params_override)
    )
    said = {f"--config_file={config_file}": of_file, "--params_override": of_flag}
    problems = [
        f"{where}: {problem}" for where, settings in said.items() for problem in _key_problems(params, settings)
    ]
    if problems:
        raise UserError("; ".join(problems))
    for settings in said.values():
        params.override(copy.deepcopy(settings), is_strict=True)
    _make_floats(params)
    for name in ("train_data", "validation_data"):
        path = getattr(params.task, name).input_path
        if not isinstance(path, str):
            raise UserError(f"task.{name}.input_path={path}: one path is read")
    return merge(*said.values())


def resolve(
    experiment: str,
    *,
    config_file: Optional[str] = None,
    params_override: str = "",
    data_dir: Optional[str] = None,
    init_checkpoint: Optional[str] = None,
    model_dir: Optional[str] = None,
) -> Run:
    """Returns the run that the arguments, the flags of `shatter_tf.train`, describe.

    Raises:
      UserError: with everything in them, or in the files and devices they name, that would stop the run later; with
        only the names and types of settings where these are wrong.
    """
    if experiment not in NAMES:
        raise UserError(
            f"--experiment={experiment}: no such experiment; there are {', '.join(NAMES)}{nearest(experiment, NAMES)}"
        )
    params = exp_factory.get_exp_config(experiment)
    task, initial, vocabulary, lower_case, found = params.task, None, [], True, []
    if init_checkpoint:
        with collected(found):
            initial = model_dirs.read(init_checkpoint, "--init_checkpoint")
    if initial:
        encoder = initial.params.task.model.encoder
        task.model.encoder.override(encoder.as_dict(), is_strict=True)
        task.init_checkpoint = init_checkpoint
        if hasattr(task.train_data, "lower_case"):
            task.train_data.lower_case = initial.lower_case
    explicit = _override_all(params, config_file, params_override)
    if task.init_checkpoint != (init_checkpoint if initial else ""):
        found.append(f"task.init_checkpoint={task.init_checkpoint}: give --init_checkpoint, which is checked")

    loaders = {
        "shatter/pretrain": _load_corpus,
        "shatter/tag": _load_tagged,
        "shatter/answer": _load_questions,
    }
    load_data = loaders.get(experiment, _load_labelled)
    _share_with_validation(task, explicit)
    if not found:  # else it is not known which vocabulary the data is for
        with collected(found):
            vocabulary, lower_case = load_data(params, data_dir, initial, found)
            if initial and initial.vocabulary != vocabulary:
                found.append(f"--init_checkpoint={init_checkpoint}: its vocabulary is not the one of this run")
    _share_with_validation(task, explicit)
    found += _derive(params, explicit, len(vocabulary))
    run = Run(experiment, params, vocabulary, lower_case)
    if model_dir and vocabulary:
        with collected(found):
            model_dirs.check(model_dir, run)
    if found:
        raise UserError("; ".join(found))
    _warn_of_idle_steps(params)
    return run


def _warn_of_idle_steps(params: cfg.ExperimentConfig) -> None:
    """Warns when the learning rate is zero before the end."""
    rate, steps = params.trainer.optimizer_config.learning_rate, params.trainer.train_steps
    schedule = rate.get().as_dict()
    last = schedule.get("decay_steps", steps)
    if last < steps and not schedule.get("end_learning_rate", schedule.get("alpha")) and distribution.is_chief():
        say(
            f"warning: the learning rate is 0 from step {last} on, but trainer.train_steps={steps}; leave out "
            f"trainer.optimizer_config.learning_rate.{rate.type}.decay_steps, and it follows from that",
            sys.stderr,
        )


def resolve_without_data(*, config_file: Optional[str] = None, params_override: str = "") -> cfg.ExperimentConfig:
    """Returns pretraining's settings as `resolve` does, for a vocabulary of the encoder's size; raises UserError."""
    params = exp_factory.get_exp_config("shatter/pretrain")
    explicit = _override_all(params, config_file, params_override)
    _share_with_validation(params.task, explicit)
    found = _derive(params, explicit, params.task.model.encoder.any.vocab_size)
    if found:
        raise UserError("; ".join(found))
    return params


def _derive(params: cfg.ExperimentConfig, explicit: dict, vocabulary_size: int) -> list[str]:
    """Sets what is still unset; returns a line for everything that would fail later, see `preflight.problems`."""
    _derive_encoder(params, explicit, vocabulary_size)
    _derive_trainer(params, explicit)
    return preflight.problems(params, vocabulary_size)


def _share_with_validation(task: cfg.TaskConfig, explicit: dict) -> None:
    own = {*_dig(explicit, "task", "validation_data")}
    if "seq_length" in own:
        own.add("max_predictions_per_seq")  # else longer rows would be masked less
    if "input_path" in own:
        own |= {"tfds_name", "tfds_data_dir"}
    for name in _SHARED_DATA_FIELDS:
        if hasattr(task.train_data, name) and name not in own:
            setattr(task.validation_data, name, copy.deepcopy(getattr(task.train_data, name)))


def _refuse_tfds(task: cfg.TaskConfig, instead: str) -> None:
    for name in ("train_data", "validation_data"):
        tfds_name = getattr(task, name).tfds_name
        if tfds_name:
            raise UserError(
                f"task.{name}.tfds_name={tfds_name}: TensorFlow Datasets are for shatter/classify, shatter/regress and "
                f"shatter/answer; give {instead}"
            )


def _choose_tfds_splits(task: cfg.TaskConfig, data_dir: Optional[str]) -> None:
    """Sets the splits of TensorFlow Datasets that are unset; raises UserError when there is --data_dir, too."""
    for name, split in (("train_data", "train"), ("validation_data", "validation")):
        data = getattr(task, name)
        if data.tfds_name and data_dir:
            raise UserError(
                f"--data_dir={data_dir} and task.{name}.tfds_name={data.tfds_name}: one is read; leave out --data_dir, "
                f"or set task.{name}.tfds_name=''"
            )
        if data.tfds_name and data.input_path:
            raise UserError(
                f"task.{name}.input_path={data.input_path} and tfds_name={data.tfds_name}: one is read; leave out one"
            )
        data.tfds_split = data.tfds_split or (split if data.tfds_name else "")


def _load_corpus(params, data_dir, initial, found) -> tuple[list[str], bool]:
    train, validation = params.task.train_data, params.task.validation_data
    _refuse_tfds(params.task, "--data_dir, a directory made by `python -m shatter_tf.prepare`")
    train.input_path = train.input_path or data_dir or ""
    validation.input_path = validation.input_path or data_dir or train.input_path
    if not train.input_path:
        raise UserError("no corpus: give --data_dir, a directory made by `python -m shatter_tf.prepare`")
    paths = dict.fromkeys([train.input_path, validation.input_path])  # mostly the same one, to be read once
    corpora = all_of(*(functools.partial(Corpus.read, path) for path in paths))
    corpus, other = corpora[0], corpora[-1]
    if other.vocabulary_sha256 != corpus.vocabulary_sha256:
        found.append(f"{validation.input_path}: prepared with another vocabulary than {train.input_path}")
    train.seq_length = train.seq_length or corpus.seq_length
    if initial and initial.lower_case != corpus.lower_case:
        found.append(f"{train.input_path}: its casing is not that of --init_checkpoint")
    return read_vocabulary(os.path.join(train.input_path, VOCABULARY_FILE)), corpus.lower_case


def _load_vocabulary(params, initial) -> list[str]:
    """Returns the vocabulary for fine-tuning: the one in the settings, or that of --init_checkpoint."""
    train = params.task.train_data
    if not train.vocab_file:
        if not initial:
            raise UserError(
                "no vocabulary: give --init_checkpoint, or task.train_data.vocab_file to train from scratch"
            )
        train.vocab_file = os.path.join(params.task.init_checkpoint, VOCABULARY_FILE)
    return read_vocabulary(train.vocab_file)


def _load_labelled(params, data_dir, initial, found) -> tuple[list[str], bool]:
    train, validation = params.task.train_data, params.task.validation_data
    _choose_tfds_splits(params.task, data_dir)

    def load(data, split):
        if data_dir:
            data.input_path = data.input_path or labelled.find_file(data_dir, split)
        return labelled.load_rows(data)

    vocabulary, train_rows, validation_rows = all_of(
        lambda: _load_vocabulary(params, initial), lambda: load(train, "train"), lambda: load(validation, "dev")
    )
    if len(train_rows[0].texts) != len(validation_rows[0].texts):
        found.append(f"{validation_rows[0].where}: texts and pairs of texts cannot be mixed with {train_rows[0].where}")
    params.task.pairs = len(train_rows[0].texts) == 2
    if train.global_batch_size > len(train_rows):
        found.append(f"{len(train_rows)} training rows are fewer than global_batch_size={train.global_batch_size}")
    if isinstance(params.task, RegressConfig):
        if train.labels or validation.labels:
            found.append("task.train_data.labels: regression is to numbers, which have no names; leave it out")
        outputs, what = 1, "a number for each row"
        read_labels = labelled.label_numbers
    else:
        train.labels = validation.labels = _labels(train, train_rows[0].where, (row.label for row in train_rows))
        outputs, what = len(train.labels), f"{len(train.labels)} labels"
        read_labels = functools.partial(labelled.label_ids, labels=train.labels)
    for rows in (train_rows, validation_rows):
        with collected(found):
            read_labels(rows)
    model = params.task.model
    model.num_classes = model.num_classes or outputs
    if model.num_classes != outputs:
        found.append(f"task.model.num_classes={model.num_classes}, but the data has {what}")
    return vocabulary, train.lower_case


def _labels(train: cfg.DataConfig, where: str, labels: Iterable[str]) -> list[str]:
    """Returns the label names in the order of their ids; raises UserError for a single, non-text or repeated label."""
    names, train.labels = list(train.labels), []  # so that checks after an error do not meet bad ones
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f"labels={names}: {name!r} is not text; put quotes around it, as in ['no', 'yes']")
        if name in names[:i]:
            raise UserError(f"labels={names}: {name!r} occurs twice")
    names = names or sorted(set(labels))
    if len(names) < 2:
        raise UserError(f"{where}: every row has the label {names[0]!r}; there is nothing to learn")
    return names


def _load_tagged(params, data_dir, initial, found) -> tuple[list[str], bool]:
    task = params.task
    train, validation = task.train_data, task.validation_data
    _refuse_tfds(task, "--data_dir, with train and dev files (.tsv or .jsonl)")

    def load(data, split):
        if data_dir:
            data.input_path = data.input_path or labelled.find_file(data_dir, split, tagging.EXTENSIONS)
        if not data.input_path:
            raise UserError("no tagged sentences: give --data_dir, with train and dev files (.tsv or .jsonl)")
        return tagging.read_sentences(data.input_path)

    vocabulary, sentences, validation_sentences = all_of(
        lambda: _load_vocabulary(params, initial), lambda: load(train, "train"), lambda: load(validation, "dev")
    )
    if train.global_batch_size > len(sentences):
        found.append(f"{len(sentences)} training sentences are fewer than global_batch_size={train.global_batch_size}")
    train.labels = train.labels or task.class_names or []
    tags = itertools.chain.from_iterable(sentence.tags for sentence in sentences)
    task.class_names = train.labels = validation.labels = _labels(train, train.input_path, tags)
    for part in (sentences, validation_sentences):
        with collected(found):
            tagging.tag_ids(part, train.labels)
    return vocabulary, train.lower_case


def _load_questions(params, data_dir, initial, found) -> tuple[list[str], bool]:
    task = params.task
    _choose_tfds_splits(task, data_dir)

    def load(data, file):
        data.input_path = data.input_path or (os.path.join(data_dir, file) if data_dir else "")
        if not data.tfds_name and not data.input_path:
            raise UserError(
                "no questions: give --data_dir, with train.json and dev.json in SQuAD's format, or "
                "task.train_data.tfds_name, squad/v1.1 or squad/v2.0"
            )
        return question_answering.load_squad(data)

    vocabulary, train, validation = all_of(
        lambda: _load_vocabulary(params, initial),
        lambda: load(task.train_data, "train.json"),
        lambda: load(task.validation_data, "dev.json"),
    )
    for squad in (train, validation):
        if squad.misplaced:
            say(
                f"{squad.path}: the texts of {len(squad.misplaced)} answers, the first of question "
                f"{squad.misplaced[0]!r}, do not stand at their answer_start; nothing is learnt from them"
            )
    task.version_2_with_negative = train.some_unanswerable
    if validation.some_unanswerable and not task.version_2_with_negative:
        found.append(
            f"{validation.path}: some of its questions have no answer, as in SQuAD 2.0, but all of "
            f"{train.path} have one; give both in the same version"
        )
    return vocabulary, task.train_data.lower_case


def _derive_encoder(params: cfg.ExperimentConfig, explicit: dict, vocabulary_size: int) -> None:
    """Fits the encoder to the vocabulary; Shatter's settings hold for the baseline too, unless set for it."""
    encoder, pretrained = params.task.model.encoder, bool(params.task.init_checkpoint)
    own = _dig(explicit, "task", "model", "encoder")
    shatter = encoder.any
    if vocabulary_size and not pretrained and "vocab_size" not in _dig(own, "any"):
        shatter.vocab_size = -(-vocabulary_size // 64) * 64  # whole tiles of a matrix unit
    if encoder.type == "bert":
        shared = {name: getattr(shatter, name) for name in _SHARED_ENCODER_FIELDS}
        if "hidden_activation" not in _dig(own, "any"):
            del shared["hidden_activation"]  # Shatter's default is not BERT's
        if pretrained:  # the rest comes from the checkpoint
            shared = {name: value for name, value in shared.items() if name in _dig(own, "any")}
        else:
            shared["num_attention_heads"] = shatter.num_parts
            shared["max_position_embeddings"] = shatter.max_sequence_length
        encoder.bert.override({**shared, **_dig(own, "bert")}, is_strict=True)


def _derive_trainer(params: cfg.ExperimentConfig, explicit: dict) -> None:
    """Derives unset settings of schedule and intervals from train_steps, and what makes a checkpoint the best."""
    trainer = params.trainer
    trainer.best_checkpoint_eval_metric = trainer.best_checkpoint_eval_metric or params.task.main_metric
    if "best_checkpoint_metric_comp" not in _dig(explicit, "trainer"):
        errors = ("loss", "mean_squared_error")
        trainer.best_checkpoint_metric_comp = "lower" if trainer.best_checkpoint_eval_metric in errors else "higher"
    steps = trainer.train_steps
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
