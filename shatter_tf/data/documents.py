"""Documents from files of any format: where they are, which of their fields is the text, and where each begins."""

import collections
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import tensorflow as tf

from shatter_tf.data import records
from shatter_tf.data.names import fold
from shatter_tf.data.streams import (
    ARROW,
    PARQUET,
    beginning,
    in_pieces,
    plain_name,
    read_lines,
    text_bytes,
    whole_characters,
)
from shatter_tf.errors import UserError, argument, first_line, nearest
from shatter_tf.files import real_path

# Longer documents are cut here, so that one endless line cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1 << 20

# Folded names of the field that is the text; of several, the earliest counts.
TEXT_FIELDS = (
    *("text", "content", "document", "body", "article", "sentence", "review", "raw_content", "contents", "full_text"),
    *("passage", "paragraph", "story", "abstract", "message", "comment", "tweet", "post", "description"),
)

BLANK_LINE, LINE = "blank_line", "line"

# Characters without a space: DNA, base64, minified code. To a tokenizer, such a word is unknown, and a vocabulary would
# be full of its pieces. Chinese and Japanese, of which a tokenizer takes each character apart, have no spaces at all.
LONG_STRING = 1000
LONG_STRINGS = "long strings"  # what they are counted as
_SPACE = re.compile(r"\s")
_LONG_STRING = re.compile(
    rf"[!-~]{{{LONG_STRING + 1},}}|[^\W\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{{{LONG_STRING + 1},}}"
)

# How much of the input is read to learn about it: all of it, unless it takes a cluster.
_SURVEYED_BYTES = 1 << 30

_JSON = re.compile(rb'\s*(\[\s*)?\{\s*["}]')
_DATASETS_FILE = "dataset_dict.json"  # in a directory of several that Hugging Face `datasets` saved


class Source(NamedTuple):
    """A file, or a directory that `datasets` saved; `field` is the one of its records that is the text, if it has any.

    Without a field, it is plain text.
    """

    path: str
    field: str = ""


# === Which files ===


def find_files(patterns: str, name: str) -> list[str]:
    """Returns the sorted files that match comma-separated paths or globs, each only once.

    A directory stands for all files in it, at any depth, without hidden ones; a glob may have `**`. A directory that
    Hugging Face `datasets` saved counts as a file.

    Args:
      patterns: the value of an argument.
      name: the argument's name.

    Raises:
      UserError: when a pattern matches nothing, or a file is empty or cannot be read more than once.
    """
    files = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        pattern = os.path.expanduser(pattern)
        where = f"{argument(name)}={pattern}"
        # A file with that literal name, whatever characters it has, comes first.
        if not tf.io.gfile.exists(pattern):
            found = [path for path in map(_readable, _glob(pattern)) if not _is_folder(path)]
        elif _is_folder(pattern):
            found = _files_in(pattern, where)
        else:
            found = [pattern]
        if not found:
            raise UserError(f"{where}: {'no files in this directory' if _is_folder(pattern) else 'no such file'}")
        files += found
    if not files:
        raise UserError(f"{argument(name)} names no file")

    for path in files:
        _check_file(path)
    return sorted({real_path(path): path for path in files}.values())


def _is_folder(path: str) -> bool:
    """Returns whether a path is a directory, and none that `datasets` saved."""
    return tf.io.gfile.isdir(path) and not records.holds_records(path)


def _glob(pattern: str) -> list[str]:
    """Returns the paths that match a pattern, whose `**` stands for directories at any depth."""
    if "://" not in pattern:
        return glob.glob(pattern, recursive=True)
    if "**" not in pattern:
        return tf.io.gfile.glob(pattern)

    root = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    paths = (os.path.join(folder, name) for folder, _, names in tf.io.gfile.walk(root) for name in names)
    return [path for path in paths if re.fullmatch(_expression(pattern), path) and not _is_hidden(path, root)]


def _expression(pattern: str) -> str:
    """Returns a glob as a regular expression.

    Example:
    >>> [bool(re.fullmatch(_expression("a/**/*.txt"), path)) for path in ("a/b.txt", "a/b/c/d.txt", "b.txt")]
    [True, True, False]
    """
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(parts.get(token) or (token if token.startswith("[") else re.escape(token)) for token in tokens)


def _files_in(directory: str, where: str) -> list[str]:
    """Returns the files in a directory, at any depth, without those that are hidden or empty."""
    if tf.io.gfile.exists(os.path.join(directory, _DATASETS_FILE)):
        splits = [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
        splits = [name for name in sorted(splits) if tf.io.gfile.isdir(os.path.join(directory, name))]
        raise UserError(
            f"{where}: this holds several data sets ({', '.join(splits)}); name one: {directory}/train, say"
        )

    found = []
    walk = tf.io.gfile.walk if "://" in directory else os.walk
    for folder, _, names in walk(directory):
        if _is_hidden(folder, directory):
            continue
        if records.DATASET_FILE in names:
            found.append(folder)
            continue
        paths = [_readable(os.path.join(folder, name)) for name in names if not name.startswith(".")]
        found += [path for path in paths if not tf.io.gfile.exists(path) or tf.io.gfile.stat(path).length]
    return found


def _is_hidden(path: str, root: str) -> bool:
    """Returns whether a part of a path below `root` is hidden, or where a disk keeps what it lost."""
    return any(part.startswith(".") or part == "lost+found" for part in path[len(root) :].split("/"))


def _readable(path: str) -> str:
    """Returns a path; raises UserError when its name is none for TensorFlow."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename the file") from error
    return path


def _check_file(path: str) -> None:
    """Raises UserError unless a file has something in it, and can be read more than once."""
    try:
        status = tf.io.gfile.stat(path)
        # Of a pipe, TensorFlow says that it is empty.
        is_stream = "://" not in path and not stat.S_ISREG(os.stat(path).st_mode) and not status.is_directory
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if is_stream:
        raise UserError(f"{path}: a pipe or a device, and text is read more than once; write it to a file first")
    if not status.is_directory and status.length == 0:
        raise UserError(f"{path}: the file is empty")


def find_source(path: str, text_field: str = "") -> Source:
    """Returns what a file is, by its name and its first records.

    Args:
      path: one that `find_files` returned.
      text_field: the field that is the text, of records; empty takes a well-known one.

    Raises:
      UserError: when records have no such field, or none that is well known.
    """
    if not _holds_records(path) and not _holds_json(path):
        return Source(path)

    fields = _read_records(path).fields
    if text_field:
        if text_field not in fields:
            name = f"{argument('text_field')}={text_field}"
            raise UserError(f"{path}: no such field: {name}{nearest(text_field, fields)}; there are {_listed(fields)}")
        return Source(path, text_field)

    known = sorted((TEXT_FIELDS.index(fold(field)), field) for field in fields if fold(field) in TEXT_FIELDS)
    if not known:
        raise UserError(
            f"{path}: which field is the text? Give {argument('text_field')}; there are {_listed(fields) or 'none'}"
        )
    return Source(path, known[0][1])


def _listed(fields: list[str]) -> str:
    return ", ".join(repr(field) for field in fields)


def is_named_so(path: str) -> bool:
    """Returns whether the name of records says what they are."""
    return tf.io.gfile.isdir(path) or plain_name(path).endswith(records.EXTENSIONS)


def _holds_records(path: str) -> bool:
    return records.holds_records(path) or beginning(path).startswith((PARQUET, ARROW))


def _read_records(path: str, fields: list[str] | None = None) -> records.Records:
    """Returns the records of a file, JSON if neither its name nor its first bytes say that it is anything else."""
    return records.read_records(path, fields) if _holds_records(path) else records.read_json(path)


def _holds_json(path: str) -> bool:
    """Returns whether a file of another name begins with a hundred JSON objects, or has only those."""
    if not _JSON.match(beginning(path)):
        return False
    try:
        return bool(_read_records(path).fields)
    except UserError:
        return False


# === Which documents ===


class Survey(NamedTuple):
    """What was found in sources before they are read for good.

    Attributes:
      layout: BLANK_LINE or LINE, of those that are plain text.
      lines: of text, in plain text.
      breaks: blank lines between them, of which several in a row count as one.
      sizes: about how many bytes of text each source has.
    """

    layout: str
    lines: int
    breaks: int
    sizes: dict[str, int]


def survey(sources: list[Source], layout: str = "auto", errors: str = "strict") -> Survey:
    """Returns how the documents of plain text are laid out, and how much text there is.

    One blank line in a file of one document a line must not make one document of thousands. So all files count, and
    blank lines separate documents only if the number of lines is at most four times the square of that of documents:
    2 documents may have 8 lines each, 25 have 100, and 1,000 have 4,000. More than a gigabyte is not read for this.

    Args:
      sources: all of them.
      layout: BLANK_LINE or LINE, or "auto" to find out.
      errors: as for `read_lines`.

    Raises:
      UserError: for what cannot be read.
    """
    lines = 0
    breaks = 0
    sizes = {}
    on_disk = {source.path: _bytes_on_disk(source.path) for source in sources}
    rest = _SURVEYED_BYTES
    for source in sources:
        if not source.field:
            sizes[source.path] = text_bytes(source.path)
        if rest < 0 or (not source.field and layout != "auto"):
            continue
        rest -= on_disk[source.path]
        if source.field:
            sizes[source.path] = _size_as_text(source)
        else:
            counted = _count_lines(source.path, errors)
            lines += counted[0]
            breaks += counted[1]

    # Records that were not read are like those that were, if any were.
    known = [source.path for source in sources if source.field and source.path in sizes]
    ratio = sum(sizes[path] for path in known) / max(1, sum(on_disk[path] for path in known)) or 1
    sizes = {path: sizes.get(path, int(size * ratio)) for path, size in on_disk.items()}

    if layout == "auto":
        layout = BLANK_LINE if breaks and lines <= 4 * (breaks + 1) ** 2 else LINE
    return Survey(layout, lines, breaks, sizes)


def _bytes_on_disk(path: str) -> int:
    if not tf.io.gfile.isdir(path):
        return tf.io.gfile.stat(path).length
    return sum(tf.io.gfile.stat(os.path.join(path, name)).length for name in tf.io.gfile.listdir(path))


def _size_as_text(source: Source) -> int:
    """Returns how many bytes records would take as plain text, so that they give as many shards.

    A line's end follows each document, and a blank line if documents have several lines.
    """
    size = 0
    number = 0
    ends = 1
    for text in _texts(source):
        for document in _of_record(text, MAX_DOCUMENT_CHARACTERS):
            size += len(document.encode())
            number += 1
            ends = 2 if "\n" in document else ends
    return size + number * ends


def _count_lines(path: str, errors: str) -> tuple[int, int]:
    """Returns how many lines of a file have text, and how often one or several blank lines separate them."""
    lines = 0
    breaks = 0
    after_blank = False
    for line in read_lines(path, errors, MAX_DOCUMENT_CHARACTERS, _remedy()):
        if not line or line.isspace():
            after_blank = lines > 0
            continue
        lines += 1
        breaks += after_blank
        after_blank = False
    return lines, breaks


def _remedy() -> str:
    return f", or go on with {argument('errors')}=replace"


def read_documents(
    source: Source,
    layout: str = LINE,
    errors: str = "strict",
    longest: int = MAX_DOCUMENT_CHARACTERS,
    counts: collections.Counter | None = None,
) -> Iterator[str]:
    """Yields the documents of a source in their normal form, whatever its format; empty ones, too.

    In it, lines are stripped, none is blank, and newlines separate them. Strings of more than 1,000 characters without
    a space are left out.

    Args:
      source: what `find_source` returned.
      layout: of plain text: BLANK_LINE, with blank lines between documents; or LINE, one document a line.
      errors: as for `read_lines`.
      longest: longer documents, in characters, are cut after the line, or the piece of a line, that exceeds it.
      counts: to which LONG_STRINGS are added.

    Raises:
      UserError: for what cannot be read, and records whose text is none; with their lines.
    """
    if source.field:
        documents = (document for text in _texts(source) for document in _of_record(text, longest))
    else:
        documents = _of_lines(read_lines(source.path, errors, longest, _remedy()), layout, longest)

    for document in documents:
        if _may_have_long_string(document):
            document, number = _LONG_STRING.subn("", document)
            document = document.strip()
            if counts is not None:
                counts[LONG_STRINGS] += number
        yield document


def _may_have_long_string(document: str) -> bool:
    """Returns whether one of the document's pieces, of which a long string would fill at least one, has no space."""
    size = LONG_STRING // 2
    return any(not _SPACE.search(document, i, i + size) for i in range(0, len(document) - size + 1, size))


def _of_lines(lines: Iterable[str], layout: str, longest: int) -> Iterator[str]:
    document = []
    size = 0
    for line in lines:
        line = line.strip()
        if line:
            document.append(line)
            size += len(line)
        if document and (not line or layout == LINE or size > longest):
            yield "\n".join(document)
            document = []
            size = 0
    if document:
        yield "\n".join(document)


def _of_record(text: str, longest: int) -> Iterator[str]:
    lines = [piece for line in text.split("\n") for piece in in_pieces(line, longest) if piece.strip()]
    return _of_lines(lines, BLANK_LINE, longest) if lines else iter([""])


def _texts(source: Source) -> Iterator[str]:
    """Yields the texts of records, "" for null."""
    for where, values in _read_records(source.path, [source.field]).rows:
        try:
            text = values[source.field]
        except KeyError:
            raise UserError(
                f"{where}: no field {source.field!r}; there are {_listed(list(values)) or 'none'}"
            ) from None
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise UserError(
                f"{where}: {source.field!r} is {str(text)[:40]!r} ({type(text).__name__}), and not a string"
            )
        yield whole_characters(text)
