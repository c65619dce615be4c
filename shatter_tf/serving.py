"""The exported classifier: strings in, labels and probabilities out, with the tokenizer inside the graph."""

import tensorflow as tf
import tf_keras
from official.core import task_factory

from shatter_tf.checkpoints import best_checkpoint, latest_checkpoint
from shatter_tf.command_line import UserError
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.model_dir import Run


class Classifier(tf.Module):
    """A fine-tuned model and its tokenizer as one servable function.

    Args:
      model: from strings' ids to logits [B, labels].
      tokenizer: of the model's vocabulary.
      labels: names in the order of the logits.
      seq_length: longest input in tokens; longer texts are cut. Shorter batches are padded to their longest text.
      pairs: whether inputs are pairs of texts.
    """

    def __init__(
        self, model: tf_keras.Model, tokenizer: Tokenizer, labels: list[str], seq_length: int, pairs: bool = False
    ):
        super().__init__(name="classifier")
        self.model, self.tokenizer = model, tokenizer
        names = tf.constant(labels)

        def classify(text, pair=None):
            inputs = tokenizer.pad(tokenizer.encode(text, pair, seq_length))
            probabilities = tf.nn.softmax(tf.cast(model(inputs, training=False), tf.float32))
            return dict(
                label=tf.gather(names, tf.argmax(probabilities, axis=-1)),
                probabilities=probabilities,
                labels=tf.tile(names[tf.newaxis], [tf.shape(probabilities)[0], 1]),
            )

        strings = lambda name: tf.TensorSpec([None], tf.string, name)  # noqa: E731
        if pairs:
            self.serving_default = tf.function(
                lambda text_a, text_b: classify(text_a, text_b), input_signature=[strings("text_a"), strings("text_b")]
            )
        else:
            self.serving_default = tf.function(lambda text: classify(text), input_signature=[strings("text")])


def load_classifier(finished: Run, model_dir: str, best: bool) -> tuple[Classifier, str]:
    """Returns the classifier of a run of shatter/classify, and the checkpoint it is from.

    Raises:
      UserError: for another experiment's run, or one without a checkpoint.
    """
    if finished.experiment != "shatter/classify":
        raise UserError(
            f"--model_dir={model_dir}: a run of {finished.experiment}, which has nothing to serve yet; fine-tune it "
            f"with --experiment=shatter/classify --init_checkpoint={model_dir}"
        )
    checkpoint = (best_checkpoint(model_dir) if best else None) or latest_checkpoint(model_dir)
    if not checkpoint:
        raise UserError(f"--model_dir={model_dir}: no checkpoint to export")
    model = task_factory.get_task(finished.params.task).build_model()
    status = tf.train.Checkpoint(model=model).read(checkpoint).expect_partial()
    status.assert_existing_objects_matched()
    data = finished.params.task.train_data
    tokenizer = Tokenizer(finished.vocabulary, finished.lower_case)
    return Classifier(model, tokenizer, finished.labels, data.seq_length, finished.params.task.pairs), checkpoint


def next_version(export_dir: str) -> int:
    """Returns one more than the highest version in `export_dir`, or 1."""
    names = tf.io.gfile.listdir(export_dir) if tf.io.gfile.exists(export_dir) else []
    return 1 + max((int(name.rstrip("/")) for name in names if name.rstrip("/").isdigit()), default=0)
