"""Sentences of tagged words, and what their readers share."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Optional

from shatter_tf.data.names import fold
from shatter_tf.errors import UserError, argument, nearest


@dataclasses.dataclass
class Sentence:
    """Words with a tag each.

    Attributes:
      words, tags: equally many.
      path: where it is from.
      lines: those of the words, where each has its own.
    """

    words: list[str]
    tags: list[str]
    path: str
    lines: Sequence[int] = ()

    def place(self, word: int) -> str:
        """Returns the location of a word, for messages."""
        return f"{self.path}:{self.lines[word]}" if self.lines else self.path

    # As `labelled.hold_out` wants rows.

    @property
    def texts(self) -> tuple[str]:
        return (" ".join(self.words),)

    @property
    def where(self) -> str:
        return self.place(0)


def first_known(names: Iterable[str], known: Sequence[str]) -> Optional[str]:
    """Returns the name that is the earliest of the known ones, if there is any."""
    by_folded = {fold(name): name for name in reversed(list(names))}
    return next((by_folded[name] for name in known if name in by_folded), None)


def given(path: str, names: Sequence[str], name: str, flag: str) -> str:
    """Returns the one of `names` that a flag gives; raises UserError when there is none."""
    for exists in names:
        if name in (exists, fold(exists)):
            return exists
    by_folded = {fold(exists): exists for exists in names}
    if fold(name) in by_folded:
        return by_folded[fold(name)]
    raise UserError(f"{path}: no {argument(flag)}={name}{nearest(name, names)}; there are {', '.join(names)}")


def left_out(names: Iterable[str], taken: Sequence[str]) -> list[str]:
    """Returns a note on the names that are not taken, if there are any."""
    others = [repr(name) for name in names if name not in taken]
    return [f"left out: {', '.join(others)}"] if others else []
