"""The texts of a file, as a model takes them: rows of a table of any format, or lines."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import tensorflow as tf

from shatter_tf.data import columns, streams, tables
from shatter_tf.data.names import fold
from shatter_tf.data.records import Record
from shatter_tf.data.single_column import single_column
from shatter_tf.errors import UserError, argument

_LINES = (".jsonl", ".ndjson")  # a row each


class TextRow(NamedTuple):
    """What is asked of a model.

    Attributes:
      where: its location, for messages.
      texts: one for each of the model's inputs; None where one is empty.
      values: the row's columns; of lines, the texts by the names of the inputs.
    """

    where: str
    texts: Optional[Sequence[str]]
    values: dict[str, Any]


@dataclasses.dataclass
class Texts:
    """The rows of a file.

    Attributes:
      columns: the names of what each row has.
      rows: can be read once.
      is_table: whether the rows have columns of their own.
      number: of rows, about; None if it is not known before they are read.
      note: how the file was understood.
    """

    columns: list[str]
    rows: Iterator[TextRow]
    is_table: bool
    number: Optional[int] = None
    note: str = ""


def read_texts(path: str, names: Sequence[str], text_fields: Sequence[str] = ()) -> Texts:
    """Returns the texts of a table of any format, or of a file with a text on each line, tabs between those of a pair.

    Args:
      path: which of these it is, its name tells; it may be packed.
      names: of the model's inputs.
      text_fields: the columns of the texts; empty takes those with the names of the inputs, or well-known names.

    Raises:
      UserError: when it cannot be read, and when it is not clear which columns are the texts; while rows are read, with
        their location, for those that do not fit.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    if not tables.is_table(path):
        if text_fields:
            raise UserError(
                f"{argument('text_fields')}={','.join(text_fields)}: {path} has no columns; tables end in "
                f"{', '.join(tables.EXTENSIONS)}"
            )
        return lines(streams.read_lines(path), names, path, _count_lines(path))

    table = single_column(path, text_fields) or tables.read_table(path, [*text_fields, *names])
    chosen = _text_columns(table, names, text_fields)
    rows = (TextRow(record.where, _texts(record, chosen), record.values) for record in table.rows)
    number = len(table.rows) if isinstance(table.rows, list) else None
    if streams.plain_name(path).endswith(_LINES):
        number = _count_lines(path)
    what = f"text{'s' * (len(names) > 1)}: {' and '.join(map(repr, chosen))}"
    return Texts(table.columns, rows, True, number, f"{path}: {'; '.join([*table.notes, what])}")


def lines(texts: Iterable[str], names: Sequence[str], where: str, number: Optional[int] = None) -> Texts:
    """Returns texts, of which tabs separate those of a pair, as rows with the columns `names`."""

    def row(line: int, text: str) -> TextRow:
        place = f"{where}:{line}"
        if not text.strip():
            return TextRow(place, None, dict.fromkeys(names, ""))
        found = parts(text, names, place)
        return TextRow(place, found if all(map(str.strip, found)) else None, dict(zip(names, found, strict=True)))

    return Texts([*names], (row(line, text) for line, text in enumerate(texts, 1)), False, number)


def parts(text: bytes | str, names: Sequence[str], where: str = "") -> Sequence:
    """Returns the parts of a text, one for each name, which tabs separate; a single text may have tabs.

    Raises:
      UserError: for another number of parts, beginning with `where`, or else with the text.

    Example:
    >>> parts("who sat\\tthe cat sat", ["question", "context"])
    ['who sat', 'the cat sat']
    """
    found = text.split(b"\t" if isinstance(text, bytes) else "\t") if len(names) > 1 else [text]
    if len(found) != len(names):
        shown = where or repr(text.decode(errors="replace") if isinstance(text, bytes) else text)
        raise UserError(f"{shown}: the model takes {' and '.join(names)}, separated by tabs")
    return found


def _count_lines(path: str) -> int:
    return sum(block.count(b"\n") for block in streams.read_blocks(path))


def _text_columns(table: tables.Table, names: Sequence[str], text_fields: Sequence[str]) -> list[str]:
    """Returns the columns of the texts, one for each of the model's inputs; raises UserError."""
    folded = {fold(column): column for column in reversed(table.columns)}
    if not text_fields and all(name in folded for name in names):
        text_fields = [folded[name] for name in names]
    if not text_fields and not table.has_names and len(table.columns) == len(names):
        text_fields = table.columns
    chosen = columns.choose(table, text_fields, needs_label=False).texts
    if len(chosen) != len(names):
        raise UserError(
            f"{table.path}: the model takes {' and '.join(names)}, but {' and '.join(map(repr, chosen))} would be "
            f"read; give {argument('text_fields')}, {len(names)} of {', '.join(map(repr, table.columns))}"
        )
    return chosen


def _texts(record: Record, names: Sequence[str]) -> Optional[list[str]]:
    """Returns a row's texts, or None where one is empty or missing; raises UserError for what is no text."""
    values = [record.values.get(name) for name in names]
    if any(value is None or value == "" or (isinstance(value, str) and value.isspace()) for value in values):
        return None
    return [columns.text_of(record, name) for name in names]
