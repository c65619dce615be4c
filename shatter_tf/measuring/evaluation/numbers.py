"""Models of numbers."""

import numpy as np
from sklearn import metrics

from shatter_tf.data import labelled
from shatter_tf.measuring.evaluation import pictures
from shatter_tf.measuring.evaluation.kind import OfRows, register
from shatter_tf.measuring.evaluation.report import MISTAKES, Report
from shatter_tf.tasks.regress import correlations


@register("score")
class Number(OfRows):
    """A number for each text."""

    def check(self, rows):
        labelled.label_numbers(rows)

    def judge(self, rows, outputs):
        truth = labelled.label_numbers(rows)
        predicted = np.array([output["score"] for output in outputs], np.float64)
        found = correlations(truth, predicted)
        report = Report(
            dict(
                pearson=found["pearson"],
                spearman=found["spearman"],
                mean_absolute_error=float(metrics.mean_absolute_error(truth, predicted)),
                root_mean_squared_error=float(np.sqrt(metrics.mean_squared_error(truth, predicted))),
                r2=float(metrics.r2_score(truth, predicted)) if len(rows) > 1 else None,  # not defined for one
            )
        )
        shown = "  ".join(f"{name} {value:.4f}" for name, value in report.figures.items() if value is not None)
        report.lines.append(f"{shown}  of {len(rows):,} rows")
        report.pictures["scatter"] = pictures.draw_scatter(truth, predicted)

        errors = np.abs(truth - predicted)
        report.add_mistakes(
            "largest errors",
            (
                dict(
                    said=f"{predicted[i]:.4g}, labelled {truth[i]:.4g}",
                    where=rows[i].where,
                    text="\t".join(rows[i].texts),
                    label=float(truth[i]),
                    predicted=float(predicted[i]),
                )
                for i in np.argsort(-errors, kind="stable")[:MISTAKES]
                if errors[i] > 0
            ),
        )
        return report
