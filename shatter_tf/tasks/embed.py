"""shatter/embed: a vector for a text, near those of texts that belong to it: embeddings to search with."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory
from official.modeling import hyperparams

from shatter_tf.data import pairs
from shatter_tf.data.labelled import choose_files, label_numbers
from shatter_tf.data.pairs import PairsDataConfig, PairsDataLoader
from shatter_tf.data.report import Report
from shatter_tf.encoders.registry import EncoderConfig, build_encoder
from shatter_tf.errors import all_of, argument, collected
from shatter_tf.tasks import recipe, retrieval
from shatter_tf.tasks.base import (
    BaseTask,
    Data,
    FineTuning,
    known_vocabulary,
    refuse_tfds,
    row_weights,
    rows_of_logs,
    vocabulary_of,
)
from shatter_tf.tasks.step import gathered, without_autograph

_EXCLUDED = -1e9  # the logit of what is no candidate: its share of a softmax is 0


@dataclasses.dataclass
class ModelConfig(hyperparams.Config):
    """An encoder whose `text_vectors` are trained; its family and settings."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)


class TextVectors(tf_keras.Model):
    """An encoder: its inputs, int32 [B, L], to `text_vectors`, float32 [B, D]; or [B, T, L] to [B, T, D].

    Text t of row r is row r * T + t of the encoder, so that its dropout does not depend on how a batch is shared.

    Args:
      encoder: of any family.
    """

    def __init__(self, encoder: tf_keras.layers.Layer):
        super().__init__(name="text_vectors")
        self.encoder = encoder
        encoder(encoder.inputs)  # creates its weights

    def call(self, inputs, training=None):
        shape = inputs["input_word_ids"].shape
        if shape.rank == 2:
            return self._vectors(inputs, training)
        length = shape[2] or tf.shape(inputs["input_word_ids"])[2]
        vectors = self._vectors(
            {name: tf.reshape(inputs[name], [-1, length]) for name in self.encoder.inputs}, training
        )
        return tf.reshape(vectors, [-1, shape[1], vectors.shape[-1]])

    def _vectors(self, inputs, training):
        inputs = {name: inputs[name] for name in self.encoder.inputs}
        outputs = self.encoder(inputs, training=training)["sequence_output"]
        return self.encoder.text_vectors(outputs, inputs["input_mask"])

    @property
    def checkpoint_items(self):
        return dict(encoder=self.encoder)


@dataclasses.dataclass
class EmbedConfig(FineTuning, cfg.TaskConfig):
    """Vectors of texts, near where texts belong together; how near is told by the cosine.

    A run may have no data of its own: what `convert` writes has none.

    Attributes:
      temperature: what cosines are divided by before the softmax.
      matryoshka: sizes, smaller than the vector; as many of its first numbers are trained as vectors of their own.
      of_single_texts: whether training rows are single texts; follows from the data.
      scored: whether validation rows are pairs with a number, whose rank correlation with the cosine is then what
        counts; follows from the data.
      baseline: whether a run is compared with TF-IDF at the end of training.
    """

    whole_batches = True  # a row's negatives are the others

    temperature: float = 0.05
    matryoshka: list[int] = dataclasses.field(default_factory=list)
    of_single_texts: bool = False
    scored: bool = False
    baseline: bool = True
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    train_data: PairsDataConfig = dataclasses.field(default_factory=lambda: PairsDataConfig(is_training=True))
    validation_data: PairsDataConfig = dataclasses.field(default_factory=lambda: PairsDataConfig(is_training=False))

    @property
    def main_metric(self) -> str:
        return "spearman" if self.scored else "recall_at_10"

    @property
    def dimensions(self) -> int:
        """How many numbers a vector has."""
        encoder = self.model.encoder.get()
        return encoder.embedding_dimensions or encoder.hidden_size

    def open_data(self, data_dir, pretrained):
        config = self.replace()
        train, validation = config.train_data, config.validation_data
        refuse_tfds(config, f"{argument('data_dir')} or {argument('train_file')}")
        choose_files(train, validation, data_dir, pairs.EXTENSIONS)

        vocabulary, ((rows, note), (held_out, of_held_out)) = all_of(
            functools.partial(known_vocabulary, train, pretrained), lambda: pairs.load_both(train, validation)
        )
        config.of_single_texts = len(rows[0].texts) == 1
        config.scored = bool(held_out[0].label)
        vocabulary = vocabulary or vocabulary_of((text for row in rows for text in row.texts), train.lower_case)
        notes = list(dict.fromkeys([note, of_held_out]))
        opened = Data(rows, held_out, vocabulary, train.lower_case, notes=notes, normalizer=train.normalizer)
        if config.scored:
            with collected(opened.problems):
                label_numbers(held_out)
        return config, opened

    def recipe(self, data):
        return recipe.embedding(self, self.rows(data)[0], data.converted)

    def problems(self):
        found = []
        encoder = self.model.encoder.get()
        if not self.temperature > 0:
            found.append(f"temperature={self.temperature} is not positive")
        if bad := [size for size in self.matryoshka if not (isinstance(size, int) and 0 < size < self.dimensions)]:
            found.append(f"matryoshka={self.matryoshka}: {bad[0]} is not a size between 0 and {self.dimensions}")
        if len({*self.matryoshka}) < len(self.matryoshka):
            found.append(f"matryoshka={self.matryoshka}: a size occurs twice")
        if self.of_single_texts and not (encoder.dropout_rate or encoder.attention_dropout_rate):
            found.append(
                "train_data: single texts are learned from by two dropouts of the same one; set "
                f"task.model.encoder.{self.model.encoder.type}.dropout_rate above 0, or give pairs"
            )
        data = self.train_data
        if data.length_buckets and data.seq_length > encoder.longest_dynamic:
            found.append(
                f"seq_length={data.seq_length}: beyond {encoder.longest_dynamic} tokens this encoder needs "
                "length_buckets=false"
            )
        return found

    def sample_inputs(self, tokenizer, length):
        text = pairs.load_rows(self.validation_data)[0][0].texts[0]
        return tokenizer.pad(tokenizer.combine([tokenizer.tokenize(tf.constant([text]))], length))

    def report(self, data):
        report = Report()
        kind = {1: "texts", 2: "pairs of texts", 3: "texts with a positive and a negative"}[len(data.train[0].texts)]
        report.add_rows(len(data.train), len(data.validation), kind, data.notes)
        report.add_repeated(*([row.texts for row in part] for part in (data.train, data.validation)))
        if len({row.texts[-1] for row in data.train}) == 1:
            report.problems.append(f"{data.train[0].where}: every row has the same text; there is nothing to learn")
        # Column by column: of those in turn, a draw of every second text would see one column only.
        texts = [text for column in zip(*(row.texts for row in data.train), strict=True) for text in column]
        room = self.train_data.seq_length - 2
        report.add_lengths(texts, data.tokenizer, room, f"give a larger {argument('seq_length')}")
        return report

    def measure_baseline(self, data, most_rows=None, before=None):
        if not self.baseline:
            return None
        rows = data.validation[:most_rows]
        return retrieval.measure_tf_idf(data.train, rows, self.main_metric, self.train_data.seed, before)


def contrastive_losses(
    vectors: tf.Tensor, others: tf.Tensor, text_ids: tf.Tensor, other_ids: tf.Tensor, own: tf.Tensor, temperature: float
) -> tf.Tensor:
    """Returns InfoNCE with the negatives of the global batch, float32 [B].

        loss_i = -log(exp(cos(a_i, p_i) / temperature) / sum over candidates c of i of exp(cos(a_i, c) / temperature))

    Candidates are the row's positive p_i, and the positives and negatives of all N rows, but for those that are known
    to belong to the anchor a_i, or to be the anchor: texts equal to p_i or a_i, and the positives of equal anchors.

    Source: van den Oord et al. 2018, arXiv 1807.03748, equation 4, with the batch's own negatives as in Gao et al.
    2021, arXiv 2104.08821, equations 1 and 5. What is left out is ours: it would be pushed away by mistake.

    Args:
      vectors: of B rows, float32 [B, T, D]: anchor, positive and, if T = 3, negative.
      others: of all rows of the global batch, [N, T, D], these B among them.
      text_ids, other_ids: numbers, [B, T] and [N, T], the same for equal texts; negative ones are of no row.
      own: the places of the B rows among the N, int [B].
      temperature: positive.
    """
    number = tf.shape(others)[0]
    vectors, others = (tf.math.l2_normalize(t, axis=-1) for t in (vectors, others))
    is_own = tf.one_hot(own, number, on_value=True, off_value=False)  # [B, N]

    def compare(role: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the logits of all rows' positives or negatives, and which of them do not count, [B, N]."""
        logits = tf.matmul(vectors[:, 0], others[:, role], transpose_b=True) / temperature
        ids = other_ids[tf.newaxis, :, role]
        excluded = (ids == text_ids[:, 1:2]) | (ids == text_ids[:, :1]) | (ids < 0)
        return logits, excluded

    logits, excluded = compare(1)
    excluded |= other_ids[tf.newaxis, :, 0] == text_ids[:, :1]
    target = tf.reduce_sum(tf.where(is_own, logits, 0.0), axis=1)
    candidates = [tf.where(excluded & ~is_own, _EXCLUDED, logits)]
    if others.shape[1] > 2:
        logits, excluded = compare(2)
        candidates.append(tf.where(excluded, _EXCLUDED, logits))
    return tf.reduce_logsumexp(tf.concat(candidates, axis=1), axis=1) - target


@task_factory.register_task_cls(EmbedConfig)
class EmbedTask(BaseTask):
    """Trains the encoder's `text_vectors` to tell what belongs to a text from the rest of the batch."""

    loader_class = PairsDataLoader

    def __init__(self, params, logging_dir=None, name=None, data=None):
        super().__init__(params, logging_dir, name, data)
        self.aggregated_metrics = ("spearman",)
        if not params.scored:
            of_sizes = (f"recall_at_10/{size}" for size in params.matryoshka)
            self.aggregated_metrics = ("recall_at_1", "recall_at_10", "mrr", "ndcg_at_10", *of_sizes)

    @without_autograph
    def build_model(self):
        return TextVectors(build_encoder(self.task_config.model.encoder, use_pooler=False, use_embedding=True))

    def loss_sums(self, inputs, outputs):
        """Returns the contrastive loss, or for pairs with a score, the squared difference from the cosine.

        With `matryoshka` it is the mean over sizes (Kusupati et al. 2022, arXiv 2205.13147, equation 1 with equal
        weights): of the whole vectors, and of their first numbers.
        """
        vectors = tf.cast(outputs, tf.float32)
        weights = row_weights(inputs)
        if "scores" in inputs:
            unit = tf.math.l2_normalize(vectors, axis=-1)
            errors = tf.reduce_sum(unit[:, 0] * unit[:, 1], axis=-1) - tf.cast(inputs["scores"], tf.float32)
            return dict(loss=tf.reduce_sum(tf.square(errors) * weights))

        # Vectors and numbers of texts in one sum over replicas; float32 holds numbers up to 2^24.
        ids = tf.where(weights[:, tf.newaxis] > 0, tf.cast(inputs["text_ids"], tf.float32), -1.0)
        all_rows, own = gathered(tf.concat([vectors, ids[..., tf.newaxis]], axis=-1))
        others, other_ids = all_rows[..., :-1], all_rows[..., -1]
        sums = []
        for size in (vectors.shape[-1], *self.task_config.matryoshka):
            parts = (vectors[..., :size], others[..., :size])
            losses = contrastive_losses(*parts, ids, other_ids, own, self.task_config.temperature)
            sums.append(tf.reduce_sum(losses * weights))
        return dict(loss=tf.add_n(sums) / len(sums))

    def build_metrics(self, training=None):
        return []

    def evaluation_logs(self, inputs, outputs):
        logs = dict(vectors=tf.cast(outputs, tf.float32)[:, :2], text_ids=inputs["text_ids"][:, :2])
        if "scores" in inputs:
            logs["scores"] = tf.cast(inputs["scores"], tf.float32)
        return dict(logs, row_weights=row_weights(inputs))

    def aggregate_logs(self, state=None, step_outputs=None):
        names = ("vectors", "text_ids", *(["scores"] if self.task_config.scored else []))
        state = state or {name: [] for name in names}
        for name, values in rows_of_logs(step_outputs, *names).items():
            state[name].append(values)
        return state

    def reduce_aggregated_logs(self, aggregated_logs, global_step=None):
        logs = {name: np.concatenate(values) for name, values in aggregated_logs.items()}
        vectors = logs["vectors"]
        if self.task_config.scored:
            return dict(spearman=retrieval.spearman(logs["scores"], retrieval.cosines(vectors[:, 0], vectors[:, 1])))

        def search(size: int) -> dict[str, float]:
            unit = retrieval.unit_length(vectors[..., :size])
            return retrieval.figures(retrieval.ranks(unit[:, 0], unit[:, 1], logs["text_ids"]))

        of_sizes = {f"recall_at_10/{size}": search(size)["recall_at_10"] for size in self.task_config.matryoshka}
        return {**search(vectors.shape[-1]), **of_sizes}

    def predict(self, model, inputs):
        return dict(embedding=model(inputs, training=False))

    def signatures(self, model, tokenizer):
        signatures = super().signatures(model, tokenizer)
        return {"serving_default": signatures["embed"], **signatures}
