"""Figures of a run, from NumPy arrays: the partition, attention, training curves, and the confusion matrix."""

import contextlib
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shatter_tf.console import warn

# Distinguishable with red-green color blindness, like the colors of viridis, which parts have from left to right.
BLUE, ORANGE = "#0072B2", "#D55E00"

MOST_NAMES = 64  # along an axis; of more, every second, third, … is written
MOST_COUNTS = 20  # classes in whose confusion matrix numbers can be read
_TICKS = (1, 2, 5)  # times powers of ten, on an axis of relative positions


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Returns the figure as the bytes of a PNG file, including what reaches beyond its edges."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def style(names: Sequence[str]) -> contextlib.AbstractContextManager:
    """Returns a context in which wordpieces or labels are written as they are, whatever their script.

    Dollar signs in them do not start mathematics. Letters that DejaVu Sans, which comes with matplotlib, lacks are in
    the first installed font that has them; a warning names those that none has.
    """
    families = ["DejaVu Sans"]
    missing = {ord(letter) for name in names for letter in name if letter.isprintable()}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name != families[0], entry.fname)):
        if not missing:
            break
        if entry.name.startswith("Last Resort"):  # it has a box for everything
            continue
        has = missing & set(font_manager.get_font(entry.fname).get_charmap())
        if has and entry.name not in families:
            families.append(entry.name)
        missing -= has

    if missing:
        letters = "".join(map(chr, sorted(missing)[:10])) + "…" * (len(missing) > 10)
        warn(f"no installed font has {letters}; they are drawn as boxes (Noto has most)")
    return matplotlib.rc_context({"text.parse_math": False, "font.family": families})


def part_colors(number: int) -> np.ndarray:
    """Returns a color for each part, RGBA [P, 4]; the last, yellowest ones of viridis are too pale on white."""
    return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.93, number))


def part_names(r: np.ndarray, f: np.ndarray) -> list[str]:
    """Returns a name for each part by where it peaks.

    Args:
      r: relative positions in rising order, [R].
      f: the partition there, [P, R].

    Example:
    >>> part_names(np.array([-9, -1, 0, 1, 9]), np.eye(5)[[0, 1, 3, 4]])
    ['0, far left', '1, around −1', '2, around +1', '3, far right']
    """
    peaks = np.argmax(f, axis=1)
    ends = {0: "far left", len(r) - 1: "far right"}
    return [f"{p}, {ends.get(peak, f'around {_signed(r[peak])}')}" for p, peak in enumerate(peaks)]


def _signed(r: float) -> str:
    text = f"{r:+.1f}".removesuffix(".0")
    return "0" if text in ("+0", "-0") else text.replace("-", "−")


def _name_ticks(axis, names: Sequence[str], **style) -> None:
    """Writes `names` along a matplotlib Axis, at 0, 1, 2, …; of too many, every second, third, …"""
    step = -(-len(names) // MOST_NAMES)
    axis.set_ticks(range(0, len(names), step), names[::step], **style)


def bare(axes: Axes) -> None:
    """Takes away the edges at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def draw_partition(r: np.ndarray, f: np.ndarray) -> Figure:
    """Returns curves of f_p(r), one for each part, with dots at whole tokens.

    Args:
      r: relative positions j - i in rising order, [R].
      f: the partition there, [P, R].
    """
    figure = Figure(figsize=(9, 4.2))
    _plot_partition(figure.subplots(), r, f)
    return figure


def _plot_partition(axes: Axes, r: np.ndarray, f: np.ndarray) -> None:
    whole = np.isclose(r, np.round(r)) & (np.abs(r) < 10.5)
    for p, (color, name) in enumerate(zip(part_colors(len(f)), part_names(r, f), strict=True)):
        axes.plot(r, np.where(f[p] > 0, f[p], np.nan), color=color, linewidth=2, label=name)
        here = whole & (f[p] > 0)
        axes.plot(r[here], f[p, here], "o", color=color, markersize=3.5)
        peak = np.argmax(f[p])
        axes.annotate(
            str(p), (r[peak], f[p, peak]), (0, 5), textcoords="offset points", ha="center", color=color, weight="bold"
        )

    axes.set_xscale("asinh", linear_width=1.0)
    reach = float(r[-1])
    ticks = [m * 10**e for e in range(6) for m in _TICKS if m * 10**e < 0.8 * reach or m * 10**e == reach]
    ticks = [*(-t for t in reversed(ticks)), 0, *ticks]
    axes.set_xticks(ticks, [_signed(t) for t in ticks])
    axes.set_xticks([], minor=True)

    axes.set(xlim=(1.15 * r[0], 1.15 * r[-1]), ylim=(0, 1.12), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("r = j − i: tokens from the one that reads (i) to the one that is read (j); not to scale far away")
    axes.set_ylabel("f_p(r): share of part p")
    axes.set_title(f"Every relative position is shared among {len(f)} parts, finely near 0 and coarsely far away")
    axes.grid(alpha=0.25)
    bare(axes)
    axes.legend(title="part p", loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def draw_attention(
    tokens: Sequence[str],
    maps: dict[str, np.ndarray],
    totals: dict[str, np.ndarray],
    names: Sequence[str],
    partition: tuple[np.ndarray, np.ndarray] | None = None,
) -> Figure:
    """Returns, for every layer, its attention map, and beside it the attention that each part gets in each row.

    Args:
      tokens: of the text, L of them.
      maps: a_ij by layer name, each [L, L].
      totals: sum_j f_p(j - i) a_ij by layer name, each [L, P].
      names: of the parts.
      partition: r and f of `draw_partition`, to be drawn above the maps.
    """
    with style(tokens):
        # Sizes in inches. A panel is a map, its tokens' names to the left and below, and its bars to the right.
        columns = 2 if len(maps) == 4 else -(-len(maps) // -(-len(maps) // 4))  # at most 4, and rows of like lengths
        rows = -(-len(maps) // columns)
        side = min(max(0.19 * len(tokens), 3.0), 12.0)
        name = 0.085 * max(map(len, tokens)) + 0.25
        bars = 0.5 * side
        gap = 0.15
        legend = 2.2
        width, height = name + side + gap + bars + 0.4, 0.5 + side + name
        above = 0.0 if partition is None else 5.0
        size = columns * width + legend, above + rows * height + 0.3
        figure = Figure(figsize=size)

        def place(x: float, y: float, w: float, h: float) -> Axes:
            """Adds axes whose upper left corner is x inches from the left and y from the top."""
            return figure.add_axes((x / size[0], 1 - (y + h) / size[1], w / size[0], h / size[1]))

        # The partition.
        if partition is not None:
            # Wide enough for its ticks even above a single small map; what reaches beyond an edge is kept.
            axes = place(0.6, 0.4, min(max(size[0] - 0.6 - legend, 7.5), 12.0), above - 1.4)
            _plot_partition(axes, *partition)

        # A panel for each layer.
        colors = part_colors(len(names))
        edges = np.arange(len(tokens) + 1) - 0.5
        highest = max(a.max() for a in maps.values())
        longest = max(t.sum(axis=1).max() for t in totals.values())
        for i, layer in enumerate(maps):
            x, y = i % columns * width + name, above + i // columns * height + 0.8
            left, right = place(x, y, side, side), place(x + side + gap, y, bars, side)

            image = left.imshow(maps[layer], cmap="Grays", vmin=0, vmax=highest, interpolation="nearest")
            _name_ticks(left.xaxis, tokens, rotation=90, fontsize=9)
            _name_ticks(left.yaxis, tokens, fontsize=9)
            left.set_title(layer, weight="bold")

            ends = np.cumsum(np.pad(totals[layer], [(0, 0), (1, 0)]), axis=1).T
            stacks = [
                right.stairs(end, edges, baseline=start, orientation="horizontal", fill=True, color=color)
                for start, end, color in zip(ends[:-1], ends[1:], colors, strict=True)
            ]
            right.hlines(edges, 0, longest, color="white", linewidth=10 * side / len(tokens))
            right.set(ylim=left.get_ylim(), yticks=[], xlim=(0, longest))
            right.xaxis.set_major_locator(MaxNLocator(4, integer=bool(longest > 4)))
            right.set_title("sum of the row, by part", fontsize=10)
            bare(right)

        # The title, and what the colors mean.
        title = "Which tokens (columns) each token (row) reads, and at which distances"
        figure.text(0, 1 - above / size[1], title, fontsize=13, va="top")
        x = columns * width + 0.1
        scale = min(side, 2.0)
        figure.colorbar(image, cax=place(x, above + 0.8, 0.15, scale), label="attention")
        corner = x / size[0], 1 - (above + 1.1 + scale) / size[1]
        figure.legend(stacks, names, title="part", loc="upper left", bbox_to_anchor=corner, borderpad=0, frameon=False)
        return figure


def draw_curves(metric: str, training: dict[str, list], validation: dict[str, list]) -> Figure:
    """Returns the loss, and the metric if that is not the loss, against steps.

    Args:
      metric: name of the main metric.
      training, validation: (step, value) pairs in order, by metric name; any may be missing.
    """
    panels = ["loss"] if metric == "loss" else ["loss", metric]
    figure = Figure(figsize=(5.2 * len(panels), 4.0), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if training.get(name):
            axes.plot(*zip(*training[name], strict=True), color=BLUE, linewidth=1.2, label="training")
        if validation.get(name):
            steps, values = zip(*validation[name], strict=True)
            axes.plot(steps, values, "o-", color=ORANGE, linewidth=1.8, markersize=4, label="validation")
            axes.set_title(f"validation {name} {values[-1]:.3g} at step {steps[-1]:,}")
        else:
            axes.set_title(f"{name}, not evaluated")

        axes.set(xlabel="training step", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        axes.grid(alpha=0.25)
        bare(axes)
        axes.legend(frameon=False)
    return figure


def draw_confusion(labels: Sequence[str], counts: np.ndarray) -> Figure:
    """Returns the confusion matrix, each row colored by its shares; counts are written where they can be read.

    Args:
      labels: names of the classes.
      counts: how often the row's class was taken for the column's, integer [C, C].
    """
    with style(labels):
        number = len(labels)
        digits = len(f"{counts.max():,}")
        side = min(max((0.3 + 0.08 * digits) * number, 3.5), 14.0)  # inches
        figure = Figure(figsize=(side + 1.5, side))
        axes = figure.subplots()

        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        with_totals = [f"{label} ({total:,})" for label, total in zip(labels, counts.sum(axis=1), strict=True)]
        _name_ticks(axes.xaxis, labels, rotation=45, ha="right", rotation_mode="anchor")
        _name_ticks(axes.yaxis, with_totals)
        if number <= MOST_COUNTS:
            for i, j in np.argwhere(counts):
                color = "white" if shares[i, j] >= 0.5 else "black"
                axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", size=9, color=color)

        right, total = int(np.trace(counts)), int(counts.sum())
        axes.set_title(f"{right / total:.1%} of {total:,} validation texts get the right label")
        axes.set(xlabel="predicted label", ylabel="true label (texts)")
        figure.colorbar(image, ax=axes, label="share of the true label's texts", shrink=0.8)
        return figure
