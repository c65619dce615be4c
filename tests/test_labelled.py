"""Labelled text: what is read, what is refused with file and line, and the order of batches."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from tiny import real_rows

from shatter_tf.data import labelled
from shatter_tf.data.labelled import LabelledDataConfig, LabelledDataLoader, Row, read_rows
from shatter_tf.errors import UserError


def rows_of(path, **choices):
    return read_rows(path, **choices)[0]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'the cat\tx\na, "dog"\ty\n'),
        ("a.tsv", 'the cat\tx\r\n\r\na, "dog"\ty'),
        ("a.csv", 'text,label\nthe cat,x\n"a, ""dog""",y\n'),
        ("a.csv", '\nsentence, Label\nthe cat,x\n"a, ""dog""",y\n'),
        ("a.tsv", 'sentence\tLABEL \nthe cat\tx\na, "dog"\ty\n'),
        ("a.jsonl", '{"text": "the cat", "label": "x"}\n{"label": "y", "text": "a, \\"dog\\""}\n'),
    ],
)
def test_formats(tmp_path, name, content):
    rows = rows_of(write(tmp_path, name, content))
    assert [(row.texts, row.label) for row in rows] == [(("the cat",), "x"), (('a, "dog"',), "y")]


def test_a_header_is_the_first_row_alone(tmp_path):
    for name, content in (("a.tsv", "a cat\tx\nthe\tlabel\n"), ("a.jsonl", '{"text": "the", "label": "label"}\n')):
        assert rows_of(write(tmp_path, name, content))[-1].label == "label"


def test_long_texts_are_read_whole(tmp_path):
    long = "word " * 60_000 + "end"
    for name, content in (("a.tsv", f"{long}\tx\nb\ty\n"), ("a.csv", f"{long},x\nb,y\n")):
        first, second = rows_of(write(tmp_path, name, content))
        assert first.texts == (long,)
        assert second.where.endswith(f"{name}:2")


def test_halves_of_characters_become_whole_ones(tmp_path):
    (row,) = rows_of(write(tmp_path, "a.jsonl", '{"text": "a\\ud83d b", "label": "\\udc00"}\n'))
    assert (row.texts, row.label) == (("a? b",), "?")


def test_pairs_and_numbers(tmp_path):
    rows = rows_of(write(tmp_path, "a.jsonl", json.dumps(dict(text_a="a", text_b="b", label=1))))
    assert rows == [Row(("a", "b"), "1", rows[0].where)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "a\tx\nb\n", "a.tsv:2: 1 column"),
        ("a.tsv", "a\tx\nb\t\n", "a.tsv:2: .*is empty"),
        ("a.tsv", "a cat\tx\n\ty\n", "a.tsv:2: the text .*is empty"),
        ("a.tsv", "a\tx\na\tb\ty\n", "a.tsv:2: 3 columns, but line 1 has 2"),
        ("a.tsv", "a\tb\tc\td\n", "a.tsv:1: 4 column"),
        ("a.tsv", "\n\n", "the file has no rows"),
        ("a.csv", "text,label\n", "the file has no rows"),
        ("a.jsonl", "\n", "the file has no rows"),
        ("a.tsv", b"a\tx\nb\xff\ty\n", "a.tsv: invalid UTF-8 at byte 5"),
        ("a.csv", 'a,x\n"b,y\n', "a.csv:2: "),
        ("a.csv", "text,label\nso, well,x\nb,y\n", "a.csv:2: 3 columns, but line 1 has 2; put quotes"),
        ("a.csv", "text,text,label\na,b,x\n", "a.csv:1: two columns have the name 'text'"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n', "a.jsonl: which column is a label.*label_field.*'text'"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "a", "lable": "x"}\n',
            "a.jsonl:2: the label .*is missing.*'lable'",
        ),
        ("a.jsonl", '["a"]\n', 'a.jsonl:1: "a" is no object'),
        ("a.jsonl", '{"text": ["a"], "label": "x"}\n', r"a.jsonl:1: the text .*is \['a'\]; expected a string$"),
        ("a.jsonl", '{"text": 3, "label": "x"}\n', "a.jsonl:1: the text .*is 3; expected a string$"),
        ("a.jsonl", '{"text": "a", "label": {"x": 1}}\n', "a.jsonl:1: the label .*; expected a string or a number"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": NaN}\n', "a.jsonl:2: the label .*is nan"),
        ("a.csv", "text,label\na,x\nb,NaN\n", "a.csv:3: the label .*is NaN"),
        ("a.txt", "a\tx\n", "must end in .tsv, .tab, .csv, .jsonl"),
    ],
)
def test_malformed_rows_are_refused(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        rows_of(write(tmp_path, name, content))


def test_several_labels_of_a_text(tmp_path):
    of_lists = write(tmp_path, "a.jsonl", '{"text": "a", "labels": ["x", "y", "x"]}\n{"text": "b", "labels": []}\n')
    cut = write(tmp_path, "a.csv", "text,label\na,x|y\nb,\n")
    columns = write(tmp_path, "b.csv", "id,text,x,y\n1,a,1,1\n2,b,0,0\n")
    for rows in (
        rows_of(of_lists),
        rows_of(cut, label_separator="|"),
        rows_of(columns, label_field="x,y"),
    ):
        assert [(row.texts, row.label) for row in rows] == [(("a",), ("x", "y")), (("b",), ())]
    with pytest.raises(UserError, match="b.csv:2: id is 3; .* 0 or 1"):
        rows_of(write(tmp_path, "b.csv", "id,text,x\n3,a,1\n"), label_field="x,id")


def test_numbers_that_stand_for_labels(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\na,1\nb,0\n")
    assert [row.label for row in rows_of(path)] == ["1", "0"]
    assert [row.label for row in rows_of(path, labels=["no", "yes"])] == ["yes", "no"]
    write(tmp_path, "labels.txt", "no\nyes\n")
    rows, columns = read_rows(path)
    assert [row.label for row in rows] == ["yes", "no"]
    assert "0 to 1 stand for no, yes" in columns.note
    with pytest.raises(UserError, match="a.csv:2: the label 2 has no name"):
        rows_of(write(tmp_path, "a.csv", "text,label\na,2\n"))
    with pytest.raises(UserError, match="a.csv:2: the row has no label"):
        rows_of(write(tmp_path, "a.csv", "text,label\na,-1\n"))


@pytest.mark.parametrize("names", [["-1", "0", "1"], ["1", "2", "3+"], ["①", "②"]])
def test_names_that_are_numbers_are_no_ids(tmp_path, names):
    path = write(tmp_path, "a.csv", "text,label\n" + "".join(f"a text,{name}\n" for name in names[:2]))
    assert [row.label for row in rows_of(path, labels=names)] == names[:2]


def test_a_backslash_is_a_part_of_the_text(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"he said \\"hi\\" in C:\\new",x\nb,y\n')
    assert rows_of(path)[0].texts == ('he said "hi" in C:\\new',)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(UserError, match="a.csv: a pipe"):
        rows_of(str(tmp_path / "a.csv"))


def test_a_tenth_is_held_out_by_the_text():
    rows = [Row((f"text {i % 50}",), "xy"[i % 2], str(i)) for i in range(100)]
    train, held_out = labelled.hold_out(rows)
    assert 8 <= len(held_out) <= 14
    assert sorted(row.where for row in train + held_out) == sorted(row.where for row in rows)
    assert not {row.texts for row in train} & {row.texts for row in held_out}
    # Neither the order nor the labels matter.
    other = [Row(row.texts, "z", row.where) for row in reversed(rows)]
    assert {row.where for row in labelled.hold_out(other)[1]} == {row.where for row in held_out}
    with pytest.raises(UserError, match="rows are too few"):
        labelled.hold_out(rows[:1])


def test_unseen_labels_are_refused():
    rows = [Row(("a",), "x", "dev.tsv:1"), Row(("b",), "z", "dev.tsv:2")]
    with pytest.raises(UserError, match=r"dev.tsv:2: the label 'z' is not among the training labels \(x, y\)"):
        labelled.label_ids(rows, ["x", "y"])


def test_labels_as_numbers(loader, tmp_path):
    write(tmp_path, "train.tsv", "a\t1\nb\t-2.5e-1\nc\t +3 \nd\t0\n")
    (batch,) = take(loader(labels=[], is_training=False).load(), 9)
    assert batch["label_ids"].dtype == np.float32
    assert batch["label_ids"].tolist() == [1.0, -0.25, 3.0, 0.0]
    assert loader(labels=[]).load().element_spec["label_ids"] == tf.TensorSpec([4], tf.float32)


def choose(data_dir, **given):
    train, validation = LabelledDataConfig(**given), LabelledDataConfig()
    labelled.choose_files(train, validation, str(data_dir))
    return train.input_path, validation.input_path, (train.share, validation.share)


def test_the_files_of_a_directory(tmp_path):
    with pytest.raises(UserError, match="none of train.tsv, .*but nothing"):
        choose(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        choose(tmp_path / "none")
    path = write(tmp_path, "train.csv", "a,x\n")
    assert choose(tmp_path) == (path, path, ("not_held_out", "held_out"))
    other = write(tmp_path, "other.csv", "a,x\n")
    assert choose(tmp_path, input_path=other)[0] == other
    dev = write(tmp_path, "validation.jsonl.gz", "")
    assert choose(tmp_path) == (path, dev, ("all", "all"))
    write(tmp_path, "train.tsv", "a\tx\n")
    with pytest.raises(UserError, match="both .*train.csv and .*train.tsv exist"):
        choose(tmp_path)


@pytest.fixture
def loader(tmp_path, vocab_file):
    path = write(tmp_path, "train.tsv", "".join(f"{'cat ' * (i + 1)}\t{'xyz'[i % 3]}\n" for i in range(10)))

    def make(**choices):
        settings = dict(input_path=path, is_training=True, seq_length=16, global_batch_size=4, vocab_file=vocab_file)
        return LabelledDataLoader(LabelledDataConfig(**{**settings, "labels": ["x", "y", "z"], **choices}))

    return make


def take(dataset, number):
    return [real_rows(batch) for batch in dataset.take(number)]


def lengths(batches):
    return np.concatenate([batch["input_mask"].sum(axis=1) - 2 for batch in batches]).tolist()


def test_a_step_is_a_function_of_seed_and_step(loader):
    whole = take(loader().load(), 12)
    for start in (0, 1, 5, 11):
        for a, b in zip(take(loader().load(start_step=start), 12 - start), whole[start:], strict=True):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
    assert lengths(take(loader(seed=1).load(), 12)) != lengths(whole)
    epochs = np.array(lengths(whole)[:40]).reshape(4, 10)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(1, 11))] * 4
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_evaluation_sees_every_row_once_in_order(loader):
    batches = take(loader(is_training=False).load(), 100)
    assert lengths(batches) == list(range(1, 11))
    assert np.concatenate([b["label_ids"] for b in batches]).tolist() == [0, 1, 2] * 3 + [0]


def test_any_number_of_machines_sees_the_same_global_batch(loader):
    parts = [take(loader().load(tf.distribute.InputContext(2, n, 2)), 5) for n in range(2)]
    for step, batch in enumerate(take(loader().load(), 5)):
        assert sorted(lengths([parts[0][step], parts[1][step]])) == sorted(lengths([batch]))


@pytest.mark.parametrize("is_training", [True, False])
def test_static_shapes(loader, is_training):
    spec = loader(is_training=is_training).load().element_spec
    shapes = {key: (4, 16) for key in ("input_word_ids", "input_mask", "input_type_ids")} | {"label_ids": (4,)}
    assert {key: tuple(s.shape) for key, s in spec.items()} == shapes | ({} if is_training else {"row_weights": (4,)})


def test_the_last_batch_of_an_evaluation_is_filled_up(loader):
    *_, last = loader(is_training=False).load()
    assert last["row_weights"].numpy().tolist() == [1, 1, 0, 0]


@pytest.mark.slow
def test_tfds_names(tmp_path, vocab_file):
    from cats_and_dogs import CatsAndDogs

    CatsAndDogs(data_dir=tmp_path / "tfds").download_and_prepare()
    settings = dict(tfds_name="cats_and_dogs", tfds_data_dir=str(tmp_path / "tfds"), vocab_file=vocab_file)
    rows, _ = labelled.load_rows(LabelledDataConfig(tfds_split="validation", **settings))
    assert sorted((row.texts, row.label) for row in rows) == [(("the cat",), "cat"), (("the dog",), "dog")]
    with pytest.raises(UserError, match="no feature 'sentense'.*did you mean sentence"):
        labelled.load_rows(LabelledDataConfig(tfds_split="train", text_fields=["sentense"], **settings))
    with pytest.raises(UserError, match="tfds_name=no_such_dataset"):
        labelled.load_rows(LabelledDataConfig(tfds_name="no_such_dataset", tfds_split="train"))
