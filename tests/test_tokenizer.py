"""The tokenizer: the same ids everywhere, whatever the bytes."""

import unicodedata

import numpy as np
import pytest
import tensorflow as tf

from shatter_tf.data.tokenizer import COMPOSED_WITH_WHAT_IS_BEFORE, Tokenizer
from shatter_tf.data.vocabulary import SPECIAL_TOKENS, read_vocabulary, train_vocabulary
from shatter_tf.errors import UserError


def pieces(vocabulary, text, lower_case=True):
    ids = Tokenizer(vocabulary, lower_case).tokenize(tf.constant([text])).to_list()[0]
    return [vocabulary[i] for i in ids]


def test_wordpieces(vocabulary):
    assert pieces(vocabulary, "The CATS sat.") == ["the", "cat", "##s", "sat", "."]
    assert pieces(vocabulary, "[MASK] cat") == ["[UNK]", "[UNK]", "[UNK]", "cat"]  # no special token from text


def test_a_sentence_without_spaces_is_no_unknown_word():
    """Thai has none."""
    sentence = "แม่น้ำไหลผ่านเมืองเก่าและภูเขาสูง" * 2
    vocabulary = train_vocabulary([sentence] * 3, 100, lower_case=False)
    assert "".join(piece.removeprefix("##") for piece in pieces(vocabulary, sentence, lower_case=False)) == sentence


def test_casing_and_unicode_normalization():
    vocabulary = [*SPECIAL_TOKENS, "Caf\u00e9", "cafe", "caf\u00e9"]
    for text in ("Caf\u00e9", "Cafe\u0301"):
        assert pieces(vocabulary, text, lower_case=False) == ["Caf\u00e9"]
        assert pieces(vocabulary, text, lower_case=True) == ["cafe"]


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe\x00", b"cat\x00dog", b"\xf0\x9f\x98\x80", "عربي".encode(), b"a" * 1000]
)
def test_any_bytes_are_tokenized(vocabulary, text, lower_case):
    ids = Tokenizer(vocabulary, lower_case).tokenize(tf.constant([text]))
    assert all(0 <= i < len(vocabulary) for i in ids.flat_values.numpy())


@pytest.mark.parametrize("length", [8, 9, 16])
@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 20), (20, 3), (20, 20), (2, 2)])
def test_pairs_are_cut_evenly(vocabulary, length, first, second):
    tokenizer = Tokenizer(vocabulary, True)
    encoded = tokenizer.encode(tf.constant(["cat " * first]), tf.constant(["dog " * second]), length)
    words = [vocabulary[i] for i in encoded["input_word_ids"].to_list()[0]]
    cats, dogs = words.count("cat"), words.count("dog")
    assert words == ["[CLS]", *["cat"] * cats, "[SEP]", *["dog"] * dogs, "[SEP]"]
    assert len(words) == min(first + second + 3, length)
    assert cats == first or dogs == second or abs(cats - dogs) <= 1
    assert encoded["input_type_ids"].to_list()[0] == [0] * (cats + 2) + [1] * (dogs + 1)


def test_padding(vocabulary):
    tokenizer = Tokenizer(vocabulary, True)
    encoded = tokenizer.encode(tf.constant(["the cat", ""]), None, 8)
    padded = tokenizer.pad(encoded, 6)
    assert padded["input_mask"].numpy().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert padded["input_word_ids"].shape == (2, 6)
    assert tokenizer.pad(encoded)["input_word_ids"].shape == (2, 4)


def test_vocabularies_are_checked(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\ncat\n")
    with pytest.raises(UserError, match=rf"^{path}: .*\[SEP\] \[MASK\]"):
        read_vocabulary(str(path))
    path.write_text("\n".join(SPECIAL_TOKENS))
    with pytest.raises(UserError, match=f"^{path}: .*no wordpieces"):
        read_vocabulary(str(path))
    path.write_text("\n".join([*SPECIAL_TOKENS, "cat", "dog", "cat"]))
    with pytest.raises(UserError, match=f"^{path}:8: .*'cat'.* line 6"):
        read_vocabulary(str(path))
    with pytest.raises(UserError, match=f"^{tmp_path}: "):
        read_vocabulary(str(tmp_path))
    with pytest.raises(UserError, match=f"^{tmp_path}/other.txt: "):
        read_vocabulary(str(tmp_path / "other.txt"))


def test_trained_vocabulary():
    documents = ["the cat sat on the mat\nthe dog", "the cats ran", "The Cat"] * 5
    vocabulary = train_vocabulary(documents, 60, lower_case=True)
    assert vocabulary[:5] == list(SPECIAL_TOKENS)
    assert vocabulary[5:] == sorted(set(vocabulary[5:]))
    assert "the" in vocabulary
    assert not [piece for piece in vocabulary[5:] if piece != piece.lower()]
    assert any(piece != piece.lower() for piece in train_vocabulary(documents, 60, lower_case=False)[5:])


def test_a_trained_vocabulary_is_the_same_every_time():
    """Although nearly all pieces tie with others in frequency."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, 6))) for _ in range(2000)]
    vocabularies = {tuple(train_vocabulary([" ".join(words)] * 3, 1000, True)) for _ in range(5)}
    assert len(vocabularies) == 1


def test_a_trained_vocabulary_has_the_characters_of_the_text_and_no_more_pieces_than_asked_for():
    rng = np.random.default_rng(0)
    chinese = [chr(0x4E00 + i) for i in range(2500)]
    documents = ["".join(rng.choice(chinese, 200)) for _ in range(400)]
    vocabulary = train_vocabulary(documents, 6000, lower_case=True)
    assert len({*vocabulary} & {*chinese}) > 2490
    letters = [chr(0x410 + i) for i in range(300)]  # each at the beginning of words and inside of them
    documents = ["".join(rng.choice(letters, 6)) for _ in range(2000)]
    assert 90 < len(train_vocabulary(documents, 100, lower_case=False)) <= 100


@pytest.mark.parametrize(("lower_case", "words"), [(True, "ß Straße ﬁt İ x²"), (False, "cafe\u0301 \u212b")])
def test_a_vocabulary_is_trained_on_what_the_tokenizer_sees(lower_case, words):
    vocabulary = train_vocabulary([words] * 5, 200, lower_case)
    assert "[UNK]" not in pieces(vocabulary, words, lower_case)
    ids = Tokenizer(vocabulary, lower_case).tokenize(tf.constant([words])).to_list()[0]
    assert len(ids) == len(words.split())  # each is a piece, as often as it occurs


@pytest.mark.parametrize("lower_case", [True, False])
def test_offsets_lie_between_characters_of_the_text_as_it_was(lower_case):
    pieces = ["the", "s", "##s", "f", "##i", "ᄒ", "##ᅡ", "##ᆫ", "caf", "##é", "é", "##e", "cafe", "i", "a"]
    tokenizer = Tokenizer([*SPECIAL_TOKENS, *pieces], lower_case)
    characters = [*"ßﬁ한aé  \x00\u200b漢İ(😀Å", "e\u0301", "the", "caf"]
    rng = np.random.default_rng(0)
    texts = ["", " ", "한", *("".join(rng.choice(characters, rng.integers(12))) for _ in range(500))]
    ids, begins, ends = tokenizer.tokenize_with_offsets(tf.constant(texts))
    assert ids.to_list() == tokenizer.tokenize(tf.constant(texts)).to_list()
    for text, first, last in zip(texts, begins.to_list(), ends.to_list(), strict=True):
        assert first == sorted(first)
        assert last == sorted(last)
        assert all(
            text.encode()[begin:end].decode().strip(" \x00\u200b") for begin, end in zip(first, last, strict=True)
        )


def test_nfc_composes_no_other_characters_with_those_before_them():
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    matched = tf.strings.regex_full_match(characters, COMPOSED_WITH_WHAT_IS_BEFORE).numpy()
    starts = {character for character, match in zip(characters, matched, strict=True) if not match}
    composed = [d for c in characters if len(d := unicodedata.normalize("NFD", c)) > 1]
    assert len(composed) > 10000
    seconds = {d[i:] for d in composed for i in range(1, len(d)) if unicodedata.normalize("NFC", d) != d}
    assert not {second[0] for second in seconds} & starts
    assert not [c for c in starts if unicodedata.combining(c) or unicodedata.normalize("NFD", c)[0] not in starts]


def test_offsets_of_cased_text_that_nfc_changes():
    rng = np.random.default_rng(1)
    characters = [
        "a",
        "é",
        "e\u0301",
        "q\u0323\u0307",
        "한",
        "\u1112\u1161\u11ab",
        "\u0958",
        "\u2126",
        "\u0308",
        " ",
        "😀",
    ]
    texts = ["".join(rng.choice(characters, rng.integers(12))) for _ in range(300)]
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    pieces = sorted({character for text in composed for character in text if character != " "})
    tokenizer = Tokenizer([*SPECIAL_TOKENS, *pieces, *(f"##{piece}" for piece in pieces)], lower_case=False)
    ids, begins, ends = tokenizer.tokenize_with_offsets(tf.constant(texts))
    _, nfc_begins, nfc_ends = tokenizer.tokenize_with_offsets(tf.constant(composed))
    assert len(ids.flat_values) > 1000
    moved = zip(texts, composed, *(x.to_list() for x in (begins, ends, nfc_begins, nfc_ends)), strict=True)
    for text, nfc, *offsets in moved:
        for begin, end, nfc_begin, nfc_end in zip(*offsets, strict=True):
            cut = text.encode()[begin:end].decode()
            assert unicodedata.normalize("NFC", cut) == nfc.encode()[nfc_begin:nfc_end].decode()
            assert unicodedata.normalize("NFC", text.encode()[:begin].decode()) == nfc.encode()[:nfc_begin].decode()


def test_what_offsets_cut_out():
    def cut(text, lower_case, *pieces):
        tokenizer = Tokenizer([*SPECIAL_TOKENS, *pieces], lower_case)
        _, begins, ends = tokenizer.tokenize_with_offsets(tf.constant([text]))
        return [text.encode()[b:e].decode() for b, e in zip(begins.to_list()[0], ends.to_list()[0], strict=True)]

    assert cut("Cafe\u0301 ÉTÉ!", True, "cafe", "et", "##e", "!") == ["Cafe\u0301", "ÉT", "É", "!"]
    assert cut("cafe\u0301s x", False, "caf", "##é", "##s") == ["caf", "e\u0301", "s", "x"]
    assert cut("ßa 한", True, "s", "##s", "##a", "ᄒ", "##ᅡ", "##ᆫ") == ["ß", "ß", "a", "한", "한", "한"]
