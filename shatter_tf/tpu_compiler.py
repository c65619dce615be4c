"""Compiles an HLO module for a TPU that is not there, and prints what the compiler says of it as one line of JSON.

  .venv-tpu/bin/python shatter_tf/tpu_compiler.py module.hlo.pb v4:2x2x1

It runs in an environment of its own, made by `make tpu-compiler`, which has jax and libtpu and no TensorFlow: libtpu is
the compiler of real TPUs, and needs no TPU to compile. The module is compiled for one device of the topology.

The line has bytes of memory by use (`temporary_bytes`, `peak_bytes`, `argument_bytes`), the `cycles` that the compiler
estimates for the whole module, `bytes_accessed`, the versions that did it, and `seconds` of compilation. With a third
argument, the optimised module is written there as text.
"""

import json
import os
import re
import sys
import time

# A fusion is said to take this many cycles or more only when the compiler's sum has overflowed.
_ABSURD_CYCLES = 10**12


def to_stablehlo(serialized: bytes):
    """Returns a serialised HloModuleProto as a module in the dialect that compilers take."""
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
    """Returns the compiler's estimate for a whole optimised module; the body of a loop counts once for each round."""
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
    """Returns how often a loop, an instruction among `lines`, goes round.

    Its condition is `counter < limit`. Where the compiler does not say how often that holds, the limit is a constant
    or, for the backward pass of a loop, what the forward loop had counted.
    """

    def defined(name: str, lines: list[str]) -> str:
        return next((line for line in lines if re.match(rf"\s*(ROOT )?%?{re.escape(name)} = ", line)), "")

    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
    if known:
        return int(known[1])
    operand, condition = re.search(r" while\(%?([\w.-]+)\), condition=%?([\w.-]+)", loop).groups()
    condition = computations[condition]
    compared = re.search(r"ROOT .* compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", "\n".join(condition))
    limit = defined(compared[1], condition) if compared else ""
    if constant := re.search(r" constant\((\d+)\)", limit):
        return int(constant[1])
    if place := re.search(r"index=(\d+)", limit):
        state = re.search(r" tuple\((.*?)\)", re.sub(r"/\*.*?\*/", "", defined(operand, lines)))
        given = state[1].split(",")[int(place[1])].strip().removeprefix("%") if state else ""
        counter = re.search(r"get-tuple-element\(%?([\w.-]+)\), index=0", defined(given, lines))
        if counter and " while(" in (forward := defined(counter[1], lines)):
            return _rounds(forward, lines, computations)
    raise ValueError(f"a loop of unknown length: {loop.strip()[:100]}")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the instructions, lines of text, of each computation of a module, and the name of the entry."""
    computations, entry, name = {}, "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)
        if header and not line.startswith("HloModule"):
            name = header[2]
            computations[name] = []
            entry = name if header[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def compile_for(path: str, topology: str, text_path: str | None = None) -> dict:
    """Compiles the module in a file for one device of a topology such as v4:2x2x1; returns what is printed."""
    # No asking of a cloud's metadata server, and no devices but the described ones.
    os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", TPU_LOG_DIR="disabled")
    os.environ.update(TPU_WORKER_HOSTNAMES="localhost", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    import jax
    import jaxlib
    import libtpu
    import numpy as np
    from jax._src.lib import xla_client
    from jax.experimental import topologies

    device = topologies.get_topology_desc(topology, platform="tpu").devices[0]
    with open(path, "rb") as f:
        module = to_stablehlo(f.read())
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    begin = time.time()
    executable = device.client.compile(module, xla_client.DeviceList((device,)), options)
    seconds = time.time() - begin
    memory, text = executable.get_compiled_memory_stats(), executable.hlo_modules()[0].to_string()
    if text_path:
        with open(text_path, "w", encoding="utf8") as f:
            f.write(text)
    costs = executable.cost_analysis()
    return dict(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        cycles=total_cycles(text),
        bytes_accessed=int((costs[0] if isinstance(costs, (list, tuple)) else costs)["bytes accessed"]),
        compiler=f"jax {jax.__version__}, jaxlib {jaxlib.__version__}, libtpu {libtpu.__version__}",
        seconds=round(seconds, 1),
    )


if __name__ == "__main__":
    print(json.dumps(compile_for(*sys.argv[1:])))
