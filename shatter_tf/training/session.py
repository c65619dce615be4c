"""One run in one model_dir: builds everything, restores what there is, and trains or evaluates."""

import contextlib
import time
from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.modeling.optimization import OptimizerFactory

from shatter_tf.checkpoints import checkpoint_step, count_parameters, has_part, latest_checkpoint
from shatter_tf.cluster import is_chief
from shatter_tf.console import notice
from shatter_tf.errors import UserError, first_line, raise_all
from shatter_tf.tasks import baseline
from shatter_tf.training import device, run_dir, trial
from shatter_tf.training.distribution import batch_problems, build_strategy, check_alike, with_others
from shatter_tf.training.loop import Loop, format_duration, format_metrics, readable
from shatter_tf.training.precision import set_precision
from shatter_tf.training.preemption import StopRequest
from shatter_tf.training.run_dir import Run
from shatter_tf.training.saving import Saver
from shatter_tf.training.trainer import Trainer


class Session:
    """One run in one model_dir.

    Args:
      run: from `settings.resolve`.
      model_dir: where it lives; `run_dir.check` has passed it. Nothing is written there before training starts.
      strategy: what it runs on; built from `run.params.runtime` if left out.

    Raises:
      UserError: for batches that the devices cannot share, or checkpoints that do not fit.
      WorkerLost: when another process of the run is gone.
    """

    def __init__(self, run: Run, model_dir: str, strategy: Optional[tf.distribute.Strategy] = None):
        self.run = run
        self.model_dir = model_dir
        self.params = run.params
        strategy = strategy or build_strategy(self.params.runtime)
        remote = (tf.distribute.MultiWorkerMirroredStrategy, tf.distribute.TPUStrategy)
        self._others = isinstance(strategy, remote) or self.params.task.train_data.enable_tf_data_service
        raise_all(batch_problems(self.params, strategy.num_replicas_in_sync))
        if device.is_open(self.params.runtime):
            device.apply(self.params.runtime, trial.fastest(run)[0])

        # Where it starts, which all processes must agree on.
        self.checkpoint = latest_checkpoint(model_dir)
        start_step = checkpoint_step(self.checkpoint) if self.checkpoint else 0
        facts = dict(checkpoints=str(start_step), settings=repr(self.params), vocabularies=" ".join(run.vocabulary))
        with with_others(self._others):
            check_alike(strategy, facts)

        # Everything that trains.
        set_precision(self.params.runtime)
        with tf.device("CPU"):
            self.input_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        tf_keras.utils.set_random_seed(self.params.task.train_data.seed)  # initial weights, dropout
        with with_others(self._others), strategy.scope():
            self._build(start_step)
            self._restore()
        self.saver = Saver(run, model_dir, self.trainer, self.checkpoint)

        self.history = run_dir.read_history(model_dir, last_step=self.step)
        # Of training, without evaluations and checkpoints; the time of a killed run after its last evaluation is lost.
        self.seconds = self.history[-1]["seconds"] if self.history else 0.0
        self._baseline = run_dir.read_baseline(model_dir)

    def _build(self, start_step: int) -> None:
        task = task_factory.get_task(self.params.task, logging_dir=self.model_dir, data=self.run.data)
        task.prepare()
        self.trainer = Trainer(
            self.params,
            task,
            model=task.build_model(),
            optimizer=task.create_optimizer(self.params.trainer.optimizer_config, self.params.runtime),
            start_step=start_step,
            input_seconds=self.input_seconds,
        )
        # Otherwise the first step creates these, and is traced twice for it; a checkpoint may lack them unnoticed.
        self.trainer.optimizer._create_all_weights(self.trainer.model.trainable_variables)

    def _restore(self) -> None:
        if not self.checkpoint:
            self.trainer.initialize()
            return
        if self.trainer.loss_scale and not has_part(self.checkpoint, "loss_scale"):
            del self.trainer.checkpoint.loss_scale  # so far the run had another precision, or an older version
        try:
            status = self.trainer.checkpoint.restore(self.checkpoint).expect_partial()  # no warning at exit
            status.assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"{self.checkpoint} does not fit this run's settings: {reason}") from error
        if self.trainer.loss_scale:
            self.trainer.checkpoint.loss_scale = self.trainer.loss_scale

    @property
    def step(self) -> int:
        """The number of steps taken."""
        return int(self.trainer.global_step.numpy())

    @property
    def parameters(self) -> int:
        """The number of trainable numbers."""
        return count_parameters(self.trainer.model.trainable_variables)

    @property
    def precision(self) -> str:
        """The dtype of products."""
        return self.params.runtime.mixed_precision_dtype or "float32"

    def describe(self) -> str:
        """Returns what is about to run where, in one line."""
        strategy = self.trainer.strategy
        data = self.params.task.train_data
        replicas = strategy.num_replicas_in_sync
        kind = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
        return (
            f"{self.run.experiment} in {self.model_dir}: {self.parameters:,} parameters, batches of "
            f"{data.global_batch_size} x {data.seq_length} tokens on {replicas} "
            f"replica{'s' * (replicas > 1)} ({kind}), {device.Way(self.trainer.xla, self.precision)}, "
            + (f"from step {self.step}" if self.step else "from the start")
        )

    def train(self, evaluate: bool, stop: Optional[StopRequest] = None) -> bool:
        """Trains up to `trainer.train_steps`, evaluating and checkpointing at their intervals and at the end.

        With `trainer.patience` it ends before, after that many evaluations without a better one.

        A checkpoint comes before every evaluation, so that nothing is lost by stopping one.

        Returns:
          Whether it got there; False if `stop` asked for an end, which comes within seconds and with a checkpoint.

        Raises:
          UserError: when the loss stays not finite, or something cannot be read or written.
          WorkerLost: when another process of the run is gone.
          files.PASSING_ERRORS: when storage does not answer.
        """
        self._tell_learning_rate()
        with self._failures_told():
            return Loop(self, stop or StopRequest()).run(evaluate)

    def _tell_learning_rate(self) -> None:
        """Says when the learning rate jumps where a run is resumed: with another schedule, or another `train_steps`."""
        if not self.run.before or not 0 < self.step < self.params.trainer.train_steps:
            return
        was, now = (
            f"{float(rate(self.step) if callable(rate) else rate):.3g}"
            for rate in (
                OptimizerFactory(run.params.trainer.optimizer_config).build_learning_rate()
                for run in (self.run.before, self.run)
            )
        )
        if was != now:
            notice(f"the learning rate at step {self.step} was {was}, and is now {now}")

    def evaluate(self) -> dict[str, float]:
        """Evaluates the current weights on the validation data and writes metrics.json; returns the metrics."""
        begin = time.monotonic()
        steps = self.params.trainer.validation_steps
        with self._failures_told():
            metrics = readable(self.trainer.evaluate(tf.constant(steps, tf.int32)))
        notice(
            f"step {self.step}/{self.params.trainer.train_steps}  validation: {format_metrics(metrics)}  "
            f"({format_duration(time.monotonic() - begin)})"
        )
        self.saver.summarize("validation", metrics)
        self.saver.write_metrics({**metrics, "parameters": self.parameters})
        return metrics

    def compare_with_baseline(self, metrics: dict[str, float], best: Optional[float] = None) -> None:
        """Prints the run's main metric beside what simple models achieve on the same rows, and records these.

        The chief does that, and no other process has a part in it.

        Args:
          metrics: of the last evaluation.
          best: the main metric of the checkpoint that would be exported; None takes it from `metrics`.
        """
        if not is_chief():
            return
        task = self.params.task
        steps = self.params.trainer.validation_steps
        most_rows = steps * task.validation_data.global_batch_size if steps > 0 else None
        self._baseline = task.measure_baseline(self.run.data, most_rows, self._baseline)
        if self._baseline is None:
            return
        value = metrics[task.main_metric] if best is None else best
        for line in baseline.describe(task.main_metric, value, self._baseline):
            notice(line)
        self.saver.write_metrics({**metrics, "parameters": self.parameters, "baseline": self._baseline})

    def conclude(self) -> None:
        """Says how good a trained run is, if it was evaluated, and which command comes next."""
        if self.evaluated:
            metrics = {key: value for key, value in self.history[-1].items() if key not in ("step", "seconds")}
            self.compare_with_baseline(metrics, (self.best or {}).get(self.params.task.main_metric))
        notice(f"next: {self.params.task.next_command(self.model_dir)}")

    @property
    def evaluated(self) -> bool:
        """Whether the current weights were evaluated in training."""
        return bool(self.history) and self.history[-1]["step"] == self.step

    @property
    def best(self) -> Optional[dict]:
        """The evaluation in training that was the best so far; None if none was finite."""
        trainer = self.params.trainer
        return run_dir.best_entry(
            self.history, trainer.best_checkpoint_eval_metric, trainer.best_checkpoint_metric_comp
        )

    @property
    def evaluations_since_best(self) -> int:
        """How many evaluations there were in training since the best one."""
        return len(self.history) - 1 - self.history.index(self.best) if self.best else 0

    def evaluate_in_training(self) -> None:
        """Evaluates, adds the result to the history, and keeps a checkpoint that is the best so far."""
        self.history.append({"step": self.step, "seconds": round(self.seconds, 3), **self.evaluate()})
        if self.best is self.history[-1]:
            self.saver.save_best()
        self.saver.write_history(self.history)

    @contextlib.contextmanager
    def _failures_told(self):
        """Raises failures with one line that explains them, or as WorkerLost."""
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
