"""What is computed from the labels and the predictions of all rows: metrics, class weights and thresholds."""

import functools
from collections.abc import Iterable

import numpy as np


def scores(targets: np.ndarray, predictions: np.ndarray, names: Iterable[str]) -> dict[str, float]:
    """Returns metrics of predictions by name: of ids [rows], or of zeros and ones [rows, labels].

    Example:
    >>> scores(np.array([0, 1, 1, 2]), np.array([0, 1, 0, 2]), ["accuracy", "macro_f1"])
    {'accuracy': 0.75, 'macro_f1': 0.7777777777777777}
    """
    from sklearn import metrics  # here, because it takes long, and training does not need it

    def f1(average: str):
        return functools.partial(metrics.f1_score, average=average, zero_division=0)

    functions = dict(
        accuracy=metrics.accuracy_score,
        f1=f1("binary"),
        macro_f1=f1("macro"),
        micro_f1=f1("micro"),
        matthews_corrcoef=metrics.matthews_corrcoef,
    )
    return {name: float(functions[name](targets, predictions)) for name in names}


def balanced_weights(targets: np.ndarray, number: int) -> list[float]:
    """Returns a weight for each label, so that all labels count alike: its mean over rows is 1.

    Args:
      targets: ids [rows]; or zeros and ones [rows, labels], where each weight is that of a one against a zero.
      number: of labels.

    Example:
    >>> balanced_weights(np.array([0, 0, 0, 1]), 2)
    [0.666667, 2.0]
    >>> balanced_weights(np.array([[1, 0], [1, 1], [0, 0], [0, 0]]), 2)
    [1.0, 3.0]
    """
    if targets.ndim > 1:
        ones = targets.sum(axis=0)
        weights = (len(targets) - ones) / np.maximum(ones, 1)
    else:
        weights = len(targets) / (number * np.maximum(np.bincount(targets, minlength=number), 1))
    return [float(f"{max(weight, 1e-6):.6g}") for weight in weights]


def best_thresholds(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns for each label the threshold with the highest F1; half where a label has no ones.

    Args:
      targets, probabilities: [rows, labels].

    Example:
    >>> best_thresholds(np.array([[1], [1], [0]]), np.array([[0.4], [0.3], [0.2]])).round(2).tolist()
    [0.25]
    """
    thresholds = np.full(targets.shape[1], 0.5, np.float32)
    for label in range(targets.shape[1]):
        order = np.argsort(-probabilities[:, label], kind="stable")
        p, hits = probabilities[order, label], np.cumsum(targets[order, label])
        if not hits[-1]:
            continue
        f1 = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
        f1[:-1][p[:-1] == p[1:]] = 0.0  # no threshold lies between equal probabilities
        best = int(np.argmax(f1))
        thresholds[label] = (p[best] + (p[best + 1] if best + 1 < len(p) else 0.0)) / 2
    return thresholds
