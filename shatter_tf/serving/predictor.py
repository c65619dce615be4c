"""What `shatter predict` does.

It imports neither Model Garden nor Keras, which would take longer than all the rest.
"""

import codecs
import dataclasses
import importlib.metadata
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, TextIO, TypeVar

import numpy as np
import tensorflow as tf

from shatter_tf import plugins
from shatter_tf.console import warn
from shatter_tf.data.names import IDS, KNOWN, fold
from shatter_tf.data.texts import parts
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.serving.answers import readable
from shatter_tf.serving.operations import refused_operations

_BATCH_SIZE = 32
SORTED_AT_ONCE = 1024  # rows, of which those of like lengths are computed together

# The tokenizer's operations; `import tensorflow_text` would load them, too, and Keras with them.
_SITE = Path(importlib.metadata.distribution("tensorflow_text").locate_file(""))
for _file in _SITE.glob("tensorflow_text/python/ops/*.so"):
    tf.load_op_library(str(_file))

Row = TypeVar("Row")
Outputs = dict[str, np.ndarray]


@dataclasses.dataclass
class Model:
    """A trained model as a function of texts.

    Attributes:
      names: of its inputs; a question is before its context, as in files.
      function: from strings [B], by these names, to its outputs by name, each [B, …].
      owner: of the function's variables, which the function itself does not keep.
    """

    names: list[str]
    function: Callable[..., dict[str, tf.Tensor]]
    owner: Any = None

    @property
    def gives(self) -> list[str]:
        """The names of its outputs."""
        return sorted(self.function.structured_outputs)

    def outputs(self, rows: Sequence[Sequence[str | bytes]]) -> Outputs:
        """Returns what the model gives for a batch of rows, each with a text for every input."""
        columns = dict(zip(self.names, zip(*rows, strict=True), strict=True))
        outputs = self.function(**{name: tf.constant(column, tf.string) for name, column in columns.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def each(
        self,
        rows: Iterable[Row],
        texts_of: Callable[[Row], Optional[Sequence[str | bytes]]],
        at_once: int = SORTED_AT_ONCE,
    ) -> Iterator[tuple[Row, Optional[Outputs]]]:
        """Yields each row, in order, with its outputs.

        Args:
          rows: any number; `at_once` of them are in memory.
          texts_of: from a row to its texts, or to None, whose outputs are None.
          at_once: how many rows are sorted by length, so that a batch has little padding.
        """
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, at_once)):
            texts = {i: text for i, row in enumerate(chunk) if (text := texts_of(row)) is not None}
            by_length = sorted(texts, key=lambda i: sum(map(len, texts[i])))

            found: dict[int, Outputs] = {}
            for begin in range(0, len(by_length), _BATCH_SIZE):
                batch = by_length[begin : begin + _BATCH_SIZE]
                outputs = self.outputs([texts[i] for i in batch])
                for place, i in enumerate(batch):
                    found[i] = {name: values[place] for name, values in outputs.items()}
            yield from ((row, found.get(i)) for i, row in enumerate(chunk))


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
    opened = open_export(model, signature, trust)
    rows = (parts(text, opened.names) for text in texts)
    for row, outputs in opened.each(rows, lambda row: row, at_once=_BATCH_SIZE):  # soon, whoever types them
        asked = dict(zip(opened.names, map(plain, row), strict=True))
        yield {**asked, **answer(outputs, asked)}


def open_export(model: str, signature: str = "serving_default", trust: bool = False) -> Model:
    """Returns a signature of an export, or of the highest version in a directory.

    Raises:
      UserError: for a model that cannot be loaded or is not trusted, and for a signature that it does not have.
    """
    plugins.load()
    loaded = load(latest_version(model), trust)
    function = _of_texts(loaded, signature)
    names = sorted(function.structured_input_signature[1], key=lambda name: (name != "question", name))
    return Model(names, function, loaded)


def lines_of(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines of standard input without their ends; warns if the first looks like the header of a table."""
    for number, line in enumerate(stream):
        text = line.rstrip(b"\r\n")
        cells = [fold(cell.strip('"')) for cell in re.split("[,;\t]", text.decode("utf-8", "replace"))]
        if number == 0 and len(cells) > 1 and all(cell in KNOWN or cell in IDS for cell in cells) and any(cells):
            shown = ", ".join(cells)
            warn(f"line 1 looks like a header ({shown}), and is read as a text; tables are read by {argument('input')}")
        yield text


def is_ascii_only(stream: TextIO) -> bool:
    """Returns whether JSON for a stream must escape what is not ASCII, because the stream is not UTF-8."""
    try:
        return codecs.lookup(stream.encoding or "utf-8").name != "utf-8"
    except (AttributeError, LookupError):
        return False


def answer(outputs: Outputs, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns a row's outputs as JSON has them, in their format; `asked` are its texts by name."""
    return readable({name: plain(value) for name, value in outputs.items()}, asked)


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


def plain(value):
    """Returns a NumPy value in a form that JSON has: text, numbers rounded to six decimals, lists.

    Example:
    >>> plain(np.array([0.12345678, 1.0]))
    [0.123457, 1.0]
    """
    if isinstance(value, (bytes, str)):
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if getattr(value, "ndim", 0):
        return [plain(item) for item in value]
    return round(value.item(), 6) if value.dtype.kind == "f" else value.item()
