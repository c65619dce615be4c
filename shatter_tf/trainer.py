"""The loop around Model Garden's Trainer: compile with XLA, train, evaluate, checkpoint, and report progress."""

import contextlib
import math
import os
import shutil
import sys
import tempfile
import time
from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import base_trainer, task_factory

from shatter_tf import model_dir as model_dirs
from shatter_tf.checkpoints import BEST_SUBDIR, PREFIX, checkpoint_step, count_parameters, latest_checkpoint
from shatter_tf.command_line import UserError, first_line, say
from shatter_tf.data.shards import Corpus
from shatter_tf.distribution import agree, batch_problems, build_strategy, check_alike, is_chief, with_others
from shatter_tf.files import PASSING_ERRORS
from shatter_tf.model_dir import NOT_FINITE_FILE, Run
from shatter_tf.precision import set_precision
from shatter_tf.preemption import StopRequest

# A smaller share of the time spent waiting for data is not worth a user's attention.
WORTH_SAYING = 0.05
# Nothing is printed, and no signal acted on, while a loop of steps runs on the device.
MOST_LOOP_SECONDS = 10.0


class Trainer(base_trainer.Trainer):
    """Model Garden's Trainer with `runtime.enable_xla` honoured on every device, in training and evaluation.

    Its mean losses weight every batch by its contents. It counts the steps of a loop that were skipped because they
    were not finite ("skipped" in the logs), and those in a row ("skipped_in_a_row"; from `max_skipped_steps` on it
    counts every step, so that they are still seen at the end of the loop). It sums the time that steps waited for their
    batches.

    Args:
      input_seconds: where the seconds of waiting are summed, a float64 variable that is only on the host.
    """

    def __init__(self, *args, input_seconds: tf.Variable, **kwargs):
        super().__init__(*args, **kwargs)
        self._skipped, self._skipped_in_a_row = (
            tf.Variable(0, False, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for _ in range(2)
        )
        self._input_seconds = input_seconds

    def distribute_dataset(self, dataset_or_fn, *args, **kwargs):
        on_one = isinstance(self.strategy, tf.distribute.OneDeviceStrategy)
        if not on_one or "CPU" not in self.strategy.extended.worker_devices[0]:
            return super().distribute_dataset(dataset_or_fn, *args, **kwargs)
        # Autotuning sleeps for as long as it has run, a minute at most, and dropping an iterator, after an evaluation
        # and at the end, often waits for it to wake, which blocks all of Python. A dataset that a strategy distributes
        # cannot be told not to tune; on one CPU there is nothing to distribute.
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset_or_fn(*args, **kwargs).with_options(options)

    @property
    def xla(self) -> bool:
        """Whether steps are compiled by XLA."""
        if isinstance(self.strategy, tf.distribute.TPUStrategy):
            return True
        # Several replicas on CPUs must synchronise in the middle of a step, which a compiled one cannot.
        replicas = not isinstance(self.strategy, tf.distribute.OneDeviceStrategy)
        cpu_replicas = replicas and not tf.config.list_physical_devices("GPU")
        return self.config.runtime.enable_xla and not cpu_replicas

    def _compile(self, step):
        if not self.xla or isinstance(self.strategy, tf.distribute.TPUStrategy):  # which compiles everything anyway
            return step
        return tf.function(step, jit_compile=True, autograph=False)

    def train_step(self, iterator):
        def step(inputs):
            task_step = self._compile(self.task.train_step)
            logs = task_step(inputs, model=self.model, optimizer=self.optimizer, metrics=self.train_metrics)
            loss, finite = logs[self.task.loss], logs["finite"]
            self.train_loss.update_state(tf.where(finite, loss, 0.0), tf.where(finite, self.task.weight(inputs), 0.0))
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

    def train_loop_end(self):
        logs = super().train_loop_end()
        logs["skipped"], logs["skipped_in_a_row"] = self._skipped.numpy(), self._skipped_in_a_row.numpy()
        self._skipped.assign(0)
        return logs

    def eval_step(self, iterator):
        def step(inputs):
            task_step = self._compile(self.task.validation_step)
            logs = task_step(inputs, model=self.model, metrics=self.validation_metrics)
            self.validation_loss.update_state(logs[self.task.loss], self.task.weight(inputs))
            return logs

        inputs, _ = self.next_eval_inputs(iterator)
        logs = self.strategy.run(step, args=(inputs,))
        return tf.nest.map_structure(self._results, logs)

    def _results(self, value):
        """Returns the replicas' values; tensors are gathered from all processes, so that all compute the same."""
        local = self.strategy.experimental_local_results(value)
        if local[0].shape.rank and isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return (self.strategy.gather(value, axis=0),)
        return local


def _format_metrics(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _format_seconds(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _readable(logs: dict) -> dict[str, float]:
    """Returns the scalars of the trainer's logs, the loss first and under that name."""
    values = {key: float(tf.convert_to_tensor(value)) for key, value in logs.items() if not isinstance(value, dict)}
    loss = values.pop("training_loss" if "training_loss" in values else "validation_loss", math.nan)  # of nothing: none
    return {"loss": loss, **values}


class Session:
    """One run in one model_dir: builds everything, restores what there is, and trains or evaluates.

    Args:
      run: from `settings.resolve`.
      model_dir: where it lives; `model_dir.check` has passed it. Nothing is written there before training starts.
      strategy: what it runs on; built from `run.params.runtime` if left out.

    Raises:
      UserError: for batches that the devices cannot share, or checkpoints that do not fit.
      WorkerLost: when another process of the run is gone.
    """

    def __init__(self, run: Run, model_dir: str, strategy: Optional[tf.distribute.Strategy] = None):
        self.run, self.model_dir, self.params = run, model_dir, run.params
        trainer, runtime = self.params.trainer, self.params.runtime
        strategy = strategy or build_strategy(runtime)
        remote = (tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.TPUStrategy)
        self._others = isinstance(strategy, remote) or self.params.task.train_data.enable_tf_data_service
        problems = batch_problems(self.params, strategy.num_replicas_in_sync)
        if problems:
            raise UserError("; ".join(problems))
        self.checkpoint = latest_checkpoint(model_dir)
        start_step = checkpoint_step(self.checkpoint) if self.checkpoint else 0
        with with_others(self._others):
            check_alike(
                strategy,
                dict(checkpoints=str(start_step), settings=repr(self.params), vocabularies=" ".join(run.vocabulary)),
            )
        set_precision(runtime)
        with tf.device("CPU"):
            self.input_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        tf_keras.utils.set_random_seed(self.params.task.train_data.seed)  # initial weights, dropout
        with with_others(self._others), strategy.scope():
            task = task_factory.get_task(self.params.task, logging_dir=model_dir)
            task.start_step = start_step
            task.accumulation_steps = trainer.accumulation_steps
            self.trainer = Trainer(
                self.params,
                task,
                model=task.build_model(),
                optimizer=task.create_optimizer(trainer.optimizer_config, runtime),
                input_seconds=self.input_seconds,
            )
            # Otherwise the first step creates these, and is traced twice for it; a checkpoint may lack them unnoticed.
            self.trainer.optimizer._create_all_weights(self.trainer.model.trainable_variables)
            self._restore()
        # Every process has to take part in saving, but only the chief's files are kept.
        self.chief = is_chief()
        self._scratch = None if self.chief else tempfile.TemporaryDirectory()
        directory = model_dir if self.chief else self._scratch.name
        self.manager, self.best_manager = (
            tf.train.CheckpointManager(self.trainer.checkpoint, path, max_to_keep=keep, checkpoint_name=PREFIX)
            for path, keep in ((directory, trainer.max_to_keep), (os.path.join(directory, BEST_SUBDIR), 1))
        )
        self._saved: Optional[str] = None  # the newest checkpoint of this process
        self._writers = {}
        self.history = model_dirs.read_history(model_dir, last_step=self.step)
        # Of training, without evaluations and checkpoints; the time of a killed run after its last evaluation is lost.
        self.seconds = self.history[-1]["seconds"] if self.history else 0.0

    def _restore(self) -> None:
        if not self.checkpoint:
            self.trainer.initialize()
            return
        try:
            status = self.trainer.checkpoint.restore(self.checkpoint).expect_partial()  # no warning at exit
            status.assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"{self.checkpoint} does not fit this run's settings: {reason}") from error
        if self.params.runtime.mixed_precision_dtype == "float16":
            before = model_dirs.read(self.model_dir).params.runtime.mixed_precision_dtype
            if before != "float16":  # whose scale is 1
                optimizer = self.trainer.optimizer
                optimizer._loss_scale.current_loss_scale.assign(optimizer.initial_scale)

    @property
    def step(self) -> int:
        return int(self.trainer.global_step.numpy())

    @property
    def parameters(self) -> int:
        return count_parameters(self.trainer.model.trainable_variables)

    def say(self, line: str) -> None:
        if self.chief:
            say(line)

    def describe(self) -> str:
        strategy, task = self.trainer.strategy, self.params.task
        replicas = strategy.num_replicas_in_sync
        kind = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
        return (
            f"{self.run.experiment} in {self.model_dir}: {self.parameters:,} parameters, batches of "
            f"{task.train_data.global_batch_size} x {task.train_data.seq_length} tokens on {replicas} "
            f"replica{'s' * (replicas > 1)} ({kind}), {'XLA' if self.trainer.xla else 'no XLA'}, "
            + (f"from step {self.step}" if self.step else "from the start")
        )

    def train(self, evaluate: bool, stop: Optional[StopRequest] = None) -> bool:
        """Trains up to `trainer.train_steps`, evaluating and checkpointing at their intervals and at the end.

        A checkpoint comes before every evaluation, so that nothing is lost by stopping one.

        Returns:
          Whether it got there; False if `stop` asked for an end, which comes within seconds and with a checkpoint.

        Raises:
          UserError: when the loss stays not finite, or something cannot be read or written.
          WorkerLost: when another process of the run is gone.
          files.PASSING_ERRORS: when storage does not answer.
        """
        with self._failures_told():
            return self._train(evaluate, stop or StopRequest())

    @contextlib.contextmanager
    def _failures_told(self):
        """Within it, failures are raised with one line that explains them, or as WorkerLost."""
        try:
            with with_others(self._others):
                yield
        except tf.errors.ResourceExhaustedError as error:
            raise UserError(
                "the devices' memory is too small for this run: raise trainer.accumulation_steps, set the encoder's "
                f"recompute_blocks=true or lower the batch size ({first_line(error)})"
            ) from error
        except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
            raise UserError(
                f"the data cannot be read after step {self.step} ({first_line(error)}); fix it, and the same command "
                "resumes from the last checkpoint"
            ) from error

    def _train(self, evaluate: bool, stop: StopRequest) -> bool:
        trainer = self.params.trainer
        total = trainer.train_steps
        intervals = [
            *(trainer.steps_per_loop, trainer.summary_interval),
            *(trainer.checkpoint_interval, trainer.validation_interval),
        ]
        if self.chief:
            self._check_room()
            with self._writing("its settings"):
                model_dirs.write(self.model_dir, self.run)

        def due(interval: int) -> bool:
            return self.step % interval == 0 or self.step == total

        if evaluate and self.step and due(trainer.validation_interval) and not self._evaluated():
            self._evaluate_in_training()
        first, seconds, start_step = True, 0.0, self.step
        most_steps = 1  # the first step may have to be compiled, and how long others take is not known yet
        checked_learning = self.step >= self._sanity_steps
        while self.step < total:
            # The first step may take minutes to compile, and is soon repeated: it is not worth waiting for.
            if not first and not stop.unsaved.locked():
                stop.unsaved.acquire()
            # Loops end where anything is due, and soon enough to be stopped.
            loop = min(total - self.step, most_steps, *(every - self.step % every for every in intervals))
            self.input_seconds.assign(0.0)
            begin = time.monotonic()
            logs = self.trainer.train(tf.constant(loop, tf.int32))
            if not stop.unsaved.locked():
                stop.unsaved.acquire()
            stopping, elapsed = agree(self.trainer.strategy, stop.asked, time.monotonic() - begin)
            stopping = stopping and self.step < total
            self.seconds += elapsed
            left = "?"
            if first:  # compilation would spoil the estimate of the time left
                first, start_step = False, self.step
            else:
                seconds += elapsed
                left = _format_seconds(seconds / (self.step - start_step) * (total - self.step))
            most_steps = max(1, int(MOST_LOOP_SECONDS * loop / elapsed))
            loss = self._report(logs, loop, elapsed, left)
            if not checked_learning and self.step >= self._sanity_steps:
                checked_learning = True
                self._warn_unless_learning(loss)
            evaluating = evaluate and due(trainer.validation_interval)
            stop.patience = 20.0 + elapsed
            if evaluating or stopping or due(trainer.checkpoint_interval):
                with stop.saving:
                    self._save()
                    if stopping:
                        self.say(f"stopped at step {self.step}, as asked; the same command resumes from there")
                        stop.announced = True
                        agree(self.trainer.strategy, True, 0.0)  # no process exits before the chief has written
                    stop.unsaved.release()
            if stopping:
                return False
            if evaluating:
                self._evaluate_in_training()
        return True

    def _report(self, logs: dict, loop: int, elapsed: float, left: str) -> float:
        """Prints and records how the last `loop` steps went; returns their mean loss."""
        trainer = self.params.trainer
        skipped, in_a_row = logs.pop("skipped"), logs.pop("skipped_in_a_row")
        if in_a_row >= trainer.max_skipped_steps:
            raise self._not_finite(self.step - in_a_row)
        metrics = _readable(logs)
        if skipped == loop:
            metrics["loss"] = math.nan
        rate = metrics.pop("learning_rate")
        examples = loop * self.params.task.train_data.global_batch_size / elapsed
        waiting = float(self.input_seconds) / elapsed
        self.say(
            f"step {self.step}/{trainer.train_steps}  {_format_metrics(metrics)}  learning_rate {rate:.2e}  "
            f"{examples:.1f} examples/s  "
            + (f"waiting for data {waiting:.0%}  " if waiting >= WORTH_SAYING else "")
            + (f"skipped {skipped} (not finite)  " if skipped else "")
            + f"{left} left"
        )
        if self.step % trainer.summary_interval == 0 or self.step == trainer.train_steps:
            more = dict(learning_rate=rate, examples_per_second=examples, waiting=waiting, skipped=skipped)
            self._summarise("train", {**metrics, **more})
        return metrics["loss"]

    def _check_room(self) -> None:
        """Raises UserError unless the disk, if `model_dir` is on one, has room for the checkpoints to be kept."""
        if "://" in self.model_dir:
            return
        disk = os.path.abspath(self.model_dir)
        while not os.path.isdir(disk):
            disk = os.path.dirname(disk)
        variables = [*self.trainer.model.variables, *self.trainer.optimizer.variables()]
        size = sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)
        # Those kept, the best, and one being written.
        there = len(self.manager.checkpoints) + len(self.best_manager.checkpoints)
        needed = size * (self.params.trainer.max_to_keep + 2 - there)
        free = shutil.disk_usage(disk).free
        if needed > free:
            raise UserError(
                f"--model_dir={self.model_dir}: checkpoints will take {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB "
                f"are free; make room, or lower trainer.max_to_keep={self.params.trainer.max_to_keep}"
            )

    @contextlib.contextmanager
    def _writing(self, what: str):
        try:
            yield
        except PASSING_ERRORS:
            raise
        except (tf.errors.OpError, OSError) as error:
            reason = first_line(error)
            raise UserError(
                f"--model_dir={self.model_dir}: cannot write {what} at step {self.step} ({reason}); last good "
                f"checkpoint: {self._last_good}; make room, and the same command resumes from there"
            ) from error

    @property
    def _last_good(self) -> str:
        # Before the first save, the manager's newest may be one that is damaged.
        return self._saved or self.checkpoint or "none"

    def _save(self, manager: Optional[tf.train.CheckpointManager] = None) -> None:
        # Steps that are not finite are skipped, but finite steps can add up to a weight that is not.
        for variable in self.trainer.model.trainable_variables:
            if not bool(tf.reduce_all(tf.math.is_finite(variable))):
                raise UserError(
                    f"{variable.name} is not finite at step {self.step}, last good checkpoint: {self._last_good}; "
                    "lower the learning rate or lengthen the warm-up, and start again in a new --model_dir"
                )
        with self._writing("a checkpoint"):
            saved = (manager or self.manager).save(checkpoint_number=self.step)
        if manager is None:
            self._saved = saved

    def _not_finite(self, first: int) -> UserError:
        """Saves the first batch that was skipped, and returns the error that reports it.

        Steps are counted from 0 here and by the loader, and from 1 in messages.
        """
        data, task = self.params.task.train_data, self.trainer.task
        task.start_step = first
        rows = first * data.global_batch_size, (first + 1) * data.global_batch_size - 1
        path = os.path.join(self.model_dir, NOT_FINITE_FILE)
        if self.chief:
            with self._writing(NOT_FINITE_FILE):
                batch = next(iter(task.build_inputs(data).as_numpy_iterator()))
                model_dirs.write_arrays(path, {**batch, "step": first + 1, "first_row": rows[0], "seed": data.seed})
        return UserError(
            f"loss or gradients are not finite in {self.params.trainer.max_skipped_steps} steps in a row from step "
            f"{first + 1} on, all skipped; last good checkpoint: {self._last_good}; the batch of step {first + 1} "
            f"(rows {rows[0]} to {rows[1]} of training, seed {data.seed}) is in {path}; lower the learning rate or "
            "lengthen the warm-up, and start again in a new --model_dir"
        )

    @property
    def _sanity_steps(self) -> float:
        return getattr(self.params.task, "sanity_steps", 0) or math.inf

    def _warn_unless_learning(self, loss: float) -> None:
        """Warns when the masked-LM loss is still what the frequencies of wordpieces alone give."""
        entropy = Corpus.read(self.params.task.train_data.input_path).unigram_entropy
        if loss > entropy - 0.1 and self.chief:
            say(
                f"warning: after {self.step} steps the loss is {loss:.3f}, and the entropy of single wordpieces "
                f"{entropy:.3f}: so far the model has learnt how frequent each is and nothing else. Try another "
                "learning rate, a longer warm-up or norm_first=true",
                sys.stderr,
            )

    def _evaluated(self) -> bool:
        return bool(self.history) and self.history[-1]["step"] == self.step

    def _evaluate_in_training(self) -> None:
        """Evaluates, adds the result to the history, and keeps a checkpoint that is the best so far."""
        metrics, trainer = self.evaluate(), self.params.trainer
        name, sign = trainer.best_checkpoint_eval_metric, 1 if trainer.best_checkpoint_metric_comp == "higher" else -1
        earlier = [entry[name] for entry in self.history if math.isfinite(entry.get(name, math.nan))]
        if math.isfinite(metrics[name]) and all(sign * metrics[name] > sign * value for value in earlier):
            self._save(self.best_manager)
        self.history.append({"step": self.step, "seconds": round(self.seconds, 3), **metrics})
        if self.chief:
            with self._writing("the history"):
                model_dirs.write_history(self.model_dir, self.history)

    def evaluate(self) -> dict[str, float]:
        """Evaluates the current weights on the validation data and writes metrics.json; returns what it holds."""
        begin = time.monotonic()
        steps = self.params.trainer.validation_steps
        with self._failures_told():
            metrics = _readable(self.trainer.evaluate(tf.constant(steps, tf.int32)))
        self.say(
            f"step {self.step}/{self.params.trainer.train_steps}  validation: {_format_metrics(metrics)}  "
            f"({_format_seconds(time.monotonic() - begin)})"
        )
        self._summarise("validation", metrics)
        if self.chief:
            with self._writing("metrics"):
                record = {"step": self.step, **metrics, "parameters": self.parameters}
                model_dirs.write_metrics(self.model_dir, record)
        return metrics

    def _summarise(self, name: str, values: dict[str, float]) -> None:
        if not self.chief:
            return
        with self._writing("TensorBoard's files"):
            if name not in self._writers:
                self._writers[name] = tf.summary.create_file_writer(os.path.join(self.model_dir, name))
            with self._writers[name].as_default(step=self.step):
                for key, value in values.items():
                    tf.summary.scalar(key, value)
            self._writers[name].flush()
