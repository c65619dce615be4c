"""`shatter_tf.predict`: what it says, of files too, which models it loads, and which it refuses."""

import csv
import gzip
import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import types

import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations
from pyarrow import parquet
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.framework import op_def_registry

from shatter_tf import predict
from shatter_tf.errors import UserError
from shatter_tf.serving import answers, operations, predictor


def predicted(capsys, model, *flags):
    predict.main([f"--model={model}", *flags])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_says_what_each_signature_gives(exported, capsys):
    def run(name, *flags):
        return predicted(capsys, exported[f"{name}_export"], *flags)

    (line,) = run("pairs", "the cat\tsat")
    assert line["text_b"] == "sat"
    assert line["probability"] == max(line["probabilities"].values()) == line["probabilities"][line["label"]]
    (line,) = run("regress", "the cat")
    assert set(line) == {"text", "score"}
    (line,) = run("question_answering", "who sat\tthe cat sat")
    assert line["answer"] in line["context"]
    (line,) = run("tag", "the cat")
    assert [word["word"] for word in line["words"]] == ["the", "cat"]
    line, other = run("pretrain", "--signature=fill_mask", "a [MASK] and a [MASK]", "none")
    assert [len(mask) for mask in line["masks"]] == [5, 5]
    assert other["masks"] == []
    (line,) = run("classify", "--signature=embed", "the cat")
    assert len(line["embedding"]) == 12

    for name, why in (("token_ids", "takes ids"), ("nope", "")):
        with pytest.raises(UserError, match=f"--signature={name}: {why}.* serving_default, embed$"):
            run("classify", f"--signature={name}", "x")


def test_it_takes_any_bytes(exported, monkeypatch, capsys):
    text = b"the caf\xe9 \xff"
    model = exported["classify_export"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text + b"\nthe cat\r\n"), "utf-8"))
    lines = predicted(capsys, model)
    lines += predicted(capsys, model, os.fsdecode(text), "the cat")
    assert [line["text"] for line in lines] == ["the caf\ufffd \ufffd", "the cat"] * 2
    signature = tf.saved_model.load(f"{model}/1").signatures["serving_default"]
    expected = signature(text=tf.constant([text, b"the cat"]))["probabilities"].numpy().max(axis=1)
    for i, line in enumerate(lines):
        assert line["probability"] == pytest.approx(float(expected[i % 2]), abs=1e-5)

    (line,) = predicted(capsys, model, "the\tcat")  # a text may hold tabs, as in training
    assert line["text"] == "the\tcat"
    with pytest.raises(UserError, match="'the caf\ufffd': .*text_a and text_b"):
        predicted(capsys, exported["pairs_export"], os.fsdecode(b"the caf\xe9"))


def test_a_format_is_found_by_the_names_of_outputs(monkeypatch):
    monkeypatch.setattr(answers, "FORMATS", dict(answers.FORMATS))
    answers.register("stars", "sure")(lambda row: {"stars": "*" * row["stars"]})
    assert answers.readable(dict(stars=3, sure=0.5)) == {"stars": "***"}
    assert answers.readable(dict(stars=3)) == {"stars": 3}


def save(function, path):
    """Saves a SavedModel whose function calls another, from strings [B] to `out`."""
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    inner = tf.function(function)
    specs = [tf.TensorSpec([None], tf.string, "text")]
    module.answer = tf.function(lambda text: dict(out=inner(text)), input_signature=specs)
    tf.saved_model.save(module, str(path), signatures=dict(serving_default=module.answer))


def from_graph(text):
    graph = tf.data.Dataset.from_tensors(1)._variant_tensor
    serialized = tf.raw_ops.DatasetToGraphV2(input_dataset=graph)
    tf.raw_ops.DatasetFromGraph(graph_def=serialized)
    return text


def save_tensors(text):
    tf.raw_ops.SaveV2(prefix="written", tensor_names=["a"], shape_and_slices=[""], tensors=[text])
    return text


def printed(text):
    tf.print(text, output_stream="file://written")
    return text


def written(text):
    tf.io.write_file("written", text[0])
    return text


REFUSED = dict(
    ReadFile=lambda text: tf.io.read_file(text[0]),
    MatchingFiles=lambda text: tf.io.matching_files("*"),
    WriteFile=written,
    PrintV2=printed,
    SaveV2=save_tensors,
    EagerPyFunc=lambda text: tf.py_function(lambda x: x, [text], tf.string),
    PyFunc=lambda text: tf.numpy_function(lambda x: x, [text], tf.string),
    PyFuncStateless=lambda text: tf.numpy_function(lambda x: x, [text], tf.string, stateful=False),
    DatasetFromGraph=from_graph,
    TextLineDataset=lambda text: tf.data.TextLineDataset(text).reduce("", lambda _, line: line),
    DebugIdentityV2=lambda text: tf.raw_ops.DebugIdentityV2(input=text, debug_urls=["file://written"]),
    ImmutableConst=lambda text: tf.raw_ops.ImmutableConst(
        dtype=tf.float32, shape=[1], memory_region_name="/etc/hostname"
    ),
)


@pytest.mark.parametrize("operation", REFUSED)
def test_what_may_touch_files_or_run_code_is_loaded_only_if_trusted(tmp_path, monkeypatch, operation):
    monkeypatch.chdir(tmp_path)
    save(REFUSED[operation], tmp_path / "1")
    assert operation in operations.refused_operations(str(tmp_path / "1"))
    with pytest.raises(UserError, match=rf"/1: .*\b{operation}\b.*--trust"):
        predict.main([f"--model={tmp_path}", "the cat"])
    assert [file.name for file in tmp_path.iterdir()] == ["1"]


def test_a_trusted_model_may_do_what_it_wants(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(written, tmp_path / "1")
    (line,) = predicted(capsys, tmp_path, "--trust", "the cat")
    assert line == dict(text="the cat", out="the cat")
    assert (tmp_path / "written").read_text() == "the cat"


def test_a_function_cannot_stand_in_for_an_operation(tmp_path):
    save(lambda text: tf.strings.lower(text), tmp_path)
    path = tmp_path / "saved_model.pb"
    model = operations._read(str(tmp_path))
    library = model.meta_graphs[0].graph_def.library
    library.function.add().signature.name = "ReadFile"
    library.function[0].node_def.add(name="x", op="ReadFile")
    library.function[1].node_def.add(name="x", op="NoSuchOperation")
    path.write_bytes(model.SerializeToString())
    assert operations.refused_operations(str(tmp_path)) == {"ReadFile", "NoSuchOperation"}


def test_what_other_packages_may_need_is_allowed(tmp_path):
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2]), 0)

    def function(text):
        numbers = tf.cast(module.table.lookup(tf.strings.lower(text)), tf.float32)
        noise = tf.random.stateless_uniform([4, 4], [1, 2]) + tf.random.uniform([4, 4])
        values, places = tf.math.top_k(tf.einsum("ab,bc->ac", noise, noise), 2)
        values = tf.gather(values, places[:, 0] % 4, batch_dims=0)
        values = tf.tensor_scatter_nd_update(values, [[0]], [[1.0, 2.0]])
        values = tf.map_fn(lambda row: tf.pad(row, [[1, 1]])[::2], values)
        total = tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, tf.sort(x)), (0, values))[1]
        bits = tf.bitwise.bitwise_and(places, tf.bitwise.left_shift(places, 1))
        ragged = tf.ragged.range(places[:, 0])
        parts = tf.dynamic_partition(total, places[:, 0] % 2, 2)
        sums = [tf.reduce_sum(tf.cast(x, tf.float32)) for x in (total, bits, ragged, tf.linalg.det(noise), *parts)]
        return numbers + tf.add_n([*sums, tf.reduce_sum(tf.math.erf(tf.signal.dct(noise)))])

    module.answer = tf.function(function, input_signature=[tf.TensorSpec([None], tf.string, "text")])
    tf.saved_model.save(module, str(tmp_path))
    assert operations.refused_operations(str(tmp_path)) == set()


def test_allowed_operations_have_no_names_of_files():
    """A guard for newer versions of TensorFlow, whose groups may have more in them."""
    words = re.compile("file|path|directory|address|url|memory_region|graph_def|token$|library|checkpoint")
    found = set()
    for name in operations.allowed_operations():
        definition = op_def_registry.get(name) or op_def_pb2.OpDef()
        arguments = [*definition.input_arg, *definition.attr]
        if any(words.search(argument.name) for argument in arguments):
            found.add(name)
    assert found == {"WordpieceTokenizeWithOffsets"}  # its unknown_token is a wordpiece
    assert 500 < len(operations.allowed_operations()) < 800


@pytest.mark.parametrize(
    "file", ["saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"]
)
def test_a_damaged_export_is_refused(exported, tmp_path, file):
    shutil.copytree(exported["classify_export"] / "1", tmp_path / "1")
    for size in (1000, 0):
        os.truncate(tmp_path / "1" / file, size)
        with pytest.raises(UserError, match=f"--model={tmp_path}/1: ") as refusal:
            predict.main([f"--model={tmp_path}", "the cat"])
        assert "\n" not in str(refusal.value)


def test_plugins_are_loaded(exported, monkeypatch, capsys):
    loaded = []
    plugin = types.SimpleNamespace(value="mine", load=lambda: loaded.append("mine"))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [plugin])
    predicted(capsys, exported["classify_export"], "the cat")
    assert loaded == ["mine"]


# === Files ===


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict_file(exported, tmp_path, file, *flags, name="classify", output="out.jsonl"):
    """Runs the command on a file; returns the rows that it writes."""
    predict.main([f"--model={exported[f'{name}_export']}", f"--input={file}", f"--output={tmp_path / output}", *flags])
    return rows_of(tmp_path / output)


def test_each_row_of_a_table_gets_the_prediction_of_its_text(exported, tmp_path, capsys):
    texts = [f"the cat {'sat ' * (i * 7 % 30)}on {i}" for i in range(150)]
    expected = {line["text"]: line for line in predicted(capsys, exported["classify_export"], *texts)}

    # The same rows in several formats: whatever the lengths, their order stays.
    rows = [dict(id=i, label="own", review=text) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with open(tmp_path / "a.csv", "w", encoding="utf-16") as f:
        writer = csv.DictWriter(f, ["id", "label", "review"])
        writer.writeheader()
        writer.writerows(rows)
    for name in ("a.jsonl.gz", "a.parquet", "a.csv"):
        found = predict_file(exported, tmp_path, tmp_path / name)
        assert [str(row["id"]) for row in found] == [str(i) for i in range(150)]
        assert {row["label"] for row in found} == {"own"}
        for row in found:
            answer = expected[row["review"]]
            assert row["prediction"]["label"] == answer["label"]
            assert row["prediction"]["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)


def test_rows_of_like_lengths_are_computed_together_and_come_out_in_order():
    batches = []

    def function(text):
        batches.append([len(value) for value in text.numpy()])
        return dict(length=tf.strings.length(text))

    model = predictor.Model(["text"], function)
    rows = [("", None) if i % 10 == 3 else (i, ["x" * (i * 37 % 101)]) for i in range(150)]
    read = []
    found = []
    for row, outputs in model.each((read.append(row) or row for row in rows), lambda row: row[1], at_once=100):
        found.append(row)
        assert len(read) - len(found) < 100
        assert (outputs is None) == (row[1] is None)
        assert outputs is None or outputs["length"] == len(row[1][0])
    assert found == rows
    assert [len(batch) for batch in batches] == [32, 32, 26, 32, 13]
    assert all(batch == sorted(batch) for batch in batches)


def test_lines_of_a_file_are_texts(exported, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the cat\tsat\nthe dog\n", "utf-16")
    found = predict_file(exported, tmp_path, tmp_path / "a.txt")
    assert found == predicted(capsys, exported["classify_export"], "the cat\tsat", "the dog")
    (line,) = predict_file(exported, tmp_path, _write(tmp_path / "b.txt", "the cat\tsat\n"), name="pairs")
    assert (line["text_a"], line["text_b"]) == ("the cat", "sat")
    with pytest.raises(UserError, match=f"{tmp_path}/c.txt:2: .*text_a and text_b"):
        predict_file(exported, tmp_path, _write(tmp_path / "c.txt", "the cat\tsat\nthe dog\n"), name="pairs")


def _write(path, text):
    path.write_text(text)
    return path


def test_columns_are_found_by_their_names(exported, tmp_path):
    def run(text, *flags, name="classify", file="a.csv"):
        return predict_file(exported, tmp_path, _write(tmp_path / file, text), *flags, name=name)

    (row,) = run("score,question,context\n1,who sat,the cat sat\n", name="question_answering")
    assert row["prediction"]["answer"] in "the cat sat"
    (row,) = run("sentence2,sentence1\nsat,the cat\n", name="pairs")
    assert row["sentence1"] == "the cat"
    (row,) = run("words,more\nthe cat,sat\n", "--text_fields=more")
    assert row["words"] == "the cat"
    assert [row["text"] for row in run('text\n"the cat, sat"\nthe dog\n')] == ["the cat, sat", "the dog"]
    with pytest.raises(UserError, match=f"{tmp_path}/a.csv:2: 2 columns"):
        run("text\nthe cat, sat\n")
    with pytest.raises(UserError, match="there are 'one', 'two'"):
        run('{"one": "a", "two": "b"}', file="a.jsonl")
    with pytest.raises(UserError, match="--text_fields, 1 of 'premise', 'hypothesis'"):
        run("premise,hypothesis\na,b\n")
    with pytest.raises(UserError, match=f"{tmp_path}/a.jsonl:2: .*'text'.* 7"):
        run('{"text": "a"}\n{"text": 7}', file="a.jsonl")


def test_rows_without_a_text_are_kept_and_counted(exported, tmp_path, capsys):
    rows = [dict(id=1, text=" "), dict(id=2, text="the cat"), dict(id=3, text=None), dict(id=4)]
    file = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    found = predict_file(exported, tmp_path, file)
    assert [row["id"] for row in found if row["prediction"] is None] == [1, 3, 4]
    assert f"3 rows have no text, and so no prediction; the first is {file}:1" in capsys.readouterr().err

    predict.main([f"--model={exported['classify_export']}", f"--input={file}", f"--output={tmp_path}/out.csv"])
    with open(tmp_path / "out.csv") as f:
        found = list(csv.DictReader(f))
    assert [row["id"] for row in found] == ["1", "2", "3", "4"]
    assert [bool(row["predicted_label"]) for row in found] == [False, True, False, False]
    assert float(found[1]["predicted_probabilities.animal"]) <= float(found[1]["predicted_probability"])


def test_an_earlier_prediction_stays(exported, tmp_path):
    predict_file(exported, tmp_path, _write(tmp_path / "a.csv", "text,label\nthe cat,x\n"))
    (row,) = predict_file(exported, tmp_path, tmp_path / "out.jsonl", output="again.jsonl")
    assert row["label"] == "x"
    assert row["prediction"] == row["prediction_2"]


def test_a_file_is_written_whole_or_not_at_all(exported, tmp_path, monkeypatch):
    rows = "\n".join(json.dumps(dict(text=text)) for text in ["the cat"] * 3 + [["not a text"]])
    file = _write(tmp_path / "a.jsonl", rows)
    (tmp_path / "out.jsonl").write_text("before")
    with pytest.raises(UserError, match="a.jsonl:4"):
        predict_file(exported, tmp_path, file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out.jsonl"]
    assert (tmp_path / "out.jsonl").read_text() == "before"

    for flags, what in (
        (("--output=out.xlsx",), ".jsonl, .csv, .tsv"),
        ((f"--output={file}",), "--input"),
        ((f"--output={file}/x.csv",), "cannot be written"),
        (("the cat",), "TEXT"),
        (("--input=/nope",), "/nope: no such file"),
        ((f"--input={tmp_path}",), f"{tmp_path}: a directory"),
    ):
        with pytest.raises(UserError) as refusal:
            predict.main([f"--model={exported['classify_export']}", f"--input={file}", *flags])
        assert what in str(refusal.value)
    with pytest.raises(UserError, match="--text_fields"):
        predict.main([f"--model={exported['classify_export']}", "--text_fields=a", "the cat"])


def test_fields_that_csv_cannot_have_are_refused(exported, tmp_path):
    rows = [dict(text="the cat")] * 101 + [dict(text="the dog", late=1)]
    file = _write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="'late'.*.jsonl"):
        predict.main([f"--model={exported['classify_export']}", f"--input={file}", f"--output={tmp_path}/out.csv"])
    assert not (tmp_path / "out.csv").exists()
    assert predict_file(exported, tmp_path, file)[-1]["late"] == 1
    file.write_text("\n".join(map(json.dumps, [*rows[:-1], dict(text="the dog", prediction=1)])))
    with pytest.raises(UserError, match="'prediction'"):
        predict_file(exported, tmp_path, file)


def test_texts_may_go_to_a_file(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the cat\nthe dog\n"), "utf-8"))
    predict.main([f"--model={exported['classify_export']}", f"--output={tmp_path}/out.tsv"])
    with open(tmp_path / "out.tsv") as f:
        assert [row["text"] for row in csv.DictReader(f, delimiter="\t")] == ["the cat", "the dog"]


@pytest.mark.parametrize(
    ("text", "is_header"), [(b"text,label", True), (b"id\tReview", True), (b"the cat, label", False), (b"text", False)]
)
def test_a_header_on_standard_input_is_said(exported, monkeypatch, capsys, text, is_header):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text + b"\nthe cat,animal\n"), "utf-8"))
    predict.main([f"--model={exported['classify_export']}"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert ("--input" in printed.err) == is_header


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_is_printed_is_json_in_any_encoding(exported, tmp_path, monkeypatch, encoding):
    text = "café 😀"
    file = _write(tmp_path / "a.txt", text)
    for flags in ([text], [f"--input={file}"]):
        buffer = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding, errors="backslashreplace"))
        predict.main([f"--model={exported['classify_export']}", *flags])
        assert json.loads(buffer.getvalue().decode(encoding))["text"] == text
