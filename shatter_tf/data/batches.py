"""The order of rows in fine-tuning, and how machines and replicas share the rows of a global batch."""

import dataclasses
from collections.abc import Callable
from typing import Optional

import numpy as np
import tensorflow as tf
from official.core import config_definitions as cfg


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
      seed: of the order, and in training of the initial weights, too.
    """

    seq_length: int = 128
    vocab_file: str = ""
    lower_case: bool = True
    seed: int = 0

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        if self.enable_tf_data_service:
            return ["enable_tf_data_service is for pretraining; leave it out"]
        return []


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
        missing = tf.constant([-1] * (-number % params.global_batch_size), tf.int64)
        return tf.data.Dataset.range(number).concatenate(tf.data.Dataset.from_tensor_slices(missing))

    def permutation(epoch):
        seed = tf.random.fold_in(tf.constant([params.seed, 0], tf.int64), epoch)
        rows = tf.random.experimental.stateless_shuffle(tf.range(number, dtype=tf.int64), seed)
        return tf.data.Dataset.from_tensor_slices(rows)

    epoch, place = divmod(start_step * params.global_batch_size, number)
    return tf.data.Dataset.range(epoch, np.iinfo(np.int64).max).flat_map(permutation).skip(place)


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
    encode: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    params: cfg.DataConfig,
    input_context: Optional[tf.distribute.InputContext],
    start_step: int,
) -> tf.data.Dataset:
    """Returns this input pipeline's batches from step `start_step` on, all of one static size.

    In evaluation they also have `row_weights`, float32 [B]: 1 for a row, and 0 for padding of the last batch.

    Args:
      number: of all rows.
      encode: makes a batch, tensors [B] or [B, L], from the numbers of its rows, int64 [B].
      params: of the data: `is_training`, `global_batch_size`, `seq_length` L, `seed`.
      input_context: as for `share_of_batches`.
      start_step: as for `order_of_rows`.
    """
    rows = order_of_rows(number, params, start_step)
    rows, batch_size = share_of_batches(rows, params.global_batch_size, input_context)
    shape = [batch_size, params.seq_length]

    def make(rows):
        batch = encode(tf.maximum(rows, 0))
        batch = {key: tf.ensure_shape(t, shape[: t.shape.rank]) for key, t in batch.items()}  # XLA wants them static
        return batch if params.is_training else dict(batch, row_weights=tf.cast(rows >= 0, tf.float32))

    batches = rows.batch(batch_size, drop_remainder=True)
    batches = batches.map(make, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return (endless(batches) if params.is_training else batches).prefetch(tf.data.AUTOTUNE)


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns an endless dataset, marked as such: otherwise several machines would agree on that before every step."""
    return dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
