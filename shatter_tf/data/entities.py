"""Entities: spans of a text's characters, and the tags of its words that mark them.

A text's words are what stands between white space; each mark of punctuation and each Chinese character is a word of its
own, as for BERT's tokenizer. So an entity begins and ends where it is written: "Oslo." is two words. One function cuts
the texts that are learned from, given words, and the texts that a served model gets.

Tags are IOB2: B-X at the first word of each entity of type X, I-X at its others, O elsewhere.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from shatter_tf.data.text import in_graph
from shatter_tf.errors import UserError

# === Words ===

_ASCII_SPACE = r"[\t-\r ]"
_SPACE = r"[\t-\r\x1c-\x20\x{85}\p{Z}]"  # what Python's str.isspace has
_PUNCTUATION = (
    r"[\p{P}$+<=>^`|~\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2CEAF}"
    r"\x{2F800}-\x{2FA1F}]"
)
_SEAM = b"\xff"  # a byte that no text has: it is not UTF-8


class Words(NamedTuple):
    """The words of texts: ragged strings [B, words]; and where they begin and end, in characters, ragged int32."""

    words: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor


def words_of(text: tf.Tensor, at_punctuation: bool) -> Words:
    """Returns the words of strings [B], in a graph or outside.

    Args:
      text: valid UTF-8.
      at_punctuation: False cuts only at the white space of ASCII.

    Example:
    >>> words, starts, ends = words_of(tf.constant(["In  Oslo.", ""]), at_punctuation=True)
    >>> words.to_list(), starts.to_list(), ends.to_list()
    ([[b'In', b'Oslo', b'.'], []], [[0, 4, 8], []], [[2, 8, 9], []])
    """
    space = _SPACE if at_punctuation else _ASCII_SPACE
    cuts = f"{space}+|{_PUNCTUATION}" if at_punctuation else f"{space}+"
    pieces = tf.strings.split(tf.strings.regex_replace(text, f"({cuts})", _SEAM + rb"\1" + _SEAM), _SEAM)

    # Where each piece of each text ends, counted from the beginning of the text.
    flat = pieces.flat_values
    rows = pieces.value_rowids()
    lengths = tf.strings.length(flat, unit="UTF8_CHAR")
    before = tf.cumsum(tf.pad(lengths, [[0, 1]]), exclusive=True)
    starts = before[:-1] - tf.gather(tf.gather(before, pieces.row_starts()), rows)

    is_word = ~tf.strings.regex_full_match(flat, f"{space}*")
    rows = tf.boolean_mask(rows, is_word)

    def of_words(values: tf.Tensor) -> tf.RaggedTensor:
        values = tf.boolean_mask(values, is_word)
        return tf.RaggedTensor.from_value_rowids(values, rows, nrows=pieces.nrows(), validate=False)

    return Words(of_words(flat), of_words(starts), of_words(starts + lengths))


def words_in(texts: Sequence[str]) -> tuple[list[list[bytes]], list[list[int]], list[list[int]]]:
    """Returns the words of texts, and where they begin and end, as `words_of` does; lists of lists."""

    def parts(text: tf.Tensor):
        words = words_of(text, at_punctuation=True)
        return [part.flat_values for part in words], words.words.row_splits

    with in_graph(parts) as run:
        flat, splits = run(texts)
    bounds = list(itertools.pairwise(splits))
    words, starts, ends = ([part[begin:end].tolist() for begin, end in bounds] for part in flat)
    return words, starts, ends


def cut(words: Sequence[str]) -> list[list[str]]:
    """Returns the words that each given word becomes, one or more.

    Example:
    >>> cut(["U.S.", "Oslo"])
    [['U', '.', 'S', '.'], ['Oslo']]
    """
    unique, places = np.unique(np.array(words, object), return_inverse=True)
    found = words_in(unique)[0]
    pieces = [[piece.decode() for piece in row] or [word] for word, row in zip(unique, found, strict=True)]
    return [pieces[place] for place in places]


# === Tags ===

_OUTSIDE = "O"
# What the letters say of a word. Those that IOB2 lacks are BILOU's, BIOES's and BMEWO's.
_FIRST, _LATER, _LAST, _ONLY = "B", "IM", "EL", "SUW"


def is_iob(tags: Iterable[str]) -> bool:
    """Returns whether tags mark entities: B-X and I-X, perhaps E-X and S-X, and O.

    Example:
    >>> is_iob(["B-PER", "I-PER", "O"]), is_iob(["NOUN", "VERB"]), is_iob(["O"])
    (True, False, False)
    """
    return _mark_entities(tags, "BIES")


def is_iob2(tags: Iterable[str]) -> bool:
    """Returns whether tags mark entities by B-X, I-X and O only."""
    return _mark_entities(tags, "BI")


def is_marked(tag: str) -> bool:
    """Returns whether a tag marks entities in one of the schemes that are read: B-X, L-X, U-X and the like."""
    return _mark_entities([tag], _FIRST + _LATER + _LAST + _ONLY)


def _mark_entities(tags: Iterable[str], letters: str) -> bool:
    marked = [tag for tag in tags if tag != _OUTSIDE]
    return bool(marked) and all(tag[:1] in letters and tag[1:2] == "-" and tag[2:] for tag in marked)


class InIob2(NamedTuple):
    """Tags that were converted to IOB2.

    Attributes:
      tags: of each sentence.
      scheme: what they were, "" where they mark no entities.
      odd: the sentences and words whose tags the scheme does not allow there; an entity begins there.
    """

    tags: list[list[str]]
    scheme: str
    odd: list[tuple[int, int]]


def to_iob2(sentences: Sequence[Sequence[str]]) -> InIob2:
    """Returns the sentences' tags in IOB2; those that mark no entities, like parts of speech, as they are.

    Example:
    >>> to_iob2([["I-PER", "I-PER", "B-PER", "O"]])
    InIob2(tags=[['B-PER', 'I-PER', 'B-PER', 'O']], scheme='IOB1', odd=[])
    >>> to_iob2([["B-PER", "L-PER", "U-PER", "O"]])
    InIob2(tags=[['B-PER', 'I-PER', 'B-PER', 'O']], scheme='BILOU', odd=[])
    """
    different = {tag for tags in sentences for tag in tags}
    if not _mark_entities(different, _FIRST + _LATER + _LAST + _ONLY):
        return InIob2([list(tags) for tags in sentences], "", [])

    converted = []
    odd = []
    needless = 0  # B, where IOB1 has I
    for sentence, tags in enumerate(sentences):
        converted.append([])
        before = goes_on = ""  # the types of the entity before, and of one that may go on
        for word, tag in enumerate(tags):
            letter, kind = tag[0], tag[2:]
            if not kind:
                converted[-1].append(_OUTSIDE)
                before = goes_on = ""
                continue
            begins = letter in _FIRST + _ONLY or kind != goes_on
            converted[-1].append(f"{'B' if begins else 'I'}-{kind}")
            if begins and letter in _LATER + _LAST:
                odd.append((sentence, word))
            needless += letter in _FIRST and kind != before
            before = kind
            goes_on = "" if letter in _LAST + _ONLY else kind

    letters = {tag[0] for tag in different - {_OUTSIDE}}
    if letters <= {*"BI"}:
        is_iob1 = odd and not needless
        return InIob2(converted, "IOB1" if is_iob1 else "IOB2", [] if is_iob1 else odd)
    return InIob2(converted, "BILOU" if letters & {*"LU"} else "BIOES", odd)


def continued(tag: str) -> str:
    """Returns the tag, in IOB2, of a later piece of a word with this tag."""
    return tag if tag == _OUTSIDE else f"I-{tag[2:]}"


# === Spans ===


class Span(NamedTuple):
    """A part of a text, from character `start` to before character `end`."""

    start: int
    end: int
    label: str


def trimmed(text: str, span: Span) -> Span:
    """Returns a span without the white space at its ends."""
    part = text[span.start : span.end]
    return span._replace(
        start=span.start + len(part) - len(part.lstrip()), end=span.end - len(part) + len(part.rstrip())
    )


def tags_of_spans(text: str, starts: Sequence[int], ends: Sequence[int], spans: Sequence[Span]) -> list[str]:
    """Returns the tags, in IOB2, of a text's words.

    Args:
      text: the text.
      starts, ends: where its words begin and end, from `words_of`.
      spans: the entities, in any order.

    Raises:
      UserError: naming the span, without its location, when it is empty or outside of the text, cuts a word, or
        overlaps another.

    Example:
    >>> tags_of_spans("In New York.", [0, 3, 7, 11], [2, 6, 11, 12], [Span(3, 11, "LOC")])
    ['O', 'B-LOC', 'I-LOC', 'O']
    """
    tags = [_OUTSIDE] * len(starts)
    first = {start: word for word, start in enumerate(starts)}
    last = {end: word for word, end in enumerate(ends)}
    for span in sorted(set(spans)):
        what = f"the span {span.start} to {span.end} ({span.label})"
        if not 0 <= span.start <= span.end <= len(text):
            raise UserError(f"{what} is not inside the text, which has {len(text)} characters, counted from 0")
        span = trimmed(text, span)
        if span.start >= span.end:
            raise UserError(f"{what} has no characters; leave it out")
        what += f", {text[span.start : span.end]!r},"
        for place, known in ((span.start, first), (span.end, last)):
            if place not in known:
                cut_word = next(text[a:b] for a, b in zip(starts, ends, strict=True) if a < place < b)
                raise UserError(f"{what} cuts the word {cut_word!r}; an entity is of whole words")
        words = range(first[span.start], last[span.end] + 1)
        if any(tags[word] != _OUTSIDE for word in words):
            raise UserError(f"{what} overlaps another; a word has one tag, so keep one of the two")
        for word in words:
            tags[word] = f"{'B' if word == words[0] else 'I'}-{span.label}"
    return tags


# === Answers ===


def entities_of(
    classes: Sequence[str],
    tags: tf.Tensor,
    probabilities: tf.Tensor,
    rows: tf.Tensor,
    starts: tf.Tensor,
    ends: tf.Tensor,
    number: tf.Tensor,
) -> dict[str, tf.Tensor]:
    """Returns the entities that the tags of words mark, as seqeval finds them.

    Args:
      classes: the tags, in the order of their ids.
      tags: the ids of all texts' words, in order, int [N].
      probabilities: of these, float32 [N].
      rows: the words' texts, int [N].
      starts, ends: where the words begin and end, int32 [N].
      number: of texts, B.

    Returns:
      `entities`, their types, string [B, E]; `starts` and `ends`, int32 [B, E]; and `scores`, float32 [B, E], the means
      of their words' probabilities. Padding is "" and 0.
    """
    kinds = sorted({name[2:] for name in classes if name != _OUTSIDE})
    kind_of = tf.constant([kinds.index(name[2:]) if name != _OUTSIDE else -1 for name in classes])
    kind = tf.gather(kind_of, tags)
    is_inside = kind >= 0
    begins = tf.gather(tf.constant([name[0] in _FIRST + _ONLY for name in classes]), tags)
    closes = tf.gather(tf.constant([name[0] in _LAST + _ONLY for name in classes]), tags)

    # A word goes on with the entity of the word before it in the same text.
    goes_on = is_inside[1:] & ~begins[1:] & ~closes[:-1] & (kind[1:] == kind[:-1]) & (rows[1:] == rows[:-1])
    goes_on = tf.concat([tf.zeros_like(is_inside[:1]), goes_on], axis=0)
    is_first = is_inside & ~goes_on
    entity = tf.boolean_mask(tf.cumsum(tf.cast(is_first, tf.int32)) - 1, is_inside)

    rows = tf.boolean_mask(rows, is_first)

    def padded(values: tf.Tensor) -> tf.Tensor:
        return tf.RaggedTensor.from_value_rowids(values, rows, nrows=number, validate=False).to_tensor()

    return dict(
        entities=padded(tf.gather(tf.constant(kinds), tf.boolean_mask(kind, is_first))),
        starts=padded(tf.boolean_mask(starts, is_first)),
        ends=padded(tf.math.segment_max(tf.boolean_mask(ends, is_inside), entity)),
        scores=padded(tf.math.segment_mean(tf.boolean_mask(probabilities, is_inside), entity)),
    )
