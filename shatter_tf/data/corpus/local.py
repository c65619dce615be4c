"""`prepare` on this machine: several processes encode documents, this one reads and writes them."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from shatter_tf.console import configure_libraries, quieten_logging
from shatter_tf.data.corpus.job import EMPTY, Document, Job, Written, encode_documents
from shatter_tf.data.text import chunks
from shatter_tf.data.tokenizer import Tokenizer

_CHUNK_CHARACTERS = 1 << 20  # handed to a worker at a time
_WORKER_BYTES = 8 << 20  # less text than this is not worth another process, which must import TensorFlow


def write(job: Job, total_bytes: int, num_workers: int) -> Written:
    """Does the whole job on at most `num_workers` processes; `total_bytes` is the size of its text, about."""
    num_workers = min(num_workers, 1 + total_bytes // _WORKER_BYTES)
    written = Written(job)
    with contextlib.ExitStack() as stack:
        writers = {
            key: stack.enter_context(tf.io.TFRecordWriter(os.path.join(job.directory, shard.file)))
            for key, shard in written.shards.items()
        }
        bar = stack.enter_context(progress(total_bytes, "tokenizing"))
        # Closed, so that an error here ends the workers.
        encoded = stack.enter_context(contextlib.closing(_encoded(job, num_workers, written.counts)))
        for chunk, records, wordpieces in encoded:
            written.wordpieces += wordpieces
            for document, (record, tokens) in zip(chunk, records, strict=True):
                if not record:
                    written.counts[EMPTY] += 1
                    continue
                key = job.place(document)
                writers[key].write(record)
                written.shards[key].documents += 1
                written.shards[key].tokens += tokens
                written.documents[document.source] += 1
            bar.update(sum(len(document.text.encode()) + 1 for document in chunk))

    for shard in written.shards.values():
        if not shard.documents:
            tf.io.gfile.remove(os.path.join(job.directory, shard.file))
    return written


def progress(total_bytes: int, description: str) -> tqdm:
    """Returns a progress bar that counts bytes."""
    return tqdm(total=total_bytes, desc=description, unit="B", unit_scale=True, mininterval=1.0, dynamic_ncols=True)


def _encoded(
    job: Job, num_workers: int, counts: collections.Counter
) -> Iterator[tuple[list[Document], list[tuple[bytes, int]], np.ndarray]]:
    """Yields chunks of all documents in order, each with the results of `encode_documents`, and adds to `counts`."""
    documents = job.read_all(range(len(job.sources)), counts)
    documents_in_chunks = chunks(documents, lambda document: len(document.text), _CHUNK_CHARACTERS)
    if num_workers == 1:
        tokenizer = job.tokenizer()
        for chunk in documents_in_chunks:
            yield chunk, *encode_documents([document.text for document in chunk], tokenizer)
        return

    with concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
        initializer=_start_worker,
        initargs=(job,),
    ) as pool:
        pending = collections.deque()
        for chunk in documents_in_chunks:
            pending.append((chunk, pool.submit(_encode, [document.text for document in chunk])))
            if len(pending) > 2 * num_workers:  # bounds the memory: reading waits for the workers
                chunk, future = pending.popleft()
                yield chunk, *future.result()
        for chunk, future in pending:
            yield chunk, *future.result()


# In each worker process:
_tokenizer: Tokenizer


def _start_worker(job: Job) -> None:
    global _tokenizer
    configure_libraries()
    quieten_logging()
    _tokenizer = job.tokenizer()


def _encode(documents: list[str]) -> tuple[list[tuple[bytes, int]], np.ndarray]:
    return encode_documents(documents, _tokenizer)
