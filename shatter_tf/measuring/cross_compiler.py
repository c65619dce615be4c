"""Compiles an HLO module for a TPU or GPU that is not there, and prints the compiler's figures as a line of JSON.

  .venv-tpu/bin/python shatter_tf/measuring/cross_compiler.py module.hlo.pb tpu:v4:2x2x1
  .venv-gpu/bin/python shatter_tf/measuring/cross_compiler.py module.hlo.pb gpu:v100

It runs in environments of its own, made by `make tpu-compiler` and `make gpu-compiler`, which have jax and no
TensorFlow: libtpu is the compiler of real TPUs, jax's CUDA plugin is XLA's for GPUs, and neither needs the device it
compiles for. The module is compiled for one device.

The line has bytes of memory by use (`temporary_bytes`, `peak_bytes`, `argument_bytes`), the versions used, and
`seconds` of compilation; for a TPU also the `cycles` that the compiler estimates for the whole module, and
`bytes_accessed`. With a third argument, a path, the optimized module is written there as text.
"""

import dataclasses
import importlib.util
import json
import os
import re
import sys
import time

# A fusion's estimate is this many cycles or more only when the compiler's sum has overflowed.
_ABSURD_CYCLES = 10**12

# Bytes that every GPU is said to have. Where memory is short, XLA recomputes things: figures would not be comparable.
_PLENTY = 2**40


@dataclasses.dataclass
class Gpu:
    """What XLA has to know about a GPU to compile for it; sizes in bytes, bandwidth in bytes a second, `clock` in GHz.

    Source: NVIDIA's data sheets, and the CUDA C++ Programming Guide's tables of compute capabilities.
    """

    name: str
    compute_capability: tuple[int, int]
    cores: int
    floats_per_core: int
    threads_per_core: int
    shared_memory: int
    shared_memory_of_block: int
    bandwidth: int
    cache: int
    clock: float

    def target_config(self) -> str:
        """Returns XLA's GpuTargetConfigProto as text."""
        major, minor = self.compute_capability
        fields = dict(
            threads_per_block_limit=1024,
            threads_per_warp=32,
            threads_per_core_limit=self.threads_per_core,
            block_dim_limit_x=2**31 - 1,
            block_dim_limit_y=2**16 - 1,
            block_dim_limit_z=2**16 - 1,
            registers_per_core_limit=2**16,
            registers_per_block_limit=2**16,
            shared_memory_per_block=48 * 2**10,
            shared_memory_per_block_optin=self.shared_memory_of_block,
            shared_memory_per_core=self.shared_memory,
            core_count=self.cores,
            fpus_per_core=self.floats_per_core,
            memory_bandwidth=self.bandwidth,
            l2_cache_size=self.cache,
            clock_rate_ghz=self.clock,
            device_memory_size=_PLENTY,
        )
        device = " ".join(f"{key}: {value}" for key, value in fields.items())
        return (
            f"gpu_device_info {{ {device} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{self.name}"'
        )


_K, _M = 2**10, 2**20

GPUS = {
    "v100": Gpu("V100 SXM2", (7, 0), 80, 64, 2048, 96 * _K, 96 * _K, 900 * 10**9, 6 * _M, 1.53),
    "t4": Gpu("T4", (7, 5), 40, 64, 1024, 64 * _K, 64 * _K, 320 * 10**9, 4 * _M, 1.59),
    "a100": Gpu("A100 SXM4", (8, 0), 108, 64, 2048, 164 * _K, 163 * _K, 1555 * 10**9, 40 * _M, 1.41),
    "rtx4090": Gpu("RTX 4090", (8, 9), 128, 128, 1536, 100 * _K, 99 * _K, 1008 * 10**9, 72 * _M, 2.52),
    "h100": Gpu("H100 SXM5", (9, 0), 132, 128, 2048, 228 * _K, 227 * _K, 3352 * 10**9, 50 * _M, 1.98),
}


def to_stablehlo(serialized: bytes):
    """Returns a serialized HloModuleProto as a module in the dialect that compilers take."""
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax
    from jax._src.lib.mlir import ir

    context = mlir.make_ir_context()
    with context, ir.Location.unknown(context):
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(serialized))
        copies = []

        def find_copies(operation):
            # TensorFlow marks the values it returns with a copy that is not StableHLO, and does nothing.
            if operation.name == "mhlo.copy":
                copies.append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(find_copies)
        for copy in copies:
            copy.results[0].replace_all_uses_with(copy.operands[0])
            copy.erase()
    return module


def total_cycles(text: str) -> int:
    """Returns the compiler's estimate for a whole optimized module; the body of a loop counts once per iteration."""
    computations, entry = _computations(text)

    def cycles(name: str) -> int:
        total = 0
        for line in computations[name]:
            estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
            body = re.search(r" while\(.*body=%?([\w.-]+)", line)
            if estimate:
                if int(estimate[1]) > _ABSURD_CYCLES:
                    raise OverflowError(f"the compiler's estimate overflowed: {line.strip()[:100]}")
                total += int(estimate[1])
            elif body:
                total += _rounds(line, computations[name], computations) * cycles(body[1])
            elif called := re.search(r" call\(.*to_apply=%?([\w.-]+)", line):
                total += cycles(called[1])
        return total

    return cycles(entry)


def _rounds(loop: str, lines: list[str], computations: dict[str, list[str]]) -> int:
    """Returns the number of iterations of a loop, an instruction among `lines`.

    Its condition is `counter < limit`.
    """

    def defined(name: str, lines: list[str]) -> str:
        return next((line for line in lines if re.match(rf"\s*(ROOT )?%?{re.escape(name)} = ", line)), "")

    # The compiler gives the number.
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
    if known:
        return int(known[1])

    # The limit is a constant.
    operand, condition = re.search(r" while\(%?([\w.-]+)\), condition=%?([\w.-]+)", loop).groups()
    condition = computations[condition]
    compared = re.search(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", "\n".join(condition))
    limit = defined(compared[1], condition) if compared else ""
    if constant := re.search(r" constant\((\d+)\)", limit):
        return int(constant[1])

    # The limit is a place in the loop's state, with what a forward loop has counted.
    if place := re.search(r"index=(\d+)", limit):
        state = re.search(r" tuple\((.*?)\)", re.sub(r"/\*.*?\*/", "", defined(operand, lines)))
        given = state[1].split(",")[int(place[1])].strip().removeprefix("%") if state else ""
        counter = re.search(r"get-tuple-element\(%?([\w.-]+)\), index=0", defined(given, lines))
        if counter and " while(" in (forward := defined(counter[1], lines)):
            return _rounds(forward, lines, computations)
    raise ValueError(f"a loop of unknown length: {loop.strip()[:100]}")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the instructions, lines of text, of each computation of a module, and the name of the entry."""
    computations = {}
    entry = name = ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if header and not line.startswith("HloModule"):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _tpu(topology: str):
    """Returns the first device of a topology such as v4:2x2x1, and the version of its compiler."""
    # No queries to a cloud's metadata server, and no devices but the described ones.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_LOG_DIR="disabled", TPU_WORKER_HOSTNAMES="localhost")
    os.environ.update(ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    import libtpu
    from jax.experimental import topologies

    return topologies.get_topology_desc(topology, platform="tpu").devices[0], f"libtpu {libtpu.__version__}"


def _gpu(name: str):
    """Returns one of GPUS as a device, and the version of its compiler."""
    # The environment's own assembler, whatever CUDA is installed here: newer ones have dropped older GPUs.
    (cuda,) = importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations
    os.environ["XLA_FLAGS"] = f"--xla_gpu_cuda_data_dir={cuda}"
    import jax_cuda12_plugin.version
    from jax.experimental import topologies

    described = dict(target_config=GPUS[name].target_config(), topology="1x1x1")
    device = topologies.get_topology_desc("", platform="cuda", **described).devices[0]
    return device, f"jax-cuda12-plugin {jax_cuda12_plugin.version.__version__}"


def compile_for(path: str, target: str, text_path: str | None = None) -> dict:
    """Compiles the module in a file for one device of a target such as tpu:v4:2x2x1; returns what is printed."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    kind, _, which = target.partition(":")
    device, compiler = (_tpu if kind == "tpu" else _gpu)(which)
    import jax
    import jaxlib
    import numpy as np
    from jax._src.lib import xla_client

    # Compile.
    with open(path, "rb") as f:
        module = to_stablehlo(f.read())
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    begin = time.time()
    executable = device.client.compile(module, xla_client.DeviceList((device,)), options)
    seconds = time.time() - begin

    # Collect the figures.
    memory = executable.get_compiled_memory_stats()
    text = executable.hlo_modules()[0].to_string()
    if text_path:
        with open(text_path, "w", encoding="utf8") as f:
            f.write(text)
    figures = dict(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        compiler=f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, {compiler}",
        seconds=round(seconds, 1),
    )
    if kind == "tpu":
        costs = executable.cost_analysis()
        costs = costs[0] if isinstance(costs, (list, tuple)) else costs
        figures.update(cycles=total_cycles(text), bytes_accessed=int(costs["bytes accessed"]))
    return figures


if __name__ == "__main__":
    print(json.dumps(compile_for(*sys.argv[1:])))
