"""shatter/distil: a student learns from a teacher, any trained run, what it makes of texts; no labels are needed."""

import dataclasses
import io
import os
import time
from typing import ClassVar, Optional, Union

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.nlp.modeling import layers

from shatter_tf.checkpoints import best_or_latest_checkpoint, restore_pretrained
from shatter_tf.console import notice
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.data.distillation import DistilDataConfig, DistilDataLoader, padded_lengths
from shatter_tf.data.vocabulary import vocabulary_hash
from shatter_tf.encoders.registry import EncoderConfig, build_encoder, settings_of
from shatter_tf.errors import UserError, argument
from shatter_tf.files import write_whole
from shatter_tf.layers.activations import feed_forward_activation
from shatter_tf.tasks import recipe
from shatter_tf.tasks.base import TEACHER_DIR, BaseTask, Data, Teacher, row_weights
from shatter_tf.tasks.masked_lm import PretrainConfig
from shatter_tf.tasks.step import gathered, without_autograph

_SHARD_ROWS = 16_384  # of the teacher's vectors, in a file
_READ_ROWS = 128  # that the teacher reads at a time
_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass
class DistilConfig(PretrainConfig):
    """Learning from a teacher; both have one vocabulary, the teacher's, with which the corpus was prepared.

    Attributes:
      init_teacher: the teacher's model_dir.
      teacher: its encoder; follows from that, as do `teacher_tokenizer`, the hash of its vocabulary and casing, and
        `teacher_weights`, that of its checkpoint.
      cosine, similarity, tokens, masked_lm: the weights of the objectives, see `DistilTask`; 0 leaves one out.
        Wordpieces are predicted only where train_data.mask_rate hides some.
      tokens_steps: steps over which the weight of `tokens` falls to 0 in training, evenly; 0 leaves it as it is. Unset,
        all of them: token states teach much at first, and are in the way of the vector in the end (docs/log.md).
      cache_teacher: whether the teacher reads the corpus once, before the first step, and not in every step: for
        several passes. Its vectors are kept in model_dir; those of single tokens would take too much room.
      teacher_embeddings: whether the student's word vectors begin as the teacher's, projected by their principal
        components.
    """

    main_metric = "teacher_cosine"
    learning_rate: ClassVar[float] = 1e-3
    remote_hosts = False

    sanity_steps: int = 0
    init_teacher: str = ""
    teacher: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    teacher_tokenizer: str = ""
    teacher_weights: str = ""
    cosine: float = 1.0
    similarity: float = 1.0
    tokens: float = 1.0
    tokens_steps: Optional[int] = None
    masked_lm: float = 1.0
    cache_teacher: bool = False
    teacher_embeddings: bool = True
    train_data: DistilDataConfig = dataclasses.field(default_factory=lambda: DistilDataConfig(is_training=True))
    validation_data: DistilDataConfig = dataclasses.field(default_factory=lambda: DistilDataConfig(is_training=False))

    @property
    def whole_batches(self) -> bool:
        return self.similarity > 0

    @property
    def teacher_dimensions(self) -> int:
        """The width of the teacher's vectors."""
        teacher = settings_of(self.teacher)
        return teacher.embedding_dimensions or teacher.hidden_size

    def learn_from(self, teacher):
        self.init_teacher = teacher.directory
        self.teacher_weights = teacher.weights
        self.teacher = teacher.task.model.encoder.replace()
        self.teacher_tokenizer = _hash(teacher)

    def open_data(self, data_dir, pretrained):
        if not self.init_teacher:
            raise UserError(f"no teacher: give {argument('init_teacher')}, the directory of a trained run")
        config, data = super().open_data(data_dir, pretrained)
        if _hash(data) != self.teacher_tokenizer:
            data.problems.append(
                f"{config.train_data.input_path}: prepared with another vocabulary than the teacher's, or another "
                f"casing; prepare it with --vocab_file={os.path.join(self.init_teacher, VOCABULARY_FILE)}"
            )
        return config, data

    def rows(self, data):
        per_row = self.train_data.mean_length
        return tuple(int(rows * self.train_data.seq_length / per_row) for rows in super().rows(data))

    def recipe(self, data):
        return recipe.distillation(self, self.rows(data)[0])

    def follow(self, trainer):
        if self.tokens_steps is None:
            self.tokens_steps = trainer.train_steps if self.cosine or self.similarity else 0

    def problems(self):
        found = super().problems()
        if not self.init_teacher:  # which is told
            return found
        teacher = settings_of(self.teacher)
        for name in ("cosine", "similarity", "tokens", "masked_lm"):
            if getattr(self, name) < 0:
                found.append(f"{name}={getattr(self, name)} is negative; 0 leaves it out")
        if self.tokens_steps and self.tokens_steps < 0:
            found.append(f"tokens_steps={self.tokens_steps} is negative; 0 leaves the weight as it is")
        if not self.cosine and not self.similarity and (not self.tokens or self.cache_teacher):
            found.append("cosine, similarity and tokens are 0: nothing is learned from the teacher")
        if not self.cosine and not self.similarity and teacher.embedding_dimensions:
            found.append("cosine and similarity are 0: nothing else teaches the map of the teacher's vectors")
        if self.train_data.seq_length > teacher.longest:
            found.append(f"train_data.seq_length={self.train_data.seq_length}: the teacher takes {teacher.longest}")
        student = settings_of(self.model.encoder)
        dimensions = student.embedding_dimensions or student.hidden_size
        if (self.cosine or self.similarity) and dimensions != self.teacher_dimensions:
            found.append(
                f"model.encoder.{self.model.encoder.type}.embedding_dimensions={dimensions}, but the teacher's vectors "
                f"have {self.teacher_dimensions}; leave it out"
            )
        return found

    def compared_by(self, trainer):
        return self.main_metric, 1


def _hash(run: Union[Teacher, Data]) -> str:
    """Returns the SHA-256 of what a text's ids follow from."""
    return vocabulary_hash([*run.vocabulary, f"lower_case={run.lower_case}", f"normalizer={run.normalizer}"])


class Student(tf_keras.Model):
    """An encoder, and what its outputs are compared through with the teacher's.

    Args:
      encoder: the student's.
      token_map: the linear map to the teacher's token states; None where these are not learned.
      masked_lm: Model Garden's head; None where nothing is predicted.

    Returns a dict: `vectors`, float32 [B, dimensions]; with the parts, `tokens`, [B, L, the teacher's hidden size],
    and `mlm_logits`, [B, K, vocab_size].
    """

    def __init__(
        self,
        encoder: tf_keras.layers.Layer,
        token_map: Optional[tf_keras.layers.Layer],
        masked_lm: Optional[tf_keras.layers.Layer],
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.token_map = token_map
        self.masked_lm = masked_lm

    def call(self, inputs, training=None):
        h = self.encoder(inputs, training=training)["sequence_output"]
        outputs = dict(vectors=self.encoder.text_vectors(h, inputs["input_mask"]))
        if self.token_map is not None:
            outputs["tokens"] = self.token_map(h)
        if self.masked_lm is not None and "masked_lm_positions" in inputs:
            outputs["mlm_logits"] = self.masked_lm(h, masked_positions=inputs["masked_lm_positions"])
        return outputs

    @property
    def checkpoint_items(self) -> dict[str, tf_keras.layers.Layer]:
        items = dict(encoder=self.encoder, masked_lm=self.masked_lm)
        if self.token_map is not self.encoder.embedding_map:
            items["token_map"] = self.token_map
        return {name: item for name, item in items.items() if item is not None}


@task_factory.register_task_cls(DistilConfig)
class DistilTask(BaseTask):
    """Distillation of sentence vectors and token states.

    With s_i and t_i the student's and the teacher's vectors of text i, both of length 1, and h, g those of tokens:

        cosine       mean over i of  1 - s_i · t_i
        similarity   mean over i and j of  (s_i · s_j - t_i · t_j)²,  over the global batch
        tokens       mean over tokens of  |W h + b - g|² / |g|²,  of a weight that falls to 0 (ours)
        masked_lm    the masked-LM loss of what was hidden from the student, and not from the teacher

    Sources: vectors as in Reimers, Gurevych 2020 (arXiv 2004.09813), by their direction; similarities, Tung, Mori 2019
    (arXiv 1907.09682); token states through a linear map, TinyBERT (Jiao et al. 2020, arXiv 1909.10351), the last layer
    only.
    """

    loader_class = DistilDataLoader

    def __init__(self, params, logging_dir=None, name=None, data=None):
        super().__init__(params, logging_dir, name, data)
        weights = dict(cosine=params.cosine, similarity=params.similarity)
        if not params.cache_teacher:
            weights["tokens"] = params.tokens
        if params.train_data.mask_rate:
            weights["masked_lm"] = params.masked_lm
        self._factors = {name: weight for name, weight in weights.items() if weight}
        self.objectives = tuple(self._factors)
        self._vectors: dict[bool, np.ndarray] = {}
        self._teacher = None

    # === Data ===

    def build_loader(self, params):
        return self.loader_class(params, self.data and self.data.of(params), self._vectors.get(params.is_training))

    # === Model ===

    @without_autograph
    def build_model(self):
        config = self.task_config
        encoder = build_encoder(config.model.encoder, use_pooler=False, use_embedding=True)
        encoder(encoder.inputs)  # creates its weights
        masked_lm = None
        if "masked_lm" in self.objectives:
            masked_lm = layers.MaskedLM(
                embedding_table=encoder.get_embedding_table(),
                activation=feed_forward_activation(config.model.mlm_activation),
                initializer=tf_keras.initializers.TruncatedNormal(stddev=config.model.mlm_initializer_range),
                name="cls/predictions",
            )
        model = Student(encoder, self._token_map(encoder) if "tokens" in self.objectives else None, masked_lm)
        positions = dict(masked_lm_positions=tf_keras.Input((None,), dtype=tf.int32)) if masked_lm else {}
        model({**encoder.inputs, **positions})
        return model

    def _token_map(self, encoder: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        """Returns a map of the student's states to the teacher's: its embedding map, if the teacher has none.

        Then the teacher's vectors are means of its states, the student's vectors are means of mapped states, and each
        token teaches what the vector needs.
        """
        teacher = settings_of(self.task_config.teacher)
        if encoder.embedding_map is not None and not teacher.embedding_dimensions:
            return encoder.embedding_map
        return tf_keras.layers.Dense(teacher.hidden_size, dtype=tf.float32, name="token_map")

    def initialize(self, model):
        if self.task_config.init_checkpoint:
            super().initialize(model)
        elif self.task_config.teacher_embeddings:
            _project_embeddings(self._teacher, model.encoder)

    def prepare(self):
        config = self.task_config
        self._teacher = teacher = build_encoder(config.teacher, use_pooler=False)
        teacher(teacher.inputs)  # creates its weights
        checkpoint = best_or_latest_checkpoint(config.init_teacher, "init_teacher")
        restore_pretrained(dict(encoder=teacher), checkpoint, teacher, "init_teacher")
        if config.cache_teacher:
            for params in (config.train_data, config.validation_data):
                self._vectors[params.is_training] = self._read_by_teacher(params)

    def _read_by_teacher(self, params: DistilDataConfig) -> np.ndarray:
        """Returns the teacher's vectors of all rows, float16 [rows, D]; they are kept in shards in `logging_dir`."""
        loader = DistilDataLoader(params, self.data and self.data.of(params))
        number = len(loader.lengths)
        if not self.logging_dir:  # only a step is tried
            return np.zeros([number, self.task_config.teacher_dimensions], np.float16)
        weights = (variable.numpy().tobytes() for variable in self._teacher.variables)
        directory = os.path.join(self.logging_dir, TEACHER_DIR, loader.digest(*weights))
        tf.io.gfile.makedirs(directory)
        vectors = tf.function(lambda inputs: self.teach(inputs)["vectors"], autograph=False)

        shards = []
        begin = time.monotonic()
        said = begin
        for first in range(0, number, _SHARD_ROWS):
            path = os.path.join(directory, f"{first:010d}.npy")
            if not tf.io.gfile.exists(path):
                rows = np.arange(first, min(first + _SHARD_ROWS, number))
                write_whole(path, _npy(_in_batches(vectors, loader, rows)))
                if time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                    said = time.monotonic()
                    left = (said - begin) / (rows[-1] + 1) * (number - rows[-1] - 1)
                    notice(f"the teacher has read {rows[-1] + 1:,} of {number:,} texts, about {left:.0f} s left")
            with tf.io.gfile.GFile(path, "rb") as f:
                shards.append(np.load(io.BytesIO(f.read())))
        return np.concatenate(shards)

    # === Steps ===

    @without_autograph
    def train_step(self, inputs, model, optimizer, *args, **kwargs):
        if "tokens" in self.objectives and self.task_config.tokens_steps:
            past = tf.cast(optimizer.iterations, tf.float32) / self.task_config.tokens_steps
            left = tf.maximum(1.0 - past, 0.0)
            inputs = dict(inputs, tokens_share=left * tf.ones_like(row_weights(inputs)))
        return super().train_step(inputs, model, optimizer, *args, **kwargs)

    def weights(self, inputs):
        rows = tf.reduce_sum(row_weights(inputs))
        tokens = tf.reduce_sum(_token_weights(inputs)) if "tokens" in self.objectives else None
        masked = tf.reduce_sum(_masked_weights(inputs)) if "masked_lm" in self.objectives else None
        weights = dict(cosine=rows, similarity=rows, tokens=tokens, masked_lm=masked)
        return {name: weights[name] for name in self.objectives}

    def loss_sums(self, inputs, outputs):
        taught = self._taught(inputs, outputs)
        weights = row_weights(inputs)
        sums = {}
        if "cosine" in self.objectives:
            sums["cosine"] = tf.reduce_sum(weights * (1.0 - _cosines(outputs["vectors"], taught["vectors"])))
        if "similarity" in self.objectives:
            sums["similarity"] = tf.reduce_sum(
                weights * similarity_errors(outputs["vectors"], taught["vectors"], weights)
            )
        if "tokens" in self.objectives:
            errors = _token_errors(outputs["tokens"], taught["tokens"])
            if "tokens_share" in inputs:  # in training, see `train_step`
                errors *= inputs["tokens_share"][:, tf.newaxis]
            sums["tokens"] = tf.reduce_sum(errors * _token_weights(inputs))
        if "masked_lm" in self.objectives:
            losses = tf_keras.losses.sparse_categorical_crossentropy(
                inputs["masked_lm_ids"], tf.cast(outputs["mlm_logits"], tf.float32), from_logits=True
            )
            sums["masked_lm"] = tf.reduce_sum(losses * _masked_weights(inputs))
        return {name: self._factors[name] * sums[name] for name in self.objectives}

    def _taught(self, inputs: dict[str, tf.Tensor], outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the teacher's vectors and, unless these were computed before, its token states; once a step."""
        if "taught" not in outputs:
            outputs["taught"] = dict(vectors=inputs["vectors"]) if "vectors" in inputs else self.teach(inputs)
        return outputs["taught"]

    def teach(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the teacher makes of texts: `vectors`, float32 [B, D], and `tokens`, [B, L, hidden size]."""
        seen = {key: inputs[key] for key in ("input_word_ids", "input_mask", "input_type_ids")}
        if "whole_word_ids" in inputs:
            seen["input_word_ids"] = inputs["whole_word_ids"]
        h = tf.stop_gradient(self._teacher(seen, training=False)["sequence_output"])
        return dict(vectors=tf.stop_gradient(self._teacher.text_vectors(h, seen["input_mask"])), tokens=h)

    def build_metrics(self, training=None):
        return [tf_keras.metrics.Mean("teacher_cosine", dtype=tf.float32)]

    def process_metrics(self, metrics, labels, model_outputs):
        cosines = _cosines(model_outputs["vectors"], self._taught(labels, model_outputs)["vectors"])
        for metric in metrics:
            metric.update_state(cosines, row_weights(labels))

    # === Serving ===

    def predict(self, model, inputs):
        h = model.encoder(inputs, training=False)["sequence_output"]
        return dict(embedding=model.encoder.text_vectors(h, inputs["input_mask"]))

    def signatures(self, model, tokenizer):
        signatures = super().signatures(model, tokenizer)
        return {"serving_default": signatures["embed"], **signatures}


def _in_batches(function, loader: DistilDataLoader, rows: np.ndarray) -> np.ndarray:
    """Returns what `function` gives for the rows of a loader, float16 [rows, D]; rows of about the same length go
    together."""
    lengths = padded_lengths(loader.lengths, loader.params)
    order = rows[np.argsort(lengths[rows], kind="stable")]
    results = None
    for begin in range(0, len(order), _READ_ROWS):
        batch = order[begin : begin + _READ_ROWS]
        values = function(loader.encode(tf.constant(batch), tf.constant(lengths[batch].max()))).numpy()
        results = np.zeros([len(rows), values.shape[-1]], np.float16) if results is None else results
        results[batch - rows[0]] = values
    return results


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _cosines(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the cosine of each row's two vectors, float32 [B]."""
    return tf.reduce_sum(tf.math.l2_normalize(a, axis=-1) * tf.math.l2_normalize(b, axis=-1), axis=-1)


def similarity_errors(student: tf.Tensor, teacher: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Returns for each row how far its similarities with the rows of the global batch are from the teacher's.

    Args:
      student, teacher: vectors of this replica's rows, float32 [B, D].
      weights: 0 for padding rows, else 1, float32 [B].

    Returns:
      The mean over rows of (s_i · s_j - t_i · t_j)², float32 [B].

    Example:
    >>> similarity_errors(tf.constant([[1.0, 0.0], [0.0, 1.0]]), tf.constant([[1.0], [1.0]]), tf.ones([2])).numpy()
    array([0.5, 0.5], dtype=float32)
    """
    weights, _ = gathered(tf.ensure_shape(weights, student.shape[:1]))
    similarities = []
    for vectors in (student, teacher):
        vectors = tf.math.l2_normalize(vectors, axis=-1)
        similarities.append(tf.matmul(vectors, gathered(vectors)[0], transpose_b=True))
    errors = tf.square(similarities[0] - similarities[1]) * weights
    return tf.math.divide_no_nan(tf.reduce_sum(errors, axis=-1), tf.reduce_sum(weights))


def _token_weights(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns 1 for each token of a text, float32 [B, L]."""
    return tf.cast(inputs["input_mask"] > 0, tf.float32) * row_weights(inputs)[:, tf.newaxis]


def _masked_weights(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns 1 for each hidden token of a text, and 0 for what fills its row up, float32 [B, K]."""
    return inputs["masked_lm_weights"] * row_weights(inputs)[:, tf.newaxis]


def _token_errors(mapped: tf.Tensor, states: tf.Tensor) -> tf.Tensor:
    """Returns the squared distance of each token's mapped state from the teacher's, as a share of that one's length."""
    mapped, states = tf.cast(mapped, tf.float32), tf.cast(states, tf.float32)
    distances = tf.reduce_sum(tf.square(mapped - states), axis=-1)
    return tf.math.divide_no_nan(distances, tf.reduce_sum(tf.square(states), axis=-1))


def _project_embeddings(teacher: tf_keras.layers.Layer, student: tf_keras.layers.Layer) -> None:
    """Sets the student's word vectors to the teacher's, seen along their principal components.

    A student that is wider has zeros beyond. Their standard deviation is the student's initializer's, so that what else
    is embedded counts as it would.
    """
    known = teacher.get_embedding_table().numpy()
    table = student.get_embedding_table()
    rows, width = min(known.shape[0], table.shape[0]), min(known.shape[1], table.shape[1])
    known = known[:rows] - known[:rows].mean(axis=0)
    _, components = np.linalg.eigh(known.T @ known)  # ascending
    projected = known @ components[:, ::-1][:, :width]

    values = table.numpy()
    values[:rows] = 0.0
    values[:rows, :width] = projected * (student.config.initializer_range / projected.std())
    table.assign(values)
    notice(f"the student's word vectors begin as the teacher's, along {width} principal components")
