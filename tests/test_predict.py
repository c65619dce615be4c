"""`shatter_tf.predict`: what it says, which models it loads, and which it refuses."""

import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import types

import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations
from tensorflow.core.framework import op_def_pb2
from tensorflow.python.framework import op_def_registry

from shatter_tf import predict
from shatter_tf.errors import UserError
from shatter_tf.serving import answers, operations


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
