"""Model Garden's tasks, with what they lack: exact losses, strict restores, data that resumes."""

import dataclasses
from collections.abc import Callable
from typing import Optional

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import base_task, task_factory
from official.core import config_definitions as cfg
from official.nlp.configs import bert, encoders
from official.nlp.data import data_loader_factory
from official.nlp.modeling import models
from official.nlp.tasks import masked_lm, question_answering, sentence_prediction, tagging
from scipy import stats
from sklearn import metrics as sklearn_metrics

from shatter_tf.baselines import BertBaseline, BertConfig
from shatter_tf.checkpoints import restore_pretrained
from shatter_tf.command_line import nearest, say
from shatter_tf.config import ShatterConfig
from shatter_tf.data.labelled import LabelledDataConfig
from shatter_tf.data.pretraining import PretrainDataConfig
from shatter_tf.data.question_answering import QuestionAnsweringDataConfig, answer_scores, best_spans
from shatter_tf.data.tagging import NO_TAG, TaggingDataConfig, is_iob
from shatter_tf.distribution import is_chief
from shatter_tf.encoder import ShatterEncoder

# None of our code, or of Model Garden's that we use, branches on a tensor in Python. Rewriting it all to find that out
# would take most of the time from a command to its first step.
without_autograph = tf.autograph.experimental.do_not_convert

# Model Garden's optimizers that accept gradients that are already summed; Keras's loss scaling requires that.
OPTIMIZERS = ("adamw", "adam", "lamb", "lars", "sgd", "rmsprop", "adagrad")

LossScaleOptimizer = tf_keras.mixed_precision.LossScaleOptimizer

_CLASSIFIER_DROPOUT_RATE = 0.1  # BERT's, and Model Garden's


@dataclasses.dataclass
class EncoderConfig(encoders.EncoderConfig):
    """Shatter (`type="any"`, Model Garden's word for a custom encoder) or the baseline (`type="bert"`)."""

    type: str = "any"
    any: ShatterConfig = dataclasses.field(default_factory=ShatterConfig)
    bert: BertConfig = dataclasses.field(default_factory=BertConfig)


def build_encoder(config: EncoderConfig, use_pooler: bool) -> tf_keras.layers.Layer:
    """Returns the encoder that `config` describes; raises ValueError for types other than any and bert."""
    if config.type not in ("any", "bert"):
        raise ValueError(f"encoder.type={config.type} cannot keep packed documents apart; use any or bert")
    settings = config.get()
    encoder = settings.BUILDER(settings)
    if not use_pooler:
        if isinstance(encoder, BertBaseline):
            encoder.freeze_pooler()
        elif encoder.pooler is not None:
            encoder.pooler.trainable = False
    return encoder


def build_encoder_for_head(
    config: EncoderConfig, use_pooler: bool, dropout_rate: float
) -> tuple[tf_keras.layers.Layer, float]:
    """Returns an encoder, and the dropout rate that is left to Model Garden's head.

    That is 0 for Shatter, whose own dropout resumes exactly and is the same on any number of replicas. Where a head has
    a layer of its own before its output, as without `use_encoder_pooler`, Shatter's dropout comes before that layer,
    and BERT's after it.
    """
    encoder = build_encoder(config, use_pooler)
    if not isinstance(encoder, ShatterEncoder):
        return encoder, dropout_rate
    encoder.output_dropout_rate = dropout_rate
    return encoder, 0.0


@dataclasses.dataclass
class PretrainConfig(masked_lm.MaskedLMConfig):
    """Masked-LM pretraining, without next-sentence prediction.

    Attributes:
      sanity_steps: after so many steps the run warns if the loss is still the entropy of single wordpieces; never if 0.
    """

    main_metric = "masked_lm_accuracy"

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
      metric_type: what is reported beside accuracy and selects the best checkpoint: accuracy (nothing else), f1
        (binary, with the second label as the positive class) or matthews_corrcoef.
      pairs: whether each input is two texts; follows from the data.
      restore_weights: False takes the vocabulary and the encoder's settings from `init_checkpoint`, but random weights,
        which shows what the same fine-tuning reaches without pretraining.
    """

    metric_types = ("accuracy", "f1", "matthews_corrcoef")

    pairs: bool = False
    restore_weights: bool = True
    model: sentence_prediction.ModelConfig = dataclasses.field(
        default_factory=lambda: sentence_prediction.ModelConfig(encoder=EncoderConfig())
    )
    train_data: LabelledDataConfig = dataclasses.field(default_factory=lambda: LabelledDataConfig(is_training=True))
    validation_data: LabelledDataConfig = dataclasses.field(
        default_factory=lambda: LabelledDataConfig(is_training=False)
    )

    @property
    def main_metric(self) -> str:
        """What picks the best checkpoint, unless `trainer.best_checkpoint_eval_metric` is set."""
        return "cls_accuracy" if self.metric_type == "accuracy" else self.metric_type

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        if self.metric_type not in self.metric_types:
            near = nearest(self.metric_type, self.metric_types)
            return [f"metric_type={self.metric_type}: use {' or '.join(self.metric_types)}{near}"]
        if self.metric_type == "f1" and self.model.num_classes not in (0, 2):
            return [f"metric_type=f1 is of two labels, but the data has {self.model.num_classes}"]
        return []


@dataclasses.dataclass
class RegressConfig(ClassifyConfig):
    """Regression from texts or pairs of texts to a number, by least squares."""

    metric_types = ("pearson_spearman_corr",)

    metric_type: str = "pearson_spearman_corr"


@dataclasses.dataclass
class QuestionAnsweringConfig(question_answering.QuestionAnsweringConfig):
    """Extractive question answering: the answer is a span of the context.

    Attributes:
      version_2_with_negative: whether a context may hold no answer, as in SQuAD 2.0; follows from the training data.
      n_best_size, max_answer_length: as in `best_spans`.
      null_score_diff_threshold: with `version_2_with_negative`, a question is left unanswered when the null
        score exceeds that of the best answer by more than this.
    """

    main_metric = "f1"

    version_2_with_negative: bool = False
    model: question_answering.ModelConfig = dataclasses.field(
        default_factory=lambda: question_answering.ModelConfig(encoder=EncoderConfig())
    )
    train_data: QuestionAnsweringDataConfig = dataclasses.field(
        default_factory=lambda: QuestionAnsweringDataConfig(is_training=True)
    )
    validation_data: QuestionAnsweringDataConfig = dataclasses.field(
        default_factory=lambda: QuestionAnsweringDataConfig(is_training=False)
    )

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        positive = ("n_best_size", "max_answer_length")
        found = [f"{name}={getattr(self, name)} is not positive" for name in positive if getattr(self, name) < 1]
        for name in ("train_data", "validation_data"):
            data = getattr(self, name)
            room = data.seq_length - data.max_query_length - 3
            if room < self.max_answer_length:
                found.append(
                    f"{name}.seq_length={data.seq_length} leaves {room} tokens of context beside a question of "
                    f"max_query_length={data.max_query_length}, fewer than task.max_answer_length="
                    f"{self.max_answer_length}: raise the first or lower the others"
                )
        return found


@dataclasses.dataclass
class TagConfig(tagging.TaggingConfig):
    """A tag for each word. `class_names` are the tags, which follow from the data."""

    model: tagging.ModelConfig = dataclasses.field(default_factory=lambda: tagging.ModelConfig(encoder=EncoderConfig()))
    train_data: TaggingDataConfig = dataclasses.field(default_factory=lambda: TaggingDataConfig(is_training=True))
    validation_data: TaggingDataConfig = dataclasses.field(default_factory=lambda: TaggingDataConfig(is_training=False))

    @property
    def main_metric(self) -> str:
        """What picks the best checkpoint, unless `trainer.best_checkpoint_eval_metric` is set."""
        return "f1" if is_iob(self.train_data.labels) else "accuracy"

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        rate = self.model.head_dropout
        return [] if 0 <= rate < 1 else [f"model.head_dropout={rate} is not in [0, 1)"]


def row_weights(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns 1 for each row of a batch and 0 for padding rows, float32 [B]; see `batches_of_rows`."""
    rows = tf.shape(inputs["input_word_ids"])[:1]
    return inputs.get("row_weights", tf.ones(rows))


def _mean_over_rows(losses: tf.Tensor, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    weights = inputs.get("row_weights", tf.ones_like(losses))
    return tf.math.divide_no_nan(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _rows_of_logs(logs: dict[str, list[tf.Tensor]], *names: str) -> dict[str, np.ndarray]:
    """Returns what all replicas logged under `names`, without padding rows."""
    logs = {name: np.concatenate([value.numpy() for value in logs[name]]) for name in ("row_weights", *names)}
    return {name: logs[name][logs["row_weights"] > 0] for name in names}


class _Task:
    """What all tasks do differently from Model Garden's: data from a given step on, and a step on the global batch."""

    # The driver sets these: the step of the checkpoint it resumes from, and trainer.accumulation_steps.
    start_step = 0
    accumulation_steps = 1

    # The names of the metrics that `reduce_aggregated_logs` computes from all predictions of an evaluation.
    aggregated_metrics = ()

    def build_inputs(self, params, input_context: Optional[tf.distribute.InputContext] = None):
        loader = data_loader_factory.get_data_loader(params)
        return without_autograph(loader.load)(input_context, self.start_step if params.is_training else 0)

    @classmethod
    def create_optimizer(cls, optimizer_config, runtime_config=None, dp_config=None):
        """Returns Model Garden's optimizer, made to skip steps whose gradients are not finite.

        Keras's loss scaling does that. Only float16 needs the scale itself; for other precisions it stays 1. For TPUs
        Keras has none, and `train_step` skips.
        """
        optimizer = super().create_optimizer(optimizer_config, runtime_config, dp_config)
        if isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy):
            return optimizer
        if not isinstance(optimizer, LossScaleOptimizer):
            optimizer = LossScaleOptimizer(optimizer, initial_scale=1.0, dynamic_growth_steps=2**31 - 1)
        # It would check whether every gradient is finite. `train_step` makes all of them finite or none: one is enough.
        update = optimizer._loss_scale.update
        optimizer._loss_scale.update = lambda gradients: update(gradients[-1:])
        return optimizer

    def initialize(self, model):
        """Restores the encoder from `init_checkpoint`, if there is one."""
        if self.task_config.init_checkpoint:
            items = dict(encoder=model.checkpoint_items["encoder"])
            restore_pretrained(items, self.task_config.init_checkpoint, model)

    def weight(self, inputs) -> tf.Tensor:
        """Returns the weight of a batch in the mean loss of several, float32 []: its rows, by default."""
        return tf.reduce_sum(row_weights(inputs))

    @without_autograph
    def train_step(self, inputs, model, optimizer, metrics=None):
        """Takes one step down the gradient of the mean loss over the global batch.

        The step is the same however many replicas share that batch and, except for dropout, in however many parts each
        of them processes its share (`accumulation_steps`, to save memory): losses are divided by the weight of the
        whole batch, and gradients clipped after they are summed.

        Args:
          inputs: this replica's share, tensors [B, …]; accumulation_steps divides B.
          model, optimizer, metrics: from build_model, create_optimizer and build_metrics.

        Returns:
          The global batch's mean loss, float32 []; and under "finite", bool [], whether the step was taken: it is not
          when the loss or a gradient is not finite.
        """
        total_weight = _sum_over_replicas(self.weight(inputs))
        variables = model.trainable_variables
        scales = isinstance(optimizer, LossScaleOptimizer)

        def loss_and_gradients(part):
            with tf.GradientTape() as tape:
                outputs = model(part, training=True)
                loss = self.build_losses(part, outputs, aux_losses=model.losses)
                loss *= tf.math.divide_no_nan(self.weight(part), total_weight)
                scaled_loss = optimizer.get_scaled_loss(loss) if scales else loss
            # The word embeddings' gradient is a list of rows with repeats, whose norm clipping would get wrong.
            gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(scaled_loss, variables)]
            self.process_metrics(metrics or [], part, outputs)
            return [loss, *gradients]

        zeros = [tf.zeros([]), *(tf.zeros(variable.shape, variable.dtype) for variable in variables)]
        sums = _sum_over_parts(loss_and_gradients, inputs, self.accumulation_steps, zeros)
        loss, *gradients = _sum_over_replicas(sums)
        if scales:
            gradients = optimizer.get_unscaled_gradients(gradients)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        # Model Garden's AdamW would clip every replica's gradients before they are summed.
        most = getattr(optimizer.inner_optimizer if scales else optimizer, "gradient_clip_norm", 0.0)
        factor = most / tf.maximum(norm, most) if most else 1.0
        factor = tf.where(finite, factor, float("nan"))
        gradients = [(gradient * factor, variable) for gradient, variable in zip(gradients, variables, strict=True)]

        def update():
            optimizer.apply_gradients(gradients, experimental_aggregate_gradients=False)
            return optimizer.iterations.read_value()

        if scales:
            update()  # unless gradients are not finite
        else:
            tf.cond(finite, update, lambda: optimizer.iterations.assign_add(1))
        return {self.loss: loss, "finite": finite}

    @without_autograph
    def validation_step(self, inputs, model, metrics=None):
        return super().validation_step(inputs, model, metrics)


def metric_names(config: cfg.TaskConfig) -> list[str]:
    """Returns the names of what an evaluation reports; starts no device."""
    with tf.Graph().as_default():
        task = task_factory.get_task(config)
        return ["loss", *(metric.name for metric in task.build_metrics(training=False)), *task.aggregated_metrics]


def _sum_over_replicas(tensors):
    context = tf.distribute.get_replica_context()
    return tensors if context.num_replicas_in_sync == 1 else context.all_reduce("SUM", tensors)


def _sum_over_parts(function: Callable, batch: dict[str, tf.Tensor], number: int, zeros: list) -> list[tf.Tensor]:
    """Returns the sum of what `function` gives for each of `number` equal parts of a batch: a list like `zeros`."""
    if number == 1:
        return function(batch)
    batch = {key: tf.reshape(t, [number, t.shape[0] // number, *t.shape[1:]]) for key, t in batch.items()}

    def add_part(i, sums):
        terms = function({key: t[i] for key, t in batch.items()})
        return i + 1, [total + term for total, term in zip(sums, terms, strict=True)]

    return tf.while_loop(lambda i, sums: i < number, add_part, (0, zeros), maximum_iterations=number)[1]


@task_factory.register_task_cls(PretrainConfig)
class PretrainTask(_Task, masked_lm.MaskedLMTask):
    """Masked-LM pretraining of Shatter, or of Model Garden's BERT on the same packed rows."""

    def _build_encoder(self, encoder_cfg):
        return build_encoder(encoder_cfg, use_pooler=bool(self.task_config.model.cls_heads))

    @without_autograph
    def build_model(self, params=None):
        model = super().build_model(params)
        model(model.inputs)  # builds the masked-LM head, so that a checkpoint can be compared with it
        return model

    def weight(self, inputs):
        return tf.reduce_sum(inputs["masked_lm_weights"])

    def build_metrics(self, training=None):
        # Model Garden's, except for the loss: the trainer's own mean weights batches by their predictions.
        return [metric for metric in super().build_metrics(training) if metric.name != "lm_example_loss"]

    def build_losses(self, labels, model_outputs, metrics=None, aux_losses=None):
        losses = tf_keras.losses.sparse_categorical_crossentropy(
            labels["masked_lm_ids"], tf.cast(model_outputs["mlm_logits"], tf.float32), from_logits=True
        )
        weights = labels["masked_lm_weights"]
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
        self.aggregated_metrics = () if self.metric_type == "accuracy" else (self.metric_type,)

    def build_losses(self, labels, model_outputs, aux_losses=None):
        losses = tf_keras.losses.sparse_categorical_crossentropy(
            labels["label_ids"], tf.cast(model_outputs, tf.float32), from_logits=True
        )
        return tf.add_n([_mean_over_rows(losses, labels), *(aux_losses or [])])

    def process_metrics(self, metrics, labels, model_outputs):
        for metric in metrics:
            of_auc = metric.name == "auc"  # of the second of two labels
            predictions = tf.nn.softmax(model_outputs)[:, 1] if of_auc else model_outputs
            metric.update_state(labels["label_ids"], predictions, sample_weight=row_weights(labels))

    @without_autograph
    def validation_step(self, inputs, model, metrics=None):
        return {**super().validation_step(inputs, model, metrics), "row_weights": row_weights(inputs)}

    def aggregate_logs(self, state=None, step_outputs=None):
        if not self.aggregated_metrics:
            return None
        state = state or {"sentence_prediction": [], "labels": []}
        for name, values in _rows_of_logs(step_outputs, *state).items():
            state[name].append(values)
        return state

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        encoder, dropout_rate = build_encoder_for_head(
            config.encoder, config.use_encoder_pooler, _CLASSIFIER_DROPOUT_RATE
        )
        return models.BertClassifier(
            network=encoder,
            dropout_rate=dropout_rate,
            num_classes=config.num_classes,
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.encoder.get().initializer_range),
            use_encoder_pooler=config.use_encoder_pooler,
        )

    def initialize(self, model):
        if self.task_config.init_checkpoint and not self.task_config.restore_weights:
            if is_chief():
                say("starting from random weights, as task.restore_weights=false asks")
        else:
            super().initialize(model)


@task_factory.register_task_cls(RegressConfig)
class RegressTask(ClassifyTask):
    """Regression with the classification head, one number wide; the loss is the mean squared error."""

    def __init__(self, params, logging_dir=None, name=None):
        super().__init__(params, logging_dir, name=name)
        self.aggregated_metrics = ("pearson", "spearman", "pearson_spearman_corr")

    def build_losses(self, labels, model_outputs, aux_losses=None):
        errors = tf.square(tf.cast(model_outputs, tf.float32)[:, 0] - labels["label_ids"])
        return tf.add_n([_mean_over_rows(errors, labels), *(aux_losses or [])])

    def build_metrics(self, training=None):
        return []  # Model Garden's only repeats the loss

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        predictions, numbers = (
            np.concatenate(aggregated_logs[key]).astype(np.float64).reshape(-1)
            for key in ("sentence_prediction", "labels")
        )
        varied = np.ptp(predictions) > 0 and np.ptp(numbers) > 0  # nothing correlates with a constant
        pearson, spearman = (
            float(correlation(predictions, numbers)[0]) if varied else 0.0
            for correlation in (stats.pearsonr, stats.spearmanr)
        )
        return dict(pearson=pearson, spearman=spearman, pearson_spearman_corr=(pearson + spearman) / 2)


@task_factory.register_task_cls(QuestionAnsweringConfig)
class QuestionAnsweringTask(_Task, question_answering.QuestionAnsweringTask):
    """Question answering with Model Garden's head, loss and scores; windows and spans are ours."""

    aggregated_metrics = ("exact_match", "f1")

    def __init__(self, params, logging_dir=None, name=None):
        base_task.Task.__init__(self, params, logging_dir, name=name)  # Model Garden's reads the validation data here

    def build_inputs(self, params, input_context: Optional[tf.distribute.InputContext] = None):
        loader = data_loader_factory.get_data_loader(params)
        if not params.is_training:
            self._validation = loader  # knows the texts
        return without_autograph(loader.load)(input_context, self.start_step if params.is_training else 0)

    def build_losses(self, labels, model_outputs, aux_losses=None):
        losses = [
            tf_keras.losses.sparse_categorical_crossentropy(labels[key], tf.cast(logits, tf.float32), from_logits=True)
            for key, logits in zip(("start_positions", "end_positions"), model_outputs, strict=True)
        ]
        return tf.add_n([_mean_over_rows(tf.add_n(losses) / 2, labels), *(aux_losses or [])])

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        return models.BertSpanLabeler(
            network=build_encoder(config.encoder, use_pooler=False),
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.encoder.get().initializer_range),
        )

    def process_metrics(self, metrics, labels, model_outputs):
        if metrics:  # in training
            super().process_metrics(metrics, labels, model_outputs)

    @without_autograph
    def validation_step(self, inputs, model, metrics=None):
        config = self.task_config
        logits = self.inference_step(inputs, model)
        spans = best_spans(
            *logits, inputs["may_start"], inputs["may_end"], config.max_answer_length, config.n_best_size
        )
        logs = dict(window=inputs["window"], row_weights=row_weights(inputs), **spans)
        return {self.loss: self.build_losses(inputs, logits), **logs}

    def aggregate_logs(self, state=None, step_outputs=None):
        state = state or []
        state.append(_rows_of_logs(step_outputs, *(step_outputs.keys() - {self.loss, "row_weights"})))
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        config = self.task_config
        spans = {name: np.concatenate([batch[name] for batch in aggregated_logs]) for name in aggregated_logs[0]}
        threshold = config.null_score_diff_threshold if config.version_2_with_negative else None
        answers = self._validation.answers(spans, threshold)
        return answer_scores(self._validation.questions, answers, config.version_2_with_negative)


@task_factory.register_task_cls(TagConfig)
class TagTask(_Task, tagging.TaggingTask):
    """Tagging with Model Garden's head; each word's tag is predicted from its first wordpiece.

    Words are scored by accuracy. Where tags mark entities (B-X, I-X, O), these are scored by seqeval's F1, precision
    and recall, other tags by the mean of their F1.
    """

    def __init__(self, params, logging_dir=None, name=None):
        super().__init__(params, logging_dir, name=name)
        self._is_iob = is_iob(params.class_names)
        more = ("f1", "precision", "recall") if self._is_iob else ("macro_f1",)
        self.aggregated_metrics = (*more, "accuracy")

    def weight(self, inputs):
        return tf.reduce_sum(tf.cast(self._tags(inputs) != NO_TAG, tf.float32))

    def _tags(self, inputs):
        """Returns the labels, with NO_TAG in padding rows."""
        return tf.where(row_weights(inputs)[:, tf.newaxis] > 0, inputs["label_ids"], NO_TAG)

    @without_autograph
    def build_model(self):
        config = self.task_config.model
        encoder, dropout_rate = build_encoder_for_head(config.encoder, False, config.head_dropout)
        return models.BertTokenClassifier(
            network=encoder,
            num_classes=len(self.task_config.class_names),
            initializer=tf_keras.initializers.TruncatedNormal(stddev=config.head_initializer_range),
            dropout_rate=dropout_rate,
            output="logits",
        )

    def build_losses(self, labels, model_outputs, aux_losses=None):
        return tf.add_n([super().build_losses(self._tags(labels), model_outputs), *(aux_losses or [])])

    def build_metrics(self, training=None):
        return [tf_keras.metrics.SparseCategoricalAccuracy("accuracy")] if training else []

    def process_metrics(self, metrics, labels, model_outputs):
        tags = labels["label_ids"]
        for metric in metrics:
            metric.update_state(tf.maximum(tags, 0), model_outputs["logits"], sample_weight=tags != NO_TAG)

    @without_autograph
    def validation_step(self, inputs, model, metrics=None):
        outputs = self.inference_step(inputs, model)
        loss = self.build_losses(inputs, outputs)
        return {self.loss: loss, "predict_ids": outputs["predict_ids"], "label_ids": self._tags(inputs)}

    def aggregate_logs(self, state=None, step_outputs=None):
        # Sentence by sentence; Model Garden's takes the words of a batch as one sentence, and entities may run on.
        state = state or {"predict_class": [], "label_class": []}
        names = np.array(self.task_config.class_names)
        predicted, labels = (
            np.concatenate([value.numpy() for value in step_outputs[key]]) for key in ("predict_ids", "label_ids")
        )
        for sentence, tags in zip(predicted, labels, strict=True):
            if np.all(tags == NO_TAG):  # no sentence
                continue
            state["predict_class"].append(names[sentence[tags != NO_TAG]].tolist())
            state["label_class"].append(names[tags[tags != NO_TAG]].tolist())
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        if self._is_iob:
            return super().reduce_aggregated_logs(aggregated_logs, global_step)
        predicted, labels = (np.concatenate(aggregated_logs[key]) for key in ("predict_class", "label_class"))
        macro = sklearn_metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        return dict(macro_f1=macro, accuracy=np.mean(predicted == labels))
