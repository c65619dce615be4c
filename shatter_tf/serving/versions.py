"""The directories of exports: EXPORT_DIR/1, 2, …, and those that are being written."""

import os
import re
import time
import uuid
from collections.abc import Iterator

import tensorflow as tf

# Begins the names of directories that are being written. TF Serving looks only at names that are numbers.
_INCOMPLETE = "incomplete-"
_LEFT_AFTER_SECONDS = 3600


def next_version(export_dir: str) -> str:
    """Returns the directory of the next version: one more than the highest in `export_dir`, or 1."""
    versions = [int(name) for name in _names(export_dir) if name.isdigit()]
    return os.path.join(export_dir, str(max(versions, default=0) + 1))


def temporary(export_dir: str) -> str:
    """Returns the name of a new directory in `export_dir`, to be written to."""
    return os.path.join(export_dir, _INCOMPLETE + uuid.uuid4().hex)


def remove_leftovers(export_dir: str) -> None:
    """Removes what killed exports left in `export_dir`: directories in which nothing is written any more."""
    left = [name for name in _names(export_dir) if re.fullmatch(_INCOMPLETE + "[0-9a-f]{32}", name)]
    for directory in (os.path.join(export_dir, name) for name in left):
        written = max((stat.mtime_nsec / 1e9 for stat in _stats(directory)), default=time.time())
        if time.time() - written > _LEFT_AFTER_SECONDS:
            tf.io.gfile.rmtree(directory)


def size(directory: str) -> int:
    """Returns the bytes of all files in a directory."""
    return sum(stat.length for stat in _stats(directory))


def _names(directory: str) -> list[str]:
    # Object stores end the names of directories in slashes.
    return [name.rstrip("/") for name in tf.io.gfile.listdir(directory)] if tf.io.gfile.exists(directory) else []


def _stats(directory: str) -> Iterator:
    for folder, _, names in tf.io.gfile.walk(directory):
        yield from (tf.io.gfile.stat(os.path.join(folder, name)) for name in names)
