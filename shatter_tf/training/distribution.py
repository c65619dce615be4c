"""Which devices a run trains on: one, several of this machine, several machines, or a TPU.

`runtime.distribution_strategy` says which; the strategies are TensorFlow's own. Several machines find each other
through the environment variable TF_CONFIG, which cluster managers set; docs/running.md has the commands.
"""

import contextlib
import hashlib
import re
import socket
import time
from collections.abc import Iterator
from typing import Optional
from urllib.parse import urlsplit

import tensorflow as tf
from official.common import distribute_utils
from official.core import config_definitions as cfg

from shatter_tf.cluster import workers
from shatter_tf.console import say
from shatter_tf.errors import UserError, argument, first_line, nearest

# Model Garden's runtime settings that have an effect here.
USED = (
    *("distribution_strategy", "num_gpus", "tpu", "all_reduce_alg"),
    *("enable_xla", "mixed_precision_dtype", "loss_scale"),
)
ONE_DEVICE, MIRRORED, MULTI_WORKER, TPU = STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")

_MOST_SECONDS_TO_COME = 3600.0


class WorkerLost(Exception):
    """Another process of the run is gone, and with it the step they were taking together; the run is to be retried."""


# Errors of data, settings or a bug: retrying would not help.
_NOT_OF_OTHERS = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnimplementedError,
)


@contextlib.contextmanager
def with_others(others: bool) -> Iterator[None]:
    """Raises WorkerLost for TensorFlow's errors that mean that another process is gone, if the run has others."""
    try:
        yield
    except tf.errors.OpError as error:
        if not others or isinstance(error, _NOT_OF_OTHERS):
            raise
        # The message of what a data generator raises stands somewhere among TensorFlow's own lines.
        said = re.search(r"RuntimeError: (.*)", str(error))
        raise WorkerLost(said[1] if said else first_line(error)) from error


def problems(runtime: cfg.RuntimeConfig) -> list[str]:
    """Returns a line for everything in `runtime` that this machine cannot do; starts no device."""
    name = runtime.distribution_strategy
    found = []
    if name not in STRATEGIES:
        return [f"runtime.distribution_strategy={name}: use {', '.join(STRATEGIES)}{nearest(name, STRATEGIES)}"]
    gpus = len(tf.config.list_physical_devices("GPU"))
    if runtime.num_gpus > gpus:
        found.append(f"runtime.num_gpus={runtime.num_gpus}, but this machine has {gpus}")
    if name == ONE_DEVICE and runtime.num_gpus > 1:
        found.append(f"runtime.num_gpus={runtime.num_gpus} are not one_device; use mirrored")
    if name == TPU and not runtime.tpu:
        found.append("runtime.tpu is not set: give the TPU's name, or local on a TPU VM")
    if name != TPU and runtime.tpu:
        found.append(f"runtime.tpu={runtime.tpu}, but runtime.distribution_strategy={name}; use tpu")
    if name == MULTI_WORKER and 0 < runtime.num_gpus < gpus:
        found.append(f"runtime.num_gpus={runtime.num_gpus}: {name} takes all {gpus}; hide some by CUDA_VISIBLE_DEVICES")
    if name == MULTI_WORKER and gpus and runtime.enable_xla and runtime.all_reduce_alg not in (None, "nccl"):
        found.append(
            f"runtime.all_reduce_alg={runtime.all_reduce_alg}: XLA compiles only nccl; leave it out, or set "
            "runtime.enable_xla=false"
        )
    try:
        machines = len(workers()[0])
    except UserError as error:
        return [*found, str(error)]
    if name == MULTI_WORKER and not machines:
        found.append(f"runtime.distribution_strategy={name}, but TF_CONFIG does not say which machines there are")
    if name != MULTI_WORKER and machines > 1:
        found.append(
            f"TF_CONFIG names {machines} machines: use runtime.distribution_strategy={MULTI_WORKER}, or unset TF_CONFIG"
        )
    return found


def count_replicas(runtime: cfg.RuntimeConfig) -> Optional[int]:
    """Returns how many replicas share a batch, or None where only the TPU itself can tell; starts no device."""
    if runtime.distribution_strategy == TPU:
        return None
    if runtime.distribution_strategy == ONE_DEVICE:
        return 1
    gpus = runtime.num_gpus or len(tf.config.list_physical_devices("GPU"))
    machines = len(workers()[0]) if runtime.distribution_strategy == MULTI_WORKER else 1
    return machines * max(1, gpus)


def batch_problems(params: cfg.ExperimentConfig, replicas: int) -> list[str]:
    """Returns a line for each batch that this number of replicas cannot share."""
    parts = params.trainer.accumulation_steps
    found = []
    for name, least in (("train_data", replicas * parts), ("validation_data", replicas)):
        size = getattr(params.task, name).global_batch_size
        if size % least:
            by = f" in {parts} parts each" if least > replicas else ""
            who = f"{replicas} replica{'s' * (replicas > 1)}"
            found.append(f"task.{name}.global_batch_size={size} cannot be shared by {who}{by}")
    return found


def _split_address(address: str) -> tuple[str, int]:
    """Returns host and port of an address in TF_CONFIG; raises UserError."""
    try:
        parts = urlsplit(f"//{address}")
        if not parts.hostname or not parts.port:
            raise ValueError("expected host:port")
    except ValueError as error:
        raise UserError(f"TF_CONFIG: {address}: {error}") from error
    return parts.hostname, parts.port


def _wait_for_all(addresses: list[str], index: int) -> None:
    """Waits until something answers at the addresses of all machines, and meanwhile answers at this one's.

    TensorFlow waits, too, but holds Python's global lock meanwhile, so that the process could not be stopped.

    Raises:
      UserError: when this machine's own address cannot be used.
      WorkerLost: when not all machines appear within an hour.
    """
    hosts = [_split_address(address) for address in addresses]
    missing = {i for i in range(len(hosts)) if i != index}
    if index == 0 and missing:
        say(f"waiting for {len(missing)} more worker{'s' * (len(missing) > 1)}")
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", hosts[index][1]), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(f"{addresses[index]} in TF_CONFIG: {error.strerror}") from error
    deadline = time.monotonic() + _MOST_SECONDS_TO_COME
    with server:
        while True:
            for i in sorted(missing):
                with contextlib.suppress(OSError), socket.create_connection(hosts[i], timeout=1):
                    missing.remove(i)
            if not missing:
                return
            if time.monotonic() > deadline:
                raise WorkerLost(f"{', '.join(addresses[i] for i in sorted(missing))} did not come")
            time.sleep(0.1)


def build_strategy(runtime: cfg.RuntimeConfig) -> tf.distribute.Strategy:
    """Returns the strategy that `runtime` names, on all GPUs of the machine unless `num_gpus` says how many.

    With several machines it waits for all of them.

    Raises:
      UserError: for what `problems` finds, or when a TPU, or this machine's own address, cannot be used.
      WorkerLost: when not all machines appear.
    """
    found = problems(runtime)
    if found:
        raise UserError("; ".join(found))
    name = runtime.distribution_strategy
    if name == MULTI_WORKER:  # must come before TensorFlow starts any device
        addresses, index = workers()
        _wait_for_all(addresses, index)
        try:
            return distribute_utils.get_distribution_strategy(name, all_reduce_alg=runtime.all_reduce_alg)
        except (ValueError, tf.errors.UnknownError) as error:  # the latter for a port that is taken
            where = f"runtime.distribution_strategy={name}, {addresses[index]} in TF_CONFIG"
            raise UserError(f"{where}: {first_line(error)}") from error
        except tf.errors.OpError as error:
            raise WorkerLost(first_line(error)) from error
    runtime.num_gpus = runtime.num_gpus or len(tf.config.list_physical_devices("GPU"))
    if name == ONE_DEVICE or (runtime.num_gpus <= 1 and name == MIRRORED):
        name = ONE_DEVICE
        runtime.num_gpus = min(runtime.num_gpus, 1)
    # TensorFlow numbers the collective operations of each strategy from the same key on, and takes those of a second
    # one in this process for the first's.
    tf.distribute.MirroredStrategy._collective_key_base += 100_000
    try:
        return distribute_utils.get_distribution_strategy(
            name, num_gpus=runtime.num_gpus, all_reduce_alg=runtime.all_reduce_alg, tpu_address=runtime.tpu
        )
    except (ValueError, OSError, tf.errors.OpError) as error:
        reason = first_line(error)
        where = f"runtime.tpu={runtime.tpu}" if name == TPU else f"runtime.distribution_strategy={name}"
        raise UserError(f"{where}: {reason}") from error


def check_alike(strategy: tf.distribute.Strategy, facts: dict[str, str]) -> None:
    """Raises UserError unless all processes of the run have the same facts, texts by name.

    Otherwise they would silently sum gradients of different weights, or of different batches.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return
    digests = [hashlib.blake2b(text.encode(), digest_size=7).digest() for text in facts.values()]
    own = tf.constant([[int.from_bytes(digest, "big") for digest in digests]], tf.int64)
    replicas = strategy.experimental_distribute_values_from_function(lambda context: own)
    everyone = strategy.gather(replicas, axis=0).numpy()
    other = [name for name, column in zip(facts, everyone.T, strict=True) if len(set(column)) > 1]
    if other:
        raise UserError(
            f"the processes of this run differ in their {' and '.join(other)}: all need the same command, and the same "
            f"{argument('model_dir')} and {argument('data_dir')} on a disk that all see"
        )


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
