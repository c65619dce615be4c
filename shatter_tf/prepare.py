"""Turns text into a corpus: trains or takes a vocabulary, tokenises on all cores, writes sharded TFRecords.

  python -m shatter_tf.prepare --input='books/*.txt,news.txt.gz' --output_dir=corpus --vocab_size=8192

Input files hold one paragraph a line with blank lines between documents, or one document a line (--layout says which;
"auto" looks for blank lines). Files whose names end in .gz are unpacked. OUTPUT_DIR gets train-*.tfrecord,
validation-*.tfrecord, vocab.txt and, at the end, when all the work is done, corpus.json.

For more text than one machine can handle, an Apache Beam pipeline writes the same shards (for more than 3 GB, more of
them); files and OUTPUT_DIR must then be where every worker sees them:

  python -m shatter_tf.prepare --input='gs://b/text/*.gz' --output_dir=gs://b/corpus --vocab_file=vocab.txt \\
      --runner=beam --beam_options='--runner=DataflowRunner --project=P --region=R --temp_location=gs://b/tmp'
"""

import argparse
import collections
import concurrent.futures
import contextlib
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shatter_tf.command_line import UserError, configure_libraries, first_line, new_parser, quieten_logging, run

if TYPE_CHECKING:  # otherwise --help would import TensorFlow
    from shatter_tf.data.shards import Job, Written

_SHARD_BYTES = 16 << 20  # of text: about 4 million tokens, which a training step may have to read when resuming
_MOST_SHARDS = 200  # of a split, on this machine, which keeps all of them open
_CHUNK_CHARACTERS = 1 << 20  # handed to a worker at a time
_WORKER_BYTES = 8 << 20  # less text than this is not worth another process, which must import TensorFlow
_VOCABULARY_BYTES = 200 << 20  # a vocabulary is trained on at most so much text, sampled evenly
_GZIP_RATIO = 3  # assumed, for the progress bar and the number of shards


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("prepare", __doc__)
    parser.add_argument("--input", required=True, metavar="GLOB[,GLOB]", help="text files")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="new or empty directory")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--vocab_file", metavar="F", help="a vocab.txt to use, one wordpiece a line")
    vocabulary.add_argument("--vocab_size", type=int, default=30522, metavar="N", help="wordpieces to train [30522]")
    parser.add_argument("--cased", action="store_true", help="keep upper case and accents")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--validation_fraction", type=float, default=0.01, metavar="X", help="of documents [0.01]")
    held_out.add_argument("--validation_input", metavar="GLOB[,GLOB]", help="text files to validate on instead")
    parser.add_argument(
        "--seq_length", type=int, default=128, metavar="N", help="row length training uses unless told [128]"
    )
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), metavar="N", help="processes [all cores]")
    parser.add_argument("--layout", choices=("auto", "blank_line", "line"), default="auto", help="of documents [auto]")
    parser.add_argument("--errors", choices=("strict", "replace"), default="strict", help="on invalid UTF-8 [strict]")
    parser.add_argument("--runner", choices=("local", "beam"), default="local", help="what does the work [local]")
    parser.add_argument("--beam_options", default="", metavar="OPTIONS", help="Beam's own flags [its DirectRunner]")
    args = parser.parse_args(argv)
    if args.beam_options and args.runner != "beam":
        raise UserError("--beam_options: they need --runner=beam")
    if not 0 < args.validation_fraction < 1:
        raise UserError(f"--validation_fraction={args.validation_fraction}: must lie between 0 and 1")
    for name, least in (("vocab_size", 100), ("seq_length", 8), ("num_workers", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least {least}")
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    import numpy as np
    import tensorflow as tf

    from shatter_tf.data import shards, text, tokenizer
    from shatter_tf.files import INCOMPLETE, publish, real_path

    if args.runner == "beam":
        from shatter_tf.data import beam
    quieten_logging()
    output_dir = real_path(args.output_dir)
    is_there = tf.io.gfile.exists(output_dir)
    if is_there and not tf.io.gfile.isdir(output_dir):
        raise UserError(f"--output_dir={args.output_dir}: a file; name a new directory")
    if is_there and (content := tf.io.gfile.listdir(output_dir)):
        unfinished = [name for name in content if name.startswith(f"{INCOMPLETE}-")]
        what = f": {unfinished[0]} is unfinished work; remove it if no other prepare is at it" if unfinished else ""
        raise UserError(f"--output_dir={args.output_dir}: not empty{what or '; name a new directory'}")
    paths = text.find_files(args.input)
    held_out = text.find_files(args.validation_input, "--validation_input") if args.validation_input else []
    real_paths = {*map(real_path, paths)}
    both = [path for path in held_out if real_path(path) in real_paths]
    if both:
        raise UserError(f"--validation_input={args.validation_input}: {both[0]} is in --input, too")
    sizes = {p: tf.io.gfile.stat(p).length * (_GZIP_RATIO if p.endswith(".gz") else 1) for p in paths + held_out}
    total_bytes = sum(sizes.values())
    start = time.time()
    # Inside an existing directory: it may be a mount point, and what lies beside that cannot be renamed into it.
    between = "/" if is_there and "://" not in output_dir else ""
    temporary = f"{output_dir}{between}{INCOMPLETE}-{os.getpid()}"
    validation_bytes = sum(sizes[path] for path in held_out) or total_bytes * args.validation_fraction
    num_shards = {shards.TRAIN: total_bytes, shards.VALIDATION: validation_bytes}
    num_shards = {split: max(1, int(size // _SHARD_BYTES)) for split, size in num_shards.items()}
    if args.runner == "local":
        num_shards = {split: min(number, _MOST_SHARDS) for split, number in num_shards.items()}
    job = shards.Job(
        paths=paths + held_out,
        held_out=held_out,
        layout=args.layout,
        errors=args.errors,
        vocabulary=[],
        lower_case=not args.cased,
        validation_fraction=0.0 if held_out else args.validation_fraction,
        num_shards=num_shards,
        directory=temporary,
    )
    if args.vocab_file:
        job.vocabulary = tokenizer.read_vocabulary(args.vocab_file)
    try:
        tf.io.gfile.makedirs(temporary)
    except tf.errors.OpError as error:
        raise UserError(f"--output_dir={args.output_dir}: cannot be made ({first_line(error)})") from error
    try:
        if not job.vocabulary:
            job.vocabulary = _train_vocabulary(job, paths, total_bytes, args.vocab_size)
            tokenizer.check_vocabulary(job.vocabulary, args.input)
        if args.runner == "beam":
            written = beam.write(job, args.beam_options)
        else:
            written = _write(job, total_bytes, min(args.num_workers, 1 + total_bytes // _WORKER_BYTES))
        train, validation = written.split(shards.TRAIN), written.split(shards.VALIDATION)
        train_documents, validation_documents = (sum(s.documents for s in split) for split in (train, validation))
        if not train_documents or not validation_documents:
            fraction = "" if held_out else f" or another --validation_fraction (now {job.validation_fraction})"
            raise UserError(
                f"--input={args.input}: {train_documents} documents for training and {validation_documents} for "
                f"validation{' in --validation_input' if held_out else ''}; give more documents{fraction}"
            )
        with tf.io.gfile.GFile(os.path.join(temporary, shards.VOCABULARY_FILE), "w") as f:
            f.write("\n".join(job.vocabulary) + "\n")
        ordinary = np.array([token not in tokenizer.SPECIAL_TOKENS for token in job.vocabulary])
        unknown = int(written.counts[job.vocabulary.index(tokenizer.UNKNOWN)])
        shards.Corpus(
            vocabulary_size=len(job.vocabulary),
            vocabulary_sha256=tokenizer.vocabulary_hash(job.vocabulary),
            lower_case=job.lower_case,
            unicode_normalization="NFC",
            seq_length=args.seq_length,
            unknown_tokens=unknown,
            unigram_entropy=shards.unigram_entropy(written.counts * ordinary),
            sources=[dict(path=os.path.basename(path), documents=written.documents[path]) for path in job.paths],
            train=train,
            validation=validation,
        ).write(temporary)
        publish(temporary, output_dir, last=shards.CORPUS_FILE)
    except BaseException as error:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.rmtree(temporary)
        if isinstance(error, tf.errors.OpError):
            raise UserError(f"--output_dir={args.output_dir}: cannot be written ({first_line(error)})") from error
        raise
    seconds = time.time() - start
    tokens = sum(s.tokens for s in train + validation)
    print(
        f"{args.output_dir}: {train_documents:,} + {validation_documents:,} documents (training + validation), "
        f"{tokens:,} tokens in {len(train)} + {len(validation)} shards, {len(job.vocabulary):,} wordpieces, "
        f"{unknown / tokens:.3%} unknown; {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s"
    )


def _train_vocabulary(job: "Job", paths: list[str], total_bytes: int, size: int) -> list[str]:
    """Returns a vocabulary of the documents in `paths`, or of every n-th if there are many."""
    from shatter_tf.data.tokenizer import train_vocabulary

    stride = max(1, math.ceil(total_bytes / _VOCABULARY_BYTES))
    with _progress(total_bytes // stride, "training vocabulary") as bar:

        def sample() -> Iterator[str]:
            for i, document in enumerate(document for path in paths for document in job.documents(path)):
                if i % stride == 0:
                    bar.update(len(document.encode()) + 1)
                    yield document

        return train_vocabulary(sample(), size, job.lower_case)


def _write(job: "Job", total_bytes: int, num_workers: int) -> "Written":
    """Does the whole job on `num_workers` processes of this machine."""
    import numpy as np
    import tensorflow as tf

    from shatter_tf.data.shards import Written

    written = Written(job.shards(), dict.fromkeys(job.paths, 0), np.zeros(len(job.vocabulary), np.int64))
    documents = ((path, document) for path in job.paths for document in job.documents(path))
    with contextlib.ExitStack() as stack:
        writers = {
            key: stack.enter_context(tf.io.TFRecordWriter(os.path.join(job.directory, shard.file)))
            for key, shard in written.shards.items()
        }
        bar = stack.enter_context(_progress(total_bytes, "tokenising"))
        encode = stack.enter_context(_encoder(job, num_workers))
        for chunk, (records, counts) in encode(_chunks(documents)):
            written.counts += counts
            for (path, document), (record, tokens) in zip(chunk, records, strict=True):
                if not record:
                    continue
                key = job.place(path, document)
                writers[key].write(record)
                written.shards[key].documents += 1
                written.shards[key].tokens += tokens
                written.documents[path] += 1
            bar.update(sum(len(document.encode()) + 1 for _, document in chunk))
    for shard in written.shards.values():
        if not shard.documents:
            tf.io.gfile.remove(os.path.join(job.directory, shard.file))
    return written


def _progress(total: int, description: str):
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="B", unit_scale=True, mininterval=1.0, dynamic_ncols=True)


def _chunks(documents: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    chunk, characters = [], 0
    for path, document in documents:
        chunk.append((path, document))
        characters += len(document)
        if characters > _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def _encoder(job: "Job", num_workers: int):
    """Yields a function from chunks of documents to (chunk, records), in order, on `num_workers` processes."""
    if num_workers == 1:
        _start_worker(job)
        yield lambda chunks: ((chunk, _encode([document for _, document in chunk])) for chunk in chunks)
        return
    with concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
        initializer=_start_worker,
        initargs=(job,),
    ) as pool:

        def encode(chunks):
            pending = collections.deque()
            for chunk in chunks:
                pending.append((chunk, pool.submit(_encode, [document for _, document in chunk])))
                if len(pending) > 2 * num_workers:  # bounds the memory: reading waits for the workers
                    chunk, future = pending.popleft()
                    yield chunk, future.result()
            for chunk, future in pending:
                yield chunk, future.result()

        yield encode


_tokenizer = None  # of this worker process


def _start_worker(job: "Job") -> None:
    global _tokenizer
    configure_libraries()
    quieten_logging()
    _tokenizer = job.tokenizer()


def _encode(documents: list[str]):
    from shatter_tf.data.shards import encode_documents

    return encode_documents(documents, _tokenizer)


if __name__ == "__main__":
    run(main)
