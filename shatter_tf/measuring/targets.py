"""What steps are measured on: this machine, or a TPU or GPU that need not be present, only its compiler."""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from official.core import config_definitions as cfg

from shatter_tf.console import say
from shatter_tf.errors import UserError, argument
from shatter_tf.measuring import cross_compiler
from shatter_tf.measuring.cross_compiler import GPUS
from shatter_tf.measuring.hlo import matmul_flops
from shatter_tf.measuring.xla_memory import dump_buffers, newest_buffers
from shatter_tf.training import device
from shatter_tf.training.device import Way
from shatter_tf.training.timing import TrainingStep, best_matmul_rate, measure, synthetic_batch

# For each generation of TPU: floating-point operations per cycle of a core's matrix units (four of 128 x 128
# multipliers), and cycles per second. Source: Google Cloud's system architecture pages, 275 and 197 TFLOP/s a chip.
_TPUS = {"v4": (4 * 128 * 128 * 2, 1.05e9), "v5e": (4 * 128 * 128 * 2, 1.5e9)}

_CAVEATS = {
    "tpu": "the TPU compiler's estimates for one core, from the step as a CPU would be given it; not a run on a TPU",
    "gpu": "what XLA assigns, with no GPU to try kernels on, where memory is not short; not a run on a GPU",
}


class Machine:
    """This machine's CPU or GPU: computes steps as training would, those of all models in turn.

    Without XLA, as on CPUs with instructions for bfloat16, there are no figures of memory.

    Args:
      target: cpu or gpu.
      rounds: steps of each model to time.
      directory: where XLA writes what it assigns.

    Attributes:
      compiler: its name and version.
      caveat: what the figures are not, or "".
      refinements: how often it is worth measuring again to find the largest batch.
    """

    caveat = ""
    refinements = 0  # a step of a batch that fills the memory would take long

    def __init__(self, target: str, rounds: int, directory: str):
        self.compiler = f"TensorFlow {tf.__version__}"
        self._target = target
        self._rounds = rounds
        self._directory = directory
        dump_buffers(directory, "training_step")

        gpus = tf.config.list_physical_devices("GPU")
        if target == "cpu":
            tf.config.set_visible_devices([], "GPU")
        elif not gpus:
            raise UserError(f"{argument('target')}={target}: TensorFlow sees no GPU here")
        self._gpus = gpus

    def choose(self, runtime: cfg.RuntimeConfig) -> None:
        """Replaces "auto" in `runtime` by what training would choose; where it would try, by XLA."""
        if self._target == "cpu":
            device.apply(runtime, device.way_of_cpu(runtime) or Way(True, "float32"))
        else:
            details = tf.config.experimental.get_device_details(self._gpus[0])
            precision = _precision_of_gpu(details.get("compute_capability", (8, 0)))
            device.apply(runtime, Way(True, precision))

    def compile(self, name: str, params: cfg.ExperimentConfig) -> dict[str, Any]:
        """Returns a model's figures that do not depend on time, and its `step`."""
        step = TrainingStep(params, synthetic_batch(params))
        step()
        memory = newest_buffers(self._directory) if params.runtime.enable_xla else {}
        return dict(step=step, parameters=step.parameters, matmul_flops=matmul_flops(step.hlo()), **memory)

    def time(self, models: dict[str, dict[str, Any]]) -> None:
        """Adds what depends on time to the figures of each model, and takes their `step` out."""
        say(f"timing {self._rounds} steps of each, in turn", sys.stderr)
        steps = {name: figures.pop("step") for name, figures in models.items()}
        for name, seconds in measure(steps, self._rounds).items():
            figures = models[name]
            median = statistics.median(seconds)
            figures.update(step_seconds=median, fastest_seconds=min(seconds), slowest_seconds=max(seconds))
            rate = figures["matmul_flops"] / median
            figures["share_of_peak"] = rate / best_matmul_rate(steps[name].compute_dtype)
            steps[name].free()


class Compiler:
    """The compiler of a TPU or GPU that need not be present; see Machine for what it offers.

    Args:
      target: tpu:GENERATION:TOPOLOGY, or gpu: and one of GPUS.
      python: of the environment that has the compiler.
      directory: where modules go.
    """

    def __init__(self, target: str, python: str, directory: str):
        self._target = target
        self._python = python
        self._directory = directory
        self._kind, self._device = target.split(":", 1)
        tf.config.set_visible_devices([], "GPU")
        self.compiler = ""  # until it has run
        self.caveat = _CAVEATS[self._kind]
        # A TPU's compiler takes minutes, and rejects what does not fit the TPU.
        self.refinements = 2 if self._kind == "gpu" else 0

    def choose(self, runtime: cfg.RuntimeConfig) -> None:
        """Replaces "auto" in `runtime` by the precision that the target is made for, and XLA."""
        is_gpu = self._kind == "gpu"
        precision = _precision_of_gpu(GPUS[self._device].compute_capability) if is_gpu else "bfloat16"
        device.apply(runtime, Way(True, precision))

    def compile(self, name: str, params: cfg.ExperimentConfig) -> dict[str, Any]:
        """Returns all figures of a model."""
        step = TrainingStep(params, synthetic_batch(params))
        hlo = step.hlo()
        step.free()
        data = params.task.train_data
        path = os.path.join(self._directory, f"{name}-{data.global_batch_size}x{data.seq_length}.hlo.pb")
        with open(path, "wb") as f:
            f.write(hlo.SerializeToString())

        # Run by its path, not as a module of this package: its environment is another one, without TensorFlow.
        command = [self._python, cross_compiler.__file__, path, self._target, path.replace(".pb", ".txt")]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"{argument('target')}={self._target}: the compiler failed: {last}")
        compiled = json.loads(process.stdout.splitlines()[-1])
        self.compiler = compiled.pop("compiler")

        figures = dict(parameters=step.parameters, matmul_flops=matmul_flops(hlo), **compiled)
        if "cycles" in compiled:
            flops_per_cycle, clock = _TPUS[self._device.split(":")[0]]
            figures["step_seconds"] = compiled["cycles"] / clock
            figures["share_of_peak"] = figures["matmul_flops"] / compiled["cycles"] / flops_per_cycle
        return figures

    def time(self, models: dict[str, dict[str, Any]]) -> None:
        """Adds nothing: what depends on time is estimated with the rest, or not at all."""


def _precision_of_gpu(compute_capability: tuple[int, int]) -> str:
    return "bfloat16" if compute_capability >= (8, 0) else "float16"


def check(target: str, python: str, needs_times: bool) -> None:
    """Raises UserError when there is no such target, or when it cannot give what is asked of it.

    Args:
      target: what the command was given.
      python: of the environment that has the compiler, for targets that need one.
      needs_times: whether the time of a step is needed.
    """
    where = f"{argument('target')}={target}"
    kind, _, device = target.partition(":")
    if kind == "tpu" and not re.fullmatch(rf"({'|'.join(_TPUS)})(:\d+(x\d+)+)", device):
        raise UserError(f"{where}: give a generation and a topology: tpu:v4:2x2x1 or tpu:v5e:2x2")
    if kind != "tpu" and target not in ("cpu", "gpu", *(f"gpu:{name}" for name in GPUS)):
        raise UserError(f"{where}: give cpu, gpu, tpu:v4:2x2x1, tpu:v5e:2x2 or gpu:{'|'.join(GPUS)}")

    if needs_times and device in GPUS:
        raise UserError(f"{argument('train_steps')}: {where} gives no times; leave it out")
    if device and not os.path.exists(python):
        made = f"`make {kind}-compiler` makes the environment"
        raise UserError(f"{argument('compiler_python')}={python}: no such file; {made}")


@contextlib.contextmanager
def opened(target: str, python: str, rounds: int, hlo_dir: str | None) -> Iterator[Machine | Compiler]:
    """Yields a target that `check` has passed.

    Args:
      target, python: as for `check`.
      rounds: steps of each model to time.
      hlo_dir: where modules go; None keeps them only as long as the target is open.
    """
    with contextlib.ExitStack() as stack:
        directory = hlo_dir or stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(directory, exist_ok=True)
        yield Compiler(target, python, directory) if ":" in target else Machine(target, rounds, directory)
