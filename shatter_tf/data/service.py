"""Batches made by other machines: tf.data service, with the order kept.

A service hands batches out as its workers finish them. Here every worker makes its share of them, in turn, and they are
put back in order, so that what a step sees stays a function of (seed, step).
"""

import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import tensorflow as tf

_PATIENCE = 600.0  # seconds: a client of the service would wait for a lost worker forever


def made_by_workers(inputs: tf.data.Dataset, make_batch: Callable, address: str) -> tf.data.Dataset:
    """Returns `inputs.map(make_batch)`, computed by the workers of a tf.data service.

    Every worker reads all of `inputs`, which should be cheap, and makes the batches of its own share.

    Args:
      inputs: an endless dataset, whose files the workers find under the same paths.
      make_batch: a function of an element, in TensorFlow's operations.
      address: of the service's dispatcher, such as grpc://host:5050, which was given its workers' addresses when it was
        started; no more can join.

    Raises:
      tf.errors.UnknownError: while it is read, when a worker was restarted, or gives nothing for ten minutes.
    """
    share = tf.data.experimental.SHARD_HINT  # the service puts each worker's number here
    service = tf.data.experimental.service
    numbered = (
        inputs.enumerate()
        .shard(share, share)
        .map(lambda number, x: (number, make_batch(x)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    )

    def in_order() -> Iterator:
        # A job of its own, because an existing one would continue where it is; its workers take turns.
        job = dict(job_name=uuid.uuid4().hex, consumer_index=0, num_consumers=1)
        batches = iter(numbered.apply(service.distribute(service.ShardingPolicy.HINT, address, **job)))
        early = {}
        due = 0
        while True:
            try:
                number, batch = _next(batches, _PATIENCE)
            except queue.Empty:
                raise RuntimeError(f"{address}: a worker has given nothing for {_PATIENCE:.0f} seconds") from None
            if number < due:
                raise RuntimeError(f"{address}: a worker was started again")
            early[int(number)] = batch
            while due in early:
                yield early.pop(due)
                due += 1

    return tf.data.Dataset.from_generator(in_order, output_signature=numbered.element_spec[1])


def _next(iterator: Iterator, seconds: float):
    """Returns the iterator's next element; raises what it raises, or queue.Empty when that takes too long."""
    results = queue.SimpleQueue()

    def read():
        try:
            results.put((next(iterator), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=read, daemon=True).start()
    element, error = results.get(timeout=seconds)
    if error is not None:
        raise error
    return element


def address_problem(address: str | None) -> str | None:
    """Returns what is wrong with a dispatcher's address, or that nothing answers there; None if all is well."""
    try:
        parts = urlsplit(address or "")
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5).close()
    except (OSError, ValueError) as error:
        return f"no dispatcher of a tf.data service answers, give one as grpc://host:port ({error})"
    return None
