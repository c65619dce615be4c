"""The pretraining loader: what a step sees is a pure function of (corpus, seed, step).

Documents of a shard are laid end to end and cut into rows of L tokens: only a shard's last row has padding, and the
number of rows follows from corpus.json. Row g of training, counting from 0 over all epochs, is

    epoch e = g // N,   place o = g % N          N rows in the corpus
    shard and row: place o in the shards' order of epoch e, then in the rows' order of that visit to the shard

where both orders, and the masking of row g, come from stateless random numbers keyed by (seed, e or visit or g). Step k
takes rows k B … (k + 1) B - 1. Starting at any step reads one shard at most before its first row; and however many
machines read, together they see the same global batch.
"""

import dataclasses
import os
from typing import Optional

import numpy as np
import tensorflow as tf
from official.core import config_definitions as cfg
from official.nlp.data import data_loader_factory

from shatter_tf.data.batches import endless, share_of_batches
from shatter_tf.data.corpus.shards import Corpus
from shatter_tf.data.masking import mask_row
from shatter_tf.data.service import address_problem, made_by_workers
from shatter_tf.data.vocabulary import SPECIAL_TOKENS

# Domains of the random numbers: the same (seed, counter) never serves two purposes.
_SHARD_ORDER, _ROW_ORDER, _MASKING = range(3)


@dataclasses.dataclass
class PretrainDataConfig(cfg.DataConfig):
    """A prepared corpus as masked-LM batches.

    Attributes:
      input_path: directory written by `shatter prepare`.
      is_training: training rows, shuffled, endlessly; or validation rows, in order, once.
      seq_length: tokens in a row; 0 takes the corpus's own.
      mask_rate: share of a row's tokens to predict.
      max_predictions_per_seq: places for predictions in a row; 0 takes mask_rate * seq_length, rounded up.
      seed: of order and masking; training's is that of the initial weights, too.
      use_next_sentence_label: read by Model Garden's task; there is no such label here.
      enable_tf_data_service, tf_data_service_address: whether a tf.data service makes the training batches, and its
        address; see `service.made_by_workers`.
    """

    seq_length: int = 0
    mask_rate: float = 0.15
    max_predictions_per_seq: int = 0
    seed: int = 0
    use_next_sentence_label: bool = False

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        found = [] if 0 < self.mask_rate < 1 else [f"mask_rate={self.mask_rate} is not between 0 and 1"]
        if self.use_next_sentence_label:
            found.append("use_next_sentence_label=True: the data has no such labels; leave it out")
        if self.seq_length and not 0 <= self.max_predictions_per_seq <= self.seq_length:
            found.append(f"max_predictions_per_seq={self.max_predictions_per_seq} is not between 0 and seq_length")
        if self.enable_tf_data_service and not self.is_training:
            found.append("enable_tf_data_service: validation reads each row once, on this machine; leave it out")
        elif self.enable_tf_data_service and (problem := address_problem(self.tf_data_service_address)):
            found.append(f"tf_data_service_address={self.tf_data_service_address}: {problem}")
        return found


def _seed(seed: int, domain: int, counter) -> tf.Tensor:
    """Returns the stateless seed [2] of one use of random numbers."""
    return tf.random.fold_in(tf.constant([seed, domain], tf.int64), tf.cast(counter, tf.int64))


def cut_into_rows(tokens: tf.RaggedTensor, seq_length: int, pad_id: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Lays documents end to end and cuts them into rows.

    Args:
      tokens: ragged int [documents, tokens].
      seq_length: L.
      pad_id: fills the last row.

    Returns:
      int32 [R, L] word ids, and int32 [R, L] pack numbers: 1, 2, 3, … for each row's documents, 0 for padding.

    Example:
    >>> ids, packs = cut_into_rows(tf.ragged.constant([[2, 7, 3], [2, 8, 9, 3]]), 4, 0)
    >>> ids.numpy().tolist(), packs.numpy().tolist()
    ([[2, 7, 3, 2], [8, 9, 3, 0]], [[1, 1, 1, 2], [1, 1, 1, 0]])
    """
    ids = tf.cast(tokens.flat_values, tf.int32)
    # Not tokens.value_rowids(): it takes the memory of all documents padded to the longest one's length.
    document = tf.searchsorted(tokens.row_splits[1:], tf.range(tf.size(ids, tf.int64)), side="right")
    padding = (-tf.size(ids)) % seq_length
    ids = tf.reshape(tf.pad(ids, [[0, padding]], constant_values=pad_id), [-1, seq_length])
    document = tf.reshape(tf.pad(document, [[0, padding]], constant_values=-1), [-1, seq_length])
    return ids, tf.where(document >= 0, document - document[:, :1] + 1, 0)


@data_loader_factory.register_data_loader_cls(PretrainDataConfig)
class PretrainDataLoader:
    """Batches of a prepared corpus; see the top of this file for their order."""

    def __init__(self, params: PretrainDataConfig, corpus: Optional[Corpus] = None):
        self.params = params
        corpus = corpus or Corpus.read(params.input_path)
        self.seq_length = params.seq_length or corpus.seq_length
        self.max_predictions = params.max_predictions_per_seq or int(np.ceil(params.mask_rate * self.seq_length))
        shards = corpus.train if params.is_training else corpus.validation
        self.paths = [os.path.join(params.input_path, shard.file) for shard in shards]
        self.documents = np.array([shard.documents for shard in shards], np.int64)
        self.rows = np.array([-(-shard.tokens // self.seq_length) for shard in shards], np.int64)
        self.special_ids = {token: corpus.vocabulary.index(token) for token in SPECIAL_TOKENS}
        self.is_ordinary = np.array([token not in SPECIAL_TOKENS for token in corpus.vocabulary])

    @property
    def rows_per_epoch(self) -> int:
        return int(self.rows.sum())

    def shard_order(self, epoch) -> tf.Tensor:
        """Returns the order, int32 [shards], in which an epoch visits the shards."""
        order = tf.range(len(self.paths))
        if not self.params.is_training:
            return order
        return tf.random.experimental.stateless_shuffle(order, _seed(self.params.seed, _SHARD_ORDER, epoch))

    def read_visit(self, visit: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the rows, ids and packs int32 [R, L], of a visit: the v-th shard read since step 0."""
        shards = len(self.paths)
        shard = tf.gather(self.shard_order(visit // shards), visit % shards)
        records = tf.data.TFRecordDataset(tf.gather(self.paths, shard))
        serialized = records.batch(tf.gather(self.documents, shard)).get_single_element()
        features = tf.io.parse_example(serialized, {"ids": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)})
        ids, packs = cut_into_rows(features["ids"], self.seq_length, self.special_ids["[PAD]"])
        if self.params.is_training:
            seed = _seed(self.params.seed, _ROW_ORDER, visit)
            order = tf.random.experimental.stateless_shuffle(tf.range(tf.shape(ids)[0]), seed)
            ids, packs = tf.gather(ids, order), tf.gather(packs, order)
        return ids, packs

    def locate(self, row: int) -> tuple[int, int]:
        """Returns the visit in which row `row` of training is read, and its place in that visit."""
        epoch, place = divmod(row, self.rows_per_epoch)
        ends = np.cumsum(self.rows[self.shard_order(epoch).numpy()])
        position = int(np.searchsorted(ends, place, side="right"))
        return epoch * len(self.paths) + position, place - int(ends[position - 1] if position else 0)

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        In evaluation the last batch is padded with empty rows of weight 0, so that every shape is static.
        """
        params = self.params
        first_row = start_step * params.global_batch_size
        if params.is_training:
            visit, skip = self.locate(first_row)
            visits = tf.data.Dataset.range(visit, np.iinfo(np.int64).max)
        else:
            visits = tf.data.Dataset.range(len(self.paths))
            skip = 0
        rows = (
            visits.map(self.read_visit, num_parallel_calls=2, deterministic=True)
            .flat_map(lambda ids, packs: tf.data.Dataset.from_tensor_slices((ids, packs)))
            .skip(skip)
        )
        if not params.is_training:
            empty = (
                tf.fill([self.seq_length], self.special_ids["[PAD]"]),
                tf.zeros([self.seq_length], tf.int32),
            )
            missing = -self.rows_per_epoch % params.global_batch_size
            rows = rows.concatenate(tf.data.Dataset.from_tensors(empty).repeat(missing))
        rows, batch_size = share_of_batches(rows.enumerate(first_row), params.global_batch_size, input_context)

        ordinary_ids = tf.constant(np.flatnonzero(self.is_ordinary), tf.int32)
        is_ordinary = tf.constant(self.is_ordinary)

        def mask(number, row):
            ids, packs = row
            return mask_row(
                tf.ensure_shape(ids, [self.seq_length]),
                tf.ensure_shape(packs, [self.seq_length]),
                _seed(params.seed, _MASKING, number),
                mask_rate=params.mask_rate,
                max_predictions=self.max_predictions,
                mask_id=self.special_ids["[MASK]"],
                ordinary_ids=ordinary_ids,
                is_ordinary=is_ordinary,
            )

        def mask_batch(batch):
            dataset = tf.data.Dataset.from_tensor_slices(batch).map(mask)
            return dataset.batch(batch_size, drop_remainder=True).get_single_element()

        if params.enable_tf_data_service:
            batches = rows.batch(batch_size, drop_remainder=True)
            batches = made_by_workers(batches, mask_batch, params.tf_data_service_address)
        else:
            batches = rows.map(mask, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            batches = batches.batch(batch_size, drop_remainder=True)
        return (endless(batches) if params.is_training else batches).prefetch(tf.data.AUTOTUNE)
