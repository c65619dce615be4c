"""Labelled text from files of any format, or from TensorFlow Datasets, as batches to classify or regress.

Which columns are texts and labels is told by their names; see columns.py. Row g of training, counting from 0 over all
epochs, is at place g % N in the permutation of epoch g // N, which is keyed by (seed, epoch): what a step sees is a
pure function of (data, seed, step).
"""

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf
from official.core import config_definitions as cfg
from official.nlp.data import data_loader_factory

from shatter_tf.data import tables
from shatter_tf.data.batches import TextDataConfig, batches_of_rows, rows_in_order
from shatter_tf.data.columns import Columns, choose, text_of
from shatter_tf.data.records import Record
from shatter_tf.data.streams import read_lines, whole_characters
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError, all_of, argument, first_line, nearest

DEV_NAMES = ("dev", "validation", "valid", "val")
# Files beside the data that may hold the names of labels that are numbers, one a line, from 0 on.
_NAMES_FILES = ("labels.txt", "classes.txt", "label_names.txt")

# What stands where there is no label.
_MISSING = {"", "nan", "null", "<na>", "#n/a"}

WINDOWS = "windows"
LONG_TEXT = ("head", "tail", "head_tail", WINDOWS)

ALL, HELD_OUT, NOT_HELD_OUT = "all", "held_out", "not_held_out"


@dataclasses.dataclass
class LabelledDataConfig(TextDataConfig):
    """Labelled texts as batches for classification or, without `labels`, for regression.

    Attributes:
      labels: label names in the order of their ids; empty takes them, sorted, from the training rows. Without any, as
        in regression, the rows' labels are numbers. Where the rows' labels are whole numbers, these are ids.
      text_fields: columns, or features of a TFDS dataset, that hold the text, or the two texts of a pair; empty takes
        those with well-known names, of TFDS all strings.
      label_field: column, or feature, that holds the label; empty takes a well-known one. Several columns, with commas
        between, hold 1 where a text has the label of that name.
      label_separator: what stands between several labels of one text in one cell.
      share: which of the rows are meant: all, held_out, a tenth of them by a hash of the text, or not_held_out.
      long_text: what becomes of a text that is longer than seq_length: head, tail and head_tail cut it, and windows
        reads it as several of that length; pairs are always cut.
      max_windows: of one text; what is beyond is cut.
      length_buckets: whether a batch has texts of about the same length, padded only to that. TPUs take one
        length only.
      label_mean, label_scale: of numbers, which are learned as (number - mean) / scale; follow from the training rows.
    """

    labels: list[str] = dataclasses.field(default_factory=list)
    text_fields: list[str] = dataclasses.field(default_factory=list)
    label_field: str = ""
    label_separator: str = ""
    share: str = ALL
    long_text: str = "head"
    max_windows: int = 8
    length_buckets: bool = False
    label_mean: float = 0.0
    label_scale: float = 1.0

    @property
    def in_windows(self) -> bool:
        """Whether long texts are read as several."""
        return self.long_text == WINDOWS

    def problems(self) -> list[str]:
        found = super().problems()
        if self.long_text not in LONG_TEXT:
            found.append(f"long_text={self.long_text}: use {', '.join(LONG_TEXT)}{nearest(self.long_text, LONG_TEXT)}")
        if self.max_windows < 1:
            found.append(f"max_windows={self.max_windows} is not positive")
        if not self.label_scale > 0:
            found.append(f"label_scale={self.label_scale} is not positive")
        return found


Label = Union[str, tuple[str, ...]]


@dataclasses.dataclass
class Row:
    """One labelled text, or pair of texts; several labels are a tuple. `where` is its location, for messages."""

    texts: tuple[str, ...]
    label: Label
    where: str


def choose_files(
    train: TextDataConfig,
    validation: TextDataConfig,
    data_dir: Optional[str],
    extensions: Sequence[str] = tables.EXTENSIONS,
) -> None:
    """Sets the files to train and validate on that are not set; without one to validate on, some rows are held out.

    Raises:
      UserError: when there is none to train on.
    """
    if train.tfds_name or validation.tfds_name:
        return
    if data_dir and not train.input_path:
        train.input_path = tables.find_file(data_dir, ["train"], extensions) or ""
        if not train.input_path and tables.is_table(data_dir):  # a single dataset that `datasets` saved
            train.input_path = data_dir
        if not train.input_path:
            there = ", ".join(sorted(tf.io.gfile.listdir(data_dir))[:10]) or "nothing"
            names = f"train{', train'.join(extensions)}"
            raise UserError(
                f"{argument('data_dir')}={data_dir}: it has none of {names}, but {there}; {argument('train_file')} "
                "takes any name"
            )
    if data_dir and not validation.input_path and train.input_path != data_dir:
        validation.input_path = tables.find_file(data_dir, DEV_NAMES, extensions) or ""
    if not validation.input_path:
        validation.input_path = train.input_path
        train.share, validation.share = NOT_HELD_OUT, HELD_OUT


def read_rows(
    path: str,
    text_fields: Sequence[str] = (),
    label_field: str = "",
    label_separator: str = "",
    labels: Sequence[str] = (),
) -> tuple[list[Row], Columns]:
    """Returns the rows of a file, and which of its columns they are from.

    Args:
      path: a table of any format.
      text_fields, label_field, label_separator, labels: as in LabelledDataConfig.

    Raises:
      UserError: with file and line, for an empty text or a missing label, and for values of other types; and for a file
        that cannot be read, or whose columns are not clear.
    """
    table = tables.read_table(path, [*text_fields, *label_field.split(",")])
    columns = choose(table, text_fields, label_field)
    rows = []
    for record in table.rows:
        texts = tuple(text_of(record, name) for name in columns.texts)
        rows.append(Row(texts, _label(record, columns.labels, label_separator, labels), record.where))
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    if len(columns.labels) == 1:
        names = list(labels) or table.names.get(columns.labels[0]) or names_beside(path)
        if names and (said := _name_numbers(rows, names)):
            columns.note += said
            columns.names = names
    return rows, columns


def _label(record: Record, columns: list[str], separator: str, known: Sequence[str]) -> Label:
    """Returns a row's label, or labels; raises UserError where there is none."""
    if len(columns) > 1:
        return tuple(name for name in columns if _is_set(record, name))
    (name,) = columns
    value = record.values.get(name)
    if isinstance(value, list):
        return tuple(dict.fromkeys(_one_label(record, name, item, known) for item in value))
    if separator and isinstance(value, str):
        return tuple(dict.fromkeys(part.strip() for part in value.split(separator) if part.strip()))
    return _one_label(record, name, value, known)


def _is_set(record: Record, name: str) -> bool:
    """Returns whether a column of zeros and ones has a one."""
    value = str(record.values.get(name)).strip().lower()
    if value in ("1", "1.0", "true"):
        return True
    if value in ("0", "0.0", "false"):
        return False
    raise UserError(f"{record.where}: {name} is {value[:40]}; where labels have columns of their own, give 0 or 1")


def _one_label(record: Record, name: str, value: Any, known: Sequence[str]) -> str:
    what = f"{record.where}: the label (column {name!r})"
    if value is None and name not in record.values:
        raise UserError(f"{what} is missing; there are {', '.join(map(repr, record.values))}")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)  # how whole numbers come out of a column that has gaps
    if not (value is None or isinstance(value, (str, int, float))):
        raise UserError(f"{what} is {str(value)[:40]}; expected a string or a number")
    label = "" if value is None else whole_characters(str(value)).strip()
    if label.startswith(("['", '["')) or label == "[]":
        raise UserError(
            f"{what} is {label[:40]}, a list in text; write a|b, and set task.train_data.label_separator='|'"
        )
    if label.lower() in _MISSING and label not in known:
        is_none = f"is {label}, which stands for none" if label else "is empty"
        raise UserError(f"{what} {is_none}; leave the row out, or give it a label")
    return label


def names_beside(path: str) -> list[str]:
    """Returns the names of labels that are numbers, from a file beside the data; empty if there is none."""
    for name in _NAMES_FILES:
        beside = os.path.join(os.path.dirname(path), name)
        if tf.io.gfile.exists(beside):
            return [line.strip() for line in read_lines(beside) if line.strip()]
    return []


def _name_numbers(rows: list[Row], names: Sequence[str]) -> str:
    """Replaces labels that are whole numbers by the names of these; returns a note on that.

    Raises:
      UserError: for a number that has no name.
    """
    labels = {part for row in rows for part in parts(row.label)}
    are_ids = all(re.fullmatch(r"-?[0-9]+", label) for label in labels)
    if not are_ids or any(re.fullmatch(r"-?[0-9]+", name) for name in names):  # else a name may be meant
        return ""

    def name(row: Row, part: str) -> str:
        if not 0 <= int(part) < len(names):
            what = "the row has no label" if part == "-1" else f"the label {part} has no name"
            raise UserError(f"{row.where}: {what}; the names are {', '.join(names[:10])}, from 0 on")
        return names[int(part)]

    for row in rows:
        named = tuple(name(row, part) for part in parts(row.label))
        row.label = named if isinstance(row.label, tuple) else named[0]
    return f"; labels 0 to {len(names) - 1} stand for {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def parts(label: Label) -> tuple[str, ...]:
    """Returns the labels of a text as a tuple."""
    return label if isinstance(label, tuple) else (label,)


def hold_out(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Returns the rows to train on, and a tenth of them to validate on, which a hash of the texts chooses.

    Rows with the same texts stay together.

    Raises:
      UserError: when that leaves none for one of them.
    """
    keys = [hashlib.blake2b("\t".join(row.texts).encode(), digest_size=8).digest() for row in rows]
    if len(set(keys)) == 1 < len(keys):
        raise UserError(f"{rows[0].where}: all {len(rows)} rows have the same text; none can be held out")
    last = sorted(keys)[math.ceil(len(rows) / 10) - 1]
    train = [row for row, key in zip(rows, keys, strict=True) if key > last]
    held_out = [row for row, key in zip(rows, keys, strict=True) if key <= last]
    if not train:
        raise UserError(f"{rows[0].where}: {len(rows)} rows are too few to hold some out; give {argument('dev_file')}")
    return train, held_out


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


def read_tfds(params: LabelledDataConfig) -> tuple[list[Row], Columns]:
    """Returns the rows of a TensorFlow Datasets split, and which features they are from.

    Label numbers become the dataset's label names.
    """
    label_field = params.label_field or "label"
    source = f"tfds_name={params.tfds_name}"
    dataset, info = open_tfds(params)
    strings = [name for name, feature in info.features.items() if feature.dtype in (tf.string, np.str_, str, object)]
    text_fields = list(params.text_fields) or [name for name in strings if name != label_field]
    for name in (*text_fields, label_field):
        if name not in info.features:
            raise UserError(f"{source}: no feature {name!r}{nearest(name, info.features)}")
    if len(text_fields) not in (1, 2):
        raise UserError(f"{source}: {len(text_fields)} text features ({', '.join(text_fields)}); set text_fields")
    names = getattr(info.features[label_field], "names", None)
    rows = []
    for i, example in enumerate(dataset.as_numpy_iterator()):
        label = example[label_field]
        where = f"{source}, {params.tfds_split}[{i}]"
        if names and label < 0:
            raise UserError(f"{where}: the row has no label")
        text = tuple(example[name].decode("utf-8", "replace") for name in text_fields)
        label = names[label] if names else label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
        rows.append(Row(text, label, where))
    note = f"{source}, {params.tfds_split}: texts from {', '.join(text_fields)}, label from {label_field}"
    return rows, Columns(text_fields, [label_field], note)


def load_rows(params: LabelledDataConfig) -> tuple[list[Row], Columns]:
    """Returns the rows that a config names, and which columns they are from; raises UserError."""
    if params.tfds_name:
        return read_tfds(params)
    if not params.input_path:
        given = f"{argument('data_dir')}, {argument('train_file')}"
        raise UserError(f"no labelled text: give {given}, or task.train_data.tfds_name")
    rows, columns = read_rows(
        params.input_path, params.text_fields, params.label_field, params.label_separator, params.labels
    )
    if params.share != ALL:
        rows = hold_out(rows)[params.share == HELD_OUT]
    return rows, columns


def load_both(train: LabelledDataConfig, validation: LabelledDataConfig) -> list[tuple[list[Row], Columns]]:
    """Returns what `load_rows` does for both; a file of which a part is held out is read once.

    Raises:
      UserError: with the problems of both.
    """
    if validation.share != HELD_OUT or validation.input_path != train.input_path:
        return all_of(lambda: load_rows(train), lambda: load_rows(validation))
    rows, columns = load_rows(dataclasses.replace(train, share=ALL))
    rows, held_out = hold_out(rows)
    note = f"no dev file: a tenth of the rows, {len(held_out):,}, is held out, chosen by a hash of the text"
    return [(rows, columns), (held_out, dataclasses.replace(columns, note=note))]


def label_ids(rows: list[Row], labels: list[str]) -> np.ndarray:
    """Returns the ids of the rows' labels, int32 [rows]; raises UserError at a label that is not in `labels`."""
    ids = {label: i for i, label in enumerate(labels)}
    for row in rows:
        if row.label not in ids:
            known = ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")
            raise UserError(f"{row.where}: the label {row.label!r} is not among the training labels ({known})")
    return np.array([ids[row.label] for row in rows], np.int32)


def label_sets(rows: list[Row], labels: list[str]) -> np.ndarray:
    """Returns 1 for each of the labels that a row has, int32 [rows, labels]; raises UserError as `label_ids` does."""
    flat = [Row(row.texts, label, row.where) for row in rows for label in row.label]
    number = np.repeat(np.arange(len(rows)), [len(row.label) for row in rows])
    sets = np.zeros([len(rows), len(labels)], np.int32)
    sets[number, label_ids(flat, labels)] = 1
    return sets


def label_numbers(rows: list[Row]) -> np.ndarray:
    """Returns the rows' labels as numbers, float64 [rows]; raises UserError at one that is no finite number."""
    numbers = np.zeros(len(rows))
    with np.errstate(over="ignore"):
        for i, row in enumerate(rows):
            try:
                numbers[i] = float(row.label)
            except (ValueError, TypeError):
                numbers[i] = math.nan
            if not math.isfinite(np.float32(numbers[i])):
                raise UserError(f"{row.where}: the label {row.label!r} is not a finite number")
    return numbers


def encode_segments(
    tokenizer: Tokenizer, segments: list[tf.RaggedTensor], params: LabelledDataConfig
) -> dict[str, tf.RaggedTensor]:
    """Returns the encoder's inputs for a text, or a pair, as tokens, ragged int32 [B, tokens]; yet to be padded."""
    if len(segments) > 1:
        return tokenizer.combine(segments, params.seq_length)
    if params.in_windows:
        return tokenizer.cut(segments[0], params.seq_length, params.max_windows)
    return tokenizer.combine(segments, params.seq_length, params.long_text)


def padded_lengths(lengths: np.ndarray, params: LabelledDataConfig) -> np.ndarray:
    """Returns the lengths to which inputs of the given lengths are padded: a few that differ, int64 [rows].

    Example:
    >>> padded_lengths(np.array([3, 40, 65, 128, 129, 600]), LabelledDataConfig(long_text="windows")).tolist()
    [32, 64, 128, 128, 256, 1024]
    """
    longest = params.seq_length * (params.max_windows if params.in_windows else 1)
    sizes = [size for size in (params.seq_length // 4, params.seq_length // 2) if size >= 16] + [params.seq_length]
    while sizes[-1] < longest:
        sizes.append(min(2 * sizes[-1], longest))
    return np.array(sizes)[np.searchsorted(sizes, lengths)]


@data_loader_factory.register_data_loader_cls(LabelledDataConfig)
class LabelledDataLoader:
    """Batches of labelled text; see the top of this file for their order."""

    def __init__(
        self,
        params: LabelledDataConfig,
        rows: Optional[list[Row]] = None,
        tokenizer: Optional[Tokenizer] = None,
        unlabelled: Sequence[Row] = (),
        taught: Optional[np.ndarray] = None,
    ):
        self.params = params
        rows = rows or load_rows(params)[0]
        self.label_ids = _targets(rows, params)
        self._number = len(rows)
        self._taught = taught
        self.tokenizer = tokenizer or Tokenizer(
            read_vocabulary(params.vocab_file), params.lower_case, params.normalizer
        )
        texts = [row.texts for row in (*rows, *unlabelled)]
        self.segments = [self.tokenizer.tokenize_all(column) for column in zip(*texts, strict=True)]

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, L], and `label_ids`, int32 [B], for several labels of a text int32
        [B, labels], or float32 [B] where labels are numbers; in evaluation also `row_weights`, see `batches_of_rows`.
        With a teacher each has `taught`, float32 [B, …], and `has_label`, bool [B].
        """
        params = self.params
        lengths = self._padded_lengths
        length = params.seq_length if lengths is None else max(params.seq_length, int(lengths.max()))
        missing = len(self.lengths) - self._number
        labels = tf.constant(
            np.concatenate([self.label_ids, np.zeros_like(self.label_ids[:1]).repeat(missing, axis=0)])
        )
        taught = None if self._taught is None else tf.constant(self._taught)

        def encode(rows, length=length):
            encoded = encode_segments(self.tokenizer, [tf.gather(s, rows) for s in self.segments], params)
            batch = dict(self.tokenizer.pad(encoded, length), label_ids=tf.gather(labels, rows))
            if taught is None:
                return batch
            return dict(batch, taught=tf.gather(taught, rows), has_label=rows < self._number)

        return batches_of_rows(
            len(self.lengths), encode, params, input_context, start_step, lengths if self._in_buckets else None
        )

    def order(self) -> np.ndarray:
        """Returns the numbers of the rows in the order of an evaluation, int64 [rows]."""
        return rows_in_order(len(self.lengths), self._padded_lengths if self._in_buckets else None)

    @property
    def _in_buckets(self) -> bool:
        on_tpus = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)  # which take one length only
        return self.params.length_buckets and not on_tpus

    @property
    def _padded_lengths(self) -> Optional[np.ndarray]:
        needed = self._in_buckets or self.params.in_windows
        return padded_lengths(self.lengths, self.params) if needed else None

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The length of each row's input in tokens, int64 [rows]."""
        return encode_segments(self.tokenizer, self.segments, self.params)["input_word_ids"].row_lengths().numpy()


def _targets(rows: list[Row], params: LabelledDataConfig) -> np.ndarray:
    """Returns what is learned: ids, zeros and ones for several labels, or numbers."""
    if not params.labels:
        return ((label_numbers(rows) - params.label_mean) / params.label_scale).astype(np.float32)
    return label_sets(rows, params.labels) if isinstance(rows[0].label, tuple) else label_ids(rows, params.labels)
