"""What a machine has for training, and what is wrong with what is installed. Needs no library until it tries them."""

import glob
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from shatter_tf.console import how_to_install
from shatter_tf.errors import first_line

PACKAGE = "shatter_tf"
# What training imports, and the distribution that has it. A library comes after those that it needs.
LIBRARIES = {
    "tensorflow": "tensorflow",
    "tf_keras": "tf_keras",
    "tensorflow_text": "tensorflow-text",
    "official.nlp.modeling": "tf-models-official",
}
# Of a CPU, by their names in /proc/cpuinfo.
_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX BF16"}


def cpu(cpuinfo: str) -> str:
    """Returns the model, cores and instruction sets of a CPU, from the text of /proc/cpuinfo.

    Example:
    >>> cpu("model name : Any CPU\\nflags : avx2 amx_bf16").split(", ")[2:]
    ['AVX2', 'AMX BF16']
    """
    fields = dict(line.partition(":")[::2] for line in reversed(cpuinfo.splitlines()))
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    instructions = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    model = fields.get("model name", platform.machine())
    return ", ".join([model, f"{len(os.sched_getaffinity(0))} cores", *instructions])


def memory(meminfo: str) -> str:
    """Returns the size of the memory, from the text of /proc/meminfo.

    Example:
    >>> memory("MemTotal: 16777216 kB\\nMemAvailable: 8388608 kB")
    '16.0 GB, 8.0 GB available'
    """
    fields = dict(line.split(":") for line in meminfo.splitlines())
    total, available = (int(fields[name].split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GB, {available:.1f} GB available"


def facts_without_libraries() -> dict[str, str]:
    """Returns what can be said of a machine before anything is imported."""
    disk = shutil.disk_usage(".")
    tpu_cores = len(glob.glob("/dev/accel*"))
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "cpu": cpu(Path("/proc/cpuinfo").read_text()),
        "memory": memory(Path("/proc/meminfo").read_text()),
        "disk": f"{disk.free / 2**30:.1f} GB free in {os.getcwd()}",
        "tpu": f"{tpu_cores} chips" if tpu_cores else "none",
    }


def versions() -> tuple[dict[str, str], list[str]]:
    """Returns the versions of this package and of those that it pins, and what is wrong with them."""
    try:
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return {}, [how_to_install(PACKAGE)]
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return {}, [how_to_install("packaging")]

    found = {PACKAGE: importlib.metadata.version(PACKAGE)}
    problems = []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra
        install = f"run `{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'`"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed; {install}")
            continue
        if "==" in str(requirement.specifier):
            found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            problems.append(f"{requirement.name} {version} is installed, but {wanted} is needed; {install}")
    return found, problems


def import_problems() -> list[str]:
    """Imports what training needs; returns what cannot be imported, without what depends on that."""
    for module, distribution in LIBRARIES.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken library raises
            same = f"{distribution}=={importlib.metadata.version(distribution)}"
            mend = f"run `{sys.executable} -m pip install --force-reinstall --no-deps {same}`"
            return [f"{module} cannot be imported ({first_line(error)}); {mend}"]
    return []


def gpus() -> tuple[str, list[str]]:
    """Returns the GPUs that TensorFlow sees, and why it sees none of those that are there; needs TensorFlow."""
    import tensorflow as tf

    names = []
    for gpu in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        capability = ".".join(map(str, details.get("compute_capability", ("unknown",))))
        names.append(f"{details.get('device_name', gpu.name)}, compute capability {capability}")
    if names:
        return "; ".join(names), []

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"none, with CUDA_VISIBLE_DEVICES={hidden}", []
    if glob.glob("/dev/nvidia[0-9]*"):
        install = f"run `{sys.executable} -m pip install 'shatter_tf[cuda]'` and `nvidia-smi`, which names the driver"
        return "none", [f"TensorFlow cannot use the NVIDIA GPU of this machine; {install}"]
    return "none", []
