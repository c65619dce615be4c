"""All of `prepare`: from text files to a corpus, which appears when it is complete."""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from shatter_tf.data.corpus import local
from shatter_tf.data.corpus.job import Job, Written
from shatter_tf.data.corpus.shards import CORPUS_FILE, TRAIN, VALIDATION, VOCABULARY_FILE, Corpus
from shatter_tf.data.text import find_files, read_documents
from shatter_tf.data.vocabulary import (
    UNKNOWN,
    check_vocabulary,
    is_ordinary,
    read_vocabulary,
    suitable_size,
    train_vocabulary,
    vocabulary_hash,
)
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import INCOMPLETE, publish, real_path

_SHARD_BYTES = 16 << 20  # of text: about 4 million tokens, which a training step may have to read when resuming
_MOST_SHARDS = 200  # of a split, on this machine, which keeps all of them open
_VOCABULARY_BYTES = 200 << 20  # a vocabulary is trained on at most this much text, sampled evenly
_GZIP_RATIO = 3  # assumed, for the progress bar and the number of shards


def build_corpus(
    *,
    input: str,
    output_dir: str,
    vocab_file: str | None,
    vocab_size: int | None,
    cased: bool,
    validation_fraction: float,
    validation_input: str | None,
    seq_length: int,
    num_workers: int,
    layout: str,
    errors: str,
    runner: str,
    beam_options: str,
) -> Corpus:
    """Makes a corpus and returns its description; `shatter prepare --help` explains the arguments.

    Raises:
      UserError: for arguments, files and texts that will not do; `output_dir` then is as it was.
    """
    if runner == "beam":
        from shatter_tf.data.corpus import beam  # needs Apache Beam, which is optional

    # What there is to do.
    _check_is_free(output_dir)
    paths, held_out = _find_inputs(input, validation_input)
    sizes = {p: tf.io.gfile.stat(p).length * (_GZIP_RATIO if p.endswith(".gz") else 1) for p in paths + held_out}
    total_bytes = sum(sizes.values())
    validation_bytes = sum(sizes[path] for path in held_out) or total_bytes * validation_fraction
    most_shards = _MOST_SHARDS if runner == "local" else math.inf
    num_shards = {
        split: min(max(1, int(size // _SHARD_BYTES)), most_shards)
        for split, size in ((TRAIN, total_bytes), (VALIDATION, validation_bytes))
    }
    vocabulary = read_vocabulary(vocab_file) if vocab_file else None

    with _all_or_nothing(output_dir) as directory:
        if not vocabulary:
            documents = (document for path in paths for document in read_documents(path, layout, errors))
            vocab_size = vocab_size or suitable_size(total_bytes)
            vocabulary = _train_vocabulary(documents, total_bytes, vocab_size, lower_case=not cased)
            check_vocabulary(vocabulary, input)

        # Shards.
        job = Job(
            paths=paths + held_out,
            held_out=held_out,
            layout=layout,
            errors=errors,
            vocabulary=vocabulary,
            lower_case=not cased,
            validation_fraction=0.0 if held_out else validation_fraction,
            num_shards=num_shards,
            directory=directory,
        )
        written = beam.write(job, beam_options) if runner == "beam" else local.write(job, total_bytes, num_workers)
        _check_splits(written, job, input)

        # What is in them.
        with tf.io.gfile.GFile(os.path.join(directory, VOCABULARY_FILE), "w") as f:
            f.write("\n".join(vocabulary) + "\n")
        corpus = _describe(written, job, seq_length)
        corpus.write(directory)
    return corpus


def _check_is_free(output_dir: str) -> None:
    """Raises UserError unless `output_dir` is an empty directory or does not exist."""
    name = f"{argument('output_dir')}={output_dir}"
    directory = real_path(output_dir)
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise UserError(f"{name}: a file; name a new directory")

    content = tf.io.gfile.listdir(directory)
    for file in content:
        if file.startswith(f"{INCOMPLETE}-"):
            raise UserError(f"{name}: not empty: {file} is unfinished work; remove it if no other prepare is at it")
    if content:
        raise UserError(f"{name}: not empty; name a new directory")


def _find_inputs(input: str, validation_input: str | None) -> tuple[list[str], list[str]]:
    """Returns the files to split into training and validation, and those for validation only."""
    paths = find_files(input, "input")
    held_out = find_files(validation_input, "validation_input") if validation_input else []
    real_paths = {real_path(path) for path in paths}
    for path in held_out:
        if real_path(path) in real_paths:
            name = f"{argument('validation_input')}={validation_input}"
            raise UserError(f"{name}: {path} is in {argument('input')}, too")
    return paths, held_out


@contextlib.contextmanager
def _all_or_nothing(output_dir: str) -> Iterator[str]:
    """Yields a directory whose contents appear as `output_dir` at the end, or are removed if an error ends it."""
    name = f"{argument('output_dir')}={output_dir}"
    target = real_path(output_dir)
    # Inside an existing directory: it may be a mount point, and what lies beside that cannot be renamed into it.
    inside = tf.io.gfile.exists(target) and "://" not in target
    directory = f"{target}{'/' if inside else ''}{INCOMPLETE}-{os.getpid()}"
    try:
        tf.io.gfile.makedirs(directory)
    except tf.errors.OpError as error:
        raise UserError(f"{name}: cannot be made ({first_line(error)})") from error

    try:
        yield directory
        publish(directory, target, last=CORPUS_FILE)
    except BaseException as error:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.rmtree(directory)
        if isinstance(error, tf.errors.OpError):
            raise UserError(f"{name}: cannot be written ({first_line(error)})") from error
        raise


def _train_vocabulary(documents: Iterator[str], total_bytes: int, size: int, lower_case: bool) -> list[str]:
    """Returns a vocabulary of the documents, or of every n-th if there are many."""
    stride = max(1, math.ceil(total_bytes / _VOCABULARY_BYTES))
    with local.progress(total_bytes // stride, "training vocabulary") as bar:

        def sample() -> Iterator[str]:
            for document in itertools.islice(documents, None, None, stride):
                bar.update(len(document.encode()) + 1)
                yield document

        return train_vocabulary(sample(), size, lower_case)


def _check_splits(written: Written, job: Job, input: str) -> None:
    """Raises UserError unless there are documents to train on, and to validate on."""
    train, validation = (sum(shard.documents for shard in written.split(name)) for name in (TRAIN, VALIDATION))
    if train and validation:
        return

    if job.held_out:
        where = f" in {argument('validation_input')}"
        remedy = "give more documents"
    else:
        where = ""
        remedy = f"give more documents or another {argument('validation_fraction')} (now {job.validation_fraction})"
    raise UserError(
        f"{argument('input')}={input}: {train} documents for training and {validation} for validation{where}; {remedy}"
    )


def _describe(written: Written, job: Job, seq_length: int) -> Corpus:
    ordinary_counts = written.counts[is_ordinary(job.vocabulary)]
    return Corpus(
        vocabulary_size=len(job.vocabulary),
        vocabulary_sha256=vocabulary_hash(job.vocabulary),
        lower_case=job.lower_case,
        unicode_normalization="NFC",
        seq_length=seq_length,
        unknown_tokens=int(written.counts[job.vocabulary.index(UNKNOWN)]),
        unigram_entropy=_entropy(ordinary_counts),
        sources=[dict(path=os.path.basename(path), documents=written.documents[path]) for path in job.paths],
        train=written.split(TRAIN),
        validation=written.split(VALIDATION),
    )


def _entropy(counts: np.ndarray) -> float:
    """Returns the entropy in nats of a distribution given by counts.

    Example:
    >>> round(_entropy(np.array([1, 0, 1])), 6)
    0.693147
    """
    # Not scipy.stats.entropy: it may round the last digit differently, and corpus.json stays what it always was.
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)))
