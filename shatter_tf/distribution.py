"""Which devices a run trains on: one, several of this machine, several machines, or a TPU.

`runtime.distribution_strategy` says which; the strategies are TensorFlow's own. Several machines are told of each other
by the environment variable TF_CONFIG, which cluster managers set; docs/running.md has the commands.
"""

import json
import os

import tensorflow as tf
from official.common import distribute_utils
from official.core import config_definitions as cfg

from shatter_tf.command_line import UserError, first_line, nearest

ONE_DEVICE, MIRRORED, MULTI_WORKER, TPU = STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")


class WorkerLost(Exception):
    """Another process of the run is gone, and with it the step they were taking together."""


def _workers() -> tuple[list[str], int]:
    """Returns the addresses of the machines that train together, and which of them this is; ([], 0) without any.

    Raises:
      UserError: when TF_CONFIG cannot be read so.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return [], 0
    try:
        config = json.loads(text)
        if not isinstance(config, dict) or not config.get("cluster"):
            return [], 0
        cluster, task = config["cluster"], config["task"]
        chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
        addresses = [*chiefs, *workers]
        index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
        if task["type"] not in ("chief", "worker") or not 0 <= index < len(addresses):
            raise ValueError(f"its task, {task['type']} {task['index']}, is not in its cluster")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        raise UserError(f"TF_CONFIG={text}: {error!r}; expected something like {example}") from error
    return addresses, index


def is_chief() -> bool:
    """Returns whether this process is the one that writes, and talks to the user."""
    return _workers()[1] == 0


def problems(runtime: cfg.RuntimeConfig) -> list[str]:
    """Returns a line for everything in `runtime` that this machine cannot do; starts no device."""
    name, found = runtime.distribution_strategy, []
    if name not in STRATEGIES:
        return [f"runtime.distribution_strategy={name}: use {', '.join(STRATEGIES)}{nearest(name, STRATEGIES)}"]
    gpus = len(tf.config.list_physical_devices("GPU"))
    if runtime.num_gpus > gpus:
        found.append(f"runtime.num_gpus={runtime.num_gpus}, but this machine has {gpus}")
    if name == ONE_DEVICE and runtime.num_gpus > 1:
        found.append(f"runtime.num_gpus={runtime.num_gpus} are not one_device; use mirrored")
    if name == TPU and not runtime.tpu:
        found.append("runtime.tpu is not set: give the TPU's name, or local on a TPU VM")
    try:
        workers = len(_workers()[0])
    except UserError as error:
        return [*found, str(error)]
    if name == MULTI_WORKER and not workers:
        found.append(f"runtime.distribution_strategy={name}, but TF_CONFIG does not say which machines there are")
    if name != MULTI_WORKER and workers > 1:
        found.append(
            f"TF_CONFIG names {workers} machines: use runtime.distribution_strategy={MULTI_WORKER}, or unset TF_CONFIG"
        )
    return found


def build_strategy(runtime: cfg.RuntimeConfig) -> tf.distribute.Strategy:
    """Returns the strategy that `runtime` names, on all GPUs of the machine unless `num_gpus` says how many.

    With several machines it waits for all of them.

    Raises:
      UserError: for what `problems` finds, or when a TPU cannot be reached.
    """
    found = problems(runtime)
    if found:
        raise UserError("; ".join(found))
    name = runtime.distribution_strategy
    if name == MULTI_WORKER:  # must come before TensorFlow starts any device
        workers, index = _workers()
        if len(workers) > 1 and index == 0:
            print(f"waiting for {len(workers) - 1} more worker{'s' * (len(workers) > 2)}", flush=True)
        return distribute_utils.get_distribution_strategy(name, all_reduce_alg=runtime.all_reduce_alg)
    runtime.num_gpus = runtime.num_gpus or len(tf.config.list_physical_devices("GPU"))
    if name == ONE_DEVICE or (runtime.num_gpus <= 1 and name == MIRRORED):
        name, runtime.num_gpus = ONE_DEVICE, min(runtime.num_gpus, 1)
    try:
        return distribute_utils.get_distribution_strategy(
            name, num_gpus=runtime.num_gpus, all_reduce_alg=runtime.all_reduce_alg, tpu_address=runtime.tpu
        )
    except (ValueError, OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        where = f"runtime.tpu={runtime.tpu}" if name == TPU else f"runtime.distribution_strategy={name}"
        raise UserError(f"{where}: {reason}") from error


def agree(strategy: tf.distribute.Strategy, stop: bool, seconds: float) -> tuple[bool, float]:
    """Returns whether any process of the run is to stop, and the mean of their seconds: the same in every process.

    They must stop after the same step and take loops of the same length.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return stop, seconds
    own = tf.constant([float(stop), seconds])
    replicas = strategy.experimental_distribute_values_from_function(lambda context: own)
    stops, mean = strategy.reduce("MEAN", replicas, axis=None).numpy()
    return bool(stops > 0), float(mean)
