"""Classifiers: one label of a text, or several. All figures are scikit-learn's."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from shatter_tf.data import labelled
from shatter_tf.errors import UserError
from shatter_tf.measuring.evaluation import calibration, pictures
from shatter_tf.measuring.evaluation.kind import OfRows, register
from shatter_tf.measuring.evaluation.report import MISTAKES, Report, confusion, counted, scores

_TOO_MANY = 200  # labels, in whose confusion matrix nothing could be seen


@register("label", "labels", "probabilities")
class OneLabel(OfRows):
    """A label for each text. One that the model does not know counts as wrong, and as a class of its own."""

    def __init__(self, names, sample):
        super().__init__(names, sample)
        self.labels = _decoded(sample["labels"][0])

    def check(self, rows):
        for row in rows:
            if isinstance(row.label, tuple):
                raise UserError(f"{row.where}: a list of labels, but the model says one for each text; give one")

    def judge(self, rows, outputs):
        truth = [row.label for row in rows]
        predicted = [output["label"].decode() for output in outputs]
        probabilities = np.array([output["probabilities"] for output in outputs])
        is_right = np.array([a == b for a, b in zip(truth, predicted, strict=True)])
        report = Report(dict(accuracy=float(np.mean(is_right))))
        report.lines.append(f"accuracy {np.mean(is_right):.4f} of {len(rows):,} rows")
        _add_unknown(report, truth, self.labels, "row")

        # Of each label that occurs, in scikit-learn's sense: in the file or in the predictions.
        occurring = [label for label in self.labels if label in {*truth, *predicted}] + [
            *report.figures["unknown_labels"]
        ]

        def score(average):
            return metrics.precision_recall_fscore_support(
                truth, predicted, labels=occurring, average=average, zero_division=0
            )

        each = {name: scores(values, values[3]) for name, *values in zip(occurring, *score(None), strict=True)}
        means = {name: scores(score(name)) for name in ("macro", "micro")}
        report.figures |= dict(labels=each, **means)
        report.add_table("label", each, means)

        ids = np.array([self.labels.index(label) if label in self.labels else -1 for label in truth])
        report.add_calibration(calibration.of_labels(probabilities, ids), "over rows")
        report.pictures["reliability"] = pictures.draw_reliability(
            report.figures["calibration"], "confidence: the probability of the predicted label", "right labels"
        )

        counts = confusion(truth, predicted, occurring)
        report.figures["confusion"] = dict(labels=occurring, counts=counts.tolist())
        if len(occurring) <= _TOO_MANY:
            report.pictures["confusion"] = pictures.draw_confusion(occurring, counts, "texts", "label")

        confidence = probabilities.max(axis=1)
        worst = sorted(np.flatnonzero(~is_right), key=lambda i: -confidence[i])[:MISTAKES]
        report.add_mistakes(
            "most confident mistakes",
            (
                dict(
                    said=f"{confidence[i]:.3f} {predicted[i]}, labelled {truth[i]}",
                    where=rows[i].where,
                    text="\t".join(rows[i].texts),
                    label=truth[i],
                    predicted=predicted[i],
                    probability=float(confidence[i]),
                )
                for i in worst
            ),
        )
        return report


@register("has_label", "labels", "probabilities")
class SeveralLabels(OfRows):
    """Any number of labels for each text, at the model's own thresholds."""

    def __init__(self, names, sample):
        super().__init__(names, sample)
        self.labels = _decoded(sample["labels"][0])

    def judge(self, rows, outputs):
        truth = [labelled.parts(row.label) for row in rows]
        report = Report()
        unknown = _unknown([label for labels in truth for label in labels], self.labels)

        # Labels that the model does not know are columns that it never predicts.
        names = [*self.labels, *unknown]
        place = {name: i for i, name in enumerate(names)}
        targets = np.zeros([len(rows), len(names)], int)
        for i, labels in enumerate(truth):
            targets[i, [place[label] for label in labels]] = 1
        predicted = np.zeros_like(targets)
        predicted[:, : len(self.labels)] = [output["has_label"] for output in outputs]
        probabilities = np.array([output["probabilities"] for output in outputs])

        exact = metrics.accuracy_score(targets, predicted)
        report.figures["exact_match"] = float(exact)
        report.lines.append(f"all labels right in {exact:.4f} of {len(rows):,} rows")
        _add_unknown(report, [label for labels in truth for label in labels], self.labels, "label")

        def score(average):
            return metrics.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)

        each = {name: scores(values, values[3]) for name, *values in zip(names, *score(None), strict=True)}
        means = {name: scores(score(name)) for name in ("macro", "micro")}
        report.figures |= dict(labels=each, **means)
        report.add_table("label", each, means)

        known = targets[:, : len(self.labels)]
        report.add_calibration(calibration.of_decisions(probabilities, known), "over rows and labels")
        report.pictures["reliability"] = pictures.draw_reliability(
            report.figures["calibration"], "probability of a label", "texts that have the label"
        )

        errors = np.where(known != predicted[:, : len(self.labels)], np.abs(known - probabilities), 0.0)
        worst = [np.unravel_index(i, errors.shape) for i in np.argsort(-errors, axis=None, kind="stable")[:MISTAKES]]
        report.add_mistakes(
            "most confident mistakes",
            (
                dict(
                    said=f"{probabilities[i, j]:.3f} {names[j]}, which it {'has' if known[i, j] else 'has not'}",
                    where=rows[i].where,
                    text="\t".join(rows[i].texts),
                    label=names[j],
                    has_label=bool(known[i, j]),
                    probability=float(probabilities[i, j]),
                )
                for i, j in worst
                if errors[i, j] > 0
            ),
        )
        return report


def _decoded(values: Sequence[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


def _unknown(truth: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Returns how often labels occur that a model does not know."""
    return {label: number for label, number in sorted(Counter(truth).items()) if label not in labels}


def _add_unknown(report: Report, truth: Sequence[Any], labels: Sequence[str], unit: str) -> None:
    unknown = report.figures["unknown_labels"] = _unknown(truth, labels)
    if unknown:
        shown = ", ".join([*unknown][:5]) + ", …" * (len(unknown) > 5)
        report.lines.append(
            f"{counted(sum(unknown.values()), unit)} taken as wrong, because the model does not know {shown}; it knows "
            f"{', '.join(labels[:5])}{', …' if len(labels) > 5 else ''}"
        )
