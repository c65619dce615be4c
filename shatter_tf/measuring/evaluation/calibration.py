"""Whether probabilities can be believed: calibration error, and the temperature that makes it small.

A calibrated model is right in 70% of the cases in which it says 0.7 (Guo et al., On Calibration of Modern Neural
Networks, ICML 2017). Its logits divided by a temperature, softmax(logits / T), keep their order: no decision changes.
"""

from typing import Any

import numpy as np
from scipy import optimize, special

BINS = 15  # Guo et al.'s
_LEAST = 1e-30  # for a probability that was rounded to 0
_TEMPERATURES = 0.05, 20.0


def bins(confidence: np.ndarray, is_right: np.ndarray) -> list[dict[str, float]]:
    """Returns how many confidences are in each of 15 equal parts of [0, 1], their mean, and the share that is right.

    Parts without any are left out; `begin` is where a part begins.

    Args:
      confidence: float [N].
      is_right: zeros and ones [N].

    Example:
    >>> bins(np.array([0.05, 0.03]), np.array([1, 0]))
    [{'begin': 0.0, 'rows': 2, 'confidence': 0.04, 'right': 0.5}]
    """
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        dict(
            begin=i / BINS,
            rows=int(np.sum(place == i)),
            confidence=float(np.mean(confidence[place == i])),
            right=float(np.mean(is_right[place == i])),
        )
        for i in range(BINS)
        if np.any(place == i)
    ]


def error(found: list[dict[str, float]]) -> float:
    """Returns the expected calibration error: the mean over rows of their bin's |confidence - share that is right|.

    Example:
    >>> round(error(bins(np.array([0.96, 0.98]), np.array([1, 0]))), 6)
    0.47
    """
    rows = sum(each["rows"] for each in found)
    return sum(each["rows"] * abs(each["confidence"] - each["right"]) for each in found) / rows


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns softmax(logits / T), [N, labels], from the probabilities at T = 1.

    Example:
    >>> at_temperature(np.array([[0.8, 0.2]]), 0.5).round(3)
    array([[0.941, 0.059]])
    """
    return special.softmax(np.log(np.maximum(probabilities, _LEAST)) / temperature, axis=1)


def log_loss(probabilities: np.ndarray, ids: np.ndarray) -> float:
    """Returns the mean of -log of the probability, of [N, labels], that the true label has, whose ids are [N]."""
    return float(-np.mean(np.log(np.maximum(probabilities[np.arange(len(ids)), ids], _LEAST))))


def fit_temperature(probabilities: np.ndarray, ids: np.ndarray) -> float:
    """Returns the temperature at which `log_loss` is lowest, between 0.05 and 20."""

    def loss(logarithm: float) -> float:
        return log_loss(at_temperature(probabilities, np.exp(logarithm)), ids)

    found = optimize.minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options=dict(xatol=1e-5))
    return float(np.exp(found.x))


def _is_bound(temperature: float) -> bool:
    """Returns whether a fit ended where `fit_temperature` stops to look."""
    return any(abs(np.log(temperature / bound)) < 1e-3 for bound in _TEMPERATURES)


def of_labels(probabilities: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """Returns all figures of a classifier's calibration.

    Args:
      probabilities: float [N, labels].
      ids: of the true labels, [N]; -1 where the model does not know the label: such rows are wrong, and the
        temperature is fitted without them.
    """
    probabilities = np.asarray(probabilities, np.float64)
    known = ids >= 0
    figures: dict[str, Any] = {}

    def add(values: np.ndarray, name: str) -> None:
        found = bins(values.max(axis=1), values.argmax(axis=1) == ids)
        figures[f"calibration_error{name}"] = error(found)
        if known.any():
            figures[f"log_loss{name}"] = log_loss(values[known], ids[known])
        if not name:
            figures["bins"] = found

    add(probabilities, "")
    if known.any():
        figures["temperature"] = fit_temperature(probabilities[known], ids[known])
        figures["at_a_bound"] = _is_bound(figures["temperature"])
        add(at_temperature(probabilities, figures["temperature"]), "_at_temperature")
    return figures


def of_decisions(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Returns the same where each text may have each label: over all pairs of a text and a label.

    Here a bin compares the mean probability with the share of texts that have the label.

    Args:
      probabilities: float [N, labels].
      targets: zeros and ones [N, labels].
    """
    p = np.asarray(probabilities, np.float64).ravel()
    has_label = targets.ravel().astype(int)
    both = np.stack([1 - p, p], axis=1)
    temperature = fit_temperature(both, has_label)
    scaled = at_temperature(both, temperature)
    return dict(
        calibration_error=error(bins(p, has_label)),
        log_loss=log_loss(both, has_label),
        bins=bins(p, has_label),
        temperature=temperature,
        at_a_bound=_is_bound(temperature),
        calibration_error_at_temperature=error(bins(scaled[:, 1], has_label)),
        log_loss_at_temperature=log_loss(scaled, has_label),
    )
