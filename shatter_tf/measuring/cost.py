"""What pretraining costs: figures of Shatter's step beside those of other encoders at the same sizes."""

import argparse
import itertools
import json
import os
import sys
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from official.core import config_definitions as cfg

from shatter_tf.config_files import find_config
from shatter_tf.console import say
from shatter_tf.encoders.registry import DEFAULT, FAMILIES
from shatter_tf.errors import UserError, argument, nearest
from shatter_tf.measuring import targets
from shatter_tf.measuring.targets import Compiler, Machine
from shatter_tf.training import settings

_GIB = 2**30

# What Shatter may be measured beside, and how: other families as they are by default, which for BERT is Model Garden's,
# and the best BERT of docs/results.md.
_BERT = "task.model.encoder.bert"
BASELINES = {
    **{name: f"task.model.encoder.type={name}" for name in FAMILIES if name != DEFAULT},
    "tuned_bert": f"task.model.encoder.type=bert,{_BERT}.norm_first=false,{_BERT}.positions=rotary,"
    f"{_BERT}.hidden_activation=squared_relu",
}

# How the table shows each figure, if it was measured: its name, and how a value is formatted.
_ROWS = {
    "parameters": ("parameters", lambda v: f"{v / 1e6:.1f} M"),
    "matmul_flops": ("FLOPs of matrix products", lambda v: f"{v / 1e12:.3f} T"),
    "argument_bytes": ("weights, optimizer, batch", lambda v: f"{v / _GIB:.2f} GiB"),
    "temporary_bytes": ("temporary memory", lambda v: f"{v / _GIB:.2f} GiB"),
    "peak_bytes": ("peak memory", lambda v: f"{v / _GIB:.2f} GiB"),
    "bytes_accessed": ("bytes accessed", lambda v: f"{v / 1e9:.1f} GB"),
    "cycles": ("cycles", lambda v: f"{v / 1e6:.1f} M"),
    "step_seconds": ("step, median", lambda v: f"{v * 1e3:.1f} ms"),
    "fastest_seconds": ("  fastest", lambda v: f"{v * 1e3:.1f} ms"),
    "slowest_seconds": ("  slowest", lambda v: f"{v * 1e3:.1f} ms"),
    "examples_per_second": ("examples a second", lambda v: f"{v:,.1f}"),
    "tokens_per_second": ("tokens a second", lambda v: f"{v:,.0f}"),
    "share_of_peak": ("share of peak", lambda v: f"{v:.1%}"),
    "largest_batch": ("largest batch that fits", lambda v: f"{v:,}"),
    "training_days": ("days of training", lambda v: f"{v:.2f}"),
}


def benchmark(args: argparse.Namespace) -> None:
    """Measures every combination of length and batch size; prints, writes and draws the figures.

    Args:
      args: the flags of `shatter_tf.benchmark`.

    Raises:
      UserError: for what cannot be measured, before anything is.
    """
    check(args)
    combinations = list(itertools.product(args.seq_length, args.batch_size))
    with targets.opened(args.target, args.compiler_python, args.rounds, args.hlo_dir) as target:
        checked = [resolve(args, target, *combination) for combination in combinations]
        params = checked[0][DEFAULT]
        if args.memory_gb and not params.runtime.enable_xla:
            raise UserError(
                f"{argument('memory_gb')}: without XLA, memory is not known; add runtime.enable_xla=true to "
                f"{argument('params_override')}"
            )
        encoder = params.task.model.encoder.shatter
        precision = params.runtime.mixed_precision_dtype
        way = f"{precision}{'' if params.runtime.enable_xla else ', no XLA'}"
        title = f"{encoder.num_layers} layers, width {encoder.hidden_size}, {way}, on {args.target}"
        say(f"One training step (encoder, masked-LM head, AdamW): {title}")

        measurements = []
        for combination in combinations:
            measurements.append(measure_models(args, target, *combination))
            say("\n" + format_table(measurements[-1]))

    say(f"\n{target.compiler}" + (f": {target.caveat}" if target.caveat else ""))
    if args.train_steps:
        say(
            f"Days of {args.train_steps:,} steps of {args.global_batch_size} rows on {args.devices} "
            f"device{'s' * (args.devices > 1)}, without the time in which devices exchange gradients."
        )

    if args.json:
        result = dict(
            target=args.target,
            precision=precision,
            compiler=target.compiler,
            caveat=target.caveat,
            encoder=encoder.as_dict(),
            measurements=measurements,
        )
        with open(args.json, "w", encoding="utf8") as f:
            json.dump(result, f, indent=1)
    if args.plot:
        plot(measurements, title).savefig(args.plot, dpi=120)


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a baseline that does not exist, a target that cannot be measured here, and bad values."""
    for name in args.compare:
        if name not in BASELINES:
            near = nearest(name, BASELINES)
            raise UserError(f"{argument('compare')}={name}: give some of {', '.join(BASELINES)}{near}")

    if args.config:
        args.config_file = find_config(args.config)
    targets.check(args.target, args.compiler_python, needs_times=bool(args.train_steps))

    for name in ("json", "plot"):
        path = getattr(args, name)
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise UserError(f"{argument(name)}={path}: no such directory")
    for name in ("rounds", "global_batch_size", "devices", "train_steps", "memory_gb"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"{argument(name)}={value}: not positive")


def resolve(
    args: argparse.Namespace, target: Machine | Compiler, seq_length: int, batch_size: int
) -> dict[str, cfg.ExperimentConfig]:
    """Returns the settings of all models, by name, for one length and batch size; raises UserError."""
    sizes = (
        f"task.train_data.seq_length={seq_length},task.train_data.global_batch_size={batch_size},"
        f"task.model.encoder.shatter.max_sequence_length={max(seq_length, 512)}"
    )
    models = {}
    for name in (DEFAULT, *args.compare):
        encoder = BASELINES.get(name, f"task.model.encoder.type={name}")
        override = ",".join(filter(None, (args.params_override, sizes, encoder)))
        params = settings.resolve_without_data(config_file=args.config_file, params_override=override)
        target.choose(params.runtime)
        models[name] = params
    return models


def measure_models(
    args: argparse.Namespace, target: Machine | Compiler, seq_length: int, batch_size: int
) -> dict[str, Any]:
    """Returns the figures of all models for one length and batch size, and Shatter's as shares of the others'."""
    models = {}
    for name, params in resolve(args, target, seq_length, batch_size).items():
        say(f"compiling {name}, {batch_size} x {seq_length} tokens", sys.stderr)
        models[name] = target.compile(name, params)
    target.time(models)

    if args.memory_gb:
        for name, figures in models.items():
            rows = find_largest_batch(args, target, name, seq_length, {batch_size: figures["peak_bytes"]})
            if rows is not None:
                figures["largest_batch"] = rows
    for figures in models.values():
        if "step_seconds" in figures:
            figures["examples_per_second"] = batch_size / figures["step_seconds"]
            figures["tokens_per_second"] = batch_size * seq_length / figures["step_seconds"]
        if args.train_steps:
            tokens = args.train_steps * args.global_batch_size * seq_length
            figures["training_days"] = tokens / figures["tokens_per_second"] / args.devices / 86_400

    ratios = {}
    for name in args.compare:
        ratios[name] = {
            key: value / models[name][key] for key, value in models[DEFAULT].items() if models[name].get(key)
        }
    first = ratios[args.compare[0]]
    return dict(seq_length=seq_length, batch_size=batch_size, **models, ratio=first, ratios=ratios)


def find_largest_batch(
    args: argparse.Namespace, target: Machine | Compiler, name: str, seq_length: int, peaks: dict[int, int]
) -> int | None:
    """Returns how many rows of a model fit `args.memory_gb`, given the peak at one batch size; None if all do.

    Where the target allows refinements, it measures again at the size that `largest_batch` returns, because peaks grow
    faster per row at small sizes.
    """
    rows = max(peaks) // 2 or 2
    for _ in range(1 + target.refinements):
        say(f"compiling {name}, {rows} x {seq_length} tokens", sys.stderr)
        figures = target.compile(name, resolve(args, target, seq_length, rows)[name])
        peaks[rows] = figures["peak_bytes"]
        if "step" in figures:
            figures["step"].free()

        last_two = dict(list(peaks.items())[-2:])
        rows = largest_batch(last_two, args.memory_gb * 1e9)
        if not rows or rows in peaks:
            break
    return rows


def largest_batch(peaks: dict[int, int], memory: float) -> int | None:
    """Returns how many rows fit `memory` bytes, by a straight line through the peaks at two batch sizes.

    None if the peaks do not grow with the rows, as happens when nothing but weights takes memory.

    Example:
    >>> largest_batch({4: 1_400, 8: 1_800}, memory=3_050)
    20
    """
    (rows, peak), (other_rows, other_peak) = peaks.items()
    per_row = (peak - other_peak) / (rows - other_rows)
    return max(0, int((memory - (peak - rows * per_row)) // per_row)) if per_row > 0 else None


def format_table(measurement: dict[str, Any]) -> str:
    """Returns one measurement as lines of text, one figure per line."""
    title = f"{measurement['batch_size']} x {measurement['seq_length']} tokens"
    baselines = measurement["ratios"]
    lines = [f"{title:28}{DEFAULT:>14}" + "".join(f"{name:>14}{'ratio':>8}" for name in baselines)]
    for key, (figure, written) in _ROWS.items():
        if all(key in measurement[model] for model in (DEFAULT, *baselines)):
            line = f"{figure:28}{written(measurement[DEFAULT][key]):>14}"
            for name, ratios in baselines.items():
                ratio = f"{ratios[key]:8.2f}" if key in ratios else " " * 8
                line += f"{written(measurement[name][key]):>14}{ratio}"
            lines.append(line.rstrip())
    return "\n".join(lines)


def plot(measurements: list[dict[str, Any]], title: str) -> Figure:
    """Returns tokens a second, if known, and temporary memory against length, a line for each model and batch size."""
    panels = [
        ("tokens_per_second", 1e3, "thousand tokens a second"),
        ("temporary_bytes", _GIB, "temporary memory, GiB"),
    ]
    panels = [panel for panel in panels if panel[0] in measurements[0][DEFAULT]]
    measurements = sorted(measurements, key=lambda m: m["seq_length"])
    batch_sizes = sorted({m["batch_size"] for m in measurements})

    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (key, unit, label) in zip(all_axes, panels, strict=True):
        for i, model in enumerate((DEFAULT, *measurements[0]["ratios"])):
            for batch_size, style in zip(batch_sizes, itertools.cycle(("-", "--", ":", "-."))):
                chosen = [m for m in measurements if m["batch_size"] == batch_size]
                lengths = [m["seq_length"] for m in chosen]
                values = [m[model][key] / unit for m in chosen]
                axes.plot(lengths, values, style, color=f"C{i}", marker="o", label=f"{model}, {batch_size} rows")

        axes.set(xlabel="tokens in a row", ylabel=label, xscale="log", ylim=(0, None))
        axes.set_xticks(sorted({m["seq_length"] for m in measurements}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
    all_axes[0].legend()
    figure.suptitle(title)
    return figure
