"""Sentences of tagged words from TSV or JSONL files, as batches.

In a .tsv file each line is word<TAB>tag, and blank lines separate sentences; in a .jsonl file each line is
{"tokens": [...], "tags": [...]}. The order of batches is that of `batches.order_of_rows`: what a step sees is a pure
function of (data, seed, step).
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Optional

import numpy as np
import tensorflow as tf
from official.nlp.data import data_loader_factory

from shatter_tf.data.batches import TextDataConfig, batches_of_rows
from shatter_tf.data.text import read_lines, whole_characters
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError

EXTENSIONS = (".tsv", ".jsonl")
NO_TAG = -1  # the label of wordpieces that do not begin a word, as in Model Garden


@dataclasses.dataclass
class TaggingDataConfig(TextDataConfig):
    """Tagged sentences as batches.

    Attributes:
      seq_length: longest sentence in tokens. Words that begin beyond it are cut off; they do not count in the metrics.
      labels: tags in the order of their ids; empty takes them, sorted, from the training sentences.
    """

    labels: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Sentence:
    """Words with a tag each; `path` and `lines`, one for each word, are their location, for messages."""

    words: list[str]
    tags: list[str]
    path: str
    lines: Sequence[int]


def read_sentences(path: str) -> list[Sentence]:
    """Returns the sentences of a file.

    Raises:
      UserError: with file and line, for a line without its two columns, an empty word or tag, a sentence without words
        or with another number of tags; and for a file that is missing, empty or not UTF-8.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    extension = os.path.splitext(path)[1]
    if extension not in EXTENSIONS:
        raise UserError(f"{path}: the name must end in {', '.join(EXTENSIONS)}")
    sentences = list({".tsv": _read_tsv, ".jsonl": _read_jsonl}[extension](path))
    if not sentences:
        raise UserError(f"{path}: the file has no sentences")
    for sentence in sentences:
        for word, tag, line in zip(sentence.words, sentence.tags, sentence.lines, strict=True):
            if not word or not tag:
                raise UserError(f"{path}:{line}: the {'tag' if word else 'word'} is empty")
    return sentences


def _read_tsv(path: str) -> Iterator[Sentence]:
    lines = ((number, line.strip()) for number, line in enumerate(read_lines(path), 1))
    for is_sentence, group in itertools.groupby(lines, key=lambda numbered: bool(numbered[1])):
        if not is_sentence:
            continue
        numbers, rows = zip(*((number, line.split("\t")) for number, line in group), strict=True)
        for number, row in zip(numbers, rows, strict=True):
            if len(row) != 2:
                raise UserError(f"{path}:{number}: {len(row)} column(s); expected word, tag")
        words, tags = ([row[column].strip() for row in rows] for column in range(2))
        yield Sentence(words, tags, path, range(numbers[0], numbers[-1] + 1))


def _read_jsonl(path: str) -> Iterator[Sentence]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        found = []
        for key in ("tokens", "tags"):
            values = row.get(key) if isinstance(row, dict) else None
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise UserError(f"{where}: no {key} that are a list of strings")
            found.append([whole_characters(value).strip() for value in values])
        words, tags = found
        if not words:
            raise UserError(f"{where}: the sentence has no words")
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} tokens, but {len(tags)} tags")
        yield Sentence(words, tags, path, [number] * len(words))


def tag_ids(sentences: list[Sentence], tags: list[str]) -> np.ndarray:
    """Returns the ids of all words' tags, int32 [words]; raises UserError at a tag that is not in `tags`."""
    ids = {tag: i for i, tag in enumerate(tags)}
    found = []
    for sentence in sentences:
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            if tag not in ids:
                known = ", ".join(tags[:10]) + (", …" if len(tags) > 10 else "")
                raise UserError(f"{sentence.path}:{line}: the tag {tag!r} is not among the training tags ({known})")
            found.append(ids[tag])
    return np.array(found, np.int32)


def is_iob(tags: list[str]) -> bool:
    """Returns whether tags mark entities: B-X and I-X, perhaps E-X and S-X, and O.

    Example:
    >>> is_iob(["B-PER", "I-PER", "O"]), is_iob(["NOUN", "VERB"]), is_iob(["O"])
    (True, False, False)
    """
    marked = [tag for tag in tags if tag != "O"]
    return bool(marked) and all(tag[:2] in ("B-", "I-", "E-", "S-") and tag[2:] for tag in marked)


@data_loader_factory.register_data_loader_cls(TaggingDataConfig)
class TaggingDataLoader:
    """Batches of tagged sentences; see the top of this file for their order."""

    def __init__(
        self,
        params: TaggingDataConfig,
        sentences: Optional[list[Sentence]] = None,
        tokenizer: Optional[Tokenizer] = None,
    ):
        self.params = params
        sentences = sentences or read_sentences(params.input_path)
        self._tags = tag_ids(sentences, params.labels)
        self._words = np.array([word.encode() for sentence in sentences for word in sentence.words], object)
        self._lengths = [len(sentence.words) for sentence in sentences]
        self.tokenizer = tokenizer or Tokenizer(read_vocabulary(params.vocab_file), params.lower_case)

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, L], and `label_ids`, int32 [B, L]: at each word's first wordpiece the
        id of its tag, elsewhere NO_TAG; in evaluation also `row_weights`, see `batches_of_rows`.
        """
        words, tags = (
            tf.RaggedTensor.from_row_lengths(tf.constant(values), self._lengths) for values in (self._words, self._tags)
        )

        def encode(rows):
            encoded, first = self.tokenizer.encode_words(tf.gather(words, rows), self.params.seq_length)
            inputs = self.tokenizer.pad(encoded, self.params.seq_length)
            # The words that are cut off are the last ones.
            kept = tf.RaggedTensor.from_tensor(tf.gather(tags, rows).to_tensor(), lengths=first.row_lengths())
            places = tf.stack([first.value_rowids(), first.flat_values], axis=1)
            labels = tf.fill(tf.shape(inputs["input_word_ids"]), NO_TAG)
            return dict(inputs, label_ids=tf.tensor_scatter_nd_update(labels, places, kept.flat_values))

        return batches_of_rows(len(self._lengths), encode, self.params, input_context, start_step)
