"""Sentences of tagged words from files of any format, as batches.

In files of columns each line is a word and its tags, and blank lines separate sentences; in files of records (JSON,
Parquet, Arrow, what `datasets` saved) each is a sentence: a list of words and one of tags, or a text and the spans of
its entities. Tags of entities become IOB2, and their words are cut as served texts are; see entities.py.

The order of batches is that of `batches.order_of_rows`: what a step sees is a pure function of (data, seed, step).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf
from official.nlp.data import data_loader_factory

from shatter_tf.data import conll, entities, labelled, records, streams, tagged_records
from shatter_tf.data.batches import TextDataConfig, batches_of_rows, rows_in_order
from shatter_tf.data.sentences import Sentence
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError, argument

EXTENSIONS = (*conll.EXTENSIONS, *records.EXTENSIONS)
NO_TAG = -1  # the label of wordpieces that do not begin a word, as in Model Garden


@dataclasses.dataclass
class TaggingDataConfig(TextDataConfig):
    """Tagged sentences as batches.

    Attributes:
      seq_length: longest sentence in tokens. Words that begin beyond it are cut off; they do not count in the metrics.
      labels: tags in the order of their ids; empty takes them, sorted, from the training sentences.
      text_fields: the column or field of the words, or of the text whose entities are given by spans, as a list of one;
        empty takes a well-known one. Columns without names have numbers, from 1 on.
      label_field: the column or field of the tags or spans; empty takes a well-known one, and of columns without names
        the last. In CoNLL-U it may also be a key of MISC or FEATS.
      share: which of the sentences are meant: all, held_out, a tenth of them by a hash of the text, or not_held_out.
      at_punctuation: whether words are cut around punctuation; follows from the data, see entities.py.
    """

    labels: list[str] = dataclasses.field(default_factory=list)
    text_fields: list[str] = dataclasses.field(default_factory=list)
    label_field: str = ""
    share: str = labelled.ALL
    at_punctuation: bool = False


class Tagged(NamedTuple):
    """The sentences of a file, and a line that says how it was understood."""

    sentences: list[Sentence]
    note: str


def load_sentences(params: TaggingDataConfig) -> list[Sentence]:
    """Returns the sentences that a config names; raises UserError."""
    sentences = read_sentences(params.input_path, params.text_fields, params.label_field, params.labels).sentences
    if params.share != labelled.ALL:
        sentences = labelled.hold_out(sentences)[params.share == labelled.HELD_OUT]
    return cut_words(sentences) if params.at_punctuation else sentences


def read_sentences(
    path: str, text_fields: Sequence[str] = (), label_field: str = "", labels: Sequence[str] = ()
) -> Tagged:
    """Returns the sentences of a file; tags of entities in IOB2, unless `labels` are of another scheme.

    Args:
      path: columns or records, which may be packed.
      text_fields, label_field, labels: as in TaggingDataConfig.

    Raises:
      UserError: with its location, for a line or record without word or tag, a sentence without words or with another
        number of tags, and a span that fits no words; and for a file that cannot be read, or whose columns are not
        clear.
    """
    if not path:
        raise UserError(f"no tagged sentences: give {argument('data_dir')} or {argument('train_file')}")
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    if len(text_fields) > 1:
        raise UserError(f"{argument('text_fields')}={','.join(text_fields)}: give one, that of the words or the text")
    word_field = next(iter(text_fields), "")

    if streams.plain_name(path).endswith(conll.EXTENSIONS) and not tf.io.gfile.isdir(path):
        sentences, notes = conll.read_columns(path, word_field, label_field)
    elif records.holds_records(path):
        sentences, notes = tagged_records.read_records(path, word_field, label_field, labels)
    else:
        packed = ", ".join(streams.PACKED_EXTENSIONS)
        raise UserError(f"{path}: the name must end in {', '.join(EXTENSIONS)}, and may have {packed} after that")

    if not sentences:
        raise UserError(f"{path}: the file has no sentences")
    for sentence in sentences:
        for i, (word, tag) in enumerate(zip(sentence.words, sentence.tags, strict=True)):
            if not word or not tag:
                raise UserError(f"{sentence.place(i)}: the {'tag' if word else 'word'} is empty")
    notes += _convert(sentences, labels)
    number = f"{len(sentences):,} sentence{'s' * (len(sentences) != 1)}"
    return Tagged(sentences, f"{path}: {'; '.join([*notes, number])}")


def _convert(sentences: list[Sentence], labels: Sequence[str]) -> list[str]:
    """Makes tags of entities IOB2, unless `labels` are of another scheme; returns notes on that.

    Raises:
      UserError: for a tag that does not mark entities where others do.
    """
    tags = {tag for sentence in sentences for tag in sentence.tags}
    if tags <= {"B", "I", "O"} and "B" in tags:
        for sentence in sentences:
            sentence.tags = [tag if tag == "O" else f"{tag}-ENTITY" for tag in sentence.tags]
    marked = {tag for tag in tags if entities.is_marked(tag)}
    odd = tags - marked - {"O", "B", "I"}
    if marked and odd:
        place = next(s.place(i) for s in sentences for i, tag in enumerate(s.tags) if tag in odd)
        raise UserError(f"{place}: the tag {min(odd)!r} is neither O nor like {min(marked)}, as the others are")

    converted = entities.to_iob2([sentence.tags for sentence in sentences])
    if not converted.scheme:
        return []
    if labels and any(str(tag)[:2] not in ("B-", "I-") for tag in labels if tag != "O"):
        return [f"{converted.scheme} tags, as they are"]

    for sentence, tags in zip(sentences, converted.tags, strict=True):
        sentence.tags = tags
    notes = [f"{converted.scheme} tags" + (", read as IOB2" if converted.scheme != "IOB2" else "")]
    if converted.odd:
        sentence, word = converted.odd[0]
        number = len(converted.odd)
        what = "1 entity does" if number == 1 else f"{number:,} entities do"
        notes.append(f"{what} not begin as these do, the first at {sentences[sentence].place(word)}")
    return notes


def cut_words(sentences: list[Sentence]) -> list[Sentence]:
    """Returns sentences whose words are cut around punctuation, as served texts are; each piece goes on with the tag.

    Example:
    >>> (sentence,) = cut_words([Sentence(["In", "St.", "Ives"], ["O", "B-LOC", "I-LOC"], "train.tsv", [4, 5, 6])])
    >>> sentence.words, sentence.tags, sentence.lines
    (['In', 'St', '.', 'Ives'], ['O', 'B-LOC', 'I-LOC', 'I-LOC'], [4, 5, 5, 6])
    """
    pieces = iter(entities.cut([word for sentence in sentences for word in sentence.words]))
    found = []
    for sentence in sentences:
        parts = list(itertools.islice(pieces, len(sentence.words)))
        tags = [
            tag if first else entities.continued(tag)
            for tag, part in zip(sentence.tags, parts, strict=True)
            for first in (True, *[False] * (len(part) - 1))
        ]
        lines = [line for line, part in zip(sentence.lines, parts, strict=bool(sentence.lines)) for _ in part]
        found.append(Sentence([*itertools.chain(*parts)], tags, sentence.path, lines))
    return found


def untagged(texts: list[str], params: TaggingDataConfig) -> list[Sentence]:
    """Returns texts as sentences, each word with the first of the tags, which stands for none.

    Words are what is between spaces, cut around punctuation where those of the other sentences are.
    """
    sentences = [Sentence(words, ["O"] * len(words), "") for words in map(str.split, texts) if words]
    if params.at_punctuation:
        sentences = cut_words(sentences)
    for sentence in sentences:
        sentence.tags = params.labels[:1] * len(sentence.words)
    return sentences


def tag_ids(sentences: list[Sentence], tags: list[str]) -> np.ndarray:
    """Returns the ids of all words' tags, int32 [words]; raises UserError at a tag that is not in `tags`."""
    ids = {tag: i for i, tag in enumerate(tags)}
    found = []
    for sentence in sentences:
        for i, tag in enumerate(sentence.tags):
            if tag not in ids:
                known = ", ".join(tags[:10]) + (", …" if len(tags) > 10 else "")
                raise UserError(f"{sentence.place(i)}: the tag {tag!r} is not among the training tags ({known})")
            found.append(ids[tag])
    return np.array(found, np.int32)


@data_loader_factory.register_data_loader_cls(TaggingDataConfig)
class TaggingDataLoader:
    """Batches of tagged sentences; see the top of this file for their order."""

    def __init__(
        self,
        params: TaggingDataConfig,
        sentences: Optional[list[Sentence]] = None,
        tokenizer: Optional[Tokenizer] = None,
        unlabelled: Sequence[Sentence] = (),
        taught: Optional[list[np.ndarray]] = None,
    ):
        self.params = params
        sentences = sentences or load_sentences(params)
        self._number = len(sentences)
        self._taught = taught
        sentences = [*sentences, *unlabelled]
        self._tags = tag_ids(sentences, params.labels)
        self._words = np.array([word.encode() for sentence in sentences for word in sentence.words], object)
        self._lengths = [len(sentence.words) for sentence in sentences]
        self.tokenizer = tokenizer or Tokenizer(
            read_vocabulary(params.vocab_file), params.lower_case, params.normalizer
        )

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, L], and `label_ids`, int32 [B, L]: at each word's first wordpiece the
        id of its tag, elsewhere NO_TAG; in evaluation also `row_weights`, see `batches_of_rows`. With a teacher each
        has `taught`, float32 [B, L, labels], its probabilities, where it has any, and `has_label`, bool [B].
        """
        words, tags = (
            tf.RaggedTensor.from_row_lengths(tf.constant(values), self._lengths) for values in (self._words, self._tags)
        )

        taught = None
        if self._taught is not None:
            taught = tf.RaggedTensor.from_row_lengths(np.concatenate(self._taught), [len(t) for t in self._taught])

        def encode(rows):
            encoded, first = self.tokenizer.encode_words(tf.gather(words, rows), self.params.seq_length)
            inputs = self.tokenizer.pad(encoded, self.params.seq_length)
            # The words that are cut off are the last ones.
            kept = tf.RaggedTensor.from_tensor(tf.gather(tags, rows).to_tensor(), lengths=first.row_lengths())
            places = tf.stack([first.value_rowids(), first.flat_values], axis=1)
            labels = tf.fill(tf.shape(inputs["input_word_ids"]), NO_TAG)
            batch = dict(inputs, label_ids=tf.tensor_scatter_nd_update(labels, places, kept.flat_values))
            if taught is None:
                return batch
            # Words that the teacher had cut off have zeros.
            shape = tf.stack([-1, first.bounding_shape(axis=1), len(self.params.labels)])
            known = tf.gather(taught, rows).to_tensor(shape=shape)
            known = tf.RaggedTensor.from_tensor(known, lengths=first.row_lengths()).flat_values
            shape = tf.stack([*tf.unstack(tf.shape(labels, tf.int64)), len(self.params.labels)])
            return dict(batch, taught=tf.scatter_nd(places, known, shape), has_label=rows < self._number)

        return batches_of_rows(len(self._lengths), encode, self.params, input_context, start_step)

    def order(self) -> np.ndarray:
        """Returns the numbers of the sentences in the order of an evaluation, int64 [sentences]."""
        return rows_in_order(len(self._lengths))
