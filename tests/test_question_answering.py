"""Question answering: SQuAD's files, windows, spans and scores, and a model that memorises eight answers."""

import gzip
import importlib
import json
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from official.core import task_factory
from tiny import PLAIN, one_step, real_rows, tiny_override

from shatter_tf.data.question_answering import (
    QuestionAnsweringDataConfig,
    QuestionAnsweringDataLoader,
    answer_scores,
    best_spans,
    lay_out,
    load_squad,
    read_squad,
    windows,
)
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import SPECIAL_TOKENS
from shatter_tf.errors import UserError
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training import settings
from shatter_tf.training.session import Session

SHORT = "The café in Zürich sold 12 (twelve) crêpes; a naïve ﬁsh ate 3."
HANGUL = "Cafe\u0301 x 한국의 수도, 서울! Straße 7. İzmir."
LONG = " ".join(f"In year {year} the clock struck {year % 7} times." for year in range(1900, 1930))
QUESTIONS = [  # context, question, answers
    (SHORT, "Where was the café?", ["Zürich", "in Zürich"]),
    (SHORT, "How many crêpes?", ["12 (twelve)"]),
    (SHORT, "What ate?", ["naïve ﬁsh"]),
    (HANGUL, "What is Seoul?", ["한국의 수도"]),
    (HANGUL, "Which street?", ["Straße 7"]),
    (HANGUL, "Which cafe and city?", ["Cafe\u0301"]),
    (LONG, "When did it strike last?", ["1929"]),
    (LONG, "How often in 1915?", ["4 times"]),
]


def squad(questions=QUESTIONS, version="1.1", impossible=()):
    """Returns a file's content; `impossible` are (context, question) without answers."""
    contexts = list(dict.fromkeys(context for context, *_ in [*questions, *impossible]))
    paragraphs = [dict(context=context, qas=[]) for context in contexts]
    for i, (context, question, *answers) in enumerate([*questions, *impossible]):
        answers = [dict(text=text, answer_start=context.index(text)) for text in (answers[0] if answers else [])]
        qa = dict(id=f"q{i}", question=question, answers=answers)
        paragraphs[contexts.index(context)]["qas"].append(qa if answers else dict(qa, is_impossible=True))
    return dict(version=version, data=[dict(title="t", paragraphs=paragraphs[:1]), dict(paragraphs=paragraphs[1:])])


IMPOSSIBLE = [(SHORT, "Who was the king?"), (LONG, "Where is the clock?")]


@pytest.fixture
def write(tmp_path):
    def write(content, name="train.json"):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def words(tmp_path):
    """A vocabulary in which words are of one to three pieces, ß and 한 are several, and some words are unknown."""
    pieces = ["the", "cafe", "in", "zu", "##rich", "sold", "12", "(", ")", "cr", "##epes", ";", "fi", "##sh", ".", "7"]
    pieces += ["stra", "##s", "##se", "ᄒ", "##ᅡ", "##ᆫ", "##국", ",", "!", "year", "clock", "times", "struck", "how"]
    pieces += [str(n) for n in (*range(7), *range(1900, 1930))] + ["when", "did", "it", "many", "where", "?", "x", "19"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, *pieces]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def make_loader(write, words):
    def make(content=None, **choices):
        settings = dict(is_training=False, seq_length=48, doc_stride=9, max_query_length=5, global_batch_size=4)
        path = write(content or squad())
        return QuestionAnsweringDataLoader(
            QuestionAnsweringDataConfig(**{**settings, "input_path": path, "vocab_file": words, **choices})
        )

    return make


def gather(dataset, number=-1):
    batches = [real_rows(batch) for batch in dataset.take(number)]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def bert_windows(asked, total, seq_length, doc_stride, max_query_length):
    """BERT's loop over one context, and each window's own tokens, tried one by one."""
    room = seq_length - 3 - min(asked, max_query_length)
    spans, first = [], 0
    while True:
        length = min(total - first, room)
        spans.append((first, length))
        if first + length == total:
            break
        first += min(length, doc_stride)
    own = [[] for _ in spans]
    for token in range(total):
        context = [min(token - first, first + length - 1 - token) for first, length in spans]
        own[context.index(max(context))].append(token)
    return [(*span, min(tokens), max(tokens) + 1) for span, tokens in zip(spans, own, strict=True)]


def test_windows_are_berts():
    rng = np.random.default_rng(0)
    for seq_length, stride, most in ((16, 3, 5), (23, 7, 9), (20, 50, 2), (12, 1, 8), (30, 8, 19)):
        asked, total = rng.integers(0, 12, 60), rng.integers(1, 70, 60)
        found = {key: value.numpy() for key, value in windows(asked, total, seq_length, stride, most).items()}
        expected = [
            (i, *window, min(a, most) + 2)
            for i, (a, n) in enumerate(zip(asked, total, strict=True))
            for window in bert_windows(a, n, seq_length, stride, most)
        ]
        columns = ("question", "first", "length", "own_begin", "own_end", "offset")
        np.testing.assert_array_equal(np.stack([found[name] for name in columns], axis=1), expected)


def test_a_context_without_tokens_has_one_empty_window():
    found = {key: value.numpy().tolist() for key, value in windows([2], [0], 16, 3, 5).items()}
    assert found == dict(question=[0], first=[0], length=[0], own_begin=[0], own_end=[0], offset=[4])


def test_rows_are_laid_out():
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "a"], lower_case=True)
    table = windows([2, 9], [3, 10], 12, 4, 4)
    row = {key: value[2:3] for key, value in table.items()}  # the second window of the second question
    assert {key: value.numpy().tolist() for key, value in row.items()} == dict(
        question=[1], first=[4], length=[5], own_begin=[5], own_end=[9], offset=[6]
    )
    questions, contexts = tf.range(20, 31), tf.range(40, 53)
    found = lay_out(tokenizer, questions, tf.constant([2], tf.int64), contexts, tf.constant([7], tf.int64), row, 12)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    assert found["input_word_ids"].numpy().tolist() == [[cls, 22, 23, 24, 25, sep, 47, 48, 49, 50, 51, sep]]
    assert found["input_type_ids"].numpy().tolist() == [[0] * 6 + [1] * 6]
    assert found["input_mask"].numpy().tolist() == [[1] * 12]
    assert found["may_end"].numpy().astype(int).tolist() == [[0] * 6 + [1] * 5 + [0]]
    assert found["may_start"].numpy().astype(int).tolist() == [[0] * 7 + [1] * 4 + [0]]
    row = {key: value[:1] for key, value in table.items()}
    found = lay_out(tokenizer, questions, tf.constant([0], tf.int64), contexts, tf.constant([0], tf.int64), row, 12)
    pad = tokenizer.pad_id
    assert found["input_word_ids"].numpy().tolist() == [[cls, 20, 21, sep, 40, 41, 42, sep, *[pad] * 4]]
    assert found["input_mask"].numpy().tolist() == [[1] * 8 + [0] * 4]


@pytest.mark.parametrize("lower_case", [True, False])
def test_tokens_give_back_the_answers_texts(make_loader, lower_case):
    loader = make_loader(lower_case=lower_case)
    batches = gather(loader.load())
    held = set()
    for row, window in enumerate(batches["window"]):
        question = loader.questions[loader.windows["question"][window]]
        start, end = batches["start_positions"][row], batches["end_positions"][row]
        if end:
            assert loader.text(window, start, end) == question.answers[0]
            held.add(question.id)
            assert batches["may_end"][row, start : end + 1].all()
    assert held == {f"q{i}" for i in range(len(QUESTIONS))}
    assert len(batches["window"]) > len(QUESTIONS) + 8  # the long context takes several windows


def test_an_answer_within_a_word_is_the_word(make_loader):
    loader = make_loader(squad([(SHORT, "what?", ["rich"]), (HANGUL, "what?", ["국의"])]))
    batches = gather(loader.load())
    found = [
        loader.text(*row)
        for row in zip(*(batches[k] for k in ("window", "start_positions", "end_positions")), strict=True)
    ]
    assert found == ["rich", "한국의"]  # a piece of its own; and an unknown word


def test_every_token_may_start_an_answer_in_one_window(make_loader):
    loader = make_loader()
    batches = gather(loader.load())
    number = {question.id: 0 for question in loader.questions}
    for row, window in enumerate(batches["window"]):
        number[loader.questions[loader.windows["question"][window]].id] += batches["may_start"][row].sum()
    lengths = loader._context_end - loader._context_begin
    assert list(number.values()) == lengths.tolist()


def test_order_is_a_function_of_seed_and_step(make_loader):
    whole = gather(make_loader(is_training=True).load(), 12)
    assert set(whole) == {"input_word_ids", "input_mask", "input_type_ids", "start_positions", "end_positions"}
    for start in (1, 7):
        rest = gather(make_loader(is_training=True).load(start_step=start), 12 - start)
        for key, values in rest.items():
            np.testing.assert_array_equal(values, whole[key][4 * start :])
    other = gather(make_loader(is_training=True, seed=1).load(), 12)
    assert not np.array_equal(other["input_word_ids"], whole["input_word_ids"])
    loader = make_loader(is_training=True)
    number = len(loader.windows["question"])
    epoch = gather(loader.load(), -(-number // 4))["input_word_ids"][:number]
    in_order = gather(make_loader().load())["input_word_ids"]
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, in_order))
    shapes = {tuple(spec.shape) for spec in loader.load().element_spec.values()}
    assert shapes == {(4, 48), (4,)}


def test_best_spans_against_trying_all():
    rng = np.random.default_rng(0)
    start_logits, end_logits = rng.normal(size=(2, 40, 17)).astype(np.float32)
    may_start, may_end = rng.random((2, 40, 17)) < 0.5
    may_start[0] = False
    for longest, number in ((4, 17), (30, 17), (4, 3), (1, 17)):
        found = best_spans(start_logits, end_logits, may_start, may_end, longest, number)
        found = {key: value.numpy() for key, value in found.items()}
        for w in range(40):
            starts = sorted(np.flatnonzero(may_start[w]), key=lambda i: -start_logits[w, i])[:number]
            ends = sorted(np.flatnonzero(may_end[w]), key=lambda i: -end_logits[w, i])[:number]
            spans = [
                (start_logits[w, i] + end_logits[w, j], i, j) for i in starts for j in ends if 0 <= j - i < longest
            ]
            expected = max(spans, default=(-np.inf, 0, 0))
            assert (found["score"][w], found["start"][w], found["end"][w]) == expected
            assert found["null_score"][w] == start_logits[w, 0] + end_logits[w, 0]
    assert found["score"][0] == -np.inf


def test_answers_are_the_best_of_all_windows(make_loader):
    loader = make_loader(squad(impossible=IMPOSSIBLE))
    batches = gather(loader.load())
    number = len(batches["window"])
    start, end = batches["start_positions"], batches["end_positions"]
    spans = dict(
        window=batches["window"],
        start=np.maximum(start, batches["may_start"].argmax(axis=1)).astype(np.int32),
        end=np.maximum(end, batches["may_start"].argmax(axis=1)).astype(np.int32),
        score=np.where(end > 0, 3.0, np.random.default_rng(0).random(number)).astype(np.float32),
        null_score=np.full(number, 2.0, np.float32),
    )
    shuffled = {key: values[np.random.default_rng(1).permutation(number)] for key, values in spans.items()}
    for given in (spans, shuffled):
        answers = loader.answers(given, null_score_diff_threshold=0.0)
        assert answers == {q.id: q.answers[0] if q.answers else "" for q in loader.questions}
        assert answer_scores(loader.questions, answers, True) == dict(exact_match=1.0, f1=1.0)
        assert all(loader.answers(given).values())  # without the threshold there is always an answer
        assert not any(loader.answers(given, null_score_diff_threshold=-1.5).values())


def test_scores_are_squads(make_loader):
    questions = make_loader().questions
    answers = {"q0": "zürich.", "q1": "12", "q2": "the clock"}  # exact but for the rest; half of it; wrong
    expected = dict(exact_match=1 / 3, f1=(1 + 2 / 3 + 0) / 3)
    assert answer_scores(questions, answers, False) == pytest.approx(expected)
    assert answer_scores(questions, answers, True) == pytest.approx(expected)


def broken(change):
    content = squad(impossible=IMPOSSIBLE)
    change(content["data"][0]["paragraphs"][0], content)
    return content


def set_answer(**fields):
    return lambda paragraph, content: paragraph["qas"][1]["answers"][0].update(**fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "train.json: not JSON"),
        ("[]", "train.json: no data that is a list; SQuAD's format is"),
        ('{"data": []}', "train.json: no questions in it"),
        ('{"data": [{"context": "a"}]}', r"train.json: data\[0\]: no paragraphs that is a list"),
        (broken(lambda p, _: p.pop("context")), r"data\[0\].paragraphs\[0\]: no context that is text"),
        (broken(lambda p, _: p["qas"][1].pop("id")), r"paragraphs\[0\].qas\[1\]: no id that is text"),
        (broken(lambda p, _: p["qas"][1].update(id="q0")), "train.json: question 'q0': the id occurs twice"),
        (broken(lambda p, _: p["qas"][1].update(answers=[])), "question 'q1': it has no answers; .*is_impossible"),
        (broken(lambda p, _: p["qas"][1].update(is_impossible=True)), "question 'q1': it says is_impossible, but has"),
        (
            broken(set_answer(answer_start=3)),
            "question 'q1': the answer's text does not stand at its answer_start, as in 1 ",
        ),
        (broken(set_answer(answer_start=-40)), "question 'q1': the answer's text does not stand"),
        (broken(set_answer(text=" ", answer_start=3)), "question 'q1': the answer's text does not stand"),
        (broken(set_answer(answer_start="24")), "question 'q1': no answer_start that is a whole number"),
    ],
)
def test_what_is_no_squad_is_refused(write, content, message):
    with pytest.raises(UserError, match=message):
        read_squad(write(content))
    with pytest.raises(UserError, match="nowhere.json: no such file"):
        read_squad("nowhere.json")


def test_invalid_utf8_is_refused_with_its_position(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + b'{"\xff')
    with pytest.raises(UserError, match="a.json: invalid UTF-8 at byte 5"):
        read_squad(str(tmp_path / "a.json"))


def test_a_few_misplaced_answers_are_left_out_of_training(write, make_loader):
    content = squad([*QUESTIONS, *((LONG, f"In {i}?", ["1929"]) for i in range(120))])
    content["data"][0]["paragraphs"][0]["qas"][1]["answers"][0]["answer_start"] += 1
    found = read_squad(write(content))
    assert found.misplaced == ["q1"]
    assert [q.id for q in found.questions if q.span is None] == ["q1"]
    assert {q.id for q in make_loader(content).questions} - {
        q.id for q in make_loader(content, is_training=True).questions
    } == {"q1"}


CAFE = "Café Muñoz is in São Paulo, in a café by 한국 and a ﬁre"
COUNTED = ("as it is", "NFC", "NFD")


def as_form(form, text):
    return text if form == "as it is" else unicodedata.normalize(form, text)


@pytest.mark.parametrize("answer", ["São Paulo", "Café", "a café", "한국", "é", "ﬁre"])
@pytest.mark.parametrize("of_context", ["NFC", "NFD"])
@pytest.mark.parametrize("of_answer", ["NFC", "NFD"])
@pytest.mark.parametrize("counted", COUNTED)
def test_an_answer_in_another_normal_form_is_found(write, of_context, of_answer, counted, answer):
    """Whichever form its answer_start counts; the span is in characters of the context as it is."""
    context = as_form(of_context, CAFE)
    begin = CAFE.rindex(answer)
    content = squad([(context, "Where?", [])])
    answers = [
        dict(text=as_form(of_answer, answer), answer_start=len(as_form(counted, as_form(of_context, CAFE[:begin]))))
    ]
    content["data"][0]["paragraphs"][0]["qas"][0].update(answers=answers, is_impossible=False)
    found = read_squad(write(content))
    (question,) = found.questions
    assert not found.misplaced
    assert context[slice(*question.span)] == as_form(of_context, answer)
    assert question.answers == (as_form(of_answer, answer),)


def test_half_a_character_is_no_answer(write):
    content = squad([(CAFE, "Where?", [])])
    for text, start in (("S\u0061", CAFE.index("São")), ("Mun", CAFE.index("Muñ"))):
        answers = [dict(text=text, answer_start=start)]
        content["data"][0]["paragraphs"][0]["qas"][0].update(answers=answers, is_impossible=False)
        with pytest.raises(UserError, match="question 'q0'"):
            read_squad(write(content))


@pytest.mark.parametrize(("form", "said"), [("NFC", False), ("NFD", True)])
def test_an_answer_that_stands_elsewhere_in_another_form_is_refused_with_the_forms(write, form, said):
    content = squad([(unicodedata.normalize(form, CAFE), "Where?", [])])
    answers = [dict(text="São Paulo", answer_start=1)]
    content["data"][0]["paragraphs"][0]["qas"][0].update(answers=answers, is_impossible=False)
    with pytest.raises(UserError, match="question 'q0'") as refusal:
        read_squad(write(content))
    assert ("NFC" in str(refusal.value)) == said


def test_halves_of_characters_keep_offsets(write):
    content = squad()
    text = json.dumps(content).replace("sold", "\\ud83d")  # JSON's escape of half an emoji
    content = json.loads(text)
    for qa in content["data"][0]["paragraphs"][0]["qas"]:
        for answer in qa["answers"]:
            answer["answer_start"] = content["data"][0]["paragraphs"][0]["context"].index(answer["text"])
    assert not read_squad(write(content)).misplaced


TINY = tiny_override(max_sequence_length=64)
DATA = "task.train_data.seq_length=48,task.train_data.doc_stride=9,task.train_data.max_query_length=8"
DATA += ",task.train_data.global_batch_size=4,task.max_answer_length=8,runtime.enable_xla=false"


@pytest.fixture
def run(write, words, tmp_path):
    """Returns a function that resolves a tiny run."""

    def make(train=None, dev=None, more=""):
        write(train or squad())
        write(dev or train or squad(), "dev.json")
        override = ",".join(filter(None, [TINY, DATA, f"task.train_data.vocab_file={words}", more]))
        return settings.resolve("shatter/answer", data_dir=str(tmp_path), params_override=override)

    return make


@pytest.mark.parametrize(("version", "content"), [("1.1", squad()), ("2.0", squad(impossible=IMPOSSIBLE))])
def test_tensorflow_datasets_are_read_as_the_file_they_were_made_of(write, words, tmp_path, version, content):
    import tensorflow_datasets as tfds

    def examples(builder, *args, **kwargs):
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    answers = {key: [answer[key] for answer in qa["answers"]] for key in ("text", "answer_start")}
                    example = dict(title="", context=paragraph["context"], question=qa["question"], id=qa["id"])
                    example |= dict(answers=answers, is_impossible=not qa["answers"], plausible_answers=answers)
                    yield {name: example[name] for name in builder.info.features}

    def dataset(builder, *args, **kwargs):
        specs = builder.info.features.get_tensor_spec()
        return tf.data.Dataset.from_generator(lambda: examples(builder), output_signature=specs)

    path = write(content)
    override = ",".join(
        [TINY, DATA, f"task.train_data.vocab_file={words}", f"task.train_data.tfds_name=squad/v{version}"]
    )
    with tfds.testing.mock_data(as_dataset_fn=dataset, policy=tfds.testing.MockPolicy.USE_CODE):
        task = settings.resolve("shatter/answer", params_override=override).params.task
        assert (task.train_data.tfds_split, task.validation_data.tfds_split) == ("train", "validation")
        found, expected = load_squad(task.validation_data), read_squad(path)
        assert found.path == f"tfds_name=squad/v{version}, tfds_split=validation"
        assert (found.contexts, found.questions) == (expected.contexts, expected.questions)
        assert task.version_2_with_negative == (version == "2.0")
        with pytest.raises(UserError, match="data_dir=here and task.train_data.tfds_name=squad/v.*: only one is read"):
            settings.resolve("shatter/answer", data_dir="here", params_override=override)
    with (
        tfds.testing.mock_data(policy=tfds.testing.MockPolicy.USE_CODE),
        pytest.raises(UserError, match="tfds_name=glue/cola, tfds_split=train: its features are .*sentence"),
    ):
        settings.resolve("shatter/answer", params_override=override.replace(f"squad/v{version}", "glue/cola"))


@pytest.mark.parametrize("encoder", ["any", "bert"])
def test_a_step(run, encoder):
    _, _, _, changed = one_step(run(more=f"task.model.encoder.type={encoder}").params)
    assert sum(changed) > 0.8 * len(changed)


@pytest.mark.slow
def test_steps_compile(run):
    params = run().params
    task = task_factory.get_task(params.task)
    model = task.build_model()
    optimizer = task.create_optimizer(params.trainer.optimizer_config)
    metrics = task.build_metrics(training=True)
    for data, step in (
        (params.task.train_data, lambda x: task.train_step(x, model, optimizer, metrics)["loss"]),
        (params.task.validation_data, lambda x: task.validation_step(x, model)),
    ):
        batch = next(iter(task.build_inputs(data)))
        compiled = tf.function(step, jit_compile=True, autograph=False)(batch)
    expected = task.validation_step(batch, model)
    tf.nest.map_structure(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), compiled, expected)


def test_versions_follow_from_the_data(run):
    one, two = squad(), squad(impossible=IMPOSSIBLE, version="v2.0")
    assert not run(one, one).params.task.version_2_with_negative
    assert run(two, one).params.task.version_2_with_negative
    with pytest.raises(UserError, match="dev.json: some of its questions have no answer, as in SQuAD 2.0, but all of"):
        run(one, two)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("task.train_data.seq_length=18", "seq_length=18 leaves 7 tokens of context beside a question of max_query_le"),
        ("task.train_data.doc_stride=0", "task.train_data.doc_stride=0 is not positive"),
        ("task.max_answer_length=0", "task.max_answer_length=0 is not positive"),
        ("task.n_best_size=0", "task.n_best_size=0 is not positive"),
        ("task.train_data.seq_length=65", "is longer than the encoder's 64 positions"),
        ("task.train_data.input_path=nowhere.json", "nowhere.json: no such file"),
    ],
)
def test_settings_that_cannot_be_are_refused(run, more, message):
    with pytest.raises(UserError, match=message):
        run(more=more)


def test_data_must_be_named(words):
    with pytest.raises(UserError, match="no questions: give data_dir, with train.json"):
        settings.resolve("shatter/answer", params_override=f"task.train_data.vocab_file={words}")


def train(tmp_path, words, *more, mode="train_and_eval", steps):
    override = f"{PLAIN},{TINY},{DATA},task.train_data.vocab_file={words},trainer.train_steps={steps}"
    override += ",trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=0.01"
    flags = dict(data_dir=tmp_path, model_dir=tmp_path / "run", mode=mode, params_override=",".join([override, *more]))
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    importlib.import_module("shatter_tf.train").main(["--experiment=shatter/answer", *arguments])
    return model_dir.read_metrics(str(tmp_path / "run"))


@pytest.mark.parametrize("version", [pytest.param("1.1", marks=pytest.mark.slow), "2.0"])
def test_a_tiny_model_learns_eight_answers(write, words, tmp_path, version):
    content = squad(impossible=IMPOSSIBLE if version == "2.0" else ())
    for name in ("train.json", "dev.json"):
        write(content, name)
    more = tiny_override(max_sequence_length=64, hidden_size=48, intermediate_size=96)
    more += ",task.train_data.seq_length=64,task.train_data.doc_stride=32,task.train_data.global_batch_size=8"
    metrics = train(tmp_path, words, more, "trainer.validation_interval=400", steps=400)
    assert metrics["f1"] > 0.9
    assert metrics["exact_match"] > 0.8
    assert set(metrics) == {"step", "loss", "exact_match", "f1", "parameters"}
    history = model_dir.read_history(str(tmp_path / "run"))
    assert [(entry["step"], entry["f1"]) for entry in history] == [(400, metrics["f1"])]
    (tmp_path / "run" / "metrics.json").unlink()
    assert train(tmp_path, words, more, mode="eval", steps=400) == metrics


def test_a_run_goes_on_where_it_was(write, words, tmp_path, capsys):
    for name in ("train.json", "dev.json"):
        write(squad(impossible=IMPOSSIBLE), name)
    train(
        tmp_path, words, "trainer.checkpoint_interval=2,trainer.validation_interval=2,trainer.steps_per_loop=2", steps=2
    )
    before = model_dir.read_history(str(tmp_path / "run"))
    metrics = train(
        tmp_path, words, "trainer.checkpoint_interval=2,trainer.validation_interval=2,trainer.steps_per_loop=2", steps=4
    )
    assert "from step 2" in capsys.readouterr().out
    history = model_dir.read_history(str(tmp_path / "run"))
    assert history[0] == before[0]
    assert [entry["step"] for entry in history] == [2, 4]
    assert metrics["f1"] == history[-1]["f1"]


@pytest.mark.slow
def test_replicas_share_an_evaluation(run, tmp_path, monkeypatch):
    def evaluate(name):
        session = Session(run(squad(impossible=IMPOSSIBLE)), str(tmp_path / name))
        assert session.trainer.strategy.num_replicas_in_sync == (2 if name == "two" else 1)
        return session.evaluate()

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    expected = evaluate("one")
    cpus = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime: cpus)
    assert evaluate("two") == pytest.approx(expected, rel=1e-5)


def test_it_begins_with_a_pretrained_encoder(pretrain, write, tmp_path, capsys):
    pretrained = pretrain()
    source = task_factory.get_task(pretrained.params.task).build_model()
    model_dir.write(str(tmp_path / "pretrained"), pretrained)
    items = dict(model=source, encoder=source.encoder_network, masked_lm=source.masked_lm)
    tf.train.Checkpoint(**items).write(str(tmp_path / "pretrained" / "ckpt-3"))
    for name in ("train.json", "dev.json"):
        write(squad([("the cat sat on a mat", "where?", ["a mat"])]), name)
    sizes = "task.train_data.seq_length=32,task.train_data.max_query_length=8,task.max_answer_length=8"
    fine_tuned = settings.resolve(
        "shatter/answer",
        data_dir=str(tmp_path),
        init_checkpoint=str(tmp_path / "pretrained"),
        params_override=sizes,
    )
    assert fine_tuned.vocabulary == pretrained.vocabulary
    task = task_factory.get_task(fine_tuned.params.task)
    model = task.build_model()
    task.initialize(model)
    assert "new: 2 variables" in capsys.readouterr().out
    for a, b in zip(source.encoder_network.weights, model.checkpoint_items["encoder"].weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_questions_are_held_out_where_there_is_no_other_file(tmp_path, vocab_file):
    paragraphs = [
        dict(
            context=f"the cat sat {i}",
            qas=[dict(id=f"{i}-{j}", question="the cat", answers=[dict(text="sat", answer_start=8)]) for j in range(2)],
        )
        for i in range(20)
    ]
    content = json.dumps(dict(data=[dict(paragraphs=paragraphs)]))
    (tmp_path / "train.json.gz").write_bytes(gzip.compress(content.encode()))
    override = f"task.train_data.vocab_file={vocab_file},{tiny_override()},task.train_data.seq_length=32"
    override += ",task.train_data.max_query_length=8,task.max_answer_length=8,trainer.train_steps=1"
    run = settings.resolve("shatter/answer", data_dir=str(tmp_path), params_override=override)
    train, held_out = run.data.train, run.data.validation
    assert (len(train), len(held_out)) == (36, 4)
    assert not {question.context for question in train.questions} & {
        question.context for question in held_out.questions
    }
    assert load_squad(run.params.task.validation_data).questions == held_out.questions
    assert "held out" in run.data.notes[0]
