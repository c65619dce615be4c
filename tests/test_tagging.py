"""Tagged sentences: what is read and refused, where labels stand, and metrics that are those of all sentences."""

import importlib
import itertools
import json

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
import tensorflow as tf
import tf_keras
from conftest import WORDS
from official.core import task_factory
from tiny import real_rows, tiny_override

from shatter_tf import checkpoints
from shatter_tf.data import tagging
from shatter_tf.data.tagging import NO_TAG, TaggingDataConfig, TaggingDataLoader, read_sentences
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.errors import UserError
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
        (
            "a.jsonl",
            '{"tokens": ["the", "cat"], "tags": ["D", "N"]}\n\n{"tags": ["V"], "tokens": ["sat"]}',
            [[1, 1], [3]],
        ),
    ],
)
def test_formats(tmp_path, name, content, lines):
    sentences = read_sentences(write(tmp_path, name, content))
    assert [(s.words, s.tags) for s in sentences] == [(["the", "cat"], ["D", "N"]), (["sat"], ["V"])]
    assert [list(s.lines) for s in sentences] == lines


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "the\tD\ncat\n", "a.tsv:2: 1 column.*expected word, tag"),
        ("a.tsv", "the\tD\n\ncat\tN\tO\n", "a.tsv:3: 3 column"),
        ("a.tsv", "the\tD\ncat\t\n", "a.tsv:2: 1 column"),
        ("a.tsv", "\n\n", "the file has no sentences"),
        ("a.csv", "the,D\n", "must end in .tsv, .jsonl"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["D"]}\n{"tokens": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["D"]}\n', "a.jsonl:1: 2 tokens, but 1 tags"),
        ("a.jsonl", '{"tokens": [], "tags": []}\n', "a.jsonl:1: the sentence has no words"),
        ("a.jsonl", '{"tokens": ["a"]}\n', "a.jsonl:1: no tags that are a list of strings"),
        ("a.jsonl", '{"tokens": "a", "tags": ["D"]}\n', "a.jsonl:1: no tokens that are a list of strings"),
        ("a.jsonl", '{"tokens": ["a", " "], "tags": ["D", "D"]}\n', "a.jsonl:1: the word is empty"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [""]}\n', "a.jsonl:1: the tag is empty"),
        ("a.jsonl", '["a"]\n', "a.jsonl:1: no tokens that are a list of strings"),
    ],
)
def test_malformed_sentences_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_sentences(write(tmp_path, name, content))


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
    assert truth == [sentence.split("|") for sentence in "|".join(said).strip("|").split("||")]
    words, guesses = (np.array(list(itertools.chain(*sentences))) for sentences in (truth, predictions))
    assert len(set(guesses)) > 1
    expected = dict(accuracy=np.mean(words == guesses), loss=np.mean(losses))
    if tags is IOB:
        names = ("f1", "precision", "recall")
        expected |= {name: getattr(seqeval.metrics, f"{name}_score")(truth, predictions) for name in names}
        assert expected["f1"] > 0
    else:
        each = [sklearn.metrics.f1_score(words == tag, guesses == tag, zero_division=0) for tag in tags]
        expected["macro_f1"] = np.mean(each)
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


def test_tags_that_mark_entities():
    assert tagging.is_iob(list(IOB))
    assert not tagging.is_iob(["B-PER", "NOUN"])
    assert not tagging.is_iob(["B-", "O"])
