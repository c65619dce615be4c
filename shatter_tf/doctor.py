"""Says what this machine has for training, and what is wrong with the installation.

  shatter doctor

Every fact is a line on standard output. Every problem is a line on standard error, with what mends it; exit code 2.
"""

import sys

from shatter_tf.console import new_parser, quieten_logging, run, say
from shatter_tf.measuring import machine


def _print(facts: dict[str, str]) -> None:
    for name, fact in facts.items():
        say(f"{name:<24}{fact}")


def main(argv: list[str]) -> None:
    new_parser("doctor", __doc__).parse_args(argv)
    _print(machine.facts_without_libraries())
    versions, problems = machine.versions()
    _print(versions)

    problems += machine.import_problems() if versions else []
    if versions and not problems:
        quieten_logging()
        gpus, problems = machine.gpus()
        from shatter_tf.training import device

        _print({"gpus": gpus, "training": device.describe()})

    for problem in problems:
        say(f"error: {problem}", sys.stderr)
    if problems:
        sys.exit(2)


if __name__ == "__main__":
    run(main)
