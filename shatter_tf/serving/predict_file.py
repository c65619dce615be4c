"""What `shatter predict` does with files: each row of a table, or each line, gets its prediction."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Optional

import tensorflow as tf
from tqdm import tqdm

from shatter_tf.console import say, warn
from shatter_tf.data.texts import TextRow, Texts, lines, read_texts
from shatter_tf.errors import UserError, argument
from shatter_tf.serving.predictions import (
    EXTENSIONS,
    VECTORS,
    Write,
    check_output,
    json_line,
    key_of,
    writing,
    writing_vectors,
)
from shatter_tf.serving.predictor import Outputs, answer, is_ascii_only, open_export

EMBEDDING = "embedding"  # the output that is a vector

# Writes a row, and what the model gives for it; None where nothing is.
WriteRow = Callable[[TextRow, Optional[Outputs]], None]

_SILENT_SECONDS = 5  # before progress is shown


def predict(
    model: str,
    source: str | Iterable[str],
    output: Optional[str] = None,
    signature: str = "serving_default",
    trust: bool = False,
    text_fields: Sequence[str] = (),
) -> None:
    """Predicts the rows of a file, or texts, and writes each with its prediction.

    Rows with an empty text have no prediction, which is said; their vectors are zeros. A file is written completely or
    not at all.

    Args:
      model: a SavedModel, or a directory of its versions.
      source: a file, see `read_texts`; or texts.
      output: a file, see `writing`, or for vectors only, `writing_vectors`; None prints JSON Lines.
      signature: the name of the function that is called.
      trust: whether the model may have operations that no export needs.
      text_fields: the file's columns of the texts, where they have other names than usual.

    Raises:
      UserError: for a model, a file or a row that cannot be used.
    """
    is_file = isinstance(source, str)
    if output:
        check_output(output, source if is_file else "", (*EXTENSIONS, VECTORS))
    if is_file and not tf.io.gfile.exists(source):
        raise UserError(f"{argument('input')}={source}: no such file")
    opened = open_export(model, signature, trust)
    as_vectors = bool(output) and output.endswith(VECTORS)
    if as_vectors and opened.gives != [EMBEDDING]:
        raise UserError(
            f"{argument('output')}={output}: holds vectors, but {argument('signature')}={signature} gives "
            f"{', '.join(opened.gives)}; give {argument('signature')}=embed, or a name that ends in .jsonl"
        )
    texts = read_texts(source, opened.names, text_fields) if is_file else lines(source, opened.names, "text")
    if texts.note:
        say(texts.note, sys.stderr)

    empty: list[str] = []
    with _writing(output, texts, opened.names) as write:
        for row, outputs in shown(opened.each(texts.rows, lambda row: row.texts), texts.number):
            if outputs is None:
                empty.append(row.where)
            write(row, outputs)
    if empty:
        rows = "1 row has" if len(empty) == 1 else f"{len(empty):,} rows have"
        without = "a vector of zeros" if as_vectors else "so no prediction"
        warn(f"{rows} no text, and {without}; the first is {empty[0]}")


@contextlib.contextmanager
def _writing(output: Optional[str], texts: Texts, names: Sequence[str]) -> Iterator[WriteRow]:
    """Yields a function that writes a row and the model's outputs for it, to a file or to standard output."""

    def as_json(write: Write) -> WriteRow:
        return lambda row, outputs: write(
            row.values, None if outputs is None else answer(outputs, dict(zip(names, row.texts, strict=True)))
        )

    if not output:
        yield as_json(_printer(texts))
    elif output.endswith(VECTORS):
        with writing_vectors(output) as write_vector:
            yield lambda row, outputs: write_vector(None if outputs is None else outputs[EMBEDDING])
    else:
        with writing(output, texts.columns, texts.is_table) as write:
            yield as_json(write)


def _printer(texts: Texts) -> Write:
    """Returns a function that prints rows."""
    key = key_of(texts.columns, texts.is_table)
    ascii_only = is_ascii_only(sys.stdout)
    return lambda values, prediction: print(json_line(values, prediction, key, ascii_only), flush=True)


def shown(rows: Iterable, number: Optional[int] = None) -> Iterable:
    """Returns rows; standard error shows how many are done, how fast and, if their `number` is known, how long yet."""
    # A log gets a line now and then.
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(
        rows,
        total=number,
        unit=" rows",
        delay=_SILENT_SECONDS,
        mininterval=seconds,
        maxinterval=2 * seconds,
        leave=False,
    )
