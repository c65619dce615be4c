"""Vocabulary files as people bring them: which are read, and as what, and which are refused."""

import random

import pytest

from shatter_tf.data.vocabulary import (
    SPECIAL_TOKENS,
    is_of_hash,
    read_vocabulary,
    train_vocabulary,
    vocabulary_hash,
)
from shatter_tf.errors import UserError

WORDPIECES = [*SPECIAL_TOKENS, "the", "river", "##s"]


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_blank_lines_at_the_end_and_windows_line_ends_do_not_count(tmp_path, newline, end):
    path = tmp_path / "vocab.txt"
    path.write_bytes(("\n".join(WORDPIECES) + end).replace("\n", newline).encode())
    assert read_vocabulary(str(path)) == WORDPIECES


def test_what_was_made_with_a_blank_last_line_is_known_again():
    assert is_of_hash(WORDPIECES, vocabulary_hash(WORDPIECES))
    assert is_of_hash(WORDPIECES, vocabulary_hash([*WORDPIECES, ""]))
    assert not is_of_hash(WORDPIECES, vocabulary_hash(WORDPIECES[:-1]))


WORDS = [f"word{i}" for i in range(90)]
OTHERS = {
    "SentencePiece with scores": (["<unk>\t0", "<s>\t0", "</s>\t0", *(f"{w}\t-3.{i}" for i, w in enumerate(WORDS))], 1),
    "SentencePiece": (["<unk>", "<s>", "</s>", "ing", *(f"▁{w}" for w in WORDS)], 5),
    "byte-level BPE": (["<s>", "<pad>", "##", "####", *WORDS[:40], *(f"Ġ{w}" for w in WORDS)], 45),
    "BPE": (["<unk>", *WORDS[:40], *(f"{w}</w>" for w in WORDS)], 42),
}


@pytest.mark.parametrize("special", [(), SPECIAL_TOKENS])
@pytest.mark.parametrize("kind", OTHERS)
def test_vocabularies_of_other_kinds_are_refused_as_what_they_are(tmp_path, kind, special):
    pieces, line = OTHERS[kind]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*special, *pieces]))
    with pytest.raises(UserError) as refusal:
        read_vocabulary(str(path))
    message = str(refusal.value)
    assert message.startswith(f"{path}:{line + len(special)}: ")
    assert f"a {kind.removesuffix(' with scores')} vocabulary; WordPiece" in message
    assert "add" not in message


def test_the_marks_of_other_kinds_may_be_in_the_text(tmp_path):
    """A vocabulary trained on text that SentencePiece has split is WordPiece all the same."""
    words = random.Random(0).choices(["▁river", "▁old", "Ġdid", "rises</w>", "s\t1", "the"], k=2000)
    vocabulary = train_vocabulary([" ".join(words)] * 3, 100, lower_case=False)
    assert sum(piece[0] == "▁" for piece in vocabulary) > 0.05 * len(vocabulary)
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocabulary))
    assert read_vocabulary(str(path)) == vocabulary


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (WORDPIECES[1:], "vocab.txt: the vocabulary lacks .PAD."),
        (SPECIAL_TOKENS, "no wordpieces but special tokens"),
        ([*WORDPIECES, "the"], "vocab.txt:9: 'the' stands on line 6"),
        ([*WORDPIECES, "", "a", "", "b"], "vocab.txt:11: '' stands on line 9"),
    ],
)
def test_refused(tmp_path, pieces, message):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces))
    with pytest.raises(UserError, match=message):
        read_vocabulary(str(path))
