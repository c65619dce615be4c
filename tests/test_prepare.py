"""`prepare`: where it writes, what it leaves out and refuses; the same by processes or a pipeline; reading a corpus."""

import collections
import gzip
import json

import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from shatter_tf import prepare
from shatter_tf.data.corpus import build, job, local
from shatter_tf.data.corpus.shards import Corpus
from shatter_tf.errors import UserError


@pytest.fixture
def corpus(tmp_path, vocab_file, monkeypatch):
    """Returns a function that prepares three files, one of them gzipped, into a directory of a given name."""
    monkeypatch.setattr(build, "_SHARD_BYTES", 1500)
    monkeypatch.setattr(local, "_CHUNK_CHARACTERS", 500)
    directory = tmp_path / "text"
    directory.mkdir()
    texts = [[f"the {word} cat sat{i}\nunder a tree" for i in range(80)] for word in ("big", "small", "old")]
    for i, documents in enumerate(texts[:2]):
        (directory / f"{i}.txt").write_text("\n\n".join([*documents, documents[0], "..."]))
    with gzip.open(directory / "2.txt.gz", "wt") as f:
        f.write("\n\n".join(texts[2]))

    def run(name, *flags):
        flags = [f"--output_dir={tmp_path / name}", f"--vocab_file={vocab_file}", "--num_workers=1", *flags]
        prepare.main([f"--input={directory}/*", *flags])
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    return run


def shards(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".tfrecord")}


def number_of_documents(files: dict[str, bytes]) -> int:
    about = json.loads(files["corpus.json"])
    return sum(part["documents"] for part in about["train"] + about["validation"])


def test_an_empty_directory_is_filled_and_stays_the_same_one(corpus, tmp_path, monkeypatch):
    """A mount point, or the directory that a shell is in, could not be replaced by another."""
    new = corpus("new")
    for name in ("plain", "target", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    before = (tmp_path / "plain").stat().st_ino
    assert corpus("plain") == corpus("link") == new
    assert (tmp_path / "plain").stat().st_ino == before
    (tmp_path / "disk/lost+found").mkdir(parents=True)
    (tmp_path / "disk/.gitkeep").touch()
    prepare.main([f"--input={tmp_path}/text/*", f"--output_dir={tmp_path}/disk", "--vocab_size=100", "--num_workers=1"])
    assert {".gitkeep", "lost+found", "corpus.json"} < {path.name for path in (tmp_path / "disk").iterdir()}
    monkeypatch.chdir(tmp_path / "here")
    assert corpus("here", "--output_dir=.") == new


def test_output_directories_are_refused_at_once(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "train_vocabulary", lambda *args: pytest.fail("too late"))
    (tmp_path / "file").write_text("text")
    (tmp_path / "killed/.incomplete-7").mkdir(parents=True)
    for name, about in (("done", {"train": [{"documents": 2}] * 2, "validation": [{"documents": 1}]}), ("broken", [])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "corpus.json").write_text(json.dumps(about))
    for name, why in (
        ("file", "a file"),
        ("file/in", "cannot be made"),
        ("text", "not empty"),
        ("killed", "not empty.* \\.incomplete-7 "),
        ("done", r"finished corpus of 5 documents"),
        ("broken", r"finished corpus;"),
    ):
        with pytest.raises(UserError, match=f"^--output_dir={tmp_path}/{name}: .*{why}"):
            prepare.main([f"--input={tmp_path}/text/*", f"--output_dir={tmp_path}/{name}"])


def test_what_a_disk_refuses_is_one_line_and_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "no space left on device")

    monkeypatch.setattr(local, "write", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=f"^--output_dir={tmp_path}/new: .*no space left on device"):
        corpus("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_there_are_no_more_shards_than_files_can_be_open(corpus, monkeypatch):
    monkeypatch.setattr(build, "_MOST_SHARDS", 5)
    monkeypatch.setattr(build, "_SHARD_BYTES", 10)
    assert {name for name in corpus("here") if name.startswith("train-")} == {
        f"train-{i:05d}-of-00005.tfrecord" for i in range(5)
    }


def test_text_to_validate_on_must_be_other_text_and_not_empty(corpus, tmp_path):
    with pytest.raises(UserError, match="^--validation_input=.*/0.txt .*--input"):
        corpus("here", f"--validation_input={tmp_path}/text/../text/0.txt")
    (tmp_path / "dev").write_text(" \n")
    with pytest.raises(UserError, match=f"^--input={tmp_path}/text/.*: 241 .*training.* 0 .*--validation_input"):
        corpus("here", f"--validation_input={tmp_path}/dev")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(corpus, monkeypatch):
    monkeypatch.setattr(local, "_WORKER_BYTES", 1)
    one = corpus("one")
    monkeypatch.setattr(local, "encode_documents", None)  # only here: workers import it anew
    assert corpus("two", "--num_workers=2") == one


@pytest.mark.parametrize(
    ("flags", "documents", "validation_shards"),
    [
        (["--validation_fraction=0.1"], 241, 1),
        (["--validation_fraction=0.5", "--min_characters=4"], 240, 2),
        (["--validation_fraction=0.1", "--keep_duplicates"], 244, 1),
        (["--validation_input=DEV"], 243, 1),
    ],
)
def test_a_beam_pipeline_writes_the_same_bytes(corpus, tmp_path, capsys, flags, documents, validation_shards):
    dev = [None, "the old mat", "a red dog", "the old mat", "the big cat sat0\nunder a tree", "\u200b", "x" * 2000]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in dev))
    flags = [flag.replace("DEV", f"{tmp_path}/dev.jsonl") for flag in flags]
    here = corpus("here", *flags)
    counts = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    there = corpus("there", *flags, "--runner=beam")
    assert counts == [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len([name for name in here if name.startswith("train-")]) > 2
    assert len([name for name in here if name.startswith("validation-")]) == validation_shards
    assert here == there
    about = json.loads(here["corpus.json"])
    assert sum(source["documents"] for source in about["sources"]) == documents


def test_what_is_left_out_is_counted(corpus, tmp_path, capsys):
    texts = [
        None,
        "",
        "the cat",
        "the cat",
        "a dog",
        f"the {'ACGT' * 1000} mat",
        "a" * 1500,
        *map(str, range(100, 160)),
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = corpus("here", f"--input={tmp_path}/a.jsonl", "--min_characters=6", "--validation_fraction=0.5")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert "files: 1, documents read: 67; left out: empty 3, short 61, duplicates 1" in line
    assert line.endswith(" 2")
    assert json.loads(run["corpus.json"])["sources"] == [{"path": "a.jsonl", "documents": 2}]


def test_of_equal_documents_the_one_to_validate_on_stays(corpus, tmp_path):
    (tmp_path / "dev.txt").write_text("the old mat\n\nthe big cat sat0\nunder a tree\n")
    about = json.loads(corpus("here", f"--validation_input={tmp_path}/dev.txt", "--layout=blank_line")["corpus.json"])
    found = {source["path"]: source["documents"] for source in about["sources"]}
    assert found == {"0.txt": 80, "1.txt": 80, "2.txt.gz": 80, "dev.txt": 2}  # 81 of 0.txt, without the one in dev.txt
    assert [source["path"] for source in about["sources"]][-1] == "dev.txt"


def test_the_same_documents_give_the_same_shards_in_every_format(corpus, tmp_path):
    texts = [f"the big cat sat{i}\nunder a tree{i % 7}" for i in range(300)]
    folders = {name: tmp_path / "formats" / name for name in ("txt", "jsonl", "parquet", "arrow")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    (folders["txt"] / "a").write_text("\n\n".join(texts) + "\n\n")
    rows = [json.dumps({"id": i, "text": text.replace("\n", " \n\n ")}) for i, text in enumerate(texts)]
    (folders["jsonl"] / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    table = pa.table({"text": texts, "id": range(len(texts))})
    parquet.write_table(table, folders["parquet"] / "a.parquet", row_group_size=7)
    with pa.ipc.new_stream(str(folders["arrow"] / "a.arrow"), table.schema) as stream:
        stream.write_table(table)

    found = {name: corpus(name, f"--input={folder}", "--validation_fraction=0.1") for name, folder in folders.items()}
    for name, folder in folders.items():
        assert len(shards(found[name])) > 3
        assert shards(found[name]) == shards(found["txt"])
        flags = [f"--input={folder}", f"--output_dir={tmp_path}/trained/{name}", "--vocab_size=120", "--num_workers=1"]
        prepare.main(flags)
    assert len({(tmp_path / "trained" / name / "vocab.txt").read_text() for name in folders}) == 1


def test_how_the_input_is_understood_is_said(corpus, tmp_path, capsys):
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "lines.txt").write_text("".join(f"the cat {i}\n" for i in range(200)) + "\n" + "the dog\n" * 3)
    (folder / "b.txt").write_text("".join(json.dumps({"id": 1, "content": f"a mat {i}"}) + "\n" for i in range(50)))
    (folder / "c.html").write_text("<p>the tree</p>\n")
    corpus("here", f"--input={folder}")
    out, err = capsys.readouterr()
    assert "text files: 2, one document a line; lines of text: 204, blank lines between them: 1" in out
    assert "files of records: 1" in out
    assert "'content'" in out
    assert f"{folder}/b.txt" in out
    assert f"warning: read as plain text, with all that is not text in it: {folder}/c.html" in err


def test_a_vocabulary_is_of_what_is_trained_on(corpus, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(build, "train_vocabulary", lambda texts, *args: trained.extend(texts) or [])
    (tmp_path / "a.txt").write_text(f"the cat\n{'ACGT' * 900} sat\nthe cat\nit\n")
    (tmp_path / "dev.txt").write_text("a dog\n")
    flags = [f"--input={tmp_path}/a.txt", f"--validation_input={tmp_path}/dev.txt", "--min_characters=3"]
    with pytest.raises(UserError, match="vocabulary"):
        prepare.main([*flags, f"--output_dir={tmp_path}/here"])
    assert trained == ["the cat", "sat"]


# === Few documents ===


def test_of_few_documents_more_are_held_out(corpus, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("".join(f"a mat {i}\n" for i in range(30)))
    about = json.loads(corpus("here", f"--input={tmp_path}/few.txt")["corpus.json"])
    assert sum(shard["documents"] for shard in about["train"] + about["validation"]) == 30
    assert about["train"]
    assert about["validation"]
    assert "33.33%" in capsys.readouterr().out
    with pytest.raises(UserError, match="0 for validation.*--validation_fraction.*--validation_input"):
        corpus("there", f"--input={tmp_path}/few.txt", "--validation_fraction=0.0001")


def test_a_long_document_is_cut_if_there_is_no_other(corpus, tmp_path, capsys):
    (tmp_path / "book.txt").write_text(" ".join(f"the cat {i} sat on the mat." for i in range(2000)))
    here = corpus("here", f"--input={tmp_path}/book.txt")
    assert number_of_documents(here) > 100
    assert json.loads(here["corpus.json"])["validation"]
    assert "500 characters" in capsys.readouterr().out
    assert corpus("there", f"--input={tmp_path}/book.txt", "--runner=beam") == here

    (tmp_path / "short.txt").write_text("the cat sat")
    for flags in ([], ["--validation_fraction=0.5"]):
        with pytest.raises(UserError, match="--validation_input") as error:
            corpus("no", f"--input={tmp_path}/short.txt", *flags)
        assert "--validation_fraction" not in str(error.value)


@given(st.lists(st.binary(min_size=8, max_size=8) | st.sampled_from([bytes(8), b"\0" * 7 + b"\1"]), max_size=30))
def test_what_was_seen_is_known(keys):
    # Zero counts as one: 2^-64 of all documents.
    number = [int.from_bytes(key, "big") or 1 for key in keys]
    seen = job._Seen()
    assert [seen.add(key) for key in keys] == [n not in number[:i] for i, n in enumerate(number)]


def test_what_was_seen_is_known_when_there_is_much_of_it():
    seen = job._Seen()
    for _ in range(2):
        new = [seen.add((i * 2**31).to_bytes(8, "big")) for i in range(5000)]
    assert not any(new)
    assert seen.add(b"another!")


def test_what_stops_a_pipeline_is_one_line_and_leaves_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_CHECKED_CHARACTERS", 1)  # else the vocabulary is tried on the bad file before
    (tmp_path / "text/3.txt").write_bytes(b"the cat\n\n\xff\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=r"^--runner=beam: .*/3.txt: .*UTF-8.* 9\b") as e:
        corpus("there", "--runner=beam", "--layout=blank_line")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"^[^ ]*/3.txt: .*UTF-8.* 9\b"):  # seen before it starts
        corpus("there", "--runner=beam")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(UserError, match="^--beam_options.*--runner=beam"):
        corpus("there", "--beam_options=--runner=FlinkRunner")


def test_a_corpus_is_read_with_one_look_at_each_file(corpus, tmp_path, vocabulary, monkeypatch):
    corpus("here")
    opened = collections.Counter()

    class CountingGFile(tf.io.gfile.GFile):
        def __init__(self, name, *args, **kwargs):
            opened[name.removeprefix(f"{tmp_path}/here/")] += 1
            super().__init__(name, *args, **kwargs)

    monkeypatch.setattr(tf.io.gfile, "GFile", CountingGFile)
    found = Corpus.read(str(tmp_path / "here"))
    assert opened == {"corpus.json": 1, "vocab.txt": 1}
    assert found.vocabulary == vocabulary
    assert "vocabulary" not in json.loads((tmp_path / "here/corpus.json").read_text())
