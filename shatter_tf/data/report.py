"""What is said about a task's data before the first step: what was read, and what looks wrong with it."""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np

from shatter_tf.data.tables import is_number
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.errors import UserError

# Lengths are measured on texts of at most this many characters together, drawn evenly: more would take seconds.
_CHARACTERS = 500_000

# Shares of wordpieces that are unknown.
_UNKNOWN_WARNED, _UNKNOWN_REFUSED = 0.01, 0.5

_CUT_WARNED = 0.1  # of the tokens
_DOMINANT = 0.9  # share of the rows
_LABELS_SHOWN = 8


@dataclasses.dataclass
class Report:
    """What is known about a run's data.

    Attributes:
      facts: figures, for data.json.
      lines: for people to read.
      warnings: what looks wrong.
      problems: what would make training pointless.
    """

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)

    def add_rows(self, train: int, validation: int, what: str, notes: Iterable[str] = ()) -> None:
        """Adds how many rows there are, and how the files were understood."""
        self.facts["files"] = list(notes)
        self.facts["rows"] = dict(train=train, validation=validation)
        self.lines += self.facts["files"]
        self.lines.append(f"{what}: {train:,} to train on, {validation:,} to validate on")

    def add_labels(self, train: Sequence[str], validation: Sequence[str], rows: Optional[int] = None) -> None:
        """Adds how often each label occurs, and what is odd about the labels.

        Args:
          train, validation: the labels of all rows, of a row with several all of them; or those of words or entities.
          rows: to train on, for labels of rows.
        """
        counts, others = collections.Counter(train), collections.Counter(validation)
        self.facts["labels"] = dict(train=dict(counts.most_common()), validation=dict(others.most_common()))
        shown = ", ".join(f"{label} {count:,}" for label, count in counts.most_common(_LABELS_SHOWN))
        more = f", and {len(counts) - _LABELS_SHOWN} more" if len(counts) > _LABELS_SHOWN else ""
        self.lines.append(f"labels: {shown}{more}")

        for group in alike(counts):
            self.warnings.append(f"these labels differ only in case or form: {', '.join(map(repr, group))}")
        label, most = counts.most_common(1)[0]
        if rows and most >= _DOMINANT * rows and len(counts) > 1:
            self.warnings.append(
                f"{most / rows:.1%} of the training rows have the label {label!r}: accuracy says little; consider "
                "task.metric_type=macro_f1 and task.class_weights=balanced"
            )
        if validation and len(others) == 1 and len(counts) > 1:
            self.warnings.append(f"every validation row has the label {validation[0]!r}: its figures say little")
        missing = [label for label in counts if label not in others]
        if validation and missing and len(others) > 1:
            self.warnings.append(f"no validation row has the label {', '.join(map(repr, missing[:_LABELS_SHOWN]))}")

    def check_distinct(self, labels: Sequence[str], where: str) -> None:
        """Adds a problem if every row has a label of its own."""
        if len(labels) > 10 and len(set(labels)) > 0.9 * len(labels):
            numbers = all(is_number(label) for label in labels)
            remedy = (
                "numbers are learned by regress"
                if numbers
                else "are the columns swapped? label_field names the label's"
            )
            self.problems.append(f"{where}: {len(set(labels)):,} labels in {len(labels):,} rows; {remedy}")

    def add_numbers(self, numbers: np.ndarray) -> None:
        """Adds what the numbers to learn are like, float [rows]."""
        least, mean, most = float(numbers.min()), float(numbers.mean()), float(numbers.max())
        self.facts["numbers"] = dict(least=least, mean=mean, most=most, deviation=float(numbers.std()))
        self.lines.append(
            f"labels: numbers from {least:g} to {most:g}, mean {mean:g}, standard deviation {numbers.std():g}"
        )
        if least == most:
            self.problems.append(f"every training row has the number {least:g}; there is nothing to learn")

    def add_repeated(self, train: Iterable, validation: Iterable) -> None:
        """Adds how many validation rows are among the training rows, too."""
        known = set(train)
        both = sum(row in known for row in validation)
        self.facts["validation_rows_in_train"] = both
        if both:
            self.warnings.append(f"validation rows that are training rows, too: {both:,}; they flatter the figures")

    def add_lengths(
        self,
        texts: Sequence[str],
        tokenizer: Tokenizer,
        room: Optional[int] = None,
        remedy: str = "",
    ) -> None:
        """Adds how long texts are in tokens, how much of them is cut, and how many wordpieces are unknown.

        Args:
          texts: all training texts; some are drawn.
          tokenizer: of the run.
          room: tokens of a text that are read; None if all are.
          remedy: what reads more of them.
        """
        stride = max(1, -(-sum(map(len, texts)) // _CHARACTERS))
        drawn = texts[::stride]
        tokens = tokenizer.tokenize_all(drawn)
        lengths = tokens.row_lengths().numpy()
        median, ninety, longest = (int(np.quantile(lengths, q, method="higher")) for q in (0.5, 0.9, 1.0))
        self.facts["tokens"] = dict(texts=len(drawn), median=median, ninety_percent=ninety, longest=longest)
        of = f" (of {len(drawn):,} texts)" if stride > 1 else ""
        self.lines.append(f"tokens of a text{of}: median {median}, 90% up to {ninety}, longest {longest}")

        if room is not None:
            cut = float(np.mean(lengths > room))
            read = float(np.minimum(lengths, room).sum() / max(1, lengths.sum()))
            self.facts["tokens"] |= dict(room=room, cut=cut, read=read)
            if cut:
                self.lines.append(f"{cut:.1%} of the texts are cut at {room} tokens; {read:.1%} of all tokens are read")
            if 1 - read >= _CUT_WARNED:
                self.warnings.append(f"only {read:.0%} of the text is read; {remedy}")

        unknown = float(np.mean(tokens.flat_values.numpy() == tokenizer.unknown_id)) if lengths.sum() else 0.0
        self.facts["unknown"] = unknown
        self.lines.append(f"unknown wordpieces: {unknown:.2%}")
        if problem := what_is_unknown(unknown):
            (self.problems if unknown > _UNKNOWN_REFUSED else self.warnings).append(problem)


def check_vocabulary(texts: Sequence[str], tokenizer: Tokenizer, where: str) -> Optional[str]:
    """Returns a warning about a vocabulary that does not suit a text; None if it does.

    Args:
      texts: some documents.
      tokenizer: with the vocabulary.
      where: it is from.

    Raises:
      UserError: when more than half of the wordpieces are unknown.
    """
    tokens = tokenizer.tokenize_all(texts)
    special = 2 * len(texts)
    unknown = float(np.sum(tokens.flat_values.numpy() == tokenizer.unknown_id))
    share = unknown / (tokens.flat_values.shape[0] + special)
    problem = what_is_unknown(share)
    if problem and share > _UNKNOWN_REFUSED:
        raise UserError(f"{where}: {problem}")
    return problem and f"{where}: {problem}"


def what_is_unknown(share: float) -> Optional[str]:
    """Returns what to say about the share of wordpieces that are unknown; None if it is small.

    Example:
    >>> what_is_unknown(0.005), what_is_unknown(0.02)
    (None, '2.0% of the wordpieces are unknown: the vocabulary does not suit this text')
    """
    if share < _UNKNOWN_WARNED:
        return None
    return f"{share:.1%} of the wordpieces are unknown: the vocabulary does not suit this text"


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Returns groups of labels that differ only in case, white space or Unicode's form.

    Example:
    >>> alike(["pos", "Pos", "neg", "pos "])
    [['pos', 'Pos', 'pos ']]
    """
    groups = collections.defaultdict(list)
    for label in dict.fromkeys(labels):
        groups[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    return [group for group in groups.values() if len(group) > 1]
