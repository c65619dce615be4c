"""shatter/regress: a number for a text, or for a pair of texts."""

import dataclasses

import numpy as np
import tensorflow as tf
from official.core import task_factory

from shatter_tf.data import labelled
from shatter_tf.errors import collected
from shatter_tf.tasks.base import BaseTask, row_weights
from shatter_tf.tasks.classify import ClassifyConfig, ClassifyTask


@dataclasses.dataclass
class RegressConfig(ClassifyConfig):
    """Regression from texts or pairs of texts to a number, by least squares."""

    metric_types = ("pearson_spearman_corr",)

    metric_type: str = "pearson_spearman_corr"

    def read_labels(self, opened):
        if self.train_data.labels or self.validation_data.labels:
            opened.problems.append(
                "task.train_data.labels: regression is to numbers, which have no names; leave it out"
            )
        for rows in (opened.train, opened.validation):
            with collected(opened.problems):
                labelled.label_numbers(rows)
        opened.problems += self.set_outputs(1, "a number for each row")

    def class_labels(self):
        return None

    def report_labels(self, report, data):
        report.add_numbers(labelled.label_numbers(data.train))

    def recipe(self, data):
        yield from super().recipe(data)
        # Numbers far from 0, or from each other, are learned like others.
        numbers = labelled.label_numbers(data.train)
        yield "task.train_data.label_mean", float(f"{numbers.mean():.9g}")
        yield "task.train_data.label_scale", float(f"{numbers.std() or 1.0:.6g}")

    def problems(self):
        found = super().problems()
        if self.class_weights or self.label_smoothing:
            found.append("class_weights and label_smoothing are of classes; leave them out")
        return found

    def simple_models(self):
        from sklearn.linear_model import Ridge  # here, because it takes long, and training does not need it

        return dict(tf_idf=Ridge())

    def targets(self, rows):
        return labelled.label_numbers(rows)

    def score(self, targets, predictions):
        return correlations(targets, predictions)[self.metric_type]


def correlations(numbers: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Returns Pearson's and Spearman's correlation of numbers with predictions, both [rows], and their mean."""
    from scipy import stats  # here, because it takes long, and other tasks do not need it

    numbers, predictions = (np.asarray(values, np.float64).reshape(-1) for values in (numbers, predictions))
    varied = np.ptp(predictions) > 0 and np.ptp(numbers) > 0  # nothing correlates with a constant
    pearson, spearman = (
        float(correlation(predictions, numbers)[0]) if varied else 0.0
        for correlation in (stats.pearsonr, stats.spearmanr)
    )
    return dict(pearson=pearson, spearman=spearman, pearson_spearman_corr=(pearson + spearman) / 2)


@task_factory.register_task_cls(RegressConfig)
class RegressTask(ClassifyTask):
    """Regression with the classification head, one number wide.

    The loss is the mean squared error of standardized numbers; `mean_absolute_error` is in the rows' own unit.
    """

    def __init__(self, params, logging_dir=None, name=None, data=None):
        super().__init__(params, logging_dir, name, data)
        self.aggregated_metrics = ("pearson", "spearman", "pearson_spearman_corr", "mean_absolute_error")

    def weights(self, inputs):
        return BaseTask.weights(self, inputs)

    def _row_factors(self, inputs):
        return row_weights(inputs)

    def label_losses(self, labels, logits):
        return tf.square(logits[:, 0] - labels)

    def taught(self, outputs):
        data = self.task_config.train_data
        return (outputs["score"] - data.label_mean) / data.label_scale

    def teacher_losses(self, taught, logits):
        return tf.square(logits[:, 0] - taught)

    def build_metrics(self, training=None):
        return []  # Model Garden's only repeats the loss

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        labels, outputs = (np.concatenate(aggregated_logs[key]).ravel() for key in ("labels", "sentence_prediction"))
        error = float(np.mean(np.abs(labels - outputs))) * self.task_config.train_data.label_scale
        return dict(correlations(labels, outputs), mean_absolute_error=error)

    def predict(self, model, inputs):
        data = self.task_config.train_data
        return dict(score=tf.cast(model(inputs, training=False), tf.float32)[:, 0] * data.label_scale + data.label_mean)

    def decode(self, outputs, rest=None):
        return outputs
