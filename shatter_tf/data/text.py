"""Reads documents from plain or gzipped text files, in bounded memory."""

import codecs
import gzip
import re
import sys
import zlib
from collections.abc import Iterator

import tensorflow as tf

from shatter_tf.command_line import UserError, first_line
from shatter_tf.files import real_path

# Longer documents are cut here, so that one endless line cannot fill the memory.
MAX_DOCUMENT_CHARACTERS = 1 << 20
_BLOCK_BYTES = 1 << 20


def find_files(patterns: str, flag: str = "--input") -> list[str]:
    """Returns the sorted files that comma-separated paths or globs, the value of `flag`, name; each only once.

    Raises:
      UserError: when a pattern matches nothing or a file is empty.
    """
    files = []
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        # A file with that literal name, whatever characters it has, comes first.
        matched = [pattern] if tf.io.gfile.exists(pattern) else tf.io.gfile.glob(pattern)
        matched = [path for path in matched if not tf.io.gfile.isdir(path)]
        if not matched:
            raise UserError(f"{flag}={pattern}: no such file")
        files += matched
    for path in files:
        try:
            length = tf.io.gfile.stat(path).length
        except tf.errors.OpError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
        if length == 0:
            raise UserError(f"{path}: the file is empty")
    if not files:
        raise UserError(f"{flag} names no file")
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
    position, rest = 0, ""
    blocks = _blocks(path)
    while True:
        block = next(blocks, b"")
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


def detect_layout(path: str) -> str:
    """Returns "blank_line" when there is a blank line between text in the file's first megabyte, else "line".

    "blank_line": one paragraph a line, blank lines between documents. "line": one document a line.
    """
    return "blank_line" if re.search(rb"\n\s*\n", next(_blocks(path), b"").strip()) else "line"


def read_documents(path: str, layout: str = "auto", errors: str = "strict") -> Iterator[str]:
    """Yields the documents of one file; a document's paragraphs are separated by newlines.

    Args:
      path: a text file, possibly gzipped.
      layout: "blank_line", "line", or "auto" to look at the file.
      errors: as for `read_lines`.
    """
    if layout == "auto":
        layout = detect_layout(path)
    document, size = [], 0
    remedy = "convert the file, or go on with --errors=replace"
    for line in read_lines(path, errors, MAX_DOCUMENT_CHARACTERS, remedy):
        line = line.strip()
        if line:
            document.append(line)
            size += len(line)
        if document and (not line or layout == "line" or size > MAX_DOCUMENT_CHARACTERS):
            yield "\n".join(document)
            document, size = [], 0
    if document:
        yield "\n".join(document)
