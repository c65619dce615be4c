"""One training step on the global batch: exact over replicas and parts, and skipped where it is not finite.

A loss is a sum with the weight that it is divided by, for each objective of a task. The global batch's loss is

    loss = sum_o  sum_o of all replicas and parts / weight_o of all replicas and parts          o: objectives

so that it, and its gradient, do not depend on how the batch is shared.
"""

from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf

# None of our code, or of Model Garden's that we use, branches on a tensor in Python. Rewriting it all to find that out
# would take most of the time from a command to its first step.
without_autograph = tf.autograph.experimental.do_not_convert

# Model Garden's optimizers that accept gradients that are already summed.
OPTIMIZERS = ("adamw", "adam", "lamb", "lars", "sgd", "rmsprop", "adagrad")

Losses = dict[str, tuple[tf.Tensor, tf.Tensor]]


def mean_loss(losses: Losses) -> tf.Tensor:
    """Returns the sum over objectives of sum / weight, float32 []; an objective without weight counts as 0.

    Example:
    >>> float(mean_loss(dict(a=(tf.constant(6.0), tf.constant(3.0)), b=(tf.constant(0.0), tf.constant(0.0)))))
    2.0
    """
    return tf.add_n([tf.math.divide_no_nan(total, weight) for total, weight in losses.values()])


class LossScale(tf.Module):
    """The factor that keeps float16's small gradients from becoming zero.

    It doubles after 2,000 finite steps in a row, and halves at one that is not. Source: Micikevicius et al. 2018, arXiv
    1710.03740; Keras's optimizer for it would bring a second way to skip steps.
    """

    initial = 2.0**15
    _PATIENCE = 2_000

    def __init__(self):
        super().__init__(name="loss_scale")
        replicated = dict(trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        self.value = tf.Variable(self.initial, dtype=tf.float32, **replicated)
        self._good_steps = tf.Variable(0, dtype=tf.int64, **replicated)

    def update(self, finite: tf.Tensor) -> None:
        """Adapts the scale to whether a step was finite, bool []."""
        good_steps = tf.where(finite, self._good_steps + 1, 0)
        doubled = tf.where(good_steps >= self._PATIENCE, 2.0 * self.value, self.value)
        self.value.assign(tf.where(finite, doubled, tf.maximum(self.value / 2.0, 1.0)))
        self._good_steps.assign(good_steps % self._PATIENCE)


def take_step(
    task, inputs: dict[str, tf.Tensor], model, optimizer, metrics, parts: int, loss_scale: Optional[LossScale] = None
) -> dict[str, Any]:
    """Takes one step down the gradient of the global batch's loss.

    Args:
      task: supplies `weights`, `loss_sums` and `process_metrics`.
      inputs: this replica's share of the batch, tensors [B, …].
      model, optimizer, metrics: from the task's build_model, create_optimizer and build_metrics.
      parts: in how many equal parts the share is processed, to save memory; divides B.
      loss_scale: for float16.

    Returns:
      `loss`, the global batch's, float32 []; `losses`, for each objective the same and this replica's weight; and
      `finite`, bool [], whether the step was taken: it is not when the loss or a gradient is not finite.
    """
    if model.losses:
        raise ValueError("the model's layers add losses, which have no weight; return them from loss_sums")
    variables = model.trainable_variables
    weights = task.weights(inputs)
    global_weights = _sum_over_replicas(weights)
    scale = loss_scale.value.read_value() if loss_scale else 1.0

    def losses_and_gradients(part):
        with tf.GradientTape() as tape:
            outputs = model(part, training=True)
            sums = task.loss_sums(part, outputs)
            means = [tf.math.divide_no_nan(sums[name], weight) for name, weight in global_weights.items()]
            scaled_loss = scale * tf.add_n(means)
        # The word embeddings' gradient is a list of rows with repeats, whose norm clipping would get wrong.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(scaled_loss, variables)]
        task.process_metrics(metrics or [], part, outputs)
        return [*means, *gradients]

    # Losses and gradients of the global batch.
    zeros = [tf.zeros([]) for _ in weights] + [tf.zeros(variable.shape, variable.dtype) for variable in variables]
    summed = _sum_over_replicas(_sum_over_parts(losses_and_gradients, inputs, parts, zeros))
    means = dict(zip(weights, summed, strict=False))
    loss = tf.add_n([*means.values()])
    gradients = summed[len(weights) :]
    if loss_scale:
        gradients = [gradient / scale for gradient in gradients]

    # Model Garden's AdamW would clip every replica's gradients before they are summed.
    norm = tf.linalg.global_norm(gradients)
    most = getattr(optimizer, "gradient_clip_norm", 0.0)
    if most:
        factor = most / tf.maximum(norm, most)
        gradients = [gradient * factor for gradient in gradients]

    finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
    _apply_if(finite, gradients, variables, optimizer)
    if loss_scale:
        loss_scale.update(finite)
    return dict(loss=loss, losses={name: (means[name], weights[name]) for name in weights}, finite=finite)


def _apply_if(finite: tf.Tensor, gradients: list[tf.Tensor], variables: list, optimizer) -> None:
    """Applies gradients, which all replicas share, if they are finite; the optimizer counts the step in any case."""

    def apply(*gradients):
        pairs = list(zip(gradients, variables, strict=True))
        optimizer.apply_gradients(pairs, experimental_aggregate_gradients=False)

    def apply_in_all(strategy, finite, gradients):
        def apply_and_return():
            strategy.extended.call_for_each_replica(apply, args=tuple(gradients))
            return True

        tf.cond(strategy.experimental_local_results(finite)[0], apply_and_return, lambda: False)

    # All replicas branch together, because they wait for each other to apply.
    tf.distribute.get_replica_context().merge_call(apply_in_all, args=(finite, gradients))
    optimizer.iterations.assign_add(tf.cast(~finite, tf.int64))


def _sum_over_replicas(tensors):
    context = tf.distribute.get_replica_context()
    return tensors if context.num_replicas_in_sync == 1 else context.all_reduce("SUM", tensors)


def gathered(t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the rows of all replicas, [N, ...], and the places of this replica's, int32 [B]; it has a gradient.

    A sum over replicas of zeros but for the own rows: unlike `all_gather`, its shapes are known, as XLA and TPUs want.

    Args:
      t: float32 [B, ...], of the same static shape on every replica.
    """
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    rows = tf.range(t.shape[0] if t.shape[0] is not None else tf.shape(t)[0])
    if replicas == 1:
        return t, rows
    replica = tf.convert_to_tensor(context.replica_id_in_sync_group)
    is_here = tf.reshape(tf.one_hot(replica, replicas), [replicas] + [1] * t.shape.rank)
    everywhere = context.all_reduce("SUM", is_here * t[tf.newaxis])
    return tf.reshape(everywhere, [-1, *t.shape[1:]]), replica * tf.size(rows) + rows


def _sum_over_parts(function: Callable, batch: dict[str, tf.Tensor], number: int, zeros: list) -> list[tf.Tensor]:
    """Returns the sum of `function`'s results, lists like `zeros`, over `number` equal parts of a batch."""
    if number == 1:
        return function(batch)
    batch = {key: _in_parts(t, number) for key, t in batch.items()}

    def add_part(i, sums):
        terms = function({key: t[i] for key, t in batch.items()})
        return i + 1, [total + term for total, term in zip(sums, terms, strict=True)]

    return tf.while_loop(lambda i, sums: i < number, add_part, (0, zeros), maximum_iterations=number)[1]


def _in_parts(t: tf.Tensor, number: int) -> tf.Tensor:
    """Returns [B, ...] as [number, B / number, ...]; one dimension may be unknown."""
    return tf.reshape(t, [number, t.shape[0] // number, *(-1 if size is None else size for size in t.shape[1:])])
