"""One tokenizer for preparing, training and serving: WordPiece as TensorFlow operations."""

from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from shatter_tf.data.bert_tokenizer import BertWordpieces
from shatter_tf.data.text import normalize_unicode, offsets_before
from shatter_tf.data.vocabulary import MASK, SPECIAL_TOKENS, UNKNOWN, check_normalizer, is_ordinary

# A character that Unicode may compose with those before it: marks, and the vowels and final consonants of Hangul.
COMPOSED_WITH_WHAT_IS_BEFORE = r"[\p{M}\x{1161}-\x{1175}\x{11A8}-\x{11C2}]"

# Longer words are unknown. In Thai, what is between two spaces may be a sentence, and a letter has three bytes.
_WORD_BYTES = 1000

_CHUNK = 256  # texts that are tokenized at a time


class Tokenizer(tf.Module):
    """Text to wordpiece ids, inside a graph or outside, with only operations that TF Serving links.

    Text is first normalized to Unicode NFC; with `lower_case`, to NFKC with its case folded (ß becomes ss, ﬁ becomes
    fi), decomposed and without accents, much as for BERT's uncased models. Invalid UTF-8 becomes U+FFFD, so that no
    request can make a served model fail. A `normalizer` instead gives the ids of Hugging Face's BERT, to the letter.

    Args:
      vocabulary: wordpieces in the order of their ids.
      lower_case: whether the vocabulary is uncased.
      normalizer: "" for the above; "bert" as `tokenizers` does it, without accents if `lower_case`; or
        "bert_strip_accents" or "bert_keep_accents", whatever the casing.

    Raises:
      UserError: for another `normalizer`.

    Example:
    >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "shatter", "##ed", "glass"], lower_case=True)
    >>> tokenizer.tokenize(tf.constant(["Shattered GLASS", "stone"])).to_list()
    [[5, 6, 7], [1]]
    """

    def __init__(self, vocabulary: list[str], lower_case: bool, normalizer: str = ""):
        super().__init__(name="tokenizer")
        check_normalizer(normalizer, f"normalizer={normalizer}")
        self._vocabulary = tuple(vocabulary)
        self.vocabulary_size = len(vocabulary)
        self.lower_case = lower_case
        ids = {token: i for i, token in enumerate(vocabulary)}
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        if normalizer:
            strip_accents = dict(bert=lower_case, bert_strip_accents=True, bert_keep_accents=False)[normalizer]
            self._wordpieces = BertWordpieces(vocabulary, lower_case, strip_accents)
        else:
            self._wordpieces = _Wordpieces(vocabulary, lower_case)

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of strings [B] as a ragged int32 [B, tokens], without special tokens."""
        return self._wordpieces.tokenize(text)

    def tokenize_all(self, texts: Sequence[str]) -> tf.RaggedTensor:
        """Returns the tokens of texts as `tokenize` does, on all cores; not for graphs.

        Example:
        >>> Tokenizer([*SPECIAL_TOKENS, "a", "b"], lower_case=True).tokenize_all(["a b", "", "b"]).to_list()
        [[5, 6], [], [6]]
        """
        chunks = tf.data.Dataset.from_tensor_slices(np.array([text.encode() for text in texts], object)).batch(_CHUNK)
        chunks = chunks.map(lambda chunk: self.tokenize(chunk), num_parallel_calls=tf.data.AUTOTUNE)
        return tf.concat([*chunks], axis=0)

    def tokenize_with_offsets(self, text: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Returns the ids of strings [B], and the bytes of `text` at which each of them begins and ends.

        Offsets are between characters: several wordpieces of one character (ß is two in an uncased vocabulary) all span
        it. Accents belong to the letters that bear them.

        Args:
          text: valid UTF-8; repairing it would shift the offsets.

        Returns:
          ids, as `tokenize` gives them; begins and ends, ragged int64 [B, tokens].

        Example:
        >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "cafe", "##s", "s"], lower_case=True)
        >>> ids, begins, ends = tokenizer.tokenize_with_offsets(tf.constant(["Cafés ß"]))
        >>> ids.to_list(), begins.to_list(), ends.to_list()
        ([[5, 6, 7, 6]], [[0, 5, 7, 7]], [[5, 6, 9, 9]])
        """
        return self._wordpieces.tokenize_with_offsets(text)

    def encode(self, text: tf.Tensor, pair: Optional[tf.Tensor], seq_length: int) -> dict[str, tf.RaggedTensor]:
        """Returns [CLS] text [SEP] or [CLS] text [SEP] pair [SEP], at most `seq_length` ids long.

        If a pair is too long, the longer text is cut until both have the same length, then both.

        Args:
          text: strings [B].
          pair: strings [B], or None.
          seq_length: longest result, special tokens included.

        Returns:
          `input_word_ids` and `input_type_ids`, ragged int32 [B, <= seq_length].

        Example:
        >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "a", "b"], lower_case=True)
        >>> encoded = tokenizer.encode(tf.constant(["a a a a a"]), tf.constant(["b"]), 7)
        >>> encoded["input_word_ids"].to_list(), encoded["input_type_ids"].to_list()
        ([[2, 5, 5, 5, 3, 6, 3]], [[0, 0, 0, 0, 0, 1, 1]])
        """
        return self.combine([self.tokenize(part) for part in (text, pair) if part is not None], seq_length)

    def encode_with_masks(self, text: tf.Tensor, seq_length: int) -> dict[str, tf.RaggedTensor]:
        """Encodes single texts as `encode` does, with each "[MASK]" as that token.

        Example:
        >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "a", "b"], lower_case=True)
        >>> tokenizer.encode_with_masks(tf.constant(["a [MASK] b", ""]), 8)["input_word_ids"].to_list()
        [[2, 5, 4, 6, 3], [2, 3]]
        """
        pieces = tf.strings.split(text, MASK)
        tokens = self.tokenize(pieces.flat_values)

        # One mask before each piece; the first of a text is one too many.
        masks = tf.fill([tokens.nrows(), 1], self.mask_id)
        tokens = pieces.with_flat_values(tf.concat([masks, tokens], axis=1)).merge_dims(1, 2)[:, 1:]
        return self.combine([tokens], seq_length)

    def encode_words(
        self, words: tf.RaggedTensor, seq_length: int
    ) -> tuple[dict[str, tf.RaggedTensor], tf.RaggedTensor]:
        """Returns [CLS] words [SEP], at most `seq_length` ids long, and where in it each word begins.

        Every word has a wordpiece: a word of which a tokenizer keeps nothing (a control character, say) is unknown.

        Args:
          words: strings, ragged [B, words].
          seq_length: longest result, special tokens included.

        Returns:
          the result of `encode`; and the places of the words' first wordpieces, ragged int64 [B, <= words], without
          those that are cut off.

        Example:
        >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "a", "b", "##s"], lower_case=True)
        >>> encoded, first = tokenizer.encode_words(tf.ragged.constant([["as", "b", "as"], ["b"]]), 6)
        >>> encoded["input_word_ids"].to_list(), first.to_list()
        ([[2, 5, 7, 6, 5, 3], [2, 6, 3]], [[1, 3, 4], [1]])
        """
        pieces = self.tokenize(words.flat_values)
        empty = tf.cast(pieces.row_lengths() == 0, tf.int64)
        unknown = tf.RaggedTensor.from_row_lengths(tf.fill([tf.reduce_sum(empty)], self.unknown_id), empty)
        pieces = tf.concat([pieces, unknown], axis=1)
        tokens = words.with_flat_values(pieces).merge_dims(1, 2)

        # A word begins after the pieces of all words before it, less those of the sentences before.
        first = pieces.row_starts() - tf.gather(tokens.row_starts(), words.value_rowids()) + 1
        first = tf.ragged.boolean_mask(words.with_flat_values(first), words.with_flat_values(first < seq_length - 1))
        return self.combine([tokens], seq_length), first

    def combine(
        self, segments: list[tf.RaggedTensor], seq_length: int, keep: str = "head"
    ) -> dict[str, tf.RaggedTensor]:
        """Returns what `encode` does for one or two segments of tokens, ragged int32 [B, tokens].

        Args:
          segments: without special tokens.
          seq_length: longest result, special tokens included.
          keep: what remains of one segment that is too long: its "head", its "tail", or "head_tail", a quarter of
            `seq_length` from its head and the rest from its tail (Sun et al. 2019, arXiv 1905.05583, section 5.3.1).

        Example:
        >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "a", "b"], lower_case=True)
        >>> tokens = tf.ragged.constant([[5, 5, 5, 6, 6, 6]])
        >>> tokenizer.combine([tokens], 6, "head_tail")["input_word_ids"].to_list()
        [[2, 5, 6, 6, 6, 3]]
        """
        budget = seq_length - 1 - len(segments)
        if len(segments) == 1:
            segments = [_truncate(segments[0], budget, dict(head=None, tail=0, head_tail=budget // 4)[keep])]
        else:  # each may have half, and what the other leaves
            first, second = (segment.row_lengths() for segment in segments)
            limits = [tf.maximum(budget - second, budget - budget // 2), tf.maximum(budget - first, budget // 2)]
            segments = [_truncate(segment, limit) for segment, limit in zip(segments, limits, strict=True)]

        word_ids, type_ids = tf_text.combine_segments(segments, self.cls_id, self.sep_id)
        return dict(input_word_ids=word_ids, input_type_ids=type_ids)

    def cut(self, tokens: tf.RaggedTensor, seq_length: int, most: int) -> dict[str, tf.RaggedTensor]:
        """Returns windows, [CLS] tokens [SEP] each, of which all but a text's last are `seq_length` ids long.

        Args:
          tokens: without special tokens, ragged int32 [B, tokens].
          seq_length: of a window, special tokens included.
          most: windows; what is beyond is cut off.

        Returns:
          as `encode`, ragged int32 [B, <= most * seq_length].

        Example:
        >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "a", "b"], lower_case=True)
        >>> tokens = tf.ragged.constant([[5, 6, 5, 6, 5], [6], []], dtype=tf.int32)
        >>> tokenizer.cut(tokens, 4, 2)["input_word_ids"].to_list()
        [[2, 5, 6, 3, 2, 5, 6, 3], [2, 6, 3], [2, 3]]
        """
        room = seq_length - 2
        tokens = _truncate(tokens, most * room)
        lengths = tokens.row_lengths()
        windows = tf.maximum(-(-lengths // room), 1)

        # As one row for each window.
        text = tf.repeat(tf.range(tf.size(windows)), windows)
        place = tf.range(tf.size(text, tf.int64)) - tf.gather(tf.cumsum(windows, exclusive=True), text)
        of_window = tf.minimum(tf.gather(lengths, text) - place * room, room)
        combined = self.combine([tf.RaggedTensor.from_row_lengths(tokens.flat_values, of_window)], seq_length)
        return {name: tf.RaggedTensor.from_row_lengths(t, windows).merge_dims(1, 2) for name, t in combined.items()}

    def wordpieces(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the wordpieces, strings, of ids of any shape."""
        return tf.gather(tf.constant(self._vocabulary), ids)

    def is_ordinary(self, size: int) -> tf.Tensor:
        """Returns for the ids 0 … size - 1 whether they are wordpieces but not special tokens, bool [size]."""
        ordinary = tf.constant(is_ordinary(self._vocabulary))
        return tf.concat([ordinary, tf.zeros([size - self.vocabulary_size], tf.bool)], axis=0)

    def pad(
        self, encoded: dict[str, tf.RaggedTensor], length: Union[int, tf.Tensor, None] = None
    ) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs, int32 [B, length], padded; `length` None is the batch's longest."""
        word_ids = encoded["input_word_ids"]
        type_ids = encoded["input_type_ids"]
        shape = tf.stack([-1, tf.cast(length, tf.int64)]) if tf.is_tensor(length) else [None, length]
        return dict(
            input_word_ids=word_ids.to_tensor(self.pad_id, shape=shape),
            input_mask=tf.ones_like(word_ids).to_tensor(0, shape=shape),
            input_type_ids=type_ids.to_tensor(0, shape=shape),
        )


class _Wordpieces:
    """Text to wordpiece ids in our own way; `Tokenizer` says which."""

    def __init__(self, vocabulary: list[str], lower_case: bool):
        self._lower_case = lower_case
        self._wordpiece = tf_text.FastBertTokenizer(
            vocab=vocabulary,
            max_bytes_per_word=_WORD_BYTES,
            token_out_type=tf.int32,
            unknown_token=UNKNOWN,
            lower_case_nfd_strip_accents=lower_case,
        )

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of strings [B] as a ragged int32 [B, tokens]."""
        return self._wordpiece.tokenize(normalize_unicode(text, self._lower_case))

    def tokenize_with_offsets(self, text: tf.Tensor) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """Returns what `Tokenizer.tokenize_with_offsets` does."""
        if self._lower_case:
            ids, begins, ends = self._wordpiece.tokenize_with_offsets(text)
        else:
            ids, begins, ends = self._wordpiece.tokenize_with_offsets(_nfc(text))
            begins, ends = offsets_before(_nfc, COMPOSED_WITH_WHAT_IS_BEFORE, text, begins, ends)

        # Of the pieces of a character only the last has a length; the others take its end, the first beyond their own.
        # One search serves all strings when their offsets are shifted apart.
        rows = ends.value_rowids()
        apart = rows * (tf.reduce_max(tf.concat([[0], ends.flat_values], axis=0)) + 1)
        last = tf.searchsorted(ends.flat_values + apart, begins.flat_values + apart, side="right", out_type=tf.int64)
        last = tf.minimum(last, tf.gather(ends.row_limits(), rows) - 1)
        return ids, begins, ends.with_flat_values(tf.gather(ends.flat_values, last))


def _nfc(text: tf.Tensor) -> tf.Tensor:
    return tf_text.normalize_utf8(text, "NFC")


def _truncate(tokens: tf.RaggedTensor, limit, head: Optional[int] = None) -> tf.RaggedTensor:
    """Keeps at most `limit` (a scalar or [B]) tokens of each row: the first, or only `head` of these and the last."""
    lengths = tokens.row_lengths()
    keep = tf.minimum(lengths, tf.cast(limit, tf.int64))
    rows = tokens.value_rowids()

    # Ragged slices and comparisons would take far more operations, in every graph that is served.
    place = tf.range(tf.size(rows, tf.int64)) - tf.gather(tokens.row_starts(), rows)
    if head is None:
        is_kept = place < tf.gather(keep, rows)
    else:
        is_kept = (place < head) | (place >= tf.gather(lengths - keep, rows) + head)
    kept = tf.boolean_mask(tokens.flat_values, is_kept)
    return tf.RaggedTensor.from_row_lengths(kept, keep, validate=False)
