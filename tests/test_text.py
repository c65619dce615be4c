"""Strings as a vocabulary and a tokenizer need them."""

import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from shatter_tf.data import streams, text


@given(st.text(st.characters(exclude_categories=())))
def test_halves_of_characters_become_question_marks_and_nothing_else_changes(string):
    whole = streams.whole_characters(string)
    assert len(whole) == len(string)
    assert all(a == b or (0xD800 <= ord(a) < 0xE000 and b == "?") for a, b in zip(string, whole, strict=True))
    whole.encode()


@given(st.lists(st.text()), st.integers(1, 20))
def test_chunks_end_with_the_item_that_exceeds_the_limit(items, limit):
    chunks = list(text.chunks(items, len, limit))
    assert [item for chunk in chunks for item in chunk] == items
    for chunk in chunks[:-1]:
        assert sum(map(len, chunk[:-1])) <= limit < sum(map(len, chunk))


def test_cased_text_is_composed_and_invalid_bytes_are_replaced():
    composed = text.normalize_unicode(tf.constant(["e\u0301", b"\xff"]), lower_case=False)
    assert [string.decode() for string in composed.numpy()] == ["\xe9", "\ufffd"]
