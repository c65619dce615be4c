"""Tagged sentences from records: a list of words and one of tags, or a text and the spans of its entities."""

import json
import re
from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf

from shatter_tf.data import entities, records, streams
from shatter_tf.data.labelled import names_beside
from shatter_tf.data.names import TEXTS, TOKEN_TAGS, TOKENS
from shatter_tf.data.records import Record, Records
from shatter_tf.data.sentences import Sentence, first_known, given, left_out
from shatter_tf.data.streams import whole_characters
from shatter_tf.errors import UserError, argument

# Well-known names, folded; of several, the earliest counts.
_SPANS = ("spans", "entities", "labels", "label", "annotations")
_REFUSED = ("reject", "ignore")  # Prodigy's `answer`
_BEGINS, _ENDS = ("start", "start_offset", "begin"), ("end", "end_offset")


def read_records(path: str, word_field: str, tag_field: str, labels: Sequence[str]) -> tuple[list[Sentence], list[str]]:
    found = _pairs_with_entities(path) or records.read_records(path)
    rows = list(found.rows)
    if not rows:
        return [], []

    # Which fields.
    if word_field:
        word_field = given(path, found.fields, word_field, "text_fields")
    if tag_field:
        tag_field = given(path, found.fields, tag_field, "label_field")
    of_words = word_field or first_known(found.fields, TOKENS)
    text = word_field or first_known(found.fields, TEXTS)
    tags = tag_field or (first_known(found.fields, TOKEN_TAGS) if of_words else None)
    spans = tag_field or first_known(found.fields, _SPANS)
    is_text = not of_words or not tags or _holds_spans(rows, tags) or isinstance(rows[0].values.get(of_words), str)
    if text and spans and is_text:
        words, tags = text, tags if tags and _holds_spans(rows, tags) else spans
        what = ("text", "spans")
        sentences, more = _of_spans(rows, words, tags)
    elif of_words and tags:
        words = of_words
        what = ("words", "tags")
        names = found.names.get(tags) or names_beside(path) or list(labels)
        sentences, more = _of_tags(rows, words, tags, names)
    else:
        missing, flag = (
            ("the tags or spans", "label_field") if of_words or text else ("the words or text", "text_fields")
        )
        there = ", ".join(map(repr, found.fields))
        raise UserError(f"{rows[0].where}: which field has {missing}? Give {argument(flag)}; there are {there}")

    notes = [f"{of}: {name!r}" for of, name in zip(what, (words, tags), strict=True)]
    return sentences, [*notes, *left_out(found.fields, [words, tags]), *more]


def _holds_spans(rows: list[Record], field: str) -> bool:
    """Returns whether a field has spans: lists or objects, where tags are strings or numbers."""
    values = (row.values.get(field) for row in rows)
    first = next((value for value in values if value), None)
    return isinstance(first, list) and isinstance(first[0], (list, tuple, dict))


def _pairs_with_entities(path: str) -> Optional[Records]:
    """Returns the records of a file of pairs [text, {"entities": […]}], as spaCy had them; None for another file."""
    is_pairs = not tf.io.gfile.isdir(path) and re.match(rb'\s*(\[\s*)?\[\s*"', streams.beginning(path))
    if not is_pairs:
        return None

    lines = list(enumerate(streams.read_lines(path), 1))
    parts = [(f"{path}:{number}", line) for number, line in lines if line.strip()]
    if is_pairs[1]:  # an array of them
        parts = [(path, "\n".join(line for _, line in lines))]
    pairs = []
    for where, part in parts:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        pairs += [(f"{where}, row {i}", pair) for i, pair in enumerate(value, 1)] if is_pairs[1] else [(where, value)]

    found = []
    for where, pair in pairs:
        text, rest = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if not isinstance(text, str) or not isinstance(rest, dict):
            raise UserError(f'{where}: {json.dumps(pair)[:40]} is no [text, {{"entities": […]}}]')
        found.append(Record(where, {"text": text, "entities": rest.get("entities")}))
    return Records(["text", "entities"], iter(found), {})


def _of_tags(
    rows: list[Record], word_field: str, tag_field: str, names: Sequence[str]
) -> tuple[list[Sentence], list[str]]:
    """Returns the sentences of records with lists of words and tags, which may be numbers, and notes on them."""
    sentences = []
    marks = 0
    has_numbers = False
    for where, values in rows:
        words = _strings(where, word_field, values.get(word_field))
        tags = values.get(tag_field)
        if isinstance(tags, list) and tags and all(type(tag) is int for tag in tags):
            has_numbers = True
            tags = _named(where, tag_field, tags, names)
        tags = _strings(where, tag_field, tags)
        if not words:
            raise UserError(f"{where}: the sentence has no words")
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} {word_field}, but {len(tags)} {tag_field}")
        if words[0] == "-DOCSTART-":
            marks += 1
        else:
            sentences.append(Sentence(words, tags, where))

    notes = [f"{marks:,} document marks skipped"] if marks else []
    if has_numbers:
        notes.append(f"0 to {len(names) - 1} stand for {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
    return sentences, notes


def _strings(where: str, field: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: no {field} that are a list of strings")
    return [whole_characters(value).strip() for value in values]


def _named(where: str, field: str, numbers: list[int], names: Sequence[str]) -> list[str]:
    """Returns what tags that are numbers stand for; raises UserError where that is not known."""
    if not names:
        raise UserError(
            f"{where}: the {field} are numbers; put what they stand for into labels.txt beside the file, one a line, "
            "from 0 on"
        )
    for number in numbers:
        if not 0 <= number < len(names):
            raise UserError(
                f"{where}: {number} in {field} has no name; there are {len(names)}, from 0 on: {', '.join(names[:10])}"
            )
    return [names[number] for number in numbers]


def _of_spans(rows: list[Record], text_field: str, span_field: str) -> tuple[list[Sentence], list[str]]:
    """Returns the sentences of records with a text and spans of its characters, and notes on them."""
    accepted = [row for row in rows if row.values.get("answer") not in _REFUSED]
    texts = []
    for where, values in accepted:
        text = values.get(text_field)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: no {text_field} that is a text")
        texts.append(whole_characters(text))
    words, starts, ends = entities.words_in(texts)

    sentences = []
    problems = []
    blanks = 0
    for i, (where, values) in enumerate(accepted):
        items = values.get(span_field) or []
        if not isinstance(items, list):
            raise UserError(f"{where}: no {span_field} that is a list of spans; labels of whole texts are for classify")
        spans = [_span(where, span_field, item) for item in items]
        blanks += sum(entities.trimmed(texts[i], span) != span for span in spans)
        try:
            tags = entities.tags_of_spans(texts[i], starts[i], ends[i], spans)
        except UserError as error:
            problems.append(f"{where}: {error}")
            continue
        sentences.append(Sentence([word.decode() for word in words[i]], tags, where))
    if problems:
        others = len(problems) - 1
        more = f"; {others:,} other text{'s have' if others > 1 else ' has'} such spans, too" if others else ""
        raise UserError(problems[0] + more)

    notes = [f"{len(rows) - len(accepted):,} left out that were not accepted"] if len(accepted) < len(rows) else []
    if blanks:
        notes.append(f"white space at the ends of {blanks:,} span{'s' * (blanks > 1)} left out")
    return sentences, notes


def _span(where: str, field: str, item: Any) -> entities.Span:
    """Returns a span: [start, end, label], or an object with these; raises UserError for anything else."""
    values = item
    if isinstance(item, dict):
        names = (first_known(item, _BEGINS), first_known(item, _ENDS), first_known(item, ("label", "type", "tag")))
        values = [item.get(name) for name in names]
    is_span = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_span or not all(type(value) is int for value in values[:2]) or not isinstance(values[2], str):
        raise UserError(
            f"{where}: {json.dumps(item, default=str)[:80]} in {field} is no span; expected [start, end, label], or an "
            "object with these"
        )
    label = whole_characters(values[2]).strip()
    if not label:
        raise UserError(f"{where}: a span in {field} has no label")
    return entities.Span(values[0], values[1], label)
