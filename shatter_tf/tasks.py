"""Model Garden's tasks, with what they lack: losses that are exact, restores that are strict, data that resumes."""

import dataclasses
from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.nlp.configs import bert, encoders
from official.nlp.data import data_loader_factory
from official.nlp.modeling import models
from official.nlp.tasks import masked_lm, sentence_prediction

from shatter_tf import encoder as _  # noqa: F401  binds ShatterEncoder to ShatterConfig
from shatter_tf.baselines import BertBaseline, BertConfig
from shatter_tf.checkpoints import restore_pretrained
from shatter_tf.config import ShatterConfig
from shatter_tf.data.labelled import LabelledDataConfig
from shatter_tf.data.pretraining import PretrainDataConfig


@dataclasses.dataclass
class EncoderConfig(encoders.EncoderConfig):
    """Shatter (`type="any"`, Model Garden's word for an encoder of one's own) or its rival (`type="bert"`)."""

    type: str = "any"
    any: ShatterConfig = dataclasses.field(default_factory=ShatterConfig)
    bert: BertConfig = dataclasses.field(default_factory=BertConfig)


def build_encoder(config: EncoderConfig, use_pooler: bool) -> tf_keras.layers.Layer:
    """Returns the encoder that `config` describes; raises ValueError for types other than those two."""
    if config.type not in ("any", "bert"):
        raise ValueError(f"encoder.type={config.type} cannot keep packed documents apart; use any or bert")
    settings = config.get()
    encoder = settings.BUILDER(settings)
    if isinstance(encoder, BertBaseline) and not use_pooler:
        encoder.freeze_pooler()
    return encoder


@dataclasses.dataclass
class PretrainConfig(masked_lm.MaskedLMConfig):
    """Masked-LM pretraining, without next-sentence prediction.

    Attributes:
      sanity_steps: after so many steps the run warns if the loss is still the entropy of single wordpieces; 0 never.
    """

    sanity_steps: int = 1000
    model: bert.PretrainerConfig = dataclasses.field(
        default_factory=lambda: bert.PretrainerConfig(encoder=EncoderConfig(), cls_heads=[])
    )
    train_data: PretrainDataConfig = dataclasses.field(default_factory=lambda: PretrainDataConfig(is_training=True))
    validation_data: PretrainDataConfig = dataclasses.field(
        default_factory=lambda: PretrainDataConfig(is_training=False)
    )


@dataclasses.dataclass
class ClassifyConfig(sentence_prediction.SentencePredictionConfig):
    """Classification of texts or pairs of texts.

    Attributes:
      pairs: whether each input is two texts; follows from the data.
      restore_weights: False takes the vocabulary and the encoder's settings from `init_checkpoint`, but random weights:
        what the same fine-tuning reaches without pretraining.
    """

    pairs: bool = False
    restore_weights: bool = True
    model: sentence_prediction.ModelConfig = dataclasses.field(
        default_factory=lambda: sentence_prediction.ModelConfig(encoder=EncoderConfig())
    )
    train_data: LabelledDataConfig = dataclasses.field(default_factory=lambda: LabelledDataConfig(is_training=True))
    validation_data: LabelledDataConfig = dataclasses.field(
        default_factory=lambda: LabelledDataConfig(is_training=False, drop_remainder=False)
    )


class _Task:
    """What both tasks do otherwise than Model Garden's: data from a given step on, and dense gradients."""

    start_step = 0  # the driver sets it to the step of the checkpoint it resumes from

    def build_inputs(self, params, input_context: Optional[tf.distribute.InputContext] = None):
        loader = data_loader_factory.get_data_loader(params)
        return loader.load(input_context, self.start_step if params.is_training else 0)

    def train_step(self, inputs, model, optimizer, metrics=None):
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = self.build_losses(inputs, outputs, metrics=metrics, aux_losses=model.losses)
            # The optimizer sums gradients over replicas.
            scaled_loss = loss / tf.distribute.get_strategy().num_replicas_in_sync
        variables = model.trainable_variables
        # The word embeddings' gradient is a list of rows with repeats, whose norm clipping would misread.
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(scaled_loss, variables)]
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
        self.process_metrics(metrics or [], inputs, outputs)
        return {self.loss: loss}


@task_factory.register_task_cls(PretrainConfig)
class PretrainTask(_Task, masked_lm.MaskedLMTask):
    """Masked-LM pretraining of Shatter, or of Model Garden's BERT on the same packed rows."""

    def _build_encoder(self, encoder_cfg):
        return build_encoder(encoder_cfg, use_pooler=bool(self.task_config.model.cls_heads))

    def build_model(self, params=None):
        model = super().build_model(params)
        model(model.inputs)  # builds the masked-LM head, so that a checkpoint can be compared with it
        return model

    def build_losses(self, labels, model_outputs, metrics=None, aux_losses=None):
        # As Model Garden's, but the mean loss it reports is over predictions: its mean over batches would count the
        # last, partly empty batch of an evaluation as much as a full one.
        losses = tf_keras.losses.sparse_categorical_crossentropy(
            labels["masked_lm_ids"], tf.cast(model_outputs["mlm_logits"], tf.float32), from_logits=True
        )
        weights = labels["masked_lm_weights"]
        for metric in metrics or []:
            if metric.name == "lm_example_loss":
                metric.update_state(losses, sample_weight=weights)
        loss = tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
        return tf.add_n([loss, *(aux_losses or [])])

    def initialize(self, model):
        if self.task_config.init_checkpoint:
            items = dict(encoder=model.encoder_network, masked_lm=model.masked_lm)
            restore_pretrained(items, self.task_config.init_checkpoint, model)


@task_factory.register_task_cls(ClassifyConfig)
class ClassifyTask(_Task, sentence_prediction.SentencePredictionTask):
    """Classification with Model Garden's head, on the first token or, with `model.use_encoder_pooler`, on the mean."""

    def __init__(self, params, logging_dir=None, name=None):
        super().__init__(params, logging_dir, name=name)
        self.label_field = "label_ids"  # the base class would take the data config's, which names a TFDS feature

    def build_losses(self, labels, model_outputs, metrics=None, aux_losses=None):
        return super().build_losses(labels, model_outputs, aux_losses)

    def build_model(self):
        config = self.task_config.model
        return models.BertClassifier(
            network=build_encoder(config.encoder, use_pooler=config.use_encoder_pooler),
            num_classes=config.num_classes,
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.encoder.get().initializer_range),
            use_encoder_pooler=config.use_encoder_pooler,
        )

    def initialize(self, model):
        if not self.task_config.init_checkpoint:
            return
        if not self.task_config.restore_weights:
            print("starting from random weights, as task.restore_weights=false asks", flush=True)
            return
        items = dict(encoder=model.checkpoint_items["encoder"])
        restore_pretrained(items, self.task_config.init_checkpoint, model)
