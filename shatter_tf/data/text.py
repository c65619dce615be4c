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
    text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
    return text if lower_case else tf_text.normalize_utf8(text, "NFC")
