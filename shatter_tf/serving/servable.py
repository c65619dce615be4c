"""A trained model with its tokenizer inside the graph: strings in, answers out."""

import tensorflow as tf
import tf_keras
from official.core import task_factory

from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.tasks.base import BaseTask
from shatter_tf.tasks.signature import Signature, embedding, strings
from shatter_tf.training.run_dir import Run


class Servable:
    """A trained model's signatures as TensorFlow functions, which become those of a SavedModel.

    Batches are padded to their longest text, or to `seq_length` where that text is longer than `longest_dynamic`, the
    longest input of an unknown length that the encoder takes.

    Args:
      task: says what is served.
      model: of this task, trained.
      tokenizer: of the model's vocabulary.

    Attributes:
      signatures: the task's, by name.
      functions: the same as TensorFlow functions.
      seq_length: longest input in tokens; longer texts are cut, or read in windows of that length.
    """

    def __init__(self, task: BaseTask, model: tf_keras.Model, tokenizer: Tokenizer):
        self.model = model
        self.tokenizer = tokenizer
        self.seq_length = task.task_config.train_data.seq_length
        self.encoder = task.pretrained_parts(model)["encoder"]
        self._longest_dynamic = self.encoder.config.longest_dynamic

        self.signatures = task.signatures(model, tokenizer)
        functions = {signature: self._function(signature) for signature in self.signatures.values()}
        self.functions = {name: functions[signature] for name, signature in self.signatures.items()}

    def _function(self, signature: Signature):
        def answers(*given):
            inputs, rest = signature.encode(*given)
            return signature.decode(self._predict(signature, inputs), rest)

        return tf.function(answers, input_signature=signature.takes, autograph=False)

    def _predict(self, signature: Signature, inputs: dict) -> dict[str, tf.Tensor]:
        """Returns what the model gives for the result of `encode`; long inputs get a static length."""
        if not _is_ragged(inputs):
            return signature.predict(inputs)
        if self.seq_length <= self._longest_dynamic:
            return signature.predict(self.pad(inputs))
        return tf.cond(
            tf.reduce_max(inputs["input_word_ids"].row_lengths()) > self._longest_dynamic,
            lambda: signature.predict(self.pad(inputs, full=True)),
            lambda: signature.predict(self.pad(inputs)),
        )

    def pad(self, inputs: dict, full: bool = False) -> dict[str, tf.Tensor]:
        """Returns what `encode` gave with the encoder's inputs padded, int32 [B, L]; L is `seq_length` if `full`."""
        if self.encoder.windows:
            return {**inputs, **self.tokenizer.pad(inputs, self._whole_windows(inputs, full))}
        if full:
            return {**inputs, **self.tokenizer.pad(inputs, self.seq_length)}
        padded = self.tokenizer.pad(inputs)

        # No rows would have no columns either, and heads read the first one.
        missing = tf.cast(tf.shape(padded["input_word_ids"])[1] == 0, tf.int32)
        paddings = tf.convert_to_tensor([[0, 0], [0, missing]])
        return {**inputs, **{name: tf.pad(values, paddings) for name, values in padded.items()}}

    def _whole_windows(self, inputs: dict, full: bool) -> tf.Tensor:
        """Returns the length of the longest input, int32 []: where that is in several windows, with the last one's."""
        longest = tf.reduce_max(tf.concat([[1], tf.cast(inputs["input_word_ids"].row_lengths(), tf.int32)], axis=0))
        in_whole = -(-longest // self.seq_length) * self.seq_length
        return in_whole if full else tf.where(longest > self.seq_length, in_whole, longest)

    def encoder_inputs(self, texts: tf.Tensor, full: bool = False) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs for strings [B], padded as by `pad`."""
        return self.pad(self.tokenizer.encode(texts, None, self.seq_length), full)

    def without_graph(self, name: str, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the signature `name` should, from layers called one by one, texts padded to `seq_length`."""
        signature = self.signatures[name]
        inputs, rest = signature.encode(*(inputs[spec.name] for spec in signature.takes))
        if _is_ragged(inputs):
            inputs = self.pad(inputs, full=True)
        return signature.decode(signature.predict(inputs), rest)

    def trackable(self) -> tf.train.Checkpoint:
        """Returns what to save: the variables, and TF Hub's interface.

        When called, it gives the vectors of strings, so that `hub.KerasLayer(export)` does, and can be trained. The
        layers themselves are left out: Keras would trace each of them again, which makes half of a large model's graph.
        """
        root = tf.train.Checkpoint()
        root.variables = self.encoder.variables
        root.trainable_variables = self.encoder.trainable_variables
        root.regularization_losses = []
        root.all_variables = self.model.variables

        def call(text, training=False):
            if not training:
                return self.functions["embed"](text)["embedding"]
            inputs = self.encoder_inputs(text, full=self.seq_length > self._longest_dynamic)
            return embedding(self.encoder, inputs, training=True)["embedding"]

        root.__call__ = tf.function(call, autograph=False)
        for training in (False, True):
            root.__call__.get_concrete_function(*strings("text"), training=training)
        return root


def _is_ragged(inputs: dict) -> bool:
    """Returns whether the encoder's inputs are yet to be padded."""
    return isinstance(inputs.get("input_word_ids"), tf.RaggedTensor)


def build_servable(run: Run, model: tf_keras.Model) -> Servable:
    """Returns what is served of a run whose model this is."""
    tokenizer = Tokenizer(run.vocabulary, run.lower_case, run.normalizer)
    return Servable(task_factory.get_task(run.params.task), model, tokenizer)
