"""The loop around Model Garden's Trainer: compile with XLA, train, evaluate, checkpoint, and say how it goes."""

import math
import os
import sys
import threading
import time
from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import base_trainer, task_factory, train_utils
from official.modeling import performance

from shatter_tf import model_dir as model_dirs
from shatter_tf.checkpoints import checkpoint_step, count_parameters, latest_checkpoint
from shatter_tf.command_line import UserError
from shatter_tf.data.shards import Corpus
from shatter_tf.model_dir import Run

# A smaller share of the time spent waiting for data is not worth a user's attention.
WORTH_SAYING = 0.05
# Nothing is said, and no signal heeded, while a loop of steps runs on the device.
MOST_LOOP_SECONDS = 10.0


class Trainer(base_trainer.Trainer):
    """Model Garden's Trainer with `runtime.enable_xla` obeyed on every device, in training and evaluation.

    It also counts the steps of a loop whose loss was finite, over all replicas: "finite_steps" in the loop's logs, and
    adds up how long the steps waited for their batches.

    Args:
      input_seconds: where the seconds of waiting are added up, a float64 variable that is on the host alone.
    """

    def __init__(self, *args, input_seconds: tf.Variable, **kwargs):
        super().__init__(*args, **kwargs)
        self._finite_steps = tf_keras.metrics.Sum("finite_steps")
        self._input_seconds = input_seconds

    def _compile(self, step, static_shapes: bool):
        # A TPU compiles every step anyway. Several replicas on CPUs must meet in the middle of a step, which a compiled
        # one cannot.
        strategy = self.strategy
        on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        cpu_replicas = strategy.num_replicas_in_sync > 1 and not self.config.runtime.num_gpus
        if not self.config.runtime.enable_xla or on_tpu or cpu_replicas or not static_shapes:
            return step
        return tf.function(step, jit_compile=True)

    def train_step(self, iterator):
        def step(inputs):
            task_step = self._compile(self.task.train_step, static_shapes=True)
            logs = task_step(inputs, model=self.model, optimizer=self.optimizer, metrics=self.train_metrics)
            self.train_loss.update_state(logs[self.task.loss])
            self._finite_steps.update_state(tf.cast(tf.math.is_finite(logs[self.task.loss]), tf.float32))
            self.global_step.assign_add(1)

        begin = tf.timestamp()
        with tf.control_dependencies([begin]):
            inputs = self.next_train_inputs(iterator)
        with tf.control_dependencies(tf.nest.flatten(inputs, expand_composites=True)):
            self._input_seconds.assign_add(tf.timestamp() - begin)
        self.strategy.run(step, args=(inputs,), options=self._runtime_options)

    def train_loop_end(self):
        logs = super().train_loop_end()
        logs["finite_steps"] = self._finite_steps.result()
        self._finite_steps.reset_state()
        return logs

    def eval_step(self, iterator):
        def step(inputs):
            static_shapes = self.config.task.validation_data.drop_remainder
            task_step = self._compile(self.task.validation_step, static_shapes)
            logs = task_step(inputs, model=self.model, metrics=self.validation_metrics)
            self.validation_loss.update_state(logs[self.task.loss])
            return logs

        inputs, _ = self.next_eval_inputs(iterator)
        logs = self.strategy.run(step, args=(inputs,))
        return tf.nest.map_structure(self.strategy.experimental_local_results, logs)


def set_precision(runtime) -> None:
    """Makes layers built from now on compute in `runtime.mixed_precision_dtype`, float32 if it is unset."""
    performance.set_mixed_precision_policy(tf.as_dtype(runtime.mixed_precision_dtype or "float32"))


def build_strategy(runtime) -> tf.distribute.Strategy:
    """Returns the strategy that `runtime` names; on one machine, all of its GPUs unless `num_gpus` says how many."""
    from official.common import distribute_utils

    gpus = len(tf.config.list_physical_devices("GPU"))
    runtime.num_gpus = runtime.num_gpus or gpus
    name = runtime.distribution_strategy
    if name == "mirrored" and runtime.num_gpus <= 1:
        name = "one_device"
    if name == "one_device":
        runtime.num_gpus = min(runtime.num_gpus, 1)
    try:
        return distribute_utils.get_distribution_strategy(
            name, num_gpus=runtime.num_gpus, all_reduce_alg=runtime.all_reduce_alg, tpu_address=runtime.tpu
        )
    except ValueError as error:
        raise UserError(f"runtime.distribution_strategy={runtime.distribution_strategy}: {error}") from error


def _format_metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


# Names under which the trainer's logs are shown and kept; the others keep their own.
_METRIC_NAMES = {"training_loss": "loss", "validation_loss": "loss", "lm_example_loss": "loss"}


def _readable(logs: dict) -> dict[str, float]:
    """Returns the scalars of the trainer's logs, loss first. The MLM task's mean loss replaces the mean over steps."""
    values = {key: float(tf.convert_to_tensor(value)) for key, value in logs.items() if not isinstance(value, dict)}
    if "lm_example_loss" in values:
        values.pop("validation_loss", None)
        values.pop("training_loss", None)
    named = {_METRIC_NAMES.get(key, key): value for key, value in values.items()}
    return {"loss": named.pop("loss"), **named}


class Session:
    """One run in one model_dir: builds everything, restores what there is, and trains or evaluates.

    Args:
      run: from `settings.resolve`.
      model_dir: where it lives; `model_dir.check` has passed it.
    """

    def __init__(self, run: Run, model_dir: str):
        self.run, self.model_dir, self.params = run, model_dir, run.params
        self.checkpoint = latest_checkpoint(model_dir)
        trainer = self.params.trainer
        strategy = build_strategy(self.params.runtime)
        for name in ("train_data", "validation_data"):
            size = getattr(self.params.task, name).global_batch_size
            if size % strategy.num_replicas_in_sync:
                raise UserError(
                    f"task.{name}.global_batch_size={size} cannot be shared by {strategy.num_replicas_in_sync} replicas"
                )
        set_precision(self.params.runtime)
        self.input_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        tf_keras.utils.set_random_seed(self.params.task.train_data.seed)  # initial weights, dropout
        with strategy.scope():
            task = task_factory.get_task(self.params.task, logging_dir=model_dir)
            task.start_step = checkpoint_step(self.checkpoint) if self.checkpoint else 0
            self.trainer = Trainer(
                self.params,
                task,
                model=task.build_model(),
                optimizer=task.create_optimizer(trainer.optimizer_config, self.params.runtime),
                input_seconds=self.input_seconds,
                checkpoint_exporter=train_utils.maybe_create_best_ckpt_exporter(self.params, model_dir),
            )
        self.manager = tf.train.CheckpointManager(
            self.trainer.checkpoint,
            model_dir,
            max_to_keep=trainer.max_to_keep,
            step_counter=self.trainer.global_step,
        )
        with strategy.scope():
            if self.checkpoint:
                status = self.trainer.checkpoint.restore(self.checkpoint).expect_partial()  # nothing said at exit
                status.assert_existing_objects_matched()
            else:
                self.trainer.initialize()
        self._writers = {}
        self.history = model_dirs.read_history(model_dir, last_step=self.step)
        # Of training, without evaluations and checkpoints; what a killed run did after its last evaluation is lost.
        self.seconds = self.history[-1]["seconds"] if self.history else 0.0

    @property
    def step(self) -> int:
        return int(self.trainer.global_step.numpy())

    @property
    def parameters(self) -> int:
        return count_parameters(self.trainer.model.trainable_variables)

    def describe(self) -> str:
        replicas = self.trainer.strategy.num_replicas_in_sync
        task = self.params.task
        return (
            f"{self.run.experiment} in {self.model_dir}: {self.parameters:,} parameters, batches of "
            f"{task.train_data.global_batch_size} x {task.train_data.seq_length} tokens on {replicas} "
            f"replica{'s' * (replicas > 1)}, {'XLA' if self.params.runtime.enable_xla else 'no XLA'}, "
            + (f"from step {self.step}" if self.step else "from the start")
        )

    def train(self, evaluate: bool, stop: Optional[threading.Event] = None) -> bool:
        """Trains up to `trainer.train_steps`, evaluating and checkpointing at their intervals and at the end.

        Returns whether it got there. When `stop` is set, it saves a checkpoint within seconds and returns False.
        """
        trainer = self.params.trainer
        batch_size = self.params.task.train_data.global_batch_size
        total, start_step, seconds = trainer.train_steps, self.step, 0.0
        first_loop, most_steps = True, total
        checked_learning = start_step >= self._sanity_steps
        while self.step < total:
            # Loops end where an evaluation or a checkpoint is due, and soon enough to be stopped.
            loop = min(trainer.steps_per_loop - self.step % trainer.steps_per_loop, total - self.step, most_steps)
            begin = time.time()
            self.input_seconds.assign(0.0)
            logs = self.trainer.train(tf.constant(loop, tf.int32))
            elapsed = time.time() - begin
            self.seconds += elapsed
            finite_steps = int(logs.pop("finite_steps")) // self.trainer.strategy.num_replicas_in_sync
            if finite_steps < loop:
                raise self._not_finite("loss is", self.step - loop + finite_steps + 1)
            if first_loop:  # compilation would spoil the estimate of the time left
                start_step, first_loop, left = self.step, False, "?"
            else:
                seconds += elapsed
                most_steps = max(1, int(MOST_LOOP_SECONDS * loop / elapsed))
                left = _format_seconds(seconds / (self.step - start_step) * (total - self.step))
            metrics = _readable(logs)
            rate = metrics.pop("learning_rate")
            examples = loop * batch_size / elapsed
            waiting = float(self.input_seconds) / elapsed
            print(
                f"step {self.step}/{total}  {_format_metrics(metrics)}  learning_rate {rate:.2e}  "
                f"{examples:.1f} examples/s  "
                + (f"waiting for data {waiting:.0%}  " if waiting >= WORTH_SAYING else "")
                + f"{left} left",
                flush=True,
            )
            if self.step % trainer.summary_interval == 0 or self.step == total:
                self._summarise(
                    "train", {**metrics, "learning_rate": rate, "examples_per_second": examples, "waiting": waiting}
                )
            if evaluate and (self.step % trainer.validation_interval == 0 or self.step == total):
                self.history.append({"step": self.step, "seconds": round(self.seconds, 3), **self.evaluate()})
                model_dirs.write_history(self.model_dir, self.history)
            stopped = stop is not None and stop.is_set() and self.step < total
            if self.step % trainer.checkpoint_interval == 0 or self.step == total or stopped:
                self._save()
            if not checked_learning and self.step >= self._sanity_steps:
                checked_learning = True
                self._warn_unless_learning(metrics["loss"])
            if stopped:
                print(f"stopped at step {self.step}, as asked; the same command goes on from there", flush=True)
                return False
        return True

    def _save(self) -> None:
        # The loss of a step is that of the weights before it, so finite losses do not vouch for these.
        if not all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in self.trainer.model.trainable_variables):
            raise self._not_finite("weights are", self.step)
        self.manager.save(checkpoint_number=self.step)

    def _not_finite(self, what: str, step: int) -> UserError:
        return UserError(
            f"{what} not finite at step {step}, last good checkpoint: {self.manager.latest_checkpoint or 'none'}; "
            "lower the learning rate or lengthen the warm-up, and start again in a new --model_dir"
        )

    @property
    def _sanity_steps(self) -> float:
        return getattr(self.params.task, "sanity_steps", 0) or math.inf

    def _warn_unless_learning(self, loss: float) -> None:
        """Says so when the masked-LM loss is still what the frequencies of wordpieces alone give."""
        entropy = Corpus.read(self.params.task.train_data.input_path).unigram_entropy
        if loss > entropy - 0.1:
            print(
                f"warning: after {self.step} steps the loss is {loss:.3f}, and the entropy of single wordpieces "
                f"{entropy:.3f}: so far the model has learnt how frequent each is and nothing else. Try another "
                "learning rate, a longer warm-up or norm_first=true",
                file=sys.stderr,
                flush=True,
            )

    def evaluate(self) -> dict[str, float]:
        """Evaluates the current weights on the validation data and writes metrics.json; returns what it holds."""
        begin = time.time()
        steps = self.params.trainer.validation_steps
        metrics = _readable(self.trainer.evaluate(tf.constant(steps, tf.int32)))
        print(
            f"step {self.step}/{self.params.trainer.train_steps}  validation: {_format_metrics(metrics)}  "
            f"({_format_seconds(time.time() - begin)})",
            flush=True,
        )
        self._summarise("validation", metrics)
        model_dirs.write_metrics(self.model_dir, {"step": self.step, **metrics, "parameters": self.parameters})
        return metrics

    def _summarise(self, name: str, values: dict[str, float]) -> None:
        if name not in self._writers:
            self._writers[name] = tf.summary.create_file_writer(os.path.join(self.model_dir, name))
        with self._writers[name].as_default(step=self.step):
            for key, value in values.items():
                tf.summary.scalar(key, value)
        self._writers[name].flush()
