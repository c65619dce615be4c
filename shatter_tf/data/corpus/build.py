"""All of `prepare`: from text files to a corpus, which appears when it is complete."""

import collections
import concurrent.futures
import functools
import itertools
import json
import math
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from shatter_tf.console import say, warn
from shatter_tf.data import report
from shatter_tf.data.corpus import local
from shatter_tf.data.corpus.job import DOCUMENTS, DUPLICATES, EMPTY, SHORT, Job, Written
from shatter_tf.data.corpus.shards import CORPUS_FILE, TRAIN, VALIDATION, VOCABULARY_FILE, Corpus
from shatter_tf.data.documents import (
    BLANK_LINE,
    LINE,
    LONG_STRING,
    LONG_STRINGS,
    Source,
    Survey,
    find_files,
    find_source,
    is_named_so,
    survey,
)
from shatter_tf.data.streams import plain_name
from shatter_tf.data.text import chunks
from shatter_tf.data.vocabulary import (
    NORMALIZER_FILE,
    UNKNOWN,
    check_vocabulary,
    is_ordinary,
    read_normalizer,
    read_vocabulary,
    suitable_size,
    train_vocabulary,
    vocabulary_hash,
    write_normalizer,
)
from shatter_tf.errors import UserError, argument
from shatter_tf.files import INCOMPLETE, all_or_nothing, contents, real_path

_SHARD_BYTES = 16 << 20  # of text: about 4 million tokens, which a training step may have to read when resuming
_MOST_SHARDS = 200  # of a split, on this machine, which keeps all of them open
_MARKUP = (".csv", ".tsv", ".html", ".htm", ".xml")  # read like any text, for want of a reader
_VALIDATION_FRACTION = 0.01
_CHECKED_CHARACTERS = 200_000  # of text, for which a given vocabulary is tried
_FEWEST = 20  # documents; fewer are cut into pieces of so many characters, if none happens to be held out
_PIECE_CHARACTERS = 500
_VOCABULARY_BYTES = 200 << 20  # a vocabulary is trained on at most this much text, sampled evenly


def build_corpus(
    *,
    input: str,
    output_dir: str,
    text_field: str = "",
    min_characters: int = 0,
    keep_duplicates: bool = False,
    vocab_file: str | None,
    vocab_size: int | None,
    cased: bool,
    validation_fraction: float | None,
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
    vocabulary = read_vocabulary(vocab_file) if vocab_file else None
    normalizer, lower_case = _find_normalizer(vocab_file, cased) if vocab_file else ("", not cased)
    held_out, others = _find_sources(input, validation_input, text_field)
    found = survey(held_out + others, layout, errors)
    _say_what_is_read(held_out + others, found)

    fraction = validation_fraction or _VALIDATION_FRACTION
    total_bytes = sum(found.sizes.values())
    validation_bytes = sum(found.sizes[source.path] for source in held_out) or total_bytes * fraction
    most_shards = _MOST_SHARDS if runner == "local" else math.inf
    num_shards = {
        split: min(max(1, int(size // _SHARD_BYTES)), most_shards)
        for split, size in ((TRAIN, total_bytes), (VALIDATION, validation_bytes))
    }

    with all_or_nothing(output_dir, "output_dir", last=CORPUS_FILE) as directory:
        job = Job(
            sources=held_out + others,
            num_held_out=len(held_out),
            layout=found.layout,
            errors=errors,
            min_characters=min_characters,
            keep_duplicates=keep_duplicates,
            vocabulary=vocabulary or [],
            lower_case=lower_case,
            validation_fraction=0.0 if held_out else fraction,
            num_shards=num_shards,
            directory=directory,
            normalizer=normalizer,
        )
        if vocabulary:
            _check_vocabulary(job, f"{argument('vocab_file')}={vocab_file}")
        else:
            job.vocabulary = _train_vocabulary(job, total_bytes, vocab_size or suitable_size(total_bytes))
            check_vocabulary(job.vocabulary, input)

        # Shards.
        def write() -> Written:
            return beam.write(job, beam_options) if runner == "beam" else local.write(job, total_bytes, num_workers)

        written = write()
        is_unlucky = not all(_split_sizes(written)) and not held_out and validation_fraction is None
        if is_unlucky and _change_for_few_documents(job, written, total_bytes):
            written = write()
        _check_splits(written, job, input)

        # What is in them.
        with tf.io.gfile.GFile(os.path.join(directory, VOCABULARY_FILE), "w") as f:
            f.write("\n".join(job.vocabulary) + "\n")
        write_normalizer(directory, job.normalizer, job.lower_case)
        corpus = _describe(written, job, seq_length)
        corpus.write(directory)
    _say_what_was_read(written.counts, len(job.sources))
    return corpus


def _find_normalizer(vocab_file: str, cased: bool) -> tuple[str, bool]:
    """Returns the normalizer of a given vocabulary, and whether it is uncased; raises UserError for another casing."""
    found = read_normalizer(vocab_file)
    if found is None:
        return "", not cased

    normalizer, lower_case = found
    where = f"{argument('vocab_file')}={vocab_file}"
    if cased and lower_case:
        raise UserError(
            f"{argument('cased')}: {where} is uncased, says {NORMALIZER_FILE} beside it; leave out {argument('cased')}"
        )
    say(f"{where}: {'uncased' if lower_case else 'cased'}, normalizer {normalizer}, says {NORMALIZER_FILE} beside it")
    return normalizer, lower_case


def _check_vocabulary(job: Job, where: str) -> None:
    """Warns when the vocabulary does not suit the beginning of the text; raises UserError when it is of another."""
    documents = (document.text for i in range(len(job.sources)) for document in job.read(i, collections.Counter()))
    beginning = next(chunks(documents, len, _CHECKED_CHARACTERS), [])
    warning = report.check_vocabulary(beginning, job.tokenizer(), where)
    if warning:
        warn(warning)


def _check_is_free(output_dir: str) -> None:
    """Raises UserError unless `output_dir` is an empty directory or does not exist."""
    name = f"{argument('output_dir')}={output_dir}"
    directory = real_path(output_dir)
    if not tf.io.gfile.exists(directory):
        return
    if not tf.io.gfile.isdir(directory):
        raise UserError(f"{name}: a file; name a new directory")

    for file in tf.io.gfile.listdir(directory):
        if file.startswith(f"{INCOMPLETE}-"):
            raise UserError(f"{name}: not empty: {file} is unfinished work; remove it if no other prepare is at it")
    content = contents(directory)
    if CORPUS_FILE in content:
        raise UserError(
            f"{name}: not empty: already holds a finished corpus{_size(directory)}; train on it, or name another"
        )
    if content:
        raise UserError(f"{name}: not empty; name a new directory")


def _size(directory: str) -> str:
    """Returns " of N documents" for a corpus, or the empty string when its description cannot be read."""
    try:
        with tf.io.gfile.GFile(os.path.join(directory, CORPUS_FILE)) as f:
            about = json.load(f)
        return f" of {sum(shard['documents'] for shard in about['train'] + about['validation']):,} documents"
    except (tf.errors.OpError, ValueError, KeyError, TypeError):
        return ""


def _find_sources(input: str, validation_input: str | None, text_field: str) -> tuple[list[Source], list[Source]]:
    """Returns the sources for validation only, and those to split into training and validation."""
    paths = find_files(input, "input")
    held_out = find_files(validation_input, "validation_input") if validation_input else []
    real_paths = {real_path(path) for path in paths}
    for path in held_out:
        if real_path(path) in real_paths:
            name = f"{argument('validation_input')}={validation_input}"
            raise UserError(f"{name}: {path} is in {argument('input')}, too")

    # An object store is slow for each, and there may be thousands.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        sources = list(pool.map(functools.partial(find_source, text_field=text_field), held_out + paths))
    if text_field and not any(source.field for source in sources):
        raise UserError(f"{argument('text_field')}={text_field}: all files are plain text, which has no fields")
    return sources[: len(held_out)], sources[len(held_out) :]


def _say_what_is_read(sources: list[Source], found: Survey) -> None:
    plain = sum(not source.field for source in sources)
    if plain:
        layout = {LINE: "one document a line", BLANK_LINE: "blank lines between documents"}[found.layout]
        counts = f"; lines of text: {found.lines:,}, blank lines between them: {found.breaks:,}" if found.lines else ""
        say(f"text files: {plain:,}, {layout}{counts}")
        markup = [source.path for source in sources if not source.field and plain_name(source.path).endswith(_MARKUP)]
        if markup:
            warn(f"read as plain text, with all that is not text in it: {_first(markup)}")

    for field, number in collections.Counter(source.field for source in sources if source.field).items():
        say(f"files of records: {number:,}; their text is the field {field!r}")
    odd = [source.path for source in sources if source.field and not is_named_so(source.path)]
    if odd:
        say(f"read as records, in spite of the name: {_first(odd)}")


def _first(paths: list[str]) -> str:
    return f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}"


def _say_what_was_read(counts: collections.Counter, files: int) -> None:
    left_out = ", ".join(f"{kind} {counts[kind]:,}" for kind in (EMPTY, SHORT, DUPLICATES))
    say(
        f"files: {files:,}, documents read: {counts[DOCUMENTS]:,}; left out: {left_out}, "
        f"unbroken strings of over {LONG_STRING:,} characters {counts[LONG_STRINGS]:,}"
    )


def _train_vocabulary(job: Job, total_bytes: int, size: int) -> list[str]:
    """Returns a vocabulary of the documents that are not held out, or of every n-th if there are many."""
    stride = max(1, math.ceil(total_bytes / _VOCABULARY_BYTES))
    documents = job.read_all(range(job.num_held_out, len(job.sources)), collections.Counter())
    with local.progress(total_bytes // stride, "training vocabulary") as bar:

        def sample() -> Iterator[str]:
            for document in itertools.islice(documents, None, None, stride):
                bar.update(len(document.text.encode()) + 1)
                yield document.text

        return train_vocabulary(sample(), size, job.lower_case)


def _split_sizes(written: Written) -> tuple[int, int]:
    """Returns the numbers of documents for training and for validation."""
    train, validation = (sum(shard.documents for shard in written.split(name)) for name in (TRAIN, VALIDATION))
    return train, validation


def _change_for_few_documents(job: Job, written: Written, total_bytes: int) -> bool:
    """Makes a job likely to have documents in both splits, when chance gave it none in one; returns whether it can."""
    number = sum(_split_sizes(written))
    pieces = total_bytes // _PIECE_CHARACTERS
    if 0 < number < _FEWEST < pieces:
        say(
            f"too few documents to hold one out ({number:,}): cut into pieces of about {_PIECE_CHARACTERS:,} characters"
        )
        job.longest = _PIECE_CHARACTERS
        number = pieces
    if number < 2:
        return False

    fraction = min(0.5, _FEWEST / 2 / number)
    if fraction > job.validation_fraction:
        say(f"held out for validation: {fraction:.2%} of few documents, instead of {job.validation_fraction:.0%}")
        job.validation_fraction = fraction
    for shard in written.split(TRAIN) + written.split(VALIDATION):
        tf.io.gfile.remove(os.path.join(job.directory, shard.file))
    return True


def _check_splits(written: Written, job: Job, input: str) -> None:
    """Raises UserError unless there are documents to train on, and to validate on."""
    train, validation = _split_sizes(written)
    if train and validation:
        return

    where = ""
    if job.num_held_out:
        where = f" in {argument('validation_input')}"
        remedy = "give more documents"
    else:
        fraction = f", another {argument('validation_fraction')} (now {job.validation_fraction:.6g})"
        remedy = f"give more documents{fraction if train + validation > 1 else ''} or {argument('validation_input')}"
    if left_out := [f"{kind} {written.counts[kind]:,}" for kind in (EMPTY, SHORT, DUPLICATES) if written.counts[kind]]:
        where += f" (left out: {', '.join(left_out)})"
    raise UserError(
        f"{argument('input')}={input}: {train} documents for training and {validation} for validation{where}; {remedy}"
    )


def _describe(written: Written, job: Job, seq_length: int) -> Corpus:
    ordinary_counts = written.wordpieces[is_ordinary(job.vocabulary)]
    sources = [
        dict(path=os.path.basename(s.path.rstrip("/")), documents=n)
        for s, n in zip(job.sources, written.documents, strict=True)
    ]
    return Corpus(
        vocabulary_size=len(job.vocabulary),
        vocabulary_sha256=vocabulary_hash(job.vocabulary),
        lower_case=job.lower_case,
        unicode_normalization="" if job.normalizer else "NFC",
        seq_length=seq_length,
        unknown_tokens=int(written.wordpieces[job.vocabulary.index(UNKNOWN)]),
        unigram_entropy=_entropy(ordinary_counts),
        sources=sources[job.num_held_out :] + sources[: job.num_held_out],
        train=written.split(TRAIN),
        validation=written.split(VALIDATION),
        normalizer=job.normalizer,
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
