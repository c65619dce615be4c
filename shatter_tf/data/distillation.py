"""Pieces of a prepared corpus as batches of single texts, for a student to learn what a teacher makes of them.

Each document is cut into pieces of random lengths, so that short texts are learned as well as long ones. Row g of
training, counting from 0 over all epochs, is at place g % N in the permutation of epoch g // N, as in fine-tuning: what
a step sees is a pure function of (corpus, seed, step).
"""

import dataclasses
import functools
import hashlib
import math
import os
from typing import Optional, Union

import numpy as np
import tensorflow as tf
from official.nlp.data import data_loader_factory

from shatter_tf.data.batches import batches_of_rows
from shatter_tf.data.corpus.shards import TRAIN, VALIDATION, Corpus
from shatter_tf.data.masking import mask_row
from shatter_tf.data.pretraining import PretrainDataConfig
from shatter_tf.data.vocabulary import CLS, MASK, PAD, SEP, is_ordinary
from shatter_tf.errors import UserError, argument

_FEWEST = 4  # tokens of a piece; what is shorter says little

_RECORDS = 1024  # parsed at a time

_CUTTING, _MASKING = range(2)  # domains of the random numbers


@dataclasses.dataclass
class DistilDataConfig(PretrainDataConfig):
    """A prepared corpus as single texts.

    Attributes:
      mask_rate: share of a text's tokens that are hidden from the student, which has to predict them; 0 hides none.
      shortest: tokens of the shortest pieces that documents are cut into, the longest having `seq_length`; their
        logarithms are evenly spread.
      length_buckets: whether a batch has texts of about the same length, padded only to that. TPUs take one length
        only.
    """

    mask_rate: float = 0.0
    shortest: int = 16
    length_buckets: bool = True

    def problems(self) -> list[str]:
        found = [line for line in super().problems() if self.mask_rate or not line.startswith("mask_rate=")]
        if self.shortest < _FEWEST or (self.seq_length and self.shortest > self.seq_length):
            found.append(f"shortest={self.shortest} is not between {_FEWEST} and seq_length")
        if self.enable_tf_data_service:
            found.append("enable_tf_data_service is for pretraining; leave it out")
        return found

    @property
    def mean_length(self) -> float:
        """About how many tokens a piece has."""
        shortest = max(self.shortest, _FEWEST)
        longest = max(self.seq_length - 2, shortest + 1)
        return (longest - shortest) / math.log(longest / shortest)


def cut_into_pieces(lengths: np.ndarray, shortest: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Returns where texts that are laid end to end are cut into pieces, ascending, from 0 to their whole length.

    They are cut where each ends, and in between after random lengths, evenly spread in their logarithms.

    Args:
      lengths: of the texts in tokens, int [texts].
      shortest, longest: tokens between two random cuts.
      rng: what the cuts follow from.

    Example:
    >>> cut_into_pieces(np.array([5, 2]), 3, 3, np.random.default_rng(0)).tolist()
    [0, 3, 5, 6, 7]
    """
    total = int(lengths.sum())
    sizes = np.exp(rng.uniform(math.log(shortest), math.log(longest + 1), total // shortest + 1)).astype(np.int64)
    cuts = np.cumsum(np.clip(sizes, shortest, longest))
    return np.unique(np.concatenate([[0], cuts[cuts < total], np.cumsum(lengths)]))


@data_loader_factory.register_data_loader_cls(DistilDataConfig)
class DistilDataLoader:
    """Batches of pieces of a corpus; see the top of this file.

    Args:
      params: of the data.
      corpus: what `params.input_path` holds; it is read if left out.
      vectors: the teacher's, of all rows, float [rows, dimensions]; batches then have them.

    Raises:
      UserError: when there is no text, or not enough for a batch.
    """

    def __init__(self, params: DistilDataConfig, corpus: Optional[Corpus] = None, vectors: Optional[np.ndarray] = None):
        self.params = params
        corpus = corpus or Corpus.read(params.input_path)
        self._vocabulary = corpus.vocabulary
        self._vectors = vectors
        shards = corpus.train if params.is_training else corpus.validation
        tokens, lengths = _read([os.path.join(params.input_path, shard.file) for shard in shards])

        # Pieces, of which the shortest are left out.
        rng = np.random.default_rng([params.seed if params.is_training else 0, _CUTTING])
        longest = params.seq_length - 2
        cuts = cut_into_pieces(lengths, min(params.shortest, longest), longest, rng)
        lengths = np.diff(cuts)
        kept = lengths >= _FEWEST
        if not kept.any():
            split = TRAIN if params.is_training else VALIDATION
            raise UserError(f"{params.input_path}: no {split} text of {_FEWEST} wordpieces or more; prepare more text")
        self._tokens = tokens[np.repeat(kept, lengths)]
        self._begins = np.cumsum(lengths[kept]) - lengths[kept]
        self.lengths = lengths[kept] + 2
        if params.is_training and len(self.lengths) < params.global_batch_size:
            few = f"{len(self.lengths):,} texts are fewer than a batch's {params.global_batch_size}"
            raise UserError(f"{params.input_path}: {few}; lower {argument('batch_size')}")

    def digest(self, *more: bytes) -> str:
        """Returns a hash of all rows, and of more, as text."""
        found = hashlib.sha256()
        for part in (self._tokens.tobytes(), self.lengths.tobytes(), *more):
            found.update(part)
        return found.hexdigest()[:16]

    def encode(
        self, rows: tf.Tensor, length: Union[int, tf.Tensor], numbers: Optional[tf.Tensor] = None
    ) -> dict[str, tf.Tensor]:
        """Returns a batch.

        Args:
          rows: which of all rows, int64 [B].
          length: L, to which they are padded.
          numbers: what the hidden tokens follow from, int64 [B]; None hides none.

        Returns:
          The encoder's inputs, int32 [B, L]; where tokens are hidden also `whole_word_ids`, int32 [B, L], and what
          `mask_row` gives; and the teacher's `vectors`, float32 [B, dimensions], if they are known.
        """
        cls_id, sep_id, pad_id = (self._vocabulary.index(token) for token in (CLS, SEP, PAD))
        lengths = tf.gather(self._tensors["lengths"], rows)[:, tf.newaxis]
        places = tf.range(tf.cast(length, tf.int64))

        # A token's place in its text comes after [CLS]; what is beyond is read, and then overwritten.
        within = tf.minimum(tf.maximum(places - 1, 0), lengths - 3)
        begins = tf.gather(self._tensors["begins"], rows)[:, tf.newaxis]
        ids = tf.gather(self._tensors["tokens"], begins + within)
        ids = tf.where(places == 0, cls_id, tf.where(places == lengths - 1, sep_id, ids))
        mask = tf.cast(places < lengths, tf.int32)
        ids = tf.where(mask > 0, ids, pad_id)
        batch = dict(input_word_ids=ids, input_mask=mask, input_type_ids=tf.zeros_like(mask))

        if self.params.mask_rate and numbers is not None:
            batch = dict(self._mask(batch, numbers), whole_word_ids=ids)
        if self._vectors is not None:
            batch["vectors"] = tf.cast(tf.gather(self._tensors["vectors"], rows), tf.float32)
        return batch

    @functools.cached_property
    def _tensors(self) -> dict[str, tf.Tensor]:
        """Everything that batches are made from, outside of any graph."""
        arrays = dict(tokens=self._tokens, begins=self._begins, lengths=self.lengths)
        if self._vectors is not None:
            arrays["vectors"] = self._vectors
        with tf.init_scope():
            return {name: tf.constant(array) for name, array in arrays.items()}

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches, see `encode`, from step `start_step` on, of this input pipeline's share of the global batch.

        In evaluation they also have `row_weights`, see `batches_of_rows`.
        """
        params = self.params
        on_tpus = isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)  # which take one length only
        lengths = padded_lengths(self.lengths, params) if params.length_buckets and not on_tpus else None

        def encode(rows, length=params.seq_length, numbers=None):
            return self.encode(rows, length, numbers)

        return batches_of_rows(len(self.lengths), encode, params, input_context, start_step, lengths, numbered=True)

    def _mask(self, batch: dict[str, tf.Tensor], numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        """Hides tokens of a batch's rows, which have these numbers, int64 [B]."""
        ordinary = is_ordinary(self._vocabulary)
        length = tf.shape(batch["input_word_ids"])[1]
        predictions = tf.cast(tf.math.ceil(self.params.mask_rate * tf.cast(length, tf.float32)), tf.int32)
        domain = tf.constant([self.params.seed, _MASKING], tf.int64)

        def mask(row):
            ids, packs, number = row
            return mask_row(
                ids,
                packs,
                tf.random.fold_in(domain, number),
                mask_rate=self.params.mask_rate,
                max_predictions=predictions,
                mask_id=self._vocabulary.index(MASK),
                ordinary_ids=tf.constant(np.flatnonzero(ordinary), tf.int32),
                is_ordinary=tf.constant(ordinary),
            )

        given = (batch["input_word_ids"], batch["input_mask"], numbers)
        places = tf.TensorSpec([None], tf.int32)
        signature = dict.fromkeys((*batch, "masked_lm_positions", "masked_lm_ids"), places)
        return tf.map_fn(mask, given, dict(signature, masked_lm_weights=tf.TensorSpec([None], tf.float32)))


def padded_lengths(lengths: np.ndarray, params: DistilDataConfig) -> np.ndarray:
    """Returns the lengths to which rows are padded, an eighth, a quarter, a half or all of `seq_length`, int64 [rows].

    Example:
    >>> padded_lengths(np.array([3, 40, 65, 128]), DistilDataConfig(seq_length=128)).tolist()
    [16, 64, 128, 128]
    """
    sizes = [params.seq_length // parts for parts in (8, 4, 2) if params.seq_length // parts >= 16]
    return np.array([*sizes, params.seq_length])[np.searchsorted([*sizes, params.seq_length], lengths)]


def _read(paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens of all documents without their special ones, int32 [tokens], and how many each has."""
    feature = {"ids": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)}

    def parse(records):
        ids = tf.io.parse_example(records, feature)["ids"][:, 1:-1]
        return tf.cast(ids.flat_values, tf.int32), ids.row_lengths()

    records = tf.data.TFRecordDataset(paths).batch(_RECORDS).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    tokens, lengths = zip(*records.as_numpy_iterator(), strict=True)
    return np.concatenate(tokens), np.concatenate(lengths)
