"""Files as bytes and as lines: how they are packed and encoded, that blocks do not show, and what is refused."""

import bz2
import gzip
import lzma
import os

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shatter_tf.data import streams
from shatter_tf.errors import UserError

PACK = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}
IN_ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


def write(tmp_path, content: bytes, name="a.txt") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


@pytest.fixture(params=[16, 17, 1000])
def block(request, monkeypatch):
    monkeypatch.setattr(streams, "_BLOCK_BYTES", request.param)


# === Bytes ===


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.zst"])
def test_what_a_file_begins_with_tells_how_it_is_packed(tmp_path, packed, name):
    content = os.urandom(3000)
    path = write(tmp_path, PACK[packed](b"text" + content), name)
    assert b"".join(streams.read_blocks(path)) == b"text" + content
    assert streams.beginning(path).startswith(b"text")
    with streams.opened_on_disk(path) as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == content[-5:]


def test_parts_that_were_packed_one_by_one_are_read_one_after_the_other(tmp_path):
    for packed in ("gzip", "bzip2", "xz"):
        assert list(streams.read_lines(write(tmp_path, PACK[packed](b"a\n") + PACK[packed](b"b\n")))) == ["a", "b"]


@pytest.mark.parametrize("packed", [name for name in PACK if name != "plain"])
def test_what_is_cut_off_is_refused_with_its_kind(tmp_path, packed):
    content = PACK[packed](os.urandom(5000))
    path = write(tmp_path, content[: len(content) // 2], "a.txt")
    with pytest.raises(UserError, match=rf"^{path}: .*\b{packed}\b") as error:
        list(streams.read_blocks(path))
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}: .*directory"):
        list(streams.read_lines(str(tmp_path)))
    with pytest.raises(UserError, match=f"^{tmp_path}/none: no such file"):
        list(streams.read_lines(f"{tmp_path}/none"))
    with pytest.raises(UserError, match=f"^{tmp_path}/none: no such file"):
        streams.text_bytes(f"{tmp_path}/none")


def test_packed_text_counts_three_times_its_size(tmp_path):
    assert streams.text_bytes(write(tmp_path, b"four")) == 4
    content = gzip.compress(b"four")
    assert streams.text_bytes(write(tmp_path, content)) == 3 * len(content)


# === Lines ===


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", ["plain", "gzip"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, block, encoding, packed, end):
    lines = ["né äö", "", "vier 😀 fünf", "a longer line, of more than a block of sixteen bytes"]
    path = write(tmp_path, PACK[packed](end.join([*lines, ""]).encode(encoding)))
    if end == "\r" and encoding == "utf-32" and streams._BLOCK_BYTES < 20:
        pytest.skip("the first block has no end of a line")
    assert list(streams.read_lines(path)) == lines


@pytest.mark.parametrize(("mark", "encoding"), [(b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be")])
def test_the_other_order_of_bytes(tmp_path, mark, encoding):
    assert list(streams.read_lines(write(tmp_path, mark + "é\nb".encode(encoding)))) == ["é", "b"]


@IN_ONE_FOLDER
@given(
    lines=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0\ufeff"))),
    encoding=st.sampled_from(["utf-8", "utf-16"]),
    size=st.integers(16, 40),
    longest=st.integers(1, 30),
)
def test_blocks_and_pieces_do_not_lose_or_add_anything(tmp_path, lines, encoding, size, longest):
    path = write(tmp_path, ("first\n" + "\n".join([*lines, "last"])).encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_BLOCK_BYTES", size)
        assert list(streams.read_lines(path)) == ["first", *lines, "last"]
        pieces = list(streams.read_lines(path, longest=longest))
    assert "".join(pieces) == "".join(["first", *lines, "last"])
    assert max(map(len, pieces)) <= longest


def test_an_endless_line_is_cut_after_spaces_where_there_are_any(tmp_path, block):
    path = write(tmp_path, b"word " * 20 + b"\nend\n" + b"x" * 25)
    assert [len(line) for line in streams.read_lines(path)] == [100, 3, 25]
    pieces = list(streams.read_lines(path, longest=11))
    assert pieces == [*["word word "] * 10, "end", "x" * 11, "x" * 11, "x" * 3]


def test_invalid_utf8_is_refused_with_its_position(tmp_path, block):
    start = "né\n".encode() * 10  # 40 bytes
    for mark in (b"", b"\xef\xbb\xbf"):
        for content in (b"ab\xe9cd\n", b"ab\xe9"):
            path = write(tmp_path, mark + start + content)
            with pytest.raises(UserError, match=rf"^{path}: .*UTF-8.*\b{len(mark) + 42}\b.*iconv"):
                list(streams.read_lines(path))
            lines = list(streams.read_lines(path, "replace"))
            assert lines[-1].startswith("ab\ufffd")


def test_only_callers_that_have_a_remedy_name_it(tmp_path):
    path = write(tmp_path, b"ab\xe9cd\n")
    with pytest.raises(UserError, match="--remedy"):
        list(streams.read_lines(path, remedy=", or use --remedy"))
    with pytest.raises(UserError) as error:  # half a character: no other encoding, and nothing to convert
        list(streams.read_lines(write(tmp_path, "né\n".encode("utf-16") + b"\0"), remedy=", or use --remedy"))
    assert "UTF-16" in str(error.value)
    assert not any(word in str(error.value) for word in ("--remedy", "iconv"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04....", "zip"),
        (b"%PDF-1.4", "PDF"),
        (b"{\\rtf1", "RTF"),
        (b"PAR1....", "Parquet"),
        ("no mark".encode("utf-16-le"), "UTF-16"),
        (gzip.compress(b"%PDF-1.4", mtime=0), "PDF"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, what):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=f"^{path}: .*{what}") as error:
        list(streams.read_lines(path))
    assert "errors" not in str(error.value)
