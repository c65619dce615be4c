"""Labelled text from TSV, CSV or JSONL files, or from TensorFlow Datasets, as batches to classify or regress.

Rows are text<TAB>label or text_a<TAB>text_b<TAB>label (in CSV the same columns; in JSONL the keys text, or text_a and
text_b, and label). A first row of TSV or CSV whose last column is "label" is a header. Row g of training, counting from
0 over all epochs, is at place g % N in the permutation of epoch g // N, which is keyed by (seed, epoch): what a step
sees is a pure function of (data, seed, step).
"""

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from typing import Optional

import numpy as np
import tensorflow as tf
from official.core import config_definitions as cfg
from official.nlp.data import data_loader_factory

from shatter_tf.data.batches import TextDataConfig, batches_of_rows
from shatter_tf.data.text import read_lines, whole_characters
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError, argument, first_line, nearest

EXTENSIONS = (".tsv", ".csv", ".jsonl")


@dataclasses.dataclass
class LabelledDataConfig(TextDataConfig):
    """Labelled texts as batches for classification or, without `labels`, for regression.

    Attributes:
      labels: label names in the order of their ids; empty takes them, sorted, from the training rows. Without any, as
        in regression, the rows' labels are numbers.
      text_fields: features of a TFDS dataset that hold the text, or the two texts of a pair; empty takes all strings.
      label_field: feature of a TFDS dataset that holds the label.
    """

    labels: list[str] = dataclasses.field(default_factory=list)
    text_fields: list[str] = dataclasses.field(default_factory=list)
    label_field: str = "label"


@dataclasses.dataclass
class Row:
    """One labelled text; `where` is its location, for messages."""

    texts: tuple[str, ...]
    label: str
    where: str


def find_file(data_dir: str, split: str, extensions: tuple[str, ...] = EXTENSIONS) -> str:
    """Returns the one file of a split ("train" or "dev") in `data_dir`; raises UserError."""
    candidates = [os.path.join(data_dir, split + extension) for extension in extensions]
    found = [path for path in candidates if tf.io.gfile.exists(path)]
    if len(found) != 1:
        choices = f"{', '.join(extensions[:-1])} or {extensions[-1]}"
        problem = f"both {found[0]} and {found[1]} exist" if found else f"no {split}{choices}"
        raise UserError(f"{argument('data_dir')}={data_dir}: {problem}")
    return found[0]


def read_rows(path: str) -> list[Row]:
    """Returns the rows of a file, without the header of a TSV or CSV file: a first row whose last column is "label".

    Raises:
      UserError: with file and line, for a row with another number of columns than the first, an empty text or a missing
        label, or JSON values of other types; and for a file that is missing, empty or not UTF-8.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    extension = os.path.splitext(path)[1]
    if extension not in EXTENSIONS:
        raise UserError(f"{path}: the name must end in {', '.join(EXTENSIONS)}")
    reader = {".tsv": _read_tsv, ".csv": _read_csv, ".jsonl": _read_jsonl}[extension]
    rows = []
    columns = 0
    for i, (line, fields) in enumerate(reader(path)):
        where = f"{path}:{line}"
        fields = tuple(field.strip() for field in fields)
        if i == 0 and extension != ".jsonl" and fields[-1].lower() == "label":
            continue
        columns = columns or len(fields)
        if len(fields) not in (2, 3):
            raise UserError(f"{where}: {len(fields)} column(s); expected text, label or text_a, text_b, label")
        if len(fields) != columns:
            raise UserError(f"{where}: {len(fields)} columns, but the first row has {columns}")
        if not fields[-1]:
            raise UserError(f"{where}: the label is empty")
        if not all(fields[:-1]):
            raise UserError(f"{where}: the text is empty")
        rows.append(Row(fields[:-1], fields[-1], where))
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows


def _read_tsv(path: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, line.split("\t")


def _read_csv(path: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # its default is 131,072 characters
    reader = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from error


def _read_jsonl(path: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error})") from error
        keys = ("text_a", "text_b", "label") if isinstance(row, dict) and "text_a" in row else ("text", "label")
        missing = [key for key in keys if not isinstance(row, dict) or row.get(key) is None]
        if missing:
            raise UserError(f"{path}:{number}: no {' and no '.join(missing)}")
        for key in keys:
            kinds, expected = ((str, int, float), "a string or a number") if key == "label" else (str, "a string")
            if not isinstance(row[key], kinds) or isinstance(row[key], bool):
                raise UserError(f"{path}:{number}: the {key} is {json.dumps(row[key])[:40]}; expected {expected}")
        yield number, [whole_characters(str(row[key])) for key in keys]


def open_tfds(params: cfg.DataConfig):
    """Returns the TensorFlow Datasets split that a config names, and its DatasetInfo; raises UserError."""
    import tensorflow_datasets as tfds

    try:
        return tfds.load(
            params.tfds_name, split=params.tfds_split, data_dir=params.tfds_data_dir or None, with_info=True
        )
    except Exception as error:  # TFDS raises whatever its builders and its network do
        where = f"tfds_name={params.tfds_name}, tfds_split={params.tfds_split}"
        raise UserError(f"{where}: {first_line(error)}") from error


def read_tfds(params: LabelledDataConfig) -> list[Row]:
    """Returns the rows of a TensorFlow Datasets split; label numbers become the dataset's label names."""
    source = f"tfds_name={params.tfds_name}"
    dataset, info = open_tfds(params)
    strings = [name for name, feature in info.features.items() if feature.dtype in (tf.string, np.str_, str, object)]
    text_fields = list(params.text_fields) or [name for name in strings if name != params.label_field]
    for name in (*text_fields, params.label_field):
        if name not in info.features:
            raise UserError(f"{source}: no feature {name!r}{nearest(name, info.features)}")
    if len(text_fields) not in (1, 2):
        raise UserError(f"{source}: {len(text_fields)} text features ({', '.join(text_fields)}); set text_fields")
    names = getattr(info.features[params.label_field], "names", None)
    rows = []
    for i, example in enumerate(dataset.as_numpy_iterator()):
        label = example[params.label_field]
        where = f"{source}, {params.tfds_split}[{i}]"
        if names and label < 0:
            raise UserError(f"{where}: the row has no label")
        text = tuple(example[name].decode("utf-8", "replace") for name in text_fields)
        label = names[label] if names else label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
        rows.append(Row(text, label, where))
    return rows


def load_rows(params: LabelledDataConfig) -> list[Row]:
    """Returns the rows that a config names; raises UserError."""
    if params.tfds_name:
        return read_tfds(params)
    if not params.input_path:
        raise UserError(f"no labelled text: give {argument('data_dir')}, or task.train_data.tfds_name")
    return read_rows(params.input_path)


def label_ids(rows: list[Row], labels: list[str]) -> np.ndarray:
    """Returns the ids of the rows' labels, int32 [rows]; raises UserError at a label that is not in `labels`."""
    ids = {label: i for i, label in enumerate(labels)}
    for row in rows:
        if row.label not in ids:
            known = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
            raise UserError(f"{row.where}: the label {row.label!r} is not among the training labels ({known})")
    return np.array([ids[row.label] for row in rows], np.int32)


def label_numbers(rows: list[Row]) -> np.ndarray:
    """Returns the rows' labels as numbers, float32 [rows]; raises UserError at one that is no finite number."""
    numbers = np.zeros(len(rows), np.float32)
    with np.errstate(over="ignore"):
        for i, row in enumerate(rows):
            try:
                numbers[i] = float(row.label)
            except ValueError:
                numbers[i] = math.nan
            if not math.isfinite(numbers[i]):
                raise UserError(f"{row.where}: the label {row.label!r} is not a finite number")
    return numbers


@data_loader_factory.register_data_loader_cls(LabelledDataConfig)
class LabelledDataLoader:
    """Batches of labelled text; see the top of this file for their order."""

    def __init__(
        self, params: LabelledDataConfig, rows: Optional[list[Row]] = None, tokenizer: Optional[Tokenizer] = None
    ):
        self.params = params
        rows = rows or load_rows(params)
        self.label_ids = label_ids(rows, params.labels) if params.labels else label_numbers(rows)
        self.texts = [
            np.array([text.encode() for text in column], object)
            for column in zip(*(r.texts for r in rows), strict=True)
        ]
        self.tokenizer = tokenizer or Tokenizer(read_vocabulary(params.vocab_file), params.lower_case)

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, L], and `label_ids`, int32 [B], or float32 [B] where labels are
        numbers; in evaluation also `row_weights`, see `batches_of_rows`.
        """
        texts = [tf.constant(column) for column in self.texts]
        labels = tf.constant(self.label_ids)
        length = self.params.seq_length

        def encode(rows):
            columns = [tf.gather(column, rows) for column in texts]
            encoded = self.tokenizer.encode(columns[0], columns[1] if len(columns) > 1 else None, length)
            return dict(self.tokenizer.pad(encoded, length), label_ids=tf.gather(labels, rows))

        return batches_of_rows(len(self.label_ids), encode, self.params, input_context, start_step)
