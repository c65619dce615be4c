"""Files as bytes and as lines, whatever their compression and encoding: the first bytes tell these, not the name."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa
import tensorflow as tf

from shatter_tf.errors import UserError, first_line

# What packed files begin with, and what their names may end in.
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PACKED_EXTENSIONS = (".gz", ".bz2", ".xz", ".zst")

# How much longer text is than its packed file, about.
_PACKED_RATIO = 3

# Longer marks first: UTF-32's begins with UTF-16's.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}

PARQUET, ARROW = b"PAR1", b"ARROW1"

# What is no text, and what to do with it.
_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive or an Office document; unpack it, or save it as CSV",
    b"%PDF": "a PDF; extract its text first, with pdftotext, say",
    b"\xd0\xcf\x11\xe0": "an old Office document; save it as CSV or as text",
    b"{\\rtf": "RTF; save it as plain text",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"SQLite format 3": "a SQLite database; export a table as CSV",
    PARQUET: "Parquet; its name must end in .parquet",
    ARROW: "Arrow; its name must end in .arrow",
}

_BLOCK_BYTES = 1 << 20


class NotText(UserError):
    """A file that is no text, by its first bytes, `magic`."""

    def __init__(self, message: str, magic: bytes):
        super().__init__(message)
        self.magic = magic


def plain_name(path: str) -> str:
    """Returns a file's name in lower case without the ending of a compression.

    Example:
    >>> plain_name("data/Train.CSV.gz")
    'train.csv'
    """
    name = os.path.basename(path.rstrip("/")).lower()
    root, extension = os.path.splitext(name)
    return root if extension in PACKED_EXTENSIONS else name


def beginning(path: str) -> bytes:
    """Returns a file's first bytes, unpacked; raises UserError when it cannot be read."""
    return next(read_blocks(path), b"")


def text_bytes(path: str) -> int:
    """Returns about how many bytes of text a file has; raises UserError when it cannot be read."""
    try:
        with tf.io.gfile.GFile(path, "rb") as raw:
            packed = _compression(raw.read(8))
            return raw.size() * (_PACKED_RATIO if packed else 1)
    except tf.errors.OpError as error:
        raise _unreadable(path, error) from error


def _compression(first: bytes) -> str:
    return next((name for magic, name in _PACKED.items() if first.startswith(magic)), "")


def _unreadable(path: str, error: Exception, compression: str = "") -> UserError:
    if isinstance(error, tf.errors.NotFoundError):
        return UserError(f"{path}: no such file")
    if tf.io.gfile.isdir(path):
        return UserError(f"{path}: a directory, not a file")
    return UserError(f"{path}: cannot be read{f' as {compression}' if compression else ''} ({first_line(error)})")


class _Raw(io.RawIOBase):
    """A file that TensorFlow opened, as Python's own libraries expect one."""

    def __init__(self, file: tf.io.gfile.GFile):
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Yields a file's bytes, unpacked, as a stream that is read from its beginning to its end.

    Raises:
      UserError: when the file cannot be read or is damaged, also while the stream is read.
    """
    if "://" not in path and os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UserError(f"{path}: a pipe or a device; write it to a file first")
    compression = ""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            compression = _compression(file.read(8))
            file.seek(0)
            raw = io.BufferedReader(_Raw(file), _BLOCK_BYTES)
            yield _UNPACK[compression](raw)
    except (tf.errors.OpError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _unreadable(path, error, compression) from error


# The standard library reads zstd only from Python 3.14 on.
_UNPACK: dict[str, Callable] = {
    "": lambda raw: raw,
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"),
}


@contextlib.contextmanager
def opened_on_disk(path: str) -> Iterator[BinaryIO]:
    """Yields a file's bytes, unpacked, as a file on disk, where any place can be read.

    Raises:
      UserError: as `opened` does.
    """
    with opened(path) as stream:
        if "://" not in path and isinstance(stream, io.BufferedReader):
            with open(path, "rb") as file:
                yield file
            return
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(stream, file, _BLOCK_BYTES)
            file.seek(0)
            yield file


def read_blocks(path: str) -> Iterator[bytes]:
    """Yields a file's bytes, unpacked, in blocks of up to a megabyte; raises UserError when it cannot be read."""
    with opened(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            yield block


def encoding_of(first: bytes, path: str) -> str:
    """Returns the encoding that a text's first block shows: UTF-8, unless it begins with the mark of another.

    Raises:
      UserError: for what is no text, or is UTF-16 without a mark.
    """
    for mark, encoding in _ENCODINGS.items():
        if first.startswith(mark):
            return encoding
    for magic, what in _NOT_TEXT.items():
        if first.startswith(magic):
            raise NotText(f"{path}: this is {what}", magic)
    if b"\0" in first:
        raise UserError(
            f"{path}: not UTF-8, there is a zero at byte {first.index(0)}; if it is UTF-16 without a mark, convert it: "
            f"iconv -f UTF-16LE -t UTF-8"
        )
    return "utf-8"


def read_lines(path: str, errors: str = "strict", longest: int = sys.maxsize, remedy: str = "") -> Iterator[str]:
    """Yields the lines of a text file, which may be packed, without their ends.

    The text is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Lines end with a newline, or where the beginning of a
    file has none, with a carriage return.

    Args:
      path: anything tf.io.gfile opens.
      errors: "strict" refuses bytes that are not in the encoding; "replace" puts U+FFFD in their place.
      longest: lines longer than this, in characters, come in pieces.
      remedy: what else a user can do about invalid UTF-8.

    Raises:
      UserError: when it cannot be read; for what is no text; for invalid bytes under "strict", with their position.
    """
    blocks = read_blocks(path)
    block = next(blocks, b"")
    encoding = encoding_of(block, path)
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    end = ""
    position = 0
    rest = ""  # of the last line, whose end comes in a later block
    while True:
        position += len(block)
        try:
            rest += decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The decoder saw what was pending and the block, perhaps without a byte order mark.
            where = position - len(error.object) + error.start
            name = encoding.upper().removesuffix("-SIG")
            convert = f"; if it is Latin-1, convert it: iconv -f LATIN1 -t UTF-8{remedy}" if name == "UTF-8" else ""
            raise UserError(f"{path}: invalid {name} at byte {where}{convert}") from error

        end = end or ("\r" if "\r" in rest[:-1] and "\n" not in rest else "\n")
        *lines, rest = rest.split(end)
        for line in lines:
            for piece in in_pieces(line, longest):
                yield piece.removesuffix("\r")

        *pieces, rest = in_pieces(rest, longest)
        yield from pieces
        if not block:
            if rest:
                yield rest.removesuffix("\r")
            return
        block = next(blocks, b"")  # empty at the end of the file


def in_pieces(line: str, longest: int) -> Iterator[str]:
    """Yields a line in pieces that are not longer, cut after spaces where there are any."""
    while len(line) > longest:
        cut = line.rfind(" ", 1, longest) + 1 or longest
        yield line[:cut]
        line = line[cut:]
    yield line


def whole_characters(text: str) -> str:
    """Returns text with "?" for halves of characters (surrogates), which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
