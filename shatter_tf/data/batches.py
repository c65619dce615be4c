"""The order of rows in fine-tuning, and how machines and replicas share the rows of a global batch."""

import dataclasses
from collections.abc import Callable
from typing import Optional

import numpy as np
import tensorflow as tf
from official.core import config_definitions as cfg

from shatter_tf.data.vocabulary import NORMALIZERS


@dataclasses.dataclass
class TextDataConfig(cfg.DataConfig):
    """What the data of all tasks that fine-tune has in common.

    Attributes:
      input_path: a file with the rows; or empty, with `tfds_name` (and `tfds_split`, `tfds_data_dir`) set, for tasks
        that read TensorFlow Datasets.
      is_training: rows shuffled, endlessly; or in order, once.
      seq_length: longest input in tokens.
      vocab_file: the vocabulary the encoder was pretrained with.
      lower_case: whether that vocabulary is uncased.
      normalizer: how text is normalized for it, see `Tokenizer`; a `normalizer.json` beside the vocabulary sets it.
      seed: of the order, and in training of the initial weights, too.
    """

    seq_length: int = 128
    vocab_file: str = ""
    lower_case: bool = True
    normalizer: str = ""
    seed: int = 0

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        found = []
        if self.enable_tf_data_service:
            found.append("enable_tf_data_service is for pretraining; leave it out")
        if self.normalizer not in NORMALIZERS:
            found.append(f"normalizer={self.normalizer}: use {', '.join(filter(None, NORMALIZERS))}, or leave it out")
        return found


def order_of_rows(number: int, params: cfg.DataConfig, start_step: int) -> tf.data.Dataset:
    """Returns the numbers, int64, of the rows of every batch from step `start_step` on.

    Row g of training, counting from 0 over all epochs, is at place g % number in the permutation of epoch g // number,
    which is keyed by (`params.seed`, epoch). Evaluation sees every row once, in order; its last batch is padded
    with -1.

    Args:
      number: of all rows.
      params: of the data: `is_training`, `global_batch_size`, `seed`.
      start_step: the step that comes first, counted from 0; evaluation has none.
    """
    if not params.is_training:
        return tf.data.Dataset.from_tensor_slices(_filled_up(tf.constant(rows_in_order(number)), params))

    def permutation(epoch):
        rows = tf.random.experimental.stateless_shuffle(tf.range(number, dtype=tf.int64), _seed(params, epoch))
        return tf.data.Dataset.from_tensor_slices(rows)

    epoch, place = divmod(start_step * params.global_batch_size, number)
    return _epochs(epoch).flat_map(permutation).skip(place)


def rows_in_order(number: int, buckets: Optional[np.ndarray] = None) -> np.ndarray:
    """Returns the numbers of all rows in the order of an evaluation, int64 [rows]: the short buckets' first, if any."""
    return np.arange(number) if buckets is None else np.argsort(buckets, kind="stable").astype(np.int64)


def order_in_buckets(buckets: np.ndarray, params: cfg.DataConfig, start_step: int) -> tf.data.Dataset:
    """Returns the same for rows of which a batch has ones of about the same length.

    In an epoch of training, the rows of a permutation that fill whole batches are sorted by their buckets and cut into
    batches, which come in random order: few batches have rows of two buckets. The rest sits out this epoch. Evaluation
    sees the rows of short buckets first.

    Args:
      buckets: of each row, the longer the higher, int [rows].
      params, start_step: as for `order_of_rows`.
    """
    batch_size = params.global_batch_size
    if not params.is_training:
        order = rows_in_order(len(buckets), buckets)
        return tf.data.Dataset.from_tensor_slices(_filled_up(tf.constant(order), params))
    batches = len(buckets) // batch_size
    of_rows = tf.constant(buckets, tf.int32)

    def permutation(epoch):
        seed = _seed(params, epoch)
        rows = tf.random.experimental.stateless_shuffle(tf.range(len(buckets), dtype=tf.int64), seed)
        rows = rows[: batches * batch_size]
        rows = tf.gather(rows, tf.argsort(tf.gather(of_rows, rows), stable=True))
        rows = tf.random.experimental.stateless_shuffle(tf.reshape(rows, [batches, batch_size]), seed)
        return tf.data.Dataset.from_tensor_slices(tf.reshape(rows, [-1]))

    epoch, batch = divmod(start_step, batches)
    return _epochs(epoch).flat_map(permutation).skip(batch * batch_size)


def _filled_up(rows: tf.Tensor, params: cfg.DataConfig) -> tf.Tensor:
    """Returns rows with -1 at the end, so that the last batch is full."""
    return tf.concat([rows, tf.fill([-rows.shape[0] % params.global_batch_size], tf.constant(-1, tf.int64))], axis=0)


def _seed(params: cfg.DataConfig, epoch: tf.Tensor) -> tf.Tensor:
    return tf.random.fold_in(tf.constant([params.seed, 0], tf.int64), epoch)


def _epochs(first: int) -> tf.data.Dataset:
    return tf.data.Dataset.range(first, np.iinfo(np.int64).max)


def share_of_batches(
    rows: tf.data.Dataset, global_batch_size: int, input_context: Optional[tf.distribute.InputContext]
) -> tuple[tf.data.Dataset, int]:
    """Returns the rows of each global batch that one input pipeline reads, and the size of a replica's batch.

    Replica r of n takes the r-th of n equal, contiguous shares: what it sees, and what dropout drops of it, does not
    depend on how replicas are spread over machines.

    Args:
      rows: all rows, in the order of the global batches.
      global_batch_size: a multiple of the number of replicas.
      input_context: which of how many pipelines this is; None when there is one.

    Example:
    >>> context = tf.distribute.InputContext(num_input_pipelines=2, input_pipeline_id=1, num_replicas_in_sync=4)
    >>> rows, batch_size = share_of_batches(tf.data.Dataset.range(16), 8, context)
    >>> [int(row) for row in rows], batch_size
    ([4, 5, 6, 7, 12, 13, 14, 15], 2)
    """
    if input_context is None:
        return rows, global_batch_size
    pipelines = input_context.num_input_pipelines
    if pipelines > 1:
        shares = rows.batch(global_batch_size // pipelines)
        rows = shares.shard(pipelines, input_context.input_pipeline_id).unbatch()
    return rows, input_context.get_per_replica_batch_size(global_batch_size)


def batches_of_rows(
    number: int,
    encode: Callable[..., dict[str, tf.Tensor]],
    params: cfg.DataConfig,
    input_context: Optional[tf.distribute.InputContext],
    start_step: int,
    lengths: Optional[np.ndarray] = None,
    numbered: bool = False,
) -> tf.data.Dataset:
    """Returns this input pipeline's batches from step `start_step` on, all of one static size.

    In evaluation they also have `row_weights`, float32 [B]: 1 for a row, and 0 for padding of the last batch.

    Args:
      number: of all rows.
      encode: makes a batch, tensors [B, ...], from the numbers of its rows, int64 [B], and with `lengths` also from the
        length to which its rows are padded, int64 []. What has two dimensions is padded to L, if nothing else is known.
      params: of the data: `is_training`, `global_batch_size`, `seq_length` L, `seed`.
      input_context: as for `share_of_batches`.
      start_step: as for `order_of_rows`.
      lengths: to which each row may be padded, int [rows]; rows of a batch then have about the same, and the batch the
        longest of the global batch's, whatever its share. None if all have L.
      numbered: whether `encode` also gets, by the name `numbers`, int64 [B], how many rows of all batches came before
        each: what random numbers may be keyed by.
    """
    if lengths is None:
        rows = order_of_rows(number, params, start_step)
        pairs = rows.map(lambda row: (row, tf.constant(params.seq_length, tf.int64)))
    else:
        rows = order_in_buckets(lengths, params, start_step)
        of_rows = tf.constant(lengths, tf.int64)

        def with_longest(rows):
            longest = tf.reduce_max(tf.where(rows >= 0, tf.gather(of_rows, tf.maximum(rows, 0)), 0))
            return rows, tf.fill(tf.shape(rows), longest)

        pairs = rows.batch(params.global_batch_size, drop_remainder=True).map(with_longest).unbatch()
    pairs = pairs.enumerate(start_step * params.global_batch_size)
    pairs, batch_size = share_of_batches(pairs, params.global_batch_size, input_context)

    def make(numbers, pair):
        rows, longest = pair
        given = [tf.maximum(rows, 0)] if lengths is None else [tf.maximum(rows, 0), longest[0]]
        encoded = encode(*given, numbers=numbers) if numbered else encode(*given)
        batch = {key: _of_static_shape(t, batch_size, params, lengths is None) for key, t in encoded.items()}
        return batch if params.is_training else dict(batch, row_weights=tf.cast(rows >= 0, tf.float32))

    batches = pairs.batch(batch_size, drop_remainder=True)
    batches = batches.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return (endless(batches) if params.is_training else batches).prefetch(tf.data.AUTOTUNE)


def _of_static_shape(t: tf.Tensor, batch_size: int, params: cfg.DataConfig, is_padded: bool) -> tf.Tensor:
    """Returns a batch's tensor with all of its shape that is known: XLA wants it."""
    shape = [batch_size, *t.shape[1:]]
    if t.shape.rank == 2 and shape[1] is None and is_padded:
        shape[1] = params.seq_length
    return tf.ensure_shape(t, shape)


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns an endless dataset, marked as such: otherwise several machines would agree on that before every step."""
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
