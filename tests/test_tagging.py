"""Tagged sentences: what is read and refused, where labels stand, and metrics that are those of all sentences."""

import gzip
import importlib
import itertools
import json
import lzma
import re

import numpy as np
import pyarrow as pa
import pytest
import seqeval.metrics
import sklearn.metrics
import tensorflow as tf
import tf_keras
from conftest import WORDS
from official.core import task_factory
from pyarrow import parquet
from tiny import real_rows, tiny_override

from shatter_tf import checkpoints
from shatter_tf.data import tagging
from shatter_tf.data.entities import to_iob2
from shatter_tf.data.tagging import NO_TAG, TaggingDataConfig, TaggingDataLoader, read_sentences
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.errors import UserError
from shatter_tf.tasks.tag import TagConfig
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training.session import Session

SMALL = "runtime.enable_xla=false,trainer.train_steps=2,trainer.steps_per_loop=1"


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("a.tsv", "the\tD\ncat\tN\n\n\nsat\tV", [[1, 2], [5]]),
        ("a.tsv", "\r\nthe\tD\r\ncat\tN\r\n  \r\nsat\tV\r\n\r\n", [[2, 3], [5]]),
        ("a.tsv", "word\ttag\nthe\tD\ncat\tN\n\nsat\tV\n", [[2, 3], [5]]),
        ("a.txt", "-DOCSTART- -X- O\n\nthe x D\ncat y N\n\nsat y V\n", [[3, 4], [6]]),
        ("a.conll", "# id 1 domain=train\nthe _ _ D\ncat _ _ N\n\n# id 2 domain=train\nsat _ _ V\n", [[2, 3], [6]]),
        ("a.iob2", "1\tthe\tD\n2\tcat\tN\n\n1\tsat\tV\n", [[1, 2], [4]]),
        ("a.tab", "id\ttoken\tpos\tsource\n1\tthe\tD\tx\n2\tcat\tN\tx\n\n1\tsat\tV\tx\n", [[2, 3], [5]]),
    ],
)
def test_columns(tmp_path, name, content, lines):
    sentences = read_sentences(write(tmp_path, name, content)).sentences
    assert [(s.words, s.tags) for s in sentences] == [(["the", "cat"], ["D", "N"]), (["sat"], ["V"])]
    assert [list(s.lines) for s in sentences] == lines
    assert sentences[1].place(0).endswith(f"{name}:{lines[1][0]}")


@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_packed_columns(tmp_path, opener):
    path = tmp_path / "train.conll.packed.gz"
    with opener(path, "wt") as file:
        file.write("a D\n\nb N\n")
    with pytest.raises(UserError, match=re.escape(".conll")):
        read_sentences(str(path))
    path = path.rename(tmp_path / "train.conll.gz")
    assert [s.words for s in read_sentences(str(path)).sentences] == [["a"], ["b"]]


def test_a_word_may_have_spaces(tmp_path):
    sentences = read_sentences(write(tmp_path, "a.tsv", "New York\tN\nis\tV\n# 1\tX\n\n#\tX\n")).sentences
    assert [s.words for s in sentences] == [["New York", "is", "# 1"], ["#"]]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("token label\na B-X\nb O\n\nb O\n", ["line 1", "token", "label", "spaces", "2 columns", "IOB2"]),
        ("a\tz\nb\tB-X\nc\tI-X\n\nd\tO\n", ["line 1", "a, z", "tabs"]),  # a tag unlike all others
        ("-DOCSTART- O\n\na I-X\n\n-DOCSTART- O\n\nb O\n", ["2 document marks", "IOB1", "2 sentences"]),
        ("#begin\na B-X\nb I-Y\n\nc O\n", ["1 comment", "IOB2", "1 entity", "a.txt:3"]),
        ("a x B-X\nb x E-X\n\nc x O\n", ["BIOES", "words: column 1", "tags: column 3"]),
    ],
)
def test_the_note_says_what_was_understood(tmp_path, content, facts):
    note = read_sentences(write(tmp_path, "a.txt", content)).note
    assert [fact for fact in [str(tmp_path / "a.txt"), *facts] if fact not in note] == []
    assert "\n" not in note


def test_a_header_may_be_a_word_of_the_file(tmp_path):
    sentences = read_sentences(write(tmp_path, "a.tsv", "word\ttag\nword\tN\n\nis\tV\n")).sentences
    assert [s.words for s in sentences] == [["word"], ["is"]]


def test_a_first_line_with_tags_of_its_own_is_no_header(tmp_path):
    sentences = read_sentences(write(tmp_path, "a.tsv", "word\tN\nrare\tX\n\nthe\tD\n")).sentences
    assert sentences[0].words == ["word", "rare"]
    sentences = read_sentences(write(tmp_path, "a.tsv", "word\ttag\nb\ttag\n\nthe\tD\n")).sentences
    assert sentences[0].words == ["word", "b"]


CONLLU = """# sent_id = 1
# text = Geht's im Haus?
1-2\tGeht's\t_\t_\t_\t_\t_\t_\t_\t_
1\tGeht\tgehen\tVERB\tVVFIN\tNumber=Sing\t0\troot\t_\tSpaceAfter=No
2\t's\tes\tPRON\tPPER\tCase=Nom\t1\tnsubj\t_\tNER=B-X
2.1\tja\tja\tADV\tADV\t_\t_\t_\t_\t_
3\tNew York\tNY\tPROPN\tNE\t_\t1\tobl\t_\tNER=I-X|SpaceAfter=No

# sent_id = 2
1\tOslo\tOslo\tPROPN\tNE\t_\t0\troot\t_\tNER=B-X
"""


@pytest.mark.parametrize(
    ("label_field", "tags"),
    [
        ("", ["VERB", "PRON", "PROPN", "PROPN"]),
        ("xpos", ["VVFIN", "PPER", "NE", "NE"]),
        ("FEATS", ["Number=Sing", "Case=Nom", "_", "_"]),
        ("deprel", ["root", "nsubj", "obl", "root"]),
        ("NER", ["O", "B-X", "I-X", "B-X"]),
        ("case", ["_", "Nom", "_", "_"]),
    ],
)
def test_conllu(tmp_path, label_field, tags):
    path = write(tmp_path, "a.conllu", CONLLU)
    sentences, note = read_sentences(path, label_field=label_field)
    assert [word for s in sentences for word in s.words] == ["Geht", "'s", "New York", "Oslo"]
    assert [tag for s in sentences for tag in s.tags] == tags
    assert sentences[1].place(0) == f"{path}:10"
    assert [fact for fact in ("CoNLL-U", "3 comments", "1 multiword", "1 empty", "FORM") if fact not in note] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "the\tD\ncat\n", "a.tsv:2: 1 column.*expected word, tag"),
        ("a.tsv", "the\tD\n\ncat\tN\tO\n", "a.tsv:3: 3 column.*line 1 has 2"),
        ("a.tsv", "the\tD\ncat\t\n", "a.tsv:2: 1 column"),
        ("a.tsv", "the\ncat\n", "a.tsv:1: 1 column"),
        ("a.tsv", "\n\n", "the file has no sentences"),
        ("a.txt", "-DOCSTART- O\n\n", "the file has no sentences"),
        ("a.tsv", "1\t\tO\n2\tb\tO\n", "a.tsv:1: the word is empty"),
        ("a.csv", "the,D\n", "must end in .tsv,.*.jsonl"),
        ("a.tsv", "a nice film\tpos\nno fun\tneg\n", "a.tsv:1: 2 lines.*shatter/classify"),
        ("a.txt", "a O\n" * 1001, "a.txt:1: 1,001 words"),
        ("a.conllu", "1\ta" + "\t_" * 8 + "\n", "UPOS.*label_field"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["D"]}\n{"tokens": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["D"]}\n', "a.jsonl:1: 2 tokens, but 1 tags"),
        ("a.jsonl", '{"tokens": [], "tags": []}\n', "a.jsonl:1: the sentence has no words"),
        ("a.jsonl", '{"tokens": ["a"]}\n', "a.jsonl:1: .*tags.*label_field.*'tokens'"),
        ("a.jsonl", '{"words": 3}\n', "a.jsonl:1: .*label_field"),
        ("a.jsonl", '{"tokens": "a", "tags": ["D"]}\n', "a.jsonl:1: no tokens that are a list of strings"),
        ("a.jsonl", '{"tokens": ["a", " "], "tags": ["D", "D"]}\n', "a.jsonl:1: the word is empty"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [""]}\n', "a.jsonl:1: the tag is empty"),
        ("a.jsonl", '["a"]\n', r'a.jsonl:1: \["a"\]'),
        ("a.jsonl", '{"tokens": ["a"], "ner_tags": [1]}\n', "a.jsonl:1: .*ner_tags.*numbers.*labels.txt"),
        ("a.jsonl", '\n{"text": "In Oslo.", "label": [[3, 6, "L"]]}\n', "a.jsonl:2: .*3 to 6.*'Osl'.*'Oslo'"),
        ("a.jsonl", '{"text": "In", "spans": [[0, 9, "L"]]}\n' * 3, "a.jsonl:1: .*0 to 9.*2 other"),
        ("a.jsonl", '{"text": "In", "spans": [{"start": "0", "end": 2, "label": "L"}]}\n', "a.jsonl:1: .*spans"),
        ("a.jsonl", '{"text": "In", "spans": [[0, 2, " "]]}\n', "a.jsonl:1: .*no label"),
        ("a.jsonl", '{"text": "In", "label": 1}\n', "a.jsonl:1: .*label.*classify"),
        ("a.jsonl", '{"text": "In", "label": "L"}\n', "a.jsonl:1: .*label.*classify"),
        ("a.jsonl", '{"text": "In"}\n', "a.jsonl:1: .*label_field.*'text'"),
        ("a.jsonl", '{"text": " ", "spans": [[0, 2, "L"]]}\n', "a.jsonl:1: .*text"),
    ],
)
def test_malformed_sentences_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_sentences(write(tmp_path, name, content))


def test_fields_that_do_not_exist_are_refused(tmp_path):
    path = write(tmp_path, "a.tsv", "the\tD\n\ncat\tN\n")
    with pytest.raises(UserError, match="label_field=3.*1, 2"):
        read_sentences(path, label_field="3")
    with pytest.raises(UserError, match="column 2"):
        read_sentences(path, ["2"])
    path = write(tmp_path, "a.jsonl", '{"tokens": ["a"], "tags": ["D"]}')
    with pytest.raises(UserError, match="text_fields=word.*tokens, tags"):
        read_sentences(path, ["word"])


def test_fields_that_are_given(tmp_path):
    path = write(tmp_path, "a.tsv", "Wort\tRest\tArt\nthe\tx\tD\n\ncat\ty\tN\n")
    assert read_sentences(path, ["Wort"], "Art").sentences[1].tags == ["N"]
    path = write(tmp_path, "b.jsonl", '{"parts": ["a"], "kinds": ["D"], "tags": ["X"]}')
    assert read_sentences(path, ["parts"], "kinds").sentences[0].tags == ["D"]
    path = write(tmp_path, "c.jsonl", '{"body": "x y", "text": "z", "marks": [[0, 1, "K"]]}')
    assert read_sentences(path, ["body"], "marks").sentences[0].tags == ["B-K", "O"]


MARA = "Mara, of  Oslo."
PRODIGY = dict(text=MARA, tokens=[dict(text="Mara", start=0, end=4, id=0)], answer="accept", _task_hash=7)
PRODIGY["spans"] = [dict(start=0, end=4, label="PER", token_start=0), dict(start=10, end=14, label="LOC")]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("prodigy.jsonl", [PRODIGY, dict(PRODIGY, answer="reject", spans=[])]),
        ("doccano.jsonl", [dict(id=3, text=MARA, label=[[0, 4, "PER"], [10, 14, "LOC"]], comments=[])]),
        ("doccano.jsonl", [dict(text=MARA, labels=[[10, 14, "LOC"], [0, 4, "PER"]])]),
        (
            "relations.jsonl",
            [
                dict(
                    text=MARA,
                    entities=[
                        dict(id=1, label="PER", start_offset=0, end_offset=4),
                        dict(id=2, label="LOC", start_offset=9, end_offset=14),
                    ],
                )
            ],
        ),
        ("spacy.jsonl", [[MARA, dict(entities=[[0, 5 - 1, "PER"], [10, 14, "LOC"]])]]),
        ("spacy.json", [[MARA, dict(entities=[[0, 4, "PER"], [10, 14, "LOC"]])]]),
        ("object.json", [dict(text=MARA, entities=[[0, 4, "PER"], [10, 14, "LOC"]])]),
    ],
)
def test_spans(tmp_path, name, rows):
    content = json.dumps(rows, indent=1) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (sentence,), note = read_sentences(write(tmp_path, name, content))
    assert sentence.words == ["Mara", ",", "of", "Oslo", "."]
    assert sentence.tags == ["B-PER", "O", "O", "B-LOC", "O"]
    assert ("1 left out" in note) == (name == "prodigy.jsonl")
    assert ("1 span " in note) == (name == "relations.jsonl")  # it begins with a space


def test_numbers_stand_for_names(tmp_path):
    row = json.dumps(dict(tokens=["a", "b"], ner_tags=[1, 0]))
    path = write(tmp_path, "a.jsonl", f"{row}\n")
    assert read_sentences(path, labels=["O", "B-X"]).sentences[0].tags == ["B-X", "O"]
    write(tmp_path, "labels.txt", "O\nB-Y\n")
    sentences, note = read_sentences(path)
    assert sentences[0].tags == ["B-Y", "O"]
    assert "0 to 1 stand for O, B-Y" in note
    write(tmp_path, "labels.txt", "O\n")
    with pytest.raises(UserError, match="a.jsonl:1: 1 in ner_tags"):
        read_sentences(path)


@pytest.mark.parametrize("extension", ["parquet", "arrow"])
def test_datasets(tmp_path, extension):
    """What Hugging Face `datasets` writes, with the names of tags."""
    feature = {"feature": {"names": ["O", "B-X"], "_type": "ClassLabel"}, "_type": "Sequence"}
    about = json.dumps({"info": {"features": {"ner_tags": feature}}})
    rows = dict(tokens=[["-DOCSTART-"], ["a", "b"]], ner_tags=[[0], [1, 0]], pos_tags=[[3], [4, 5]])
    table = pa.table(rows).replace_schema_metadata({"huggingface": about})
    if extension == "parquet":
        path = tmp_path / "train.parquet"
        parquet.write_table(table, path)
    else:
        path = tmp_path / "train"
        path.mkdir()
        with pa.ipc.new_stream(path / "data.arrow", table.schema) as writer:
            writer.write_table(table)
        (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (sentence,), note = read_sentences(str(path))
    assert (sentence.words, sentence.tags) == (["a", "b"], ["B-X", "O"])
    assert "row 2" in sentence.place(1)
    assert [fact for fact in ("1 document mark", "'pos_tags'", "IOB2") if fact not in note] == []


SENTENCES = ["Mara Mia", "in New York , U.S. , it is", "Oslo", "the old ( red ) mat"]
SPANS = [[(0, 4, "PER"), (5, 8, "PER")], [(3, 11, "LOC"), (14, 18, "LOC")], [(0, 4, "LOC")], []]
IN_SCHEMES = {
    "IOB1": ["I-PER B-PER", "O I-LOC I-LOC O I-LOC O O O", "I-LOC", "O O O O O O"],
    "IOB2": ["B-PER B-PER", "O B-LOC I-LOC O B-LOC O O O", "B-LOC", "O O O O O O"],
    "BILOU": ["U-PER U-PER", "O B-LOC L-LOC O U-LOC O O O", "U-LOC", "O O O O O O"],
}


def formats():
    """The same sentences in every format."""
    for scheme, tags in IN_SCHEMES.items():
        rows = [list(zip(s.split(), t.split(), strict=True)) for s, t in zip(SENTENCES, tags, strict=True)]
        yield f"{scheme}.tsv", "\n\n".join("\n".join(f"{w}\t{t}" for w, t in row) for row in rows)
        yield (
            f"{scheme}.txt",
            "-DOCSTART- -X- -X- O\n\n" + "\n\n".join("\n".join(f"{w} NN B-NP {t}" for w, t in row) for row in rows),
        )
        yield (
            f"{scheme}.conllu",
            "\n\n".join(
                "# x = y\n" + "\n".join(f"{i}\t{w}\t{w}" + "\tX" * 6 + f"\tNER={t}" for i, (w, t) in enumerate(row, 1))
                for row in rows
            ),
        )
        yield (
            f"{scheme}.jsonl",
            "\n".join(json.dumps(dict(words=[w for w, _ in row], ner_tags=[t for _, t in row])) for row in rows),
        )
    texts = [s.replace("( ", "(").replace(" )", ")") for s in SENTENCES]
    yield (
        "spans.jsonl",
        "\n".join(json.dumps(dict(text=text, label=spans)) for text, spans in zip(texts, SPANS, strict=True)),
    )


def test_the_same_sentences_give_the_same_batches_in_every_format(tmp_path, vocab_file):
    """Also where a given word has punctuation inside, like U.S., which served texts are cut at."""
    seen = []
    batches = {}
    for name, content in formats():
        extension = name.split(".")[1]
        for split in ("train", "dev"):
            (tmp_path / name).mkdir(exist_ok=True)
            write(tmp_path / name, f"{split}.{extension}", content)
        config = TagConfig()
        for part in (config.train_data, config.validation_data):
            part.vocab_file = vocab_file
            part.global_batch_size = 2
            part.label_field = "NER" if extension == "conllu" else ""
        config, data = config.open_data(str(tmp_path / name), None)
        assert not data.problems
        assert len(data.notes) == 2
        seen.append((config.class_names, [(s.words, s.tags) for s in (*data.train, *data.validation)]))

        if name in ("IOB1.tsv", "IOB2.txt", "BILOU.conllu", "IOB1.jsonl", "spans.jsonl"):
            task = task_factory.get_task(config, data=data)
            batches[name] = [*task.build_inputs(config.train_data).take(3), *task.build_inputs(config.validation_data)]

    assert seen[0][0] == ["B-LOC", "B-PER", "I-LOC", "O"]
    assert [sum(len(words) for words, _ in seen[0][1]), *map(len, seen[0][1][1])] == [2 * (2 + 11 + 1 + 6), 11, 11]
    assert seen == seen[:1] * len(seen)
    (expected, *others) = batches.values()
    assert [len(others), len(expected)] == [4, 5]
    for same in others:
        for batch, expected_batch in zip(same, expected, strict=True):
            assert batch.keys() == expected_batch.keys()
            for key, value in expected_batch.items():
                np.testing.assert_array_equal(batch[key], value)


def test_parts_of_speech_keep_their_words(tmp_path):
    write(tmp_path, "train.tsv", "\n\n".join(f"U.S.\tN\nis{i}\tV" for i in range(4)))
    config, data = TagConfig().open_data(str(tmp_path), None)
    assert not config.train_data.at_punctuation
    assert data.train[0].words[0] == "U.S."


def test_labels_of_another_scheme_are_kept(tmp_path):
    """Those of a run that older versions trained."""
    write(tmp_path, "train.tsv", "\n\n".join(f"a.{i}\tB-X\nb\tE-X\n\nc\tO" for i in range(9)))
    config = TagConfig()
    config.class_names = ["B-X", "E-X", "O"]
    config, data = config.open_data(str(tmp_path), None)
    assert {tag for sentence in data.train for tag in sentence.tags} == {"B-X", "E-X", "O"}
    assert not data.problems
    assert not config.train_data.at_punctuation


def test_a_word_that_only_validation_cuts_has_its_tag(tmp_path):
    write(tmp_path, "train.tsv", "Oslo\tB-X\n\nit\tO\n")
    write(tmp_path, "valid.tsv", "U.S.\tB-X\n")
    config, data = TagConfig().open_data(str(tmp_path), None)
    assert config.class_names == ["B-X", "I-X", "O"]
    assert not data.problems


def test_without_a_dev_file_some_sentences_are_held_out(tmp_path, vocab_file):
    path = write(tmp_path, "train.txt", "\n\n".join(f"w{i} D\ncat N" for i in range(40)))
    config = TagConfig()
    config.train_data.vocab_file = config.validation_data.vocab_file = vocab_file
    config, data = config.open_data(str(tmp_path), None)
    assert (len(data.train), len(data.validation)) == (36, 4)
    assert not {s.words[0] for s in data.train} & {s.words[0] for s in data.validation}
    assert config.validation_data.input_path == path
    assert any("4" in note and "held out" in note for note in data.notes)
    # A loader that opens the file itself finds the same sentences.
    for params, sentences in ((config.train_data, data.train), (config.validation_data, data.validation)):
        assert tagging.load_sentences(params) == sentences


@pytest.mark.parametrize("name", ["dev.txt", "validation.conll", "valid.tsv", "val.jsonl.gz"])
def test_names_of_validation_files(tmp_path, name):
    write(tmp_path, "train.tsv", "a\tD\n\nb\tN\n")
    content = '{"tokens": ["a"], "tags": ["D"]}' if "json" in name else "a\tD\n"
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    config, data = TagConfig().open_data(str(tmp_path), None)
    assert config.validation_data.input_path == str(tmp_path / name)
    assert (len(data.train), len(data.validation)) == (2, 1)


def test_no_training_file(tmp_path):
    write(tmp_path, "train.pdf", "")
    with pytest.raises(UserError, match=r"data_dir=.*train.tsv.*train.jsonl.*but train.pdf.*train_file"):
        TagConfig().open_data(str(tmp_path), None)
    with pytest.raises(UserError, match="data_dir or train_file"):
        TagConfig().open_data(None, None)


def test_words_and_where_they_begin(vocabulary):
    """As in the whole text; a word of which the tokenizer keeps nothing has a place, too; what is too long is cut."""
    tokenizer = Tokenizer(vocabulary, lower_case=True)
    rng = np.random.default_rng(0)
    sentences = [rng.choice([*WORDS, "cats", "Mats.", "xyz"], n).tolist() for n in (1, 9, 4)] + [["cats", "\x01", "."]]
    encoded, first = tokenizer.encode_words(tf.ragged.constant(sentences), 64)
    joined = [" ".join(word if word != "\x01" else "xyz" for word in words) for words in sentences]
    expected = tokenizer.encode(tf.constant(joined), None, 64)
    assert encoded["input_word_ids"].to_list() == expected["input_word_ids"].to_list()
    assert encoded["input_type_ids"].to_list() == expected["input_type_ids"].to_list()
    for words, ids, places in zip(sentences, encoded["input_word_ids"].to_list(), first.to_list(), strict=True):
        ends = [*places[1:], len(ids) - 1]
        assert places[0] == 1
        for word, begin, end in zip(words, places, ends, strict=True):
            pieces = tokenizer.tokenize(tf.constant([word])).to_list()[0] or [tokenizer.unknown_id]
            assert ids[begin:end] == pieces
    cut, places = tokenizer.encode_words(tf.ragged.constant([["cats", "cats", "the"], ["the"] * 3]), 5)
    assert cut["input_word_ids"].row_lengths().numpy().tolist() == [5, 5]
    assert places.to_list() == [[1, 3], [1, 2, 3]]  # the second word's last piece is gone, its first is there


@pytest.fixture
def loader(tmp_path, vocab_file):
    rows = ["\n".join(f"{'cats' if j % 2 else 'the'}\t{'xyz'[(i + j) % 3]}" for j in range(i + 1)) for i in range(10)]
    path = write(tmp_path, "train.tsv", "\n\n".join(rows))

    def make(**choices):
        settings = dict(input_path=path, is_training=True, seq_length=64, global_batch_size=4, vocab_file=vocab_file)
        return TaggingDataLoader(TaggingDataConfig(**{**settings, "labels": ["x", "y", "z"], **choices}))

    return make


def take(dataset, number):
    return [real_rows(batch) for batch in dataset.take(number)]


@pytest.mark.parametrize("length", [64, 8])
def test_labels_stand_at_the_first_wordpiece_of_each_word(loader, length):
    batches = take(loader(is_training=False, seq_length=length).load(), 9)
    assert [len(batch["label_ids"]) for batch in batches] == [4, 4, 2]
    labels = np.concatenate([batch["label_ids"] for batch in batches])
    for i, row in enumerate(labels):
        expected, place = np.full(length, NO_TAG), 1
        for j in range(i + 1):
            if place < length - 1:
                expected[place] = (i + j) % 3
            place += 1 + j % 2  # cats is cat ##s
        np.testing.assert_array_equal(row, expected)


def test_a_step_is_a_function_of_seed_and_step(loader):
    whole = take(loader().load(), 8)
    for a, b in zip(take(loader().load(start_step=5), 3), whole[5:], strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    lengths = [np.sum(batch["label_ids"] != NO_TAG, axis=1).tolist() for batch in whole[:5]]
    assert sorted(itertools.chain(*lengths)) == sorted(list(range(1, 11)) * 2)
    assert {key: tuple(spec.shape) for key, spec in loader().load().element_spec.items()} == {
        key: (4, 64) for key in ("input_word_ids", "input_mask", "input_type_ids", "label_ids")
    }


def tagged(tags, number, seed=0):
    """Returns lines of sentences of random lengths and words."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(number):
        words = rng.integers(0, len(WORDS), rng.integers(1, 7))
        lines += [f"{WORDS[word]}\t{tags[(word + i) % len(tags)]}" for word in words] + [""]
    return lines


IOB = ("B-PER", "I-PER", "B-LOC", "I-LOC", "O")
POS = ("D", "N", "V")


@pytest.mark.parametrize(("tags", "replicas"), [(IOB, 1), (IOB, 2), (POS, 1)])
def test_metrics_are_those_of_all_sentences(fine_tune, tmp_path, monkeypatch, tags, replicas):
    """Ten sentences in batches of four; entities end where sentences do."""
    if replicas > 1:
        ops = tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=ops)
        monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime: strategy)
    run = fine_tune("shatter/tag", tagged(tags, 10), more=SMALL)
    assert run.params.task.class_names == sorted(tags)
    model_dir.write(str(tmp_path / "run"), run)
    session = Session(run, str(tmp_path / "run"))
    rng = np.random.default_rng(0)
    for variable in session.trainer.model.trainable_variables:
        variable.assign(rng.normal(0, 1, variable.shape))
    (batch, *_) = session.trainer.task.build_inputs(run.params.task.validation_data)
    mean = np.mean(session.trainer.model(batch)["logits"][batch["label_ids"] != NO_TAG], axis=0)
    session.trainer.model.trainable_variables[-1].assign_sub(mean)  # so that no tag is the likeliest everywhere
    predictions, truth, losses = [], [], []
    for batch in map(real_rows, session.trainer.task.build_inputs(run.params.task.validation_data)):
        log_probabilities = tf.nn.log_softmax(session.trainer.model(batch)["logits"]).numpy()
        for scores, labels in zip(log_probabilities, batch["label_ids"], strict=True):
            words = labels != NO_TAG
            predictions.append([sorted(tags)[i] for i in scores[words].argmax(axis=-1)])
            truth.append([sorted(tags)[i] for i in labels[words]])
            losses += (-scores[words, labels[words]]).tolist()
    said = [line.split("\t")[1] if line else "" for line in tagged(tags, 10)]
    assert truth == to_iob2([sentence.split("|") for sentence in "|".join(said).strip("|").split("||")]).tags
    words, guesses = (np.array(list(itertools.chain(*sentences))) for sentences in (truth, predictions))
    assert len(set(guesses)) > 1
    expected = dict(accuracy=np.mean(words == guesses), loss=np.mean(losses))
    if tags is IOB:
        names = ("f1", "precision", "recall")
        expected |= {name: getattr(seqeval.metrics, f"{name}_score")(truth, predictions) for name in names}
        assert expected["f1"] > 0
        for kind in ("PER", "LOC"):
            of_kind = [
                [[tag if tag.endswith(kind) else "O" for tag in sentence] for sentence in sentences]
                for sentences in (truth, predictions)
            ]
            expected[f"f1/{kind}"] = seqeval.metrics.f1_score(*of_kind)
    else:
        each = {tag: sklearn.metrics.f1_score(words == tag, guesses == tag, zero_division=0) for tag in tags}
        expected["macro_f1"] = np.mean([*each.values()])
        expected |= {f"f1/{tag}": value for tag, value in each.items()}
    session.evaluate()
    metrics = model_dir.read_metrics(str(tmp_path / "run"))
    assert {name: metrics[name] for name in metrics if name not in ("step", "parameters")} == pytest.approx(
        expected, rel=1e-5
    )
    assert run.params.trainer.best_checkpoint_eval_metric == ("f1" if tags is IOB else "accuracy")


def test_the_loss_is_the_mean_over_words_whatever_the_parts(fine_tune):
    """A step in two parts is that of the whole batch, though they have different numbers of words."""
    params = fine_tune("shatter/tag", tagged(POS, 12), more=f"{SMALL},task.model.head_dropout=0.0").params
    task = task_factory.get_task(params.task)
    (batch, *_) = task.build_inputs(task.task_config.train_data).take(1)
    counts = np.sum(batch["label_ids"].numpy() != NO_TAG, axis=1)
    assert counts[:2].sum() != counts[2:].sum()
    assert float(task.weights(batch)["loss"]) == counts.sum()
    losses = []
    for parts in (1, 2):
        tf_keras.utils.set_random_seed(0)
        model = task.build_model()
        optimizer = task.create_optimizer(params.trainer.optimizer_config)
        metrics = task.build_metrics(training=True)
        losses.append(float(task.train_step(batch, model, optimizer, metrics, accumulation_steps=parts)["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


FOUR = ["a\tD", "", "cat\tN", ""] * 2


@pytest.mark.parametrize(
    ("train", "dev", "more", "message"),
    [
        (FOUR, ["a\tD", "", "", "cat\tX"], "", r"dev.tsv:4: the tag 'X' is not among the training tags \(D, N\)"),
        (["a\tD", ""] * 4, None, "", "train.tsv: every row has the label 'D'; there is nothing to learn"),
        (["a\tD", "", "cat\tN"], None, "", "2 training rows are fewer than global_batch_size=4"),
        (FOUR, None, "task.model.head_dropout=1.0", r"head_dropout=1.0 is not in \[0, 1\)"),
        (FOUR, None, "task.class_names=[0, 1]", r"^labels=\[0, 1\]: 0 is not text; put quotes around it"),
        (FOUR, None, "task.class_names=[N, V]", r"train.tsv:1: the tag 'D' is not among the training tags \(N, V\)"),
    ],
)
def test_refused(fine_tune, train, dev, more, message):
    with pytest.raises(UserError, match=message):
        fine_tune("shatter/tag", train, dev, ",".join(filter(None, [SMALL, more])))


def test_commands_pretrain_tag_go_on_and_evaluate(tmp_path, vocab_file, write_corpus, random_documents, capsys):
    """From a pretraining run's encoder, stopped half-way and resumed: the same weights as in one go.

    Without the dropout of Model Garden's head, which is not a function of the step.
    """

    def train(experiment, name, data_dir, settings="", *flags):
        base = f"{tiny_override()},runtime.enable_xla=false,task.train_data.global_batch_size=4"
        base += ",task.train_data.seq_length=16"
        importlib.import_module("shatter_tf.train").main(
            [f"--experiment=shatter/{experiment}", f"--model_dir={tmp_path / name}", f"--data_dir={data_dir}",
             f"--params_override={base},{settings}", *flags]
        )  # fmt: skip
        return capsys.readouterr().out

    train("pretrain", "pretrain", write_corpus(random_documents(1, 30)), "trainer.train_steps=1")
    for split in ("train", "dev"):
        sentences = "\n".join(tagged(POS, 12)).strip().split("\n\n")
        rows = [list(zip(*(line.split("\t") for line in sentence.split("\n")), strict=True)) for sentence in sentences]
        write(tmp_path, f"{split}.jsonl", "\n".join(json.dumps(dict(tokens=w, tags=t)) for w, t in rows))
    settings = "trainer.train_steps=4,trainer.steps_per_loop=1,trainer.checkpoint_interval=2,trainer.max_to_keep=9"
    settings += ",trainer.validation_interval=2,trainer.accumulation_steps=2,task.model.head_dropout=0.0"
    pretrained = f"--init_checkpoint={tmp_path / 'pretrain'}"
    said = train("tag", "whole", tmp_path, settings, pretrained)
    assert "restored from" in said
    assert "predictions" in said  # the head is new
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file() and "ckpt-4" not in file.name and "best" not in file.parts:
            copy = tmp_path / "resumed" / file.relative_to(tmp_path / "whole")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    assert "from step 2" in train("tag", "resumed", tmp_path, settings, pretrained)
    readers = [tf.train.load_checkpoint(str(tmp_path / name / "ckpt-4")) for name in ("whole", "resumed")]
    for name in readers[0].get_variable_to_shape_map():
        if name.startswith("model/"):
            np.testing.assert_array_equal(*(reader.get_tensor(name) for reader in readers))
    metrics = model_dir.read_metrics(str(tmp_path / "whole"))
    assert 0 <= metrics["accuracy"] <= 1
    (tmp_path / "whole/metrics.json").unlink()
    train("tag", "whole", tmp_path, settings, pretrained, "--mode=eval")
    assert model_dir.read_metrics(str(tmp_path / "whole")) == pytest.approx(metrics)
    assert checkpoints.best_checkpoint(str(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Mara B-PER\nis o\n\nOslo B-LOC\n", "a.conll:2: the tag 'o' is neither O nor like B-"),
        ("O\tshow\nB-LOC\tOslo\n\nO\tthe\n", "a.conll:1: column 1 looks like tags"),
        ("Mara\tB-PER\tEN\nin\tO\tEN\n", "a.conll:1: column 2 looks like tags"),
        ("1\tMara\tB-PER\n1\tin\tO\n2\tOslo\tB-LOC\n", "a.conll:1: column 1.*only numbers"),
    ],
)
def test_columns_and_tags_that_are_not_clear_are_refused(tmp_path, content, message):
    (tmp_path / "a.conll").write_text(content)
    with pytest.raises(UserError, match=message):
        tagging.read_sentences(str(tmp_path / "a.conll"))


def test_entities_without_types_are_of_one(tmp_path):
    (tmp_path / "a.conll").write_text("Mara B\nBerg I\nis O\n")
    (sentence,) = tagging.read_sentences(str(tmp_path / "a.conll")).sentences
    assert sentence.tags == ["B-ENTITY", "I-ENTITY", "O"]
