"""What every command shares: parsers, one clear line for a user's mistake, one way to speak, and quiet libraries."""

import argparse
import contextlib
import ctypes
import gc
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from shatter_tf.cluster import is_chief
from shatter_tf.errors import UserError, argument, first_line, name_flags

# Whose warnings are about themselves, and nothing that a user of this package could change.
_LIBRARIES = (
    r"(absl|apache_beam|etils|google|jax|keras|matplotlib|numpy|official|pkg_resources|seqeval|sklearn|tensorboard|"
    r"tensorflow|tensorflow_\w+|tf_keras|tf_slim)\b"
)

# absl::SetMinLogLevel(absl::LogSeverityAtLeast) of the pinned TensorFlow, which no variable and no function of Python's
# controls. With another TensorFlow the notices are shown, and a test says so.
_SET_MIN_LOG_LEVEL = "_ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE"
_LIBRARY = f"libtensorflow_framework{'.2.dylib' if sys.platform == 'darwin' else '.so.2'}"
_ERROR = 2


# What pip calls a library that only some commands need.
_EXTRAS = {"apache_beam": "beam", "onnx": "onnx", "onnxruntime": "onnx", "tf2onnx": "onnx"}


class _Parser(argparse.ArgumentParser):
    """A parser whose flags, but not other arguments, may name paths that begin with ~."""

    def parse_args(self, args=None, namespace=None):
        parsed = super().parse_args(args, namespace)
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            if not action.option_strings or not isinstance(value, str):
                continue
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{argument(action.dest)}={value}: not UTF-8, which TensorFlow needs for names; choose another name"
                ) from error
            setattr(parsed, action.dest, with_home(value))
        return parsed


def with_home(value: str) -> str:
    """Returns a flag's value, a path, several with commas, or settings, with ~ replaced: no shell does after "=".

    Example:
    >>> home = os.path.expanduser("~")
    >>> with_home("~/a,task.train_data.vocab_file=~/b,c~/d") == f"{home}/a,task.train_data.vocab_file={home}/b,c~/d"
    True
    """
    return re.sub(r"^~$|(?<![^,=])~[^/,=]*(?=/)", lambda match: os.path.expanduser(match[0]), value)


def seconds(duration: str) -> float:
    """Returns a duration in seconds.

    Example:
    >>> seconds("90s"), seconds("60m"), seconds("1h30m")
    (90.0, 3600.0, 5400.0)
    """
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", duration)
    if not match or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{duration}: give hours, minutes and seconds, as in 1h30m")
    hours, minutes, rest = (float(number or 0) for number in match.groups())
    return 3600 * hours + 60 * minutes + rest


def names(value: str) -> list[str]:
    """Returns the names in a list with commas.

    Example:
    >>> names("premise, hypothesis")
    ['premise', 'hypothesis']
    """
    return [name.strip() for name in value.split(",") if name.strip()]


def new_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Returns a parser for a command, whose help keeps the lines of `description`.

    Its usage names the program as it was started: `shatter COMMAND` or `python -m shatter_tf.COMMAND`.

    Example:
    >>> new_parser("train", "Trains.").prog
    'python -m shatter_tf.train'
    """
    name_flags()
    program = sys.argv[0]  # "shatter COMMAND", if `shatter` has started it
    return _Parser(
        prog=program if program.startswith("shatter ") else f"python -m shatter_tf.{command}",
        description=description,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=40, width=120),
    )


def run(command: Callable[[list[str]], None]) -> None:
    """Runs `command(sys.argv[1:])`; a UserError, or a missing library, becomes one line on stderr and exit code 2."""
    configure_libraries()
    # What is said may name files and texts that the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command(sys.argv[1:])
    except UserError as error:
        print(f"error: {first_line(error)}", file=sys.stderr)  # gin, inside Model Garden, adds lines of its own
        sys.exit(2)
    except UnicodeError as error:
        # Contents are checked where they are read; what is left are names that TensorFlow lists or is given.
        name = getattr(error, "object", "")
        print(f"error: {name!r:.200}: not UTF-8, which TensorFlow needs for names of files; rename it", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "shatter_tf"):
            raise  # a mistake of this package
        print(f"error: {how_to_install(library)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (`head`, say) has left; that is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def how_to_install(library: str) -> str:
    """Returns a line that says that a library is missing, and how to get it.

    Example:
    >>> how_to_install("apache_beam").endswith("[beam]'`")
    True
    """
    extra = f"[{_EXTRAS[library]}]" if library in _EXTRAS else ""
    source = Path(__file__).parents[1]
    package = source if (source / "pyproject.toml").exists() else "shatter_tf"
    return (
        f"{library} is not installed for {sys.executable}; activate the environment that has it "
        f"(`source .venv/bin/activate`), or run `{sys.executable} -m pip install '{package}{extra}'`"
    )


def say(line: str, stream=None) -> None:
    """Prints a line at once, to standard output unless another stream is given.

    What takes hours does not end because nobody reads its output any more: `tee`, say, gets the same Ctrl-C.
    """
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def notice(line: str) -> None:
    """Prints a line in one process of a run only, the chief."""
    if is_chief():
        say(line)


def warn(line: str) -> None:
    """Prints a warning on standard error, in one process of a run only, the chief."""
    if is_chief():
        say(f"warning: {line}", sys.stderr)


def configure_libraries() -> None:
    """Keeps the libraries' notices, but not their errors, off stderr; must run before TensorFlow is imported."""
    # Otherwise TensorFlow imports Keras 3, which takes a second and is not used here.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", module=_LIBRARIES)


@contextlib.contextmanager
def importing(without: str = "") -> Iterator[None]:
    """Imports what a command needs in two thirds of the time, and then does `quieten_logging`.

    Libraries make half a million objects that live as long as the process. Python's collector would scan them again and
    again while there are ever more of them, and later, too.

    Args:
      without: a library that others import if it is installed, and the command does not need.
    """
    hidden = {without: None} if without and without not in sys.modules else {}
    sys.modules.update(hidden)  # None: Python's way to say that there is none
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in hidden:
            del sys.modules[name]
    quieten_logging()


def quieten_logging() -> None:
    """Lets only errors of absl, TensorFlow and Model Garden through; call after importing TensorFlow."""
    import tensorflow as tf
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    library = ctypes.CDLL(os.path.join(tf.sysconfig.get_lib(), _LIBRARY))
    set_min_log_level = getattr(library, _SET_MIN_LOG_LEVEL, None)
    if set_min_log_level is not None:
        set_min_log_level(_ERROR)
