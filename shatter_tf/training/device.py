"""The fastest way to compute on this machine's devices: in which precision, and compiled by XLA or not.

`runtime.enable_xla` and `runtime.mixed_precision_dtype` are "auto" unless they are set. What is known to be fastest is
chosen before anything is built; on other devices a few steps of each way are tried (training/trial.py). The choice is
kept with the run, so that it resumes bit for bit. docs/performance.md has the measurements.
"""

import dataclasses
import pathlib
from typing import Optional

import tensorflow as tf
from official.core import config_definitions as cfg

from shatter_tf.training.distribution import MULTI_WORKER, TPU

AUTO = "auto"

# Instruction sets of CPUs with products in bfloat16, by their names in /proc/cpuinfo.
_BFLOAT16_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
_FIRST_GPUS_WITH_BFLOAT16 = (8, 0)  # compute capability


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to compute a step.

    Attributes:
      enable_xla: whether XLA compiles it.
      precision: the dtype of its products.
    """

    enable_xla: bool
    precision: str

    def __str__(self) -> str:
        return f"{self.precision}, {'XLA' if self.enable_xla else 'no XLA'}"


def bfloat16_instructions() -> Optional[str]:
    """Returns what multiplies in bfloat16 on this machine's CPU, or None."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return None
    return next((name for flag, name in _BFLOAT16_INSTRUCTIONS.items() if flag in flags), None)


def known_way(runtime: cfg.RuntimeConfig) -> tuple[Optional[Way], str]:
    """Returns the way that is known to be fastest on the devices of `runtime`, or None, and why; starts no device."""
    if runtime.distribution_strategy == TPU:
        return Way(True, "bfloat16"), "TPU"
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        has_bfloat16 = details.get("compute_capability", (0, 0)) >= _FIRST_GPUS_WITH_BFLOAT16
        return Way(True, "bfloat16" if has_bfloat16 else "float32"), details.get("device_name", "GPU")
    way = way_of_cpu(runtime)
    if way:
        return way, f"CPU with {bfloat16_instructions()}"
    if runtime.distribution_strategy == MULTI_WORKER:
        return Way(False, "float32"), "several machines' CPUs"  # cannot be compiled, nor tried one without the other
    return None, "CPU without instructions for bfloat16"


def way_of_cpu(runtime: cfg.RuntimeConfig) -> Optional[Way]:
    """Returns the way that is known to be fastest on this machine's CPU, or None."""
    if not bfloat16_instructions():
        return None
    # XLA has no bfloat16 products of its own on CPUs, and is slower with them than without.
    return Way(False, "float32" if runtime.enable_xla is True else "bfloat16")


def choose(runtime: cfg.RuntimeConfig) -> None:
    """Replaces "auto" in `runtime` where the fastest way is known; starts no device."""
    way, _ = known_way(runtime)
    if way:
        apply(runtime, way)


def apply(runtime: cfg.RuntimeConfig, way: Way) -> None:
    """Replaces "auto" in `runtime` by `way`."""
    if runtime.enable_xla == AUTO:
        runtime.enable_xla = way.enable_xla
    if runtime.mixed_precision_dtype == AUTO:
        runtime.mixed_precision_dtype = way.precision


def is_open(runtime: cfg.RuntimeConfig) -> bool:
    """Returns whether something is left to try."""
    return AUTO in (runtime.enable_xla, runtime.mixed_precision_dtype)


def candidates(runtime: cfg.RuntimeConfig) -> list[Way]:
    """Returns the ways to try that agree with what `runtime` says: only one where it leaves nothing open.

    Without instructions for it, bfloat16 is far slower than float32, and not worth trying.
    """
    xla = (False, True) if runtime.enable_xla == AUTO else (runtime.enable_xla,)
    precision = "float32" if runtime.mixed_precision_dtype in (AUTO, None) else runtime.mixed_precision_dtype
    return [Way(enable_xla, precision) for enable_xla in xla]


def fastest_policy() -> str:
    """Returns the name of the Keras policy that is known to be fastest on this machine; starts no device."""
    way, _ = known_way(cfg.RuntimeConfig())
    return f"mixed_{way.precision}" if way and way.precision != "float32" else "float32"


def describe() -> str:
    """Returns what training chooses on this machine, in one line."""
    way, why = known_way(cfg.RuntimeConfig())
    return f"{way} ({why})" if way else f"the faster of float32 with and without XLA, after a trial ({why})"
