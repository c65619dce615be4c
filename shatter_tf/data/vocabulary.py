"""WordPiece vocabularies: read, checked, trained."""

import collections
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
from tokenizers import BertWordPieceTokenizer

from shatter_tf.data.text import chunks, in_graph, normalize_unicode
from shatter_tf.errors import UserError, first_line
from shatter_tf.files import write_whole

# The most characters in a trained vocabulary; more if they are needed for this share of the text. Alphabets are small,
# but Chinese has thousands of characters.
_CHARACTERS = 1000
_COVERAGE = 0.9995

_CHUNK_CHARACTERS = 1 << 18  # normalized at a time
_REPEATED = 1_000  # times that a word is in one text that the trainer gets

# Wordpieces for texts of fewer bytes.
_SIZES = ((20e6, 4096), (500e6, 8192), (2e9, 16384))
_LARGEST = 30522

# How each piece of another kind of vocabulary may look; WordPiece marks what continues a word, by ##.
_OTHER_KINDS = {"SentencePiece": r"▁.|.*\t-?[\d.]+(e-?\d+)?$", "byte-level BPE": r"Ġ.", "BPE": r".+</w>$"}
_SHARE = 0.05  # of the pieces, at least, are marked in each kind's own way

# What is done to text before it is cut into wordpieces: our own way, and Hugging Face's for BERT; see `Tokenizer`.
NORMALIZERS = ("", "bert", "bert_strip_accents", "bert_keep_accents")

NORMALIZER_FILE = "normalizer.json"  # beside a vocab.txt, if it is not our own way
_DESCRIPTIONS = ("experiment.json", "corpus.json")  # of runs and corpora, which say it, too

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: str) -> list[str]:
    """Returns the wordpieces of a vocab.txt, one a line; the line number is the id.

    Blank lines at the end are ignored.

    Raises:
      UserError: when the file is missing or empty, is not WordPiece, lacks a special token, or repeats a wordpiece.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such vocabulary file")
    with tf.io.gfile.GFile(path, "rb") as f:
        try:
            vocabulary = f.read().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: invalid UTF-8 at byte {error.start}") from error
        except tf.errors.OpError as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)})") from error

    _check_kind(vocabulary, path)
    check_vocabulary(vocabulary, path)
    return vocabulary


def read_normalizer(vocab_path: str) -> tuple[str, bool] | None:
    """Returns the normalizer that a vocab.txt needs, and whether it is uncased; None if no file beside it says so.

    Raises:
      UserError: when that file is damaged.
    """
    paths = (os.path.join(os.path.dirname(vocab_path), name) for name in (NORMALIZER_FILE, *_DESCRIPTIONS))
    path = next(filter(tf.io.gfile.exists, paths), None)
    if path is None:
        return None
    try:
        with tf.io.gfile.GFile(path) as f:
            about = json.load(f)
        normalizer = about.get("normalizer", "")
        lower_case = about["lower_case"]
        if not isinstance(lower_case, bool):
            raise TypeError(f"lower_case={lower_case!r} is not true or false")
    except (tf.errors.OpError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); copy it again, or remove it") from error
    check_normalizer(normalizer, f"{path}: normalizer={normalizer}")
    return normalizer, lower_case


def write_normalizer(directory: str, normalizer: str, lower_case: bool) -> None:
    """Writes what `read_normalizer` reads beside the vocab.txt in `directory`, if a normalizer is set."""
    if normalizer:
        about = dict(normalizer=normalizer, lower_case=lower_case)
        write_whole(os.path.join(directory, NORMALIZER_FILE), json.dumps(about) + "\n")


def check_normalizer(normalizer: str, where: str) -> None:
    """Raises UserError unless there is such a normalizer; `where` says what set it."""
    if normalizer not in NORMALIZERS:
        raise UserError(f"{where}: use {', '.join(filter(None, NORMALIZERS))}, or leave it empty for our own")


def _check_kind(vocabulary: list[str], path: str) -> None:
    """Raises UserError for a vocabulary of another kind than WordPiece."""
    least = _SHARE * len(vocabulary)
    if sum(piece.startswith("##") for piece in vocabulary) >= least:
        return
    for kind, pattern in _OTHER_KINDS.items():
        marked = [piece for piece in vocabulary if re.match(pattern, piece)]
        if len(marked) >= max(least, 1):
            raise UserError(
                f"{path}:{vocabulary.index(marked[0]) + 1}: {marked[0]!r}: this is a {kind} vocabulary; WordPiece is "
                "needed: give the vocab.txt of a BERT, or train one with `shatter prepare`"
            )


def check_vocabulary(vocabulary: list[str], path: str) -> None:
    """Raises UserError unless `vocabulary` can be used to tokenize; `path` says where it came from."""
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise UserError(f"{path}: the vocabulary lacks {' '.join(missing)}; add each on a line of its own")
    if len(vocabulary) == len(SPECIAL_TOKENS):
        raise UserError(f"{path}: there are no wordpieces but special tokens; give more text")

    seen = {}
    for line, token in enumerate(vocabulary, 1):
        if token in seen:
            raise UserError(f"{path}:{line}: {token!r} stands on line {seen[token]} already")
        seen[token] = line


def vocabulary_hash(vocabulary: list[str]) -> str:
    """Returns the SHA-256 that tells whether a corpus and a checkpoint share a vocabulary."""
    return hashlib.sha256("\n".join(vocabulary).encode()).hexdigest()


def is_of_hash(vocabulary: list[str], sha256: str) -> bool:
    """Returns whether `sha256` is the hash of a vocabulary; older versions took a blank last line for a wordpiece."""
    return sha256 in (vocabulary_hash(vocabulary), vocabulary_hash([*vocabulary, ""]))


def is_ordinary(vocabulary: Sequence[str]) -> np.ndarray:
    """Returns for each wordpiece whether it is not a special token, bool [len(vocabulary)].

    Example:
    >>> is_ordinary(["[PAD]", "cat"]).tolist()
    [False, True]
    """
    return np.array([token not in SPECIAL_TOKENS for token in vocabulary])


def suitable_size(size: int) -> int:
    """Returns how many wordpieces suit a text of so many bytes, or characters.

    4,096 and 8,192 are what was measured with, on 5 and 152 MB; the largest is BERT's.

    Example:
    >>> suitable_size(5_000_000), suitable_size(150_000_000)
    (4096, 8192)
    """
    return next((pieces for most, pieces in _SIZES if size < most), _LARGEST)


def train_vocabulary(documents: Iterable[str], size: int, lower_case: bool) -> list[str]:
    """Returns a WordPiece vocabulary of at most `size` pieces, trained by the `tokenizers` library.

    It is trained on text as `Tokenizer` sees it. The same documents give the same pieces, sorted, after the special
    tokens.
    """

    def train(texts: Iterable[bytes], **settings) -> set[str]:
        trainer = BertWordPieceTokenizer(lowercase=False, strip_accents=False)
        texts = (text.decode() for text in texts)
        trainer.train_from_iterator(texts, min_frequency=2, show_progress=False, **settings)
        return set(trainer.get_vocab())

    # How often each word and each character occurs: less to keep than the text.
    def normalized(text: tf.Tensor) -> tf.Tensor:
        normalizer = tf_text.FastBertNormalizer(lower_case_nfd_strip_accents=lower_case)
        return normalizer.normalize(normalize_unicode(text, lower_case))

    words: collections.Counter[bytes] = collections.Counter()
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    with in_graph(normalized) as normalize:
        for chunk in chunks(documents, len, _CHUNK_CHARACTERS):
            (text,) = normalize(["\n".join(chunk)])
            counts += np.bincount(np.frombuffer(text.decode().encode("utf-32-le"), np.uint32), minlength=len(counts))
            words.update(text.split())

    # How many characters to keep.
    coverage = np.cumsum(np.sort(counts)[::-1]) / max(counts.sum(), 1)
    limit = max(_CHARACTERS, 1 + np.searchsorted(coverage, _COVERAGE))
    limit = min(int(limit), (size - len(SPECIAL_TOKENS)) // 2)  # each at a word's start and inside

    # The library breaks ties by the numbers of pieces, and numbers characters in an order that changes from run to run.
    # So characters are found first, and passed to it in a fixed order.
    pieces = train(words, vocab_size=0, special_tokens=[], limit_alphabet=len(counts))
    characters = sorted((p for p in pieces if len(p) == 1), key=lambda c: (-counts[ord(c)], c))[:limit]
    kept = set(characters)
    pieces = train(
        _repeated(words),
        vocab_size=size,
        special_tokens=[*SPECIAL_TOKENS, *sorted(p for p in pieces if p[-1] in kept)],
        limit_alphabet=len(characters),
        initial_alphabet=characters,
    )
    return [*SPECIAL_TOKENS, *sorted(pieces - set(SPECIAL_TOKENS))]


def _repeated(words: collections.Counter[bytes]) -> Iterator[bytes]:
    """Yields texts in which every word is as often as it was counted; empties the counter, to save memory."""
    while words:
        word, count = words.popitem()
        for begin in range(0, count, _REPEATED):
            yield b" ".join([word] * min(_REPEATED, count - begin))
