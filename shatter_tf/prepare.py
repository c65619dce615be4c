"""Turns text into a corpus: trains or takes a vocabulary, tokenizes on all cores, writes sharded TFRecords.

  shatter prepare --input='books/*.txt,news.txt.gz' --output_dir=corpus --vocab_size=8192

Input is text: one paragraph a line with blank lines between documents, or one document a line (--layout says which;
"auto" counts lines). Or it is records, one for each document: JSON Lines, a JSON array, Parquet, Arrow, or a directory
that Hugging Face `datasets` saved. Files may be packed (gzip, bzip2, xz, zstd). A directory stands for all files in it.
OUTPUT_DIR gets train-*.tfrecord, validation-*.tfrecord, vocab.txt and, when all the work is done, corpus.json.

For more text than one machine can handle, an Apache Beam pipeline writes the same shards (for more than 3 GB, more of
them); files and OUTPUT_DIR must then be where every worker sees them:

  shatter prepare --input='gs://b/text/**' --output_dir=gs://b/corpus --vocab_file=vocab.txt \\
      --runner=beam --beam_options='--runner=DataflowRunner --project=P --region=R --temp_location=gs://b/tmp'
"""

import argparse
import os
import time

from shatter_tf.console import importing, new_parser, run, say
from shatter_tf.errors import UserError


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("prepare", __doc__)
    parser.add_argument("--input", required=True, metavar="GLOB[,GLOB]", help="files or directories")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="new or empty directory")
    parser.add_argument("--text_field", default="", metavar="NAME", help="of records [text, content, document, …]")
    parser.add_argument("--min_characters", type=int, default=0, metavar="N", help="leave shorter documents out [0]")
    parser.add_argument("--keep_duplicates", action="store_true", help="do not leave out documents that recur")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument("--vocab_file", metavar="F", help="a vocab.txt to use, one wordpiece a line")
    vocabulary.add_argument("--vocab_size", type=int, metavar="N", help="wordpieces to train [what suits the text]")
    parser.add_argument("--cased", action="store_true", help="keep upper case and accents")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument(
        "--validation_fraction", type=float, metavar="X", help="of documents [0.01, or more of a few]"
    )
    held_out.add_argument("--validation_input", metavar="GLOB[,GLOB]", help="files to validate on instead")
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
    if args.validation_fraction is not None and not 0 < args.validation_fraction < 1:
        raise UserError(f"--validation_fraction={args.validation_fraction}: must lie between 0 and 1")
    for name, least in (("vocab_size", 100), ("seq_length", 8), ("num_workers", 1), ("min_characters", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name}={getattr(args, name)}: must be at least {least}")
    return args


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    with importing():
        from shatter_tf.data.corpus.build import build_corpus

    start = time.time()
    corpus = build_corpus(**vars(args))
    seconds = time.time() - start

    train, validation = (sum(shard.documents for shard in split) for split in (corpus.train, corpus.validation))
    tokens = sum(shard.tokens for shard in corpus.train + corpus.validation)
    say(
        f"{args.output_dir}: {train:,} + {validation:,} documents (training + validation), "
        f"{tokens:,} tokens in {len(corpus.train)} + {len(corpus.validation)} shards, "
        f"{corpus.vocabulary_size:,} wordpieces, {corpus.unknown_tokens / tokens:.3%} unknown; "
        f"{seconds:.0f} s, {tokens / seconds:,.0f} tokens/s"
    )


if __name__ == "__main__":
    run(main)
