"""Questions with contexts from files in SQuAD's format, versions 1.1 and 2.0, as batches of windows.

A context that does not fit beside its question is read in windows, as BERT does it: [CLS] question [SEP] window
[SEP]. Windows come in the order of `batches.order_of_rows`: what a step sees is a pure function of (data, seed, step).
Tokens, spans and windows are computed at the start; batches are laid out when they are due.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import unicodedata
from collections.abc import Iterator
from typing import Optional

import numpy as np
import tensorflow as tf
from official.nlp.data import data_loader_factory
from official.nlp.tools import squad_evaluate_v1_1, squad_evaluate_v2_0

from shatter_tf.data import labelled, streams
from shatter_tf.data.batches import TextDataConfig, batches_of_rows
from shatter_tf.data.labelled import open_tfds
from shatter_tf.data.streams import whole_characters
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError, argument

# One answer in this many may be misplaced. Public files have a few; more mean that offsets are counted in another way.
_MOST_MISPLACED = 100
_BATCH = 1024  # strings that are tokenized at a time
_FORMAT = '{"data": [{"paragraphs": [{"context": "…", "qas": [{"id": "…", "question": "…", "answers": […]}]}]}]}'
_KINDS = {str: "text", list: "a list", int: "a whole number"}


@dataclasses.dataclass
class QuestionAnsweringDataConfig(TextDataConfig):
    """Questions and their contexts as batches of windows.

    Attributes:
      input_path: a file in SQuAD's format, version 1.1 or 2.0; or empty, with `tfds_name` (and `tfds_split`,
        `tfds_data_dir`) set: squad/v1.1, squad/v2.0, or what has their features.
      is_training: windows shuffled, endlessly; or in order, once.
      seq_length: tokens of [CLS] question [SEP] window [SEP]; shorter ones are padded.
      share: which of the questions are meant: all, held_out, those of a tenth of the contexts, or not_held_out.
      doc_stride: tokens from the beginning of one window to that of the next; at most a window's length counts.
      max_query_length: longest question in tokens; longer ones are cut.
    """

    seq_length: int = 384
    share: str = labelled.ALL
    doc_stride: int = 128
    max_query_length: int = 64

    def problems(self) -> list[str]:
        """Returns a line for everything that would fail later."""
        positive = ("doc_stride", "max_query_length")
        return super().problems() + [
            f"{name}={getattr(self, name)} is not positive" for name in positive if getattr(self, name) < 1
        ]


@dataclasses.dataclass
class Question:
    """One question.

    Attributes:
      id: as in the file.
      text: of the question.
      context: number of its context.
      answers: texts, any of which is right; empty when the context does not answer it.
      span: characters of the context, [begin, end), of the first answer; None without answers, or when no
        answer's text stands at its answer_start.
    """

    id: str
    text: str
    context: int
    answers: tuple[str, ...]
    span: Optional[tuple[int, int]]


@dataclasses.dataclass
class Squad:
    """What a file holds; `misplaced` are the ids of questions with answers whose texts do not stand at answer_start."""

    path: str
    contexts: list[str]
    questions: list[Question]
    misplaced: list[str]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def some_unanswerable(self) -> bool:
        return not all(question.answers for question in self.questions)


def _get(item, key: str, kind: type, where: str):
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: no {key} that is {_KINDS[kind]}; SQuAD's format is {_FORMAT}")
    return whole_characters(value) if kind is str else value


def read_squad(path: str) -> Squad:
    """Returns what a file in SQuAD's format holds, version 1.1 or 2.0.

    An answer may be composed where its context is decomposed, or the other way round, and its answer_start may count
    the characters of either. One whose text does not stand at its answer_start has no span; if that is more than 1
    answer in 100, the file is refused.

    Raises:
      UserError: naming the file and the question, for that; for a field that is missing or of another type; for a
        question that has no answers and does not say is_impossible, or has both; for an id that occurs twice; and for a
        file that is missing, not JSON or without questions.
    """
    try:
        content = json.loads("\n".join(streams.read_lines(path)))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{path}: not JSON ({error})") from error
    return _squad(content, path)


def load_squad(params: QuestionAnsweringDataConfig) -> Squad:
    """Returns what the file or the TensorFlow Datasets split that a config names holds; raises UserError."""
    if not params.tfds_name:
        squad = read_squad(params.input_path)
        return squad if params.share == labelled.ALL else hold_out(squad)[params.share == labelled.HELD_OUT]
    source = f"tfds_name={params.tfds_name}, tfds_split={params.tfds_split}"
    dataset, info = open_tfds(params)
    if not {"id", "context", "question", "answers"} <= set(info.features):
        raise UserError(f"{source}: its features are {', '.join(info.features)}, not those of squad/v1.1 or squad/v2.0")
    asked = {}
    for example in dataset.as_numpy_iterator():
        answers = zip(example["answers"]["text"], example["answers"]["answer_start"], strict=True)
        qa = {name: example[name].decode("utf-8", "replace") for name in ("id", "question")}
        qa["answers"] = [dict(text=text.decode("utf-8", "replace"), answer_start=int(start)) for text, start in answers]
        qa["is_impossible"] = bool(example.get("is_impossible", False))
        asked.setdefault(example["context"].decode("utf-8", "replace"), []).append(qa)
    paragraphs = [dict(context=context, qas=qas) for context, qas in asked.items()]
    return _squad(dict(data=[dict(paragraphs=paragraphs)]), source)


def hold_out(squad: Squad) -> tuple[Squad, Squad]:
    """Returns the questions to train on, and those to validate on: of a tenth of the contexts, chosen by their hash.

    Raises:
      UserError: when that leaves none for one of them.
    """
    rows = [labelled.Row((context,), str(i), squad.path) for i, context in enumerate(squad.contexts)]
    parts = []
    for part in labelled.hold_out(rows):
        numbers = {int(row.label) for row in part}
        questions = [question for question in squad.questions if question.context in numbers]
        if not questions:
            raise UserError(f"{squad.path}: too few contexts to hold some out; give {argument('dev_file')}")
        parts.append(dataclasses.replace(squad, questions=questions))
    return parts[0], parts[1]


def _squad(content, path: str) -> Squad:
    """Returns what SQuAD's JSON holds; raises UserError as `read_squad` does."""
    contexts = []
    questions = []
    misplaced = []
    ids = set()
    for context, qas, where in _paragraphs(content, path):
        contexts.append(context)
        for i, qa in enumerate(qas):
            name = _get(qa, "id", str, f"{where}.qas[{i}]")
            where_question = f"{path}: question {name!r}"
            if name in ids:
                raise UserError(f"{where_question}: the id occurs twice")
            ids.add(name)
            answers, spans = _answers(qa, context, where_question)
            misplaced += [name] * (len(answers) - len(spans))
            text = _get(qa, "question", str, where_question)
            span = spans[0] if spans else None
            questions.append(Question(name, text, len(contexts) - 1, answers, span))
    if not questions:
        raise UserError(f"{path}: no questions in it")
    number = sum(len(question.answers) for question in questions)
    if len(misplaced) * _MOST_MISPLACED > number:
        first = next(question for question in questions if question.id == misplaced[0])
        context = contexts[first.context]
        raise UserError(
            f"{path}: question {first.id!r}: the answer's text does not stand at its answer_start, as in "
            f"{len(misplaced)} of {number} answers; answer_start counts characters of the context from 0"
            + (
                "; here text and context differ in their Unicode normal forms (NFC, NFD): count in the context as it is"
                if any(_decompose(text) in _decompose(context) and text not in context for text in first.answers)
                else ""
            )
        )
    return Squad(path, contexts, questions, misplaced)


def _paragraphs(content, path: str) -> Iterator[tuple[str, list, str]]:
    """Yields each paragraph's context, its questions, and its location."""
    for i, article in enumerate(_get(content, "data", list, path)):
        for j, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}: data[{i}]")):
            where = f"{path}: data[{i}].paragraphs[{j}]"
            yield _get(paragraph, "context", str, where), _get(paragraph, "qas", list, where), where


def _answers(qa: dict, context: str, where: str) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Returns the answers' texts, and the spans of those that stand at their answer_start."""
    answers = _get(qa, "answers", list, where)
    impossible = qa.get("is_impossible", False)
    if impossible not in (False, True) or impossible == bool(answers):
        said = "says is_impossible, but has answers" if answers else "has no answers"
        raise UserError(f'{where}: it {said}; those without say "is_impossible": true')
    texts, spans = [], []
    for answer in answers:
        text = _get(answer, "text", str, where)
        begin = _get(answer, "answer_start", int, where)
        texts.append(text)
        if begin < 0 or not text.strip():
            continue
        if context.startswith(text, begin):
            spans.append((begin, begin + len(text)))
        elif (span := _span_in_other_form(text, begin, context)) is not None:
            spans.append(span)
    return tuple(texts), spans


_decompose = functools.partial(unicodedata.normalize, "NFD")


@functools.lru_cache(maxsize=1)  # a context has several questions
def _decomposed_places(context: str) -> list[int]:
    """Returns where each character of a text, and its end, is in the decomposed text."""
    return [0, *itertools.accumulate(len(_decompose(character)) for character in context)]


def _span_in_other_form(text: str, begin: int, context: str) -> Optional[tuple[int, int]]:
    """Returns the span of an answer in another normal form than its context, in characters of the context, or None.

    `begin` may count characters of the context as it is, decomposed, or composed.
    """
    places, decomposed, wanted = _decomposed_places(context), _decompose(context), _decompose(text)
    composed = unicodedata.normalize("NFC", context)
    for first in (places[min(begin, len(context))], begin, len(_decompose(composed[:begin]))):
        last = first + len(wanted)
        if decomposed.startswith(wanted, first) and not unicodedata.combining((decomposed + " ")[last]):
            span = bisect.bisect_left(places, first), bisect.bisect_left(places, last)
            if [places[place] for place in span] == [first, last]:  # else it begins or ends inside a character
                return span
    return None


def windows(
    question_lengths: tf.Tensor, context_lengths: tf.Tensor, seq_length: int, doc_stride: int, max_query_length: int
) -> dict[str, tf.Tensor]:
    """Returns the windows in which each question's context is read.

    A token may be in several windows, but a window's `own` tokens are those that it shows with more context than any
    other does: of the tokens that two windows share, the first half belongs to the first one. That is BERT's rule,
    without its bonus of a hundredth per token of the window's length.

    Args:
      question_lengths, context_lengths: tokens, int [questions].
      seq_length, doc_stride, max_query_length: as in the config; seq_length > max_query_length + 3.

    Returns:
      For each window, questions in order, int64 [windows]: `question`; `first`, the context's token with which it
      begins; `length`, in tokens; `own_begin` and `own_end`, the context's tokens that are its own; `offset`, the place
      of `first` in the sequence.

    Example:
    >>> found = windows([2], [10], seq_length=11, doc_stride=3, max_query_length=5)  # room for 6 tokens
    >>> {name: values.numpy().tolist() for name, values in found.items()}
    {'question': [0, 0, 0], 'first': [0, 3, 6], 'length': [6, 6, 4], 'own_begin': [0, 5, 8], 'own_end': [5, 8, 10],
     'offset': [4, 4, 4]}
    """
    asked = tf.minimum(tf.cast(question_lengths, tf.int64), max_query_length)
    total = tf.cast(context_lengths, tf.int64)
    room = seq_length - 3 - asked
    stride = tf.minimum(room, doc_stride)
    counts = 1 + tf.maximum(-((room - total) // stride), 0)  # what is beyond the first window, in strides, rounded up
    question = tf.repeat(tf.range(tf.size(counts, tf.int64)), counts)
    place = tf.range(tf.size(question, tf.int64)) - tf.gather(tf.cumsum(counts, exclusive=True), question)
    asked, total, room, stride, counts = (tf.gather(x, question) for x in (asked, total, room, stride, counts))
    first = place * stride
    half = (room + stride + 1) // 2  # from a window's first token to the first that belongs to the next one
    return dict(
        question=question,
        first=first,
        length=tf.minimum(room, total - first),
        own_begin=tf.where(place > 0, first - stride + half, 0),
        own_end=tf.where(place == counts - 1, total, first + half),
        offset=asked + 2,
    )


def lay_out(
    tokenizer: Tokenizer,
    question_ids: tf.Tensor,
    question_begin: tf.Tensor,
    context_ids: tf.Tensor,
    window_begin: tf.Tensor,
    window: dict[str, tf.Tensor],
    seq_length: int,
) -> dict[str, tf.Tensor]:
    """Returns [CLS] question [SEP] window [SEP], padded.

    Args:
      tokenizer: for its special tokens.
      question_ids, context_ids: of all questions and contexts, int32, each concatenated into one row that is not empty.
      question_begin, window_begin: where in these each window's question and context tokens begin, int64 [B].
      window: from `windows`, int64 [B].
      seq_length: of the result.

    Returns:
      The encoder's inputs, int32 [B, seq_length], and `may_start` and `may_end`, bool [B, seq_length]: which tokens may
      be an answer's first and last.
    """
    p = tf.range(seq_length, dtype=tf.int64)[tf.newaxis]
    question_begin, window_begin = question_begin[:, tf.newaxis], window_begin[:, tf.newaxis]
    first, length, own_begin, own_end, offset = (
        window[name][:, tf.newaxis] for name in ("first", "length", "own_begin", "own_end", "offset")
    )
    end = offset + length
    in_question, in_window = (p >= 1) & (p < offset - 1), (p >= offset) & (p < end)
    ids = tf.where(
        in_question,
        tf.gather(question_ids, tf.where(in_question, question_begin + p - 1, 0)),
        tf.gather(context_ids, tf.where(in_window, window_begin + p - offset, 0)),
    )
    separator = (p == offset - 1) | (p == end)
    ids = tf.where(in_question | in_window, ids, tf.where(separator, tokenizer.sep_id, tokenizer.pad_id))
    ids = tf.where(p == 0, tokenizer.cls_id, ids)
    token = p - offset + first
    return dict(
        input_word_ids=ids,
        input_mask=tf.cast(p <= end, tf.int32),
        input_type_ids=tf.cast((p >= offset) & (p <= end), tf.int32),
        may_start=in_window & (token >= own_begin) & (token < own_end),
        may_end=in_window,
    )


def best_spans(
    start_logits: tf.Tensor,
    end_logits: tf.Tensor,
    may_start: tf.Tensor,
    may_end: tf.Tensor,
    max_answer_length: int,
    n_best_size: int,
) -> dict[str, tf.Tensor]:
    """Returns each window's likeliest answer: the span with the highest sum of the logits at its start and end.

    Args:
      start_logits, end_logits: float [windows, L].
      may_start, may_end: where an answer may start and end, bool [windows, L].
      max_answer_length: longest answer in tokens.
      n_best_size: how many starts and ends, those with the highest logits, are considered.

    Returns:
      `start` and `end`, the span's first and last place, int32 [windows]; its `score`, float32 [windows], and the
      `null_score`, that of place 0, which stands for no answer. Where no span is allowed, `score` is -inf.

    Example:
    >>> may = tf.constant([[False, True, True, True]])
    >>> found = best_spans([[9.0, 1.0, 5.0, 0.0]], [[9.0, 8.0, 1.0, 3.0]], may, may, max_answer_length=2, n_best_size=3)
    >>> {name: values.numpy().tolist() for name, values in found.items()}
    {'start': [1], 'end': [1], 'score': [9.0], 'null_score': [18.0]}
    """

    def best(logits, allowed):
        logits = tf.where(allowed, logits, -np.inf)
        least = tf.math.top_k(logits, min(n_best_size, logits.shape[1]))[0][:, -1:]
        return tf.where(logits >= least, logits, -np.inf)

    start_logits, end_logits = tf.cast(start_logits, tf.float32), tf.cast(end_logits, tf.float32)
    length = start_logits.shape[1]
    starts, ends = best(start_logits, may_start), best(end_logits, may_end)
    longest = min(max_answer_length, length)
    ends = tf.pad(ends, [[0, 0], [0, longest - 1]], constant_values=-np.inf)
    scores = starts[:, :, tf.newaxis] + tf.stack([ends[:, i : i + length] for i in range(longest)], axis=2)
    scores = tf.reshape(scores, [-1, length * longest])  # place by place, shorter spans first
    place = tf.argmax(scores, axis=1, output_type=tf.int32)
    start = place // longest
    return dict(
        start=start,
        end=start + place % longest,
        score=tf.reduce_max(scores, axis=1),
        null_score=start_logits[:, 0] + end_logits[:, 0],
    )


def answer_scores(questions: list[Question], answers: dict[str, str], version_2_with_negative: bool) -> dict:
    """Returns exact match and F1, from 0 to 1, of answers by question id, as SQuAD's own evaluation computes them.

    Questions without an answer in `answers` do not count.
    """
    qas = [
        dict(id=question.id, answers=[dict(text=text) for text in question.answers])
        for question in questions
        if question.id in answers
    ]
    dataset = [dict(paragraphs=[dict(qas=qas)])]
    if version_2_with_negative:
        found = squad_evaluate_v2_0.evaluate(dataset, answers)
        return dict(exact_match=found["exact"] / 100, f1=found["f1"] / 100)
    found = squad_evaluate_v1_1.evaluate(dataset, answers)
    return dict(exact_match=found["exact_match"], f1=found["final_f1"])


@data_loader_factory.register_data_loader_cls(QuestionAnsweringDataConfig)
class QuestionAnsweringDataLoader:
    """Batches of windows; see the top of this file for their order.

    Training leaves out questions whose answers have no span.
    """

    def __init__(
        self,
        params: QuestionAnsweringDataConfig,
        squad: Optional[Squad] = None,
        tokenizer: Optional[Tokenizer] = None,
    ):
        self.params = params
        squad = squad or load_squad(params)
        self.questions = [q for q in squad.questions if not params.is_training or q.span or not q.answers]
        self.tokenizer = tokenizer or Tokenizer(
            read_vocabulary(params.vocab_file), params.lower_case, params.normalizer
        )
        self._contexts = [context.encode() for context in squad.contexts]
        ids, begins, ends = (
            tf.concat(parts, axis=0)
            for parts in zip(*map(self.tokenizer.tokenize_with_offsets, _batches(self._contexts)), strict=True)
        )
        self._begins, self._ends = begins.flat_values.numpy(), ends.flat_values.numpy()
        asked = tf.concat(
            [self.tokenizer.tokenize(batch) for batch in _batches([q.text.encode() for q in self.questions])], axis=0
        )
        context = np.array([question.context for question in self.questions])
        table = windows(
            asked.row_lengths(),
            tf.gather(ids.row_lengths(), context),
            params.seq_length,
            params.doc_stride,
            params.max_query_length,
        )
        self.windows = {name: values.numpy() for name, values in table.items()}
        # Tokens of all contexts are in one row, and so are those of all questions.
        self._context_begin, self._context_end = ids.row_starts().numpy()[context], ids.row_limits().numpy()[context]
        question = self.windows["question"]
        self._question_begin = asked.row_starts().numpy()[question]
        self._window_begin = self._context_begin[question] + self.windows["first"]
        self._question_ids, self._context_ids = (
            np.append(tokens.flat_values.numpy(), np.int32(self.tokenizer.pad_id)) for tokens in (asked, ids)
        )
        self._places = self._answer_places()

    def _answer_places(self) -> np.ndarray:
        """Returns the first and the last place of the answer in each window, int32 [windows, 2]; 0 where it is not."""
        tokens = np.array([self._answer_tokens(number) for number in range(len(self.questions))])
        first, length, offset = (self.windows[name][:, np.newaxis] for name in ("first", "length", "offset"))
        tokens = tokens[self.windows["question"]]
        inside = np.all((tokens >= first) & (tokens < first + length), axis=1, keepdims=True)
        return np.where(inside, tokens - first + offset, 0).astype(np.int32)

    def _answer_tokens(self, number: int) -> tuple[int, int]:
        """Returns the first and the last token of the context that a question's answer overlaps, or (-1, -1)."""
        question = self.questions[number]
        if question.span is None:
            return -1, -1
        context = self._contexts[question.context].decode()
        begin, end = (len(context[:place].encode()) for place in question.span)
        tokens = slice(self._context_begin[number], self._context_end[number])
        first = np.searchsorted(self._ends[tokens], begin, side="right")
        last = np.searchsorted(self._begins[tokens], end, side="left") - 1
        return (first, last) if first <= last else (-1, -1)

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, L]; `start_positions` and `end_positions`, int32 [B], 0 where the
        window does not hold the answer; and in evaluation `window`, int64 [B], `may_start` and `may_end`, bool [B, L],
        for `best_spans`, and `row_weights`, see `batches_of_rows`.
        """
        params = self.params
        # Tensors made once: a function would copy arrays into itself.
        table = {name: tf.constant(values) for name, values in self.windows.items()}
        begins = tf.constant(self._question_begin), tf.constant(self._window_begin)
        question_ids, context_ids = tf.constant(self._question_ids), tf.constant(self._context_ids)
        places = tf.constant(self._places)

        def encode(rows):
            question_begin, window_begin = (tf.gather(x, rows) for x in begins)
            window = {name: tf.gather(values, rows) for name, values in table.items()}
            batch = lay_out(
                self.tokenizer, question_ids, question_begin, context_ids, window_begin, window, params.seq_length
            )
            start, end = tf.unstack(tf.gather(places, rows), axis=1)
            batch.update(start_positions=start, end_positions=end)
            if params.is_training:
                del batch["may_start"], batch["may_end"]
                return batch
            return dict(batch, window=rows)

        return batches_of_rows(len(self._places), encode, params, input_context, start_step)

    def text(self, window: int, start: int, end: int) -> str:
        """Returns the text of the context from place `start` to place `end` of a window."""
        first = self._window_begin[window] - self.windows["offset"][window]
        context = self._contexts[self.questions[self.windows["question"][window]].context]
        return context[self._begins[first + start] : self._ends[first + end]].decode()

    def answers(
        self, spans: dict[str, np.ndarray], null_score_diff_threshold: Optional[float] = None
    ) -> dict[str, str]:
        """Returns the answer to each question by its id: the best span of its windows.

        Args:
          spans: from `best_spans`, for the windows that `window` names, in any order.
          null_score_diff_threshold: the answer is empty where the lowest null score of the windows exceeds the best
            score by more than this. None always answers.
        """
        order = np.argsort(spans["window"], kind="stable")
        question = self.windows["question"][spans["window"][order]]
        found = {}
        for number, group in itertools.groupby(zip(question, order, strict=True), key=lambda pair: pair[0]):
            rows = np.array([row for _, row in group])
            row = rows[np.argmax(spans["score"][rows])]
            best, null = spans["score"][row], spans["null_score"][rows].min()
            unanswered = null_score_diff_threshold is not None and null - best > null_score_diff_threshold
            empty = unanswered or best == -np.inf
            place = spans["window"][row], spans["start"][row], spans["end"][row]
            found[self.questions[number].id] = "" if empty else self.text(*place)
        return found


def _batches(texts: list[bytes]) -> list[tf.Tensor]:
    return [tf.constant(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
