"""A family of encoders and a task from outside the package, as docs/extending.md says; see test_extending.py.

The family mixes every token with the mean of its document. The task counts the words of a text, and its step has two
objectives: the number, and whether the text is long.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.modeling import hyperparams

from shatter_tf.data.batches import TextDataConfig, batches_of_rows
from shatter_tf.data.text import read_lines
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.encoders import registry as encoders
from shatter_tf.encoders.base import Family, PackedEncoder
from shatter_tf.errors import UserError
from shatter_tf.layers.dropout import dropout, site_keys
from shatter_tf.layers.masks import same_document
from shatter_tf.serving import answers
from shatter_tf.tasks import registry as tasks
from shatter_tf.tasks.base import BaseTask, Data, TaskAnswers, known_vocabulary, row_weights, vocabulary_of
from shatter_tf.tasks.signature import Signature, encode_texts, strings

LONG = 5  # words


@dataclasses.dataclass
class ToyConfig(Family, hyperparams.Config):
    """Settings of the toy encoder."""

    title = "Toy"

    vocab_size: int = 30522
    hidden_size: int = 16
    num_layers: int = 1
    intermediate_size: int = 16
    hidden_activation: str = "relu"
    type_vocab_size: int = 2
    max_sequence_length: int = 128
    pooling: str = "mean"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    initializer_range: float = 0.02


@hyperparams.bind(ToyConfig)
@tf_keras.utils.register_keras_serializable(package="toy")
class ToyEncoder(PackedEncoder):
    """h <- h + W [h; mean of the document's h]."""

    config_class = ToyConfig

    def add_layers(self):
        self.blocks = [
            tf_keras.layers.Dense(self.config.hidden_size, name=f"block_{i}", dtype=self.dtype_policy)
            for i in range(self.config.num_layers)
        ]

    def encode(self, h, packs, keys, training):
        shares = tf.cast(same_document(packs, packs), tf.float32)
        shares = tf.math.divide_no_nan(shares, tf.reduce_sum(shares, axis=-1, keepdims=True))
        outputs = []
        for i, block in enumerate(self.blocks):
            mean = tf.matmul(tf.cast(shares, h.dtype), h)
            y = block(tf.concat([h, mean], axis=-1))
            h = h + dropout(y, self.config.dropout_rate, None if keys is None else site_keys(keys, i))
            outputs.append(h)
        return h, outputs, {}


@dataclasses.dataclass
class CountDataConfig(TextDataConfig):
    """A text a line."""

    seq_length: int = 32


class CountDataLoader:
    """Batches of texts, and how many words each has."""

    def __init__(self, params, texts=None, tokenizer=None):
        self._params = params
        self._texts = texts or read_texts(params.input_path)
        self._tokenizer = tokenizer or Tokenizer(read_vocabulary(params.vocab_file), params.lower_case)

    def load(self, input_context=None, start_step=0):
        texts = tf.constant(self._texts)
        counts = tf.constant([float(len(text.split())) for text in self._texts])

        def encode(rows):
            encoded = self._tokenizer.encode(tf.gather(texts, rows), None, self._params.seq_length)
            inputs = self._tokenizer.pad(encoded, self._params.seq_length)
            return dict(inputs, count=tf.gather(counts, rows))

        return batches_of_rows(len(self._texts), encode, self._params, input_context, start_step)


def read_texts(path):
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    return [line for line in read_lines(path) if line.strip()]


@dataclasses.dataclass
class CountModelConfig(hyperparams.Config):
    encoder: encoders.EncoderConfig = dataclasses.field(default_factory=encoders.EncoderConfig)


@dataclasses.dataclass
class CountConfig(TaskAnswers, cfg.TaskConfig):
    """Counts words."""

    main_metric = "mean_error"

    model: CountModelConfig = dataclasses.field(default_factory=CountModelConfig)
    train_data: CountDataConfig = dataclasses.field(default_factory=lambda: CountDataConfig(is_training=True))
    validation_data: CountDataConfig = dataclasses.field(default_factory=lambda: CountDataConfig(is_training=False))

    def open_data(self, data_dir, pretrained):
        config = self.replace()
        for data, name in ((config.train_data, "train.txt"), (config.validation_data, "dev.txt")):
            data.input_path = data.input_path or os.path.join(data_dir or "", name)
        texts = [read_texts(data.input_path) for data in (config.train_data, config.validation_data)]
        vocabulary = known_vocabulary(config.train_data, pretrained)
        vocabulary = vocabulary or vocabulary_of(texts[0], config.train_data.lower_case)
        return config, Data(*texts, vocabulary, config.train_data.lower_case)


@task_factory.register_task_cls(CountConfig)
class CountTask(BaseTask):
    """Two outputs from the mean vector: the number of words, and a logit for a text being long."""

    loader_class = CountDataLoader
    objectives = ("count", "long")
    aggregated_metrics = ("mean_error",)

    def build_model(self):
        encoder = encoders.build_encoder(self.task_config.model.encoder, use_pooler=False)
        outputs = tf_keras.layers.Dense(2, name="head", dtype=tf.float32)(encoder(encoder.inputs)["pooled_output"])
        model = tf_keras.Model(encoder.inputs, outputs)
        model.checkpoint_items = dict(encoder=encoder)
        return model

    def weights(self, inputs):
        rows = row_weights(inputs)
        return dict(count=tf.reduce_sum(rows), long=tf.reduce_sum(rows * _is_long(inputs)) + 1.0)

    def loss_sums(self, inputs, outputs):
        rows = row_weights(inputs)
        is_long = _is_long(inputs)
        log_losses = tf.nn.sigmoid_cross_entropy_with_logits(is_long, outputs[:, 1])
        errors = tf.square(outputs[:, 0] - inputs["count"])
        return dict(count=tf.reduce_sum(rows * errors), long=tf.reduce_sum(rows * is_long * log_losses))

    def evaluation_logs(self, inputs, outputs):
        return dict(error=tf.abs(outputs[:, 0] - inputs["count"]), row_weights=row_weights(inputs))

    def aggregate_logs(self, state=None, step_outputs=None):
        columns = (np.concatenate(step_outputs[key], axis=0) for key in ("error", "row_weights"))
        return [*(state or []), tuple(columns)]

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        errors, weights = (np.concatenate(column) for column in zip(*aggregated_logs, strict=True))
        return dict(mean_error=float(np.sum(errors * weights) / np.sum(weights)))

    def predict(self, model, inputs):
        return dict(count=model(inputs, training=False)[:, 0])

    def signatures(self, model, tokenizer):
        signatures = super().signatures(model, tokenizer)
        encode = encode_texts(tokenizer, self.task_config.train_data.seq_length)
        count = Signature(strings("text"), encode, signatures["token_ids"].predict)
        return {"serving_default": count, **signatures}


def _is_long(inputs):
    return tf.cast(inputs["count"] >= LONG, tf.float32)


@answers.register("count")
def _words(row):
    return dict(words=round(row["count"], 1))


encoders.register("toy", ToyEncoder)
tasks.register("toy/count", CountConfig)
