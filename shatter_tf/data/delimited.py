"""Rows of cells from CSV and TSV files, whichever delimiter and quotes they use."""

import contextlib
import csv
import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, Optional

from shatter_tf.data import streams
from shatter_tf.errors import UserError

EXTENSIONS = (".tsv", ".tab", ".csv")

_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
_SAMPLE = 200  # rows that tell the quotes

JSON = b"{"  # what `streams.NotText` has for it

Row = tuple[int, list[str]]  # the line on which it begins, counted from 1, and its cells


class _Dialect(NamedTuple):
    delimiter: str
    quote: str = '"'
    has_backslashes: bool = False  # before quotes inside quoted cells, which otherwise are doubled

    def __str__(self) -> str:
        quoted = {'"': "", "": "", "'": ", single quotes around texts"}[self.quote]
        return f"{_DELIMITERS[self.delimiter]} between cells{quoted}"


def read_delimited(path: str, names: Collection[str]) -> tuple[list[Row], str]:
    """Returns the rows of a file, and which delimiter it has.

    The delimiter is the one that cuts every row into equally many cells, two or more. Cells may be quoted: "" or \\"
    inside quotes is a quote, and line breaks belong to the cell. In a file with tabs, quotes that are not around whole
    cells are part of the text. Blank rows are left out.

    Args:
      path: the file, which may be packed.
      names: of columns, folded, that a first row may hold: they decide where several delimiters would do.

    Raises:
      UserError: with file and line, where rows differ in length or quotes are not closed; and for what cannot be told.
    """
    csv.field_size_limit(2**31 - 1)  # its default is 131,072 characters
    lines = list(streams.read_lines(path))
    if _holds_json(lines):
        raise streams.NotText(f"{path}: this is JSON; its name must end in .jsonl", JSON)
    skipped = 0
    usual = "\t" if streams.plain_name(path).endswith((".tsv", ".tab")) else ","
    delimiters = [usual, *(delimiter for delimiter in _DELIMITERS if delimiter != usual)]
    if lines and lines[0].strip().lower().startswith("sep=") and len(lines[0].strip()) == 5:  # Excel's own mark
        delimiters = [lines[0].strip()[-1]]
        skipped = 1

    lines = lines[skipped:]

    # Which dialects would do, and of several, the one that shows names of columns.
    fitting = [dialect for delimiter in delimiters if (dialect := _dialect(path, lines, delimiter))]
    if not fitting:
        raise UserError(_problem(path, lines, skipped, delimiters, names))
    known = [_count_known(lines, dialect, names) for dialect in fitting]
    if len(fitting) > 1 and not max(known):
        tried = " and ".join(_DELIMITERS[dialect.delimiter] for dialect in fitting)
        raise UserError(
            f"{path}: {tried} both cut every row into equally many cells; add a first line with the columns' names, "
            "such as text and label, between the right ones"
        )
    dialect = fitting[known.index(max(known))]

    rows = [(line + skipped, cells) for line, cells in _cells(lines, dialect, path) if _has_content(cells)]
    return rows, str(dialect)


def _holds_json(lines: list[str]) -> bool:
    """Returns whether a file begins with a JSON object, or an array of them."""
    first = next((line.strip() for line in lines if line.strip()), "")
    if first in ("[", "[{", "{") or first.startswith('[{"'):
        return True
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(first), dict)
    return False


def _dialect(path: str, lines: list[str], delimiter: str) -> Optional[_Dialect]:
    """Returns how to read a file at a delimiter so that all rows have equally many cells; None if there is no way.

    Raises:
      UserError: when quotes may be a text's own as well as around several lines.
    """
    candidates = [_Dialect(delimiter)]
    if any('\\"' in line for line in lines):
        candidates.append(_Dialect(delimiter, has_backslashes=True))
    if delimiter == "\t":
        candidates.insert(0, _Dialect(delimiter, quote=""))
    for dialect in candidates:
        if _fits(lines, dialect):
            if not dialect.quote:
                _refuse_open_quotes(lines, dialect, path)
            single = dialect._replace(quote="'")
            quoted = dialect.quote == '"' and _has_single_quotes(_beginning(lines, dialect)) and _fits(lines, single)
            return single if quoted else dialect
    return None


def _refuse_open_quotes(lines: list[str], dialect: _Dialect, path: str) -> None:
    """Raises UserError for a file whose lines are rows by themselves, and other ones where quotes join cells."""
    quoted = dialect._replace(quote='"')
    rows = list(_cells(lines, dialect, path))
    opened = [line for line, cells in rows for cell in cells if cell.startswith('"') and not _is_quoted(cell)]
    if opened and _fits(lines, quoted):
        raise UserError(
            f"{path}:{opened[0]}: is this quote around a cell with tabs or line breaks, or part of a text? Write the "
            "file as JSON Lines, or as CSV with quotes around every text"
        )


def _fits(lines: list[str], dialect: _Dialect) -> bool:
    """Returns whether rows have equally many cells, two or more, and quotes are as they must be."""
    try:
        lengths = (len(cells) for _, cells in _cells(lines, dialect, "") if _has_content(cells))
        first = next(lengths, 0)
        return first > 1 and all(length == first for length in lengths)
    except UserError:
        return False


def _has_content(cells: list[str]) -> bool:
    return any(cell.strip() for cell in cells)


def _beginning(lines: list[str], dialect: _Dialect) -> list[Row]:
    """Returns the first rows that are not blank."""
    return list(itertools.islice((row for row in _cells(lines, dialect, "") if _has_content(row[1])), _SAMPLE))


def _has_single_quotes(rows: list[Row]) -> bool:
    """Returns whether all cells but numbers, and perhaps those of the first row, are in single quotes."""
    cells = [cell for _, row in rows[1:] or rows for cell in row]
    quoted = [cell for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == "'"]
    return bool(quoted) and all(cell in quoted or cell.strip("-.0123456789") == "" for cell in cells)


def _count_known(lines: list[str], dialect: _Dialect, names: Collection[str]) -> int:
    _, first = _beginning(lines, dialect)[0]
    return sum(cell.strip().casefold() in names for cell in first)


def _cells(lines: list[str], dialect: _Dialect, path: str) -> Iterator[Row]:
    """Yields rows of cells; raises UserError, with the line, where quotes are not as they must be."""
    if not dialect.quote:
        yield from _of_plain_lines(lines, dialect.delimiter)
        return
    doubled = (line.replace('\\"', '""') if dialect.has_backslashes else line for line in lines)
    reader = csv.reader(
        (line + "\n" for line in doubled), delimiter=dialect.delimiter, quotechar=dialect.quote, strict=True
    )
    begin = 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: {error}; a quote in a quoted text must be doubled") from error


def _of_plain_lines(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Yields each line's cells, without the quotes around them if all that begin with a quote are quoted as a whole."""
    rows = [(number, line.split(delimiter)) for number, line in enumerate(lines, 1) if line.strip()]
    quoted = [cell for _, cells in rows for cell in cells if cell.startswith('"')]
    if not all(_is_quoted(cell) for cell in quoted):
        quoted = []
    for number, cells in rows:
        yield number, [_unquoted(cell) if quoted and cell.startswith('"') else cell for cell in cells]


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell.endswith('"') and '"' not in cell[1:-1].replace('""', "")


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"')


# === What is wrong ===


def _problem(path: str, lines: list[str], skipped: int, delimiters: list[str], names: Collection[str]) -> str:
    """Returns a line that says why no delimiter will do."""
    if not any(line.strip() for line in lines):
        return f"{path}: the file has no rows"

    # Judged by the delimiter between names that are known, or else the one that most rows have.
    def likelihood(delimiter: str) -> tuple[int, int]:
        first = next(line for line in lines if line.strip()).split(delimiter)
        known = sum(cell.strip().strip('"').casefold() in names for cell in first)
        return known if len(first) > 1 else 0, sum(delimiter in line for line in lines)

    delimiter = max(delimiters, key=likelihood)
    dialect = _Dialect(delimiter, quote="" if delimiter == "\t" else '"')
    try:
        rows = [(line + skipped, cells) for line, cells in _cells(lines, dialect, path) if _has_content(cells)]
    except UserError as error:
        return str(error)

    first, cells = rows[0]
    for line, others in rows:
        if len(others) != len(cells):
            more = len(others) > len(cells)
            remedy = f"; put quotes around a text that has {_DELIMITERS[delimiter]} in it" if more else ""
            columns = f"{len(others)} column{'s' * (len(others) != 1)}"
            return f"{path}:{line}: {columns}, but line {first} has {len(cells)}{remedy}"
    cut = " or ".join(_DELIMITERS[delimiter] for delimiter in delimiters)
    return f"{path}:{first}: 1 column; expected text and label, with {cut} between them"
