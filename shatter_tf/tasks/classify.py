"""shatter/classify: a label for a text, or for a pair of texts."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Optional, Union

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.modeling import hyperparams
from official.nlp.modeling import models

from shatter_tf.data import labelled
from shatter_tf.data.labelled import LabelledDataConfig, LabelledDataLoader
from shatter_tf.data.report import Report
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.registry import EncoderConfig, build_encoder_for_head
from shatter_tf.errors import UserError, all_of, argument, collected, nearest
from shatter_tf.layers.windows import POOLINGS, Windows
from shatter_tf.tasks.base import (
    BaseTask,
    Data,
    choose_tfds_splits,
    known_vocabulary,
    label_weights,
    row_weights,
    rows_of_logs,
    vocabulary_of,
)
from shatter_tf.tasks.baseline import measure
from shatter_tf.tasks.scores import balanced_weights, best_thresholds, scores
from shatter_tf.tasks.signature import strings
from shatter_tf.tasks.step import without_autograph
from shatter_tf.tasks.teaching import Taught, answers, mixed, soft_losses

_DROPOUT_RATE = 0.1  # of the head: BERT's, and Model Garden's


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """An encoder with Model Garden's classification head.

    Attributes:
      num_classes: of outputs; follows from the data.
      use_encoder_pooler: whether the head reads the mean of the tokens, and not the first one.
      windows_pooling: makes one vector of a text that is read in several windows: mean, over all tokens, or max, over
        the windows' means.
      encoder: its family and settings.
    """

    num_classes: int = 0
    use_encoder_pooler: bool = False
    windows_pooling: str = "mean"
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)


@dataclasses.dataclass
class ClassifyConfig(Taught, cfg.TaskConfig):
    """Classification of texts or pairs of texts.

    Attributes:
      metric_type: what selects the best checkpoint: accuracy, f1 (binary, with the second label as the positive class),
        matthews_corrcoef, macro_f1 or micro_f1. For several labels of a text, micro_f1 stands in for accuracy.
      pairs: whether each input is two texts; follows from the data.
      multi_label: whether a text may have several labels, or none; follows from the data.
      class_weights: of the labels in the loss, in the order of their ids: "balanced", by how rare a label is, or
        numbers; empty weights all rows alike.
      label_smoothing: share of the target that is spread over all labels.
      baseline: whether simple models learn the same rows at the end of training, to compare the run with; see
        baseline.py.
    """

    used = (*Taught.used, "metric_type")
    metric_types = ("accuracy", "f1", "matthews_corrcoef", "macro_f1", "micro_f1")

    metric_type: str = "accuracy"
    pairs: bool = False
    multi_label: bool = False
    class_weights: Union[str, list[float]] = ""
    label_smoothing: float = 0.0
    baseline: bool = True
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train_data: LabelledDataConfig = dataclasses.field(default_factory=lambda: LabelledDataConfig(is_training=True))
    validation_data: LabelledDataConfig = dataclasses.field(
        default_factory=lambda: LabelledDataConfig(is_training=False)
    )

    @property
    def main_metric(self) -> str:
        return "cls_accuracy" if self.metric_type == "accuracy" else self.metric_type

    @property
    def texts(self) -> tuple[str, ...]:
        """What the parts of an input are called."""
        return ("text_a", "text_b") if self.pairs else ("text",)

    def open_data(self, data_dir, pretrained):
        config = self.replace()
        train, validation = config.train_data, config.validation_data
        choose_tfds_splits(config, data_dir)
        labelled.choose_files(train, validation, data_dir)

        vocabulary, ((rows, columns), (held_out, of_held_out)) = all_of(
            functools.partial(known_vocabulary, train, pretrained), lambda: labelled.load_both(train, validation)
        )
        config.pairs = len(rows[0].texts) == 2
        train.labels = train.labels or columns.names  # in their order, also those that no row has
        vocabulary = vocabulary or vocabulary_of((text for row in rows for text in row.texts), train.lower_case)
        notes = list(dict.fromkeys([columns.note, of_held_out.note]))
        opened = Data(rows, held_out, vocabulary, train.lower_case, notes=notes, normalizer=train.normalizer)
        if len(held_out[0].texts) != len(rows[0].texts):
            opened.problems.append(
                f"{held_out[0].where}: texts and pairs of texts cannot be mixed with {rows[0].where}"
            )
        config.read_labels(opened)
        with collected(opened.problems):
            opened.unlabelled = config.unlabelled_rows(opened, train.text_fields)
        return config, opened

    def read_labels(self, opened: Data) -> None:
        """Sets the label names, and the number of outputs; adds what is wrong with the rows' labels to the problems."""
        train = self.train_data
        rows = [*opened.train, *opened.validation]
        self.multi_label = any(isinstance(row.label, tuple) for row in rows)
        if self.multi_label:
            for row in rows:  # of a file in which only some rows have a list
                row.label = labelled.parts(row.label)
            if self.metric_type == "accuracy":
                self.metric_type = "micro_f1"
        known = (label for row in opened.train for label in labelled.parts(row.label))
        train.labels = label_names(train, opened.train[0].where, known, least=1 if self.multi_label else 2)
        self.validation_data.labels = train.labels
        targets = []
        for part in (opened.train, opened.validation):
            with collected(opened.problems):
                targets.append(self.targets(part))
        opened.problems += self.set_outputs(len(train.labels), f"{len(train.labels)} labels")
        if self.class_weights == "balanced" and targets:
            self.class_weights = balanced_weights(targets[0], len(train.labels))

    def set_outputs(self, number: int, what: str) -> list[str]:
        """Sets the number of the model's outputs; returns a line if the settings want another."""
        self.model.num_classes = self.model.num_classes or number
        if self.model.num_classes == number:
            return []
        return [f"task.model.num_classes={self.model.num_classes}, but the data has {what}"]

    def problems(self):
        if self.metric_type not in self.metric_types:
            near = nearest(self.metric_type, self.metric_types)
            return [f"metric_type={self.metric_type}: use {' or '.join(self.metric_types)}{near}"]
        found = []
        labels = self.model.num_classes
        if self.metric_type == "f1" and labels not in (0, 2):
            found.append(f"metric_type=f1 is of two labels, but the data has {labels}; use macro_f1")
        if self.multi_label and self.metric_type not in ("macro_f1", "micro_f1"):
            found.append(f"metric_type={self.metric_type}: texts have several labels; use macro_f1 or micro_f1")
        if not 0 <= self.label_smoothing < 1:
            found.append(f"label_smoothing={self.label_smoothing} is not in [0, 1)")
        weights = self.class_weights
        if isinstance(weights, str) and weights not in ("", "balanced"):
            found.append(f"class_weights={weights}: use balanced, or a number for each label")
        if isinstance(weights, (list, tuple)) and labels and not _are_weights(weights, labels):
            found.append(f"class_weights={list(weights)}: give {labels} positive numbers, one for each label")
        return found + self._problems_of_windows() + self.problems_of_teaching()

    def _problems_of_windows(self) -> list[str]:
        encoder = self.model.encoder.get()
        data = self.train_data
        where = f"long_text={data.long_text}"
        found = []
        if data.in_windows and not (self.model.use_encoder_pooler and encoder.pooling == "mean"):
            found.append(f"{where} needs model.use_encoder_pooler=true, and an encoder with pooling=mean")
        if self.model.windows_pooling not in POOLINGS:
            found.append(f"model.windows_pooling={self.model.windows_pooling}: use {' or '.join(POOLINGS)}")
        if (data.in_windows or data.length_buckets) and data.seq_length > encoder.longest_dynamic:
            found.append(
                f"seq_length={data.seq_length}: beyond {encoder.longest_dynamic} tokens this encoder needs "
                "long_text=head and length_buckets=false"
            )
        return found

    def class_labels(self):
        return None if self.multi_label else list(self.train_data.labels)

    def sample_inputs(self, tokenizer, length):
        texts = labelled.load_rows(self.validation_data)[0][0].texts
        return tokenizer.pad(tokenizer.combine([tokenizer.tokenize(tf.constant([text])) for text in texts], length))

    def describe_limits(self, seq_length):
        data = self.train_data
        if data.in_windows:
            return f"texts are read whole up to {seq_length * data.max_windows} wordpieces, in windows of {seq_length}"
        parts = dict(head="beginning", tail="end", head_tail="beginning and end")[data.long_text]
        return f"of texts longer than {seq_length} wordpieces the {parts} is read"

    def report(self, data):
        report = Report()
        report.add_rows(len(data.train), len(data.validation), "pairs of texts" if self.pairs else "texts", data.notes)
        self.report_labels(report, data)
        learned = [*data.train, *data.unlabelled]
        report.add_repeated(*([row.texts for row in part] for part in (learned, data.validation)))

        settings = self.train_data
        windows = settings.max_windows if settings.in_windows and not self.pairs else 1
        room = (settings.seq_length - 3) // 2 if self.pairs else windows * (settings.seq_length - 2)
        remedy = f"give a larger {argument('seq_length')}"
        if not self.pairs:
            remedy = "raise task.train_data.max_windows" if windows > 1 else f"{remedy}, or long_text=windows"
        texts = [text for row in data.train for text in row.texts]
        report.add_lengths(texts, data.tokenizer, room, remedy)
        return report

    def report_labels(self, report: Report, data: Data) -> None:
        """Adds to a report what the labels are like."""
        train, validation = (
            [label for row in part for label in labelled.parts(row.label)] for part in (data.train, data.validation)
        )
        report.add_labels(train, validation, len(data.train))
        if not self.multi_label:
            report.check_distinct(train, data.train[0].where)

    def measure_baseline(self, data, most_rows=None, before=None):
        return measure(self, data, most_rows, before) if self.baseline else None

    def simple_models(self) -> dict:
        """Returns the models of the baseline, scikit-learn's, by the names of their figures."""
        from sklearn.dummy import DummyClassifier  # here, because it takes long, and training does not need it
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.svm import LinearSVC

        linear = LinearSVC(random_state=0)
        return dict(
            tf_idf=OneVsRestClassifier(linear) if self.multi_label else linear,
            majority=DummyClassifier(strategy="most_frequent"),
        )

    def targets(self, rows: list[labelled.Row]) -> np.ndarray:
        """Returns what is learned of rows, ids [rows], or zeros and ones [rows, labels]."""
        labels = self.train_data.labels
        return labelled.label_sets(rows, labels) if self.multi_label else labelled.label_ids(rows, labels)

    def score(self, targets: np.ndarray, predictions: np.ndarray) -> float:
        """Returns the main metric of predictions, in the form of `targets`."""
        return scores(targets, predictions, [self.metric_type])[self.metric_type]


def _are_weights(weights: Sequence, number: int) -> bool:
    """Returns whether there is a positive number for each label."""
    are_numbers = all(isinstance(weight, (int, float)) and 0 < weight < math.inf for weight in weights)
    return len(weights) == number and are_numbers


def label_names(train: cfg.DataConfig, where: str, labels: Iterable[str], least: int = 2) -> list[str]:
    """Returns the label names in the order of their ids: those of the settings, or else the sorted `labels`.

    At least `least` are needed.

    Raises:
      UserError: for a name that is not text or occurs twice, or when all rows, which are at `where`, have one label.
    """
    names = list(train.labels)
    train.labels = []  # so that checks after an error do not meet bad ones
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise UserError(f"labels={names}: {name!r} is not text; put quotes around it, as in ['no', 'yes']")
        if name in names[:i]:
            raise UserError(f"labels={names}: {name!r} occurs twice")

    names = names or sorted(set(labels))
    if not names:
        raise UserError(f"{where}: no row has a label; there is nothing to learn")
    if len(names) < least:
        raise UserError(f"{where}: every row has the label {names[0]!r}; there is nothing to learn")
    return names


@task_factory.register_task_cls(ClassifyConfig)
class ClassifyTask(BaseTask):
    """Classification with Model Garden's head, on the first token or, with `model.use_encoder_pooler`, on the mean."""

    loader_class = LabelledDataLoader

    def __init__(self, params, logging_dir=None, name=None, data=None):
        super().__init__(params, logging_dir, name, data)
        more = () if params.metric_type == "accuracy" else (params.metric_type,)
        self._answers: Optional[np.ndarray] = None
        self.aggregated_metrics = tuple(dict.fromkeys(("macro_f1", *(("micro_f1",) * params.multi_label), *more)))

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        data = self.task_config.train_data
        encoder, dropout_rate = build_encoder_for_head(config.encoder, config.use_encoder_pooler, _DROPOUT_RATE)
        if data.in_windows:
            encoder.windows = Windows(data.seq_length, config.windows_pooling)
        model = models.BertClassifier(
            network=encoder,
            dropout_rate=dropout_rate,
            num_classes=config.num_classes,
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.encoder.get().initializer_range),
            use_encoder_pooler=config.use_encoder_pooler,
        )
        if self.task_config.multi_label:
            # Part of the model, so that checkpoints and exports have them; chosen at each evaluation.
            model.thresholds = tf.Variable(
                tf.fill([config.num_classes], 0.5),
                trainable=False,
                name="thresholds",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            self._thresholds = model.thresholds
        return model

    def prepare(self):
        if self.data is None or self.data.teacher is None:
            return
        data = self.data
        any_label = data.train[0].label  # those without one need one, to be read
        rows = [*data.train, *(dataclasses.replace(row, label=any_label) for row in data.unlabelled)]
        self._answers = np.array(answers(data.teacher, rows, lambda outputs, _, i: self.taught(outputs)[i]), np.float32)

    def taught(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """Returns what is learned of what a teacher predicts, [B, labels]."""
        return outputs["probabilities"]

    def build_loader(self, params):
        if self._answers is None or not params.is_training:
            return super().build_loader(params)
        data = self.data
        return self.loader_class(params, data.train, data.tokenizer, data.unlabelled, self._answers)

    def _class_weights(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns the weight of each row by its label, float32 [B]."""
        weights = self.task_config.class_weights
        return tf.gather(tf.constant(weights, tf.float32), labels) if weights else tf.ones(tf.shape(labels)[:1])

    def weights(self, inputs):
        if self.task_config.multi_label:
            return super().weights(inputs)
        return dict(loss=tf.reduce_sum(row_weights(inputs) * self._weights_of_labels(inputs)))

    def _weights_of_labels(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns the weight of each row's label, 1 where there is none, float32 [B]."""
        weights = self._class_weights(inputs["label_ids"])
        return tf.where(inputs["has_label"], weights, 1.0) if "has_label" in inputs else weights

    def loss_sums(self, inputs, outputs):
        logits = tf.cast(outputs, tf.float32)
        losses = self.label_losses(inputs["label_ids"], logits)
        if "taught" in inputs:
            soft = self.teacher_losses(inputs["taught"], logits)
            known = tf.ones_like(inputs["has_label"])
            losses = mixed(losses, soft, inputs["has_label"], known, self.task_config.teacher_share)
        return dict(loss=tf.reduce_sum(losses * self._row_factors(inputs)))

    def _row_factors(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Returns what each row's loss is multiplied by, float32 [B]."""
        rows = row_weights(inputs)
        return rows if self.task_config.multi_label else rows * self._weights_of_labels(inputs)

    def label_losses(self, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns each row's loss by its label, float32 [B]."""
        smoothing = self.task_config.label_smoothing
        if self.task_config.multi_label:
            targets = tf.cast(labels, tf.float32) * (1 - smoothing) + smoothing / 2
            weights = self.task_config.class_weights or [1.0] * self.task_config.model.num_classes
            losses = tf.nn.weighted_cross_entropy_with_logits(targets, logits, tf.constant(weights, tf.float32))
            return tf.reduce_sum(losses, axis=-1)
        losses = tf_keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        if smoothing:
            of_all = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
            losses = (1 - smoothing) * losses + smoothing * of_all
        return losses

    def teacher_losses(self, taught: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns each row's loss by what the teacher predicts for it, float32 [B]."""
        return soft_losses(logits, taught, self.task_config.teacher_temperature, self.task_config.multi_label)

    def build_metrics(self, training=None):
        # Model Garden's; in the policy's own precision, several replicas cannot read the AUC's variables.
        if self.task_config.multi_label:
            return [tf_keras.metrics.BinaryAccuracy("cls_accuracy", dtype=tf.float32)]
        metrics = [tf_keras.metrics.SparseCategoricalAccuracy("cls_accuracy", dtype=tf.float32)]
        if self.task_config.model.num_classes == 2:
            metrics.append(tf_keras.metrics.AUC(name="auc", curve="PR", dtype=tf.float32))
        return metrics

    def process_metrics(self, metrics, labels, model_outputs):
        for metric in metrics:
            predictions = model_outputs
            if self.task_config.multi_label:
                predictions = tf.sigmoid(tf.cast(model_outputs, tf.float32))
            elif metric.name == "auc":  # of the second of two labels
                predictions = tf.nn.softmax(model_outputs)[:, 1]
            metric.update_state(labels["label_ids"], predictions, sample_weight=label_weights(labels))

    def evaluation_logs(self, inputs, outputs):
        outputs = tf.cast(outputs, tf.float32)  # several machines cannot gather bfloat16
        return dict(sentence_prediction=outputs, labels=inputs["label_ids"], row_weights=row_weights(inputs))

    def aggregate_logs(self, state=None, step_outputs=None):
        if not self.aggregated_metrics:
            return None
        state = state or {"sentence_prediction": [], "labels": []}
        for name, values in rows_of_logs(step_outputs, *state).items():
            state[name].append(values)
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        labels, outputs = (np.concatenate(aggregated_logs[key]) for key in ("labels", "sentence_prediction"))
        if not self.task_config.multi_label:
            return scores(labels, np.argmax(outputs, axis=1), self.aggregated_metrics)
        probabilities = 1 / (1 + np.exp(-outputs.astype(np.float64)))
        thresholds = best_thresholds(labels, probabilities)
        self._thresholds.assign(thresholds)
        return scores(labels, (probabilities >= thresholds).astype(int), self.aggregated_metrics)

    def predict(self, model, inputs):
        outputs = tf.cast(model(inputs, training=False), tf.float32)
        if not self.task_config.multi_label:
            return dict(probabilities=tf.nn.softmax(outputs))
        return dict(probabilities=tf.sigmoid(outputs), thresholds=tf.convert_to_tensor(model.thresholds))

    def decode(self, outputs, rest=None):
        """Adds the names of labels to `probabilities`, float32 [B, labels].

        These are `labels`, string [B, labels]; and `label`, string [B], the likeliest one, or where a text may have
        several, `has_label`, int32 [B, labels], 1 for those whose probability is not below their threshold.
        """
        labels = tf.constant(self.task_config.train_data.labels)
        probabilities = outputs["probabilities"]
        answers = dict(probabilities=probabilities, labels=tf.tile(labels[tf.newaxis], [tf.shape(probabilities)[0], 1]))
        if self.task_config.multi_label:
            return dict(answers, has_label=tf.cast(probabilities >= outputs["thresholds"], tf.int32))
        return dict(label=tf.gather(labels, tf.argmax(probabilities, axis=-1)), **answers)

    def signatures(self, model, tokenizer):
        signatures = super().signatures(model, tokenizer)
        config = self.task_config
        of_texts = dataclasses.replace(
            signatures["token_ids"],
            takes=strings(*config.texts),
            encode=functools.partial(self._encode, tokenizer),
        )
        return {"serving_default": of_texts, **signatures}

    def _encode(self, tokenizer: Tokenizer, *texts: tf.Tensor) -> tuple[dict[str, tf.RaggedTensor], None]:
        segments = [tokenizer.tokenize(text) for text in texts]
        return labelled.encode_segments(tokenizer, segments, self.task_config.train_data), None

    def confusion(self, model: tf_keras.Model, batches: tf.data.Dataset) -> np.ndarray:
        """Returns how often the row's label was taken for the column's, int64 [labels, labels]."""
        number = self.task_config.model.num_classes
        predict = tf.function(lambda inputs: tf.argmax(model(inputs, training=False), axis=-1), autograph=False)
        counts = np.zeros([number, number], np.int64)
        for batch in batches:
            rows = batch.pop("row_weights").numpy() > 0
            labels = batch.pop("label_ids").numpy()[rows]
            np.add.at(counts, (labels, predict(batch).numpy()[rows]), 1)
        return counts
