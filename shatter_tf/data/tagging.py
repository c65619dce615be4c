"""Sentences of tagged words from files of any format, as batches.

In files of columns each line is a word and its tags, and blank lines separate sentences; in files of records (JSON,
Parquet, Arrow, what `datasets` saved) each is a sentence: a list of words and one of tags, or a text and the spans of
its entities. Tags of entities become IOB2, and their words are cut as served texts are; see entities.py.

The order of batches is that of `batches.order_of_rows`: what a step sees is a pure function of (data, seed, step).
"""

import dataclasses
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
import tensorflow as tf
from official.nlp.data import data_loader_factory

from shatter_tf.data import entities, labelled, records, streams, tables
from shatter_tf.data.batches import TextDataConfig, batches_of_rows
from shatter_tf.data.names import TEXTS, fold
from shatter_tf.data.records import Record, Records
from shatter_tf.data.text import whole_characters
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import read_vocabulary
from shatter_tf.errors import UserError, argument, nearest

COLUMN_EXTENSIONS = (".tsv", ".tab", ".txt", ".conll", ".conllu", ".bio", ".iob", ".iob2")
EXTENSIONS = (*COLUMN_EXTENSIONS, *records.EXTENSIONS)
NO_TAG = -1  # the label of wordpieces that do not begin a word, as in Model Garden

_ALL = "all"
_LONGEST = 1000  # words of a sentence; more look like a file without blank lines

# Well-known names, folded; of several, the earliest counts.
_WORDS = ("tokens", "words", "token", "word", "form", "forms")
_TAGS = (
    *("tags", "ner_tags", "ner", "labels", "label", "pos_tags", "upos", "pos", "tag", "xpos"),
    *("ner_tag", "pos_tag", "upos_tags", "bio_tags", "iob_tags", "bio", "iob", "chunk_tags"),
)
_SPANS = ("spans", "entities", "labels", "label", "annotations")
_REFUSED = ("reject", "ignore")  # Prodigy's `answer`
_BEGINS, _ENDS = ("start", "start_offset", "begin"), ("end", "end_offset")


@dataclasses.dataclass
class TaggingDataConfig(TextDataConfig):
    """Tagged sentences as batches.

    Attributes:
      seq_length: longest sentence in tokens. Words that begin beyond it are cut off; they do not count in the metrics.
      labels: tags in the order of their ids; empty takes them, sorted, from the training sentences.
      text_fields: the column or field of the words, or of the text whose entities are given by spans, as a list of one;
        empty takes a well-known one. Columns without names have numbers, from 1 on.
      label_field: the column or field of the tags or spans; empty takes a well-known one, and of columns without names
        the last. In CoNLL-U it may also be a key of MISC or FEATS.
      share: which of the sentences are meant: all, held_out, a tenth of them by a hash of the text, or not_held_out.
      at_punctuation: whether words are cut around punctuation; follows from the data, see entities.py.
    """

    labels: list[str] = dataclasses.field(default_factory=list)
    text_fields: list[str] = dataclasses.field(default_factory=list)
    label_field: str = ""
    share: str = _ALL
    at_punctuation: bool = False


@dataclasses.dataclass
class Sentence:
    """Words with a tag each.

    Attributes:
      words, tags: equally many.
      path: where it is from.
      lines: those of the words, where each has its own.
    """

    words: list[str]
    tags: list[str]
    path: str
    lines: Sequence[int] = ()

    def place(self, word: int) -> str:
        """Returns the location of a word, for messages."""
        return f"{self.path}:{self.lines[word]}" if self.lines else self.path

    # As `labelled.hold_out` wants rows.

    @property
    def texts(self) -> tuple[str]:
        return (" ".join(self.words),)

    @property
    def where(self) -> str:
        return self.place(0)


class Tagged(NamedTuple):
    """The sentences of a file, and a line that says how it was understood."""

    sentences: list[Sentence]
    note: str


def choose_files(train: TaggingDataConfig, validation: TaggingDataConfig, data_dir: Optional[str]) -> None:
    """Sets the files to train and validate on that are not set; without one to validate on, sentences are held out.

    Raises:
      UserError: when there is none to train on.
    """
    if data_dir and not train.input_path:
        train.input_path = tables.find_file(data_dir, ["train"], EXTENSIONS) or ""
        if not train.input_path and tables.is_table(data_dir):  # a single dataset that `datasets` saved
            train.input_path = data_dir
        if not train.input_path:
            there = ", ".join(sorted(tf.io.gfile.listdir(data_dir))[:10]) or "nothing"
            names = f"train{', train'.join(EXTENSIONS)}"
            raise UserError(
                f"{argument('data_dir')}={data_dir}: it has none of {names}, but {there}; {argument('train_file')} "
                "takes any name"
            )
    if not train.input_path:
        raise UserError(f"no tagged sentences: give {argument('data_dir')} or {argument('train_file')}")
    if data_dir and not validation.input_path and train.input_path != data_dir:
        validation.input_path = tables.find_file(data_dir, labelled.DEV_NAMES, EXTENSIONS) or ""
    if not validation.input_path:
        validation.input_path = train.input_path
        train.share, validation.share = labelled.NOT_HELD_OUT, labelled.HELD_OUT


def load_sentences(params: TaggingDataConfig) -> list[Sentence]:
    """Returns the sentences that a config names; raises UserError."""
    if not params.input_path:
        raise UserError(f"no tagged sentences: give {argument('data_dir')} or {argument('train_file')}")
    sentences = read_sentences(params.input_path, params.text_fields, params.label_field, params.labels).sentences
    if params.share != _ALL:
        sentences = labelled.hold_out(sentences)[params.share == labelled.HELD_OUT]
    return cut_words(sentences) if params.at_punctuation else sentences


def read_sentences(
    path: str, text_fields: Sequence[str] = (), label_field: str = "", labels: Sequence[str] = ()
) -> Tagged:
    """Returns the sentences of a file; tags of entities in IOB2, unless `labels` are of another scheme.

    Args:
      path: columns or records, which may be packed.
      text_fields, label_field, labels: as in TaggingDataConfig.

    Raises:
      UserError: with its location, for a line or record without word or tag, a sentence without words or with another
        number of tags, and a span that fits no words; and for a file that cannot be read, or whose columns are not
        clear.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"{path}: no such file")
    if len(text_fields) > 1:
        raise UserError(f"{argument('text_fields')}={','.join(text_fields)}: give one, that of the words or the text")
    word_field = next(iter(text_fields), "")

    if streams.plain_name(path).endswith(COLUMN_EXTENSIONS) and not tf.io.gfile.isdir(path):
        sentences, notes = _read_columns(path, word_field, label_field)
    elif records.holds_records(path):
        sentences, notes = _read_records(path, word_field, label_field, labels)
    else:
        packed = ", ".join(streams.PACKED_EXTENSIONS)
        raise UserError(f"{path}: the name must end in {', '.join(EXTENSIONS)}, and may have {packed} after that")

    if not sentences:
        raise UserError(f"{path}: the file has no sentences")
    for sentence in sentences:
        for i, (word, tag) in enumerate(zip(sentence.words, sentence.tags, strict=True)):
            if not word or not tag:
                raise UserError(f"{sentence.place(i)}: the {'tag' if word else 'word'} is empty")
    notes += _convert(sentences, labels)
    number = f"{len(sentences):,} sentence{'s' * (len(sentences) != 1)}"
    return Tagged(sentences, f"{path}: {'; '.join([*notes, number])}")


def _convert(sentences: list[Sentence], labels: Sequence[str]) -> list[str]:
    """Makes tags of entities IOB2, unless `labels` are of another scheme; returns notes on that."""
    converted = entities.to_iob2([sentence.tags for sentence in sentences])
    if not converted.scheme:
        return []
    if labels and any(str(tag)[:2] not in ("B-", "I-") for tag in labels if tag != "O"):
        return [f"{converted.scheme} tags, as they are"]

    for sentence, tags in zip(sentences, converted.tags, strict=True):
        sentence.tags = tags
    notes = [f"{converted.scheme} tags" + (", read as IOB2" if converted.scheme != "IOB2" else "")]
    if converted.odd:
        sentence, word = converted.odd[0]
        number = len(converted.odd)
        what = "1 entity does" if number == 1 else f"{number:,} entities do"
        notes.append(f"{what} not begin as these do, the first at {sentences[sentence].place(word)}")
    return notes


def cut_words(sentences: list[Sentence]) -> list[Sentence]:
    """Returns sentences whose words are cut around punctuation, as served texts are; each piece goes on with the tag.

    Example:
    >>> (sentence,) = cut_words([Sentence(["In", "St.", "Ives"], ["O", "B-LOC", "I-LOC"], "train.tsv", [4, 5, 6])])
    >>> sentence.words, sentence.tags, sentence.lines
    (['In', 'St', '.', 'Ives'], ['O', 'B-LOC', 'I-LOC', 'I-LOC'], [4, 5, 5, 6])
    """
    pieces = iter(entities.cut([word for sentence in sentences for word in sentence.words]))
    found = []
    for sentence in sentences:
        parts = list(itertools.islice(pieces, len(sentence.words)))
        tags = [
            tag if first else entities.continued(tag)
            for tag, part in zip(sentence.tags, parts, strict=True)
            for first in (True, *[False] * (len(part) - 1))
        ]
        lines = [line for line, part in zip(sentence.lines, parts, strict=bool(sentence.lines)) for _ in part]
        found.append(Sentence([*itertools.chain(*parts)], tags, sentence.path, lines))
    return found


def _first(names: Iterable[str], known: Sequence[str]) -> Optional[str]:
    """Returns the name that is the earliest of the known ones, if there is any."""
    by_folded = {fold(name): name for name in reversed(list(names))}
    return next((by_folded[name] for name in known if name in by_folded), None)


def _given(path: str, names: Sequence[str], name: str, flag: str) -> str:
    """Returns the one of `names` that a flag gives; raises UserError when there is none."""
    for exists in names:
        if name in (exists, fold(exists)):
            return exists
    by_folded = {fold(exists): exists for exists in names}
    if fold(name) in by_folded:
        return by_folded[fold(name)]
    raise UserError(f"{path}: no {argument(flag)}={name}{nearest(name, names)}; there are {', '.join(names)}")


def _left_out(names: Iterable[str], taken: Sequence[str]) -> list[str]:
    others = [repr(name) for name in names if name not in taken]
    return [f"left out: {', '.join(others)}"] if others else []


# === Columns ===

_CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
_CONLLU_ID = re.compile(r"\d+([-.]\d+)?")
_KEYED = ("FEATS", "MISC")  # columns of CoNLL-U that hold Key=Value|Key=Value
_NONE = "_"  # what CoNLL-U has where there is nothing

_Row = tuple[int, list[str]]  # its line, counted from 1, and its cells


class _Layout(NamedTuple):
    """What the lines of a file of columns are.

    Attributes:
      names: of the columns; numbers from 1 on where the file has none.
      blocks: the rows of each sentence.
      notes: how it was understood.
    """

    names: Sequence[str]
    blocks: list[list[_Row]]
    notes: list[str]


def _read_columns(path: str, word_field: str, tag_field: str) -> tuple[list[Sentence], list[str]]:
    names, blocks, notes = _layout(path, word_field, tag_field)
    if not blocks:
        return [], notes

    # Which columns. In CoNLL-U, tags may also be the values of a key.
    word_name = _given(path, names, word_field, "text_fields") if word_field else _word_column(names, blocks)
    keys: list[str] = []
    if names == _CONLLU and tag_field and not _first(names, [fold(tag_field)]):
        keys = sorted({key for _, cells in itertools.chain(*blocks) for key, _ in _key_values(cells)})
    tag_name = _given(path, [*names, *keys], tag_field, "label_field") if tag_field else _tag_column(names)
    if word_name == tag_name:
        raise UserError(f"{path}: column {tag_name} cannot be both the words and the tags")
    notes += [f"words: column {word_name}", f"tags: {'key' if tag_name in keys else 'column'} {tag_name}"]

    def tag_of(cells: list[str]) -> str:
        return dict(_key_values(cells)).get(tag_name, _NONE) if tag_name in keys else cells[names.index(tag_name)]

    sentences = []
    for block in blocks:
        words = [cells[names.index(word_name)].strip() for _, cells in block]
        tags = [tag_of(cells).strip() for _, cells in block]
        sentences.append(Sentence(words, tags, path, [line for line, _ in block]))
    if names == _CONLLU:
        _fill_gaps(path, sentences, tag_name)
    _refuse_what_has_no_sentences(path, sentences)

    long = [sentence for sentence in sentences if len(sentence.words) > _LONGEST]
    if long:
        notes.append(f"{len(long):,} longer than {_LONGEST:,} words, the first at line {long[0].lines[0]}")
    return sentences, notes


def _layout(path: str, word_field: str, tag_field: str) -> _Layout:
    """Returns the rows of a file without comments, marks of documents and a header.

    Raises:
      UserError: for a row with another number of columns than most have.
    """
    lines = [line.strip() for line in streams.read_lines(path)]
    filled = [line for line in lines if line]
    telling = [line for line in filled if not line.startswith("#")] or filled
    has_tabs = 2 * sum("\t" in line for line in telling) >= len(telling)
    rows = [re.split("\t" if has_tabs else r"[ \t]+", line) if line else [] for line in lines]

    telling_rows = [row for line, row in zip(lines, rows, strict=True) if line and line[:1] != "#"]
    lengths = Counter(len(row) for row in telling_rows or filter(None, rows))
    number = lengths.most_common(1)[0][0] if lengths else 0
    is_conllu = has_tabs and number == len(_CONLLU) and all(_CONLLU_ID.fullmatch(row[0]) for row in telling_rows)

    skipped = Counter()
    blocks: list[list[_Row]] = [[]]
    for line, (text, cells) in enumerate(zip(lines, rows, strict=True), 1):
        is_odd = len(cells) != number
        if not cells:
            blocks.append([])
        elif cells[0] == "-DOCSTART-":
            skipped["document mark"] += 1
            blocks.append([])
        elif text.startswith("#") and (is_odd or (text.startswith("# ") and "=" in text and not has_tabs)):
            skipped["comment"] += 1
        elif is_odd or number == 1:
            first = next(i for i, row in enumerate(rows, 1) if len(row) == number)
            but = f", but line {first} has {number}" if is_odd and number > 1 else ""
            raise UserError(
                f"{path}:{line}: {len(cells)} column(s){but}; expected word, tag, with "
                f"{'tabs' if has_tabs else 'tabs or spaces'} between columns"
            )
        elif is_conllu and not cells[0].isdigit():
            skipped["multiword range" if "-" in cells[0] else "empty node"] += 1
        else:
            blocks[-1].append((line, cells))
    blocks = [block for block in blocks if block]

    notes = [f"{'tabs' if has_tabs else 'spaces'} between {number} columns" + (", CoNLL-U" if is_conllu else "")]
    names: Sequence[str] = _CONLLU if is_conllu else [str(i + 1) for i in range(number)]
    if blocks and not is_conllu and _is_header(blocks, word_field, tag_field):
        line, names = blocks[0].pop(0)
        blocks = [block for block in blocks if block]
        notes.append(f"line {line} is a header ({', '.join(names)})")
    notes += [f"{count:,} {what}{'s' * (count != 1)} skipped" for what, count in skipped.items()]
    return _Layout(names, blocks, notes)


def _is_header(blocks: list[list[_Row]], word_field: str, tag_field: str) -> bool:
    """Returns whether the first row names the columns: by well-known or given names, or by a tag unlike all others."""
    (_, first), *others = itertools.chain(*blocks)
    names = [fold(cell) for cell in first]
    given = {fold(name) for name in (word_field, tag_field) if name and not name.isdigit()}
    if given and given <= {*names}:
        return True

    word = _first(names, _WORDS)
    of_tags = [i for i, name in enumerate(names) if name in _TAGS and name != word]
    is_new = all(first[i] not in {cells[i] for _, cells in others} for i in of_tags)
    if word and of_tags and is_new:
        return True

    last = {cells[-1].strip() for _, cells in others}
    return bool(entities.to_iob2([last]).scheme) and not entities.to_iob2([[first[-1].strip(), *last]]).scheme


def _word_column(names: Sequence[str], blocks: list[list[_Row]]) -> str:
    """Returns the column with a well-known name, or the first that does not number the words."""
    return _first(names, _WORDS) or names[1 if len(names) > 2 and _are_counted(blocks) else 0]


def _tag_column(names: Sequence[str]) -> str:
    """Returns the last column with a well-known name, or else the last."""
    if names == _CONLLU:
        return "UPOS"
    return next((name for name in reversed(names) if fold(name) in _TAGS), names[-1])


def _are_counted(blocks: list[list[_Row]]) -> bool:
    """Returns whether the first column numbers the words of each sentence, from 0 or 1 on."""
    numbers = [[cells[0] for _, cells in block] for block in blocks]
    return any(all(row == [str(i + first) for i in range(len(row))] for row in numbers) for first in (0, 1)) and any(
        len(row) > 1 for row in numbers
    )


def _key_values(cells: list[str]) -> Iterator[tuple[str, str]]:
    for name in _KEYED:
        for part in cells[_CONLLU.index(name)].split("|"):
            key, is_pair, value = part.partition("=")
            if is_pair:
                yield key, value


def _fill_gaps(path: str, sentences: list[Sentence], column: str) -> None:
    """Makes words without a tag in CoNLL-U those outside of entities, where tags mark these.

    Raises:
      UserError: when no word has a tag.
    """
    different = {tag for sentence in sentences for tag in sentence.tags} - {_NONE}
    if not different:
        raise UserError(
            f"{path}: column {column} is empty ({_NONE}); another is taken by {argument('label_field')}, such as xpos"
        )
    if entities.to_iob2([different]).scheme:
        for sentence in sentences:
            sentence.tags = ["O" if tag == _NONE else tag for tag in sentence.tags]


def _refuse_what_has_no_sentences(path: str, sentences: list[Sentence]) -> None:
    """Raises UserError for a file of labelled texts, and for one whose sentences are not separated."""
    if len(sentences) > 1:
        return
    (sentence,) = sentences
    number = len(sentence.words)
    several = sum(len(word.split()) > 1 for word in sentence.words)
    if number > 1 and several > number / 2:
        raise UserError(
            f"{sentence.place(0)}: {number:,} lines without a blank line, most with a text of several words: labelled "
            f"texts are for {argument('experiment')}=shatter/classify; here each line is a word and its tag"
        )
    if number > _LONGEST:
        raise UserError(
            f"{sentence.place(0)}: {number:,} words without a blank line; put one between sentences, which may have up "
            f"to {_LONGEST:,} words"
        )


# === Records ===


def _read_records(
    path: str, word_field: str, tag_field: str, labels: Sequence[str]
) -> tuple[list[Sentence], list[str]]:
    found = _pairs_with_entities(path) or records.read_records(path)
    rows = list(found.rows)
    if not rows:
        return [], []

    # Which fields.
    if word_field:
        word_field = _given(path, found.fields, word_field, "text_fields")
    if tag_field:
        tag_field = _given(path, found.fields, tag_field, "label_field")
    of_words = word_field or _first(found.fields, _WORDS)
    text = word_field or _first(found.fields, TEXTS)
    tags = tag_field or (_first(found.fields, _TAGS) if of_words else None)
    spans = tag_field or _first(found.fields, _SPANS)
    is_text = not of_words or not tags or _holds_spans(rows, tags) or isinstance(rows[0].values.get(of_words), str)
    if text and spans and is_text:
        words, tags = text, tags if tags and _holds_spans(rows, tags) else spans
        what = ("text", "spans")
        sentences, more = _of_spans(rows, words, tags)
    elif of_words and tags:
        words = of_words
        what = ("words", "tags")
        names = found.names.get(tags) or _names_beside(path) or list(labels)
        sentences, more = _of_tags(rows, words, tags, names)
    else:
        missing, flag = (
            ("the tags or spans", "label_field") if of_words or text else ("the words or text", "text_fields")
        )
        there = ", ".join(map(repr, found.fields))
        raise UserError(f"{rows[0].where}: which field has {missing}? Give {argument(flag)}; there are {there}")

    notes = [f"{of}: {name!r}" for of, name in zip(what, (words, tags), strict=True)]
    return sentences, [*notes, *_left_out(found.fields, [words, tags]), *more]


def _holds_spans(rows: list[Record], field: str) -> bool:
    """Returns whether a field has spans: lists or objects, where tags are strings or numbers."""
    values = (row.values.get(field) for row in rows)
    first = next((value for value in values if value), None)
    return isinstance(first, list) and isinstance(first[0], (list, tuple, dict))


def _pairs_with_entities(path: str) -> Optional[Records]:
    """Returns the records of a file of pairs [text, {"entities": […]}], as spaCy had them; None for another file."""
    is_pairs = not tf.io.gfile.isdir(path) and re.match(rb'\s*(\[\s*)?\[\s*"', streams.beginning(path))
    if not is_pairs:
        return None

    lines = list(enumerate(streams.read_lines(path), 1))
    parts = [(f"{path}:{number}", line) for number, line in lines if line.strip()]
    if is_pairs[1]:  # an array of them
        parts = [(path, "\n".join(line for _, line in lines))]
    pairs = []
    for where, part in parts:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from error
        pairs += [(f"{where}, row {i}", pair) for i, pair in enumerate(value, 1)] if is_pairs[1] else [(where, value)]

    found = []
    for where, pair in pairs:
        text, rest = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
        if not isinstance(text, str) or not isinstance(rest, dict):
            raise UserError(f'{where}: {json.dumps(pair)[:40]} is no [text, {{"entities": […]}}]')
        found.append(Record(where, {"text": text, "entities": rest.get("entities")}))
    return Records(["text", "entities"], iter(found), {})


def _names_beside(path: str) -> list[str]:
    beside = os.path.join(os.path.dirname(path.rstrip("/")), "labels.txt")
    if not tf.io.gfile.exists(beside):
        return []
    return [line.strip() for line in streams.read_lines(beside) if line.strip()]


def _of_tags(
    rows: list[Record], word_field: str, tag_field: str, names: Sequence[str]
) -> tuple[list[Sentence], list[str]]:
    """Returns the sentences of records with lists of words and tags, which may be numbers, and notes on them."""
    sentences = []
    marks = 0
    has_numbers = False
    for where, values in rows:
        words = _strings(where, word_field, values.get(word_field))
        tags = values.get(tag_field)
        if isinstance(tags, list) and tags and all(type(tag) is int for tag in tags):
            has_numbers = True
            tags = _named(where, tag_field, tags, names)
        tags = _strings(where, tag_field, tags)
        if not words:
            raise UserError(f"{where}: the sentence has no words")
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} {word_field}, but {len(tags)} {tag_field}")
        if words[0] == "-DOCSTART-":
            marks += 1
        else:
            sentences.append(Sentence(words, tags, where))

    notes = [f"{marks:,} document marks skipped"] if marks else []
    if has_numbers:
        notes.append(f"0 to {len(names) - 1} stand for {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
    return sentences, notes


def _strings(where: str, field: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: no {field} that are a list of strings")
    return [whole_characters(value).strip() for value in values]


def _named(where: str, field: str, numbers: list[int], names: Sequence[str]) -> list[str]:
    """Returns what tags that are numbers stand for; raises UserError where that is not known."""
    if not names:
        raise UserError(
            f"{where}: the {field} are numbers; put what they stand for into labels.txt beside the file, one a line, "
            "from 0 on"
        )
    for number in numbers:
        if not 0 <= number < len(names):
            raise UserError(
                f"{where}: {number} in {field} has no name; there are {len(names)}, from 0 on: {', '.join(names[:10])}"
            )
    return [names[number] for number in numbers]


def _of_spans(rows: list[Record], text_field: str, span_field: str) -> tuple[list[Sentence], list[str]]:
    """Returns the sentences of records with a text and spans of its characters, and notes on them."""
    accepted = [row for row in rows if row.values.get("answer") not in _REFUSED]
    texts = []
    for where, values in accepted:
        text = values.get(text_field)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}: no {text_field} that is a text")
        texts.append(whole_characters(text))
    words, starts, ends = (
        part.to_list() for part in entities.words_of(tf.constant(texts, tf.string), at_punctuation=True)
    )

    sentences = []
    problems = []
    blanks = 0
    for i, (where, values) in enumerate(accepted):
        items = values.get(span_field) or []
        if not isinstance(items, list):
            raise UserError(f"{where}: no {span_field} that is a list of spans; labels of whole texts are for classify")
        spans = [_span(where, span_field, item) for item in items]
        blanks += sum(entities.trimmed(texts[i], span) != span for span in spans)
        try:
            tags = entities.tags_of_spans(texts[i], starts[i], ends[i], spans)
        except UserError as error:
            problems.append(f"{where}: {error}")
            continue
        sentences.append(Sentence([word.decode() for word in words[i]], tags, where))
    if problems:
        others = len(problems) - 1
        more = f"; {others:,} other text{'s have' if others > 1 else ' has'} such spans, too" if others else ""
        raise UserError(problems[0] + more)

    notes = [f"{len(rows) - len(accepted):,} left out that were not accepted"] if len(accepted) < len(rows) else []
    if blanks:
        notes.append(f"white space at the ends of {blanks:,} span{'s' * (blanks > 1)} left out")
    return sentences, notes


def _span(where: str, field: str, item: Any) -> entities.Span:
    """Returns a span: [start, end, label], or an object with these; raises UserError for anything else."""
    values = item
    if isinstance(item, dict):
        names = (_first(item, _BEGINS), _first(item, _ENDS), _first(item, ("label", "type", "tag")))
        values = [item.get(name) for name in names]
    is_span = isinstance(values, (list, tuple)) and len(values) == 3
    if not is_span or not all(type(value) is int for value in values[:2]) or not isinstance(values[2], str):
        raise UserError(
            f"{where}: {json.dumps(item, default=str)[:80]} in {field} is no span; expected [start, end, label], or an "
            "object with these"
        )
    label = whole_characters(values[2]).strip()
    if not label:
        raise UserError(f"{where}: a span in {field} has no label")
    return entities.Span(values[0], values[1], label)


# === Batches ===


def tag_ids(sentences: list[Sentence], tags: list[str]) -> np.ndarray:
    """Returns the ids of all words' tags, int32 [words]; raises UserError at a tag that is not in `tags`."""
    ids = {tag: i for i, tag in enumerate(tags)}
    found = []
    for sentence in sentences:
        for i, tag in enumerate(sentence.tags):
            if tag not in ids:
                known = ", ".join(tags[:10]) + (", …" if len(tags) > 10 else "")
                raise UserError(f"{sentence.place(i)}: the tag {tag!r} is not among the training tags ({known})")
            found.append(ids[tag])
    return np.array(found, np.int32)


@data_loader_factory.register_data_loader_cls(TaggingDataConfig)
class TaggingDataLoader:
    """Batches of tagged sentences; see the top of this file for their order."""

    def __init__(
        self,
        params: TaggingDataConfig,
        sentences: Optional[list[Sentence]] = None,
        tokenizer: Optional[Tokenizer] = None,
    ):
        self.params = params
        sentences = sentences or load_sentences(params)
        self._tags = tag_ids(sentences, params.labels)
        self._words = np.array([word.encode() for sentence in sentences for word in sentence.words], object)
        self._lengths = [len(sentence.words) for sentence in sentences]
        self.tokenizer = tokenizer or Tokenizer(read_vocabulary(params.vocab_file), params.lower_case)

    def load(self, input_context: Optional[tf.distribute.InputContext] = None, start_step: int = 0) -> tf.data.Dataset:
        """Returns batches from step `start_step` on, of this input pipeline's share of the global batch.

        Each has the encoder's inputs, int32 [B, L], and `label_ids`, int32 [B, L]: at each word's first wordpiece the
        id of its tag, elsewhere NO_TAG; in evaluation also `row_weights`, see `batches_of_rows`.
        """
        words, tags = (
            tf.RaggedTensor.from_row_lengths(tf.constant(values), self._lengths) for values in (self._words, self._tags)
        )

        def encode(rows):
            encoded, first = self.tokenizer.encode_words(tf.gather(words, rows), self.params.seq_length)
            inputs = self.tokenizer.pad(encoded, self.params.seq_length)
            # The words that are cut off are the last ones.
            kept = tf.RaggedTensor.from_tensor(tf.gather(tags, rows).to_tensor(), lengths=first.row_lengths())
            places = tf.stack([first.value_rowids(), first.flat_values], axis=1)
            labels = tf.fill(tf.shape(inputs["input_word_ids"]), NO_TAG)
            return dict(inputs, label_ids=tf.tensor_scatter_nd_update(labels, places, kept.flat_values))

        return batches_of_rows(len(self._lengths), encode, self.params, input_context, start_step)
