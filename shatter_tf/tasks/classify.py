"""shatter/classify: a label for a text, or for a pair of texts."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.modeling import hyperparams
from official.nlp.modeling import models

from shatter_tf.data import labelled
from shatter_tf.data.labelled import LabelledDataConfig, LabelledDataLoader
from shatter_tf.encoders.registry import EncoderConfig, build_encoder_for_head
from shatter_tf.errors import UserError, all_of, collected, nearest
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
from shatter_tf.tasks.baseline import measure
from shatter_tf.tasks.signature import encode_texts, strings
from shatter_tf.tasks.step import without_autograph

_DROPOUT_RATE = 0.1  # of the head: BERT's, and Model Garden's


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """An encoder with Model Garden's classification head.

    Attributes:
      num_classes: of outputs; follows from the data.
      use_encoder_pooler: whether the head reads the mean of the tokens, and not the first one.
      encoder: its family and settings.
    """

    num_classes: int = 0
    use_encoder_pooler: bool = False
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)


@dataclasses.dataclass
class ClassifyConfig(FineTuning, cfg.TaskConfig):
    """Classification of texts or pairs of texts.

    Attributes:
      metric_type: what is reported beside accuracy and selects the best checkpoint: accuracy (nothing else), f1
        (binary, with the second label as the positive class) or matthews_corrcoef.
      pairs: whether each input is two texts; follows from the data.
      baseline: whether simple models learn the same rows at the end of training, to compare the run with; see
        baseline.py.
    """

    used = (*FineTuning.used, "metric_type")
    metric_types = ("accuracy", "f1", "matthews_corrcoef")

    metric_type: str = "accuracy"
    pairs: bool = False
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
        choose_tfds_splits(config, data_dir)

        def load(data, split):
            if data_dir:
                data.input_path = data.input_path or labelled.find_file(data_dir, split)
            return labelled.load_rows(data)

        vocabulary, train, validation = all_of(
            functools.partial(known_vocabulary, config.train_data, pretrained),
            lambda: load(config.train_data, "train"),
            lambda: load(config.validation_data, "dev"),
        )
        config.pairs = len(train[0].texts) == 2
        lower_case = config.train_data.lower_case
        vocabulary = vocabulary or vocabulary_of((text for row in train for text in row.texts), lower_case)
        opened = Data(train, validation, vocabulary, lower_case)
        if len(validation[0].texts) != len(train[0].texts):
            opened.problems.append(
                f"{validation[0].where}: texts and pairs of texts cannot be mixed with {train[0].where}"
            )
        config.read_labels(opened)
        return config, opened

    def read_labels(self, opened: Data) -> None:
        """Sets the label names, and the number of outputs; adds what is wrong with the rows' labels to the problems."""
        train = self.train_data
        train.labels = label_names(train, opened.train[0].where, (row.label for row in opened.train))
        self.validation_data.labels = train.labels
        for rows in (opened.train, opened.validation):
            with collected(opened.problems):
                labelled.label_ids(rows, train.labels)
        opened.problems += self.set_outputs(len(train.labels), f"{len(train.labels)} labels")

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
        if self.metric_type == "f1" and self.model.num_classes not in (0, 2):
            return [f"metric_type=f1 is of two labels, but the data has {self.model.num_classes}"]
        return []

    def class_labels(self):
        return list(self.train_data.labels)

    def sample_inputs(self, tokenizer, length):
        texts = labelled.load_rows(self.validation_data)[0].texts
        columns = [tf.constant([text]) for text in texts]
        return tokenizer.pad(tokenizer.encode(columns[0], columns[1] if self.pairs else None, length))

    def measure_baseline(self, data, most_rows=None, before=None):
        return measure(self, data, most_rows, before) if self.baseline else None

    def simple_models(self) -> dict:
        """Returns the models of the baseline, scikit-learn's, by the names of their figures."""
        from sklearn.dummy import DummyClassifier  # here, because it takes long, and training does not need it
        from sklearn.svm import LinearSVC

        return dict(tf_idf=LinearSVC(random_state=0), majority=DummyClassifier(strategy="most_frequent"))

    def targets(self, rows: list[labelled.Row]) -> np.ndarray:
        """Returns what is learned of rows, [rows]."""
        return labelled.label_ids(rows, self.train_data.labels)

    def score(self, targets: np.ndarray, predictions: np.ndarray) -> float:
        """Returns the main metric of predictions, [rows]."""
        from sklearn import metrics  # here, because it takes long, and training does not need it

        scores = dict(
            accuracy=metrics.accuracy_score,
            f1=functools.partial(metrics.f1_score, zero_division=0),
            matthews_corrcoef=metrics.matthews_corrcoef,
        )
        return scores[self.metric_type](targets, predictions)


def label_names(train: cfg.DataConfig, where: str, labels: Iterable[str]) -> list[str]:
    """Returns the label names in the order of their ids: those of the settings, or else the sorted `labels`.

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
    if len(names) < 2:
        raise UserError(f"{where}: every row has the label {names[0]!r}; there is nothing to learn")
    return names


@task_factory.register_task_cls(ClassifyConfig)
class ClassifyTask(BaseTask):
    """Classification with Model Garden's head, on the first token or, with `model.use_encoder_pooler`, on the mean."""

    loader_class = LabelledDataLoader

    def __init__(self, params, logging_dir=None, name=None, data=None):
        super().__init__(params, logging_dir, name, data)
        self.aggregated_metrics = () if params.metric_type == "accuracy" else (params.metric_type,)

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        encoder, dropout_rate = build_encoder_for_head(config.encoder, config.use_encoder_pooler, _DROPOUT_RATE)
        return models.BertClassifier(
            network=encoder,
            dropout_rate=dropout_rate,
            num_classes=config.num_classes,
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.encoder.get().initializer_range),
            use_encoder_pooler=config.use_encoder_pooler,
        )

    def loss_sums(self, inputs, outputs):
        losses = tf_keras.losses.sparse_categorical_crossentropy(
            inputs["label_ids"], tf.cast(outputs, tf.float32), from_logits=True
        )
        return dict(loss=tf.reduce_sum(losses * row_weights(inputs)))

    def build_metrics(self, training=None):
        # Model Garden's; in the policy's own precision, several replicas cannot read the AUC's variables.
        metrics = [tf_keras.metrics.SparseCategoricalAccuracy("cls_accuracy", dtype=tf.float32)]
        if self.task_config.model.num_classes == 2:
            metrics.append(tf_keras.metrics.AUC(name="auc", curve="PR", dtype=tf.float32))
        return metrics

    def process_metrics(self, metrics, labels, model_outputs):
        for metric in metrics:
            of_auc = metric.name == "auc"  # of the second of two labels
            predictions = tf.nn.softmax(model_outputs)[:, 1] if of_auc else model_outputs
            metric.update_state(labels["label_ids"], predictions, sample_weight=row_weights(labels))

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
        return {self.task_config.metric_type: self.task_config.score(labels, np.argmax(outputs, axis=1))}

    def predict(self, model, inputs):
        return dict(probabilities=tf.nn.softmax(tf.cast(model(inputs, training=False), tf.float32)))

    def decode(self, outputs, rest=None):
        """Adds `label`, string [B], and `labels`, string [B, labels], to `probabilities`, float32 [B, labels]."""
        labels = tf.constant(self.task_config.class_labels())
        probabilities = outputs["probabilities"]
        return dict(
            label=tf.gather(labels, tf.argmax(probabilities, axis=-1)),
            probabilities=probabilities,
            labels=tf.tile(labels[tf.newaxis], [tf.shape(probabilities)[0], 1]),
        )

    def signatures(self, model, tokenizer):
        signatures = super().signatures(model, tokenizer)
        config = self.task_config
        of_texts = dataclasses.replace(
            signatures["token_ids"],
            takes=strings(*config.texts),
            encode=encode_texts(tokenizer, config.train_data.seq_length),
        )
        return {"serving_default": of_texts, **signatures}

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
