"""Pictures of an evaluation: what is taken for what, whether probabilities can be believed, and how far numbers are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from shatter_tf.measuring import pictures
from shatter_tf.measuring.evaluation.calibration import BINS
from shatter_tf.measuring.pictures import BLUE, ORANGE, bare


def draw_confusion(names: Sequence[str], counts: np.ndarray, of: str, what: str) -> Figure:
    """Returns the confusion matrix of a file's rows.

    Args:
      names: of the classes.
      counts: how often the row's class was taken for the column's, integer [C, C].
      of, what: what the counts are of, such as texts, and what the classes are, such as label.
    """
    figure = pictures.draw_confusion(names, counts)
    axes = figure.axes[0]
    axes.set_title(f"{np.trace(counts) / counts.sum():.1%} of {counts.sum():,} {of} get the right {what}")
    axes.set(xlabel=f"predicted {what}", ylabel=f"true {what} ({of})")
    return figure


def draw_reliability(figures: dict[str, Any], confidence: str, right: str) -> Figure:
    """Returns a reliability diagram: for each bin of confidences the share that is right, and below how many there are.

    Args:
      figures: of calibration.py.
      confidence, right: what the bins are of, and what their shares are of.
    """
    found = figures["bins"]
    x, y = ([each[name] for each in found] for name in ("confidence", "right"))
    middles = [each["begin"] + 0.5 / BINS for each in found]

    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle="--", label="believable")
    above.bar(middles, y, width=0.92 / BINS, color=BLUE, alpha=0.35)
    above.plot(x, y, "o-", color=BLUE, label="this model")
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=f"share of {right}")
    above.set_title(_title(figures))
    above.legend(frameon=False, loc="upper left")
    above.grid(alpha=0.25)

    below.bar(middles, [each["rows"] for each in found], width=0.92 / BINS, color=ORANGE)
    below.set(xlabel=confidence, ylabel="how many")
    below.yaxis.set_major_formatter(lambda rows, _: f"{rows:,.0f}")
    for axes in (above, below):
        bare(axes)
    return figure


def _title(figures: dict[str, Any]) -> str:
    title = f"calibration error {figures['calibration_error']:.3f}"
    if "temperature" in figures:
        after = figures["calibration_error_at_temperature"]
        title += f"; {after:.3f} with temperature {figures['temperature']:.2f}"
    return title


def draw_scatter(truth: np.ndarray, predicted: np.ndarray) -> Figure:
    """Returns a picture of predicted numbers [N] against true ones [N]."""
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color="gray", linewidth=1, linestyle="--", label="right")
    few = len(truth) < 1000
    axes.plot(truth, predicted, "o", color=BLUE, markersize=5 if few else 2, alpha=0.6 if few else 0.25, mew=0)
    axes.set(xlabel="labelled", ylabel="predicted")
    axes.set_title(f"{len(truth):,} rows, mean absolute error {np.mean(np.abs(truth - predicted)):.3g}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    bare(axes)
    return figure
