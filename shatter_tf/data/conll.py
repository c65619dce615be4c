"""Tagged sentences from files of columns: CoNLL-2003, CoNLL-U, and a word and its tag a line."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shatter_tf.data import entities, streams
from shatter_tf.data.names import TOKEN_TAGS, TOKENS, fold
from shatter_tf.data.sentences import Sentence, first_known, given
from shatter_tf.errors import UserError, argument

EXTENSIONS = (".tsv", ".tab", ".txt", ".conll", ".conllu", ".bio", ".iob", ".iob2")

_LONGEST = 1000  # words of a sentence; more look like a file without blank lines

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


def read_columns(path: str, word_field: str, tag_field: str) -> tuple[list[Sentence], list[str]]:
    names, blocks, notes = _layout(path, word_field, tag_field)
    if not blocks:
        return [], notes

    # Which columns. In CoNLL-U, tags may also be the values of a key.
    word_name = given(path, names, word_field, "text_fields") if word_field else _word_column(names, blocks)
    keys: list[str] = []
    if names == _CONLLU and tag_field and not first_known(names, [fold(tag_field)]):
        keys = sorted({key for _, cells in itertools.chain(*blocks) for key, _ in _key_values(cells)})
    tag_name = given(path, [*names, *keys], tag_field, "label_field") if tag_field else _tag_column(names)
    if word_name == tag_name:
        raise UserError(f"{path}: column {tag_name} cannot be both the words and the tags")
    _refuse_wrong_columns(path, names, blocks, word_name, tag_name)
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

    word = first_known(names, TOKENS)
    of_tags = [i for i, name in enumerate(names) if name in TOKEN_TAGS and name != word]
    is_new = all(first[i] not in {cells[i] for _, cells in others} for i in of_tags)
    if word and of_tags and is_new:
        return True

    last = {cells[-1].strip() for _, cells in others}
    return bool(entities.to_iob2([last]).scheme) and not entities.to_iob2([[first[-1].strip(), *last]]).scheme


def _word_column(names: Sequence[str], blocks: list[list[_Row]]) -> str:
    """Returns the column with a well-known name, or the first that does not number the words."""
    return first_known(names, TOKENS) or names[1 if len(names) > 2 and _are_counted(blocks) else 0]


def _tag_column(names: Sequence[str]) -> str:
    """Returns the last column with a well-known name, or else the last."""
    if names == _CONLLU:
        return "UPOS"
    return next((name for name in reversed(names) if fold(name) in TOKEN_TAGS), names[-1])


def _are_counted(blocks: list[list[_Row]]) -> bool:
    """Returns whether the first column numbers the words of each sentence, from 0 or 1 on."""
    numbers = [[cells[0] for _, cells in block] for block in blocks]
    return any(all(row == [str(i + first) for i in range(len(row))] for row in numbers) for first in (0, 1)) and any(
        len(row) > 1 for row in numbers
    )


def _refuse_wrong_columns(
    path: str, names: Sequence[str], blocks: list[list[_Row]], word_name: str, tag_name: str
) -> None:
    """Raises UserError where another column looks like the tags, or words are numbers only."""
    rows = [row for block in blocks for row in block]
    columns = {name: [cells[i] for _, cells in rows] for i, name in enumerate(names)}
    give = f"give {argument('text_fields')} and {argument('label_field')}, names or numbers of columns"
    if len(rows) > 1 and all(word.isdigit() for word in columns[word_name]):
        raise UserError(f"{path}:{rows[0][0]}: column {word_name}, taken for the words, has only numbers; {give}")
    marking = [
        name
        for name, tags in columns.items()
        if {*tags} != {"O"} and all(tag == "O" or entities.is_marked(tag) for tag in tags)
    ]
    if marking and tag_name in columns and tag_name not in marking and names != _CONLLU:
        raise UserError(
            f"{path}:{rows[0][0]}: column {marking[-1]} looks like tags, but {tag_name} was taken for them; {give}"
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
