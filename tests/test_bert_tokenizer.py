"""The tokenizer of Hugging Face's BERT as a graph: the library's ids, whatever the text."""

import dataclasses
import itertools
import json
import random
import unicodedata

import pytest
import tensorflow as tf
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from shatter_tf import prepare
from shatter_tf.data.corpus.shards import Corpus
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import SPECIAL_TOKENS, read_normalizer, write_normalizer
from shatter_tf.errors import UserError
from shatter_tf.serving import operations
from shatter_tf.serving.text_encoder import TextEncoder
from shatter_tf.training import run_dir, settings

# The characters of scripts and of other groups, mostly whole blocks.
SCRIPTS = {
    "Latin": [*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0xC0, 0x250), *range(0x1E00, 0x1F00)],
    "accents": [*range(0x300, 0x370), *range(0x1AB0, 0x1AC0), *range(0x20D0, 0x20F1), *range(0xFE20, 0xFE30)],
    "Greek": [*range(0x370, 0x400), *range(0x1F00, 0x2000)],
    "Cyrillic": range(0x400, 0x530),
    "Armenian": range(0x530, 0x590),
    "Hebrew": [*range(0x590, 0x600), *range(0xFB1D, 0xFB50)],
    "Arabic": [*range(0x600, 0x700), *range(0xFB50, 0xFE00), *range(0xFE70, 0xFF00)],
    "Devanagari": range(0x900, 0x980),
    "Bengali": range(0x980, 0xA00),
    "Tamil": range(0xB80, 0xC00),
    "Thai": range(0xE00, 0xE80),
    "Tibetan": range(0xF00, 0x1000),
    "Georgian": [*range(0x10A0, 0x1100), *range(0x1C90, 0x1CC0)],
    "jamo": range(0x1100, 0x1200),
    "Ethiopic": range(0x1200, 0x1380),
    "Cherokee": [*range(0x13A0, 0x1400), *range(0xAB70, 0xABC0)],
    "Khmer": range(0x1780, 0x1800),
    "Mongolian": range(0x1800, 0x18B0),
    "kana": range(0x3040, 0x3100),
    "Han": [*range(0x4E00, 0x4F00), *range(0x33F0, 0x3410), *range(0xF900, 0xFA00), *range(0x2A6D0, 0x2A710)],
    "Hangul": range(0xAC00, 0xAD00),
    "Deseret": range(0x10400, 0x10450),
    "symbols": [*range(0x2070, 0x20D0), *range(0x2100, 0x2200), *range(0x2460, 0x2500), *range(0x1D400, 0x1D450)],
    "emoji": [*range(0x1F300, 0x1F400), *range(0x1F3FB, 0x1F400), 0x200D, 0xFE0F],
    "punctuation": [*range(0x21, 0x30), *range(0x5B, 0x61), *range(0xA0, 0xC0), *range(0x2000, 0x2070), 0x3001, 0x166D],
    "controls": [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, 0xFEFF, 0xFFFD, 0xE000, 0xE0001, 0xF0000, 0x10FFFD],
    "compatibility": [*range(0xFB00, 0xFB18), *range(0xFF00, 0xFFF0)],
}
LETTERS = {script: [chr(code) for code in codes] for script, codes in SCRIPTS.items()}
EVERY_LETTER = sorted({letter for letters in LETTERS.values() for letter in letters})

# All that characters become, alone and inside words; so texts that are normalized in another way have other ids.
NORMALIZED = sorted(
    {
        character
        for letter in EVERY_LETTER
        for text in (letter, letter.lower())
        for form in ("NFC", "NFD", "NFKC")
        for character in unicodedata.normalize(form, text) + unicodedata.normalize(form, text).casefold()
    }
    - {"\0"}
)
WORDS = ["the", "##s", "straße", "strasse", "ﬁ", "##ος", "##οσ", "i̇", "[", "]", "sep", "SEP", "##", "###"]
VOCABULARY = list(dict.fromkeys([*SPECIAL_TOKENS, *WORDS, *NORMALIZED, *(f"##{c}" for c in NORMALIZED[::2])]))

STRIP_ACCENTS = {"bert": None, "bert_strip_accents": True, "bert_keep_accents": False}
SETTINGS = [*itertools.product((True, False), STRIP_ACCENTS)]

# Those that Unicode has since version 13, and that TensorFlow knows other things about than the library.
DIFFERENT_IF_LOWER_CASE = {
    *(0x1C89, 0x2C2F, 0xA7C0, 0xA7CB, 0xA7CC, 0xA7CE, 0xA7D0, 0xA7D2, 0xA7D4, 0xA7D6, 0xA7D8, 0xA7DA, 0xA7DC),
    *(*range(0x10570, 0x10596), *range(0x10D50, 0x10D66), *range(0x16EA0, 0x16EB9)),
}
DIFFERENT_IF_ACCENTS_ARE_STRIPPED = {
    *(0x105C9, 0x105E4, 0x11383, 0x11385, 0x1138E, 0x11391, 0x113C5, 0x113C7, 0x113C8, 0x11938),
    *(*range(0x16121, 0x16129), *range(0x16D68, 0x16D6B)),
}


def library(lower_case, normalizer, vocabulary=VOCABULARY):
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    tokenizer = LibraryTokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=STRIP_ACCENTS[normalizer], lowercase=lower_case
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def random_texts(number, seed=0):
    """Returns texts of a script or two, with spaces, and now and then a character of any group."""
    rng = random.Random(seed)
    texts = []
    for _ in range(number):
        letters = [*LETTERS[rng.choice([*LETTERS])], *LETTERS[rng.choice([*LETTERS])]]
        texts.append(
            "".join(
                rng.choice(EVERY_LETTER if rng.random() < 0.1 else letters) + " " * (rng.random() < 0.2)
                for _ in range(rng.randrange(1, 30))
            )
        )
    return texts


def of_library(texts, lower_case, normalizer, vocabulary=VOCABULARY):
    return library(lower_case, normalizer, vocabulary).encode_batch(texts, add_special_tokens=False)


def ids_of(texts, lower_case, normalizer, vocabulary=VOCABULARY):
    return Tokenizer(vocabulary, lower_case, normalizer).tokenize(tf.constant(texts, tf.string)).to_list()


def different(texts, lower_case, normalizer, vocabulary=VOCABULARY):
    """Returns the texts whose ids are not the library's."""
    ours = ids_of(texts, lower_case, normalizer, vocabulary)
    theirs = of_library(texts, lower_case, normalizer, vocabulary)
    return [text for text, ids, encoding in zip(texts, ours, theirs, strict=True) if ids != encoding.ids]


# === Ids ===


@pytest.mark.parametrize(("lower_case", "normalizer"), SETTINGS)
def test_ids_are_the_librarys(lower_case, normalizer):
    assert different(random_texts(10_000), lower_case, normalizer) == []


def test_normalization_decides_what_the_ids_are():
    """Else the test above would say little."""
    texts = random_texts(1000)
    of_settings = [ids_of(texts, *setting) for setting in itertools.product((True, False), [*STRIP_ACCENTS][1:])]
    for one, other in itertools.combinations(of_settings, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 0.9 * len(texts)
    for found in of_settings:
        assert sum(ids.count(1) for ids in found) < 0.5 * sum(map(len, found))


@pytest.mark.parametrize(("lower_case", "normalizer"), SETTINGS)
def test_every_character_has_the_librarys_ids(lower_case, normalizer):
    """Inside a word; also those that Unicode does not have yet."""
    characters = [chr(code) for code in (*range(1, 0xD800), *range(0xE000, 0x18000), *range(0x1AFF0, 0x1FC00))]
    characters += [chr(code) for code in (*range(0xE0000, 0xE0200), 0xF0000, 0xFFFFD, 0xFFFFF, 0x100000, 0x10FFFF)]
    vocabulary = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    found = {ord(text[1]) for text in different([f"a{c}b" for c in characters], lower_case, normalizer, vocabulary)}
    expected = set()
    if lower_case:
        expected |= DIFFERENT_IF_LOWER_CASE
    if lower_case if normalizer == "bert" else STRIP_ACCENTS[normalizer]:
        expected |= DIFFERENT_IF_ACCENTS_ARE_STRIPPED
    assert found <= expected


@pytest.mark.parametrize(("lower_case", "normalizer"), SETTINGS)
@pytest.mark.parametrize("letter", ["s", "ß", "漢", "👩", "e\u0301", "\u200bs", "ﬁ", "한"])
def test_words_of_over_100_characters_are_unknown(letter, lower_case, normalizer):
    texts = [letter * number for number in (1, 33, 34, 50, 51, 99, 100, 101, 102, 200, 300, 1000)]
    assert different([*texts, f"the {letter * 101} the"], lower_case, normalizer) == []


@pytest.mark.parametrize(("lower_case", "normalizer"), SETTINGS)
@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "\0",
            "the\0the",
            "[SEP] [MASK]",
            "# ## ### #s",
            "ΟΔΟΣ ΟΣ Σ ΣΑΣ.",
            "İI ıi",
            "I\u0307",
            "\u0301",
            "ﬁ½ＡＢ",
        ),
        *("straßes STRASSE", "a\u3000b\xa0c\u2028d\x85e\x1cf\tg\r\nh", "\ufffd\ufeffthe\u200b\u00ad", "x\u0323\u0307"),
        *("丽\U0002f800豈", "\U0002b73f\U0002b740\U0002b820\U0002ceb0", "e\u0301漢\u0301.\u0301 \u0301s"),
    ],
)
def test_odd_texts(text, lower_case, normalizer):
    assert different([text, f"the{text}s", f"The {text} s"], lower_case, normalizer) == []


@pytest.mark.parametrize(("lower_case", "normalizer"), SETTINGS)
def test_invalid_utf_8_is_dropped(lower_case, normalizer):
    broken = [b"\xff", b"the\xff\xfe", b"\xf0\x9f\x98", b"th\xc0\xafe", b"\xed\xa0\x80the", b"\xf4\x90\x80\x80"]
    decoded = [text.decode(errors="ignore") for text in broken]
    theirs = [encoding.ids for encoding in of_library(decoded, lower_case, normalizer)]
    assert ids_of(broken, lower_case, normalizer) == theirs


@pytest.mark.parametrize("texts", [[], [""], ["", " "]])
def test_nothing_to_tokenize(texts):
    tokenizer = Tokenizer(VOCABULARY, True, "bert")
    for ragged in (tokenizer.tokenize(tf.constant(texts, tf.string)), *offsets(tokenizer, texts)):
        assert ragged.to_list() == [[]] * len(texts)


# === Offsets ===


def offsets(tokenizer, texts):
    return tokenizer.tokenize_with_offsets(tf.constant(texts, tf.string))


@pytest.mark.parametrize(("lower_case", "normalizer"), SETTINGS)
def test_offsets_are_the_librarys_with_the_accents_of_each_letter(lower_case, normalizer):
    texts = [*random_texts(1500, seed=1), "s" * 101, "Cafe\u0301s ﬁ한", "", "\u0301s"]
    ids, begins, ends = (ragged.to_list() for ragged in offsets(Tokenizer(VOCABULARY, lower_case, normalizer), texts))
    assert ids == ids_of(texts, lower_case, normalizer)
    theirs = of_library(texts, lower_case, normalizer)
    for text, encoding, first, last in zip(texts, theirs, begins, ends, strict=True):
        cut = [text.encode()[begin:end].decode() for begin, end in zip(first, last, strict=True)]
        starts = [len(text.encode()[:begin].decode()) for begin in first]
        assert starts == [begin for begin, _ in encoding.offsets]
        for token, (begin, end) in zip(cut, encoding.offsets, strict=True):
            assert token.startswith(text[begin:end])
            accents = token[end - begin :]
            assert all(unicodedata.category(accent) in ("Mn", "Mc") for accent in accents)
            assert not accents or lower_case or normalizer != "bert"


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Cafe\u0301 ÉTÉ\u0301!", ["Cafe\u0301", "ÉT", "É\u0301", "!"]),
        (f"et {'ß' * 300}!", ["et", "ß" * 300, "!"]),  # here the library takes bytes for characters
        ("한\u200b e\u200bt\u200b", ["한", "한", "한", "e\u200bt"]),
    ],
)
def test_what_offsets_cut_out(text, cut):
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "cafe", "et", "##e", "!", "ᄒ", "##ᅡ", "##ᆫ"], True, "bert")
    _, begins, ends = (ragged.to_list()[0] for ragged in offsets(tokenizer, [text]))
    assert [text.encode()[begin:end].decode() for begin, end in zip(begins, ends, strict=True)] == cut


# === What carries a normalizer ===


def test_the_graph_has_nothing_that_tf_serving_lacks(tmp_path):
    tokenizer = Tokenizer(VOCABULARY, True, "bert")
    signature = [tf.TensorSpec([None], tf.string)]
    module = tf.Module()
    module.ids = tf.function(lambda text: tokenizer.tokenize(text).flat_values, signature, autograph=False)
    module.offsets = tf.function(
        lambda text: tokenizer.tokenize_with_offsets(text)[1].flat_values, signature, autograph=False
    )
    assert len(module.ids.get_concrete_function().graph.get_operations()) < 30
    tf.saved_model.save(module, str(tmp_path))
    found = operations.operations(str(tmp_path))
    assert found - set(dir(tf.raw_ops)) <= {*operations.TEXT_OPERATIONS}
    assert "RegexSplitWithOffsets" in found
    assert not operations.refused_operations(str(tmp_path))


def test_normalizers_are_checked():
    with pytest.raises(UserError, match="^normalizer=Bert: .* bert, bert_strip_accents, bert_keep_accents"):
        Tokenizer(VOCABULARY, True, "Bert")


def test_a_file_beside_the_vocabulary(tmp_path):
    vocab_file = str(tmp_path / "vocab.txt")
    write_normalizer(str(tmp_path), "", True)
    assert read_normalizer(vocab_file) is None
    write_normalizer(str(tmp_path), "bert", False)
    assert read_normalizer(vocab_file) == ("bert", False)
    path = tmp_path / "normalizer.json"
    for content in (
        "",
        "[]",
        "{}",
        '{"normalizer": "bert", "lower_case": 1}',
        '{"normalizer": [], "lower_case": true}',
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=f"^{path}: "):
            read_normalizer(vocab_file)


@pytest.fixture
def of_bert(vocab_file, tmp_path):
    """A vocabulary file with a file beside it that says how text is normalized."""
    write_normalizer(str(tmp_path), "bert", True)
    return vocab_file


def test_prepare_gives_the_librarys_ids(tmp_path, vocabulary, of_bert, capsys):
    documents = [f"The CATS sat{'.' * i} ﬁ thé cat ½" for i in range(30)]
    (tmp_path / "text").write_text("\n".join(documents))
    arguments = [f"--input={tmp_path}/text", f"--vocab_file={of_bert}", "--layout=line", "--num_workers=1"]
    prepare.main([*arguments, f"--output_dir={tmp_path}/corpus"])
    assert f"vocab_file={of_bert}: uncased, normalizer bert" in capsys.readouterr().out
    corpus = Corpus.read(str(tmp_path / "corpus"))
    assert (corpus.normalizer, corpus.lower_case) == ("bert", True)
    assert read_normalizer(str(tmp_path / "corpus/vocab.txt")) == ("bert", True)

    found = []
    for record in tf.data.TFRecordDataset(sorted(str(path) for path in tmp_path.glob("corpus/*.tfrecord"))):
        found.append([*tf.train.Example.FromString(record.numpy()).features.feature["ids"].int64_list.value][1:-1])
    assert sorted(found) == sorted(e.ids for e in of_library(documents, True, "bert", vocabulary))

    with pytest.raises(UserError, match=f"cased: .*{of_bert}.*uncased"):
        prepare.main([*arguments, f"--output_dir={tmp_path}/other", "--cased"])


def test_corpora_that_name_no_normalizer_have_our_own(write_corpus, random_documents):
    path = write_corpus(random_documents(shards=1, per_shard=3))
    with open(f"{path}/corpus.json") as f:
        about = json.load(f)
    assert "normalizer" not in about
    assert Corpus.read(path).normalizer == ""
    with open(f"{path}/corpus.json", "w") as f:
        json.dump(about | {"normalizer": "Bert"}, f)
    with pytest.raises(UserError, match="corpus.json: .*Bert"):
        Corpus.read(path)


def test_a_run_keeps_the_normalizer_of_its_vocabulary(classify, of_bert, tmp_path):
    run = classify()
    data = run.params.task
    assert (run.normalizer, data.train_data.normalizer, data.validation_data.normalizer) == ("bert",) * 3
    model_dir = str(tmp_path / "run")
    run_dir.write(model_dir, run)
    assert run_dir.read(model_dir).normalizer == "bert"
    assert read_normalizer(f"{model_dir}/vocab.txt") == ("bert", True)
    run_dir.check(model_dir, run)
    with pytest.raises(UserError, match="another vocabulary"):
        run_dir.check(model_dir, dataclasses.replace(run, normalizer=""))

    # What a write leaves that was killed.
    (tmp_path / "run/experiment.json").unlink()
    run_dir.check(model_dir, run)
    (tmp_path / "run/params.yaml").unlink()
    run_dir.check(model_dir, run)


def test_settings_that_contradict_the_vocabulary_are_refused(classify, of_bert, tmp_path):
    for name, value in dict(normalizer="bert_keep_accents", lower_case="false").items():
        with pytest.raises(UserError, match=f"task.train_data.{name}=.*{of_bert}"):
            classify(more=f"task.train_data.{name}={value}")
    with pytest.raises(UserError, match="task.validation_data.normalizer=bert_keep_accents .* bert;"):
        classify(more="task.validation_data.normalizer=bert_keep_accents")
    (tmp_path / "normalizer.json").unlink()
    with pytest.raises(UserError, match="normalizer=Bert: .* bert, bert_strip_accents"):
        classify(more="task.train_data.normalizer=Bert")
    assert classify(more="task.train_data.normalizer=bert_keep_accents").data.normalizer == "bert_keep_accents"
    with pytest.raises(UserError, match="task.train_data.normalizer=bert .*task.train_data.vocab_file"):
        settings.resolve("shatter/classify", data_dir=str(tmp_path), params_override="task.train_data.normalizer=bert")


def test_a_run_takes_the_normalizer_of_its_checkpoint(pretrain, tmp_path):
    pretrained = pretrain()
    model_dir = str(tmp_path / "pretrained")
    run_dir.write(model_dir, dataclasses.replace(pretrained, normalizer="bert"))
    with pytest.raises(UserError, match="corpus: its normalizer is not that of init_checkpoint"):
        settings.resolve("shatter/pretrain", data_dir=str(tmp_path / "corpus"), init_checkpoint=model_dir)
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("the cat\tyes\nthe dog\tno\n" * 20)
    run = settings.resolve(
        "shatter/classify",
        data_dir=str(tmp_path),
        init_checkpoint=model_dir,
        params_override="task.train_data.seq_length=16",
    )
    assert (run.normalizer, run.params.task.validation_data.normalizer) == ("bert", "bert")


def test_a_text_encoder_keeps_its_normalizer():
    sizes = dict(vocab_size=64, hidden_size=8, num_layers=1, num_parts=2, intermediate_size=8)
    vocabulary = [*SPECIAL_TOKENS, "ﬁ", "fi"]
    layer = TextEncoder(dict(type="shatter", shatter=sizes), vocabulary, lower_case=True, normalizer="bert")
    config = layer.get_config()
    assert config["normalizer"] == "bert"
    assert TextEncoder.from_config(config).tokenizer.tokenize(tf.constant(["ﬁ"])).to_list() == [[5]]
    del config["normalizer"]
    assert TextEncoder.from_config(config).tokenizer.tokenize(tf.constant(["ﬁ"])).to_list() == [[6]]
