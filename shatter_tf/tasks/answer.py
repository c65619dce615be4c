"""shatter/answer: the span of a context that answers a question."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.modeling import hyperparams
from official.nlp.modeling import models

from shatter_tf.console import notice
from shatter_tf.data import labelled
from shatter_tf.data.question_answering import (
    QuestionAnsweringDataConfig,
    QuestionAnsweringDataLoader,
    answer_scores,
    best_spans,
    hold_out,
    lay_out,
    load_squad,
    windows,
)
from shatter_tf.data.report import Report
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.base import INPUTS
from shatter_tf.encoders.registry import EncoderConfig, build_encoder
from shatter_tf.errors import UserError, all_of, argument
from shatter_tf.tasks.base import (
    BaseTask,
    Data,
    FineTuning,
    choose_tfds_splits,
    known_vocabulary,
    row_weights,
    rows_of_logs,
    vocabulary_of,
)
from shatter_tf.tasks.signature import Signature, strings
from shatter_tf.tasks.step import without_autograph

_MOST_WINDOWS = 32  # that are read at a time
_NO_SPAN = -1e9  # the score where no span is allowed: JSON has no infinity


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """An encoder with Model Garden's head for spans."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)


@dataclasses.dataclass
class QuestionAnsweringConfig(FineTuning, cfg.TaskConfig):
    """Extractive question answering: the answer is a span of the context.

    Attributes:
      version_2_with_negative: whether a context may hold no answer, as in SQuAD 2.0; follows from the training data.
      n_best_size, max_answer_length: as in `best_spans`.
      null_score_diff_threshold: with `version_2_with_negative`, a question is left unanswered when the null
        score exceeds that of the best answer by more than this.
    """

    main_metric = "f1"
    used = (*FineTuning.used, "n_best_size", "max_answer_length", "null_score_diff_threshold")

    version_2_with_negative: bool = False
    n_best_size: int = 20
    max_answer_length: int = 30
    null_score_diff_threshold: float = 0.0
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train_data: QuestionAnsweringDataConfig = dataclasses.field(
        default_factory=lambda: QuestionAnsweringDataConfig(is_training=True)
    )
    validation_data: QuestionAnsweringDataConfig = dataclasses.field(
        default_factory=lambda: QuestionAnsweringDataConfig(is_training=False)
    )

    def open_data(self, data_dir, pretrained):
        config = self.replace()
        choose_tfds_splits(config, data_dir)
        labelled.choose_files(config.train_data, config.validation_data, data_dir, (".json",))

        def load(data):
            if not data.tfds_name and not data.input_path:
                raise UserError(
                    f"no questions: give {argument('data_dir')}, with train.json in SQuAD's format, or "
                    f"{argument('train_file')}, or task.train_data.tfds_name, squad/v1.1 or squad/v2.0"
                )
            return load_squad(data)

        def load_both():
            train, validation = config.train_data, config.validation_data
            if validation.share == labelled.HELD_OUT and validation.input_path:  # one file, read once
                return hold_out(load(train.replace(share=labelled.ALL)))
            return all_of(lambda: load(train), lambda: load(validation))

        vocabulary, (train, validation) = all_of(
            functools.partial(known_vocabulary, config.train_data, pretrained), load_both
        )
        notes = []
        if config.validation_data.share == labelled.HELD_OUT:
            notes.append("no dev file: questions of a tenth of the contexts are held out, chosen by a hash of these")
        for squad in (train, validation):
            if squad.misplaced:
                notice(
                    f"{squad.path}: the texts of {len(squad.misplaced)} answers, the first of question "
                    f"{squad.misplaced[0]!r}, do not stand at their answer_start; nothing is learned from them"
                )

        lower_case = config.train_data.lower_case
        questions = [question.text for question in train.questions]
        vocabulary = vocabulary or vocabulary_of([*train.contexts, *questions], lower_case)
        normalizer = config.train_data.normalizer
        opened = Data(train, validation, vocabulary, lower_case, notes=notes, normalizer=normalizer)
        config.version_2_with_negative = train.some_unanswerable
        if validation.some_unanswerable and not config.version_2_with_negative:
            opened.problems.append(
                f"{validation.path}: some of its questions have no answer, as in SQuAD 2.0, but all of "
                f"{train.path} have one; give both in the same version"
            )
        return config, opened

    def report(self, data):
        report = Report()
        report.add_rows(len(data.train), len(data.validation), "questions", data.notes)
        unanswerable = sum(not question.answers for question in data.train.questions)
        report.facts["contexts"] = len(data.train.contexts)
        report.facts["unanswerable"] = unanswerable
        report.facts["misplaced"] = len(data.train.misplaced)
        report.lines.append(f"contexts: {len(data.train.contexts):,}; questions without an answer: {unanswerable:,}")
        report.add_repeated(
            *([(squad.contexts[q.context], q.text) for q in squad.questions] for squad in (data.train, data.validation))
        )
        report.add_lengths(data.train.contexts, data.tokenizer)
        return report

    def too_few(self, data):
        return []  # a question has one or more rows, and how many is not known yet

    def problems(self):
        positive = ("n_best_size", "max_answer_length")
        found = [f"{name}={getattr(self, name)} is not positive" for name in positive if getattr(self, name) < 1]
        for name in ("train_data", "validation_data"):
            data = getattr(self, name)
            room = data.seq_length - data.max_query_length - 3
            if room < self.max_answer_length:
                found.append(
                    f"{name}.seq_length={data.seq_length} leaves {room} tokens of context beside a question of "
                    f"max_query_length={data.max_query_length}, fewer than task.max_answer_length="
                    f"{self.max_answer_length}: raise the first or lower the others"
                )
        return found

    def describe_limits(self, seq_length):
        return (
            f"contexts are read in windows of {seq_length} wordpieces, and questions longer than "
            f"{self.train_data.max_query_length} are cut"
        )


@task_factory.register_task_cls(QuestionAnsweringConfig)
class QuestionAnsweringTask(BaseTask):
    """Question answering with Model Garden's head; windows, spans and the exact loss are ours."""

    loader_class = QuestionAnsweringDataLoader
    aggregated_metrics = ("exact_match", "f1")

    def build_loader(self, params):
        loader = super().build_loader(params)
        if not params.is_training:
            self._validation = loader  # knows the texts
        return loader

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        return models.BertSpanLabeler(
            network=build_encoder(config.encoder, use_pooler=False),
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.encoder.get().initializer_range),
        )

    def loss_sums(self, inputs, outputs):
        losses = [
            tf_keras.losses.sparse_categorical_crossentropy(inputs[key], tf.cast(logits, tf.float32), from_logits=True)
            for key, logits in zip(("start_positions", "end_positions"), outputs, strict=True)
        ]
        return dict(loss=tf.reduce_sum(tf.add_n(losses) / 2 * row_weights(inputs)))

    def build_metrics(self, training=None):
        names = ("start_position_accuracy", "end_position_accuracy") if training else ()
        return [tf_keras.metrics.SparseCategoricalAccuracy(name) for name in names]

    def process_metrics(self, metrics, labels, model_outputs):
        if not metrics:  # in evaluation
            return
        for metric, key, logits in zip(metrics, ("start_positions", "end_positions"), model_outputs, strict=True):
            metric.update_state(labels[key], logits)

    def evaluation_logs(self, inputs, outputs):
        config = self.task_config
        spans = best_spans(
            *outputs, inputs["may_start"], inputs["may_end"], config.max_answer_length, config.n_best_size
        )
        return dict(window=inputs["window"], row_weights=row_weights(inputs), **spans)

    def aggregate_logs(self, state=None, step_outputs=None):
        state = state or []
        state.append(rows_of_logs(step_outputs, *(step_outputs.keys() - {self.loss, "row_weights"})))
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        config = self.task_config
        spans = {name: np.concatenate([batch[name] for batch in aggregated_logs]) for name in aggregated_logs[0]}
        threshold = config.null_score_diff_threshold if config.version_2_with_negative else None
        answers = self._validation.answers(spans, threshold)
        return answer_scores(self._validation.questions, answers, config.version_2_with_negative)

    # === Serving ===

    def predict(self, model, inputs):
        logits = model({name: inputs[name] for name in INPUTS}, training=False)
        names = ("start_logits", "end_logits")
        return {name: tf.cast(values, tf.float32) for name, values in zip(names, logits, strict=True)}

    def signatures(self, model, tokenizer):
        """The default is from `question` and `context`: contexts are read in windows, all of the full length."""
        answer = Signature(
            strings("question", "context"),
            functools.partial(self.encode_windows, tokenizer),
            functools.partial(self.read_windows, model, tokenizer),
            self.best_answers,
        )
        return {"serving_default": answer, **super().signatures(model, tokenizer)}

    def encode_windows(self, tokenizer: Tokenizer, question: tf.Tensor, context: tf.Tensor) -> tuple[dict, dict]:
        """Returns what `read_windows` takes for strings [B], and what `best_answers` needs of them."""
        data = self.task_config.train_data
        context = tf.strings.unicode_transcode(context, "UTF-8", "UTF-8", errors="replace")
        asked = tokenizer.tokenize(question)
        ids, begins, ends = tokenizer.tokenize_with_offsets(context)
        window = windows(
            asked.row_lengths(), ids.row_lengths(), data.seq_length, data.doc_stride, data.max_query_length
        )
        row = window.pop("question")

        # All questions are in one row, and so are all contexts; neither is empty.
        window_begin = tf.gather(ids.row_starts(), row) + window["first"]
        inputs = dict(
            window,
            question_ids=tf.concat([asked.flat_values, [tokenizer.pad_id]], axis=0),
            question_begin=tf.gather(asked.row_starts(), row),
            context_ids=tf.concat([ids.flat_values, [tokenizer.pad_id]], axis=0),
            window_begin=window_begin,
        )
        # The byte where each token begins and ends; one more, because there may be none.
        begins, ends = (tf.pad(places.flat_values, [[0, 1]]) for places in (begins, ends))
        token = window_begin - window["offset"]  # that would stand at place 0 of each window
        return inputs, dict(context=context, row=row, token=token, begins=begins, ends=ends)

    def read_windows(
        self, model: tf_keras.Model, tokenizer: Tokenizer, inputs: dict[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Returns each window's best span, as `best_spans` does: [windows].

        At most _MOST_WINDOWS are read at a time, however long the contexts are.
        """
        config = self.task_config
        inputs = dict(inputs)
        question_ids = inputs.pop("question_ids")
        context_ids = inputs.pop("context_ids")

        def spans_of(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
            window = {name: tf.gather(values, numbers) for name, values in inputs.items()}
            begins = window.pop("question_begin"), window.pop("window_begin")
            rows = lay_out(
                tokenizer, question_ids, begins[0], context_ids, begins[1], window, config.train_data.seq_length
            )
            logits = self.predict(model, rows)
            return best_spans(
                *logits.values(), rows["may_start"], rows["may_end"], config.max_answer_length, config.n_best_size
            )

        # The same number in each round: the last window is repeated.
        number = tf.size(inputs["window_begin"])
        rounds = tf.maximum(-(-number // _MOST_WINDOWS), 1)
        each = -(-number // rounds)
        numbers = tf.reshape(tf.minimum(tf.range(rounds * each), number - 1), [rounds, each])

        dtypes = dict(start=tf.int32, end=tf.int32, score=tf.float32, null_score=tf.float32)
        specs = {name: tf.TensorSpec([None], dtype) for name, dtype in dtypes.items()}
        spans = tf.map_fn(spans_of, numbers, parallel_iterations=1, fn_output_signature=specs)
        return {name: tf.reshape(values, [-1])[:number] for name, values in spans.items()}

    def best_answers(self, spans: dict[str, tf.Tensor], rest: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the best answer to each question.

        Args:
          spans: from `read_windows`.
          rest: from `encode_windows`.

        Returns:
          `answer`, a part of the context, string [B]; `start` and `end`, int32 [B], its characters in the context; and
          `score`, float32 [B], how much likelier (in logits) it is than no answer. The answer is "" where the context
          is empty, and where a model that was trained on unanswerable questions says that there is no answer.
        """
        config = self.task_config
        row = rest["row"]

        # The best window of each question: the first with the highest score.
        best = tf.math.segment_max(spans["score"], row)
        is_best = spans["score"] == tf.gather(best, row)
        number = tf.shape(row)[0]
        chosen = tf.math.segment_min(tf.where(is_best, tf.range(number), number), row)

        # Whether it is an answer.
        null = tf.math.segment_min(spans["null_score"], row)
        best = tf.maximum(best, _NO_SPAN)
        is_empty = best == _NO_SPAN
        if config.version_2_with_negative:
            is_empty |= null - best > config.null_score_diff_threshold

        # Where it is: tokens, bytes, characters.
        def byte(places: tf.Tensor, of_tokens: tf.Tensor) -> tf.Tensor:
            token = tf.gather(rest["token"], chosen) + tf.cast(tf.gather(places, chosen), tf.int64)
            token = tf.where(is_empty, tf.zeros_like(token), token)
            return tf.where(is_empty, 0, tf.cast(tf.gather(of_tokens, token), tf.int32))

        context = rest["context"]
        begin = byte(spans["start"], rest["begins"])
        end = byte(spans["end"], rest["ends"])
        start = tf.strings.length(tf.strings.substr(context, tf.zeros_like(begin), begin), unit="UTF8_CHAR")
        answer = tf.strings.substr(context, begin, end - begin)
        return dict(
            answer=answer,
            start=start,
            end=start + tf.strings.length(answer, unit="UTF8_CHAR"),
            score=best - null,
        )
