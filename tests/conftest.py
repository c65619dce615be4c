"""Settings of every test: quiet libraries, and no policy or seed left over from the test before."""

import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import filelock
import pytest
import tensorflow as tf
import tf_keras
from exported import EXPORTED, make_exported
from tensorflow.python.framework import ops

from shatter_tf import errors
from shatter_tf.console import quieten_logging
from shatter_tf.data.vocabulary import SPECIAL_TOKENS
from shatter_tf.training.preemption import StopRequest

# A plugin, which only its own test may find, and what made old runs.
collect_ignore = ["toy", "data"]

gc.freeze()  # half a million library objects, which every collection would scan
quieten_logging()
StopRequest.listen = lambda self: None  # signals stop test processes, and those they start, as usual
# Replicas are tested on logical devices of a single CPU.
(_cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 4)

WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "a",
    "mat",
    "tree",
    "big",
    "small",
    "red",
    "old",
    "and",
    "then",
    "it",
    "was",
    "very",
    "fast",
]


# Signals are blocked before TensorFlow starts threads, as `train` does.
_CHANGED = """
import os, signal, time
from shatter_tf import console, train
console.configure_libraries()
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
import tensorflow as tf
from shatter_tf.training import loop, session, trainer
{change}
console.run(train.main)
"""
_SIGNALS_ITSELF = """
report = loop.Loop._report
def report_and_signal(self, *args):
    loss = report(self, *args)
    if self.session.step == {step}:
        os.kill(os.getpid(), {number:d})
    return loss
loop.Loop._report = report_and_signal
"""


def train_command(change: str = "") -> list[str]:
    """Returns `python -m shatter_tf.train`, or an equivalent that runs the code `change` in its process first."""
    return [sys.executable, *(["-c", _CHANGED.format(change=change)] if change else ["-m", "shatter_tf.train"])]


def signals_itself(step: int, number: int) -> str:
    """Returns a change with which a run sends itself a signal after a step is reported and before it is saved.

    A signal from outside may come too late: a loaded machine takes many steps before it lets the sender run.
    """
    return _SIGNALS_ITSELF.format(step=step, number=number)


@pytest.fixture(autouse=True)
def _fresh_state(monkeypatch):
    monkeypatch.setattr(errors, "_prefix", "")  # commands set it
    # TensorFlow takes the collective operations of a test's strategy for those of an earlier test's.
    tf.distribute.MirroredStrategy._collective_key_base += 100_000
    tf_keras.utils.set_random_seed(0)
    yield
    tf_keras.mixed_precision.set_global_policy("float32")
    tf_keras.backend.clear_session()
    # TensorFlow registers the gradients of tf.custom_gradient forever, and each holds the graph it was traced in.
    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]


@pytest.fixture
def vocabulary() -> list[str]:
    """A vocabulary whose special tokens do not come first, as in BERT's own."""
    return ["[PAD]", "[unused0]", *SPECIAL_TOKENS[1:], *WORDS, "##s", "."]


@pytest.fixture
def vocab_file(tmp_path, vocabulary) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary) + "\n")
    return str(path)


@pytest.fixture
def write_corpus(tmp_path, vocabulary):
    """Returns a function that writes a corpus of given documents (lists of ids) as `prepare` would."""
    from shatter_tf.data import vocabulary as vocabularies
    from shatter_tf.data.corpus import shards

    def write(documents: list[list[list[int]]], validation: list[list[int]] = ((2, 10, 5, 4),)) -> str:
        directory = tmp_path / "corpus"
        directory.mkdir(exist_ok=True)

        def write_shard(name, ids_of_documents):
            with tf.io.TFRecordWriter(str(directory / name)) as writer:
                for ids in ids_of_documents:
                    example = tf.train.Example()
                    example.features.feature["ids"].int64_list.value.extend(ids)
                    writer.write(example.SerializeToString())
            return shards.Shard(name, len(ids_of_documents), sum(len(ids) for ids in ids_of_documents))

        (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        shards.Corpus(
            vocabulary_size=len(vocabulary),
            vocabulary_sha256=vocabularies.vocabulary_hash(vocabulary),
            lower_case=True,
            unicode_normalization="NFC",
            seq_length=16,
            unknown_tokens=0,
            unigram_entropy=3.0,
            sources=[],
            train=[write_shard(f"train-{i}.tfrecord", shard) for i, shard in enumerate(documents)],
            validation=[write_shard("validation-0.tfrecord", list(validation))],
        ).write(str(directory))
        return str(directory)

    return write


@pytest.fixture
def random_documents():
    """Returns a function giving random documents of a number of shards, from the vocabulary's ordinary ids."""
    import numpy as np

    def documents(shards: int, per_shard: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        return [
            [[3, *rng.integers(6, 26, rng.integers(3, 40)).tolist(), 4] for _ in range(per_shard)]
            for _ in range(shards)
        ]

    return documents


@pytest.fixture
def pretrain(write_corpus, random_documents):
    """Returns a function that resolves a tiny run of shatter/pretrain, with more overrides."""
    path = write_corpus(random_documents(shards=2, per_shard=30))

    from tiny import PLAIN, tiny_override

    from shatter_tf.training import settings

    def make(more=""):
        data = "task.train_data.global_batch_size=4,task.train_data.mask_rate=0.15"
        override = ",".join(filter(None, [PLAIN, tiny_override(), data, more]))
        return settings.resolve("shatter/pretrain", data_dir=path, params_override=override)

    return make


@pytest.fixture
def fine_tune(tmp_path, vocab_file):
    """Returns a function that resolves a tiny run of an experiment on rows of TSV files, without a checkpoint."""
    from tiny import PLAIN, tiny_override

    from shatter_tf.training import settings

    def make(experiment, train, dev=None, more=""):
        for split, rows in (("train", train), ("dev", dev or train)):
            (tmp_path / f"{split}.tsv").write_text("\n".join(rows))
        override = [PLAIN, tiny_override(), "task.train_data.global_batch_size=4,task.train_data.seq_length=16", more]
        override.append(f"task.train_data.vocab_file={vocab_file}")
        return settings.resolve(experiment, data_dir=str(tmp_path), params_override=",".join(filter(None, override)))

    return make


@pytest.fixture
def classify(fine_tune):
    """Returns a function that resolves a tiny run of shatter/classify on texts or pairs, without a checkpoint."""

    def make(columns=1, labels=3, more=""):
        rows = ["\t".join(["the cat sat"] * columns + [f"label{i % labels}"]) for i in range(12)]
        return fine_tune("shatter/classify", rows, more=more)

    return make


@pytest.fixture
def regress(fine_tune):
    """Returns a function that resolves a tiny run of shatter/regress, without a checkpoint."""

    def make(more=""):
        return fine_tune("shatter/regress", [f"the cat sat\t{i / 2 - 3}" for i in range(12)], more=more)

    return make


@pytest.fixture
def tag(fine_tune):
    """Returns a function that resolves a tiny run of shatter/tag, without a checkpoint."""

    def make(more=""):
        return fine_tune("shatter/tag", ["the\tD", "cats\tN", "sat\tV", ""] * 12, more=more)

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory, worker_id):
    """A run of every kind, made and exported by the commands: directories by their names.

    `NAME` is the run's and `NAME_export` the export's, for every name in EXPORTED. Test processes share them.
    """
    directory = tmp_path_factory.getbasetemp()
    base = (directory if worker_id == "master" else directory.parent) / "exported"
    with filelock.FileLock(f"{base}.lock"):
        if not base.exists():
            make_exported(base)
    runs = {name: base / "runs" / name for name in EXPORTED}
    return runs | {f"{name}_export": base / "exports" / name for name in EXPORTED}
