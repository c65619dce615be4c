"""Text: strings as a vocabulary and a tokenizer need them, and lists of bounded length."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from shatter_tf.data.streams import read_lines as read_lines  # plugins import it from here


def chunks(items: Iterable, length: Callable[[Any], int], limit: int) -> Iterator[list]:
    """Yields items in lists, each of which ends with the item that brings their lengths above `limit` in total.

    Example:
    >>> list(chunks(["one", "two", "three"], len, 4))
    [['one', 'two'], ['three']]
    """
    chunk = []
    total = 0
    for item in items:
        chunk.append(item)
        total += length(item)
        if total > limit:
            yield chunk
            chunk = []
            total = 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def in_graph(function: Callable[[tf.Tensor], Any]) -> Iterator[Callable[[Sequence[str]], Any]]:
    """Yields a function of strings that gives the arrays which `function` computes from a tensor of them, [N].

    It does not begin eager execution: after that, TensorFlow refuses to train on several machines together, and data is
    read before.

    Example:
    >>> with in_graph(tf.strings.length) as lengths:
    ...     lengths(["cat", "a"]).tolist()
    [3, 1]
    """
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = tf.compat.v1.placeholder(tf.string, [None])
        results = function(given)
        yield lambda strings: session.run(results, {given: [string.encode() for string in strings]})


def normalize_unicode(text: tf.Tensor, lower_case: bool) -> tf.Tensor:
    """Returns strings as valid UTF-8, and in NFC unless they will be lower-cased, which decomposes them anyway."""
    text = to_valid_utf8(text)
    return text if lower_case else tf_text.normalize_utf8(text, "NFC")


def to_valid_utf8(text: tf.Tensor) -> tf.Tensor:
    """Returns strings with U+FFFD in place of what is not UTF-8."""
    return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")


def offsets_before(
    normalize: Callable[[tf.Tensor], tf.Tensor],
    belongs_to_what_is_before: str,
    text: tf.Tensor,
    begins: tf.RaggedTensor,
    ends: tf.RaggedTensor,
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Converts offsets into normalized strings to offsets into the strings [B] as they were, ragged int64.

    A string is cut into segments, each a character and all that belongs to it. The normalized string is that of its
    segments, concatenated, so it is enough to know how long each is before and after. (TensorFlow Text has an operation
    for that, but TF Serving has it only from 2.20 on.)

    Args:
      normalize: a function of strings [N].
      belongs_to_what_is_before: what a character matches that is never the first of a segment, a regular expression.
      text: the strings as they were.
      begins, ends: of tokens in the normalized strings, ragged int64 [B, tokens].
    """
    characters = tf.strings.unicode_split(text, "UTF-8")
    rows = characters.value_rowids()
    flat = characters.flat_values
    is_first = tf.range(tf.size(flat, out_type=tf.int64)) == tf.gather(characters.row_starts(), rows)
    is_start = is_first | ~tf.strings.regex_full_match(flat, belongs_to_what_is_before)
    number = tf.reduce_sum(tf.cast(is_start, tf.int64))  # of segments
    segments = tf.strings.unsorted_segment_join(flat, tf.cumsum(tf.cast(is_start, tf.int64)) - 1, number)

    def end_and_base(segments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns where segments end when all strings are concatenated, and where strings begin."""
        lengths = tf.cast(tf.strings.length(segments), tf.int64)
        of_strings = tf.math.unsorted_segment_sum(lengths, tf.boolean_mask(rows, is_start), characters.nrows())
        return tf.cumsum(lengths), tf.cumsum(of_strings, exclusive=True)

    end, base = end_and_base(segments)
    new_end, new_base = end_and_base(normalize(segments))
    begin = end - tf.cast(tf.strings.length(segments), tf.int64)

    def move(offsets: tf.RaggedTensor, places: tf.Tensor, side: str) -> tf.RaggedTensor:
        strings = offsets.value_rowids()
        found = tf.searchsorted(new_end, offsets.flat_values + tf.gather(new_base, strings), side, tf.int64)
        return offsets.with_flat_values(tf.gather(places, tf.minimum(found, number - 1)) - tf.gather(base, strings))

    return move(begins, begin, "right"), move(ends, end, "left")
