"""Exported models: strings in, answers out, with the tokenizer inside the graph.

Every function takes and gives tensors whose first dimension is the batch, of any size, so that TF Serving may batch
requests; batches are padded to their longest text, and texts that are too long are cut. Outputs are float32, int32 or
strings.
"""

from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import task_factory

from shatter_tf.checkpoints import best_checkpoint, latest_checkpoint
from shatter_tf.command_line import UserError, first_line
from shatter_tf.data.question_answering import best_spans, lay_out, windows
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.encoder import mean_of_tokens
from shatter_tf.model_dir import Run
from shatter_tf.precision import policy_scope

# Operations of TensorFlow Text that exports may use, and the oldest TF Serving known to link them.
TEXT_OPERATIONS = ("FastBertNormalize", "FastWordpieceTokenizeWithOffsets", "NormalizeUTF8")
MINIMUM_TF_SERVING = "2.12"
CANDIDATES = 5  # for each [MASK]

_MOST_WINDOWS = 32  # windows of contexts that are read at a time
_NO_SPAN = -1e9  # the score of a span where none is allowed
INPUTS = ("input_word_ids", "input_mask", "input_type_ids")


def _strings(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None], tf.string, name)


class Servable:
    """A trained model and its tokenizer as functions, which become the signatures of a SavedModel.

    Args:
      model: from the encoder's inputs to the task's outputs.
      encoder: the part of it that gives `sequence_output`.
      tokenizer: of the model's vocabulary.
      seq_length: longest input in tokens.
      texts: names of what `serving_default` takes.

    Attributes:
      functions: by signature name. All models have `serving_default`; `embed`, from `text`, string [B], to `embedding`,
        float32 [B, D], the mean of the last layer over tokens; and `token_ids`, from the encoder's inputs, int32
        [B, L], to what `predict` gives.
    """

    def __init__(self, model: tf_keras.Model, encoder, tokenizer: Tokenizer, seq_length: int, texts=("text",)):
        self.model, self.encoder, self.tokenizer, self.seq_length = model, encoder, tokenizer, seq_length
        self.functions, self._from_strings = {}, {}
        self._add("serving_default", lambda pad, *strings: self.predict(pad(self.encode(*strings))), texts)
        self._add("embed", lambda pad, text: self.embed(pad(self.encode(text))))

        def predict(input_word_ids, input_mask, input_type_ids):
            return self.predict(dict(zip(INPUTS, (input_word_ids, input_mask, input_type_ids), strict=True)))

        ids = [tf.TensorSpec([None, None], tf.int32, name) for name in INPUTS]
        self.functions["token_ids"] = tf.function(predict, input_signature=ids, autograph=False)

    def _add(self, name: str, function, texts: tuple[str, ...] = ("text",)) -> None:
        """Adds a signature of strings.

        Long inputs are padded to the full length: only if the length is static does the encoder compute attention in
        blocks, in memory linear in the length.

        Args:
          name: of the signature.
          function: takes a function that pads what `encode` gives, and strings [B]; returns a dict of outputs.
          texts: names of the strings.
        """
        self._from_strings[name] = function
        block = getattr(getattr(self.encoder, "config", None), "query_block_size", self.seq_length)

        def in_graph(*strings):
            if self.seq_length <= block:
                return function(self.tokenizer.pad, *strings)
            return tf.cond(
                tf.reduce_max(self.encode(*strings)["input_word_ids"].row_lengths()) > block,
                lambda: function(self._pad_fully, *strings),
                lambda: function(self.tokenizer.pad, *strings),
            )

        specs = [_strings(text) for text in texts]
        self.functions[name] = tf.function(in_graph, input_signature=specs, autograph=False)

    def _pad_fully(self, encoded: dict[str, tf.RaggedTensor]) -> dict[str, tf.Tensor]:
        return self.tokenizer.pad(encoded, self.seq_length)

    def encode(self, text: tf.Tensor, pair: Optional[tf.Tensor] = None) -> dict[str, tf.RaggedTensor]:
        """Returns the ids of strings [B], ragged int32 [B, L]."""
        return self.tokenizer.encode(text, pair, self.seq_length)

    def predict(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the task's outputs for the encoder's inputs, int32 [B, L]."""
        raise NotImplementedError

    def embed(self, inputs: dict[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        """Returns `embedding`, float32 [B, D], for the encoder's inputs."""
        outputs = tf.cast(self.encoder(inputs, training=training)["sequence_output"], tf.float32)
        return dict(embedding=mean_of_tokens(outputs, inputs["input_mask"]))

    def without_graph(self, name: str, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the signature `name` should, from layers called one by one, texts padded to the full length."""
        if name == "token_ids":
            return self.predict(inputs)
        return self._from_strings[name](self._pad_fully, *inputs.values())

    def trackable(self) -> tf.__internal__.tracking.AutoTrackable:
        """Returns what to save: the variables, and TF Hub's interface.

        When called, it gives the vectors of strings, so that `hub.KerasLayer(export)` does, and can be trained. The
        layers themselves are left out: Keras would trace each of them again, which makes half of a large model's graph.
        """
        root = tf.__internal__.tracking.AutoTrackable()
        root.variables, root.trainable_variables = self.encoder.variables, self.encoder.trainable_variables
        root.regularization_losses = []
        root.all_variables = self.model.variables

        def call(text, training=False):
            if not training:
                return self.functions["embed"](text)["embedding"]
            return self.embed(self.tokenizer.pad(self.encode(text)), training=True)["embedding"]

        root.__call__ = tf.function(call, autograph=False)
        for training in (False, True):
            root.__call__.get_concrete_function(_strings("text"), training=training)
        return root


class Classifier(Servable):
    """Gives `label`, string [B], `probabilities`, float32 [B, labels], and `labels`, string [B, labels].

    Args:
      labels: names in the order of the logits.
    """

    def __init__(self, model, encoder, tokenizer, seq_length, texts, labels: list[str]):
        super().__init__(model, encoder, tokenizer, seq_length, texts)
        self._labels = labels

    def predict(self, inputs):
        names = tf.constant(self._labels)
        probabilities = tf.nn.softmax(tf.cast(self.model(inputs, training=False), tf.float32))
        return dict(
            label=tf.gather(names, tf.argmax(probabilities, axis=-1)),
            probabilities=probabilities,
            labels=tf.tile(names[tf.newaxis], [tf.shape(probabilities)[0], 1]),
        )


class Regressor(Servable):
    """Gives `score`, float32 [B]."""

    def predict(self, inputs):
        return dict(score=tf.cast(self.model(inputs, training=False), tf.float32)[:, 0])


class Tagger(Servable):
    """Takes `text`, words separated by white space, and gives for each word, padded to the text with the most:

    `words`, string [B, words], `tags`, string, and `probabilities`, float32. Padding and words beyond `seq_length`
    wordpieces have the tag "" and the probability 0. Invalid UTF-8 becomes U+FFFD in the words, too. `token_ids` gives
    `tag_probabilities`, float32 [B, L, tags].

    Args:
      tags: names in the order of the logits.
    """

    def __init__(self, model, encoder, tokenizer, seq_length, tags: list[str]):
        super().__init__(model, encoder, tokenizer, seq_length)
        self._tags = tags
        self._add("serving_default", self.tag)

    def predict(self, inputs):
        logits = self.model(inputs, training=False)["logits"]
        return dict(tag_probabilities=tf.nn.softmax(tf.cast(logits, tf.float32)))

    def tag(self, pad, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns words, tags and probabilities for strings [B]."""
        words = tf.strings.split(tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace"))
        encoded, first = self.tokenizer.encode_words(words, self.seq_length)
        probabilities = tf.gather(self.predict(pad(encoded))["tag_probabilities"], first.to_tensor(), batch_dims=1)
        words = words.to_tensor()
        there = tf.sequence_mask(first.row_lengths(), tf.shape(words)[1])
        missing = tf.shape(words)[1] - tf.shape(probabilities)[1]
        probabilities = tf.pad(probabilities, [[0, 0], [0, missing], [0, 0]])
        tags = tf.gather(tf.constant(self._tags), tf.argmax(probabilities, axis=-1))
        return dict(
            words=words,
            tags=tf.where(there, tags, ""),
            probabilities=tf.where(there, tf.reduce_max(probabilities, axis=-1), 0.0),
        )


class QuestionAnswerer(Servable):
    """Takes `question` and `context`, and gives `answer`, a part of the context, string [B].

    `start` and `end`, int32 [B], are its characters in the context; `score`, float32 [B], is how much likelier (in
    logits) it is than no answer. Where the model says that there is none, as those trained on unanswerable questions
    may, or the context is empty, the answer is "". Contexts are read in windows, all of the full length. `token_ids`
    gives `start_logits` and `end_logits`, float32 [B, L].

    Args:
      task: settings of the run, for windows and spans.
    """

    def __init__(self, model, encoder, tokenizer, seq_length, task):
        super().__init__(model, encoder, tokenizer, seq_length)
        self._task = task
        self._add("serving_default", self.answer, ("question", "context"))

    def predict(self, inputs):
        names = "start_logits", "end_logits"
        logits = self.model({name: inputs[name] for name in INPUTS}, training=False)
        return {name: tf.cast(values, tf.float32) for name, values in zip(names, logits, strict=True)}

    def answer(self, pad, question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns answers and their places for strings [B]."""
        task, data, tokenizer = self._task, self._task.train_data, self.tokenizer
        context = tf.strings.unicode_transcode(context, "UTF-8", "UTF-8", errors="replace")
        asked = tokenizer.tokenize(question)
        ids, begins, ends = tokenizer.tokenize_with_offsets(context)
        window = windows(
            asked.row_lengths(), ids.row_lengths(), self.seq_length, data.doc_stride, data.max_query_length
        )
        row = window["question"]
        question_begin = tf.gather(asked.row_starts(), row)
        window_begin = tf.gather(ids.row_starts(), row) + window["first"]
        question_ids, context_ids = (tf.concat([x.flat_values, [tokenizer.pad_id]], axis=0) for x in (asked, ids))

        def spans_of(numbers: tf.Tensor) -> dict[str, tf.Tensor]:
            question_at, window_at = tf.gather(question_begin, numbers), tf.gather(window_begin, numbers)
            some = {name: tf.gather(values, numbers) for name, values in window.items()}
            inputs = lay_out(tokenizer, question_ids, question_at, context_ids, window_at, some, self.seq_length)
            logits = self.predict(inputs).values()
            may = inputs["may_start"], inputs["may_end"]
            return best_spans(*logits, *may, task.max_answer_length, task.n_best_size)

        # At most so many windows at a time, however long the context is; the last one is repeated to fill up the rest.
        number = tf.size(row)
        rounds = -(-number // _MOST_WINDOWS)
        each = -(-number // rounds)
        numbers = tf.reshape(tf.minimum(tf.range(rounds * each), number - 1), [rounds, each])
        dtypes = dict(start=tf.int32, end=tf.int32, score=tf.float32, null_score=tf.float32)
        signature = {name: tf.TensorSpec([None], dtype) for name, dtype in dtypes.items()}
        spans = tf.map_fn(spans_of, numbers, parallel_iterations=1, fn_output_signature=signature)
        spans = {name: tf.reshape(values, [-1])[:number] for name, values in spans.items()}
        # The best window of each question: the first with the highest score.
        best = tf.math.segment_max(spans["score"], row)
        is_best = spans["score"] == tf.gather(best, row)
        places = tf.range(tf.shape(row)[0])
        chosen = tf.math.segment_min(tf.where(is_best, places, tf.shape(row)[0]), row)
        null = tf.math.segment_min(spans["null_score"], row)
        best = tf.maximum(best, _NO_SPAN)  # JSON has no infinity
        empty = best == _NO_SPAN
        if task.version_2_with_negative:
            empty |= null - best > task.null_score_diff_threshold

        def bytes_at(offsets: tf.RaggedTensor, place: tf.Tensor) -> tf.Tensor:
            token = tf.gather(window_begin - window["offset"], chosen) + tf.cast(tf.gather(place, chosen), tf.int64)
            values = tf.pad(offsets.flat_values, [[0, 1]])  # there may be none
            return tf.where(empty, 0, tf.cast(tf.gather(values, tf.where(~empty, token, 0)), tf.int32))

        begin, end = bytes_at(begins, spans["start"]), bytes_at(ends, spans["end"])
        start = tf.strings.length(tf.strings.substr(context, tf.zeros_like(begin), begin), unit="UTF8_CHAR")
        answer = tf.strings.substr(context, begin, end - begin)
        return dict(
            answer=answer,
            start=start,
            end=start + tf.strings.length(answer, unit="UTF8_CHAR"),
            score=best - null,
        )


class MaskedLanguageModel(Servable):
    """A pretrained encoder: `serving_default` is `embed`; `token_ids` gives `sequence_output`, float32 [B, L, D].

    `fill_mask` takes `text` with one [MASK] or more and gives the CANDIDATES likeliest wordpieces for each, `tokens`,
    string [B, masks, CANDIDATES], and their `probabilities`, float32, likeliest first. Where a text has fewer masks
    than another of its batch, tokens are empty and probabilities 0.
    """

    def __init__(self, model, encoder, tokenizer, seq_length):
        super().__init__(model, encoder, tokenizer, seq_length)
        for functions in (self.functions, self._from_strings):
            functions["serving_default"] = functions["embed"]
        self._add("fill_mask", lambda pad, text: self.fill_mask(pad(tokenizer.encode_with_masks(text, seq_length))))

    def predict(self, inputs):
        outputs = tf.cast(self.encoder(inputs, training=False)["sequence_output"], tf.float32)
        return dict(sequence_output=outputs, embedding=mean_of_tokens(outputs, inputs["input_mask"]))

    def fill_mask(self, inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns `tokens` and `probabilities` for the encoder's inputs, which contain masks."""
        ids = inputs["input_word_ids"]
        columns = tf.broadcast_to(tf.range(tf.shape(ids)[1])[tf.newaxis], tf.shape(ids))
        masked = tf.ragged.boolean_mask(columns, ids == self.tokenizer.mask_id)
        positions, there = masked.to_tensor(), tf.ones_like(masked, tf.bool).to_tensor()
        logits = self.model(dict(inputs, masked_lm_positions=positions), training=False)["mlm_logits"]
        # The embedding table has rows beyond the vocabulary, and special tokens are not answers.
        logits = tf.where(self.tokenizer.is_ordinary(logits.shape[-1]), tf.cast(logits, tf.float32), -1e9)
        probabilities, ids = tf.math.top_k(tf.nn.softmax(logits), CANDIDATES)
        there = there[:, :, tf.newaxis]
        return dict(
            tokens=tf.where(there, self.tokenizer.wordpieces(ids), ""),
            probabilities=tf.where(there, probabilities, 0.0),
        )


def load_model(finished: Run, model_dir: str, best: bool = True) -> tuple[tf_keras.Model, str]:
    """Returns a run's model with the weights of its best or else newest checkpoint, and that checkpoint.

    Raises:
      UserError: when there is no checkpoint, or it does not fit.
    """
    checkpoint = (best_checkpoint(model_dir) if best else None) or latest_checkpoint(model_dir)
    if not checkpoint:
        raise UserError(f"--model_dir={model_dir}: no checkpoint there; train it first")
    model = task_factory.get_task(finished.params.task).build_model()
    try:
        status = tf.train.Checkpoint(model=model).read(checkpoint).expect_partial()
        status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{checkpoint} does not fit the settings beside it: {reason}") from error
    return model, checkpoint


class _MatricesInBfloat16(tf_keras.mixed_precision.Policy):
    """Layers compute in float32, with matrices that are stored in bfloat16 and cast when they are read."""

    variable_dtype = "bfloat16"

    def __init__(self):
        super().__init__("float32")

    @staticmethod
    def create_variable(next_creator, **kwargs):
        """Leaves biases and norms in float32: they are small, and Keras's norms expect it."""
        if kwargs["dtype"] == tf.bfloat16 and len(kwargs["shape"]) < 2:
            initial_value = kwargs["initial_value"]
            kwargs.update(dtype=tf.float32, initial_value=lambda: tf.cast(initial_value(), tf.float32))
        return next_creator(**kwargs)


def in_bfloat16(task: cfg.TaskConfig, model: tf_keras.Model) -> tf_keras.Model:
    """Returns the model of `task` with its matrices rounded to bfloat16; it computes in float32."""
    policy = _MatricesInBfloat16()
    with policy_scope(policy), tf.variable_creator_scope(policy.create_variable):
        stored = task_factory.get_task(task).build_model()
    for variable, value in zip(stored.variables, model.variables, strict=True):
        variable.assign(tf.cast(value, variable.dtype))
    return stored


def load(finished: Run, model_dir: str, best: bool = True) -> tuple[Servable, str]:
    """Returns a run's Servable, and the checkpoint that its weights are from; raises as `load_model` does."""
    model, checkpoint = load_model(finished, model_dir, best)
    return servable(finished, model), checkpoint


def servable(finished: Run, model: tf_keras.Model) -> Servable:
    """Returns the Servable of a run's model."""
    task = finished.params.task
    tokenizer = Tokenizer(finished.vocabulary, finished.lower_case)
    length = task.train_data.seq_length
    if finished.experiment == "shatter/pretrain":
        return MaskedLanguageModel(model, model.encoder_network, tokenizer, length)
    common = model, model.checkpoint_items["encoder"], tokenizer, length
    if finished.experiment == "shatter/tag":
        return Tagger(*common, list(task.class_names))
    if finished.experiment == "shatter/answer":
        return QuestionAnswerer(*common, task)
    texts = ("text_a", "text_b") if task.pairs else ("text",)
    if finished.experiment == "shatter/regress":
        return Regressor(*common, texts)
    return Classifier(*common, texts, finished.labels)
