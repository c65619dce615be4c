"""`prepare`: where it writes and what it refuses; the same by more processes or a Beam pipeline; reading a corpus."""

import collections
import gzip
import json

import pytest
import tensorflow as tf

from shatter_tf import prepare
from shatter_tf.data.corpus import build, local
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


def test_an_empty_directory_is_filled_and_stays_the_same_one(corpus, tmp_path, monkeypatch):
    """A mount point, or the directory that a shell is in, could not be replaced by another."""
    new = corpus("new")
    for name in ("plain", "target", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    before = (tmp_path / "plain").stat().st_ino
    assert corpus("plain") == corpus("link") == new
    assert (tmp_path / "plain").stat().st_ino == before
    monkeypatch.chdir(tmp_path / "here")
    assert corpus("here", "--output_dir=.") == new


def test_output_directories_are_refused_at_once(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "train_vocabulary", lambda *args: pytest.fail("too late"))
    (tmp_path / "file").write_text("text")
    (tmp_path / "killed/.incomplete-7").mkdir(parents=True)
    for name, why in (
        ("file", "a file"),
        ("file/in", "cannot be made"),
        ("text", "not empty"),
        ("killed", "not empty.* \\.incomplete-7 "),
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
    with pytest.raises(UserError, match=f"^--input={tmp_path}/text/.*: 244 .*training.* 0 .*--validation_input"):
        corpus("here", f"--validation_input={tmp_path}/dev")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(corpus, monkeypatch):
    monkeypatch.setattr(local, "_WORKER_BYTES", 1)
    one = corpus("one")
    monkeypatch.setattr(local, "encode_documents", None)  # only here: workers import it anew
    assert corpus("two", "--num_workers=2") == one


@pytest.mark.parametrize(
    ("held_out", "fraction", "validation_shards"), [(False, 0.1, 1), (False, 0.5, 2), (True, 0, 1)]
)
def test_a_beam_pipeline_writes_the_same_bytes(corpus, tmp_path, held_out, fraction, validation_shards):
    flags = [f"--validation_fraction={fraction}"]
    if held_out:
        (tmp_path / "dev.text").write_text("the old mat\n\na red dog\n\nthe old mat\n")
        flags = [f"--validation_input={tmp_path}/dev.text"]
    here, there = corpus("here", *flags), corpus("there", *flags, "--runner=beam")
    assert len([name for name in here if name.startswith("train-")]) > 2
    assert len([name for name in here if name.startswith("validation-")]) == validation_shards
    assert here == there


def test_what_stops_a_pipeline_is_one_line_and_leaves_nothing(corpus, tmp_path):
    (tmp_path / "text/3.txt").write_bytes(b"the cat\n\n\xff\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=r"^--runner=beam: .*/3.txt: .*UTF-8.* 9\b") as e:
        corpus("there", "--runner=beam")
    assert "\n" not in str(e.value)
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
