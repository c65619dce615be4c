"""What every command shares: one clear line for a user's mistake, and quiet libraries."""

import argparse
import contextlib
import ctypes
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_ABSL_ERROR = 2
_WHERE_IN_A_GRAPH = ("Graph execution error", "Detected at node", "<stack traces unavailable>", "  ", "\t")
_LIBRARY_SUFFIX = ".2.dylib" if sys.platform == "darwin" else ".so.2"


class UserError(Exception):
    """Something the user can fix. Its text says what, where and how; commands print it and exit with 2."""


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Within it, a UserError is caught and added to `problems`, each only once, so that more of them can be found.

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
    """Returns what each of `parts` returns; raises UserError with the problems of all of them."""
    results, problems = [], []
    for part in parts:
        with collected(problems):
            results.append(part())
    if problems:
        raise UserError("; ".join(problems))
    return results


def new_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Returns a parser for `python -m shatter_tf.COMMAND`, whose help keeps the lines of `description`."""
    return argparse.ArgumentParser(
        prog=f"python -m shatter_tf.{command}",
        description=description,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=40, width=120),
    )


def run(command: Callable[[list[str]], None]) -> None:
    """Runs `command(sys.argv[1:])`; a UserError becomes one line on stderr and exit code 2."""
    configure_libraries()
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {first_line(error)}", file=sys.stderr)  # gin, inside Model Garden, adds lines of its own
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (`head`, say) has left; that is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def say(line: str, stream=None) -> None:
    """Prints a line at once, to standard output if no other stream is given.

    What takes hours does not end because nobody reads its output any more: `tee`, say, gets the same Ctrl-C.
    """
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def configure_libraries() -> None:
    """Keeps the libraries' notices, but not their errors, off stderr; must run before TensorFlow is imported."""
    os.environ.setdefault(
        "TF_USE_LEGACY_KERAS", "1"
    )  # else TensorFlow imports Keras 3, which takes a second and is not used here
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore")


def quieten_logging() -> None:
    """Lets only errors of absl, TensorFlow and Model Garden through; call after importing TensorFlow."""
    import tensorflow as tf
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    # XLA's C++ notices ignore environment variables. The symbol is the pinned TensorFlow's; without it they are shown.
    library = ctypes.CDLL(os.path.join(tf.sysconfig.get_lib(), f"libtensorflow_framework{_LIBRARY_SUFFIX}"))
    set_min_log_level = getattr(library, "_ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE", None)
    if set_min_log_level is not None:
        set_min_log_level(_ABSL_ERROR)


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or its class when there is none.

    Lines that TensorFlow puts before the message, about where in a graph it happened, are left out.

    Example:
    >>> first_line(OSError("no space\\nin /disk")), first_line(OSError())
    ('no space', 'OSError')
    >>> first_line(ValueError("Graph execution error:\\n\\nDetected at node X\\n<stack traces unavailable>\\nno space"))
    'no space'
    """
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith(_WHERE_IN_A_GRAPH)]
    return lines[0].strip() if lines else type(error).__name__


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
