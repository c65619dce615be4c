"""Entities: words and their characters, tags and spans; what a served tagger says of them, here and in C++."""

import importlib
import itertools
import json
import shutil
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from seqeval.metrics.sequence_labeling import get_entities
from serving import cpp_loader
from tiny import tiny_override

from shatter_tf.data.entities import Span, cut, entities_of, tags_of_spans, to_iob2, words_of
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.errors import UserError
from shatter_tf.predict import main as predict
from shatter_tf.serving import operations
from shatter_tf.serving.answers import readable

PIECES = [
    *("Mara", "Oslo", "U.S.", "don't", "a-b", "(x)", "...", "$5", "a+b", "«ja»", "¿", "😀", "👩‍👩‍👧", "🇪🇺"),
    *("e\u0301", "é", "Å", "ﬁ", "中文", "𠀀x", "ß", "שלום", "ไทย", "\u200b", "\0", "\x01", "a\u00adb", "№5"),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u2028", "\x1c", "\x85", ""),
]
_CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF))


def random_text(rng) -> str:
    return "".join(rng.choice(PIECES, rng.integers(0, 12)))


def split(text: str) -> list[tuple[str, int, int]]:
    """The rule, character by character: words with their places."""
    words: list[list[int]] = []
    goes_on = False
    for i, character in enumerate(text):
        code = ord(character)
        alone = unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~"
        alone |= any(first <= code <= last for first, last in _CHINESE)
        if character.isspace():
            goes_on = False
        elif goes_on and not alone:
            words[-1][1] = i + 1
        else:
            words.append([i, i + 1])
            goes_on = not alone
    return [(text[start:end], start, end) for start, end in words]


def as_lists(words) -> list[list[tuple[str, int, int]]]:
    columns = [part.to_list() for part in words]
    return [
        [(word.decode(), start, end) for word, start, end in zip(*row, strict=True)]
        for row in zip(*columns, strict=True)
    ]


def test_words_and_their_characters():
    rng = np.random.default_rng(0)
    texts = [random_text(rng) for _ in range(500)]
    assert as_lists(words_of(tf.constant(texts), True)) == [split(text) for text in texts]
    at_spaces = as_lists(words_of(tf.constant(texts), False))
    assert [[word for word, *_ in row] for row in at_spaces] == [
        [word.decode() for word in row] for row in tf.strings.split(texts).to_list()
    ]
    for text, row in zip(texts, at_spaces, strict=True):
        assert [text[start:end] for _, start, end in row] == [word for word, *_ in row]


def test_cut_words_have_the_wordpieces_of_the_whole_text():
    letters = "abcdefghijklmnopqrstuvwxyzåéßü.,-+$«»¿()'文中1235"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(vocabulary, lower_case=False)
    rng = np.random.default_rng(1)
    kept = [piece for piece in PIECES if piece.isprintable() and piece not in ("\u200b", "\u3000", "\u00a0", "№5")]
    texts = ["".join(rng.choice(kept, 8)).lower() for _ in range(200)]
    encoded, _ = tokenizer.encode_words(words_of(tf.constant(texts), True).words, 1000)
    expected = tokenizer.encode(tf.constant(texts), None, 1000)
    assert encoded["input_word_ids"].to_list() == expected["input_word_ids"].to_list()


def test_no_texts_and_no_words():
    for texts in ([], [""], [" ", ""], ["", " a"]):
        words = words_of(tf.constant(texts, tf.string), True)
        assert as_lists(words) == [split(text) for text in texts]
    assert cut([]) == []
    assert cut(["\u2028", "a", "\u2028"]) == [["\u2028"], ["a"], ["\u2028"]]  # a word is never lost


SCHEMES = {
    "IOB1": ["I-PER I-PER B-PER I-LOC O I-LOC", "O I-PER"],
    "IOB2": ["B-PER I-PER B-PER B-LOC O B-LOC", "O B-PER"],
    "BILOU": ["B-PER L-PER U-PER U-LOC O U-LOC", "O U-PER"],
    "BIOES": ["B-PER E-PER S-PER S-LOC O S-LOC", "O S-PER"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_mark_the_same_entities(scheme):
    converted = to_iob2([tags.split() for tags in SCHEMES[scheme]])
    assert [" ".join(tags) for tags in converted.tags] == SCHEMES["IOB2"]
    assert converted.scheme == scheme
    assert not converted.odd


def test_tags_that_do_not_fit_the_scheme_are_found():
    converted = to_iob2([["O", "B-PER"], ["O", "I-PER", "I-LOC", "I-LOC"]])
    assert converted.scheme == "IOB2"
    assert converted.odd == [(1, 1), (1, 2)]
    assert converted.tags[1] == ["O", "B-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], ["O", "O"], ["B-PER", "NOUN"], ["B-", "O"], ["X-PER"]])
def test_other_tags_are_left_as_they_are(tags):
    assert to_iob2([tags]) == ([tags], "", [])


TEXT = "In New York, Mara's café."
STARTS, ENDS = zip(*(place for _, *place in split(TEXT)), strict=True)


@pytest.mark.parametrize(
    ("spans", "facts"),
    [
        ([(0, 40, "A")], ["0 to 40", "25 characters"]),
        ([(-1, 2, "A")], ["-1 to 2"]),
        ([(6, 3, "A")], ["6 to 3"]),
        ([(3, 5, "A")], ["3 to 5", "'Ne'", "'New'"]),
        ([(4, 6, "A")], ["4 to 6", "'New'"]),
        ([(2, 3, "A")], ["2 to 3", "no characters"]),
        ([(3, 3, "A")], ["3 to 3", "no characters"]),
        ([(3, 11, "A"), (7, 11, "B")], ["7 to 11", "'York'", "overlaps"]),
    ],
)
def test_spans_that_fit_no_words_are_refused(spans, facts):
    with pytest.raises(UserError) as refused:
        tags_of_spans(TEXT, STARTS, ENDS, [Span(*span) for span in spans])
    assert [fact for fact in facts if fact not in str(refused.value)] == []


def test_spans_become_tags():
    spans = [Span(20, 24, "FOOD"), Span(2, 12, "LOC"), Span(13, 17, "PER"), Span(13, 17, "PER")]
    tags = tags_of_spans(TEXT, STARTS, ENDS, spans)
    words = [word for word, *_ in split(TEXT)]
    assert [pair for pair in zip(words, tags, strict=True) if pair[1] != "O"] == [
        *(("New", "B-LOC"), ("York", "I-LOC"), (",", "I-LOC"), ("Mara", "B-PER"), ("café", "B-FOOD")),
    ]


CLASSES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def test_entities_are_those_that_seqeval_finds():
    rng = np.random.default_rng(2)
    lengths = [0, 1, 5, 0, 30, 12, 0]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    tags = rng.integers(0, len(CLASSES), len(rows))
    scores = rng.random(len(rows)).astype(np.float32)
    starts = np.concatenate([np.arange(n) * 3 for n in lengths]).astype(np.int32)

    found = entities_of(CLASSES, tags, scores, rows, starts, starts + 2, len(lengths))
    found = {name: value.numpy() for name, value in found.items()}
    expected = [get_entities([CLASSES[tag] for tag in tags[rows == row]]) for row in range(len(lengths))]
    assert found["entities"].shape == (len(lengths), max(map(len, expected)))
    for row, entities in enumerate(expected):
        number = len(entities)
        assert [name.decode() for name in found["entities"][row, :number]] == [kind for kind, *_ in entities]
        assert found["starts"][row, :number].tolist() == [3 * first for _, first, _ in entities]
        assert found["ends"][row, :number].tolist() == [3 * last + 2 for _, _, last in entities]
        means = [np.mean(scores[rows == row][first : last + 1]) for _, first, last in entities]
        np.testing.assert_allclose(found["scores"][row, :number], means, rtol=1e-6)
        assert set(found["entities"][row, number:].tolist()) <= {b""}
        assert not np.any(found["ends"][row, number:])


def test_an_answer_has_the_text_of_each_entity():
    outputs = dict(
        words=["In", "Oslo", ".", ""], tags=["O", "B-LOC", "O", ""], probabilities=[0.9, 0.8, 0.7, 0],
        entities=["LOC", ""], starts=[3, 0], ends=[7, 0], scores=[0.8, 0.0],
    )  # fmt: skip
    answer = readable(outputs, dict(text="In Oslo."))
    assert answer["entities"] == [dict(text="Oslo", label="LOC", start=3, end=7, score=0.8)]
    assert [word["word"] for word in answer["words"]] == ["In", "Oslo", "."]
    assert "text" not in readable(outputs)["entities"][0]
    of_words = {name: outputs[name] for name in ("words", "tags", "probabilities")}
    assert readable(of_words, dict(text="In Oslo.")) == dict(words=answer["words"])


# === Served ===

NAMES, PLACES = ["Mara", "Mia", "Jean-Luc", "Ole O'Hara"], ["Oslo", "U.S.", "New York", "São Paulo"]


def annotated(number: int) -> list[dict]:
    """Texts with the spans of their names and places."""
    rows = []
    for i in range(number):
        name, place = NAMES[i % 4], PLACES[i // 4 % 4]
        text = f"{name} lives in {place}." if i % 3 else f"({place})  is where {name}, lives"
        spans = [(text.index(part), text.index(part) + len(part), kind) for part, kind in ((name, "P"), (place, "L"))]
        rows.append(dict(text=text, spans=[dict(start=a, end=b, label=kind) for a, b, kind in spans]))
    return rows


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tagger that has learned entities from spans, by the commands: its run and its export."""
    base = tmp_path_factory.mktemp("entities")
    (base / "train.jsonl").write_text("\n".join(map(json.dumps, annotated(64))))
    settings = tiny_override(max_sequence_length=64, hidden_size=24) + ",runtime.enable_xla=false"
    settings += ",runtime.mixed_precision_dtype=float32,task.train_data.lower_case=false"
    flags = [f"--data_dir={base}", f"--params_override={settings}", "--seq_length=64", "--batch_size=16"]
    importlib.import_module("shatter_tf.train").main(
        ["--experiment=shatter/tag", f"--model_dir={base}/run", "--train_steps=150", "--learning_rate=0.01", *flags]
    )
    importlib.import_module("shatter_tf.export").main([f"--model_dir={base}/run", f"--export_dir={base}/served"])
    return base


@pytest.fixture(scope="module")
def signature(served):
    return tf.saved_model.load(str(served / "served/1")).signatures["serving_default"]


def call(signature, texts) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in signature(text=tf.constant(texts, tf.string)).items()}


def test_a_trained_tagger_finds_the_characters(served, capsys):
    metrics = json.loads((served / "run/metrics.json").read_text())
    assert metrics["f1"] > 0.9
    assert {"f1/P", "f1/L"} <= metrics.keys()
    capsys.readouterr()
    predict([f"--model={served}/served", "Jean-Luc lives in New York."])
    answer = json.loads(capsys.readouterr().out)
    found = [(answer["text"][entity["start"] : entity["end"]], entity["label"]) for entity in answer["entities"]]
    assert found == [("Jean-Luc", "P"), ("New York", "L")]


def test_entities_are_of_the_tags_of_words(signature):
    rng = np.random.default_rng(3)
    texts = ["", *(random_text(rng) + " ".join(rng.permutation(NAMES + PLACES)[:4]) for _ in range(40))]
    texts = [text.encode() for text in texts] + [b"caf\xe9 Mara \xff\xfe Oslo\xe2\x82", b"Mara " * 80, b"\xff"]
    outputs = call(signature, texts)
    seen = 0
    for i, text in enumerate(text.decode("utf-8", "replace") for text in texts):
        places = split(text)
        words = [word.decode() for word in outputs["words"][i] if word]
        assert words == [word for word, *_ in places]
        entities = get_entities([tag.decode() for tag in outputs["tags"][i] if tag])
        number = len(entities)
        assert [name.decode() for name in outputs["entities"][i] if name] == [kind for kind, *_ in entities]
        assert outputs["starts"][i, :number].tolist() == [places[first][1] for _, first, _ in entities]
        assert outputs["ends"][i, :number].tolist() == [places[last][2] for *_, last in entities]
        means = [np.mean(outputs["probabilities"][i, first : last + 1]) for _, first, last in entities]
        np.testing.assert_allclose(outputs["scores"][i, :number], means, rtol=1e-5)
        seen += number
    assert seen > 40


def test_an_answer_does_not_depend_on_the_batch(signature):
    texts = ["Mara lives in Oslo.", "", "(New York)  is where Ole O'Hara, lives", "x " * 50]
    together = call(signature, texts)
    for i, text in enumerate(texts):
        for name, value in call(signature, [text]).items():
            for a, b in itertools.zip_longest(value[0], together[name][i], fillvalue=b"" if value.dtype == "O" else 0):
                assert a == (b if isinstance(b, bytes) else pytest.approx(b, abs=1e-5))
    assert {name: len(value) for name, value in call(signature, []).items()} == dict.fromkeys(together, 0)


def test_it_has_operations_that_tf_serving_links(served):
    of_text = {name for name in operations.operations(str(served / "served/1")) if name.startswith(("Fast", "TFText"))}
    assert of_text <= {*operations.TEXT_OPERATIONS}
    assert not operations.refused_operations(str(served / "served/1"))


def test_the_cpp_loader_gives_what_python_does(served, signature, tmp_path):
    if not shutil.which("g++"):
        pytest.skip("there is no g++ to compile load_saved_model.cc with")
    loader = cpp_loader.CppLoader(cpp_loader.compile_loader(tmp_path), served / "served/1")
    for texts in (["Mara lives in Oslo."], [], ["", "(U.S.)  is where Mia, lives", "caf\u0301e \u3000文"]):
        outputs = loader.run("serving_default", dict(text=np.array([text.encode() for text in texts], object)))
        expected = call(signature, texts)
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            compare = np.testing.assert_array_equal if value.dtype == object else np.testing.assert_allclose
            compare(outputs[name], value, **({} if value.dtype == object else dict(atol=1e-5)))
    loader.close()
