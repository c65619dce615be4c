"""What a user gave: config files, flags and overrides, read and checked against the settings of an experiment."""

import collections.abc
import copy
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Optional

import tensorflow as tf
import yaml
from official.core import config_definitions as cfg
from official.modeling import hyperparams

from shatter_tf.encoders import registry as encoders
from shatter_tf.errors import UserError, all_of, argument, nearest, raise_all

# The flags for single settings; where the learning rate is set depends on its schedule.
FLAGS = {
    "train_steps": "trainer.train_steps",
    "batch_size": "task.train_data.global_batch_size",
    "seq_length": "task.train_data.seq_length",
    "seed": "task.train_data.seed",
    "train_file": "task.train_data.input_path",
    "dev_file": "task.validation_data.input_path",
    "text_fields": "task.train_data.text_fields",
    "label_field": "task.train_data.label_field",
    "cache_teacher": "task.cache_teacher",
    "unlabelled_file": "task.unlabelled_file",
}
ENCODER = ("task", "model", "encoder")


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


def read_config_file(path: str, flag: str = "config_file") -> dict:
    """Returns the settings in a YAML file, the value of the argument `flag`; raises UserError."""
    where = f"{argument(flag)}={path}"
    try:
        with tf.io.gfile.GFile(path) as f:
            settings = _load_yaml(f.read())
    except tf.errors.OpError as error:
        raise UserError(f"{where}: no such file") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{where}: no settings in it")
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
        raise UserError(
            f"{argument('params_override')}={text}: {' '.join(str(error).split())}; expected key=value,…"
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{argument('params_override')}={text}: expected key=value,…")
    return settings


def merge(first: dict, second: dict) -> dict:
    """Returns both nested dicts in one; where they disagree, the second wins."""
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def dig(settings: dict, *path: str) -> dict:
    for key in path:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings if isinstance(settings, dict) else {}


def leaves(settings: dict, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings in nested dicts, with dotted names."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _active(config: hyperparams.Config, path: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings, except for those of parts that are not chosen."""
    for key, value in config.__dict__.items():
        unchosen = isinstance(config, hyperparams.OneOfConfig) and key not in ("type", config.type)
        if key.startswith("_") or unchosen:
            continue
        if isinstance(value, hyperparams.Config):
            yield from _active(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _suggestion(name: str, params: cfg.ExperimentConfig) -> str:
    """Returns " (did you mean …?)" with the settings anywhere in `params` whose last names are nearest to `name`'s."""
    last = name.rpartition(".")[-1]
    if last in FLAGS or last == "learning_rate":
        return f" (did you mean {full_name(params, last)}, or {argument(last)}?)"
    by_last: dict[str, list[str]] = {}
    for known in _active(params):
        by_last.setdefault(known.rpartition(".")[-1], []).append(known)
    close = difflib.get_close_matches(last, by_last, n=2, cutoff=0.6)
    found = sorted((known for match in close for known in by_last[match]), key=lambda known: -_likeness(name, known))
    return f" (did you mean {', '.join(found[:3])}?)" if found else ""


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def _key_problems(
    config: hyperparams.Config, settings: dict, path: str = "", root: Optional[cfg.ExperimentConfig] = None
) -> Iterator[str]:
    """Yields a line for every key that `config` does not have, and for every value of the wrong type.

    `root` is what `config`, at `path`, is a part of.
    """
    root = root or config
    hints = typing.get_type_hints(type(config))
    for key, value in settings.items():
        name = f"{path}{key}"
        if key not in config.__dict__:
            known = [k for k in config.__dict__ if not k.startswith("_")]
            suggestion = nearest(str(key), known) or _suggestion(name, root) or f" (there are {', '.join(known)})"
            yield f"no setting {name}{suggestion}"
            continue
        current = config.__dict__[key]
        if isinstance(value, dict) and current is None:  # an optional config: one of its kind
            parts = typing.get_args(hints.get(key)) or (hints.get(key),)
            kinds = [part for part in parts if isinstance(part, type) and issubclass(part, hyperparams.Config)]
            current = kinds[0]() if kinds else None
        if isinstance(current, hyperparams.Config):
            if isinstance(value, dict):
                yield from _key_problems(current, value, name + ".", root)
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
_TYPE_NAMES[typing.Union[bool, typing.Literal["auto"]]] = "true, false or auto"


def _fits(value, hint) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
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
    hints = typing.get_type_hints(type(config))
    for key, value in config.__dict__.items():
        hint = hints.get(key)
        if isinstance(value, hyperparams.Config):
            _make_floats(value)
        elif type(value) is int and float in (hint, *typing.get_args(hint)):
            setattr(config, key, float(value))


def override_all(
    params: cfg.ExperimentConfig, config_file: Optional[str], params_override: str, flags: dict[str, Any]
) -> dict:
    """Overrides `params` with the file and the flags; returns the settings of all, merged."""
    of_file, of_override = all_of(
        lambda: with_current_names(read_config_file(config_file)) if config_file else {},
        lambda: with_current_names(parse_override(params_override)),
    )
    sources = {f"{argument('config_file')}={config_file}": of_file, argument("params_override"): of_override}
    raise_all(
        [f"{where}: {problem}" for where, settings in sources.items() for problem in _key_problems(params, settings)]
    )

    for settings in sources.values():
        params.override(copy.deepcopy(settings), is_strict=True)

    # Flags for single settings, whose names depend on what was chosen.
    of_flags = {}
    for flag, value in flags.items():
        name = full_name(params, flag)
        if value is not None and next(_key_problems(params, nested(name, value)), None):
            raise UserError(f"{argument(flag)}: this experiment has no setting {name}; leave it out")
        if look_up(of_override, name) not in (None, value):
            raise UserError(f"{argument(flag)}={value}, and {argument('params_override')} has {name}: give one of them")
        of_flags = merge(of_flags, nested(name, value))
    params.override(copy.deepcopy(of_flags), is_strict=True)

    _make_floats(params)
    for name in ("train_data", "validation_data"):
        path = getattr(params.task, name).input_path
        if not isinstance(path, str):
            raise UserError(f"task.{name}.input_path={path}: only one path is read")
    return merge(merge(of_file, of_override), of_flags)


def full_name(params: cfg.ExperimentConfig, flag: str) -> str:
    """Returns the dotted name of the setting that a flag stands for; a setting's own name as it is.

    Raises:
      UserError: for the learning rate of a schedule that has more than one, or none.
    """
    if flag != "learning_rate":
        return FLAGS.get(flag, flag)
    schedule = params.trainer.optimizer_config.learning_rate
    where = f"trainer.optimizer_config.learning_rate.{schedule.type}"
    for name in ("initial_learning_rate", "learning_rate"):
        if hasattr(schedule.get(), name):
            return f"{where}.{name}"
    raise UserError(f"{argument('learning_rate')}: a {schedule.type} schedule has more than one; set those of {where}")


def nested(name: str, value: Any) -> dict:
    """Returns {"a": {"b": value}} for the name a.b."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


def look_up(settings: dict, name: str) -> Any:
    """Returns the setting of a dotted name in nested dicts, or None."""
    *path, last = name.split(".")
    return dig(settings, *path).get(last)


def with_current_names(settings: dict, path: tuple[str, ...] = ENCODER) -> dict:
    """Returns nested settings in which families of encoders, the keys at `path`, have their current names.

    Example:
    >>> with_current_names({"task": {"model": {"encoder": {"type": "any", "any": {"num_parts": 4}}}}})
    {'task': {'model': {'encoder': {'type': 'shatter', 'shatter': {'num_parts': 4}}}}}
    """
    if not path:
        return encoders.canonical(settings)
    key, *rest = path
    if not isinstance(settings.get(key), dict):
        return settings
    return {**settings, key: with_current_names(settings[key], tuple(rest))}
