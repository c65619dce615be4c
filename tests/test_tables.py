"""Files of any format: which columns are taken for what, and that nothing is taken for something else in silence."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from shatter_tf.data.labelled import read_rows
from shatter_tf.errors import UserError

ROWS = [("a lovely film", "pos"), ("what a bore", "neg"), ("the plot sings", "pos"), ("dull and slow", "neg")]


@pytest.fixture
def read(tmp_path):
    def read(name, content, **choices):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        rows, columns = read_rows(str(path), **choices)
        return [(*row.texts, row.label) for row in rows], columns.note

    return read


def table(header, row, rows=ROWS):
    return (
        "\n".join([header, *(row.format(text=text, label=label, i=i) for i, (text, label) in enumerate(rows))]) + "\n"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (table("review,sentiment", "{text},{label}"), ["line 1 is a header", "'review'", "'sentiment'"]),
        (table("label,text", "{label},{text}"), ["text: 'text'"]),
        (table(",text,label", "{i},{text},{label}"), ["left out: ''"]),
        (table("id,text,label", "{i},{text},{label}"), ["left out: 'id'"]),
        (table("text,label,source", "{text},{label},web"), ["left out: 'source'"]),
        (table("Label,Bericht", "{label},{text}"), ["text: 'Bericht'"]),
        (table("text;label", '"{text}";{label}'), ["semicolons between"]),
        (table("text|label", "{text}|{label}"), ["bars between"]),
        (table("sep=;\ntext;label", "{text};{label}"), ["line 2 is a header"]),
        (table("text,label", "'{text}','{label}'"), ["single quotes"]),
        (table("text,label,,", "{text},{label},,"), []),
        (table("\ufefftext,label", "{text},{label}"), []),
        (table("text,label", "{text},{label}") + ",\n\n", []),
        (table("text,label", "{text},{label}").replace("\n", "\r"), []),
        (table("text,label", "{text},{label}").replace("\n", "\r\n"), []),
    ],
)
def test_csv_files_that_people_bring(read, content, said):
    for encode in (str.encode, gzip_text, lambda text: text.lstrip("\ufeff").encode("utf-16")):
        if content.startswith("text,label,,"):
            content = content.replace("text,label,,", "text,label,,more")  # two columns without a name are refused
        rows, note = read("train.csv", encode(content))
        assert rows == ROWS
        for part in said:
            assert part in note


def gzip_text(text):
    return gzip.compress(text.encode(), mtime=0)  # the same in all test processes


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, pa.Codec("zstd").compress])
def test_packed_files_whatever_their_names(read, pack):
    packed = pack(table("text,label", "{text},{label}").encode())
    packed = packed if isinstance(packed, bytes) else packed.to_pybytes()
    for name in ("train.csv", "train.csv.gz", "train.csv.zst"):
        assert read(name, packed)[0] == ROWS


def test_quotes_in_tsv(read):
    quoted = table("text\tlabel", '"she said ""{text}"""\t"{label}"')
    assert read("train.tsv", quoted)[0][0] == ('she said "a lovely film"', "pos")
    with_break = table("text\tlabel", '"{text}\nto ""me"""\t{label}')
    assert read("train.tsv", with_break)[0][1] == ('what a bore\nto "me"', "neg")
    # Quotes of a text that is not quoted, which must not swallow the rows between them.
    plain = table("text\tlabel", '"{text}\t{label}') + 'no "more"\tpos\n'
    assert read("train.tsv", plain)[0] == [(f'"{text}', label) for text, label in ROWS] + [('no "more"', "pos")]


def test_names_of_pairs(read):
    pair = table("idx\tpremise\thypothesis\tlabel", "{i}\t{text}\tI see {text}\t{label}")
    assert read("train.tsv", pair)[0][0] == ("a lovely film", "I see a lovely film", "pos")
    assert read("train.tsv", pair, text_fields=["hypothesis"])[0][0] == ("I see a lovely film", "pos")
    assert read("train.tsv", pair, text_fields=["hypothesis", "premise"])[0][0][1] == "a lovely film"
    assert read("train.tsv", pair, label_field="hypothesis", text_fields=["premise"])[0][0][-1] == "I see a lovely film"


def test_records_of_any_format(read, tmp_path):
    columns = dict(idx=range(4), sentence=[text for text, _ in ROWS], label=[label for _, label in ROWS])
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    arrow = pa.table({name: list(values) for name, values in columns.items()})
    of_parquet, of_arrow = io.BytesIO(), io.BytesIO()
    parquet.write_table(arrow, of_parquet)
    with pa.ipc.new_file(of_arrow, arrow.schema) as writer:
        writer.write(arrow)
    for name, content in (
        ("train.jsonl", lines),
        ("train.jsonl", json.dumps(records)),
        ("train.json", json.dumps(records, indent=2)),
        ("train.ndjson.gz", gzip_text(lines)),
        ("train.parquet", of_parquet.getvalue()),
        ("train.csv", of_parquet.getvalue()),
        ("train.tsv", lines),
        ("train.csv", json.dumps(records, indent=2)),
        ("train.parquet.gz", gzip.compress(of_parquet.getvalue())),
        ("train.arrow", of_arrow.getvalue()),
    ):
        rows, note = read(name, content)
        assert rows == ROWS, name
        assert "'sentence'" in note
        assert "left out: 'idx'" in note

    # As `datasets` saves it, with names for the labels.
    directory = tmp_path / "train"
    directory.mkdir()
    features = dict(info=dict(features=dict(label=dict(names=["neg", "pos"], _type="ClassLabel"))))
    numbers = arrow.set_column(2, "label", pa.array([1, 0, 1, 0]))
    numbers = numbers.replace_schema_metadata({"huggingface": json.dumps(features)})
    with pa.ipc.new_stream(str(directory / "data-00000-of-00001.arrow"), numbers.schema) as writer:
        writer.write(numbers)
    (directory / "state.json").write_text(json.dumps(dict(_data_files=[dict(filename="data-00000-of-00001.arrow")])))
    assert [(*row.texts, row.label) for row in read_rows(str(directory))[0]] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", table("Bericht,Oordeel", "{text},{label}"), r"a.csv:1: is this a header \(Bericht, Oordeel\)\?"),
        ("a.csv", table("pos,so so", "{label},{text}"), "a.csv:1: the last column.*longer"),
        ("a.csv", table("0,so so,pos", "{i},{text},{label}"), "a.csv:1: column 1 holds only numbers"),
        ("a.csv", table("well, well,pos", "{text}, well,{label}"), "a.csv:1: column 2 looks like"),
        ("a.csv", table("so so,pos,web", "{text},{label},web"), "a.csv:1: column 2 looks like labels"),
        ("a.tsv", 'bad\tpos\nwell\tneg\n"so\tpos\nso"\tneg\n', "a.tsv:3: is this quote"),
        ("a.csv", table("one; two,pos", "{text}; two,{label}"), "commas .*and semicolons"),
        ("a.csv", table("text,label,more", "{text},{label},,x"), "a.csv:2: 4 columns, but line 1 has 3"),
        ("a.csv", table("one,two,label", "{text},{text},{label}"), "which column is a text.*'one', 'two', 'label'"),
        ("a.csv", table("text,label", "{text},{label}").encode("latin-1") + b"caf\xe9,pos\n", "invalid UTF-8.*iconv"),
        ("a.csv", table("text,label", "{text},{label}").encode("utf-16-le"), "not UTF-8.*iconv -f UTF-16LE"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,x\n"d",y\n', "a.csv:3: "),
        ("a.csv", "text,label\na,x\ntext,label\nb,y\n", "a.csv:3: repeats the header of line 1"),
        ("a.csv", "text,label\na,\"['x', 'y']\"\n", "a.csv:2: .*a list in text.*label_separator"),
        ("a.csv", b"PK\x03\x04rest", "zip archive or an Office document"),
        ("a.csv", b"%PDF-1.4", "a PDF"),
        ("a.csv.gz", gzip_text("text,label\na,b\n")[:-9], "cannot be read as gzip"),
        ("a.parquet", "text,label\na,b\n", "not Parquet"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.json", '{"text": {"0": "a"}, "label": {"0": "x"}}', "a.json:1: the text .*expected a string"),
        ("a.json", '[{"text": "a", "label": "x"},\n{"text": "b" "label": "y"}]', "a.json:2: not JSON"),
    ],
)
def test_what_is_not_clear_is_refused(read, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        read(name, content)
    assert "\n" not in str(error.value)


def test_fields_that_are_not_there(read):
    content = table("review,sentiment", "{text},{label}")
    with pytest.raises(UserError, match=r"no column 'reviw' \(did you mean review\?\), as text_fields says"):
        read("a.csv", content, text_fields=["reviw"])
    with pytest.raises(UserError, match="cannot be both"):
        read("a.csv", content, label_field="review", text_fields=["review"])


WORDS = [
    "film",
    "plot",
    "a, b",
    "x;y",
    'the "best"',
    "it's",
    "naïve",
    "line\nbreak",
    "tab\there",
    "1",
    "|",
    "'",
    "日本",
]
TEXT_NAMES = ["text", "sentence", "Review", "content", "tweet"]
LABEL_NAMES = ["label", "Sentiment", "class", "category"]
EXTRA_NAMES = ["id", "", "source", "date"]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.data())
def test_random_tables_are_read_right_or_refused(tmp_path_factory, data):
    """What a writer of Python's csv module wrote is what is read, or one line says why not."""
    draw = data.draw
    number = draw(st.integers(1, 9))
    texts = [" ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))).strip() for _ in range(number)]
    labels = draw(st.lists(st.sampled_from(["pos", "neg", "so so", "1", "0", "a,b"]), min_size=number, max_size=number))
    text_name, label_name = draw(st.sampled_from(TEXT_NAMES)), draw(st.sampled_from(LABEL_NAMES))
    columns = {text_name: texts, label_name: labels}
    for name in draw(st.lists(st.sampled_from(EXTRA_NAMES), unique=True, max_size=2)):
        columns[name] = [f"{i}" if name != "source" else "web, of course" for i in range(number)]
    order = draw(st.permutations(list(columns)))
    has_header = draw(st.booleans())

    file = io.StringIO()
    writer = csv.writer(
        file,
        delimiter=draw(st.sampled_from(",;\t|")),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    if has_header:
        writer.writerow(order)
    writer.writerows(zip(*(columns[name] for name in order), strict=True))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"]))
    path = tmp_path_factory.mktemp("tables") / draw(st.sampled_from(["a.csv", "a.tsv", "a.csv.gz"]))
    path.write_bytes(file.getvalue().encode(encoding, "replace"))

    if not has_header and (sum(map(len, texts)) <= sum(map(len, labels)) or set(order) != {text_name, label_name}):
        return  # nobody could tell
    refused = []
    try:
        rows, _ = read_rows(str(path))
    except UserError as error:
        refused = [str(error)]
    if refused:
        assert "\n" not in refused[0]
        assert not (has_header and encoding in ("utf-8", "utf-8-sig", "utf-16")), refused
        return

    if encoding in ("latin-1", "cp1252"):  # without accents they are the same as UTF-8
        texts = [text.encode(encoding, "replace").decode(encoding) for text in texts]
    assert [(row.texts, row.label) for row in rows] == [
        ((text,), label) for text, label in zip(texts, labels, strict=True)
    ]
