"""Taggers: entities are judged by seqeval, other tags by scikit-learn.

A served model cuts a text into words of its own, so sentences are joined by spaces, and the words of both sides are
matched by where they begin. Words that have no match, and those beyond the model's length, are left out and counted.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from seqeval import metrics as of_entities
from sklearn import metrics as of_words

from shatter_tf.data.entities import is_iob, is_iob2
from shatter_tf.data.sentences import Sentence
from shatter_tf.data.tagging import cut_words, read_sentences
from shatter_tf.measuring.evaluation import pictures
from shatter_tf.measuring.evaluation.kind import Kind, register
from shatter_tf.measuring.evaluation.report import MISTAKES, Report, confusion, counted, scores
from shatter_tf.serving.predictor import Outputs

_AROUND = 5  # words that are shown to the left and right of a mistake
_MOST_TAGS = 60  # in whose confusion matrix something can be seen


class Word(NamedTuple):
    """A word that both sides have: its number in the sentence, its tags, and the probability of the predicted one."""

    number: int
    tag: str
    predicted: str
    probability: float


class Matched(NamedTuple):
    """The words of a sentence that both sides have, and how many others were cut off, or have no match."""

    words: list[Word]
    cut_off: int
    lost: int


@register("words", "tags", "probabilities")
@register("words", "tags", "probabilities", "entities", "starts", "ends", "scores")
class Tags(Kind):
    """A tag for each word."""

    def read(self, source):
        return read_sentences(source.path, source.text_fields, source.label_field)

    def columns(self, source, rows):
        return [dict(text=row.texts[0], words=row.words, tags=row.tags) for row in rows]

    def judge(self, rows, outputs):
        sentences = _as_the_model_cuts(rows, outputs)
        matched = _matches(rows, sentences, outputs)
        truth = [[word.tag for word in found.words] for found in matched]
        predicted = [[word.predicted for word in found.words] for found in matched]
        number = sum(map(len, truth))

        report = Report(
            dict(
                words=number,
                cut_off=sum(found.cut_off for found in matched),
                not_matched=sum(found.lost for found in matched),
            )
        )
        for what, why in (("cut_off", "beyond the model's length"), ("not_matched", "cut otherwise by the model")):
            if report.figures[what]:
                report.lines.append(f"{counted(report.figures[what], 'word')} left out: {why}")
        if not number:
            report.lines.append("no words are left to judge")
            return report

        flat = [*chain(*truth)], [*chain(*predicted)]
        report.figures["accuracy"] = float(of_words.accuracy_score(*flat))
        report.lines.append(f"accuracy {report.figures['accuracy']:.4f} of {number:,} words in {len(rows):,} sentences")
        tags = sorted({*flat[0], *flat[1]})
        if is_iob(tags):
            _add_entities(report, truth, predicted)
        else:
            _add_tags(report, tags, *flat)

        counts = confusion(*flat, tags)
        report.figures["confusion"] = dict(labels=tags, counts=counts.tolist())
        if len(tags) <= _MOST_TAGS:
            report.pictures["confusion"] = pictures.draw_confusion(tags, counts, "words", "tag")

        wrong = [
            (sentence, word)
            for sentence, found in zip(sentences, matched, strict=True)
            for word in found.words
            if word.tag != word.predicted
        ]
        wrong.sort(key=lambda pair: -pair[1].probability)
        report.add_mistakes("most confident mistakes", (_mistake(*pair) for pair in wrong[:MISTAKES]))
        return report


def _add_entities(report: Report, truth: list[list[str]], predicted: list[list[str]]) -> None:
    found = of_entities.classification_report(truth, predicted, output_dict=True, zero_division=0)

    def score(name):
        values = found[name]
        return scores([values["precision"], values["recall"], values["f1-score"]], values["support"])

    each = {name: score(name) for name in found if not name.endswith(" avg")}
    means = {name: score(f"{name} avg") for name in ("macro", "micro")}
    report.figures |= dict(entities=each, **means)
    report.add_table("entity", each, means)


def _add_tags(report: Report, tags: list[str], truth: list[str], predicted: list[str]) -> None:
    def score(average):
        return of_words.precision_recall_fscore_support(truth, predicted, labels=tags, average=average, zero_division=0)

    each = {name: scores(values, values[3]) for name, *values in zip(tags, *score(None), strict=True)}
    means = {name: scores(score(name)) for name in ("macro", "micro")}
    report.figures |= dict(tags=each, **means)
    report.add_table("tag", each, means)


def match(text: str, sentence: Sentence, outputs: Outputs) -> Matched:
    """Returns the words that a sentence shares with a model's outputs for its text.

    Example:
    >>> import numpy as np
    >>> outputs = dict(words=np.array([b"In", b"Oslo", b".", b""]), tags=np.array([b"O", b"B-LOC", b"O", b""]),
    ...     probabilities=np.array([0.9, 0.8, 0.7, 0.0]))
    >>> match("In Oslo.", Sentence(["In", "Oslo."], ["O", "B-LOC"], "dev.tsv"), outputs)
    Matched(words=[Word(number=0, tag='O', predicted='O', probability=0.9)], cut_off=0, lost=1)
    """
    words = [word.decode("utf-8", "replace") for word in outputs["words"] if word]
    found = {place: i for i, place in enumerate(_places(text, words))}

    shared: list[Word] = []
    cut = lost = 0
    for number, (place, word) in enumerate(zip(_places(text, sentence.words), sentence.words, strict=True)):
        i = found.get(place)
        if i is None or words[i] != word:
            lost += 1
        elif not outputs["tags"][i]:
            cut += 1
        else:
            predicted = outputs["tags"][i].decode("utf-8", "replace")
            shared.append(Word(number, sentence.tags[number], predicted, float(outputs["probabilities"][i])))
    return Matched(shared, cut, lost)


def _places(text: str, words: Sequence[str]) -> list[int]:
    """Returns where words begin in the text that they are parts of, in order; -1 from one on that is not found."""
    places = []
    end = 0
    for word in words:
        place = text.find(word, end) if end >= 0 else -1
        places.append(place)
        end = place + len(word) if place >= 0 else -1
    return places


def _as_the_model_cuts(rows: Sequence[Sentence], outputs: Sequence[Outputs]) -> list[Sentence]:
    """Returns sentences as they are, or cut around punctuation: whichever leaves fewer words without a match."""
    ways = [list(rows)]
    if is_iob2({tag for row in rows for tag in row.tags}):
        ways.append(cut_words(ways[0]))
    return min(ways, key=lambda way: sum(found[2] for found in _matches(rows, way, outputs)))


def _matches(rows: Sequence[Sentence], sentences: Sequence[Sentence], outputs: Sequence[Outputs]) -> list[Matched]:
    return [match(row.texts[0], *pair) for row, *pair in zip(rows, sentences, outputs, strict=True)]


def _mistake(sentence: Sentence, word: Word) -> dict[str, Any]:
    """Returns a mistake, whose text is the word in brackets, among others."""
    words = list(sentence.words)
    words[word.number] = f"[{words[word.number]}]"
    return dict(
        said=f"{word.probability:.3f} {word.predicted}, labelled {word.tag}",
        where=sentence.place(word.number),
        text=" ".join(words[max(word.number - _AROUND, 0) : word.number + _AROUND + 1]),
        label=word.tag,
        predicted=word.predicted,
        probability=word.probability,
    )
