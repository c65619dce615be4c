"""Records, values by the names of their fields, from JSON, Parquet, Arrow, and what Hugging Face `datasets` saved."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Optional

import pyarrow as pa
import tensorflow as tf
from pyarrow import parquet

from shatter_tf.data import streams
from shatter_tf.errors import UserError, first_line

JSON_EXTENSIONS = (".jsonl", ".ndjson", ".json")
EXTENSIONS = (*JSON_EXTENSIONS, ".parquet", ".arrow")

# What `datasets` writes into a directory of its own.
DATASET_FILE = "state.json"

_ROWS = 100  # that are in memory at a time: texts may be long
_LOOKED_AT = 100  # records whose fields are looked at before the first is read


class Record(NamedTuple):
    """One record; `where` is its location, for messages."""

    where: str
    values: dict[str, Any]


class Records(NamedTuple):
    """The records of a file.

    Attributes:
      fields: their names; of JSON, those of the first hundred records.
      rows: the records, which can be read once.
      names: of whole numbers in fields for which the file says what they stand for.
    """

    fields: list[str]
    rows: Iterator[Record]
    names: dict[str, list[str]]


def holds_records(path: str) -> bool:
    """Returns whether `read_records` reads a file or directory, by its name."""
    if tf.io.gfile.isdir(path):
        return tf.io.gfile.exists(os.path.join(path, DATASET_FILE))
    return streams.plain_name(path).endswith(EXTENSIONS)


def read_records(path: str, fields: Optional[list[str]] = None) -> Records:
    """Returns the records of a file, or of a directory that `datasets` saved.

    Args:
      path: JSON Lines, a JSON array, Parquet, or Arrow's file or stream format; each may be packed.
      fields: those that are wanted, where only some are; all of them if left out. JSON gives all.

    Raises:
      UserError: for what is of none of these, now or while the records are read; then with their location.
    """
    if tf.io.gfile.isdir(path):
        return _read_dataset(path, fields)
    if streams.plain_name(path).endswith(JSON_EXTENSIONS):
        with contextlib.suppress(streams.NotText):  # a name that does not fit
            return read_json(path)
    beginning = streams.beginning(path)
    if beginning.startswith(streams.PARQUET):
        return _read_parquet(path, fields)
    if streams.plain_name(path).endswith(".parquet"):
        raise UserError(f"{path}: not Parquet, though its name ends so")
    return _read_arrow(path, [path], fields)


# === JSON ===


def read_json(path: str) -> Records:
    """Returns the records of a file of JSON Lines, or with a JSON array, whatever its name; raises UserError."""
    lines = enumerate(streams.read_lines(path), 1)
    number, first = next(((number, line) for number, line in lines if line.strip()), (1, ""))
    lines = itertools.chain([(number, first)], lines)
    is_array = first.lstrip().startswith("[")
    rows = _of_array(path, lines) if is_array else _of_lines(path, lines)

    beginning = list(itertools.islice(rows, _LOOKED_AT))
    fields = list(dict.fromkeys(name for record in beginning for name in record.values))
    return Records(fields, itertools.chain(beginning, rows), {})


def _of_lines(path: str, lines: Iterable[tuple[int, str]]) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); each line must be an object") from error
        yield Record(where, _object(value, where))


def _of_array(path: str, lines: Iterable[tuple[int, str]]) -> Iterator[Record]:
    (number, line), *rest = lines
    text = "\n".join([line, *(line for _, line in rest)])
    decoder = json.JSONDecoder()
    place = text.index("[") + 1
    counted = 0  # up to where lines were counted
    while True:
        place = _after_space(text, place)
        if text[place : place + 1] == "]":
            break
        number += text.count("\n", counted, place)
        counted = place
        where = f"{path}:{number}"
        try:
            value, place = decoder.raw_decode(text, place)
            place = _after_space(text, place)
            if text[place : place + 1] not in (",", "]"):
                raise ValueError("expected , or ] after this value")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        yield Record(where, _object(value, where))
        place += text[place] == ","
    if text[place + 1 :].strip():
        raise UserError(f"{path}: not JSON: there is more after the array")


def _after_space(text: str, place: int) -> int:
    while text[place : place + 1].isspace():
        place += 1
    return place


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {json.dumps(value)[:40]} is no object; expected one for each row")
    return value


# === Arrow ===


def _read_parquet(path: str, fields: Optional[list[str]]) -> Records:
    with streams.opened_on_disk(path) as file, _arrow_errors(path):
        schema = parquet.ParquetFile(file).schema_arrow

    def batches(columns):
        with streams.opened_on_disk(path) as file:
            # In pieces of a megabyte, and not as whole columns of a row group.
            reader = parquet.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
            yield from reader.iter_batches(_ROWS, columns=columns, use_threads=False)

    return _of_batches(path, schema, fields, batches)


def _read_dataset(path: str, fields: Optional[list[str]]) -> Records:
    with streams.opened(os.path.join(path, DATASET_FILE)) as file:
        try:
            parts = [os.path.join(path, part["filename"]) for part in json.load(file)["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}/{DATASET_FILE}: not as `datasets` writes it ({error!r})") from error
    if not parts:
        raise UserError(f"{path}: the dataset has no rows")
    return _read_arrow(path, parts, fields)


def _read_arrow(path: str, parts: list[str], fields: Optional[list[str]]) -> Records:
    def batches(columns):
        for part in parts:
            with streams.opened_on_disk(part) as file:
                yield from (_narrow(batch, columns) for batch in _arrow_batches(file)[1])

    with streams.opened_on_disk(parts[0]) as file, _arrow_errors(path):
        schema = _arrow_batches(file)[0]
    return _of_batches(path, schema, fields, batches)


def _arrow_batches(file) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Returns the schema and the batches of an open file, in Arrow's file format or its stream format."""
    is_file = file.read(len(streams.ARROW)) == streams.ARROW
    file.seek(0)
    if not is_file:
        reader = pa.ipc.open_stream(file)
        return reader.schema, iter(reader)
    reader = pa.ipc.open_file(file)
    return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))


def _narrow(batch: pa.RecordBatch, columns: Optional[list[str]]) -> pa.RecordBatch:
    return batch.select(columns) if columns else batch


def _of_batches(
    path: str, schema: pa.Schema, fields: Optional[list[str]], batches: Callable[..., Iterator[pa.RecordBatch]]
) -> Records:
    def rows():
        number = 0
        with _arrow_errors(path):
            for batch in batches([name for name in fields if name in schema.names] if fields else None):
                for piece in range(0, batch.num_rows, _ROWS):
                    for values in _values(batch.slice(piece, _ROWS), f"{path}, after row {number}"):
                        number += 1
                        yield Record(f"{path}, row {number}", values)

    return Records(schema.names, rows(), _class_names(schema))


def _values(batch: pa.RecordBatch, where: str) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # Arrow and Parquet do not look at their strings
        raise UserError(f"{where}: invalid UTF-8 in column {_not_utf8(batch)!r}; write it anew") from error
    except Exception as error:  # dates that Python does not have raise many kinds
        raise UserError(f"{where}: a value cannot be read ({first_line(error)}); leave its column out") from error


def _not_utf8(batch: pa.RecordBatch) -> str:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.to_pylist()
        except UnicodeDecodeError:
            return name
    raise AssertionError("every column is UTF-8")


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Returns what whole numbers stand for, as `datasets` writes it into the schema."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return {name: names for name, feature in features.items() if (names := _names(feature))}
    except (TypeError, KeyError, ValueError, AttributeError):
        return {}  # no such information


def _names(feature) -> Optional[list[str]]:
    if isinstance(feature, list):  # how earlier versions write a list of a feature
        return _names(feature[0]) if feature else None
    return feature.get("names") or _names(feature.get("feature") or [])


@contextlib.contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
