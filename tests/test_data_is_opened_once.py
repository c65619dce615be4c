"""The files of a run's data are opened once, from settings to the end of training."""

import collections
import json

import pytest
import tensorflow as tf
from tiny import tiny_override

from shatter_tf.training import run_dir, settings
from shatter_tf.training.session import Session

STEPS = "runtime.enable_xla=false,trainer.train_steps=2,task.train_data.global_batch_size=4"
STEPS += ",task.validation_data.global_batch_size=4"
TAGGED = "the\tD\ncat\tN\n\nit\tP\nsat\tV\n\n" * 4
PARAGRAPH = dict(context="the cat sat", qas=[])
for i in range(4):
    PARAGRAPH["qas"].append(dict(id=str(i), question="the cat", answers=[dict(text="sat", answer_start=8)]))


@pytest.fixture
def opened(monkeypatch):
    """How often each path was opened."""
    counts = collections.Counter()
    open_file = tf.io.gfile.GFile

    class Counted(open_file):
        def __init__(self, name, mode="r"):
            if not set(mode) & set("wa"):
                counts[str(name)] += 1
            super().__init__(name, mode)

    monkeypatch.setattr(tf.io.gfile, "GFile", Counted)
    return counts


def train(experiment, directory, data_dir, more=""):
    override = ",".join(filter(None, [tiny_override(), STEPS, more]))
    run = settings.resolve(experiment, data_dir=str(data_dir), params_override=override, model_dir=str(directory))
    session = Session(run, str(directory))
    session.train(evaluate=True)
    return run


def test_a_corpus(opened, tmp_path, write_corpus, random_documents):
    corpus = write_corpus(random_documents(shards=2, per_shard=20))
    train("shatter/pretrain", tmp_path / "run", corpus)
    assert (opened[f"{corpus}/corpus.json"], opened[f"{corpus}/vocab.txt"]) == (1, 1)


@pytest.mark.parametrize(
    ("experiment", "extension", "content", "more"),
    [
        ("classify", "tsv", "the cat\tyes\nthe dog\tno\n" * 4, "task.train_data.seq_length=16"),
        ("regress", "tsv", "the cat\t1\nthe dog\t2\n" * 4, "task.train_data.seq_length=16"),
        ("tag", "tsv", TAGGED, "task.train_data.seq_length=16"),
        (
            "answer",
            "json",
            json.dumps(dict(data=[dict(paragraphs=[PARAGRAPH])])),
            "task.train_data.seq_length=16,task.train_data.max_query_length=4,task.max_answer_length=4",
        ),
    ],
)
def test_files_for_fine_tuning(opened, tmp_path, vocab_file, experiment, extension, content, more):
    (tmp_path / "data").mkdir()
    for split in ("train", "dev"):
        (tmp_path / "data" / f"{split}.{extension}").write_text(content)
    train(
        f"shatter/{experiment}", tmp_path / "run", tmp_path / "data", f"{more},task.train_data.vocab_file={vocab_file}"
    )
    names = [*(str(tmp_path / "data" / f"{split}.{extension}") for split in ("train", "dev")), vocab_file]
    assert [opened[name] for name in names] == [1, 1, 1]


def test_a_run_to_start_from(opened, tmp_path, write_corpus, random_documents):
    corpus = write_corpus(random_documents(shards=2, per_shard=20))
    pretrained = train("shatter/pretrain", tmp_path / "pretrained", corpus)
    run_dir.write(str(tmp_path / "pretrained"), pretrained)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("the cat\tyes\nthe dog\tno\n" * 4)
    opened.clear()
    run = settings.resolve(
        "shatter/classify",
        data_dir=str(tmp_path),
        init_checkpoint=str(tmp_path / "pretrained"),
        params_override=f"{STEPS},task.train_data.seq_length=16",
    )
    Session(run, str(tmp_path / "run")).train(evaluate=False)
    assert opened[str(tmp_path / "pretrained/vocab.txt")] == 1
