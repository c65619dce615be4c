"""shatter/pretrain: masked-LM pretraining on a prepared corpus."""

import dataclasses
import functools
import os
import shlex
from typing import ClassVar

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.nlp.configs import bert
from official.nlp.modeling import models

from shatter_tf.data.corpus.shards import Corpus
from shatter_tf.data.pretraining import PretrainDataConfig, PretrainDataLoader
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoders.registry import EncoderConfig, build_encoder
from shatter_tf.errors import UserError, all_of, argument
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.tasks import recipe
from shatter_tf.tasks.base import BaseTask, Data, TaskAnswers, refuse_tfds
from shatter_tf.tasks.signature import Signature, strings
from shatter_tf.tasks.step import without_autograph

_NO_CORPUS = "a directory made by `shatter prepare`"
_CANDIDATES = 5  # for each [MASK]


@dataclasses.dataclass
class PretrainConfig(TaskAnswers, cfg.TaskConfig):
    """Masked-LM pretraining, without next-sentence prediction.

    Attributes:
      sanity_steps: after this many steps the run warns unless the loss is below the entropy of single wordpieces; never
        if 0.
    """

    main_metric = "masked_lm_accuracy"
    learning_rate: ClassVar[float] = 1e-3
    train_steps: ClassVar[int] = 10_000
    remote_hosts = True

    sanity_steps: int = 1000
    model: bert.PretrainerConfig = dataclasses.field(
        default_factory=lambda: bert.PretrainerConfig(encoder=EncoderConfig(), cls_heads=[])
    )
    train_data: PretrainDataConfig = dataclasses.field(default_factory=lambda: PretrainDataConfig(is_training=True))
    validation_data: PretrainDataConfig = dataclasses.field(
        default_factory=lambda: PretrainDataConfig(is_training=False)
    )

    def open_data(self, data_dir, pretrained):
        config = self.replace()
        train = config.train_data
        validation = config.validation_data
        refuse_tfds(config, f"{argument('data_dir')}, {_NO_CORPUS}")
        train.input_path = train.input_path or data_dir or ""
        validation.input_path = validation.input_path or data_dir or train.input_path
        if not train.input_path:
            raise UserError(f"no corpus: give {argument('data_dir')}, {_NO_CORPUS}")

        paths = dict.fromkeys([train.input_path, validation.input_path])  # mostly the same one, to be read once
        corpora = all_of(*(functools.partial(Corpus.read, path) for path in paths))
        corpus = corpora[0]
        train.seq_length = train.seq_length or corpus.seq_length

        problems = []
        if corpora[-1].vocabulary_sha256 != corpus.vocabulary_sha256:
            problems.append(f"{validation.input_path}: prepared with another vocabulary than {train.input_path}")
        if pretrained and pretrained.lower_case != corpus.lower_case:
            problems.append(f"{train.input_path}: its casing is not that of {argument('init_checkpoint')}")
        if pretrained and pretrained.normalizer != corpus.normalizer:
            problems.append(f"{train.input_path}: its normalizer is not that of {argument('init_checkpoint')}")
        opened = Data(corpus, corpora[-1], corpus.vocabulary, corpus.lower_case, problems, normalizer=corpus.normalizer)
        return config, opened

    def rows(self, data):
        tokens = (sum(shard.tokens for shard in shards) for shards in (data.train.train, data.validation.validation))
        return tuple(-(-number // max(self.train_data.seq_length, 1)) for number in tokens)

    def recipe(self, data):
        return recipe.pretraining(self, self.rows(data)[0] * self.train_data.seq_length, data.converted)

    def too_few(self, data):
        return []  # the shortest corpus fills a batch by being read several times

    def suitable_config(self, data, on_cpu):
        return recipe.pretraining_config(self.rows(data)[0] * self.train_data.seq_length, on_cpu)

    def problems(self):
        found = []
        if self.model.cls_heads:
            found.append("model.cls_heads: the data has no labels for such a head; leave it out")
        if self.model.mlm_output_weights_use_proj:
            found.append("model.mlm_output_weights_use_proj=True: has no effect here; leave it out")
        try:
            feed_forward_activation(self.model.mlm_activation)
        except ValueError:
            found.append(f"model.mlm_activation={self.model.mlm_activation}: no such activation; try gelu")
        return found

    def compared_by(self, trainer):
        return "loss", -1  # finer than the accuracy

    def next_command(self, model_dir):
        beside = os.path.join(os.path.dirname(model_dir), "classify")
        return (
            f"shatter train --experiment=shatter/classify --data_dir=my_labels "
            f"--init_checkpoint={shlex.quote(model_dir)} --model_dir={shlex.quote(beside)}"
        )

    def sample_inputs(self, tokenizer, length):
        path = self.validation_data.input_path
        shard = Corpus.read(path).validation[0]
        records = tf.data.TFRecordDataset(os.path.join(path, shard.file))
        example = tf.train.Example.FromString(next(iter(records)).numpy())

        ids = example.features.feature["ids"].int64_list.value
        ids = tf.constant([[*ids[:-1][: length - 1], ids[-1]]], tf.int32)
        return dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))


@task_factory.register_task_cls(PretrainConfig)
class PretrainTask(BaseTask):
    """Masked-LM pretraining of any family of encoders, on the same packed rows."""

    loader_class = PretrainDataLoader

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        model = models.BertPretrainerV2(
            encoder_network=build_encoder(config.encoder, use_pooler=False),
            mlm_activation=feed_forward_activation(config.mlm_activation),
            mlm_initializer=tf_keras.initializers.TruncatedNormal(stddev=config.mlm_initializer_range),
        )
        model(model.inputs)  # builds the masked-LM head, so that a checkpoint can be compared with it
        return model

    def build_loader(self, params):
        return self.loader_class(params, self.data and self.data.of(params))  # it has ids, and needs no tokenizer

    def pretrained_parts(self, model):
        return dict(encoder=model.encoder_network, masked_lm=model.masked_lm)

    def weights(self, inputs):
        return dict(loss=tf.reduce_sum(inputs["masked_lm_weights"]))

    def loss_sums(self, inputs, outputs):
        losses = tf_keras.losses.sparse_categorical_crossentropy(
            inputs["masked_lm_ids"], tf.cast(outputs["mlm_logits"], tf.float32), from_logits=True
        )
        return dict(loss=tf.reduce_sum(losses * inputs["masked_lm_weights"]))

    def build_metrics(self, training=None):
        return [tf_keras.metrics.SparseCategoricalAccuracy("masked_lm_accuracy")]

    def process_metrics(self, metrics, labels, model_outputs):
        for metric in metrics:
            metric.update_state(labels["masked_lm_ids"], model_outputs["mlm_logits"], labels["masked_lm_weights"])

    def learning_problem(self, loss):
        corpus = self.data.train if self.data else Corpus.read(self.task_config.train_data.input_path)
        entropy = corpus.unigram_entropy
        if loss <= entropy - 0.1:
            return None
        only_this = loss < entropy + 0.1
        learned = "how frequent each wordpiece is and nothing else" if only_this else "not even how frequent each is"
        return (
            f"the loss is {loss:.3f}, and the entropy of single wordpieces {entropy:.3f}: so far the model has learned "
            f"{learned}. Try another learning rate, a longer warm-up or norm_first=true"
        )

    def predict(self, model, inputs):
        encoder = model.encoder_network
        outputs = encoder(inputs, training=False)["sequence_output"]
        vectors = encoder.text_vectors(outputs, inputs["input_mask"])
        return dict(sequence_output=tf.cast(outputs, tf.float32), embedding=vectors)

    def signatures(self, model, tokenizer):
        """Adds `fill_mask`, from `text` with [MASK] to each one's likeliest wordpieces; the default is `embed`."""
        signatures = super().signatures(model, tokenizer)

        def encode(text):
            inputs = tokenizer.encode_with_masks(text, self.task_config.train_data.seq_length)
            masks = _places(inputs["input_word_ids"], tokenizer.mask_id)
            return dict(inputs, masked_lm_positions=masks.to_tensor()), masks

        def predict(inputs):
            return dict(logits=tf.cast(model(inputs, training=False)["mlm_logits"], tf.float32))

        fill_mask = Signature(strings("text"), encode, predict, functools.partial(_candidates, tokenizer))
        return {"serving_default": signatures["embed"], **signatures, "fill_mask": fill_mask}


def _places(ids: tf.RaggedTensor, wanted: int) -> tf.RaggedTensor:
    """Returns where in each row of `ids`, [B, L], one is `wanted`: ragged int32 [B, found]."""
    rows = ids.value_rowids()
    places = tf.range(tf.size(rows, tf.int64)) - tf.gather(ids.row_starts(), rows)
    places = ids.with_flat_values(tf.cast(places, tf.int32))
    return tf.ragged.boolean_mask(places, ids.with_flat_values(ids.flat_values == wanted))


def _candidates(tokenizer: Tokenizer, outputs: dict[str, tf.Tensor], masks: tf.RaggedTensor) -> dict[str, tf.Tensor]:
    """Returns the likeliest wordpieces for each [MASK], likeliest first.

    Args:
      tokenizer: of the model's vocabulary.
      outputs: `logits` at the masks, float32 [B, masks, vocabulary].
      masks: their places, ragged [B, masks].

    Returns:
      `tokens`, string [B, masks, candidates], and `probabilities`, float32. Where a text has fewer masks than another
      of its batch, tokens are empty and probabilities 0.
    """
    # The embedding table has rows beyond the vocabulary, and special tokens are not answers.
    logits = outputs["logits"]
    logits = tf.where(tokenizer.is_ordinary(logits.shape[-1]), logits, -1e9)
    probabilities, ids = tf.math.top_k(tf.nn.softmax(logits), _CANDIDATES)

    is_mask = tf.ones_like(masks, tf.bool).to_tensor()[:, :, tf.newaxis]
    return dict(
        tokens=tf.where(is_mask, tokenizer.wordpieces(ids), ""),
        probabilities=tf.where(is_mask, probabilities, 0.0),
    )
