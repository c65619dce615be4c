"""What an evaluation says: figures for programs, lines for people, and pictures."""

import dataclasses
import math
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics

MISTAKES = 10
_MOST_ROWS = 40  # of a table; of more labels, those with the most rows are shown
_LONGEST_NAME = 32
_FEWEST_CHARACTERS = 24  # of a mistake's text
_AS_IT_IS = 0.02  # what a temperature may differ from 1 and change nothing


@dataclasses.dataclass
class Report:
    """What was found.

    Attributes:
      figures: by name, as JSON has them.
      lines: to be read.
      pictures: by name.
    """

    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[str] = dataclasses.field(default_factory=list)
    pictures: dict[str, Figure] = dataclasses.field(default_factory=dict)

    def add_mistakes(self, what: str, mistakes: Iterable[dict[str, Any]]) -> None:
        """Adds the worst mistakes, each with `said`, `where` and `text`; `what` is the line above them."""
        found = list(mistakes)
        self.figures["mistakes"] = found
        if not found:
            return
        self.lines += ["", f"{what}:"]
        width = shutil.get_terminal_size((120, 24)).columns
        for mistake in found:
            line = f"  {mistake['said']}  {mistake['where']}  "
            room = max(width - len(line), _FEWEST_CHARACTERS)
            self.lines.append(line + textwrap.shorten(mistake["text"], room, placeholder=" …"))

    def add_table(self, first: str, each: dict[str, dict[str, Any]], last: dict[str, dict[str, Any]]) -> None:
        """Adds a table of precision, recall and F1.

        Args:
          first: what the rows are.
          each, last: the figures of each of these, and of all together.
        """
        shown = each
        if len(each) > _MOST_ROWS:
            most = sorted(each, key=lambda name: -each[name]["rows"])[:_MOST_ROWS]
            shown = {name: each[name] for name in each if name in most}
        names = {name: shortened(name) for name in (*shown, *last)}
        width = max(len(first), *map(len, names.values()))

        self.lines += ["", f"{first:<{width}}  precision  recall      F1      rows"]
        for name, figures in (*shown.items(), *last.items()):
            values = [figures.get(key, math.nan) for key in ("precision", "recall", "f1")]
            rows = f"{figures['rows']:,}" if "rows" in figures else ""
            self.lines.append(
                f"{names[name]:<{width}}  {values[0]:9.3f}  {values[1]:6.3f}  {values[2]:6.3f}  {rows:>8}"
            )
        if len(shown) < len(each):
            self.lines.append(f"… and {len(each) - len(shown):,} with fewer rows")

    def add_calibration(self, figures: dict[str, Any], unit: str) -> None:
        """Adds what `calibration.py` found; `unit` is what its rows are."""
        self.figures["calibration"] = figures
        self.lines += ["", f"calibration error {figures['calibration_error']:.4f} ({unit})"]
        if "temperature" not in figures:
            return
        temperature = f"{figures['temperature']:.3f}"
        after = figures["calibration_error_at_temperature"]
        losses = f"log loss {figures['log_loss']:.4f} becomes {figures['log_loss_at_temperature']:.4f}"
        self.lines.append(f"temperature {temperature}, fitted to these rows: calibration error {after:.4f}; {losses}")
        if abs(figures["temperature"] - 1) < _AS_IT_IS:
            return
        if figures["at_a_bound"]:
            self.lines.append("that is as far as it goes: the model is always right, or its probabilities say nothing")
        else:
            self.lines.append(f"unless this is the final test, serve it: `shatter export --temperature={temperature}`")


def scores(values: Sequence[float], rows: Any = None) -> dict[str, Any]:
    """Returns precision, recall and F1 by name, and the number of rows if there is one."""
    found = {name: float(value) for name, value in zip(("precision", "recall", "f1"), values, strict=False)}
    return found if rows is None else {**found, "rows": int(rows)}


def shortened(name: str) -> str:
    """Returns a label's name as it fits into a table.

    Example:
    >>> shortened("Biology"), len(shortened("Biology and health sciences" * 2))
    ('Biology', 32)
    """
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def counted(number: int, what: str) -> str:
    """Returns a number of things, with their verb.

    Example:
    >>> counted(1, "word"), counted(1200, "row")
    ('1 word is', '1,200 rows are')
    """
    return f"1 {what} is" if number == 1 else f"{number:,} {what}s are"


def confusion(truth: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Returns how often the row's name was taken for the column's, integer [names, names]."""
    if len(names) == 1:  # of which scikit-learn warns
        return np.array([[len(truth)]])
    return metrics.confusion_matrix(truth, predicted, labels=names)
