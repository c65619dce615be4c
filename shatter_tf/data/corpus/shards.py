"""Prepared corpora: sharded TFRecords of token ids, with a corpus.json that says what is in them.

One record is one document: a tf.train.Example whose `ids` are [CLS] tokens… [SEP]. Which split and which shard it goes
to depends on its text only, so every shard is a random sample of the corpus, and duplicates stay together.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import typing

import tensorflow as tf

from shatter_tf.data.vocabulary import NORMALIZERS, is_of_hash, read_vocabulary
from shatter_tf.errors import UserError

TRAIN, VALIDATION = "train", "validation"

CORPUS_FILE, VOCABULARY_FILE = "corpus.json", "vocab.txt"


@dataclasses.dataclass
class Shard:
    """One TFRecord file: its name, documents, tokens (special tokens included) and size in bytes, 0 if unknown."""

    file: str
    documents: int = 0
    tokens: int = 0
    bytes: int = 0


@dataclasses.dataclass
class Corpus:
    """What corpus.json holds: enough to check a corpus, and to find any row of it without reading it.

    `unigram_entropy` is the entropy of its ordinary wordpieces, in nats: the masked-LM loss of a model that knows how
    frequent each is and nothing else. `vocabulary` is what `read` found in vocab.txt.
    """

    vocabulary_size: int
    vocabulary_sha256: str
    lower_case: bool
    unicode_normalization: str
    seq_length: int
    unknown_tokens: int
    unigram_entropy: float
    sources: list[dict]
    train: list[Shard]
    validation: list[Shard]
    normalizer: str = ""  # see `Tokenizer`
    vocabulary: list[str] = dataclasses.field(default_factory=list, init=False, repr=False)  # not in corpus.json

    def write(self, directory: str) -> None:
        """Writes corpus.json beside the shards, which are there already: it records their sizes."""
        for shard in self.train + self.validation:
            shard.bytes = tf.io.gfile.stat(os.path.join(directory, shard.file)).length

        description = dataclasses.asdict(self)
        del description["vocabulary"]
        if not self.normalizer:
            del description["normalizer"]
        with tf.io.gfile.GFile(os.path.join(directory, CORPUS_FILE), "w") as f:
            json.dump(description, f, indent=1, ensure_ascii=False)

    @classmethod
    def read(cls, directory: str) -> "Corpus":
        """Returns the corpus in `directory`, checked against its vocabulary and files; raises UserError."""
        path = os.path.join(directory, CORPUS_FILE)
        if not tf.io.gfile.exists(path):
            raise UserError(f"{path}: no such file; make a corpus with `shatter prepare`")
        try:
            with tf.io.gfile.GFile(path) as f:
                corpus = cls(**json.load(f))
            corpus.train = [Shard(**shard) for shard in corpus.train]
            corpus.validation = [Shard(**shard) for shard in corpus.validation]
            for item in (corpus, *corpus.train, *corpus.validation):
                _check_types(item)
            if not corpus.train:
                raise ValueError("no shards for training")
            if corpus.normalizer not in NORMALIZERS:
                raise ValueError(f"normalizer={corpus.normalizer!r}")
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: not a corpus description ({error})") from error

        # An object store is slow for each, and there may be thousands.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(functools.partial(_check_file, path), corpus.train + corpus.validation))

        vocabulary_path = os.path.join(directory, VOCABULARY_FILE)
        corpus.vocabulary = read_vocabulary(vocabulary_path)
        if not is_of_hash(corpus.vocabulary, corpus.vocabulary_sha256):
            raise UserError(f"{vocabulary_path}: not the vocabulary the corpus was prepared with")
        return corpus


def _check_types(item: Corpus | Shard) -> None:
    """Raises TypeError or ValueError unless the plain fields of a dataclass match their declarations."""
    for name, kind in typing.get_type_hints(type(item)).items():
        value = getattr(item, name)
        kinds = (int, float) if kind is float else (kind,)
        if kind in (bool, str, int, float) and type(value) not in kinds:
            raise TypeError(f"{name}={value!r}")
        if kind in (int, float) and not value >= 0:
            raise ValueError(f"{name}={value!r}")


def _check_file(corpus_path: str, shard: Shard) -> None:
    """Raises UserError unless a shard is the file beside corpus.json that it was."""
    if os.path.basename(shard.file) != shard.file:
        raise UserError(f"{corpus_path}: {shard.file} is not a plain file name")

    path = os.path.join(os.path.dirname(corpus_path), shard.file)
    try:
        size = tf.io.gfile.stat(path).length
    except tf.errors.OpError as error:
        raise UserError(f"{path}: no such file, but {corpus_path} names it") from error
    if shard.bytes and size != shard.bytes:  # else its rows, and all after them, would have changed
        raise UserError(
            f"{path}: {size:,} bytes, and {corpus_path} says {shard.bytes:,}; copy it again, or prepare it anew"
        )
