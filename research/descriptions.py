"""Makes pairs to train and measure embeddings on: Debian's packages, each with its one line and its description.

  python research/descriptions.py --output_dir=data/descriptions

OUTPUT_DIR gets train.jsonl and dev.jsonl for shatter/embed, with the columns `query`, the one line that says what a
package is, and `document`, the description that follows it. All packages that are built from one source are in the same
file, because their descriptions are alike; a line or a description that was there before is left out.

Needs Debian 12 (bookworm) with apt-get, but not root. Downloads 20 MB; --lists=DIR reads the package lists that are in
a directory of apt's instead, /var/lib/apt/lists, say, if they have descriptions. At the end it prints the SHA-256 of
both files. Descriptions are licensed as their packages are.
"""

import argparse
import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from corpus_sources import RELEASE, percentile, run_tool

from shatter_tf.console import new_parser, run, say
from shatter_tf.errors import UserError

HELD_OUT = 5  # percent of the sources
LEAST_WORDS = dict(query=3, document=12)  # of fewer, nobody could tell which package is meant

FIELD = re.compile(r"^(Package|Source): (\S+)", re.M)
DESCRIPTION = re.compile(r"^Package: (\S+)\n(?:.*\n)*?Description-en: (.*)\n((?: .*\n?)*)", re.M)


class Pair(NamedTuple):
    source: str
    query: str
    document: str


def read_lists(directory: str) -> tuple[str, str]:
    """Returns the release's list of packages, and that of their descriptions; raises UserError if one is missing."""
    found = []
    for name in ("main_binary-*_Packages", "main_i18n_Translation-en"):
        paths = glob.glob(f"{glob.escape(directory)}/*_dists_{RELEASE}_{name}*")
        if not paths:
            raise UserError(f"{directory}: no list {RELEASE}_{name}; leave out --lists to download it")
        found.append(run_tool("/usr/lib/apt/apt-helper", "cat-file", paths[0], directory=directory).decode())
    return found[0], found[1]


def download_lists() -> tuple[str, str]:
    """Returns the same as of today; the system's own lists may be old, and usually lack descriptions."""
    with tempfile.TemporaryDirectory() as state:
        say("downloading the lists of packages")
        options = [f"-oDir::State={state}", f"-oDir::Cache={state}", "-oAcquire::Languages=en"]
        run_tool("apt-get", *options, "update", "--error-on=any", directory=state)
        return read_lists(f"{state}/lists")


def sources(packages: str) -> dict[str, str]:
    """Returns the names of the sources of packages by the packages' own, where these differ."""
    fields = (dict(FIELD.findall(stanza)) for stanza in packages.split("\n\n"))
    return {found["Package"]: found["Source"] for found in fields if "Source" in found}


def pairs(packages: str, descriptions: str) -> Iterator[Pair]:
    """Yields the pairs, in the order of the packages' names, without repeated and very short texts."""
    source_of = sources(packages)
    seen: set[str] = set()
    for stanza in descriptions.split("\n\n"):
        for name, line, text in DESCRIPTION.findall(stanza + "\n"):
            words = (word for word in text.split() if word != ".")  # which stands for an empty line
            query, document = line.strip(), " ".join(words)
            new = {query.casefold(), document.casefold()}
            is_long = len(query.split()) >= LEAST_WORDS["query"] and len(document.split()) >= LEAST_WORDS["document"]
            if is_long and not new & seen:
                seen |= new
                yield Pair(source_of.get(name, name), query, document)


def write(path: str, found: list[Pair]) -> None:
    with open(path, "w", encoding="utf-8") as f:
        for pair in found:
            f.write(json.dumps(dict(query=pair.query, document=pair.document), ensure_ascii=False) + "\n")
    with open(path, "rb") as f:
        say(f"{path}: {len(found):,} pairs, SHA-256 {hashlib.sha256(f.read()).hexdigest()}")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("descriptions", __doc__)
    parser.add_argument("--output_dir", required=True, metavar="DIR")
    parser.add_argument("--lists", metavar="DIR", help="apt's lists; downloaded unless given")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    lists = read_lists(os.path.abspath(args.lists)) if args.lists else download_lists()
    found = list(pairs(*lists))
    os.makedirs(args.output_dir, exist_ok=True)
    for name, is_held_out in (("train", False), ("dev", True)):
        part = [pair for pair in found if (percentile(pair.source) < HELD_OUT) == is_held_out]
        write(os.path.join(args.output_dir, f"{name}.jsonl"), part)


if __name__ == "__main__":
    run(main)
