"""Texts that belong together, from files of any format, as batches to train and to evaluate embeddings.

A row is an anchor and its positive, which belongs to it; or these and a negative, which does not, though it may look
so; or two texts with a number that says how alike they are, for evaluation only; or a single text. Which columns these
are is told by their names (names.py). Of a single text, training takes it twice, and evaluation its two halves.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Optional

import numpy as np
import tensorflow as tf
from official.nlp.data import data_loader_factory

from shatter_tf.data import streams, tables
from shatter_tf.data.batches import TextDataConfig, batches_of_rows
from shatter_tf.data.columns import text_of
from shatter_tf.data.labelled import ALL, HELD_OUT, Row, hold_out, label_numbers, padded_lengths
from shatter_tf.data.names import IDS, KNOWN, MATCHES, PAIRS, SCORES, TEXTS, TRIPLETS, fold
from shatter_tf.data.sentences import first_known, given, left_out
from shatter_tf.data.single_column import single_column
from shatter_tf.data.streams import read_lines, whole_characters
from shatter_tf.data.tables import Table, is_number
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError, all_of, argument

LINES = ".txt"  # a text on each line
EXTENSIONS = (*tables.EXTENSIONS, LINES)

# Names of columns that are known here only; a first line with one of them is a header.
_EXPECTED = [
    name
    for name in dict.fromkeys((*(n for names in (*TRIPLETS, *MATCHES) for n in names), *SCORES))
    if name not in KNOWN
]
_SEVERAL = ("positive", "negative", "pos", "neg", "hard_neg")  # and a number: names of columns of which there are many


@dataclasses.dataclass
class PairsDataConfig(TextDataConfig):
    """Texts that belong together, as batches for embeddings.

    Attributes:
      text_fields: columns of the texts: anchor, positive and negative, or the first of these; empty takes well-known
        ones.
      label_field: column of a number that says how alike two texts are, in evaluation; empty takes a well-known one.
      share: which of the rows are meant: all, held_out, a tenth of them by a hash of the texts, or not_held_out.
      length_buckets: whether a batch has rows of about the same length, padded only to that. TPUs take one length only.
    """

    in_windows: ClassVar[bool] = False  # longer texts are cut

    text_fields: list[str] = dataclasses.field(default_factory=list)
    label_field: str = ""
    share: str = ALL
    length_buckets: bool = False


def read_rows(path: str, params: PairsDataConfig) -> tuple[list[Row], str]:
    """Returns the rows of a file, and a note on how it was understood.

    Args:
      path: a table of any format, or a .txt file with a text on each line.
      params: says which columns are meant, and by `is_training`, what for.

    Returns:
      rows of one, two or three texts, whose label is the number of a scored pair, in evaluation, and else empty.

    Raises:
      UserError: for a file that cannot be read, or whose columns are not clear; with file and line, for an empty text.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    if streams.plain_name(path).endswith(LINES) and not tf.io.gfile.isdir(path):
        rows = [
            Row((whole_characters(line).strip(),), "", f"{path}:{number}")
            for number, line in enumerate(read_lines(path), 1)
            if line.strip()
        ]
        note = f"{path}: a text on each line"
    else:
        table = _read_table(path, params)
        texts, score = _choose(table, params)
        rows = []
        for record in table.rows:
            number = str(record.values.get(score)).strip() if score else ""
            rows.append(Row(tuple(text_of(record, name) for name in texts), number, record.where))
        note = _describe(table, texts, score)
    if not rows:
        raise UserError(f"{path}: the file has no rows")
    return rows, note


def _read_table(path: str, params: PairsDataConfig) -> Table:
    """Returns a table, which may have one column only; raises UserError."""
    try:
        return tables.read_table(path, [*params.text_fields, params.label_field, *_EXPECTED])
    except UserError:
        if table := single_column(path, params.text_fields):
            return table
        raise


def _choose(table: Table, params: PairsDataConfig) -> tuple[list[str], str]:
    """Returns the columns of the texts, one to three, and that of the score, which is empty where there is none."""
    columns = table.columns
    if table.has_names or params.text_fields:
        texts = [given(table.path, columns, name.strip(), "text_fields") for name in params.text_fields]
        texts = texts or _known_texts(table)
        score = _score_column(table, texts, params)
    else:
        texts, score = _by_place(table)
    if len(texts) > 3:
        raise UserError(f"{argument('text_fields')}={','.join(texts)}: give an anchor, a positive, and a negative")
    if not texts:
        found = ", ".join(map(repr, columns))
        raise UserError(
            f"{table.path}: which columns hold texts that belong together? Give {argument('text_fields')}=A,B; there "
            f"are {found}"
        )
    if score and params.is_training and not params.text_fields:
        raise UserError(
            f"{table.path}: column {score!r} says how alike two texts are, which is only for evaluation; give the file "
            f"as {argument('dev_file')}, or if all of its pairs belong together, "
            f"{argument('text_fields')}={','.join(texts)}"
        )
    return texts, "" if params.is_training else score


def _known_texts(table: Table) -> list[str]:
    """Returns the columns with well-known names, or the only column."""
    by_name = {fold(column): column for column in reversed(table.columns)}
    for name in _SEVERAL:
        several = [by_name[folded] for folded in by_name if folded.rstrip("0123456789").rstrip("_") == name]
        if len(several) > 1:
            raise UserError(
                f"{table.path}: {len(several)} columns, {', '.join(several)}, where one is read; name it with "
                f"{argument('text_fields')}=anchor,positive,negative, or give each a row of its own"
            )
    for names in (*TRIPLETS, *MATCHES, *PAIRS):
        if all(name in by_name for name in names):
            return [by_name[name] for name in names]
    only = [column for column in table.columns if fold(column) not in IDS]
    text = first_known(table.columns, TEXTS)
    return [text] if text else only if len(only) == 1 else []


def _score_column(table: Table, texts: Sequence[str], params: PairsDataConfig) -> str:
    """Returns the column that says how alike two texts are; raises UserError for one that may say something else."""
    if len(texts) != 2:
        return ""
    if params.label_field and not params.is_training:
        return given(table.path, table.columns, params.label_field, "label_field")
    others = [column for column in table.columns if column not in texts]
    score = first_known(others, (fold(params.label_field), *SCORES)) or ""
    if not score or params.is_training:
        return score
    table.rows = list(table.rows)
    if all(is_number(str(record.values.get(score))) for record in table.rows):
        return score
    if params.text_fields:
        return ""
    raise UserError(
        f"{table.path}: column {score!r} is not a number that says how alike two texts are; if all pairs belong "
        f"together, give {argument('text_fields')}={','.join(texts)}"
    )


def _by_place(table: Table) -> tuple[list[str], str]:
    """Returns the texts, two or three, and the score of a table without names, which is last."""
    rows = table.rows = list(table.rows)
    remedy = "name the columns in a first line, such as query and document"
    if len(table.columns) not in (2, 3):
        raise UserError(f"{table.path}: {len(table.columns)} columns without names; {remedy}")
    numbers = [all(is_number(record.values[name]) for record in rows) for name in table.columns]
    if any(numbers[:2]):
        name = table.columns[numbers.index(True)]
        raise UserError(f"{table.path}: column {name} holds only numbers, where a text should be; {remedy}")
    return (table.columns[:2], table.columns[2]) if any(numbers) else (table.columns, "")


def _describe(table: Table, texts: Sequence[str], score: str) -> str:
    """Returns a line that says how a table was understood."""
    roles = ("anchor", "positive", "negative") if len(texts) > 1 else ("text",)
    said = [*table.notes, *(f"{role}: {name!r}" for role, name in zip(roles, texts, strict=False))]
    if score:
        said.append(f"how alike they are: {score!r}")
    return f"{table.path}: {'; '.join([*said, *left_out(table.columns, [*texts, score])])}"


def halves(text: str) -> Optional[tuple[str, str]]:
    """Returns the two halves of a text, cut at the white space nearest after its middle; None if it has one character.

    Example:
    >>> halves("the cat sat on a mat"), halves("x")
    (('the cat sat', 'on a mat'), None)
    """
    middle = (len(text) - 1) // 2
    place = next((i for i in (*range(middle, len(text)), *range(middle, 0, -1)) if text[i].isspace()), middle + 1)
    first, second = text[:place].strip(), text[place:].strip()
    return (first, second) if first and second else None


def load_rows(params: PairsDataConfig) -> tuple[list[Row], str]:
    """Returns the rows that a config names, and a note on them; raises UserError."""
    if not params.input_path:
        raise UserError(f"no texts: give {argument('data_dir')} or {argument('train_file')}")
    rows, note = read_rows(params.input_path, params)
    if params.share != ALL:
        rows = hold_out(rows)[params.share == HELD_OUT]
    return _as_used(rows, note, params)


def _as_used(rows: list[Row], note: str, params: PairsDataConfig) -> tuple[list[Row], str]:
    """Returns rows as training or evaluation takes them: evaluation takes single texts as pairs of halves."""
    if params.is_training or len(rows[0].texts) > 1:
        return rows, note
    pairs = [Row(parts, "", row.where) for row in rows if (parts := halves(row.texts[0]))]
    if not pairs:
        raise UserError(f"{rows[0].where}: no text is long enough to be evaluated by its halves; give pairs of texts")
    return pairs, f"{note}; evaluated by finding the second half of each text by its first"


def load_both(train: PairsDataConfig, validation: PairsDataConfig) -> list[tuple[list[Row], str]]:
    """Returns what `load_rows` does for both; a file of which a part is held out is read once.

    Raises:
      UserError: with the problems of both.
    """
    if validation.share != HELD_OUT or validation.input_path != train.input_path:
        return all_of(functools.partial(load_rows, train), functools.partial(load_rows, validation))
    rows, note = load_rows(dataclasses.replace(train, share=ALL))
    rows, held_out = hold_out(rows)
    said = f"no dev file: a tenth of the rows, {len(held_out):,}, is held out, chosen by a hash of the texts"
    return [(rows, note), _as_used(held_out, said, validation)]


def scores_of(rows: list[Row]) -> np.ndarray:
    """Returns how alike the texts of scored pairs are, from 0 for the least of these to 1, float32 [rows].

    Raises:
      UserError: for one that is not a finite number.

    Example:
    >>> scores_of([Row(("a", "b"), number, "") for number in ("1", "5", "2")]).tolist()
    [0.0, 1.0, 0.25]
    """
    numbers = label_numbers(rows)
    return ((numbers - numbers.min()) / (np.ptp(numbers) or 1.0)).astype(np.float32)


def number_texts(rows: list[Row]) -> np.ndarray:
    """Returns a number for each text, the same for equal texts, int32 [rows, texts of a row].

    Example:
    >>> number_texts([Row(("a", "b"), "", ""), Row(("c", "a"), "", "")]).tolist()
    [[0, 1], [2, 0]]
    """
    numbers: dict[str, int] = {}
    return np.array([[numbers.setdefault(text, len(numbers)) for text in row.texts] for row in rows], np.int32)


@data_loader_factory.register_data_loader_cls(PairsDataConfig)
class PairsDataLoader:
    """Batches of texts that belong together, in the order of `batches_of_rows`."""

    def __init__(
        self, params: PairsDataConfig, rows: Optional[list[Row]] = None, tokenizer: Optional[Tokenizer] = None
    ):
        self.params = params
        rows = rows or load_rows(params)[0]
        if len(rows[0].texts) == 1:
            rows = [dataclasses.replace(row, texts=row.texts * 2) for row in rows]
        self.text_ids = number_texts(rows)
        self.scores = scores_of(rows) if rows[0].label else None
        self.tokenizer = tokenizer or Tokenizer(
            read_vocabulary(params.vocab_file), params.lower_case, params.normalizer
        )
        self.segments = [self.tokenizer.tokenize_all(column) for column in zip(*(r.texts for r in rows), strict=True)]

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, T, L], for rows of T texts; `text_ids`, int32 [B, T], see
        `number_texts`; of scored pairs `scores`, float32 [B]; and in evaluation `row_weights`, see `batches_of_rows`.
        """
        params = self.params
        text_ids = tf.constant(self.text_ids)
        on_tpus = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)  # which take one length only
        lengths = padded_lengths(self.lengths, params) if params.length_buckets and not on_tpus else None

        def encode(rows, length=params.seq_length):
            texts = [
                self.tokenizer.pad(self.tokenizer.combine([tf.gather(segment, rows)], params.seq_length), length)
                for segment in self.segments
            ]
            batch = {name: tf.stack([text[name] for text in texts], axis=1) for name in texts[0]}
            batch["text_ids"] = tf.gather(text_ids, rows)
            return batch if self.scores is None else dict(batch, scores=tf.gather(tf.constant(self.scores), rows))

        return batches_of_rows(len(self.text_ids), encode, params, input_context, start_step, lengths)

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row's longest text in tokens, with special ones, int64 [rows]."""
        longest = functools.reduce(np.maximum, (segment.row_lengths().numpy() for segment in self.segments))
        return np.minimum(longest + 2, self.params.seq_length)
