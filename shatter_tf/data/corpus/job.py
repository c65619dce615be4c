"""How texts become shards, whatever does the work."""

import array
import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from shatter_tf.data.corpus.shards import TRAIN, VALIDATION, Shard
from shatter_tf.data.documents import MAX_DOCUMENT_CHARACTERS, Source, read_documents
from shatter_tf.data.tokenizer import Tokenizer

# What is counted of documents, beside LONG_STRINGS.
DOCUMENTS, EMPTY, SHORT, DUPLICATES = "documents", "empty", "short", "duplicates"


class Document(NamedTuple):
    """A document, the number of its source, and a hash of its text, 16 bytes."""

    source: int
    digest: bytes
    text: str

    @property
    def key(self) -> bytes:
        """What equal documents have in common, and different ones have not, but once in billions of documents."""
        return self.digest[:8]


@dataclasses.dataclass
class Job:
    """All that a process, on this machine or another, needs for its share of the work."""

    sources: list[Source]  # in order; of equal documents, the first counts
    num_held_out: int  # of them, the first: all of their documents are for validation
    layout: str  # of plain text, as for `documents.read_documents`
    errors: str  # in plain text, likewise
    min_characters: int  # of a document
    keep_duplicates: bool
    vocabulary: list[str]
    lower_case: bool  # whether the vocabulary is uncased
    validation_fraction: float  # of the documents of the other sources
    num_shards: dict[str, int]  # of each split; some may stay empty
    directory: str  # where shards are written
    longest: int = MAX_DOCUMENT_CHARACTERS  # characters of a document, about; it is cut there
    normalizer: str = ""  # that the vocabulary needs

    def read(self, source: int, counts: collections.Counter) -> Iterator[Document]:
        """Yields the documents of a source that are neither empty nor short, and adds to `counts`."""
        for text in read_documents(self.sources[source], self.layout, self.errors, self.longest, counts):
            counts[DOCUMENTS] += 1
            if not text:
                counts[EMPTY] += 1
            elif len(text) < self.min_characters:
                counts[SHORT] += 1
            else:
                yield Document(source, hashlib.blake2b(text.encode(), digest_size=16).digest(), text)

    def read_all(self, sources: Iterable[int], counts: collections.Counter) -> Iterator[Document]:
        """Yields the documents of sources in order, of equal ones only the first, and adds to `counts`."""
        seen = _Seen()
        for source in sources:
            for document in self.read(source, counts):
                if self.keep_duplicates or seen.add(document.key):
                    yield document
                else:
                    counts[DUPLICATES] += 1

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.vocabulary, self.lower_case, self.normalizer)

    def place(self, document: Document) -> tuple[str, int]:
        """Returns the split and the shard number of a document, by the hash of its text."""
        fraction = 1.0 if document.source < self.num_held_out else self.validation_fraction
        split = VALIDATION if int.from_bytes(document.digest[:8], "big") < fraction * 2**64 else TRAIN
        return split, int.from_bytes(document.digest[8:], "big") % self.num_shards[split]

    def shards(self) -> dict[tuple[str, int], Shard]:
        """Returns every shard that `place` can return, empty, by split and number."""
        return {
            (split, i): Shard(f"{split}-{i:05d}-of-{number:05d}.tfrecord")
            for split, number in self.num_shards.items()
            for i in range(number)
        }


class _Seen:
    """A set of keys of 8 bytes in a sixth of the memory of Python's: a hash table with linear probing."""

    def __init__(self):
        self._table = array.array("Q", bytes(8 << 10))
        self._size = 0

    def add(self, key: bytes) -> bool:
        """Adds a key; returns whether it is new."""
        # The last bits find its place: the first ones, of documents for training, are not evenly spread.
        number = int.from_bytes(key, "big") or 1  # zero is a free place
        if not self._insert(number):
            return False
        self._size += 1
        if 2 * self._size > len(self._table):
            numbers = self._table
            self._table = array.array("Q", bytes(16 * len(numbers)))
            for number in filter(None, numbers):
                self._insert(number)
        return True

    def _insert(self, number: int) -> bool:
        table = self._table
        last = len(table) - 1
        place = number & last
        while found := table[place]:
            if found == number:
                return False
            place = (place + 1) & last
        table[place] = number
        return True


class Written:
    """What was written of a job.

    Attributes:
      shards: all that there may be, by split and number.
      documents: the number of those of each source.
      counts: what was read and left out.
      wordpieces: how often each occurred.
    """

    def __init__(self, job: Job):
        self.shards = job.shards()
        self.documents = [0] * len(job.sources)
        self.counts: collections.Counter = collections.Counter()
        self.wordpieces = np.zeros(len(job.vocabulary), np.int64)

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
