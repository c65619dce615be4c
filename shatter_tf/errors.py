"""Errors that a user can fix, each in one clear line."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_WHERE_IN_A_GRAPH = ("Graph execution error", "Detected at node", "<stack traces unavailable>", "  ", "\t")
_prefix = ""  # of arguments in messages: "--" in a command


class UserError(ValueError):
    """Something the user can fix. Its text says what, where and how; commands print it and exit with 2."""


def name_flags() -> None:
    """Makes messages name arguments as a command's flags from now on."""
    global _prefix
    _prefix = "--"


def argument(name: str) -> str:
    """Returns an argument's name as its caller knows it: a flag in a command, and otherwise a parameter.

    Example:
    >>> argument("model_dir").removeprefix("--")
    'model_dir'
    """
    return f"{_prefix}{name}"


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Catches a UserError and adds it to `problems`, each only once, so that more of them can be found.

    Example:
    >>> problems = []
    >>> with collected(problems):
    ...     raise UserError("no such file")
    >>> problems
    ['no such file']
    """
    try:
        yield
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))


def all_of(*parts: Callable[[], Any]) -> list:
    """Returns the results of all `parts`; raises UserError with the problems of all of them."""
    results = []
    problems: list[str] = []
    for part in parts:
        with collected(problems):
            results.append(part())

    raise_all(problems)
    return results


def raise_all(problems: list[str]) -> None:
    """Raises a UserError that lists `problems`, if there are any."""
    if problems:
        raise UserError("; ".join(problems))


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its class when the message is empty.

    Lines that TensorFlow puts before the message, about where in a graph it happened, are left out.

    Example:
    >>> first_line(OSError("no space\\nin /disk")), first_line(OSError())
    ('no space', 'OSError')
    >>> first_line(ValueError("Graph execution error:\\n\\nDetected at node X\\n<stack traces unavailable>\\nno space"))
    'no space'
    """
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(_WHERE_IN_A_GRAPH)]
    return re.sub(r"^\{\{function_node .*?\}\} *", "", lines[0].strip()) if lines else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean a, b?)" for the known names nearest to `name`, or the empty string.

    Example:
    >>> nearest("shatter/pretrian", ["shatter/pretrain", "shatter/classify"])
    ' (did you mean shatter/pretrain?)'
    """
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)

    # Names with a common prefix are all close; what counts is how much closer one is.
    ratios = {match: difflib.SequenceMatcher(None, name, match).ratio() for match in matches}
    matches = [match for match, ratio in ratios.items() if ratio > max(ratios.values()) - 0.15]
    return f" (did you mean {', '.join(matches)}?)" if matches else ""
