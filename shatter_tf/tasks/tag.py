"""shatter/tag: a tag for each word of a sentence."""

import dataclasses
import functools
from typing import Optional

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.modeling import hyperparams
from official.nlp.modeling import models

from shatter_tf.data import labelled
from shatter_tf.data.entities import continued, entities_of, is_iob, is_iob2, words_of
from shatter_tf.data.report import Report
from shatter_tf.data.tagging import (
    EXTENSIONS,
    NO_TAG,
    TaggingDataConfig,
    TaggingDataLoader,
    cut_words,
    read_sentences,
    tag_ids,
    untagged,
)
from shatter_tf.encoders.registry import EncoderConfig, build_encoder_for_head
from shatter_tf.errors import all_of, argument, collected
from shatter_tf.tasks.base import BaseTask, Data, known_vocabulary, label_weights, refuse_tfds, vocabulary_of
from shatter_tf.tasks.classify import label_names
from shatter_tf.tasks.signature import Signature, strings
from shatter_tf.tasks.step import without_autograph
from shatter_tf.tasks.teaching import Taught, answers, mixed, soft_losses


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """An encoder with Model Garden's head for tokens."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    head_dropout: float = 0.1
    head_initializer_range: float = 0.02


@dataclasses.dataclass
class TagConfig(Taught, cfg.TaskConfig):
    """A tag for each word. `class_names` are the tags, which follow from the data."""

    used = (*Taught.used, "class_names")

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    class_names: Optional[list[str]] = None
    train_data: TaggingDataConfig = dataclasses.field(default_factory=lambda: TaggingDataConfig(is_training=True))
    validation_data: TaggingDataConfig = dataclasses.field(default_factory=lambda: TaggingDataConfig(is_training=False))

    @property
    def main_metric(self) -> str:
        return "f1" if is_iob(self.train_data.labels) else "accuracy"

    def open_data(self, data_dir, pretrained):
        config = self.replace()
        train, validation = config.train_data, config.validation_data
        refuse_tfds(config, f"{argument('data_dir')}, with tagged sentences, or {argument('train_file')}")
        labelled.choose_files(train, validation, data_dir, EXTENSIONS)
        train.labels = train.labels or config.class_names or []

        def load(data):
            return read_sentences(data.input_path, data.text_fields, data.label_field, train.labels)

        # One file for both is read once.
        is_one = validation.share == labelled.HELD_OUT and validation.input_path == train.input_path
        vocabulary, (sentences, note), *other = all_of(
            functools.partial(known_vocabulary, train, pretrained),
            lambda: load(train),
            *([] if is_one else [lambda: load(validation)]),
        )
        if is_one:
            sentences, held_out = labelled.hold_out(sentences)
            other_note = f"a tenth of the sentences, {len(held_out):,}, is held out, chosen by a hash of the text"
        else:
            held_out, other_note = other[0]

        # Entities' words are cut as served texts are, unless the labels lack the tags of their pieces.
        tags = {tag for sentence in sentences for tag in sentence.tags}
        of_pieces = {continued(tag) for tag in tags}
        train.at_punctuation = is_iob2(tags) and of_pieces <= {*(train.labels or of_pieces)}
        validation.at_punctuation = train.at_punctuation
        if train.at_punctuation:
            sentences, held_out = cut_words(sentences), cut_words(held_out)
            tags |= of_pieces & {tag for sentence in (*sentences, *held_out) for tag in sentence.tags}

        vocabulary = vocabulary or vocabulary_of((" ".join(s.words) for s in sentences), train.lower_case)
        notes = [note, other_note]
        opened = Data(sentences, held_out, vocabulary, train.lower_case, notes=notes, normalizer=train.normalizer)
        train.labels = label_names(train, train.input_path, tags)
        config.class_names = validation.labels = train.labels
        for part in (sentences, held_out):
            with collected(opened.problems):
                tag_ids(part, train.labels)
        with collected(opened.problems):
            rows = config.unlabelled_rows(opened)
            opened.unlabelled = untagged([row.texts[0] for row in rows], train)
        return config, opened

    def report(self, data):
        report = Report()
        report.add_rows(len(data.train), len(data.validation), "sentences", data.notes)
        tags = [[tag for sentence in part for tag in sentence.tags] for part in (data.train, data.validation)]
        if is_iob2({tag for part in tags for tag in part}):
            tags = [[tag[2:] for tag in part if tag.startswith("B-")] for part in tags]
        report.add_labels(*tags)
        parts = (data.train, data.validation, data.unlabelled)
        texts, held_out, unlabelled = ([" ".join(sentence.words) for sentence in part] for part in parts)
        report.add_repeated([*texts, *unlabelled], held_out)
        room = self.train_data.seq_length - 2
        report.add_lengths(texts, data.tokenizer, room, f"give a larger {argument('seq_length')}")
        return report

    def problems(self):
        rate = self.model.head_dropout
        found = [] if 0 <= rate < 1 else [f"model.head_dropout={rate} is not in [0, 1)"]
        return found + self.problems_of_teaching()

    def problems_with(self, teacher):
        found = super().problems_with(teacher)
        if not found and teacher.task.train_data.at_punctuation != self.train_data.at_punctuation:
            found.append(f"{argument('init_teacher')}={teacher.directory}: it was trained on words cut in another way")
        return found


@task_factory.register_task_cls(TagConfig)
class TagTask(BaseTask):
    """Tagging with Model Garden's head; each word's tag is predicted from its first wordpiece.

    Words are scored by accuracy. Where tags mark entities (B-X, I-X, O), these are scored by seqeval's F1, precision
    and recall, other tags by the mean of their F1. The F1 of each type of entity, or of each tag, is "f1/NAME".
    """

    loader_class = TaggingDataLoader

    def __init__(self, params, logging_dir=None, name=None, data=None):
        super().__init__(params, logging_dir, name, data)
        self._answers: Optional[list[np.ndarray]] = None
        self._is_iob = is_iob(params.class_names)
        more = ("f1", "precision", "recall") if self._is_iob else ("macro_f1",)
        self.aggregated_metrics = (*more, "accuracy")

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

    def prepare(self):
        if self.data is None or self.data.teacher is None:
            return

        def of_row(outputs, batch, i):
            return outputs["tag_probabilities"][i][batch["label_ids"][i] != NO_TAG]

        self._answers = answers(self.data.teacher, [*self.data.train, *self.data.unlabelled], of_row)

    def build_loader(self, params):
        if self._answers is None or not params.is_training:
            return super().build_loader(params)
        data = self.data
        return self.loader_class(params, data.train, data.tokenizer, data.unlabelled, self._answers)

    def weights(self, inputs):
        has_tag, has_teacher = self._known(inputs)
        return dict(loss=tf.reduce_sum(tf.cast(has_tag | has_teacher, tf.float32)))

    def loss_sums(self, inputs, outputs):
        has_tag, has_teacher = self._known(inputs)
        logits = tf.cast(outputs["logits"], tf.float32)
        losses = tf_keras.losses.sparse_categorical_crossentropy(
            tf.maximum(inputs["label_ids"], 0), logits, from_logits=True
        )
        if "taught" in inputs:
            soft = soft_losses(logits, inputs["taught"], self.task_config.teacher_temperature)
            losses = mixed(losses, soft, has_tag, has_teacher, self.task_config.teacher_share)
        return dict(loss=tf.reduce_sum(losses * tf.cast(has_tag | has_teacher, tf.float32)))

    def _known(self, inputs: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns whether each token is a word's first with a tag, and with a teacher's answer, bool [B, L]."""
        has_tag = self._tags(inputs) != NO_TAG
        if "taught" not in inputs:
            return has_tag, tf.zeros_like(has_tag)
        return has_tag, tf.reduce_any(inputs["taught"] > 0, axis=-1)

    def _tags(self, inputs):
        """Returns the labels, with NO_TAG in rows without."""
        return tf.where(label_weights(inputs)[:, tf.newaxis] > 0, inputs["label_ids"], NO_TAG)

    def build_metrics(self, training=None):
        return [tf_keras.metrics.SparseCategoricalAccuracy("accuracy")] if training else []

    def process_metrics(self, metrics, labels, model_outputs):
        tags = self._tags(labels)
        for metric in metrics:
            metric.update_state(tf.maximum(tags, 0), model_outputs["logits"], sample_weight=tags != NO_TAG)

    def evaluation_logs(self, inputs, outputs):
        predicted = tf.argmax(outputs["logits"], axis=-1, output_type=tf.int32)
        return dict(predict_ids=predicted, label_ids=self._tags(inputs))

    def aggregate_logs(self, state=None, step_outputs=None):
        # Sentence by sentence: entities do not run on.
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
        from seqeval import metrics as of_entities  # here, because they take long, and training does not need them
        from sklearn import metrics as of_words

        predicted, labels = (aggregated_logs[key] for key in ("predict_class", "label_class"))
        if self._is_iob:
            report = of_entities.classification_report(labels, predicted, output_dict=True, zero_division=0)
            of_all = report["micro avg"]
            kinds = sorted({tag[2:] for tags in labels for tag in tags if tag != "O"})
            return dict(
                f1=of_all["f1-score"],
                precision=of_all["precision"],
                recall=of_all["recall"],
                accuracy=of_entities.accuracy_score(labels, predicted),
                **{f"f1/{kind}": report[kind]["f1-score"] for kind in kinds},
            )

        predicted, labels = np.concatenate(predicted), np.concatenate(labels)
        macro = of_words.f1_score(labels, predicted, average="macro", zero_division=0)
        tags = np.unique(labels)
        each = of_words.f1_score(labels, predicted, average=None, labels=tags, zero_division=0)
        return dict(macro_f1=macro, accuracy=np.mean(predicted == labels)) | {
            f"f1/{tag}": value for tag, value in zip(tags, each, strict=True)
        }

    def predict(self, model, inputs):
        logits = model(inputs, training=False)["logits"]
        return dict(tag_probabilities=tf.nn.softmax(tf.cast(logits, tf.float32)))

    def signatures(self, model, tokenizer):
        signatures = super().signatures(model, tokenizer)

        data = self.task_config.train_data

        def encode(text):
            text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
            words, *places = words_of(text, data.at_punctuation) if self._is_iob else (tf.strings.split(text),)
            inputs, first = tokenizer.encode_words(words, data.seq_length)
            return inputs, (words, first, *places)

        predict = signatures["token_ids"].predict
        return {"serving_default": Signature(strings("text"), encode, predict, self.tags_of_words), **signatures}

    def tags_of_words(self, outputs: dict[str, tf.Tensor], rest: tuple[tf.RaggedTensor, ...]) -> dict[str, tf.Tensor]:
        """Returns each word's likeliest tag, padded to the text with the most words; and entities, if tags mark them.

        Args:
          outputs: `tag_probabilities`, float32 [B, L, tags].
          rest: the words, ragged strings [B, words]; the places of their first wordpieces, without those that are cut
            off; and where tags mark entities, the characters at which words begin and end.

        Returns:
          `words` and `tags`, string [B, words]; and `probabilities`, float32 [B, words]. Padding and words that are cut
          off have the tag "" and the probability 0. Where tags mark entities, also what `entities_of` returns.
        """
        words, first, *places = rest
        words = words.to_tensor()
        is_tagged = tf.sequence_mask(first.row_lengths(), tf.shape(words)[1])

        probabilities = tf.gather(outputs["tag_probabilities"], first.to_tensor(), batch_dims=1)
        missing = tf.shape(words)[1] - tf.shape(probabilities)[1]
        probabilities = tf.pad(probabilities, [[0, 0], [0, missing], [0, 0]])
        ids = tf.argmax(probabilities, axis=-1)
        probabilities = tf.reduce_max(probabilities, axis=-1)
        classes = self.task_config.class_names
        answers = dict(
            words=words,
            tags=tf.where(is_tagged, tf.gather(tf.constant(classes), ids), ""),
            probabilities=tf.where(is_tagged, probabilities, 0.0),
        )
        if not places:
            return answers

        of_words = (ids, probabilities, *(place.to_tensor() for place in places))
        ids, probabilities, starts, ends = (tf.boolean_mask(values, is_tagged) for values in of_words)
        rows = tf.where(is_tagged)[:, 0]
        number = tf.shape(words, tf.int64)[0]
        return answers | entities_of(classes, ids, probabilities, rows, starts, ends, number)
