"""Prepared corpora: sharded TFRecords of token ids, with a corpus.json that says what is in them.

One record is one document: a tf.train.Example whose `ids` are [CLS] tokens… [SEP]. Which split and which shard it goes
to depends on its text alone, so every shard is a random sample of the corpus, and duplicates stay together.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import typing
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from shatter_tf.command_line import UserError
from shatter_tf.data.text import read_documents
from shatter_tf.data.tokenizer import Tokenizer, read_vocabulary, vocabulary_hash

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

    `unigram_entropy` is that of its ordinary wordpieces, in nats: the masked-LM loss of a model that knows how frequent
    each is and nothing else.
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

    def write(self, directory: str) -> None:
        """Writes corpus.json beside the shards, which are there already: it records their sizes."""
        for shard in self.train + self.validation:
            shard.bytes = tf.io.gfile.stat(os.path.join(directory, shard.file)).length
        with tf.io.gfile.GFile(os.path.join(directory, CORPUS_FILE), "w") as f:
            json.dump(dataclasses.asdict(self), f, indent=1, ensure_ascii=False)

    @classmethod
    def read(cls, directory: str) -> "Corpus":
        """Returns the corpus in `directory`, checked against its vocabulary and files; raises UserError."""
        path = os.path.join(directory, CORPUS_FILE)
        if not tf.io.gfile.exists(path):
            raise UserError(f"{path}: no such file; make a corpus with `python -m shatter_tf.prepare`")
        try:
            with tf.io.gfile.GFile(path) as f:
                corpus = cls(**json.load(f))
            corpus.train = [Shard(**shard) for shard in corpus.train]
            corpus.validation = [Shard(**shard) for shard in corpus.validation]
            for item in (corpus, *corpus.train, *corpus.validation):
                _check_types(item)
            if not corpus.train:
                raise ValueError("no shards for training")
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: not a corpus description ({error})") from error

        def check(shard: Shard) -> None:
            if os.path.basename(shard.file) != shard.file:
                raise UserError(f"{path}: {shard.file} is not a plain file name")
            shard_path = os.path.join(directory, shard.file)
            try:
                size = tf.io.gfile.stat(shard_path).length
            except tf.errors.OpError as error:
                raise UserError(f"{shard_path}: no such file, but {path} names it") from error
            if shard.bytes and size != shard.bytes:  # else its rows, and all after them, would have changed
                raise UserError(
                    f"{shard_path}: {size:,} bytes, and {path} says {shard.bytes:,}; copy it again, or prepare it anew"
                )

        # An object store is slow for each, and there may be thousands.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(check, corpus.train + corpus.validation))
        vocabulary_path = os.path.join(directory, VOCABULARY_FILE)
        if vocabulary_hash(read_vocabulary(vocabulary_path)) != corpus.vocabulary_sha256:
            raise UserError(f"{vocabulary_path}: not the vocabulary the corpus was prepared with")
        return corpus


def _check_types(item) -> None:
    """Raises TypeError or ValueError unless the plain fields of a dataclass match their declarations."""
    for name, kind in typing.get_type_hints(type(item)).items():
        value = getattr(item, name)
        kinds = (int, float) if kind is float else (kind,)
        if kind in (bool, str, int, float) and type(value) not in kinds:
            raise TypeError(f"{name}={value!r}")
        if kind in (int, float) and not value >= 0:
            raise ValueError(f"{name}={value!r}")


def place(document: str, validation_fraction: float, num_shards: dict[str, int]) -> tuple[str, int]:
    """Returns the split and the shard number of a document, by a hash of its text.

    Example:
    >>> place("some text", 0.0, {"train": 4}) == place("some text", 0.0, {"train": 4})
    True
    >>> place("some text", 1.0, {"validation": 1})
    ('validation', 0)
    """
    digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
    split = VALIDATION if int.from_bytes(digest[:8], "big") < validation_fraction * 2**64 else TRAIN
    return split, int.from_bytes(digest[8:], "big") % num_shards[split]


@dataclasses.dataclass
class Job:
    """How texts become shards: all that a process, on this machine or another, needs for its share of the work.

    Args:
      paths: the files, in order.
      held_out: those of them whose documents are all for validation.
      layout, errors: as for `text.read_documents`.
      vocabulary, lower_case: of the tokenizer.
      validation_fraction: of the documents of the other files.
      num_shards: of each split; some may stay empty.
      directory: where shards are written.
    """

    paths: list[str]
    held_out: list[str]
    layout: str
    errors: str
    vocabulary: list[str]
    lower_case: bool
    validation_fraction: float
    num_shards: dict[str, int]
    directory: str

    def documents(self, path: str) -> Iterator[str]:
        return read_documents(path, self.layout, self.errors)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.vocabulary, self.lower_case)

    def place(self, path: str, document: str) -> tuple[str, int]:
        return place(document, 1.0 if path in self.held_out else self.validation_fraction, self.num_shards)

    def shards(self) -> dict[tuple[str, int], Shard]:
        """Returns every shard that `place` can return, empty, by split and number."""
        return {
            (split, i): Shard(f"{split}-{i:05d}-of-{number:05d}.tfrecord")
            for split, number in self.num_shards.items()
            for i in range(number)
        }


@dataclasses.dataclass
class Written:
    """The result of a Job: its shards, the documents of each path, and how often each wordpiece occurred."""

    shards: dict[tuple[str, int], Shard]
    documents: dict[str, int]
    counts: np.ndarray

    def split(self, name: str) -> list[Shard]:
        """Returns the shards of TRAIN or VALIDATION that hold anything."""
        return [shard for (split, _), shard in sorted(self.shards.items()) if split == name and shard.documents]


def unigram_entropy(counts: np.ndarray) -> float:
    """Returns the entropy in nats of a distribution given by counts.

    Example:
    >>> round(unigram_entropy(np.array([1, 0, 1])), 6)
    0.693147
    """
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)))


def encode_documents(documents: list[str], tokenizer: Tokenizer) -> tuple[list[tuple[bytes, int]], np.ndarray]:
    """Returns each document's record and number of tokens, and each wordpiece's count; empty documents give b"".

    This is all the work on a document: whatever runs it, on however many processes, the records are the same.
    """
    records, tokens = [], tokenizer.tokenize(tf.constant(documents))
    for ids in tokens.to_list():
        if not ids:
            records.append((b"", 0))
            continue
        ids = [tokenizer.cls_id, *ids, tokenizer.sep_id]
        example = tf.train.Example()
        example.features.feature["ids"].int64_list.value.extend(ids)
        records.append((example.SerializeToString(), len(ids)))
    return records, np.bincount(tokens.flat_values.numpy(), minlength=tokenizer.vocabulary_size)
