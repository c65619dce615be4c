"""Reading text: layouts, encodings, and what is refused."""

import gzip

import pytest

from shatter_tf.command_line import UserError
from shatter_tf.data import text


def write(tmp_path, content: bytes, name="a.txt") -> str:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    ("content", "documents"),
    [
        (b"one\ntwo\n\n\nthree\n", ["one\ntwo", "three"]),
        (b"one\r\ntwo\r\n\r\nthree", ["one\ntwo", "three"]),
        (b"one\ntwo\nthree\n", ["one", "two", "three"]),
        (b"\xef\xbb\xbf one \n", ["one"]),
        ("é\n".encode(), ["é"]),
    ],
)
def test_layouts(tmp_path, name, content, documents):
    assert list(text.read_documents(write(tmp_path, content, name))) == documents


def test_layout_can_be_said(tmp_path):
    path = write(tmp_path, b"one\ntwo\n\nthree\n")
    assert list(text.read_documents(path, "line")) == ["one", "two", "three"]
    path = write(tmp_path, b"one\ntwo\n")
    assert list(text.read_documents(path, "blank_line")) == ["one\ntwo"]


def test_blocks_do_not_show(tmp_path, monkeypatch):
    content = "né äö\nzwei drei\n\nvier 😀 fünf\n".encode()
    whole = list(text.read_documents(write(tmp_path, content)))
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(text, "_BLOCK_BYTES", size)
        assert list(text.read_documents(write(tmp_path, content), "blank_line")) == whole


def test_an_endless_line_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_DOCUMENT_CHARACTERS", 10)
    monkeypatch.setattr(text, "_BLOCK_BYTES", 7)
    documents = list(text.read_documents(write(tmp_path, b"word " * 20)))
    assert "".join(d.replace(" ", "") for d in documents) == "word" * 20
    assert max(len(d) for d in documents) <= 10


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_invalid_utf8_is_refused_with_its_position(tmp_path, monkeypatch, block):
    monkeypatch.setattr(text, "_BLOCK_BYTES", block)
    path = write(tmp_path, "né\n".encode() + b"ab\xe9cd\n")
    with pytest.raises(UserError, match=r"a\.txt: invalid UTF-8 at byte 6; .*--errors=replace"):
        list(text.read_documents(path, "line"))
    assert list(text.read_documents(path, "line", "replace")) == ["né", "ab\ufffdcd"]


def test_files_are_found_or_refused(tmp_path):
    first, second = write(tmp_path, b"x", "a.txt"), write(tmp_path, b"x", "b.txt")
    assert text.find_files(f"{tmp_path}/*.txt,{first}") == [first, second]
    with pytest.raises(UserError, match="no such file"):
        text.find_files(f"{tmp_path}/*.md")
    write(tmp_path, b"", "c.txt")
    with pytest.raises(UserError, match="c.txt: the file is empty"):
        text.find_files(f"{tmp_path}/*.txt")


def test_a_broken_gzip_is_refused(tmp_path):
    path = write(tmp_path, b"text\n" * 1000, "a.txt.gz")
    with open(path, "r+b") as f:
        f.truncate(20)
    with pytest.raises(UserError, match="cannot be read as gzip"):
        list(text.read_documents(path))
