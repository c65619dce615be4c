"""Which columns of a table are texts and labels: told by their names.

Without names, texts come first and the label last, provided that the columns look like that.
"""

import dataclasses
from collections.abc import Sequence

from shatter_tf.data.names import IDS, LABELS, PAIRS, TEXTS, fold
from shatter_tf.data.records import Record
from shatter_tf.data.streams import whole_characters
from shatter_tf.data.tables import Table, is_number
from shatter_tf.errors import UserError, argument, nearest


@dataclasses.dataclass
class Columns:
    """The columns that hold the texts, one or two, and the labels, none or more; `note` says so.

    Attributes:
      names: of labels that are whole numbers, where the file, or one beside it, has them.
    """

    texts: list[str]
    labels: list[str]
    note: str
    names: list[str] = dataclasses.field(default_factory=list)


def choose(table: Table, text_fields: Sequence[str] = (), label_field: str = "", needs_label: bool = True) -> Columns:
    """Returns the columns that hold texts and labels.

    Args:
      table: with its first rows unread.
      text_fields: names of the texts' columns; empty takes well-known ones.
      label_field: name of the label's column, or of several, with commas between; empty takes a well-known one.
      needs_label: whether there must be one.

    Raises:
      UserError: naming the columns, when it is not clear which they are.
    """
    if not table.has_names and label_field == "label":  # how older runs record that none was given
        label_field = ""
    labels = [_given(table, name, "label_field") for name in label_field.split(",") if name.strip()]
    texts = [_given(table, name, "text_fields") for name in text_fields]
    if len(texts) > 2:
        raise UserError(f"{argument('text_fields')}={','.join(text_fields)}: give one text, or the two of a pair")
    if table.has_names:
        texts = texts or _known_texts(table.columns, labels)
        labels = labels or [name for name in _first(table.columns, LABELS) if name not in texts]
        texts, labels = _by_elimination(table, texts, labels, needs_label)
    elif not texts and not labels:
        texts, labels = _by_place(table)

    missing = [*(["a text"] if not texts else []), *(["a label"] if needs_label and not labels else [])]
    if missing:
        flags = " and ".join(
            argument(flag) for flag, names in (("text_fields", texts), ("label_field", labels)) if not names
        )
        found = ", ".join(repr(name) for name in table.columns)
        raise UserError(f"{table.path}: which column is {' and which '.join(missing)}? Give {flags}; there are {found}")
    if both := [name for name in texts if name in labels]:
        raise UserError(f"{table.path}: column {both[0]!r} cannot be both a text and the label")
    return Columns(texts, labels, _describe(table, texts, labels))


def _given(table: Table, name: str, flag: str) -> str:
    """Returns the column that a flag names."""
    for column in table.columns:
        if name.strip() in (column, column.strip()):
            return column
    folded = [column for column in table.columns if fold(column) == fold(name)]
    if len(folded) == 1:
        return folded[0]
    found = (
        "no column has a name; name them in the first line"
        if not table.has_names
        else "there are " + ", ".join(repr(column) for column in table.columns)
    )
    raise UserError(
        f"{table.path}: no column {name.strip()!r}{nearest(name, table.columns)}, as {argument(flag)} says; {found}"
    )


def _first(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the column with the earliest of the known names, if there is any."""
    by_name = {fold(column): column for column in reversed(columns)}
    return [by_name[name] for name in known if name in by_name][:1]


def _known_texts(columns: Sequence[str], labels: Sequence[str]) -> list[str]:
    columns = [column for column in columns if column not in labels]
    by_name = {fold(column): column for column in reversed(columns)}
    for pair in PAIRS:
        if all(name in by_name for name in pair):
            return [by_name[name] for name in pair]
    return _first(columns, TEXTS)


def _by_elimination(table: Table, texts: list[str], labels: list[str], needs_label: bool) -> tuple[list, list]:
    """Returns texts and labels, where a missing one is the only column that is left."""
    left = [name for name in table.columns if name not in (*texts, *labels) and fold(name) not in IDS]
    if len(left) == 1 and not texts and labels:
        return left, labels
    if len(left) == 1 and texts and not labels and needs_label:
        return texts, left
    return texts, labels


def _by_place(table: Table) -> tuple[list[str], list[str]]:
    """Returns texts and label of a table without names: texts first, one or two, and the label last.

    Raises:
      UserError: when the columns do not look like that.
    """
    rows = table.rows = list(table.rows)
    where = rows[0].where
    number = len(table.columns)
    remedy = "name the columns in a first line, such as text and label"
    if number not in (2, 3):
        raise UserError(f"{where}: {number} columns without names; {remedy}")

    values = [[row.values[name] for row in rows] for name in table.columns]
    for name, column in zip(table.columns[:-1], values[:-1], strict=True):
        if all(is_number(cell) for cell in column):
            raise UserError(f"{where}: column {name} holds only numbers, where a text should be; {remedy}")
        if number == 3 and _look_like_labels(column):
            raise UserError(f"{where}: column {name} looks like labels, where a text should be; {remedy}")
        if name != "1" and all(cell.startswith(" ") for cell in column):
            raise UserError(
                f"{where}: column {name} looks like a part of column 1; put quotes around texts, or {remedy}"
            )
    lengths = [sum(map(len, column)) for column in values]
    if lengths[-1] > max(lengths[:-1]) and not all(is_number(cell) for cell in values[-1]):
        raise UserError(f"{where}: the last column, where the label should be, is longer than the texts; {remedy}")
    return table.columns[:-1], table.columns[-1:]


def _look_like_labels(column: Sequence[str]) -> bool:
    """Returns whether cells recur, and are single words."""
    return len(set(column)) <= len(column) / 2 and all(len(cell.split()) == 1 for cell in column)


def _describe(table: Table, texts: list[str], labels: list[str]) -> str:
    """Returns a line that says how a table was understood."""
    what = " and ".join(repr(name) for name in texts)
    said = [*table.notes, f"text{'s' * (len(texts) > 1)}: {what}"]
    if labels:
        said.append(f"label{'s' * (len(labels) > 1)}: {', '.join(repr(name) for name in labels)}")
    left_out = [repr(name) for name in table.columns if name not in (*texts, *labels)]
    if left_out:
        said.append(f"left out: {', '.join(left_out)}")
    return f"{table.path}: {'; '.join(said)}"


def text_of(record: Record, column: str) -> str:
    """Returns a row's text, without white space around it; raises UserError if it is empty or no string."""
    value = record.values.get(column)
    what = f"{record.where}: the text (column {column!r})"
    if column not in record.values:
        raise UserError(f"{what} is missing; there are {', '.join(map(repr, record.values))}")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise UserError(f"{what} is empty")
    if not isinstance(value, str):
        raise UserError(f"{what} is {str(value)[:40]}; expected a string")
    return whole_characters(value).strip()
