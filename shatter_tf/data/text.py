"""Text: documents from plain or gzipped files, in bounded memory, and strings as a vocabulary needs them."""

import codecs
import gzip
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import real_path

# Longer documents are cut here, so that one endless line cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1 << 20

_BLOCK_BYTES = 1 << 20


def find_files(patterns: str, name: str) -> list[str]:
    """Returns the sorted files that match comma-separated paths or globs, each only once.

    Args:
      patterns: the value of an argument.
      name: the argument's name.

    Raises:
      UserError: when a pattern matches nothing or a file is empty.
    """
    files = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        # A file with that literal name, whatever characters it has, comes first.
        matched = [pattern] if tf.io.gfile.exists(pattern) else tf.io.gfile.glob(pattern)
        matched = [path for path in matched if not tf.io.gfile.isdir(path)]
        if not matched:
            raise UserError(f"{argument(name)}={pattern}: no such file")
        files += matched
    if not files:
        raise UserError(f"{argument(name)} names no file")

    for path in files:
        try:
            length = tf.io.gfile.stat(path).length
        except tf.errors.OpError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
        if length == 0:
            raise UserError(f"{path}: the file is empty")

    return sorted({real_path(path): path for path in files}.values())


def _blocks(path: str) -> Iterator[bytes]:
    with tf.io.gfile.GFile(path, "rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
        try:
            while block := stream.read(_BLOCK_BYTES):
                yield block
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read as gzip ({error})") from error
        except tf.errors.OpError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from error


def read_lines(
    path: str, errors: str = "strict", longest: int = sys.maxsize, remedy: str = "convert the file"
) -> Iterator[str]:
    """Yields the lines of a UTF-8 file (gzipped when its name ends in .gz) without their ends.

    Args:
      path: anything tf.io.gfile opens.
      errors: "strict" refuses invalid UTF-8; "replace" puts U+FFFD in its place.
      longest: lines longer than this, in characters, come in pieces.
      remedy: what a user can do about invalid UTF-8.

    Raises:
      UserError: for invalid UTF-8 under "strict", with the byte position.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors)
    blocks = _blocks(path)
    position = 0
    rest = ""  # of the last line, whose end comes in a later block
    while True:
        block = next(blocks, b"")  # empty at the end of the file
        position += len(block)
        try:
            rest += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The decoder saw what was pending and the block, perhaps without a byte order mark.
            where = position - len(error.object) + error.start
            raise UserError(f"{path}: invalid UTF-8 at byte {where}; {remedy}") from error

        *lines, rest = rest.split("\n")
        for line in lines:
            for piece in _pieces(line, longest):
                yield piece.removesuffix("\r")

        *pieces, rest = _pieces(rest, longest)
        yield from pieces
        if not block:
            if rest:
                yield rest
            return


def _pieces(line: str, longest: int) -> Iterator[str]:
    """Yields a line in pieces that are not longer, cut after spaces where there are any."""
    while len(line) > longest:
        cut = line.rfind(" ", 1, longest) + 1 or longest
        yield line[:cut]
        line = line[cut:]
    yield line


def whole_characters(text: str) -> str:
    """Returns text with "?" for halves of characters (surrogates), which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def read_documents(path: str, layout: str = "auto", errors: str = "strict") -> Iterator[str]:
    """Yields the documents of one file; a document's paragraphs are separated by newlines.

    Args:
      path: a text file, possibly gzipped.
      layout: "blank_line", one paragraph a line with blank lines between documents; "line", one document a line; or
        "auto", the former if the file's first megabyte has a blank line between text.
      errors: as for `read_lines`.
    """
    if layout == "auto":
        beginning = next(_blocks(path), b"").strip()
        layout = "blank_line" if re.search(rb"\n\s*\n", beginning) else "line"

    document = []
    size = 0
    remedy = f"convert the file, or go on with {argument('errors')}=replace"
    for line in read_lines(path, errors, MAX_DOCUMENT_CHARACTERS, remedy):
        line = line.strip()
        if line:
            document.append(line)
            size += len(line)
        if document and (not line or layout == "line" or size > MAX_DOCUMENT_CHARACTERS):
            yield "\n".join(document)
            document = []
            size = 0
    if document:
        yield "\n".join(document)


def chunks(items: Iterable, length: Callable[[Any], int], limit: int) -> Iterator[list]:
    """Yields items in lists, each of which ends with the item that brings their lengths above `limit` in total.

    Example:
    >>> list(chunks(["one", "two", "three"], len, 4))
    [['one', 'two'], ['three']]
    """
    chunk = []
    total = 0
    for item in items:
        chunk.append(item)
        total += length(item)
        if total > limit:
            yield chunk
            chunk = []
            total = 0
    if chunk:
        yield chunk


def normalize_unicode(text: tf.Tensor, lower_case: bool) -> tf.Tensor:
    """Returns strings as valid UTF-8, and in NFC unless they will be lower-cased, which decomposes them anyway."""
    text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
    return text if lower_case else tf_text.normalize_utf8(text, "NFC")
