"""`shatter`, or `python -m shatter_tf`: one program for all commands."""

import importlib
import sys
from pathlib import Path

from shatter_tf import __doc__ as purpose
from shatter_tf import __version__, console
from shatter_tf.errors import UserError, nearest

# Each command's module, which is imported only to run it.
COMMANDS = {
    "prepare": "prepare",
    "convert": "convert",
    "train": "train",
    "export": "export",
    "evaluate": "evaluate",
    "predict": "predict",
    "visualize": "visualize",
    "compare": "compare",
    "benchmark": "benchmark",
    "configs": "list_configs",
    "doctor": "doctor",
}


def help_text() -> str:
    """Returns what each command is for: the first line of its file, which is read and not imported.

    Example:
    >>> print(help_text().splitlines()[0])
    usage: shatter COMMAND [FLAGS]
    """
    lines = []
    for name, module in COMMANDS.items():
        with open(Path(__file__).with_name(f"{module}.py"), encoding="utf-8") as f:
            first = f.readline().strip().strip('"')
        lines.append(f"  {name:<{max(map(len, COMMANDS))}}   {first}")
    commands = "\n".join(lines)
    return f"usage: shatter COMMAND [FLAGS]\n\n{purpose}\n\n{commands}\n\n`shatter COMMAND --help` shows its flags."


def run_command(argv: list[str]) -> None:
    """Runs the command that `argv` begins with, or lists all commands; raises UserError for any other."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(help_text())
    elif name == "--version":
        print(f"shatter_tf {__version__}")
    elif name in COMMANDS:
        sys.argv = [f"shatter {name}", *argv[1:]]
        importlib.import_module(f"shatter_tf.{COMMANDS[name]}").main(argv[1:])
    else:
        raise UserError(f"no command {name}{nearest(name, COMMANDS)}; `shatter --help` lists them")


def main() -> None:
    console.run(run_command)


if __name__ == "__main__":
    main()
