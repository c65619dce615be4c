"""The loop of training: steps, what is due between them, requests to stop, and progress.

Orbit's Controller has such a loop, too. This one also ends its inner loops soon enough to be stopped, agrees with other
processes on where that is, saves before every evaluation, and knows which steps were not finite.
"""

import datetime
import math
import time

import tensorflow as tf

from shatter_tf.console import notice, warn
from shatter_tf.errors import UserError, argument
from shatter_tf.training.distribution import agree
from shatter_tf.training.preemption import StopRequest

# A smaller share of the time spent waiting for data is not worth a user's attention.
WORTH_SAYING = 0.05

# Nothing is printed, and no signal acted on, while a loop of steps runs on the device.
MOST_LOOP_SECONDS = 10.0


class Loop:
    """Trains a session to its end, or until it is asked to stop.

    Args:
      session: the Session that is trained.
      stop: asked between loops of steps.
    """

    def __init__(self, session, stop: StopRequest):
        self.session = session
        self._stop = stop
        self._settings = session.params.trainer
        self._sanity_steps = getattr(session.params.task, "sanity_steps", 0) or math.inf
        self._checked_learning = session.step >= self._sanity_steps
        # What the time left is estimated from; without the first step, which may have to be compiled.
        self._timed_from = None
        self._timed_seconds = 0.0

    def run(self, evaluate: bool) -> bool:
        """Returns whether training got to its end; see `Session.train`."""
        session = self.session
        total = self._settings.train_steps
        if session.step >= total:
            more = argument("train_steps")
            notice(f"nothing to train: the run is at step {session.step}, its last; a larger {more} goes on from there")
        elif self._out_of_patience(evaluate):
            notice("nothing to train; a larger trainer.patience goes on from there")
            return True
        else:
            session.saver.begin()
        if evaluate and session.step and self._due(self._settings.validation_interval) and not session.evaluated:
            session.evaluate_in_training()

        if session.step < total:
            notice(f"{'compiling' if session.trainer.xla else 'building'} the first step")
        most_steps = 1  # how long steps take is not known yet
        while session.step < total:
            # The first step may take minutes to compile, and is soon repeated: it is not worth waiting for.
            if self._timed_from is not None:
                self._hold_unsaved()
            steps = self._steps_until_due(most_steps)
            logs, elapsed, stopping = self._take(steps)
            most_steps = max(1, int(MOST_LOOP_SECONDS * steps / elapsed))
            loss = self._report(logs, steps, elapsed, self._time_left(steps, elapsed))
            self._check_learning(loss)

            evaluating = evaluate and self._due(self._settings.validation_interval)
            self._stop.patience = 20.0 + elapsed
            if evaluating or stopping or self._due(self._settings.checkpoint_interval):
                self._save(stopping)
            if stopping:
                return False
            if evaluating:
                session.evaluate_in_training()
                if session.step < total and self._out_of_patience(evaluate):
                    break
        return True

    def _out_of_patience(self, evaluate: bool) -> bool:
        """Returns whether the last evaluations were no better than an earlier one, and says so."""
        patience = self._settings.patience
        if not evaluate or not patience or self.session.evaluations_since_best < patience:
            return False
        best = self.session.best
        name = self._settings.best_checkpoint_eval_metric
        notice(
            f"stopped early at step {self.session.step}: {patience} evaluations in a row were no better than that of "
            f"step {best['step']}, {name} {best[name]:.4f}"
        )
        return True

    def _due(self, interval: int) -> bool:
        return self.session.step % interval == 0 or self.session.step == self._settings.train_steps

    def _steps_until_due(self, most_steps: int) -> int:
        """Returns the length of a loop that ends where anything is due, and soon enough to be stopped."""
        step = self.session.step
        intervals = (
            *(self._settings.steps_per_loop, self._settings.summary_interval),
            *(self._settings.checkpoint_interval, self._settings.validation_interval),
        )
        return min(self._settings.train_steps - step, most_steps, *(every - step % every for every in intervals))

    def _hold_unsaved(self) -> None:
        if not self._stop.unsaved.locked():
            self._stop.unsaved.acquire()

    def _take(self, steps: int) -> tuple[dict, float, bool]:
        """Takes steps; returns the trainer's logs, the seconds it took, and whether to stop now."""
        session = self.session
        session.input_seconds.assign(0.0)
        begin = time.monotonic()
        logs = session.trainer.train(tf.constant(steps, tf.int32))
        self._hold_unsaved()
        stopping, elapsed = agree(session.trainer.strategy, self._stop.asked, time.monotonic() - begin)
        session.seconds += elapsed
        return logs, elapsed, stopping and session.step < self._settings.train_steps

    def _save(self, stopping: bool) -> None:
        with self._stop.saving:
            self.session.saver.save()
            if stopping:
                notice(f"stopped at step {self.session.step} on request; the same command resumes from there")
                self._stop.announced = True
                agree(self.session.trainer.strategy, True, 0.0)  # no process exits before the chief has written
            self._stop.unsaved.release()

    def _time_left(self, steps: int, elapsed: float) -> str:
        step = self.session.step
        if self._timed_from is None:
            self._timed_from = step
            return "?"
        self._timed_seconds += elapsed
        return format_duration(self._timed_seconds / (step - self._timed_from) * (self._settings.train_steps - step))

    def _report(self, logs: dict, steps: int, elapsed: float, left: str) -> float:
        """Prints and records how the last `steps` steps went; returns their mean loss."""
        session = self.session
        skipped = logs.pop("skipped")
        in_a_row = logs.pop("skipped_in_a_row")
        if in_a_row >= self._settings.max_skipped_steps:
            raise self._not_finite(session.step - in_a_row)

        metrics = readable(logs)
        if skipped == steps:
            metrics["loss"] = math.nan
        rate = metrics.pop("learning_rate")
        examples = steps * session.params.task.train_data.global_batch_size / elapsed
        waiting = float(session.input_seconds) / elapsed
        notice(
            f"step {session.step}/{self._settings.train_steps}  {format_metrics(metrics)}  learning_rate {rate:.2e}  "
            f"{examples:.1f} examples/s  "
            + (f"waiting for data {waiting:.0%}  " if waiting >= WORTH_SAYING else "")
            + (f"skipped {skipped} (not finite)  " if skipped else "")
            + f"{left} left"
        )
        if self._due(self._settings.summary_interval):
            more = dict(learning_rate=rate, examples_per_second=examples, waiting=waiting, skipped=skipped)
            session.saver.summarize("train", {**metrics, **more})
        return metrics["loss"]

    def _check_learning(self, loss: float) -> None:
        """Warns once, after `sanity_steps`, when the task says that its loss is that of a model that does not learn."""
        if self._checked_learning or self.session.step < self._sanity_steps:
            return
        self._checked_learning = True
        problem = self.session.trainer.task.learning_problem(loss)
        if problem:
            warn(f"after {self.session.step} steps {problem}")

    def _not_finite(self, first: int) -> UserError:
        """Saves the first batch that was skipped, and returns the error that reports it.

        Steps are counted from 0 here and by the loader, and from 1 in messages.
        """
        session = self.session
        data = session.params.task.train_data
        first_row = first * data.global_batch_size
        last_row = first_row + data.global_batch_size - 1
        batches = session.trainer.task.build_inputs(data, start_step=first)
        path = session.saver.write_bad_batch(batches, step=first + 1, first_row=first_row, seed=data.seed)
        return UserError(
            f"loss or gradients are not finite in {self._settings.max_skipped_steps} steps in a row from step "
            f"{first + 1} on, all skipped; last good checkpoint: {session.saver.last_good}; the batch of step "
            f"{first + 1} (rows {first_row} to {last_row} of training, seed {data.seed}) is in {path}; lower the "
            f"learning rate or lengthen the warm-up, and start again in a new {argument('model_dir')}"
        )


def readable(logs: dict) -> dict[str, float]:
    """Returns the scalars of the trainer's logs, the loss first and under that name."""
    values = {key: float(tf.convert_to_tensor(value)) for key, value in logs.items() if not isinstance(value, dict)}
    loss = values.pop("training_loss" if "training_loss" in values else "validation_loss", math.nan)
    return {"loss": loss, **values}


def format_metrics(metrics: dict[str, float]) -> str:
    """Returns metrics as text, without those of single labels, of which there may be many.

    Example:
    >>> format_metrics({"loss": 1.0, "f1": 0.5, "f1/PER": 0.4})
    'loss 1.0000  f1 0.5000'
    """
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if "/" not in name)


def format_duration(seconds: float) -> str:
    """Returns a duration as hours:minutes:seconds.

    Example:
    >>> format_duration(3723.6)
    '1:02:04'
    """
    return str(datetime.timedelta(seconds=round(seconds)))
