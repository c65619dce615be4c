"""Predictions in a file: in JSON Lines, CSV or TSV each beside the columns of its row; only vectors in NumPy's .npy."""

import contextlib
import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

from shatter_tf.data.streams import whole_characters
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import INCOMPLETE, real_path

VECTORS = ".npy"
EXTENSIONS = (".jsonl", ".csv", ".tsv")

# Writes a row's own columns, and what is predicted for it; None where nothing is.
Write = Callable[[dict[str, Any], Optional[dict[str, Any]]], None]


def check_output(path: str, source: str = "", extensions: Sequence[str] = EXTENSIONS) -> None:
    """Raises UserError for a name that says no format, and for that of the file that is read, `source`."""
    if not path.endswith(tuple(extensions)):
        raise UserError(f"{argument('output')}={path}: the name must end in {', '.join(extensions)}")
    if source and real_path(path) == real_path(source):
        raise UserError(f"{argument('output')}={path}: is {argument('input')}, too; name a new file")


@contextlib.contextmanager
def writing(path: str, columns: Sequence[str], is_table: bool = True) -> Iterator[Write]:
    """Yields a function that writes rows to a file, which appears when all of them are written.

    In JSON Lines, the prediction is under `prediction`, or where rows are no table, beside the row's texts. In CSV and
    TSV its parts are columns with names that begin with `predicted_`. Where the rows have such columns, from an earlier
    prediction, the next ones are `prediction_2` and `predicted_2_…`.

    Args:
      path: ends in one of EXTENSIONS.
      columns: names of the rows' own.
      is_table: whether the rows are of a table.

    Raises:
      UserError: when it cannot be written, and for a row with other columns than CSV begins with.
    """
    with _whole_file(path, "w") as file:
        lines = _Lines(file, path, columns, is_table) if path.endswith(".jsonl") else _Cells(file, path, columns)

        def write(values: dict[str, Any], prediction: Optional[dict[str, Any]]) -> None:
            with _errors(path):
                lines.write(values, prediction)

        yield write
        with _errors(path):
            lines.finish()


@contextlib.contextmanager
def writing_vectors(path: str) -> Iterator[Callable[[Optional[np.ndarray]], None]]:
    """Yields a function that takes the vector of each row, [D], or None, which becomes zeros; they appear as one array.

    It is float32 [N, D], in NumPy's format, and is in memory until then: its number of rows comes before them.

    Raises:
      UserError: when it cannot be written, and when no row has a vector.
    """
    vectors: list[Optional[np.ndarray]] = []
    with _whole_file(path, "wb") as file:
        yield vectors.append

        size = next((len(vector) for vector in vectors if vector is not None), None)
        if size is None:
            raise UserError(f"{argument('output')}={path}: no row has a text, and so no vector")
        zeros = np.zeros(size, np.float32)
        header = io.BytesIO()
        about = dict(descr="<f4", fortran_order=False, shape=(len(vectors), size))
        np.lib.format.write_array_header_1_0(header, about)
        with _errors(path):
            file.write(header.getvalue())
            for vector in vectors:
                file.write((zeros if vector is None else vector).astype("<f4").tobytes())


@contextlib.contextmanager
def _whole_file(path: str, mode: str) -> Iterator[tf.io.gfile.GFile]:
    """Yields a file to write to, which appears under its name when all of it is written, or never."""
    incomplete = path + INCOMPLETE
    try:
        with _errors(path):
            tf.io.gfile.makedirs(os.path.dirname(path) or ".")
            file = tf.io.gfile.GFile(incomplete, mode)
            file.write("" if mode == "w" else b"")  # opens it

        yield file

        with _errors(path):
            file.close()
            tf.io.gfile.rename(incomplete, path, overwrite=True)
    finally:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(incomplete)


@contextlib.contextmanager
def _errors(path: str) -> Iterator[None]:
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{argument('output')}={path}: cannot be written ({first_line(error)})") from error


def json_line(
    values: dict[str, Any], prediction: Optional[dict[str, Any]], key: str = "", ensure_ascii: bool = False
) -> str:
    """Returns a row and its prediction as JSON, the prediction under `key`, or where that is empty, beside the rest.

    Example:
    >>> json_line(dict(id=7, label="dog"), dict(label="cat"), "prediction")
    '{"id": 7, "label": "dog", "prediction": {"label": "cat"}}'
    """
    row = {**values, key: prediction} if key else {**values, **(prediction or {})}
    return whole_characters(json.dumps(row, ensure_ascii=ensure_ascii, default=_as_text))


def _as_text(value: Any) -> str:
    """Returns a value that JSON lacks, such as a date, as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number_of(columns: Sequence[str]) -> int:
    """Returns the number of a prediction beside columns, of which some may be earlier predictions; the first is 1.

    Example:
    >>> number_of(["text", "label"]), number_of(["text", "prediction"]), number_of(["text", "predicted_label"])
    (1, 2, 2)
    """
    return next(
        number
        for number in itertools.count(1)
        if not any(name == _key(number) or name.startswith(_prefix(number)) for name in columns)
    )


def _key(number: int) -> str:
    return "prediction" if number == 1 else f"prediction_{number}"


def _prefix(number: int) -> str:
    return "predicted_" if number == 1 else f"predicted_{number}_"


class _Lines:
    """A file of JSON Lines."""

    def __init__(self, file, path: str, columns: Sequence[str], is_table: bool):
        self._file = file
        self._path = path
        self._key = key_of(columns, is_table)

    def write(self, values: dict[str, Any], prediction: Optional[dict[str, Any]]) -> None:
        if self._key in values:
            raise UserError(
                f"{argument('output')}={self._path}: a row has a field {self._key!r} that the first rows lack; rename "
                "it"
            )
        self._file.write(json_line(values, prediction, self._key) + "\n")

    def finish(self) -> None:
        pass


def key_of(columns: Sequence[str], is_table: bool) -> str:
    """Returns the key of predictions in JSON: empty where the rows are no table."""
    return _key(number_of(columns)) if is_table else ""


class _Cells:
    """A file of CSV or TSV, whose columns follow from the first prediction."""

    def __init__(self, file, path: str, columns: Sequence[str]):
        self._path = path
        self._columns = list(columns)
        self._prefix = _prefix(number_of(columns))
        self._writer = csv.writer(file, delimiter="\t" if path.endswith(".tsv") else ",", lineterminator="\n")
        self._names: Optional[list[str]] = None  # of a prediction's columns
        self._waiting: list[dict[str, Any]] = []  # rows before the first prediction

    def write(self, values: dict[str, Any], prediction: Optional[dict[str, Any]]) -> None:
        if more := [name for name in values if name not in self._columns]:
            raise UserError(
                f"{argument('output')}={self._path}: a row has a field {more[0]!r} that the first rows lack; give a "
                "name that ends in .jsonl"
            )
        if self._names is None and prediction is None:
            self._waiting.append(values)
            return

        cells = flat(prediction or {}, self._prefix)
        if self._names is None:
            self._begin([*cells])
        self._row(values, cells)

    def finish(self) -> None:
        if self._names is None:
            self._begin([])

    def _begin(self, names: list[str]) -> None:
        self._names = names
        self._writer.writerow([*self._columns, *names])
        for values in self._waiting:
            self._row(values, {})

    def _row(self, values: dict[str, Any], cells: dict[str, Any]) -> None:
        row = [*(values.get(name) for name in self._columns), *(cells.get(name) for name in self._names)]
        self._writer.writerow(map(_cell, row))


def flat(prediction: dict[str, Any], prefix: str = "predicted_") -> dict[str, Any]:
    """Returns a prediction as cells of a row, by their columns' names.

    Example:
    >>> flat(dict(label="cat", probabilities=dict(cat=0.9, dog=0.1)))
    {'predicted_label': 'cat', 'predicted_probabilities.cat': 0.9, 'predicted_probabilities.dog': 0.1}
    """
    cells = {}
    for name, value in prediction.items():
        if isinstance(value, dict):
            cells |= {f"{prefix}{name}.{part}": of_part for part, of_part in value.items()}
        else:
            cells[f"{prefix}{name}"] = value
    return cells


def _cell(value: Any) -> Any:
    """Returns a value as a cell: lists and objects in JSON."""
    if isinstance(value, (list, dict)):
        return whole_characters(json.dumps(value, ensure_ascii=False, default=_as_text))
    return whole_characters(value) if isinstance(value, str) else "" if value is None else value
