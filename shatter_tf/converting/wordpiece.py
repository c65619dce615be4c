"""The tokenizer of a Hugging Face BERT: its vocabulary, and whether it is tokenized as BERT's always is."""

import dataclasses
import os
import re
from typing import Any, Optional

from shatter_tf.converting.source import has, read_json
from shatter_tf.converting.weights import listed
from shatter_tf.data.corpus.shards import VOCABULARY_FILE
from shatter_tf.data.vocabulary import SPECIAL_TOKENS, UNKNOWN, check_vocabulary, read_vocabulary
from shatter_tf.errors import UserError, collected, raise_all

_TOKENIZER, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_SPECIAL, _ADDED = "special_tokens_map.json", "added_tokens.json"

# Files of other tokenizers than WordPiece.
_OTHER_KINDS = {
    "spiece.model": "SentencePiece",
    "sentencepiece.bpe.model": "SentencePiece",
    "tokenizer.model": "SentencePiece",
    "merges.txt": "BPE",
}
_CLASSES = ("BertTokenizer", "BertTokenizerFast")
# Without tokenizer.json, which says all that it does, the class has to.
_FAST_CLASSES = (*_CLASSES, "PreTrainedTokenizerFast", "TokenizersBackend")

# Defaults of transformers' BertTokenizer, of which another value is refused.
_USUAL = dict(do_basic_tokenize=True, tokenize_chinese_chars=True, never_split=None)

_UNLIMITED = 10**9  # transformers writes 10**30 for tokenizers without a limit

_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")

_NORMALIZERS = {None: "bert", True: "bert_strip_accents", False: "bert_keep_accents"}


@dataclasses.dataclass
class WordPiece:
    """A BERT's tokenizer.

    Attributes:
      longest: of its texts, in tokens; 0 where nothing is said.
      notes: what was decided without being said there.
    """

    vocabulary: list[str]
    lower_case: bool
    normalizer: str
    longest: int
    notes: list[str]


def is_cased(vocabulary: list[str]) -> bool:
    """Returns whether wordpieces have capitals; special tokens, as [MASK] and [unused1], do not count.

    Example:
    >>> is_cased(["[UNK]", "cat"]), is_cased(["[UNK]", "Cat"])
    (False, True)
    """
    return any(re.search("[A-Z]", piece) for piece in vocabulary if not re.fullmatch(r"\[.*\]", piece))


def casing_of(vocabulary: list[str]) -> tuple[bool, str]:
    """Returns whether an uncased tokenizer made a vocabulary, and a line on how that is known."""
    if is_cased(vocabulary):
        return False, f"{VOCABULARY_FILE} has capitals, so the tokenizer is cased"
    return True, f"{VOCABULARY_FILE} has no capitals, so the tokenizer is uncased"


def read(directory: str) -> WordPiece:
    """Returns the tokenizer in a directory; raises UserError with all that is not as in BERT."""
    problems: list[str] = []
    for file, kind in _OTHER_KINDS.items():
        if has(directory, file):
            raise UserError(f"{os.path.join(directory, file)}: {kind}; only BERT's WordPiece can be converted")

    settings: dict[str, Any] = {}
    fast: Optional[dict[str, Any]] = None
    with collected(problems):
        settings = read_json(os.path.join(directory, _SETTINGS)) if has(directory, _SETTINGS) else {}
    with collected(problems):
        fast = read_json(os.path.join(directory, _TOKENIZER)) if has(directory, _TOKENIZER) else None
    raise_all(problems)

    # What it does to text.
    problems += _of_settings(os.path.join(directory, _SETTINGS), settings, fast is not None)
    for file in (_SPECIAL, _ADDED):
        if has(directory, file):
            with collected(problems):
                problems += _special_tokens(os.path.join(directory, file), read_json(os.path.join(directory, file)))
    lower_case = settings.get("do_lower_case")
    strip_accents = settings.get("strip_accents")
    vocabulary = None
    if fast is not None:
        path = os.path.join(directory, _TOKENIZER)
        problems += _of_fast(path, fast)
        normalizer = fast.get("normalizer") or {}
        for name, fast_name in (("do_lower_case", "lowercase"), ("strip_accents", "strip_accents")):
            said, done = settings.get(name), normalizer.get(fast_name)
            if said is not None and said != done:
                problems.append(
                    f"{path}: normalizer.{fast_name}={done}, but {name}={said} in {_SETTINGS}; keep the one that the "
                    "model was trained with in both"
                )
        lower_case = normalizer.get("lowercase")
        strip_accents = normalizer.get("strip_accents")
        with collected(problems):
            vocabulary = _vocabulary(path, fast)

    # The wordpieces.
    with collected(problems):
        if has(directory, VOCABULARY_FILE):
            own = read_vocabulary(os.path.join(directory, VOCABULARY_FILE))
            if vocabulary not in (None, own):
                problems.append(f"{directory}: {VOCABULARY_FILE} and {_TOKENIZER} have different wordpieces")
            vocabulary = own
        elif fast is None:
            raise UserError(f"{directory}: it has neither {VOCABULARY_FILE} nor {_TOKENIZER}; copy the tokenizer, too")
    raise_all(problems)

    notes = []
    if lower_case is None:
        lower_case, note = casing_of(vocabulary)
        notes.append(note)
    longest = settings.get("model_max_length")
    longest = longest if type(longest) is int and 0 < longest < _UNLIMITED else 0
    return WordPiece(vocabulary, lower_case, _NORMALIZERS[strip_accents], longest, notes)


def _of_settings(path: str, settings: dict[str, Any], has_fast: bool) -> list[str]:
    """Returns a line for each unusual setting of a tokenizer_config.json."""
    known = _FAST_CLASSES if has_fast else _CLASSES
    problems = []
    kind = settings.get("tokenizer_class") or known[0]
    if kind not in known:
        problems.append(f"{path}: tokenizer_class={kind} is not one of {', '.join(known)}")
    for name, usual in _USUAL.items():
        if settings.get(name, usual) != usual:
            problems.append(f"{path}: {name}={settings[name]}, and for BERT it is {usual}")
    for name in ("do_lower_case", "strip_accents"):
        if settings.get(name) not in (None, True, False):
            problems.append(f"{path}: {name}={settings[name]} is not true or false")
    return problems + _special_tokens(path, settings)


def _special_tokens(path: str, settings: dict[str, Any]) -> list[str]:
    """Returns a line for each special token in a file that BERT does not have."""
    problems = []
    for name, usual in zip(_ROLES, SPECIAL_TOKENS, strict=True):
        token = _content(settings.get(name)) or usual
        if token != usual:
            problems.append(f"{path}: {name}={token}, and only {usual} is understood")

    more = settings.get("additional_special_tokens") or []
    added = settings.get("added_tokens_decoder") or {}
    tokens = [*map(_content, more), *map(_content, added.values())]
    if os.path.basename(path) == _ADDED:
        tokens = [*settings]
    tokens = [token for token in dict.fromkeys(tokens) if token not in SPECIAL_TOKENS]
    if tokens:
        problems.append(f"{path}: it adds the tokens {listed(map(repr, tokens))}, which WordPiece would not find")
    return problems


def _content(token: Any) -> Optional[str]:
    return token.get("content") if isinstance(token, dict) else token


def _of_fast(path: str, fast: dict[str, Any]) -> list[str]:
    """Returns a line for each setting of a tokenizer.json that BERT does not have."""
    model = fast.get("model") or {}
    normalizer = fast.get("normalizer") or {}
    if model.get("type", "WordPiece") != "WordPiece":
        return [f"{path}: model.type={model['type']}; only BERT's WordPiece can be converted"]

    found = {
        "model.unk_token": (model.get("unk_token"), UNKNOWN),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix"), "##"),
        "model.max_input_chars_per_word": (model.get("max_input_chars_per_word"), 100),
        "normalizer.type": (normalizer.get("type"), "BertNormalizer"),
        "normalizer.clean_text": (normalizer.get("clean_text"), True),
        "normalizer.handle_chinese_chars": (normalizer.get("handle_chinese_chars"), True),
        "pre_tokenizer.type": ((fast.get("pre_tokenizer") or {}).get("type"), "BertPreTokenizer"),
    }
    if found["normalizer.type"][0] != found["normalizer.type"][1]:  # then it has other settings
        del found["normalizer.clean_text"], found["normalizer.handle_chinese_chars"]
    problems = [
        f"{path}: {name}={value}, and for BERT it is {usual}"
        for name, (value, usual) in found.items()
        if value != usual
    ]
    if not _has_usual_ends(fast.get("post_processor") or {}):
        problems.append(f"{path}: post_processor does not make [CLS] text [SEP], as BERT's does")
    return problems + _special_tokens(path, {"additional_special_tokens": fast.get("added_tokens")})


def _has_usual_ends(processor: dict[str, Any]) -> bool:
    """Whether what comes after WordPiece puts a text between [CLS] and [SEP]."""
    if processor.get("type") == "BertProcessing":
        return True
    pieces = [(next(iter(piece)), next(iter(piece.values()))["id"]) for piece in processor.get("single", [])]
    return pieces == [("SpecialToken", "[CLS]"), ("Sequence", "A"), ("SpecialToken", "[SEP]")]


def _vocabulary(path: str, fast: dict[str, Any]) -> list[str]:
    """Returns the wordpieces of a tokenizer.json in the order of their ids; raises UserError for ids with gaps."""
    ids = (fast.get("model") or {}).get("vocab")
    if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: the ids of model.vocab are not 0, 1, 2, …; copy it again")
    vocabulary = sorted(ids, key=ids.get)
    check_vocabulary(vocabulary, path)
    return vocabulary
