"""One whole training step (forward, backward, optimizer) outside the training loop: to be timed or inspected."""

import functools
import math
import time
from collections.abc import Callable

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from tensorflow.compiler.xla.service import hlo_pb2

from shatter_tf.checkpoints import count_parameters
from shatter_tf.tasks.base import Data
from shatter_tf.tasks.step import LossScale
from shatter_tf.training.precision import set_precision


def synthetic_batch(params: cfg.ExperimentConfig) -> dict[str, tf.Tensor]:
    """Returns a batch of pretraining's shapes without a corpus: random wordpieces, one document per row.

    A step takes the same time whatever the numbers are.
    """
    data = params.task.train_data
    vocab_size = params.task.model.encoder.get().vocab_size
    batch_size = data.global_batch_size
    length = data.seq_length
    predictions = data.max_predictions_per_seq or math.ceil(data.mask_rate * length)

    def draw(width: int, limit: int) -> tf.Tensor:
        return tf.random.stateless_uniform([batch_size, width], [limit, width], 0, limit, tf.int32)

    return dict(
        input_word_ids=draw(length, vocab_size),
        input_mask=tf.ones([batch_size, length], tf.int32),
        input_type_ids=tf.zeros([batch_size, length], tf.int32),
        masked_lm_positions=draw(predictions, length),
        masked_lm_ids=draw(predictions, vocab_size),
        masked_lm_weights=tf.ones([batch_size, predictions]),
    )


class TrainingStep:
    """The step that training runs, compiled by XLA if `runtime.enable_xla` says so, on one batch over and over.

    Calling it takes a step, waits for it and returns the loss. The loader is not involved.

    Args:
      params: every setting resolved.
      batch: what the step trains on; without it, the first batch of the training data.
      data: of the run; what the settings name is opened if it is left out.
    """

    def __init__(
        self, params: cfg.ExperimentConfig, batch: dict[str, tf.Tensor] | None = None, data: Data | None = None
    ):
        tf_keras.utils.set_random_seed(0)
        set_precision(params.runtime)
        self.compute_dtype = tf_keras.mixed_precision.global_policy().compute_dtype

        task = task_factory.get_task(params.task, data=data)
        task.prepare()
        self.model = model = task.build_model()
        self.optimizer = optimizer = task.create_optimizer(params.trainer.optimizer_config, params.runtime)
        metrics = task.build_metrics()
        self.batch = batch or next(iter(task.build_inputs(params.task.train_data)))

        loss_scale = LossScale() if params.runtime.mixed_precision_dtype == "float16" else None
        parts = params.trainer.accumulation_steps

        # XLA's dump of the step is found by this name.
        def training_step(inputs):
            return task.train_step(inputs, model, optimizer, metrics, parts, loss_scale)[task.loss]

        self._function = tf.function(training_step, jit_compile=params.runtime.enable_xla)
        self._compiled = self._function if params.runtime.enable_xla else tf.function(training_step, jit_compile=True)

    def __call__(self) -> float:
        return float(self._function(self.batch))

    @property
    def parameters(self) -> int:
        return count_parameters(self.model.trainable_variables)

    def free(self) -> None:
        """Frees the memory of weights and moments; the step cannot be called afterwards.

        Going out of scope is not enough: TensorFlow keeps the graphs of custom gradients, and these keep their weights.
        """
        for variable in (*self.model.variables, *self.optimizer.variables()):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.zeros([0], variable.dtype))

    def hlo(self) -> hlo_pb2.HloModuleProto:
        """Returns what is handed to XLA: the step before any optimization, the same for every device."""
        serialized = self._compiled.experimental_get_compiler_ir(self.batch)(stage="hlo_serialized")
        return hlo_pb2.HloModuleProto.FromString(serialized)


def measure(steps: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every step, `rounds` for each; steps take turns, so that variations in the machine's
    speed affect all alike. The first call of each, which may compile it, is left out."""
    for step in steps.values():
        step()

    seconds = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


@functools.cache
def best_matmul_rate(dtype: str) -> float:
    """Returns the most floating-point operations a second that this machine reaches in a single matrix product.

    With or without XLA, whichever is faster.
    """
    size = 16384 if tf.config.list_physical_devices("GPU") else 2048  # a small one is launch-bound on a GPU
    a = tf.cast(tf.random.stateless_uniform([size, size], [0, 0]), dtype)

    def product(xla):
        function = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)), jit_compile=xla, autograph=False)
        return lambda: float(function(a))

    seconds = measure({xla: product(xla) for xla in (False, True)}, 5)
    return 2 * size**3 / min(map(min, seconds.values()))
