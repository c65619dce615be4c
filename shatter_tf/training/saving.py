"""What a run writes to its model_dir: checkpoints, metrics, the history, and TensorBoard's files."""

import contextlib
import os
import shutil
import tempfile
from typing import Optional

import tensorflow as tf

from shatter_tf.checkpoints import BEST_SUBDIR, PREFIX
from shatter_tf.cluster import is_chief
from shatter_tf.console import warn
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import PASSING_ERRORS
from shatter_tf.training import run_dir
from shatter_tf.training.run_dir import Run
from shatter_tf.training.trainer import Trainer


class Saver:
    """Writes what belongs to one run. Every process has to take part in saving, but only the chief's files are kept.

    Args:
      run, model_dir: the run, and where it lives.
      trainer: what is saved.
      restored: the checkpoint that it resumed from, if any.

    Attributes:
      only_metrics: whether the run is only evaluated: then a directory that cannot be written to is no obstacle.
    """

    def __init__(self, run: Run, model_dir: str, trainer: Trainer, restored: Optional[str]):
        self._run = run
        self._model_dir = model_dir
        self._trainer = trainer
        self._restored = restored
        self._chief = is_chief()
        self._scratch = None if self._chief else tempfile.TemporaryDirectory()
        directory = model_dir if self._chief else self._scratch.name
        self._manager, self._best_manager = (
            tf.train.CheckpointManager(trainer.checkpoint, path, max_to_keep=keep, checkpoint_name=PREFIX)
            for path, keep in (
                (directory, run.params.trainer.max_to_keep),
                (os.path.join(directory, BEST_SUBDIR), 1),
            )
        )
        self.only_metrics = False
        self._warned: set[str] = set()
        self._saved: Optional[str] = None  # the newest checkpoint of this process
        self._writers = {}

    @property
    def _step(self) -> int:
        return int(self._trainer.global_step.numpy())

    @property
    def last_good(self) -> str:
        """The checkpoint that a failed run goes on from, or "none"."""
        # Before the first save, the manager's newest may be one that is damaged.
        return self._saved or self._restored or "none"

    def begin(self) -> None:
        """Records the run's settings; raises UserError unless there is room for its checkpoints."""
        if self._chief:
            self.check_room()
            with self.writing("its settings"):
                run_dir.write(self._model_dir, self._run)

    def check_room(self) -> None:
        """Raises UserError unless the disk, if `model_dir` is on one, has room for the checkpoints to be kept."""
        if "://" in self._model_dir:
            return
        disk = os.path.abspath(self._model_dir)
        while not os.path.isdir(disk):
            disk = os.path.dirname(disk)
        variables = [*self._trainer.model.variables, *self._trainer.optimizer.variables()]
        size = sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)

        # Those kept, the best, and one being written.
        kept = self._run.params.trainer.max_to_keep
        there = len(self._manager.checkpoints) + len(self._best_manager.checkpoints)
        needed = size * (kept + 2 - there)
        free = shutil.disk_usage(disk).free
        if needed > free:
            raise UserError(
                f"{argument('model_dir')}={self._model_dir}: checkpoints will take {needed / 1e6:,.0f} MB, and "
                f"{free / 1e6:,.0f} MB are free; make room, or lower trainer.max_to_keep={kept}"
            )

    @contextlib.contextmanager
    def writing(self, what: str):
        """Raises UserError, which says what is lost, when `what` cannot be written."""
        try:
            yield
        except PASSING_ERRORS:
            raise
        except (tf.errors.OpError, OSError) as error:
            if self.only_metrics:
                if what not in self._warned:
                    warn(f"{argument('model_dir')}={self._model_dir}: cannot write {what} ({first_line(error)})")
                self._warned.add(what)
                return
            raise UserError(
                f"{argument('model_dir')}={self._model_dir}: cannot write {what} at step {self._step} "
                f"({first_line(error)}); last good checkpoint: {self.last_good}; make room, and the same command "
                "resumes from there"
            ) from error

    def save(self) -> None:
        """Saves a checkpoint; raises UserError instead of saving weights that are not finite."""
        self._saved = self._save(self._manager)

    def save_best(self) -> None:
        """Saves the checkpoint whose evaluation is the best so far."""
        self._save(self._best_manager)

    def _save(self, manager: tf.train.CheckpointManager) -> str:
        # Steps that are not finite are skipped, but finite steps can add up to a weight that is not.
        for variable in self._trainer.model.trainable_variables:
            if not bool(tf.reduce_all(tf.math.is_finite(variable))):
                raise UserError(
                    f"{variable.name} is not finite at step {self._step}, last good checkpoint: {self.last_good}; "
                    f"lower the learning rate or lengthen the warm-up, and start again in a new {argument('model_dir')}"
                )
        with self.writing("a checkpoint"):
            return manager.save(checkpoint_number=self._step)

    def write_history(self, history: list[dict]) -> None:
        """Replaces history.jsonl."""
        if self._chief:
            with self.writing("the history"):
                run_dir.write_history(self._model_dir, history)

    def write_metrics(self, metrics: dict) -> None:
        """Replaces metrics.json."""
        if self._chief:
            with self.writing(run_dir.METRICS_FILE):
                run_dir.write_metrics(self._model_dir, {"step": self._step, **metrics})

    def write_bad_batch(self, data: tf.data.Dataset, **facts: int) -> str:
        """Writes the first batch of `data`, with `facts`, to a file for whoever looks into it; returns its path."""
        path = os.path.join(self._model_dir, run_dir.NOT_FINITE_FILE)
        if self._chief:
            with self.writing(run_dir.NOT_FINITE_FILE):
                batch = next(iter(data.as_numpy_iterator()))
                run_dir.write_arrays(path, {**batch, **facts})
        return path

    def summarize(self, name: str, values: dict[str, float]) -> None:
        """Adds scalars to TensorBoard's files in the subdirectory `name`."""
        if not self._chief:
            return
        with self.writing("TensorBoard's files"):
            if name not in self._writers:
                self._writers[name] = tf.summary.create_file_writer(os.path.join(self._model_dir, name))
            with self._writers[name].as_default(step=self._step):
                for key, value in values.items():
                    tf.summary.scalar(key, value)
            self._writers[name].flush()
