"""What every kind of model answers about how it is judged. A kind is known by the names of its outputs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shatter_tf.data import labelled, records, tables
from shatter_tf.data.labelled import Row
from shatter_tf.errors import UserError, argument
from shatter_tf.measuring.evaluation.report import Report
from shatter_tf.serving.predictor import Outputs


@dataclasses.dataclass
class Source:
    """A labelled file, and how it is to be understood; the fields as in LabelledDataConfig."""

    path: str
    text_fields: Sequence[str] = ()
    label_field: str = ""
    label_separator: str = ""


class Asked(Protocol):
    """A row of a labelled file: one text for each of the model's inputs, and its location."""

    @property
    def texts(self) -> Sequence[str]: ...

    @property
    def where(self) -> str: ...


class Kind:
    """How models of one kind are judged.

    Args:
      names: of the model's inputs.
      sample: its outputs for one row of empty texts, each [1, …].

    Attributes:
      is_table: whether the rows of a file are those of a table, whose columns predictions are written beside.
    """

    def __init__(self, names: Sequence[str], sample: Outputs):
        self.names = names
        self.sample = sample

    def read(self, source: Source) -> tuple[Sequence[Asked], str]:
        """Returns the rows of a labelled file, and a line that says how it was understood; raises UserError."""
        raise NotImplementedError

    def columns(self, source: Source, rows: Sequence[Asked]) -> list[dict[str, Any]]:
        """Returns what predictions are written beside, for each row."""
        raise NotImplementedError

    def judge(self, rows: Sequence[Asked], outputs: Sequence[Outputs]) -> Report:
        """Returns how good the outputs for the rows are."""
        raise NotImplementedError


KINDS: dict[frozenset[str], type[Kind]] = {}


def register(*names: str) -> Callable[[type[Kind]], type[Kind]]:
    """Makes the decorated class the kind of models with exactly these outputs; other packages may add theirs."""

    def decorate(kind: type[Kind]) -> type[Kind]:
        KINDS[frozenset(names)] = kind
        return kind

    return decorate


class OfRows(Kind):
    """A kind whose rows are those of a table with texts and labels."""

    labels: Sequence[str] = ()

    def read(self, source):
        # Labels that are numbers are those of the model, unless the file says what they stand for.
        labels = () if _has_names(source.path) else self.labels
        rows, columns = labelled.read_rows(
            source.path, source.text_fields, source.label_field, source.label_separator, labels
        )
        if len(columns.texts) != len(self.names):
            raise UserError(
                f"{source.path}: the model takes {' and '.join(self.names)}, but the columns read are "
                f"{' and '.join(map(repr, columns.texts))}; give {argument('text_fields')}"
            )
        self.check(rows)
        return rows, columns.note

    def check(self, rows: Sequence[Row]) -> None:
        """Raises UserError for rows whose labels are not of this kind."""

    def columns(self, source, rows):
        fields = [*source.text_fields, *source.label_field.split(",")]
        return [record.values for record in tables.read_table(source.path, fields).rows]


def _has_names(path: str) -> bool:
    """Returns whether a file, or one beside it, has names for labels that are numbers."""
    return bool(labelled.names_beside(path) or (records.holds_records(path) and records.read_records(path).names))
