"""Documents: which files are found, which field is their text, how they are laid out, and their normal form."""

import bz2
import collections
import gzip
import json
import os

import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from shatter_tf.data import documents, streams
from shatter_tf.data.documents import BLANK_LINE, LINE, Source, find_files, find_source, read_documents, survey
from shatter_tf.errors import UserError


def write(tmp_path, content: bytes | str, name="a.txt") -> str:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


def json_lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write_dataset(folder, texts) -> str:
    """Writes what `save_to_disk` of Hugging Face `datasets` writes, and a file of its cache."""
    folder.mkdir(parents=True)
    table = pa.table({"text": texts})
    for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return str(folder)


def read(path: str, layout="auto", errors="strict", **kwargs) -> list[str]:
    source = find_source(path)
    return list(read_documents(source, survey([source], layout, errors).layout, errors, **kwargs))


# === Which files ===


def test_files_are_found_once_and_in_order(tmp_path):
    first, second = write(tmp_path, "x", "a.txt"), write(tmp_path, "x", "b.txt")
    assert find_files(f"{tmp_path}/*.txt,{first}", "input") == [first, second]
    (tmp_path / "same.md").symlink_to(first)
    assert len(find_files(f"{first},{tmp_path}/./a.txt,{tmp_path}/same.md", "input")) == 1
    literally = write(tmp_path, "x", "[ab].txt")
    assert find_files(literally, "input") == [literally]


def test_two_stars_and_directories_reach_any_depth(tmp_path):
    paths = [write(tmp_path, "x", name) for name in ("sub/deep/x.txt", "sub/y.txt", "z.txt")]
    write(tmp_path, "x", ".hidden/a.txt")
    write(tmp_path, "x", "sub/.a.txt")
    write(tmp_path, "x", "lost+found/a.txt")
    write(tmp_path, "", "sub/_SUCCESS")
    assert find_files(f"{tmp_path}/**/*.txt", "input")[-3:] == paths
    assert find_files(str(tmp_path), "input") == find_files(f"{tmp_path}/", "input") == paths
    assert find_files(f"{tmp_path}/*", "input") == paths[2:]


def test_two_stars_reach_any_depth_in_an_object_store():
    names = ("sub/deep/x.txt", "sub/y.txt", "z.txt", ".git/a.txt", "b.md")
    for name in names:
        tf.io.gfile.makedirs(os.path.dirname(f"ram://stars/{name}"))
        with tf.io.gfile.GFile(f"ram://stars/{name}", "w") as f:
            f.write("x")
    assert find_files("ram://stars/**/*.txt", "input") == [f"ram://stars/{name}" for name in names[:3]]
    assert find_files("ram://stars/sub", "input") == [f"ram://stars/{name}" for name in names[:2]]


def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, "x")
    assert find_files("~/*.txt", "input") == find_files("~/a.txt", "input") == [path]


@pytest.mark.parametrize(
    ("pattern", "what"),
    [
        ("a.txt,*.rst", r"input=.*\.rst: no such file"),
        (" , ", "input"),
        ("gone.md", "gone.md: cannot be read"),
        ("empty.txt", "empty.txt: .*empty"),
        ("pipe", "pipe: a pipe"),
        ("folder", "folder: no files"),
        ("datasets", "datasets: .*test, train.*datasets/train"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(tmp_path, monkeypatch, pattern, what):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "x")
    write(tmp_path, "", "empty.txt")
    (tmp_path / "gone.md").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("train", "test"):
        write_dataset(tmp_path / "datasets" / name, ["x"])
    write(tmp_path, "{}", "datasets/dataset_dict.json")
    with pytest.raises(UserError, match=what) as error:
        find_files(pattern, "input")
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.txt", "w") as f:
        f.write("x")
    with pytest.raises(UserError, match=r"xff\.txt.*UTF-8"):
        find_files(f"{tmp_path}/*.txt", "input")


# === Which field ===


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [(["id", "text"], "text"), (["Content", "title"], "Content"), (["review", "document"], "document")],
)
def test_the_text_is_a_well_known_field(tmp_path, fields, chosen):
    path = write(tmp_path, json_lines(dict.fromkeys(fields, "x")), "a.jsonl")
    assert find_source(path) == Source(path, chosen)
    assert find_source(path, fields[0]) == Source(path, fields[0])


def test_without_a_well_known_field_the_fields_are_listed(tmp_path):
    path = write(tmp_path, json_lines({"foo": "x", "bar": 1}), "a.jsonl")
    with pytest.raises(UserError, match=f"^{path}: .*text_field.*'foo', 'bar'"):
        find_source(path)
    with pytest.raises(UserError, match="text_field=fo .*did you mean foo.*'foo', 'bar'"):
        find_source(path, "fo")


def test_content_counts_where_a_name_is_wrong(tmp_path):
    assert find_source(write(tmp_path, json_lines({"text": "x"}), "a.txt")).field == "text"
    assert find_source(write(tmp_path, '[\n{"text": "x"}]', "b.txt.gz")).field == "text"
    with pytest.raises(UserError, match="text_field.*'foo'"):
        find_source(write(tmp_path, json_lines({"foo": "x"}), "c.txt"))
    for text in ("{a} set\n", "[one] two\n", '{"an": "object"} and text\n', json_lines({"text": "x"}) + "text\n"):
        assert find_source(write(tmp_path, text)).field == ""
    parquet.write_table(pa.table({"text": ["x"]}), tmp_path / "d.txt")
    assert read(str(tmp_path / "d.txt")) == ["x"]
    with pytest.raises(UserError, match="e.parquet: not Parquet"):
        find_source(write(tmp_path, "text", "e.parquet"))
    with pytest.raises(UserError, match="f.jsonl:1: not JSON"):
        find_source(write(tmp_path, "text\n", "f.jsonl"))


@pytest.mark.parametrize("last", ['{"text": 7}', '{"other": "x"}', '["x"]', "x"])
def test_a_record_without_text_is_refused_with_its_line(tmp_path, last):
    path = write(tmp_path, json_lines(*[{"text": "x"}] * 200) + "\n" + last, "a.jsonl")
    source = find_source(path)
    with pytest.raises(UserError, match=f"^{path}:202: "):
        list(read_documents(source))


# === Which layout ===


@pytest.mark.parametrize(
    ("content", "layout"),
    [
        ("one\ntwo\n\n\nthree\n", BLANK_LINE),
        ("one\ntwo\nthree\n", LINE),
        ("\n\none\ntwo\n\n", LINE),  # none between text
        ("line\n" * 20_000 + "\n" + "line\n" * 300, LINE),  # a stray one
        (("line\n" * 1_000 + "\n") * 20, LINE),  # one after each part
        (("paragraph\n" * 30 + "\n") * 50, BLANK_LINE),  # articles
        (("hard-wrapped\n" * 5 + "\n") * 200, BLANK_LINE),  # a book
        (("paragraph\n" * 100 + "\n") * 100, BLANK_LINE),  # long articles
        ("a document\n \t\n" * 300, BLANK_LINE),
    ],
)
def test_the_layout_that_most_lines_have(tmp_path, content, layout):
    found = survey([Source(write(tmp_path, content))])
    assert found.layout == layout
    assert found.lines == sum(bool(line.strip()) for line in content.split("\n"))


def test_all_files_together_decide_on_the_layout(tmp_path):
    stray = Source(write(tmp_path, "line\n\nline\n", "a.txt"))
    lines = Source(write(tmp_path, "line\n" * 500, "b.txt"))
    paragraphs = Source(write(tmp_path, "one\ntwo\n\n" * 500, "c.txt.gz"))
    assert survey([stray]).layout == BLANK_LINE
    assert survey([stray, lines]) == (LINE, 502, 1, survey([stray, lines]).sizes)
    assert survey([lines, paragraphs])[:3] == (BLANK_LINE, 1500, 499)
    assert survey([lines, paragraphs], LINE)[:3] == (LINE, 0, 0)  # nothing to find out


@pytest.mark.parametrize(("start", "end"), [("text", "\n"), ("two\nlines", "\n\n")])
def test_records_count_as_much_as_their_text(tmp_path, monkeypatch, start, end):
    texts = [f"{start} {i}" for i in range(1000)]
    plain = write(tmp_path, "".join(text + end for text in texts), "a.txt")
    lines = write(tmp_path, json_lines(*({"id": 12345, "text": text} for text in texts)), "a.jsonl")
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    sources = [find_source(path) for path in (lines, str(tmp_path / "a.parquet"), plain)]
    sizes = survey(sources).sizes
    assert len(set(sizes.values())) == 1

    monkeypatch.setattr(documents, "_SURVEYED_BYTES", 0)  # then others are like the first
    other = find_source(write(tmp_path, json_lines(*({"id": 12345, "text": text} for text in texts[:500])), "b.jsonl"))
    estimate = survey([sources[0], other]).sizes[other.path]
    assert estimate == pytest.approx(sizes[sources[0].path] / 2, rel=0.01)
    assert survey([sources[2], other]).sizes[other.path] == os.path.getsize(other.path)  # no records to compare with


# === Which documents ===


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"one\ntwo\n\n\nthree\n", ["one\ntwo", "three"]),
        (b"one\r\ntwo\r\n\r\nthree", ["one\ntwo", "three"]),
        (b"one\ntwo\n \t \r\nthree\n", ["one\ntwo", "three"]),
        (b"one\ntwo\nthree\n", ["one", "two", "three"]),
        (b"\xef\xbb\xbf one \n", ["one"]),
        ("é\n".encode(), ["é"]),
        ("é\nb\n".encode("utf-16"), ["é", "b"]),
    ],
)
def test_documents_of_text(tmp_path, name, content, found):
    assert read(write(tmp_path, content, name)) == found


def test_layout_can_be_said(tmp_path):
    assert read(write(tmp_path, "one\ntwo\n\nthree\n"), LINE) == ["one", "two", "three"]
    assert read(write(tmp_path, "one\ntwo\n"), BLANK_LINE) == ["one\ntwo"]


def test_invalid_utf8_can_be_replaced(tmp_path):
    path = write(tmp_path, b"a line of 18 bytes\nab\xe9cd\n")
    with pytest.raises(UserError, match=r"a\.txt: .*\b21\b.*errors=replace"):
        read(path)
    assert read(path, errors="replace")[1] == "ab\ufffdcd"


# Nothing is cut from these, and then from those with single spaces.
ANY_SPACES = st.tuples(st.lists(st.text("aé \n\r\t\u3000b", max_size=60), max_size=8), st.just(100))
LINES = st.lists(st.lists(st.text("aé", min_size=1, max_size=30)).map(" ".join), max_size=5).map("\n".join)
CUT = st.tuples(st.lists(LINES, max_size=8), st.integers(2, 100))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(texts_and_longest=ANY_SPACES | CUT, block=st.integers(16, 40))
def test_a_document_is_the_same_in_every_format(tmp_path, texts_and_longest, block):
    """Its blank lines would separate documents in a text file; otherwise it may hold anything."""
    texts, longest = texts_and_longest
    texts = [text for text in texts if text.strip()] + ["end"]
    plain = "\n\n".join("\n".join(line for line in text.split("\n") if line.strip()) for text in texts)
    (tmp_path / "a.jsonl").write_text(json_lines(*({"id": i, "text": text} for i, text in enumerate(texts))))
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts], indent=1))
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_bytes(b"\n" + plain.encode())  # without a newline, \r would end lines

    def read_all(name):
        source = find_source(str(tmp_path / name))
        return list(read_documents(source, BLANK_LINE, longest=longest))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "_BLOCK_BYTES", block)
        expected = read_all("a.txt")
        assert read_all("a.jsonl") == read_all("a.json") == read_all("a.parquet") == expected
    for document in expected:
        assert document == "\n".join(line.strip() for line in document.split("\n") if line.strip())


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.bz2", "a.parquet", "a.arrow", "dataset"])
def test_every_kind_of_records_is_read(tmp_path, name):
    texts = ["one\n\ntwo", None, "  ", "three"]
    path = tmp_path / name
    rows = [{"text": text, "more": {"id": 1}} for text in texts]
    table = pa.table({"text": texts, "id": [1, 2, 3, 4]})
    if name == "dataset":
        write_dataset(path, texts)
    elif name == "a.parquet":
        parquet.write_table(table, path)
    elif name == "a.arrow":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    else:
        content = json.dumps(rows) if name == "a.json" else json_lines(*rows)
        path.write_bytes(bz2.compress(content.encode()) if name.endswith("bz2") else content.encode())
    assert find_files(str(path), "input") == [str(path)]
    assert read(str(path)) == ["one\ntwo", "", "", "three"]


def test_invalid_strings_in_parquet_are_refused(tmp_path):
    strings = pa.array([b"fine", b"ab\xff"]).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"text": strings}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet.*UTF-8.*'text'"):
        read(str(tmp_path / "a.parquet"))


def test_halves_of_characters_in_json_are_replaced(tmp_path):
    assert read(write(tmp_path, '{"text": "a \\ud800 b"}\n', "a.jsonl")) == ["a ? b"]


def test_an_endless_line_is_cut(tmp_path, monkeypatch):
    path = write(tmp_path, b"word " * 20 + b"\nend\n" + b"x" * 25)
    for block in (16, 1000):  # the line's end comes in a later block, or in the same one
        monkeypatch.setattr(streams, "_BLOCK_BYTES", block)
        assert read(path, LINE, longest=10) == [*["word word"] * 10, "end", "x" * 10, "x" * 10, "x" * 5]


@pytest.mark.parametrize("string", ["ACGT" * 5000, "aB3/+" * 4000, "f(x){return(x)};" * 900, "é" * 20_000])
def test_long_strings_without_a_space_are_left_out_and_counted(tmp_path, string):
    counts = collections.Counter()
    path = write(tmp_path, f"the river {string} rises\n{string}\n{'a' * 1000} stays\n")
    found = read(path, LINE, counts=counts)
    assert [" ".join(document.split()) for document in found] == ["the river rises", "", f"{'a' * 1000} stays"]
    assert counts[documents.LONG_STRINGS] == 2


@pytest.mark.parametrize("start", [0, 1, 250, 498, 499, 500, 501, 999, 1000])
@pytest.mark.parametrize(("length", "is_long"), [(1000, False), (1001, True)])
def test_a_long_string_is_found_wherever_it_begins(tmp_path, start, length, is_long):
    counts = collections.Counter()
    read(write(tmp_path, "a " * (start // 2) + " " * (start % 2) + "x" * length + " end"), LINE, counts=counts)
    assert counts[documents.LONG_STRINGS] == is_long


@pytest.mark.parametrize("text", ["河" * 3000, "カタカナ漢字。" * 500, "one, two. " * 500])
def test_languages_without_spaces_are_kept(tmp_path, text):
    assert read(write(tmp_path, text), LINE) == [text.strip()]


def test_twenty_megabytes_without_a_space_take_linear_time(tmp_path):
    path = write(tmp_path, b"ACGT" * 5_000_000 + b"\nend\n")
    counts = collections.Counter()
    assert [document for document in read(path, counts=counts) if document] == ["end"]
    assert counts[documents.LONG_STRINGS] >= 1
