"""Lists the configs that come with the package, or prints one.

  shatter configs
  shatter configs tiny > my.yaml

Train with `--config=NAME`, or with `--config_file=my.yaml` after changing a copy.
"""

import argparse

from shatter_tf import config_files
from shatter_tf.console import new_parser, run, say


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("list_configs", __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this config [list all of them]")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    if args.name:
        with open(config_files.find_config(args.name), encoding="utf-8") as f:
            say(f.read().rstrip("\n"))
        return

    names = [name.removeprefix(config_files.SHORT) for name in config_files.config_names()]
    for name in names:
        say(f"{name:<{max(map(len, names))}}   {config_files.config_purpose(name)}")


if __name__ == "__main__":
    run(main)
