"""Model Garden's Trainer with XLA on every device, exact mean losses, and a count of skipped steps."""

import functools

import orbit
import tensorflow as tf
import tf_keras
from official.core import base_trainer

from shatter_tf.tasks.step import LossScale


class Trainer(base_trainer.Trainer):
    """Model Garden's Trainer with `runtime.enable_xla` honored on every device, in training and evaluation.

    Its mean losses weight every batch by its contents, for each objective of the task. It counts the steps of a loop
    that were skipped because they were not finite ("skipped" in the logs), and those in a row ("skipped_in_a_row"; from
    `max_skipped_steps` on it counts every step, so that they are still seen at the end of the loop). It sums the time
    that steps waited for their batches.

    Args:
      config, task, model, optimizer: as for Model Garden's.
      start_step: the step of the checkpoint that the run resumes from.
      input_seconds: where the seconds of waiting are summed, a float64 variable that is only on the host.
    """

    def __init__(self, config, task, model, optimizer, start_step: int, input_seconds: tf.Variable):
        build_inputs = functools.partial(task.build_inputs, start_step=start_step)
        super().__init__(
            config,
            task,
            model,
            optimizer,
            train_dataset=_distribute(build_inputs, config.task.train_data),
            validation_dataset=_distribute(task.build_inputs, config.task.validation_data),
        )
        self._skipped, self._skipped_in_a_row = (
            tf.Variable(0, False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for _ in range(2)
        )
        self._input_seconds = input_seconds
        self.loss_scale = None
        if config.runtime.mixed_precision_dtype == "float16":
            self.loss_scale = self.checkpoint.loss_scale = LossScale()
        # A mean for each objective, in training and in evaluation.
        self._losses, self._validation_losses = (
            {name: tf_keras.metrics.Mean(name, dtype=tf.float32) for name in task.objectives} for _ in range(2)
        )

    @property
    def xla(self) -> bool:
        """Whether steps are compiled by XLA."""
        if isinstance(self.strategy, tf.distribute.TPUStrategy):
            return True
        # Several replicas on CPUs must synchronize in the middle of a step, which a compiled one cannot.
        replicas = not isinstance(self.strategy, tf.distribute.OneDeviceStrategy)
        cpu_replicas = replicas and not tf.config.list_physical_devices("GPU")
        return self.config.runtime.enable_xla and not cpu_replicas

    def _compile(self, step):
        if not self.xla or isinstance(self.strategy, tf.distribute.TPUStrategy):  # which compiles everything anyway
            return step
        return tf.function(step, jit_compile=True, autograph=False)

    # === Training ===

    def train_step(self, iterator):
        task_step = functools.partial(
            self.task.train_step,
            accumulation_steps=self.config.trainer.accumulation_steps,
            loss_scale=self.loss_scale,
        )

        def step(inputs):
            compiled = self._compile(task_step)
            logs = compiled(inputs, model=self.model, optimizer=self.optimizer, metrics=self.train_metrics)
            finite = logs["finite"]
            for name, (loss, weight) in logs["losses"].items():
                self._losses[name].update_state(tf.where(finite, loss, 0.0), tf.where(finite, weight, 0.0))

            self._skipped.assign_add(tf.cast(~finite, tf.int64))
            too_many = self._skipped_in_a_row >= self.config.trainer.max_skipped_steps
            self._skipped_in_a_row.assign(
                tf.where(finite & ~too_many, tf.zeros([], tf.int64), self._skipped_in_a_row + 1)
            )
            self.global_step.assign_add(1)

        begin = tf.timestamp()
        with tf.control_dependencies([begin]):
            inputs = self.next_train_inputs(iterator)
        with tf.control_dependencies(tf.nest.flatten(inputs, expand_composites=True)):
            waited = self._input_seconds.assign_add(tf.timestamp() - begin)
        # Otherwise a process with one thread may read the clock after the step.
        with tf.control_dependencies([waited]):
            self.strategy.run(step, args=(inputs,), options=self._runtime_options)

    def train_loop_begin(self):
        super().train_loop_begin()
        _reset(self._losses)

    def train_loop_end(self):
        logs = super().train_loop_end()
        logs.update(_results("training_loss", self._losses))
        logs["skipped"] = self._skipped.numpy()
        logs["skipped_in_a_row"] = self._skipped_in_a_row.numpy()
        self._skipped.assign(0)
        return logs

    # === Evaluation ===

    def eval_step(self, iterator):
        def step(inputs):
            task_step = self._compile(self.task.validation_step)
            logs = task_step(inputs, model=self.model, metrics=self.validation_metrics)
            for name, (loss, weight) in logs.pop("losses").items():
                self._validation_losses[name].update_state(loss, weight)
            return logs

        inputs, _ = self.next_eval_inputs(iterator)
        logs = self.strategy.run(step, args=(inputs,))
        return tf.nest.map_structure(self._gather, logs)

    def _gather(self, value):
        """Returns the replicas' values; tensors are gathered from all processes, so that all compute the same."""
        local = self.strategy.experimental_local_results(value)
        if local[0].shape.rank and isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return (self.strategy.gather(value, axis=0),)
        return local

    def eval_begin(self):
        super().eval_begin()
        _reset(self._validation_losses)

    def eval_end(self, aggregated_logs=None):
        return {**super().eval_end(aggregated_logs), **_results("validation_loss", self._validation_losses)}


def _distribute(build_inputs, data):
    """Returns the batches of `build_inputs(data)`, shared by the replicas."""
    strategy = tf.distribute.get_strategy()
    on_one = isinstance(strategy, tf.distribute.OneDeviceStrategy)
    if not on_one or "CPU" not in strategy.extended.worker_devices[0]:
        return orbit.utils.make_distributed_dataset(strategy, build_inputs, data)
    # Autotuning sleeps for as long as it has run, a minute at most, and dropping an iterator, after an evaluation
    # and at the end, often waits for it to wake, which blocks all of Python. A dataset that a strategy distributes
    # cannot be told not to tune; on one CPU there is nothing to distribute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return build_inputs(data).with_options(options)


def _reset(means: dict[str, tf_keras.metrics.Mean]) -> None:
    for mean in means.values():
        mean.reset_states()


def _results(name: str, means: dict[str, tf_keras.metrics.Mean]) -> dict[str, tf.Tensor]:
    """Returns the sum of the means under `name`, and where there are several, each under its own."""
    results = {objective: mean.result() for objective, mean in means.items()}
    return {name: tf.add_n([*results.values()]), **(results if len(results) > 1 else {})}
