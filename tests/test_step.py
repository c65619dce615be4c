"""One step on the global batch: exact for several objectives, over parts and replicas."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import task_factory

from shatter_tf.tasks.step import LossScale, mean_loss


def two_objectives(task):
    """Makes the loss of a task that of all rows, and of rows with the label 1, each divided by its own number."""
    loss_sums = task.loss_sums

    def chosen(inputs):
        return tf.cast(inputs["label_ids"] == 1, tf.float32)

    def more_sums(inputs, outputs):
        losses = tf_keras.losses.sparse_categorical_crossentropy(inputs["label_ids"], outputs, from_logits=True)
        return dict(**loss_sums(inputs, outputs), chosen=3.0 * tf.reduce_sum(losses * chosen(inputs)))

    weights = task.weights
    task.weights = lambda inputs: dict(**weights(inputs), chosen=tf.reduce_sum(chosen(inputs)))
    task.loss_sums = more_sums


@pytest.mark.parametrize(("parts", "replicas"), [(2, 1), (1, 2), (2, 2)])
def test_two_objectives_have_their_own_denominators(classify, parts, replicas):
    """The labels of the batch are 0, 1, 2, 0, 1, 2, 0, 1: every share has another number of rows with the label 1."""
    params = classify(more="task.train_data.global_batch_size=8,task.model.use_encoder_pooler=true").params
    batch = next(iter(task_factory.get_task(params.task).build_inputs(params.task.train_data)))
    batch["label_ids"] = tf.constant([0, 1, 2, 0, 1, 2, 0, 1])

    def stepped(parts, replicas):
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
        tf_keras.utils.set_random_seed(1)
        with strategy.scope():
            task = task_factory.get_task(params.task)
            two_objectives(task)
            model = task.build_model()
            next(layer for layer in model.layers if hasattr(layer, "output_dropout_rate")).output_dropout_rate = 0.0
            optimizer = tf_keras.optimizers.legacy.SGD(1.0)
        rows = 8 // replicas
        shares = [{key: value[i * rows : (i + 1) * rows] for key, value in batch.items()} for i in range(replicas)]
        shares = strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        step = tf.function(
            lambda share: strategy.run(
                task.train_step, args=(share, model, optimizer), kwargs=dict(accumulation_steps=parts)
            ),
            autograph=False,
        )
        logs = step(shares)
        losses = {name: strategy.experimental_local_results(loss)[0] for name, (loss, _) in logs["losses"].items()}
        return losses, [variable.numpy() for variable in model.trainable_variables]

    (whole, weights), (shared, others) = stepped(1, 1), stepped(parts, replicas)
    assert whole.keys() == {"loss", "chosen"}
    for name, loss in whole.items():
        assert float(shared[name]) == pytest.approx(float(loss), rel=1e-5)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_an_objective_without_weight_counts_as_nothing():
    losses = dict(a=(tf.constant(6.0), tf.constant(3.0)), b=(tf.constant(0.0), tf.constant(0.0)))
    assert float(mean_loss(losses)) == 2


def test_the_loss_scale_halves_and_doubles():
    scale = LossScale()
    scale.update(tf.constant(False))
    assert float(scale.value) == 2.0**14
    for _ in range(2_000):
        scale.update(tf.constant(True))
    assert float(scale.value) == 2.0**15
