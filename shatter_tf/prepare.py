"""Text to a corpus: trains or takes a vocabulary, tokenises on all cores, writes sharded TFRecords.

  python -m shatter_tf.prepare --input='books/*.txt,news.txt.gz' --output_dir=corpus --vocab_size=8192

Input files hold one paragraph a line with blank lines between documents, or one document a line (--layout says which;
"auto" looks for blank lines). Files whose names end in .gz are unpacked. OUTPUT_DIR gets train-*.tfrecord,
validation-*.tfrecord, vocab.txt and corpus.json, all at once when the work is done.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator

from shatter_tf.command_line import UserError, quieten_libraries, quieten_logging, run

_SHARD_BYTES = 16 << 20  # of text: about 4 million tokens, which a training step may have to read at a resume
_CHUNK_CHARACTERS = 1 << 20  # handed to a worker at a time
_WORKER_BYTES = 8 << 20  # less text than this is not worth another process, which must import TensorFlow
_VOCABULARY_BYTES = 200 << 20  # a vocabulary is trained on at most so much text, sampled evenly
_GZIP_RATIO = 3  # assumed, for the progress bar and the number of shards


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shatter_tf.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    args = parser.parse_args(argv)
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

    quieten_logging()
    output_dir = args.output_dir.rstrip("/")
    if tf.io.gfile.exists(output_dir) and tf.io.gfile.listdir(output_dir):
        raise UserError(f"--output_dir={output_dir}: not empty; name a new directory")
    paths = text.find_files(args.input)
    held_out = text.find_files(args.validation_input, "--validation_input") if args.validation_input else []
    both = sorted({*paths} & {*held_out})
    if both:
        raise UserError(f"--validation_input={args.validation_input}: {both[0]} is in --input, too")
    fraction = 0.0 if held_out else args.validation_fraction
    total_bytes = sum(tf.io.gfile.stat(p).length * (_GZIP_RATIO if p.endswith(".gz") else 1) for p in paths + held_out)
    start = time.time()

    def documents(paths: list[str]) -> Iterator[tuple[str, str]]:
        for path in paths:
            for document in text.read_documents(path, args.layout, args.errors):
                yield path, document

    if args.vocab_file:
        vocabulary = tokenizer.read_vocabulary(args.vocab_file)
    else:
        stride = max(1, total_bytes // _VOCABULARY_BYTES)
        sample = (document for i, (_, document) in enumerate(documents(paths)) if i % stride == 0)
        with _progress(total_bytes // stride, "training vocabulary") as bar:
            vocabulary = tokenizer.train_vocabulary(_counted(sample, bar), args.vocab_size, lower_case=not args.cased)
        tokenizer.check_vocabulary(vocabulary, args.input)
    lower_case = not args.cased

    num_shards = max(1, total_bytes // _SHARD_BYTES)
    train = [shards.Shard(f"train-{i:05d}-of-{num_shards:05d}.tfrecord") for i in range(num_shards)]
    validation = [shards.Shard("validation-00000-of-00001.tfrecord")]
    sources = {path: dict(path=os.path.basename(path), documents=0) for path in paths + held_out}
    counts = np.zeros(len(vocabulary), np.int64)

    temporary = f"{output_dir}.incomplete-{os.getpid()}"
    tf.io.gfile.makedirs(temporary)
    try:
        with contextlib.ExitStack() as stack:
            writers = {
                shard.file: stack.enter_context(tf.io.TFRecordWriter(os.path.join(temporary, shard.file)))
                for shard in train + validation
            }
            bar = stack.enter_context(_progress(total_bytes, "tokenising"))
            num_workers = min(args.num_workers, 1 + total_bytes // _WORKER_BYTES)
            encode = stack.enter_context(_encoder(vocabulary, lower_case, num_workers))
            for chunk, (records, chunk_counts) in encode(_chunks(documents(paths + held_out))):
                counts += chunk_counts
                for (path, document), (record, tokens) in zip(chunk, records, strict=True):
                    if not record:
                        continue
                    split, number = shards.place(document, 1.0 if path in held_out else fraction, num_shards)
                    shard = (train if split == shards.TRAIN else validation)[number]
                    writers[shard.file].write(record)
                    shard.documents += 1
                    shard.tokens += tokens
                    sources[path]["documents"] += 1
                bar.update(sum(len(document.encode()) + 1 for _, document in chunk))
        ordinary = np.array([token not in tokenizer.SPECIAL_TOKENS for token in vocabulary])
        unknown = int(counts[vocabulary.index(tokenizer.UNKNOWN)])
        train_documents, validation_documents = (sum(s.documents for s in split) for split in (train, validation))
        if not train_documents or not validation_documents:
            raise UserError(
                f"--input={args.input}: {train_documents} documents for training and {validation_documents} for "
                f"validation; give more documents or another --validation_fraction (now {fraction})"
            )
        with tf.io.gfile.GFile(os.path.join(temporary, shards.VOCABULARY_FILE), "w") as f:
            f.write("\n".join(vocabulary) + "\n")
        for shard in [s for s in train if not s.documents]:
            tf.io.gfile.remove(os.path.join(temporary, shard.file))
            train.remove(shard)
        shards.Corpus(
            vocabulary_size=len(vocabulary),
            vocabulary_sha256=tokenizer.vocabulary_hash(vocabulary),
            lower_case=lower_case,
            unicode_normalization="NFC",
            seq_length=args.seq_length,
            unknown_tokens=unknown,
            unigram_entropy=shards.unigram_entropy(counts * ordinary),
            sources=list(sources.values()),
            train=train,
            validation=validation,
        ).write(temporary)
        if tf.io.gfile.exists(output_dir):
            tf.io.gfile.rmtree(output_dir)
        tf.io.gfile.rename(temporary, output_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    seconds = time.time() - start
    tokens = sum(s.tokens for s in train + validation)
    print(
        f"{output_dir}: {train_documents:,} + {validation_documents:,} documents (training + validation), "
        f"{tokens:,} tokens in {len(train)} + {len(validation)} shards, {len(vocabulary):,} wordpieces, "
        f"{unknown / tokens:.3%} unknown; {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s"
    )


def _progress(total: int, description: str):
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="B", unit_scale=True, mininterval=1.0, dynamic_ncols=True)


def _counted(documents: Iterator[str], bar) -> Iterator[str]:
    for document in documents:
        bar.update(len(document.encode()) + 1)
        yield document


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
def _encoder(vocabulary: list[str], lower_case: bool, num_workers: int):
    """Gives a function from chunks of documents to (chunk, records), in order, on `num_workers` processes."""
    if num_workers == 1:
        _start_worker(vocabulary, lower_case)
        yield lambda chunks: ((chunk, _encode([document for _, document in chunk])) for chunk in chunks)
        return
    with concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
        initializer=_start_worker,
        initargs=(vocabulary, lower_case),
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


def _start_worker(vocabulary: list[str], lower_case: bool) -> None:
    global _tokenizer
    quieten_libraries()
    from shatter_tf.data.tokenizer import Tokenizer

    quieten_logging()
    _tokenizer = Tokenizer(vocabulary, lower_case)


def _encode(documents: list[str]):
    from shatter_tf.data.shards import encode_documents

    return encode_documents(documents, _tokenizer)


if __name__ == "__main__":
    run(main)
