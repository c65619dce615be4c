"""Learning from a fine-tuned teacher: its probabilities for the rows, beside labels or in place of them.

The teacher reads all rows once, before the first step, with its own tokenizer and its own way with long texts, so that
student and teacher need have nothing in common but the labels.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from official.core import task_factory

from shatter_tf.checkpoints import best_or_latest_checkpoint, restore_model
from shatter_tf.console import notice
from shatter_tf.data import labelled
from shatter_tf.data.tables import is_table
from shatter_tf.data.texts import read_texts
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.base import INPUTS
from shatter_tf.errors import UserError, argument
from shatter_tf.tasks.base import Data, FineTuning, Teacher

_READ_ROWS = 64  # that the teacher reads at a time
_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass
class Taught(FineTuning):
    """A mixin for the config of a task that may learn from a teacher.

    Attributes:
      init_teacher: the teacher's model_dir: a run of the same experiment with the same labels.
      teacher_weights: a hash of its checkpoint; follows from that.
      unlabelled_file: texts without labels, to learn from the teacher alone.
      teacher_share: of the loss of a row with a label; the label has the rest.
      teacher_temperature: that the logits of teacher and student are divided by (Hinton, Vinyals, Dean 2015, arXiv
        1503.02531, section 2): the higher, the more is learned of unlikely labels.
    """

    init_teacher: str = ""
    teacher_weights: str = ""
    unlabelled_file: str = ""
    teacher_share: float = 0.9
    teacher_temperature: float = 2.0

    def learn_from(self, teacher):
        if type(teacher.task) is not type(self):
            raise UserError(
                f"{argument('init_teacher')}={teacher.directory}: a run of another experiment; fine-tune it first, and "
                "give that run"
            )
        self.init_teacher = teacher.directory
        self.teacher_weights = teacher.weights

    def problems_with(self, teacher):
        for name, kind in (("pairs", "pairs of texts"), ("multi_label", "texts with several labels")):
            here, theirs = (getattr(config, name, False) for config in (self, teacher.task))
            if here != theirs:
                whose = "it was, and this run is not," if theirs else "this run is, and it was not,"
                return [f"{argument('init_teacher')}={teacher.directory}: {whose} trained on {kind}"]
        here, theirs = self.train_data.labels, teacher.task.train_data.labels
        if here == theirs:
            return []
        return [
            f"{argument('init_teacher')}={teacher.directory}: its labels are {', '.join(theirs[:10])}, and those of "
            f"this data {', '.join(here[:10])}"
        ]

    def problems_of_teaching(self) -> list[str]:
        """Returns a line for every setting that would fail later."""
        found = []
        if not 0 < self.teacher_share <= 1:
            found.append(f"teacher_share={self.teacher_share} is not in (0, 1]")
        if not self.teacher_temperature > 0:
            found.append(f"teacher_temperature={self.teacher_temperature} is not positive")
        if self.unlabelled_file and not self.init_teacher:
            found.append(f"unlabelled_file={self.unlabelled_file}: give {argument('init_teacher')}, which labels it")
        return found

    def unlabelled_rows(self, opened: Data, text_fields: Sequence[str] = ()) -> list[labelled.Row]:
        """Returns the rows of `unlabelled_file` that have texts, with None for a label; [] if there is no such file.

        Adds how many there are to the notes of `opened`.

        Raises:
          UserError: when there are none.
        """
        path = self.unlabelled_file
        if not path:
            return []
        rows = [*read_texts(path, self.texts, text_fields if is_table(path) else ()).rows]
        found = [labelled.Row(tuple(row.texts), None, row.where) for row in rows if row.texts]
        if not found:
            raise UserError(f"{argument('unlabelled_file')}={path}: no row of it has a text")
        without = f"; {len(rows) - len(found):,} rows have no text" if len(rows) > len(found) else ""
        opened.notes.append(f"{path}: {len(found):,} texts without labels, for the teacher{without}")
        return found


Arrays = dict[str, np.ndarray]


def answers(teacher: Teacher, data: list, of_row: Callable[[Arrays, Arrays, int], np.ndarray]) -> list[np.ndarray]:
    """Returns what a teacher answers for each row, in order.

    Args:
      teacher: a trained run.
      data: rows, as its loader takes them.
      of_row: the answer for row i of what its `predict` returned, and of the batch that this was for.
    """
    config = teacher.task.train_data
    params = dataclasses.replace(config, is_training=False, global_batch_size=min(_READ_ROWS, len(data)))
    task = task_factory.get_task(teacher.task)
    tokenizer = Tokenizer(teacher.vocabulary, teacher.lower_case, teacher.normalizer)
    loader = task.loader_class(params, data, tokenizer)
    model = task.build_model()
    restore_model(model, best_or_latest_checkpoint(teacher.directory, "init_teacher"))

    predict = tf.function(lambda inputs: task.predict(model, inputs), autograph=False)
    found = []
    said = begin = time.monotonic()
    for batch in loader.load():
        batch, outputs = (
            {name: t.numpy() for name, t in tensors.items()} for tensors in (batch, predict(_inputs(batch)))
        )
        found += [of_row(outputs, batch, i) for i in np.flatnonzero(batch["row_weights"])]
        if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            left = (said - begin) * (len(data) / len(found) - 1)
            notice(f"the teacher has read {len(found):,} of {len(data):,} rows, about {left:.0f} s left")
    return [found[place] for place in np.argsort(loader.order())]


def _inputs(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: batch[name] for name in INPUTS}


def soft_losses(logits: tf.Tensor, probabilities: tf.Tensor, temperature: float, several: bool = False) -> tf.Tensor:
    """Returns the cross-entropy of a student with a teacher, both at a temperature, times its square.

    So that the gradient of a row does not become smaller with the temperature.

    Args:
      logits: the student's, float32 [..., labels].
      probabilities: the teacher's, float32 [..., labels].
      temperature: above 0; 1 leaves both as they are.
      several: whether each label has a probability of its own.

    Returns:
      float32 [...].

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.

    Example:
    >>> logits = tf.constant([[0.0, 0.0]])
    >>> soft_losses(logits, tf.constant([[0.9, 0.1]]), 1.0).numpy().round(3)
    array([0.693], dtype=float32)
    """
    smallest = 1e-7
    probabilities = tf.clip_by_value(probabilities, smallest, 1.0 - smallest)
    if several:
        targets = tf.sigmoid(tf.math.log(probabilities / (1.0 - probabilities)) / temperature)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits / temperature)
        return temperature**2 * tf.reduce_sum(losses, axis=-1)
    targets = tf.nn.softmax(tf.math.log(probabilities) / temperature)
    return temperature**2 * tf.nn.softmax_cross_entropy_with_logits(targets, logits / temperature)


def mixed(hard: tf.Tensor, soft: tf.Tensor, has_label: tf.Tensor, has_teacher: tf.Tensor, share: float) -> tf.Tensor:
    """Returns the loss of each row: the label's, the teacher's, or `share` of the latter with the rest of the former.

    Args:
      hard, soft: the two losses, float32, of one shape.
      has_label, has_teacher: whether a row has each, bool, of the same shape.
      share: between 0 and 1.

    Example:
    >>> known = tf.constant([True, True, False]), tf.constant([True, False, True])
    >>> mixed(tf.constant([4.0] * 3), tf.constant([2.0] * 3), *known, 0.5).numpy().tolist()
    [3.0, 4.0, 2.0]
    """
    both = (1.0 - share) * hard + share * soft
    return tf.where(has_teacher, tf.where(has_label, both, soft), hard)
