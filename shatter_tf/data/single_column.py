"""Tables of one column, which have no delimiter: a CSV or TSV file whose first line is the name of a text."""

import csv
from collections.abc import Iterator, Sequence
from typing import Optional

from shatter_tf.data import delimited, streams, tables
from shatter_tf.data.names import TEXTS, fold
from shatter_tf.data.records import Record
from shatter_tf.errors import UserError


def single_column(path: str, text_fields: Sequence[str]) -> Optional[tables.Table]:
    """Returns a CSV or TSV file with texts only, in which labelled rows would lack a column; None for another file."""
    if not streams.plain_name(path).endswith(delimited.EXTENSIONS):
        return None
    try:
        first = next(streams.read_lines(path), "")
    except streams.NotText:  # a name that does not fit
        return None
    name = first.strip().strip('"')
    if fold(name) not in (*TEXTS, *map(fold, text_fields)):
        return None
    return tables.Table(path, [name], True, _of_single_column(path, name), {}, ["line 1 is a header"])


def _of_single_column(path: str, name: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # its default is 131,072 characters
    reader = csv.reader((line + "\n" for line in streams.read_lines(path)), strict=True)
    begin = 1
    try:
        for cells in reader:
            if len(cells) > 1:
                raise UserError(f"{path}:{begin}: {len(cells)} columns, but line 1 has 1; put quotes around the text")
            if begin > 1:
                yield Record(f"{path}:{begin}", {name: "".join(cells)})
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: {error}; a quote in a quoted text must be doubled") from error
