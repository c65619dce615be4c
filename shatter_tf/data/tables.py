"""Tables of any format: CSV, TSV, JSON, Parquet, Arrow, and what Hugging Face `datasets` saved."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Optional

import tensorflow as tf

from shatter_tf.data import delimited, records
from shatter_tf.data.names import KNOWN, fold
from shatter_tf.data.records import Record
from shatter_tf.data.streams import ARROW, PACKED_EXTENSIONS, PARQUET, NotText, plain_name
from shatter_tf.errors import UserError, argument

EXTENSIONS = (*delimited.EXTENSIONS, *records.EXTENSIONS)

_NAME_CHARACTERS, _NAME_WORDS = 40, 3  # of a column's name, at most


@dataclasses.dataclass
class Table:
    """Rows of named columns.

    Attributes:
      path: where it is from.
      columns: their names; numbers from 1 on where the file has none.
      has_names: whether the file names them.
      rows: can be read once.
      names: of whole numbers in columns for which the file says what they stand for.
      notes: how it was understood.
    """

    path: str
    columns: list[str]
    has_names: bool
    rows: Iterable[Record]
    names: dict[str, list[str]]
    notes: list[str]


def is_table(path: str) -> bool:
    """Returns whether a path has the name of a table, or is a directory that `datasets` saved."""
    return plain_name(path).endswith(EXTENSIONS) or (tf.io.gfile.isdir(path) and records.holds_records(path))


def find_file(data_dir: str, splits: Sequence[str], extensions: Sequence[str] = EXTENSIONS) -> Optional[str]:
    """Returns the one file in `data_dir` whose name is one of `splits`, packed or not; None if there is none.

    Raises:
      UserError: when there are several, or no such directory.
    """
    where = f"{argument('data_dir')}={data_dir}"
    if not tf.io.gfile.isdir(data_dir):
        what = "a file; give its directory" if tf.io.gfile.exists(data_dir) else "no such directory"
        raise UserError(f"{where}: {what}")
    paths = [os.path.join(data_dir, name.rstrip("/")) for name in sorted(tf.io.gfile.listdir(data_dir))]
    for split in splits:
        found = [
            path
            for path in paths
            if os.path.splitext(plain_name(path))[0] == split
            and (plain_name(path).endswith(tuple(extensions)) or (tf.io.gfile.isdir(path) and is_table(path)))
        ]
        if len(found) > 1:
            raise UserError(f"{where}: both {found[0]} and {found[1]} exist; keep one of them")
        if found:
            return found[0]
    return None


def read_table(path: str, fields: Sequence[str] = ()) -> Table:
    """Returns a table: CSV, TSV, JSON, Parquet, Arrow, or a directory that `datasets` saved; each file may be packed.

    Args:
      path: where it is.
      fields: names of columns that the caller expects, beside those that are well known.

    Raises:
      UserError: for what cannot be read; with its line, where there are lines.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    if records.holds_records(path):
        return _of_records(path, records.read_records(path))
    if not plain_name(path).endswith(delimited.EXTENSIONS):
        packed = ", ".join(PACKED_EXTENSIONS)
        raise UserError(f"{path}: the name must end in {', '.join(EXTENSIONS)}, and may have {packed} after that")

    try:
        rows, delimiter = delimited.read_delimited(path, {*KNOWN, *(fold(field) for field in fields)})
    except NotText as error:
        if error.magic in (PARQUET, ARROW):  # whatever its name
            return _of_records(path, records.read_records(path))
        if error.magic == delimited.JSON:
            return _of_records(path, records.read_json(path))
        raise
    (line, first), *rest = rows
    has_names = _is_header(path, line, first, rest, fields)
    columns = [cell.strip() for cell in first] if has_names else [str(i + 1) for i in range(len(first))]
    repeated = [name for name in columns if name and columns.count(name) > 1]
    if repeated:
        raise UserError(f"{path}:{line}: two columns have the name {repeated[0]!r}; rename one")

    found = [
        Record(f"{path}:{number}", dict(zip(columns, cells, strict=True)))
        for number, cells in (rest if has_names else rows)
    ]
    if not found:
        raise UserError(f"{path}: the file has no rows, only a header")
    notes = [delimiter, f"line {line} is a header" if has_names else "no header"]
    return Table(path, columns, has_names, found, {}, notes)


def _of_records(path: str, found: records.Records) -> Table:
    if not found.fields:
        raise UserError(f"{path}: the file has no rows")
    return Table(path, found.fields, True, found.rows, found.names, [])


def _is_header(path: str, line: int, first: list[str], rest: list, fields: Sequence[str]) -> bool:
    """Returns whether the first row holds the columns' names; raises UserError where that cannot be told."""
    folded = [fold(cell) for cell in first]
    repeats = [number for number, cells in rest if cells == first]
    if repeats and sum(name in KNOWN for name in folded) > 1:
        raise UserError(f"{path}:{repeats[0]}: repeats the header of line {line}; leave it out")
    expected = [fold(field) for field in fields]
    if any(field in folded for field in expected):
        return True
    others = [cells for _, cells in rest]
    is_new = [cell not in {cells[i] for cells in others} for i, cell in enumerate(first)]
    known = [name in KNOWN for name in folded]
    if all(is_new) and (sum(known) > 1 or (any(known) and all(name in KNOWN or _is_name(name) for name in folded))):
        return True
    if not rest:
        return False

    # A label in line 1 that no other row has, where others recur, is rather a name.
    last = [cells[-1].strip() for cells in others]
    numbers = [is_number(label) for label in last]
    recurring = len(set(last)) <= len(last) / 2
    is_odd = (all(numbers) and not is_number(first[-1])) or (recurring and is_new[-1])
    if is_odd and all(is_new) and all(_is_name(name) for name in folded):
        shown = ", ".join(" ".join(cell.split())[:30] for cell in first)
        raise UserError(
            f"{path}:{line}: is this a header ({shown})? If so, give {argument('text_fields')} and "
            f"{argument('label_field')}; if not, put one before it: text{'_a' * (len(first) > 2)}, …, label"
        )
    return False


def _is_name(folded: str) -> bool:
    return len(folded) <= _NAME_CHARACTERS and folded.count("_") < _NAME_WORDS and not folded.endswith((".", "!", "?"))


def is_number(cell: str) -> bool:
    """Returns whether a cell holds a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
