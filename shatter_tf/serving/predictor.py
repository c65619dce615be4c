"""What `shatter predict` does.

It imports neither Model Garden nor Keras, which would take longer than all the rest.
"""

import importlib.metadata
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from shatter_tf import plugins
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.serving.answers import readable
from shatter_tf.serving.operations import refused_operations

_BATCH_SIZE = 32

# The tokenizer's operations; `import tensorflow_text` would load them, too, and Keras with them.
_SITE = Path(importlib.metadata.distribution("tensorflow_text").locate_file(""))
for _file in _SITE.glob("tensorflow_text/python/ops/*.so"):
    tf.load_op_library(str(_file))


def predict(
    model: str, texts: Iterable[bytes], signature: str = "serving_default", trust: bool = False
) -> Iterator[dict[str, Any]]:
    """Yields for each text a dict of the text and the answer, which JSON has.

    Args:
      model: a SavedModel, or a directory of its versions.
      texts: those of a pair, or a question and its context, are separated by a tab.
      signature: the name of the function that is called.
      trust: whether the model may have operations that no export needs.

    Raises:
      UserError: for a model that cannot be loaded or is not trusted, for a signature that it does not have, and for a
        text with fewer or more parts than the signature takes.
    """
    plugins.load()
    loaded = load(latest_version(model), trust)  # kept: its functions do not keep its variables
    function = _of_texts(loaded, signature)
    # As files have them: a question before its context.
    names = sorted(function.structured_input_signature[1], key=lambda name: (name != "question", name))

    texts = iter(texts)
    while batch := list(itertools.islice(texts, _BATCH_SIZE)):
        rows = [_parts(text, names) for text in batch]
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        outputs = function(**{name: tf.constant(column) for name, column in columns.items()})
        outputs = {name: value.numpy() for name, value in outputs.items()}
        for i, row in enumerate(rows):
            asked = dict(zip(names, map(_plain, row), strict=True))
            yield {**asked, **readable({name: _plain(value[i]) for name, value in outputs.items()}, asked)}


def latest_version(model: str) -> str:
    """Returns the directory of a SavedModel: `model` itself, or its highest version; raises UserError."""
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(model)] if tf.io.gfile.isdir(model) else []
    versions = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for path in (model, *(f"{model}/{version}" for version in versions)):
        if tf.io.gfile.exists(f"{path}/saved_model.pb"):
            return path
    if tf.io.gfile.exists(f"{model}/experiment.json"):
        where = f"{argument('model')}={model}"
        raise UserError(f"{where}: a training run; `shatter export --model_dir={model} --export_dir=served` first")
    raise UserError(f"{argument('model')}={model}: no SavedModel there; make one with `shatter export`")


def load(path: str, trust: bool):
    """Returns the SavedModel in a directory; raises UserError, also for `refused_operations` without `trust`."""
    where = f"{argument('model')}={path}"
    try:
        refused = set() if trust else refused_operations(path)
        loaded = None if refused else tf.saved_model.load(path)
    except Exception as error:  # whose class depends on where the damage is
        raise UserError(f"{where}: cannot be loaded ({first_line(error)}); export it again") from error
    if refused:
        raise UserError(
            f"{where}: not loaded, its graph has {', '.join(sorted(refused))}, which no export needs; if you know who "
            f"made it, {argument('trust')} loads it"
        )
    return loaded


def _of_texts(loaded, name: str):
    """Returns the signature `name`; raises UserError unless it exists and takes strings."""
    of_texts = {
        key: function
        for key, function in loaded.signatures.items()
        if all(spec.dtype == tf.string for spec in function.structured_input_signature[1].values())
    }
    if name not in of_texts:
        why = "takes ids, not text; for text " if name in loaded.signatures else ""
        raise UserError(f"{argument('signature')}={name}: {why}the model has {', '.join(of_texts)}")
    return of_texts[name]


def _parts(text: bytes, names: list[str]) -> list[bytes]:
    """Returns the parts of a text, one for each name; a single text may have tabs."""
    parts = text.split(b"\t") if len(names) > 1 else [text]
    if len(parts) != len(names):
        raise UserError(f"{_plain(text)!r}: the model takes {' and '.join(names)}, separated by tabs")
    return parts


def _plain(value):
    """Returns a NumPy value in a form that JSON has: text, numbers rounded to six decimals, lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if getattr(value, "ndim", 0):
        return [_plain(item) for item in value]
    return round(value.item(), 6) if value.dtype.kind == "f" else value.item()
