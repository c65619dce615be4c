"""`prepare` as an Apache Beam pipeline: the same shards, to the last byte, from as many machines as a runner has."""

import collections
import json
import logging
import os
import shlex
import uuid
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from shatter_tf.console import say
from shatter_tf.data.corpus.job import DOCUMENTS, DUPLICATES, EMPTY, SHORT, Document, Job, Written, encode_documents
from shatter_tf.errors import UserError, argument

logging.disable(logging.WARNING)  # Beam warns about every cloud that it has no client for
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError(f"{argument('runner')}=beam needs Apache Beam ({error}): pip install 'shatter_tf[beam]'") from error
finally:
    logging.disable(logging.NOTSET)

_BATCH_DOCUMENTS = 256

_STATISTICS_FILE = "statistics.json"

_NOWHERE = -1  # the source of documents that are empty to a tokenizer


def write(job: Job, options: str) -> Written:
    """Does the whole job as a pipeline and waits for it.

    Args:
      job: its paths and directory must be the same place on every worker.
      options: Beam's own flags, as in a shell, `--runner=…` among them; empty is its DirectRunner.

    Raises:
      UserError: with Beam's reason, when the pipeline fails.
    """
    if not options:  # it runs here, and a failure is reported in one line instead of its logs
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    say(f"Beam: {len(job.sources)} files to at most {sum(job.num_shards.values())} shards")
    try:
        with beam.Pipeline(options=PipelineOptions(shlex.split(options))) as pipeline:
            _build(pipeline, job)
    except Exception as error:  # whatever a runner raises: its own errors have no common class
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(f"{argument('runner')}=beam: the pipeline failed: {reason}") from error

    return _read_statistics(job)


def _build(pipeline: beam.Pipeline, job: Job) -> None:
    """Adds all steps to a pipeline that writes the shards and _STATISTICS_FILE."""

    def read(source: int) -> Iterator:
        counts = collections.Counter()
        for number, document in enumerate(job.read(source, counts)):
            yield document.key, (source, number, document)
        yield beam.pvalue.TaggedOutput("counts", dict(counts))

    def write_statistics(elements: list) -> None:
        with tf.io.gfile.GFile(os.path.join(job.directory, _STATISTICS_FILE), "w") as f:
            json.dump(elements, f)

    found = (
        pipeline
        | "Files" >> beam.Create(range(len(job.sources)))
        | "SpreadFiles" >> beam.Reshuffle()
        | "Read" >> beam.FlatMap(read).with_outputs("counts", main="documents")
    )
    # Both spread documents, too; otherwise a file's would stay with one worker.
    different = beam.Reshuffle() if job.keep_duplicates else beam.CombinePerKey(min)
    encoded = (
        found.documents
        | "Different" >> different
        | "Numbered" >> beam.Values()
        | "Batch" >> beam.BatchElements(min_batch_size=1, max_batch_size=_BATCH_DOCUMENTS)
        | "Encode" >> beam.ParDo(_Encode(job)).with_outputs("wordpieces", "sources", main="records")
    )
    shards = encoded.records | beam.GroupByKey() | "Write" >> beam.ParDo(_WriteShard(job))
    sources = encoded.sources | "Documents" >> beam.combiners.Count.PerElement() | beam.Map(lambda n: ["source", *n])
    wordpieces = (
        encoded.wordpieces
        | "Wordpieces" >> beam.CombineGlobally(lambda counts: sum(counts))
        | "List" >> beam.Map(lambda counts: ["wordpieces", np.asarray(counts).tolist()])
    )
    counts = found.counts | "Counts" >> beam.Map(lambda counts: ["counts", counts])
    statistics = (shards, sources, wordpieces, counts) | beam.Flatten() | beam.combiners.ToList()
    statistics | "Statistics" >> beam.Map(write_statistics)


class _Encode(beam.DoFn):
    """Maps batches of (source, number, document) to ((split, shard), (source, number, record, tokens)).

    Each wordpiece's count goes to the output "wordpieces", the documents' sources, or _NOWHERE, to "sources".
    """

    def __init__(self, job: Job):
        self._job = job

    def setup(self):
        self._tokenizer = self._job.tokenizer()

    def process(self, batch: list[tuple[int, int, Document]]):
        records, counts = encode_documents([document.text for _, _, document in batch], self._tokenizer)
        yield beam.pvalue.TaggedOutput("wordpieces", counts)
        for (source, number, document), (record, tokens) in zip(batch, records, strict=True):
            if record:
                yield self._job.place(document), (source, number, record, tokens)
            yield beam.pvalue.TaggedOutput("sources", source if record else _NOWHERE)


class _WriteShard(beam.DoFn):
    """Writes all records of one shard to its file, in the order of the input files and of the documents in them."""

    def __init__(self, job: Job):
        self._job = job

    def process(self, element: tuple[tuple[str, int], Iterable[tuple[int, int, bytes, int]]]):
        key, records = element
        path = os.path.join(self._job.directory, self._job.shards()[key].file)
        attempt = f"{path}.{uuid.uuid4().hex}"  # runners may do a piece of work twice, even at the same time
        documents = 0
        tokens = 0
        with tf.io.TFRecordWriter(attempt) as writer:
            for _, _, record, length in sorted(records):
                writer.write(record)
                documents += 1
                tokens += length
        tf.io.gfile.rename(attempt, path, overwrite=True)
        yield ["shard", *key, documents, tokens]


def _read_statistics(job: Job) -> Written:
    """Returns what a pipeline wrote, and removes _STATISTICS_FILE, which says it."""
    path = os.path.join(job.directory, _STATISTICS_FILE)
    with tf.io.gfile.GFile(path) as f:
        statistics = json.load(f)
    tf.io.gfile.remove(path)

    written = Written(job)
    for kind, *values in statistics:
        if kind == "shard":
            split, number, documents, tokens = values
            shard = written.shards[split, number]
            shard.documents = documents
            shard.tokens = tokens
        elif kind == "source":
            source, documents = values
            if source == _NOWHERE:
                written.counts[EMPTY] += documents
            else:
                written.documents[source] = documents
        elif kind == "counts":
            written.counts.update(values[0])
        else:
            written.wordpieces += values[0]

    counts = written.counts
    counts[DUPLICATES] = counts[DOCUMENTS] - counts[EMPTY] - counts[SHORT] - sum(written.documents)
    return written
