"""Measures the cost of pretraining Shatter and Model Garden's BERT at the same sizes, with or without the hardware.

  python -m shatter_tf.benchmark --compare=bert --target=cpu --seq_length=128 --batch_size=8
  python -m shatter_tf.benchmark --compare=bert --target=tpu:v4:2x2x1 --seq_length=512 --batch_size=8 --json=tpu.json
  python -m shatter_tf.benchmark --target=tpu:v5e:2x2 --seq_length=128,512 --batch_size=8,16 --plot=tpu.png
  python -m shatter_tf.benchmark --target=gpu:v100 --seq_length=512 --batch_size=8 --memory_gb=16

It builds the whole training step (encoder, masked-LM head, AdamW) of each with random weights and needs no corpus.
Sizes are BERT-Base's unless CONFIG_FILE or --params_override say otherwise. Lengths and batch sizes may be lists,
separated by commas; every combination is measured.

Targets: cpu and gpu run the steps in turn, compiled by XLA, and take memory from XLA's buffer assignment. The others
compile them for a device that need not be present. TPU targets (tpu:v4:2x2x1, tpu:v5e:2x2) use the compiler of real
TPUs (`make tpu-compiler` gets it): memory and cycles are then the compiler's own estimates for one chip's core, the
same at every run. GPU targets (gpu:v100, t4, a100, rtx4090, h100; `make gpu-compiler`) use XLA and give memory, but
no times. Precision is bfloat16, or float16 on a V100 and a T4, which have no bfloat16, and float32 on a CPU.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

from shatter_tf.command_line import UserError, new_parser, quieten_logging, run
from shatter_tf.cross_compiler import GPUS
from shatter_tf.xla_memory import dump_buffers, newest_buffers

# For each generation of TPU: floating-point operations per cycle of a core's matrix units (four of 128 x 128
# multipliers), and cycles per second. Source: Google Cloud's system architecture pages, 275 and 197 TFLOP/s a chip.
_TPUS = {"v4": (4 * 128 * 128 * 2, 1.05e9), "v5e": (4 * 128 * 128 * 2, 1.5e9)}
_TARGETS = f"cpu, gpu, tpu:v4:2x2x1, tpu:v5e:2x2 or gpu:{'|'.join(GPUS)}"
_GIB = 2**30


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("benchmark", __doc__)
    numbers = dict(type=_numbers, metavar="N[,N]")
    parser.add_argument("--compare", choices=("bert",), default="bert", help="the baseline [bert]")
    parser.add_argument("--target", default="cpu", metavar="T", help=f"{_TARGETS} [cpu]")
    parser.add_argument("--seq_length", **numbers, default=[512], help="tokens in a row [512]")
    parser.add_argument("--batch_size", **numbers, default=[8], help="rows in a step, on one device [8]")
    parser.add_argument("--config_file", metavar="F", help="YAML with settings that differ from the defaults")
    parser.add_argument("--params_override", default="", metavar="k=v,…", help="settings that win over CONFIG_FILE")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="steps of each to time on cpu and gpu [5]")
    parser.add_argument("--memory_gb", type=float, metavar="GB", help="also the largest batch that fits so much memory")
    parser.add_argument("--train_steps", type=int, metavar="N", help="also the days that N steps take")
    parser.add_argument("--global_batch_size", type=int, default=256, metavar="N", help="… of so many rows [256]")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="… on so many devices [1]")
    parser.add_argument("--json", metavar="F", help="write the figures there")
    parser.add_argument("--plot", metavar="F", help="draw the figures there (PNG)")
    parser.add_argument("--hlo_dir", metavar="DIR", help="keep what XLA was given, and what it made of it, there")
    parser.add_argument("--compiler_python", metavar="F", help="Python with the compiler [.venv-tpu/… or .venv-gpu/…]")
    args = parser.parse_args(argv)
    args.kind, _, args.compiled_for = args.target.partition(":")
    args.compiler_python = args.compiler_python or f".venv-{args.kind}/bin/python"
    return args


def _numbers(text: str) -> list[int]:
    values = [int(value) for value in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for a target that cannot be measured here, and for files that cannot be written."""
    topology = rf"({'|'.join(_TPUS)})(:\d+(x\d+)+)"
    if args.kind == "tpu" and not re.fullmatch(topology, args.compiled_for):
        raise UserError(f"--target={args.target}: give a generation and a topology: tpu:v4:2x2x1 or tpu:v5e:2x2")
    if args.target not in ("cpu", "gpu", *(f"gpu:{name}" for name in GPUS)) and args.kind != "tpu":
        raise UserError(f"--target={args.target}: give {_TARGETS}")
    if args.compiled_for in GPUS and args.train_steps:
        raise UserError(f"--train_steps={args.train_steps}: --target={args.target} gives no times; leave it out")
    if args.compiled_for and not os.path.exists(args.compiler_python):
        made = f"`make {args.kind}-compiler` makes the environment"
        raise UserError(f"--compiler_python={args.compiler_python}: no such file; {made}")
    for flag in ("json", "plot"):
        path = getattr(args, flag)
        if path and not os.path.isdir(os.path.dirname(path) or "."):
            raise UserError(f"--{flag}={path}: no such directory")
    for flag in ("rounds", "global_batch_size", "devices", "train_steps", "memory_gb"):
        value = getattr(args, flag)
        if value is not None and value <= 0:
            raise UserError(f"--{flag}={value}: not positive")


def resolve(args: argparse.Namespace, seq_length: int, batch_size: int) -> dict:
    """Returns the settings of both models, by name, for one length and batch size; raises UserError."""
    from shatter_tf import settings

    sizes = (
        f"task.train_data.seq_length={seq_length},task.train_data.global_batch_size={batch_size},"
        f"task.model.encoder.any.max_sequence_length={max(seq_length, 512)}"
    )
    models = {}
    for name, encoder in (("shatter", "any"), (args.compare, args.compare)):
        override = ",".join(filter(None, (args.params_override, sizes, f"task.model.encoder.type={encoder}")))
        params = settings.resolve_without_data(config_file=args.config_file, params_override=override)
        params.runtime.enable_xla = True  # the figures are XLA's
        if params.runtime.mixed_precision_dtype is None:
            params.runtime.mixed_precision_dtype = _precision(args)
        models[name] = params
    return models


def _precision(args: argparse.Namespace) -> str:
    """Returns the precision that a target is made for."""
    if args.target == "cpu":
        return "float32"
    capability = (8, 0)  # GPUs have bfloat16 from here on; TPUs have it
    if args.compiled_for in GPUS:
        capability = GPUS[args.compiled_for].compute_capability
    elif args.target == "gpu":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU")[:1]:
            capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", capability)
    return "bfloat16" if capability >= (8, 0) else "float16"


class Machine:
    """This machine's CPU or GPU: compiles steps with XLA, and runs those of both models in turn."""

    caveat = ""
    refinements = 0  # a step of a batch that fills the memory would take long

    def __init__(self, rounds: int, dump_dir: str):
        import tensorflow as tf

        self.compiler = f"XLA of TensorFlow {tf.__version__}"
        self._rounds, self._dump_dir = rounds, dump_dir

    def compile(self, name: str, params) -> dict:
        """Returns a model's figures that do not depend on time, and its `step`."""
        from shatter_tf.training_step import TrainingStep, matmul_flops, synthetic_batch

        step = TrainingStep(params, synthetic_batch(params))
        step()
        memory = newest_buffers(self._dump_dir)
        return dict(step=step, parameters=step.parameters, matmul_flops=matmul_flops(step.hlo()), **memory)

    def time(self, models: dict[str, dict]) -> None:
        """Adds what depends on time to the figures of each model."""
        from shatter_tf.training_step import best_matmul_rate, measure

        _say(f"timing {self._rounds} steps of each, in turn")
        steps = {name: figures.pop("step") for name, figures in models.items()}
        for name, seconds in measure(steps, self._rounds).items():
            median = statistics.median(seconds)
            models[name].update(step_seconds=median, fastest_seconds=min(seconds), slowest_seconds=max(seconds))
            rate = models[name]["matmul_flops"] / median
            models[name]["share_of_peak"] = rate / best_matmul_rate(steps[name].compute_dtype)
            steps[name].free()


_CAVEATS = {
    "tpu": "the TPU compiler's estimates for one core, from the step as a CPU would be given it; not a run on a TPU",
    "gpu": "what XLA assigns, with no GPU to try kernels on, where memory is not short; not a run on a GPU",
}


class Compiler:
    """The compiler of a TPU or GPU that need not be present."""

    def __init__(self, target: str, python: str, directory: str):
        self._target, self._python, self._directory = target, python, directory
        self.compiler = ""
        self.caveat = _CAVEATS[target.partition(":")[0]]
        # A TPU's compiler takes minutes, and rejects what does not fit the TPU.
        self.refinements = 2 if target.startswith("gpu:") else 0

    def compile(self, name: str, params) -> dict:
        """Returns all figures of a model."""
        from shatter_tf.training_step import TrainingStep, matmul_flops, synthetic_batch

        step = TrainingStep(params, synthetic_batch(params))
        data = params.task.train_data
        file_name = f"{name}-{data.global_batch_size}x{data.seq_length}.hlo.pb"
        hlo, path = step.hlo(), os.path.join(self._directory, file_name)
        step.free()
        with open(path, "wb") as f:
            f.write(hlo.SerializeToString())
        # Run by its path, not as a module of this package: its environment is another one, without TensorFlow.
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cross_compiler.py")
        command = [self._python, script, path, self._target, path.replace(".pb", ".txt")]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"--target={self._target}: the compiler failed: {last}")
        compiled = json.loads(process.stdout.splitlines()[-1])
        self.compiler = compiled.pop("compiler")
        figures = dict(parameters=step.parameters, matmul_flops=matmul_flops(hlo), **compiled)
        if "cycles" in compiled:
            flops_per_cycle, clock = _TPUS[self._target.split(":")[1]]
            figures["step_seconds"] = compiled["cycles"] / clock
            figures["share_of_peak"] = figures["matmul_flops"] / compiled["cycles"] / flops_per_cycle
        return figures

    def time(self, models: dict[str, dict]) -> None:
        """Adds nothing: what depends on time is estimated with the rest, or not at all."""


def measure(args: argparse.Namespace, target: Machine | Compiler, seq_length: int, batch_size: int) -> dict:
    """Returns the figures of both models for one length and batch size, and their ratios."""
    settings = resolve(args, seq_length, batch_size)
    models = {}
    for name, params in settings.items():
        _say(f"compiling {name}, {batch_size} x {seq_length} tokens")
        models[name] = target.compile(name, params)
    target.time(models)
    if args.memory_gb:
        for name, figures in models.items():
            rows = find_largest_batch(args, target, name, seq_length, {batch_size: figures["peak_bytes"]})
            if rows is not None:
                figures["largest_batch"] = rows
    for figures in models.values():
        if "step_seconds" in figures:
            figures["tokens_per_second"] = batch_size * seq_length / figures["step_seconds"]
        if args.train_steps:
            tokens = args.train_steps * args.global_batch_size * seq_length
            figures["training_days"] = tokens / figures["tokens_per_second"] / args.devices / 86_400
    shatter, baseline = models["shatter"], models[args.compare]
    ratio = {key: value / baseline[key] for key, value in shatter.items() if baseline.get(key)}
    return dict(seq_length=seq_length, batch_size=batch_size, **models, ratio=ratio)


def find_largest_batch(
    args, target: Machine | Compiler, name: str, seq_length: int, peaks: dict[int, int]
) -> int | None:
    """Returns how many rows of a model fit `args.memory_gb`, given the peak at one batch size; None if all do.

    Where the target allows refinements, it measures again at the size that `largest_batch` gives, because peaks grow
    faster per row at small sizes.
    """
    rows = max(peaks) // 2 or 2
    for _ in range(1 + target.refinements):
        _say(f"compiling {name}, {rows} x {seq_length} tokens")
        figures = target.compile(name, resolve(args, seq_length, rows)[name])
        peaks[rows] = figures["peak_bytes"]
        if "step" in figures:
            figures["step"].free()
        rows = largest_batch(dict(list(peaks.items())[-2:]), args.memory_gb * 1e9)
        if not rows or rows in peaks:
            break
    return rows


def largest_batch(peaks: dict[int, int], memory: float) -> int | None:
    """Returns how many rows fit `memory` bytes, by a straight line through the peaks at two batch sizes.

    None if the peaks do not grow with the rows, as happens when weights are all there is.

    Example:
    >>> largest_batch({4: 1_400, 8: 1_800}, memory=3_050)
    20
    """
    (rows, peak), (other_rows, other_peak) = peaks.items()
    per_row = (peak - other_peak) / (rows - other_rows)
    return max(0, int((memory - (peak - rows * per_row)) // per_row)) if per_row > 0 else None


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
    "tokens_per_second": ("tokens a second", lambda v: f"{v:,.0f}"),
    "share_of_peak": ("share of peak", lambda v: f"{v:.1%}"),
    "largest_batch": ("largest batch that fits", lambda v: f"{v:,}"),
    "training_days": ("days of training", lambda v: f"{v:.2f}"),
}


def format_table(measurement: dict, baseline: str) -> str:
    """Returns one measurement as lines of text, one figure per line."""
    title = f"{measurement['batch_size']} x {measurement['seq_length']} tokens"
    lines = [f"{title:28}{'shatter':>14}{baseline:>14}{'ratio':>8}"]
    for key, (name, written) in _ROWS.items():
        if all(key in measurement[model] for model in ("shatter", baseline)):
            ratio = measurement["ratio"].get(key)
            values = (written(measurement[model][key]) for model in ("shatter", baseline))
            lines.append(f"{name:28}" + "".join(f"{v:>14}" for v in values) + (f"{ratio:8.2f}" if ratio else ""))
    return "\n".join(lines)


def plot(measurements: list[dict], baseline: str, title: str, path: str) -> None:
    """Plots tokens a second, if known, and temporary memory against length, a line for each model and batch, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [
        ("tokens_per_second", 1e3, "thousand tokens a second"),
        ("temporary_bytes", _GIB, "temporary memory, GiB"),
    ]
    drawn = [panel for panel in drawn if panel[0] in measurements[0]["shatter"]]
    figure, panels = pyplot.subplots(1, len(drawn), figsize=(5 * len(drawn), 4), layout="constrained", squeeze=False)
    batch_sizes = sorted({m["batch_size"] for m in measurements})
    for axes, (key, unit, label) in zip(panels[0], drawn, strict=True):
        for model, color in (("shatter", "C0"), (baseline, "C1")):
            for batch_size, style in zip(batch_sizes, itertools.cycle(("-", "--", ":", "-."))):
                chosen = sorted(
                    (m for m in measurements if m["batch_size"] == batch_size), key=lambda m: m["seq_length"]
                )
                lengths, values = [m["seq_length"] for m in chosen], [m[model][key] / unit for m in chosen]
                axes.plot(lengths, values, style, color=color, marker="o", label=f"{model}, {batch_size} rows")
        axes.set(xlabel="tokens in a row", ylabel=label, xscale="log", ylim=(0, None))
        axes.set_xticks(sorted({m["seq_length"] for m in measurements}))
        axes.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.minorticks_off()
    panels[0, 0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    check_arguments(args)
    with contextlib.ExitStack() as stack:
        directory = args.hlo_dir or stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(directory, exist_ok=True)
        if not args.compiled_for:
            dump_buffers(directory, "training_step")
        import tensorflow as tf

        quieten_logging()
        if args.target == "gpu" and not tf.config.list_physical_devices("GPU"):
            raise UserError("--target=gpu: TensorFlow sees no GPU here")
        if args.target != "gpu":
            tf.config.set_visible_devices([], "GPU")
        combinations = list(itertools.product(args.seq_length, args.batch_size))
        settings = [resolve(args, *combination) for combination in combinations]  # all are checked before the first
        params = settings[0]["shatter"]
        if args.compiled_for:
            target = Compiler(args.target, args.compiler_python, directory)
        else:
            target = Machine(args.rounds, directory)
        encoder = params.task.model.encoder.get()
        title = (
            f"{encoder.num_layers} layers, width {encoder.hidden_size}, {params.runtime.mixed_precision_dtype}, "
            f"on {args.target}"
        )
        print(f"One training step (encoder, masked-LM head, AdamW): {title}")
        measurements = []
        for combination in combinations:
            measurements.append(measure(args, target, *combination))
            print("\n" + format_table(measurements[-1], args.compare), flush=True)
    print(f"\n{target.compiler}" + (f": {target.caveat}" if target.caveat else ""))
    if args.train_steps:
        print(
            f"Days of {args.train_steps:,} steps of {args.global_batch_size} rows on {args.devices} "
            f"device{'s' * (args.devices > 1)}, without the time in which devices exchange gradients."
        )
    if args.json:
        result = dict(
            target=args.target,
            precision=params.runtime.mixed_precision_dtype,
            compiler=target.compiler,
            caveat=target.caveat,
            encoder=params.task.model.encoder.any.as_dict(),
            measurements=measurements,
        )
        with open(args.json, "w", encoding="utf8") as f:
            json.dump(result, f, indent=1)
    if args.plot:
        plot(measurements, args.compare, title, args.plot)


if __name__ == "__main__":
    run(main)
