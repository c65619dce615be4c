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
from shatter_tf.precision import set_precision


def synthetic_batch(params: cfg.ExperimentConfig) -> dict[str, tf.Tensor]:
    """Returns a batch of pretraining's shapes without a corpus: random wordpieces, one document per row.

    A step takes the same time whatever the numbers are.
    """
    data, vocab_size = params.task.train_data, params.task.model.encoder.get().vocab_size
    batch_size, length = data.global_batch_size, data.seq_length
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
    """

    def __init__(self, params: cfg.ExperimentConfig, batch: dict[str, tf.Tensor] | None = None):
        tf_keras.utils.set_random_seed(0)
        set_precision(params.runtime)
        task = task_factory.get_task(params.task)
        task.accumulation_steps = params.trainer.accumulation_steps
        self.model = task.build_model()
        optimizer = task.create_optimizer(params.trainer.optimizer_config, params.runtime)
        metrics = task.build_metrics()
        self._optimizer = optimizer
        self.compute_dtype = tf_keras.mixed_precision.global_policy().compute_dtype
        self.batch = batch or next(iter(task.build_inputs(params.task.train_data)))

        def training_step(inputs):
            return task.train_step(inputs, model=self.model, optimizer=optimizer, metrics=metrics)[task.loss]

        self._function = tf.function(training_step, jit_compile=params.runtime.enable_xla)

    def __call__(self) -> float:
        return float(self._function(self.batch))

    @property
    def parameters(self) -> int:
        return count_parameters(self.model.trainable_variables)

    def free(self) -> None:
        """Frees the memory of weights and moments; the step cannot be called afterwards.

        Going out of scope is not enough: TensorFlow keeps the graphs of custom gradients, and these keep their weights.
        """
        for variable in (*self.model.variables, *self._optimizer.variables()):
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=tf.zeros([0], variable.dtype))

    def hlo(self) -> hlo_pb2.HloModuleProto:
        """Returns what is handed to XLA: the step before any optimisation, the same for every device."""
        serialized = self._function.experimental_get_compiler_ir(self.batch)(stage="hlo_serialized")
        return hlo_pb2.HloModuleProto.FromString(serialized)


def matmul_flops(hlo: hlo_pb2.HloModuleProto) -> int:
    """Returns the floating-point operations of the matrix products in a module, 2 M N K each.

    That is what a matrix unit's peak is compared with. The body of a loop counts once per iteration. What the compiler
    recomputes is not counted twice.

    Raises:
      ValueError: for a loop whose number of iterations is not known beforehand.
    """
    computations = {computation.id: computation for computation in hlo.computations}

    @functools.cache
    def flops(computation_id: int) -> int:
        computation, total = computations[computation_id], 0
        instructions = {instruction.id: instruction for instruction in computation.instructions}
        for instruction in _used(computation):
            if instruction.opcode == "dot":
                left = instructions[instruction.operand_ids[0]].shape.dimensions
                inner = (left[axis] for axis in instruction.dot_dimension_numbers.lhs_contracting_dimensions)
                total += 2 * math.prod(instruction.shape.dimensions) * math.prod(inner)
            rounds = _rounds(instruction, instructions, computations) if instruction.opcode == "while" else 1
            total += rounds * sum(flops(called) for called in instruction.called_computation_ids)
        return total

    return flops(hlo.entry_computation_id)


def _rounds(loop: hlo_pb2.HloInstructionProto, instructions: dict, computations: dict) -> int:
    """Returns the number of iterations of a loop, one of `instructions`.

    Its condition is `counter < limit`, for one counter or more. A limit is a constant or, for the backward pass of a
    loop, what the forward loop has counted.
    """
    limits, todo = [], [loop.called_computation_ids[1]]  # the second is the condition
    while todo:
        condition = computations[todo.pop()]
        operands = {instruction.id: instruction for instruction in condition.instructions}
        for instruction in condition.instructions:
            todo += instruction.called_computation_ids
            if instruction.opcode == "compare":
                limits.append(operands[instruction.operand_ids[1]])
    constants = [value for limit in limits for value in limit.literal.s32s]
    if constants:
        return min(constants)
    for limit in limits:
        source, places = instructions[loop.operand_ids[0]], [limit.tuple_index]
        while source.opcode in ("tuple", "get-tuple-element"):
            if source.opcode == "tuple":
                source = instructions[source.operand_ids[places.pop()]]
            else:
                places.append(source.tuple_index)
                source = instructions[source.operand_ids[0]]
        if source.opcode == "while":
            return _rounds(source, instructions, computations)
        if source.literal.s32s:
            return source.literal.s32s[0]
    raise ValueError(f"a loop of unknown length: {loop.name}")


def _used(computation: hlo_pb2.HloComputationProto) -> list[hlo_pb2.HloInstructionProto]:
    """Returns the instructions that a computation's result depends on; the compiler drops the others."""
    instructions = {instruction.id: instruction for instruction in computation.instructions}
    used, todo = {}, [computation.root_id]
    while todo:
        instruction = instructions[todo.pop()]
        if instruction.id not in used:
            used[instruction.id] = instruction
            todo += instruction.operand_ids
    return list(used.values())


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
    """Returns the most floating-point operations a second that this machine reaches in a single matrix product."""
    size = 16384 if tf.config.list_physical_devices("GPU") else 2048  # a small one is launch-bound on a GPU
    product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)), jit_compile=True)
    a = tf.cast(tf.random.stateless_uniform([size, size], [0, 0]), dtype)
    seconds = min(measure({"matmul": lambda: float(product(a))}, 5)["matmul"])
    return 2 * size**3 / seconds
