"""How texts become shards, whatever does the work."""

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from shatter_tf.data.corpus.shards import TRAIN, VALIDATION, Shard
from shatter_tf.data.text import read_documents
from shatter_tf.data.tokenizer import Tokenizer


@dataclasses.dataclass
class Job:
    """All that a process, on this machine or another, needs for its share of the work."""

    paths: list[str]  # the files, in order
    held_out: list[str]  # those of them whose documents are all for validation
    layout: str  # of the files, as for `text.read_documents`
    errors: str  # in the files, likewise
    vocabulary: list[str]
    lower_case: bool  # whether the vocabulary is uncased
    validation_fraction: float  # of the documents of the other files
    num_shards: dict[str, int]  # of each split; some may stay empty
    directory: str  # where shards are written

    def documents(self, path: str) -> Iterator[str]:
        return read_documents(path, self.layout, self.errors)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.vocabulary, self.lower_case)

    def place(self, path: str, document: str) -> tuple[str, int]:
        """Returns the split and the shard number of a document, by a hash of its text."""
        digest = hashlib.blake2b(document.encode(), digest_size=16).digest()
        fraction = 1.0 if path in self.held_out else self.validation_fraction
        split = VALIDATION if int.from_bytes(digest[:8], "big") < fraction * 2**64 else TRAIN
        return split, int.from_bytes(digest[8:], "big") % self.num_shards[split]

    def shards(self) -> dict[tuple[str, int], Shard]:
        """Returns every shard that `place` can return, empty, by split and number."""
        return {
            (split, i): Shard(f"{split}-{i:05d}-of-{number:05d}.tfrecord")
            for split, number in self.num_shards.items()
            for i in range(number)
        }


class Written:
    """What was written of a job: its shards, the documents of each path, and how often each wordpiece occurred."""

    def __init__(self, job: Job):
        self.shards = job.shards()
        self.documents = dict.fromkeys(job.paths, 0)
        self.counts = np.zeros(len(job.vocabulary), np.int64)

    def split(self, name: str) -> list[Shard]:
        """Returns the shards of TRAIN or VALIDATION that hold anything."""
        return [shard for (split, _), shard in sorted(self.shards.items()) if split == name and shard.documents]


def encode_documents(documents: list[str], tokenizer: Tokenizer) -> tuple[list[tuple[bytes, int]], np.ndarray]:
    """Returns each document's record and number of tokens, and each wordpiece's count; empty documents give b"".

    This is all the work on a document: whatever runs it, on however many processes, the records are the same.
    """
    tokens = tokenizer.tokenize(tf.constant(documents))
    records = []
    for ids in tokens.to_list():
        if not ids:
            records.append((b"", 0))
            continue
        ids = [tokenizer.cls_id, *ids, tokenizer.sep_id]
        example = tf.train.Example()
        example.features.feature["ids"].int64_list.value.extend(ids)
        records.append((example.SerializeToString(), len(ids)))
    return records, np.bincount(tokens.flat_values.numpy(), minlength=tokenizer.vocabulary_size)
