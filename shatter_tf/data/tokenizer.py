"""One tokenizer for preparing, training and serving: WordPiece as TensorFlow operations."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Optional

import tensorflow as tf
import tensorflow_text as tf_text

from shatter_tf.command_line import UserError

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: str) -> list[str]:
    """Returns the wordpieces of a vocab.txt, one a line; the line number is the id.

    Raises:
      UserError: when the file is missing or empty, lacks a special token, or repeats a wordpiece.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such vocabulary file")
    with tf.io.gfile.GFile(path, "rb") as f:
        try:
            vocabulary = f.read().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: invalid UTF-8 at byte {error.start}") from error
    check_vocabulary(vocabulary, path)
    return vocabulary


def check_vocabulary(vocabulary: list[str], path: str) -> None:
    """Raises UserError unless `vocabulary` can be tokenised with; `path` says where it came from."""
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise UserError(f"{path}: the vocabulary lacks {' '.join(missing)}; add each on a line of its own")
    seen = {}
    for line, token in enumerate(vocabulary, 1):
        if token in seen:
            raise UserError(f"{path}:{line}: {token!r} stands on line {seen[token]} already")
        seen[token] = line


def vocabulary_hash(vocabulary: list[str]) -> str:
    """Returns the SHA-256 that tells whether a corpus and a checkpoint share a vocabulary."""
    return hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()


def train_vocabulary(documents: Iterable[str], size: int, lower_case: bool) -> list[str]:
    """Returns a WordPiece vocabulary of at most `size` pieces, trained by the `tokenizers` library.

    The pieces stand in sorted order after the special tokens: the library's own order changes from run to run.
    """
    from tokenizers import BertWordPieceTokenizer

    def paragraphs() -> Iterator[str]:
        for document in documents:
            yield from document.split("\n")

    trainer = BertWordPieceTokenizer(lowercase=lower_case, strip_accents=lower_case)
    trainer.train_from_iterator(
        paragraphs(), vocab_size=size, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    return [*SPECIAL_TOKENS, *sorted(set(trainer.get_vocab()) - set(SPECIAL_TOKENS))]


class Tokenizer(tf.Module):
    """Text to wordpiece ids, inside a graph or out of it, with nothing but operations that TF Serving links.

    Text is brought to Unicode NFC first. With `lower_case` it is lower-cased and stripped of accents, as BERT's uncased
    models do. Invalid UTF-8 becomes U+FFFD, so that no request can make a served model fail.

    Args:
      vocabulary: wordpieces in the order of their ids.
      lower_case: whether the vocabulary is uncased.

    Example:
    >>> tokenizer = Tokenizer([*SPECIAL_TOKENS, "shatter", "##ed", "glass"], lower_case=True)
    >>> tokenizer.tokenize(tf.constant(["Shattered GLASS", "stone"])).to_list()
    [[5, 6, 7], [1]]
    """

    def __init__(self, vocabulary: list[str], lower_case: bool):
        super().__init__(name="tokenizer")
        self.vocabulary_size = len(vocabulary)
        self.lower_case = lower_case
        ids = {token: i for i, token in enumerate(vocabulary)}
        self.pad_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        self._wordpiece = tf_text.FastBertTokenizer(
            vocab=vocabulary, token_out_type=tf.int32, unknown_token=UNKNOWN, lower_case_nfd_strip_accents=lower_case
        )

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Returns the ids of strings [B] as a ragged int32 [B, tokens], without special tokens."""
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
        if not self.lower_case:  # lower-casing decomposes the text anyway
            text = tf_text.normalize_utf8(text, "NFC")
        return self._wordpiece.tokenize(text)

    def encode(self, text: tf.Tensor, pair: Optional[tf.Tensor], seq_length: int) -> dict[str, tf.RaggedTensor]:
        """Returns [CLS] text [SEP] or [CLS] text [SEP] pair [SEP], at most `seq_length` ids long.

        Of a pair that is too long, the longer text is cut until both have the same length, then both.

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
        segments = [self.tokenize(text)] if pair is None else [self.tokenize(text), self.tokenize(pair)]
        budget = seq_length - 1 - len(segments)
        if pair is None:
            limits = [budget]
        else:
            first, second = (segment.row_lengths() for segment in segments)
            limits = [tf.maximum(budget - second, budget - budget // 2), tf.maximum(budget - first, budget // 2)]
        segments = [_truncate(segment, limit) for segment, limit in zip(segments, limits, strict=True)]
        word_ids, type_ids = tf_text.combine_segments(segments, self.cls_id, self.sep_id)
        return dict(input_word_ids=word_ids, input_type_ids=type_ids)

    def pad(self, encoded: dict[str, tf.RaggedTensor], length: Optional[int] = None) -> dict[str, tf.Tensor]:
        """Returns the encoder's inputs, int32 [B, length], padded; `length` None is the batch's longest."""
        word_ids, type_ids = encoded["input_word_ids"], encoded["input_type_ids"]
        shape = [None, length]
        return dict(
            input_word_ids=word_ids.to_tensor(self.pad_id, shape=shape),
            input_mask=tf.ones_like(word_ids).to_tensor(0, shape=shape),
            input_type_ids=type_ids.to_tensor(0, shape=shape),
        )


def _truncate(tokens: tf.RaggedTensor, limit) -> tf.RaggedTensor:
    """Keeps the first `limit` (a scalar or [B]) tokens of each row."""
    keep = tf.minimum(tokens.row_lengths(), tf.cast(limit, tf.int64))
    return tf.ragged.boolean_mask(tokens, tf.ragged.range(tokens.row_lengths()) < keep[:, tf.newaxis])
