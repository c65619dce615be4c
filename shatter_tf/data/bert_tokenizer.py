"""WordPiece to the letter as Hugging Face's BERT has it, for checkpoints that were trained with that."""

import functools
from collections.abc import Iterable

import tensorflow as tf
import tensorflow_text as tf_text
from tensorflow_text.python.ops.regex_split_ops import gen_regex_split_ops
from tokenizers import normalizers, pre_tokenizers

from shatter_tf.data.text import offsets_before, to_valid_utf8
from shatter_tf.data.vocabulary import UNKNOWN

_WORD_CHARACTERS = 100  # longer words are unknown
_WORD_BYTES = 4 * _WORD_CHARACTERS  # at most
_LONG_WORD = "x" * (_WORD_BYTES + 1)  # for TensorFlow Text, which counts bytes

# Chinese characters, each of which is a word; the gaps between the last ranges are BERT's.
_CHINESE = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B920}-\x{2CEAF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)

_NO_CHARACTER = r"[^\x00-\x{10FFFF}]"


class BertWordpieces:
    """Text to the wordpiece ids that the `tokenizers` library gives, as TensorFlow operations.

    Its counterpart there is BertNormalizer, BertPreTokenizer and WordPiece with their defaults, and with
    `encode_special_tokens`: "[SEP]" in a text is text. Which characters are dropped, accents or punctuation is asked of
    the library: its Unicode is older than that of RE2.

    Ids can differ only for about 120 letters that came with Unicode 13 or later: the library and TensorFlow's ICU do
    not lower-case, or decompose, the same ones.

    Args:
      vocabulary: wordpieces in the order of their ids.
      lower_case: whether the vocabulary is uncased.
      strip_accents: whether accents are dropped.

    Example:
    >>> pieces = BertWordpieces(["[UNK]", "strass", "##e", "straße", "1", "½"], lower_case=True, strip_accents=True)
    >>> pieces.tokenize(tf.constant(["Straße Strasse", "½ 1/2"])).to_list()
    [[3, 1, 2], [5, 4, 0, 0]]
    """

    def __init__(self, vocabulary: list[str], lower_case: bool, strip_accents: bool):
        self._lower_case = lower_case
        self._strip_accents = strip_accents
        dropped, accents, spaces, punctuation = _character_classes()
        self._accent = f"[{accents}]" if strip_accents else _NO_CHARACTER
        self._dropped = f"[{dropped}{accents if strip_accents else ''}]"
        self._between_words = f"[{spaces}]+|[{punctuation}{_CHINESE}]"
        self._kept = f"[^{spaces}]"
        self._wordpiece = tf_text.FastWordpieceTokenizer(
            vocab=vocabulary,
            max_bytes_per_word=_WORD_BYTES,
            token_out_type=tf.int32,
            unknown_token=UNKNOWN,
            no_pretokenization=True,
        )

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of strings [B] as a ragged int32 [B, tokens]."""
        words, _, _, of_texts = _split(self._normalize(text), self._between_words, self._kept)
        words = tf.where(_is_long(words), _LONG_WORD, words)
        return _of_texts(self._wordpiece.tokenize(words), of_texts)

    def tokenize_with_offsets(self, text: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Returns what `Tokenizer.tokenize_with_offsets` does."""
        words, word_begins, word_ends, of_texts = _split(self._normalize(text), self._between_words, self._kept)
        is_long = _is_long(words)
        pieces, begins, ends = self._wordpiece.tokenize_with_offsets(tf.where(is_long, _LONG_WORD, words))
        ids = _of_texts(pieces, of_texts)

        # From offsets in words to those in the normalized text.
        word = pieces.value_rowids()
        word_begin = tf.gather(word_begins, word)
        begin = word_begin + tf.cast(begins.flat_values, tf.int64)
        end = word_begin + tf.cast(ends.flat_values, tf.int64)
        end = tf.where(tf.gather(is_long, word), tf.gather(word_ends, word), end)

        # Normalization takes each character with its accents by itself.
        moved = offsets_before(
            self._normalize, self._accent, text, ids.with_flat_values(begin), ids.with_flat_values(end)
        )
        return ids, *moved

    def _normalize(self, text: tf.Tensor) -> tf.Tensor:
        text = to_valid_utf8(text)
        if self._strip_accents:
            text = tf_text.normalize_utf8(text, "NFD")
        text = tf.strings.regex_replace(text, self._dropped, "")
        if not self._lower_case:
            return text

        # First two letters that ICU does not lower-case alike everywhere: I (Turkish), and Σ (at the end of a word).
        text = tf.strings.regex_replace(tf.strings.lower(text), "Σ", "σ")
        return tf.strings.lower(text, "utf-8")


def _split(text: tf.Tensor, delimiter: str, kept: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the words of strings [B], where in bytes they begin and end, all [words]; and the row splits, [B + 1].

    Words are what is between delimiters, and those of the delimiters that match `kept`. This is TensorFlow Text's
    `regex_split_with_offsets` without its 250 more operations, which check the operation's own row splits.
    """
    return gen_regex_split_ops.regex_split_with_offsets(text, f"({delimiter})", f"({kept})")


def _of_texts(pieces: tf.RaggedTensor, row_splits: tf.Tensor) -> tf.RaggedTensor:
    """Returns the pieces of words, ragged [words, pieces], as those of texts, [B, tokens]."""
    return tf.RaggedTensor.from_row_splits(pieces.flat_values, tf.gather(pieces.row_splits, row_splits), validate=False)


def _is_long(words: tf.Tensor) -> tf.Tensor:
    return tf.strings.length(words, "UTF8_CHAR") > _WORD_CHARACTERS


@functools.cache
def _character_classes() -> tuple[str, str, str, str]:
    """Returns what the library drops, what it calls accents, spaces and punctuation, as ranges of RE2."""
    # Other planes have no such characters, but those for private use, which Unicode will not change.
    characters = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE1000))]

    def that_become(result: str, clean_text: bool, strip_accents: bool) -> str:
        normalizer = normalizers.BertNormalizer(
            clean_text=clean_text, handle_chinese_chars=False, strip_accents=strip_accents, lowercase=False
        )
        return _ranges(character for character in characters if normalizer.normalize_str(character) == result)

    dropped = r"\p{Co}" + that_become("", clean_text=True, strip_accents=False)
    accents = that_become("", clean_text=False, strip_accents=True)
    spaces = that_become(" ", clean_text=True, strip_accents=False)

    # Between letters, punctuation stands alone.
    pieces = pre_tokenizers.BertPreTokenizer().pre_tokenize_str("a" + "a".join(characters) + "a")
    punctuation = _ranges(piece for piece, (begin, end) in pieces if end - begin == 1 and begin % 2)
    return dropped, accents, spaces, punctuation


def _ranges(characters: Iterable[str]) -> str:
    r"""Returns characters, in order, as ranges of RE2.

    Example:
    >>> _ranges("abcx")
    '\\x{61}-\\x{63}\\x{78}-\\x{78}'
    """
    ranges: list[list[int]] = []
    for code in map(ord, characters):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(rf"\x{{{begin:X}}}-\x{{{end:X}}}" for begin, end in ranges)
