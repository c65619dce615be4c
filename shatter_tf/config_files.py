"""The config files that come with the package, by name. In the repository, shatter_tf/configs is a link to configs/."""

from pathlib import Path

from shatter_tf.errors import UserError, nearest

_DIRECTORY = Path(__file__).parent / "configs"
# `tiny` is short for `pretrain_tiny`.
SHORT = "pretrain_"


def config_names() -> list[str]:
    """Returns the names of all config files, sorted.

    Example:
    >>> [name for name in config_names() if name.endswith("tiny")]
    ['pretrain_tiny']
    """
    return sorted(path.stem for path in _DIRECTORY.glob("*.yaml"))


def find_config(name: str) -> str:
    """Returns the path of a config file; `name` is that of the file, or the size of a pretraining config.

    Raises:
      UserError: when there is no such config.

    Example:
    >>> find_config("tiny") == find_config("pretrain_tiny")
    True
    >>> find_config("tinny")
    Traceback (most recent call last):
    shatter_tf.errors.UserError: no config 'tinny' (did you mean tiny?); `shatter configs` lists them
    """
    names = config_names()
    for known in (name, SHORT + name):
        if known in names:
            return str(_DIRECTORY / f"{known}.yaml")

    short = [known.removeprefix(SHORT) for known in names]
    suggestion = nearest(name, {*names, *short})
    raise UserError(f"no config '{name}'{suggestion}; `shatter configs` lists them")


def config_purpose(name: str) -> str:
    """Returns what a config is for: the first line of its file.

    Example:
    >>> config_purpose("tiny").startswith("The demo's encoder")
    True
    """
    with open(find_config(name), encoding="utf-8") as f:
        return f.readline().lstrip("#").strip()
