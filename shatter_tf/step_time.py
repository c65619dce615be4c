"""How long a training step takes: several models in turn in one process, so that the machine's moods hit all alike."""

import statistics
import sys
import time

import tensorflow as tf
import tf_keras
from official.core import task_factory

from shatter_tf.model_dir import Run
from shatter_tf.trainer import set_precision


def compile_step(run: Run):
    """Returns a function that takes one whole training step (forward, backward, optimizer) and waits for it.

    The step is the one that training runs, compiled by XLA if `runtime.enable_xla` says so; its batch is the first of
    the training data, so the loader takes no part.
    """
    tf_keras.utils.set_random_seed(0)
    params = run.params
    set_precision(params.runtime)
    task = task_factory.get_task(params.task)
    model = task.build_model()
    optimizer = task.create_optimizer(params.trainer.optimizer_config, params.runtime)
    metrics = task.build_metrics()
    batch = next(iter(task.build_inputs(params.task.train_data)))
    step = tf.function(
        lambda inputs: task.train_step(inputs, model=model, optimizer=optimizer, metrics=metrics)[task.loss],
        jit_compile=params.runtime.enable_xla,
    )
    return lambda: float(step(batch))


def measure(runs: dict[str, Run], number: int) -> dict[str, float]:
    """Returns each run's median seconds of a training step over `number` rounds; in every round each takes one step."""
    steps = {}
    for name, run in runs.items():
        print(f"compiling {name}", file=sys.stderr, flush=True)
        steps[name] = compile_step(run)
        steps[name]()
    seconds = {name: [] for name in steps}
    for _ in range(number):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
