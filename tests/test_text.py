"""Reading text: layouts, encodings, and what is refused."""

import gzip

import pytest

from shatter_tf.data import text
from shatter_tf.errors import UserError


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
        (b"one\ntwo\n \t \r\nthree\n", ["one\ntwo", "three"]),
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
    path = write(tmp_path, b"word " * 20 + b"\nend\n" + b"x" * 25)
    for block in (7, 1000):  # the line's end comes in a later block, or in the same one
        monkeypatch.setattr(text, "_BLOCK_BYTES", block)
        documents = list(text.read_documents(path, "line"))
        assert documents == [*["word word"] * 10, "end", "x" * 10, "x" * 10, "x" * 5]
    assert [len(line) for line in text.read_lines(path)] == [100, 3, 25]  # only documents are cut


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_invalid_utf8_is_refused_with_its_position(tmp_path, monkeypatch, block):
    monkeypatch.setattr(text, "_BLOCK_BYTES", block)
    path = write(tmp_path, "né\n".encode() + b"ab\xe9cd\n")
    with pytest.raises(UserError, match=r"a\.txt: .*\b6\b.*errors=replace"):
        list(text.read_documents(path, "line"))
    with pytest.raises(UserError, match=r"a\.txt: .*\b6\b") as error:
        list(text.read_lines(path))
    assert "errors" not in str(error.value)  # of labelled text, say, for which there is no such flag
    assert list(text.read_documents(path, "line", "replace")) == ["né", "ab\ufffdcd"]
    for content, byte in ((b"ab\xe9cd\n", 5), (b"ab\xe9", 5), (b"\xe9", 3)):
        with pytest.raises(UserError, match=rf"a\.txt: .*\b{byte}\b"):
            list(text.read_lines(write(tmp_path, b"\xef\xbb\xbf" + content)))


def test_files_are_found_or_refused(tmp_path):
    first, second = write(tmp_path, b"x", "a.txt"), write(tmp_path, b"x", "b.txt")
    assert text.find_files(f"{tmp_path}/*.txt,{first}", "input") == [first, second]
    (tmp_path / "same.md").symlink_to(first)
    assert len(text.find_files(f"{first},{tmp_path}/./a.txt,{tmp_path}/same.md", "input")) == 1
    with pytest.raises(UserError, match=rf"dev_input={tmp_path}/\*\.rst"):
        text.find_files(f"{first},{tmp_path}/*.rst", "dev_input")
    with pytest.raises(UserError, match="dev_input"):
        text.find_files(" , ", "dev_input")
    literally = write(tmp_path, b"x", "[ab].txt")
    assert text.find_files(literally, "input") == [literally]
    (tmp_path / "gone.rst").symlink_to("nowhere")
    with pytest.raises(UserError, match=f"^{tmp_path}/gone.rst: "):
        text.find_files(f"{tmp_path}/*.rst", "input")
    write(tmp_path, b"", "c.txt")
    with pytest.raises(UserError, match=f"^{tmp_path}/c.txt: .*empty"):
        text.find_files(f"{tmp_path}/*.txt", "input")


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}: "):
        list(text.read_lines(str(tmp_path)))


def test_a_broken_gzip_is_refused(tmp_path):
    path = write(tmp_path, b"text\n" * 1000, "a.txt.gz")
    with open(path, "r+b") as f:
        f.truncate(20)
    with pytest.raises(UserError, match=f"^{path}: .*gzip"):
        list(text.read_documents(path))
