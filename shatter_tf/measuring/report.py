"""The report of a comparison: a Markdown table, curves against steps and wall-clock, and a dot for every run."""

import json
import math
import os
import statistics

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shatter_tf.files import write_whole
from shatter_tf.measuring.grid import RESULTS_FILE, STEP_SECONDS_FILE, Grid
from shatter_tf.measuring.pictures import bare, to_png

REPORT_FILE = "report.md"
CURVES_FILE = "curves.png"
FINAL_FILE = "final.png"


def write(grid: Grid, results: list[dict], output_dir: str) -> None:
    """Writes report.md, curves.png and final.png into `output_dir`, for the lines of its results.jsonl."""
    best = best_runs(results, grid.metric, grid.sign)
    in_order = dict.fromkeys(job.variant for job in grid.jobs)
    best = {name: best[name] for name in in_order if name in best}

    measured = {}
    path = os.path.join(output_dir, STEP_SECONDS_FILE)
    if os.path.exists(path):
        with open(path, encoding="utf8") as f:
            measured = json.load(f)

    plotted = {name: runs for name, runs in best.items() if name in grid.plot}
    write_whole(os.path.join(output_dir, REPORT_FILE), _markdown(grid, results, best, measured))
    for file, figure in (
        (CURVES_FILE, _draw_curves(grid.metric, plotted, measured)),
        (FINAL_FILE, _draw_final(grid, best)),
    ):
        figure.tight_layout()
        write_whole(os.path.join(output_dir, file), to_png(figure, dpi=130))


# === What the runs show ===


def best_runs(results: list[dict], metric: str, sign: int) -> dict[str, list[dict]]:
    """Returns each variant's runs at its best learning rate: the one whose mean over seeds at the end is best.

    One whose mean is NaN is the worst.
    """

    def goodness(runs: list[dict]) -> float:
        mean = statistics.mean(final(run, metric) for run in runs)
        return -math.inf if math.isnan(mean) else sign * mean

    groups: dict[str, dict[float, list[dict]]] = {}
    for line in results:
        groups.setdefault(line["variant"], {}).setdefault(line["learning_rate"], []).append(line)
    return {variant: max(rates.values(), key=goodness) for variant, rates in groups.items()}


def final(run: dict, metric: str) -> float:
    """Returns the metric at the end of a run."""
    return run["history"][-1][metric]


def curve(runs: list[dict], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps that all runs were evaluated at, [T], and the metric there, [runs, T]."""
    values = [{entry["step"]: entry[metric] for entry in run["history"]} for run in runs]
    steps = sorted(set.intersection(*(set(v) for v in values)))
    return np.array(steps), np.array([[v[step] for step in steps] for v in values])


def steps_to_reach(steps: np.ndarray, values: np.ndarray, target: float, sign: int) -> float | None:
    """Returns the step at which `values`, linear between evaluations, first reach `target`; None if never.

    Example:
    >>> steps_to_reach(np.array([10, 20, 30]), np.array([5.0, 4.0, 3.0]), 3.5, sign=-1)
    25.0
    """
    good = np.flatnonzero(sign * values >= sign * target)
    if not len(good):
        return None
    first = good[0]
    if first == 0:
        return float(steps[0])
    share = (target - values[first - 1]) / (values[first] - values[first - 1])
    return float(steps[first - 1] + share * (steps[first] - steps[first - 1]))


# === The table ===


def _markdown(grid: Grid, results: list[dict], best: dict[str, list[dict]], measured: dict[str, float]) -> str:
    commits = ", ".join(sorted({line["commit"] for line in results}))
    times = "were measured in turn in one process" if measured else "were not measured (--time_steps)"
    finals: dict[str, dict[float, list[float]]] = {name: {} for name in best}  # by variant and learning rate
    for line in results:
        if line["variant"] in finals:
            finals[line["variant"]].setdefault(line["learning_rate"], []).append(final(line, grid.metric))

    reference = best.get(grid.reference)
    lines = [
        f"# {grid.experiment}: {len(results)} runs",
        "",
        f"Commit {commits}. {grid.metric} on the validation data, mean ± standard deviation over seeds, at each "
        f"variant's best learning rate. Step times {times}.",
        "",
        *_table([_row(grid, runs, reference, len(finals[name]), measured) for name, runs in best.items()]),
    ]

    swept = {name: by_rate for name, by_rate in finals.items() if len(by_rate) > 1}
    if swept:
        rates = sorted(set().union(*swept.values()))
        lines += _table(
            [
                {"variant": name} | {f"{rate:g}": _spread(by_rate[rate]) if rate in by_rate else "" for rate in rates}
                for name, by_rate in swept.items()
            ]
        )
    lines += [f"![curves]({CURVES_FILE})", "", f"![at the end]({FINAL_FILE})", "", f"Every run: {RESULTS_FILE}", ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, str]]) -> list[str]:
    """Returns the lines of a Markdown table; the keys, the same in every row, are its header."""
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _row(grid: Grid, runs: list[dict], reference: list[dict] | None, rates: int, measured: dict) -> dict[str, str]:
    """Returns the cells of a variant: of its `runs` at the best of `rates` learning rates."""
    metric = grid.metric
    variant = runs[0]["variant"]
    row = {
        "variant": variant,
        "parameters": f"{runs[0]['parameters']:,}",
        "learning rate": f"{runs[0]['learning_rate']:g}" + (f" of {rates}" if rates > 1 else ""),
        "seeds": str(len(runs)),
        f"{metric} at the end": _spread([final(run, metric) for run in runs]),
    }
    if measured:
        row["ms/step"] = f"{1000 * measured[variant]:.0f}" if variant in measured else "not measured"
    if reference:
        row.update(_soonness(grid, runs, reference, measured))

    for length in grid.evaluate_at:
        values = [run["other_lengths"].get(str(length), {}).get(metric) for run in runs]
        row[f"{metric} at {length} tokens"] = "not run" if None in values else _spread(values)
    return row


def _soonness(grid: Grid, runs: list[dict], reference: list[dict], measured: dict) -> dict[str, str]:
    """Returns the cells that say how soon `runs` reach the end value of `reference`, on the mean over seeds."""
    steps, values = curve(runs, grid.metric)
    reference_steps, reference_values = curve(reference, grid.metric)
    target = float(reference_values.mean(axis=0)[-1])
    reached = steps_to_reach(steps, values.mean(axis=0), target, grid.sign)

    steps_cell = time_cell = "not reached"
    if reached is not None:
        share = reached / reference_steps[-1]
        at_most = "≤ " if reached == steps[0] else ""  # the first evaluation is already past it
        steps_cell = f"{at_most}{reached:.0f} ({at_most}{share:.0%})"
        seconds, reference_seconds = (measured.get(r[0]["variant"]) for r in (runs, reference))
        known = seconds and reference_seconds
        time_cell = f"{at_most}{share * seconds / reference_seconds:.0%}" if known else "not measured"

    cells = {f"steps to {grid.reference}'s end": steps_cell}
    return {**cells, "wall-clock to it": time_cell} if measured else cells


def _spread(values: list[float], digits: int = 3) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


# === The figures ===


def _draw_curves(metric: str, best: dict[str, list[dict]], measured: dict[str, float]) -> Figure:
    """Returns the mean of each variant, in its range over seeds, against steps and, if measured for all, time."""
    by_time = set(best) <= set(measured)  # the runs' own times say more about what else the machine did
    figure, axes = _figure(1 + by_time, 4.5)
    for name, runs in best.items():
        steps, values = curve(runs, metric)
        label = f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)}, rate {runs[0]['learning_rate']:g})"
        for axis, x in zip(axes, (steps, steps * measured.get(name, 0) / 60), strict=False):
            (line,) = axis.plot(x, values.mean(axis=0), marker=".", label=label)
            axis.fill_between(x, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)

    axes[0].set(xlabel="steps", ylabel=f"validation {_with_unit(metric)}")
    if by_time:
        axes[1].set(xlabel="minutes of training, at step times measured in turn")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, fontsize=8
    )
    return figure


def _draw_final(grid: Grid, best: dict[str, list[dict]]) -> Figure:
    """Returns the metric at the end of each run, a line for each variant, the best on top."""
    metric = grid.metric
    figure, (axis,) = _figure(1, 1.2 + 0.28 * len(best))
    ends = {name: [final(run, metric) for run in runs] for name, runs in best.items()}
    ranked = sorted(ends, key=lambda name: grid.sign * statistics.mean(ends[name]))
    for y, name in enumerate(ranked):
        color = "tab:red" if name == grid.reference else "tab:blue"
        axis.plot(ends[name], [y] * len(ends[name]), "o", color=color, alpha=0.6)
        axis.plot(statistics.mean(ends[name]), y, "k|", markersize=12)

    axis.set_yticks(range(len(ranked)), ranked, fontsize=8)
    axis.set(xlabel=f"validation {_with_unit(metric)}, at the end (a dot is a run)")
    return figure


def _figure(columns: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.5 * columns, height))
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        bare(axis)
    return figure, axes


def _with_unit(metric: str) -> str:
    return "loss, nats" if metric == "loss" else metric
