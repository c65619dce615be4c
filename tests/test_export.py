"""Exports: what their signatures give against NumPy and the layers, what is in the directory, and what is refused."""

import importlib
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import tensorflow_text  # noqa: F401  registers the tokenizer's operations
import tf_keras
from exported import EXPORTED
from serving.toy import toy_servable
from tensorflow_serving.apis import prediction_log_pb2
from tiny import real_rows

from shatter_tf.data import question_answering
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import SPECIAL_TOKENS
from shatter_tf.encoders.registry import FAMILIES
from shatter_tf.errors import UserError
from shatter_tf.serving import operations as graph
from shatter_tf.serving import samples, saved_model
from shatter_tf.serving.load import load_model
from shatter_tf.serving.servable import build_servable
from shatter_tf.training import run_dir
from shatter_tf.training.session import Session

# TensorFlow's own operations in exports. Before a new one is added, it must be found in the oldest TensorFlow that
# serves them, MINIMUM_TF_SERVING's: `unzip -p tensorflow_cpu-2.12.0-*.whl '*/gen_*.py' | grep -w raw_ops.NAME`.
CORE_OPERATIONS = """
Abs AddN AddV2 All ArgMax Assert AssignAddVariableOp AssignVariableOp BatchMatMulV2 BiasAdd BitwiseXor BroadcastTo
Cast ConcatV2 Const Cumsum DenseBincount DisableCopyOnRead DivNoNan Einsum Equal Erfc ExpandDims Fill FloorDiv
FloorMod GatherV2 Greater GreaterEqual Identity IdentityN If Less LessEqual LogicalAnd LogicalNot LogicalOr LowerBound
MatMul MatrixDiagV3 Max Maximum Mean MergeV2Checkpoints Minimum Mul Neg NoOp NotEqual OneHot OnesLike Pack Pad PadV2
Placeholder Pow Prod RaggedGather RaggedRange RaggedTensorToTensor Range ReadVariableOp RealDiv Relu Reshape
ResourceGather RestoreV2 RightShift Rsqrt SaveV2 SegmentMax SegmentMean SegmentMin Select SelectV2 Shape
ShardedFilename Sigmoid Sign Size Softmax Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf
StaticRegexFullMatch StaticRegexReplace StopGradient StridedSlice StringJoin StringLength StringLower StringSplitV2
Sub Substr Sum Tanh TensorListFromTensor TensorListGetItem TensorListReserve TensorListSetItem TensorListStack Tile
TopKV2 Transpose UnicodeDecode UnicodeEncode UnicodeTranscode Unpack UnsortedSegmentJoin UnsortedSegmentSum UpperBound
VarHandleOp Where While ZerosLike
"""
TEXTS = ["the cat sat", "", "a big dog ran very fast. " * 40, "стол \u202ebackwards 😀", "unknown"]


def signatures(exported, name):
    return tf.saved_model.load(f"{exported[f'{name}_export']}/1").signatures


def load(exported, name):
    """Returns a run, and what is served of it."""
    path = str(exported[name])
    run = run_dir.read(path)
    return run, build_servable(run, load_model(run, path)[0])


def export(*flags):
    importlib.import_module("shatter_tf.export").main([str(flag) for flag in flags])


def test_a_classifier_gives_names_and_probabilities_for_any_batch(exported):
    signature = signatures(exported, "classify")["serving_default"]
    together = {key: value.numpy() for key, value in signature(text=tf.constant(TEXTS)).items()}
    names = np.array(["animal", "thing", "tierchen äöü"])
    assert [[label.decode() for label in row] for row in together["labels"]] == [names.tolist()] * len(TEXTS)
    np.testing.assert_allclose(together["probabilities"].sum(axis=1), 1.0, atol=1e-6)
    best = names[together["probabilities"].argmax(axis=1)]
    assert [label.decode() for label in together["label"]] == best.tolist()
    for i, text in enumerate(TEXTS):
        single = signature(text=tf.constant([text]))
        np.testing.assert_allclose(single["probabilities"][0], together["probabilities"][i], atol=1e-5)


def test_both_texts_of_a_pair_count(exported):
    signature = signatures(exported, "pairs")["serving_default"]
    texts = dict(text_a=["the cat", "the cat", "the cat sat"], text_b=["sat on", "on sat", "on"])
    probabilities = signature(**{k: tf.constant(v) for k, v in texts.items()})["probabilities"].numpy()
    assert len({tuple(row) for row in probabilities.round(7).tolist()}) == 3


@pytest.mark.parametrize("name", ["pretrain", "classify", "pairs"])
def test_an_embedding_is_the_mean_of_the_tokens_vectors(exported, name):
    run, servable = load(exported, name)
    tokenizer = Tokenizer(run.vocabulary, run.lower_case)
    signature = signatures(exported, name)["embed"]
    embeddings = signature(text=tf.constant(TEXTS))["embedding"].numpy()
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        ids = tokenizer.encode(tf.constant([text]), None, servable.seq_length)["input_word_ids"].to_tensor()
        outputs = servable.encoder(dict(input_word_ids=ids, input_mask=tf.ones_like(ids)))["sequence_output"]
        np.testing.assert_allclose(embedding, outputs.numpy()[0].mean(axis=0), atol=1e-5)


def test_a_regressor_gives_numbers(exported):
    run, servable = load(exported, "regress")
    data = run.params.task.train_data
    scores = signatures(exported, "regress")["serving_default"](text=tf.constant(TEXTS))["score"]
    for text, score in zip(TEXTS, scores, strict=True):
        inputs = servable.encoder_inputs(tf.constant([text]))
        expected = servable.model(inputs)[0, 0] * data.label_scale + data.label_mean
        np.testing.assert_allclose(expected, score, atol=1e-5 * data.label_scale, rtol=1e-4)


def test_a_tagger_tags_each_word_by_its_first_wordpiece(exported):
    run, servable = load(exported, "tag")
    texts = ["the cats sat", "", " fast  " + "tree " * 200]
    outputs = signatures(exported, "tag")["serving_default"](text=tf.constant(texts))
    words, tags, probabilities = (outputs[name].numpy() for name in ("words", "tags", "probabilities"))
    assert words.shape == tags.shape == probabilities.shape == (3, 201)
    assert words[0, :4].tolist() == [b"the", b"cats", b"sat", b""]
    assert np.all(tags[1] == b"")
    assert np.sum(tags[2] != b"") == 126  # of 128 tokens, two special
    assert np.all((probabilities > 0) == (tags != b""))
    vocabulary = {token: i for i, token in enumerate(run.vocabulary)}
    ids = tf.constant([[vocabulary[w] for w in ("[CLS]", "the", "cat", "##s", "sat", "[SEP]")]])
    inputs = dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))
    logits = servable.model(inputs)["logits"].numpy()[0]
    names = run.params.task.class_names
    assert [tag.decode() for tag in tags[0, :3]] == [names[i] for i in logits[[1, 2, 4]].argmax(axis=1)]


@pytest.fixture
def squad_2(exported, tmp_path):
    """The question-answering run, turned into one of SQuAD 2.0, and its export."""
    shutil.copytree(exported["question_answering"], tmp_path / "run")
    params = (tmp_path / "run/params.yaml").read_text()
    assert "version_2_with_negative: false" in params
    (tmp_path / "run/params.yaml").write_text(params.replace("_with_negative: false", "_with_negative: true"))
    export(f"--model_dir={tmp_path}/run", f"--export_dir={tmp_path}/served")
    return dict(question_answering=tmp_path / "run", question_answering_export=tmp_path / "served")


@pytest.mark.slow
def test_no_answer_is_given_where_evaluation_finds_none(squad_2, tmp_path):
    answers = assert_answers_are_those_of_evaluation(squad_2, tmp_path)
    assert 1 < answers.count("") < len(answers)  # of them, one is of an empty context


def test_an_answer_is_the_part_of_the_context_that_evaluation_finds(exported, tmp_path):
    answers = assert_answers_are_those_of_evaluation(exported, tmp_path)
    assert answers[2] == "dog"
    assert all(answers[i] for i in (0, 3))


def assert_answers_are_those_of_evaluation(exported, tmp_path):
    """Returns an export's answers, after checking that they are those of its run's loader."""
    run, servable = load(exported, "question_answering")
    contexts = ["the old tree. " * 12 + "a café 😀 cat", "", "dog", "stra\xdfe 😀 the cat sat on a mat"]
    questions = ["the cat", "what", "who sat where " * 9, ""]
    outputs = signatures(exported, "question_answering")["serving_default"](
        question=tf.constant(questions), context=tf.constant(contexts)
    )
    answers = [answer.decode() for answer in outputs["answer"].numpy()]
    starts, ends = outputs["start"].numpy(), outputs["end"].numpy()
    assert answers == [c[start:end] for c, start, end in zip(contexts, starts, ends, strict=True)]
    assert answers[1] == ""
    assert np.all(np.isfinite(outputs["score"]))

    # The same questions as evaluation answers them.
    paragraphs = [
        dict(context=c, qas=[dict(id=str(i), question=q, answers=[], is_impossible=True)])
        for i, (q, c) in enumerate(zip(questions, contexts, strict=True))
    ]
    (tmp_path / "dev.json").write_text(json.dumps(dict(data=[dict(paragraphs=paragraphs)])))
    config = run.params.task.validation_data.replace(input_path=str(tmp_path / "dev.json"), global_batch_size=64)
    loader = question_answering.QuestionAnsweringDataLoader(config)
    (batch,) = map(real_rows, loader.load())
    task = run.params.task
    spans = question_answering.best_spans(
        *servable.signatures["token_ids"].predict(batch).values(),
        batch["may_start"],
        batch["may_end"],
        task.max_answer_length,
        task.n_best_size,
    )
    spans = {name: values.numpy() for name, values in spans.items()}
    assert len(batch["window"]) > len(questions)
    threshold = task.null_score_diff_threshold if task.version_2_with_negative else None
    assert [*loader.answers(dict(spans, window=batch["window"]), threshold).values()] == answers
    return answers


def test_token_ids_give_what_strings_do(exported):
    run = run_dir.read(str(exported["classify"]))
    tokenizer = Tokenizer(run.vocabulary, run.lower_case)
    functions = signatures(exported, "classify")
    inputs = tokenizer.pad(tokenizer.encode(tf.constant(TEXTS[:2]), None, 128), 40)
    np.testing.assert_allclose(
        functions["token_ids"](**inputs)["probabilities"],
        functions["serving_default"](text=tf.constant(TEXTS[:2]))["probabilities"],
        atol=1e-5,
    )


def test_fill_mask_against_the_head_by_itself(exported):
    run, servable = load(exported, "pretrain")
    model = servable.model
    texts = ["the [MASK] sat on a [MASK]", "no mask", "[MASK]"]
    outputs = signatures(exported, "pretrain")["fill_mask"](text=tf.constant(texts))
    tokens, probabilities = outputs["tokens"].numpy(), outputs["probabilities"].numpy()
    assert tokens.shape == probabilities.shape == (3, 2, 5)
    assert np.all(tokens[1] == b"")
    assert np.all(probabilities[1] == 0)
    assert np.all(tokens[2, 1] == b"")

    words = {token: i for i, token in enumerate(run.vocabulary)}
    ids = np.array([[words[w] for w in ("[CLS]", "the", "[MASK]", "sat", "on", "a", "[MASK]", "[SEP]")]], np.int32)
    inputs = dict(
        input_word_ids=ids,
        input_mask=np.ones_like(ids),
        input_type_ids=np.zeros_like(ids),
        masked_lm_positions=[[2, 6]],
    )
    inputs = {key: tf.constant(value, tf.int32) for key, value in inputs.items()}
    logits = model(inputs)["mlm_logits"].numpy()[0]
    logits[:, [words[token] for token in SPECIAL_TOKENS]] = -np.inf
    logits[:, len(run.vocabulary) :] = -np.inf
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-expected, axis=1)[:, :5]
    np.testing.assert_allclose(probabilities[0], np.take_along_axis(expected, order, axis=1), atol=1e-6)
    for mask in range(2):
        for token, p in zip(tokens[0, mask], probabilities[0, mask], strict=True):
            np.testing.assert_allclose(expected[mask, words[token.decode()]], p, atol=1e-6)


@pytest.mark.parametrize("name", EXPORTED)
def test_the_graph_has_nothing_that_tf_serving_lacks(exported, name):
    path = str(exported[f"{name}_export"] / "1")
    nodes, _ = graph.nodes(path)
    assert len(nodes) > 1000
    operations = graph.operations(path)
    assert {"FastWordpieceTokenizeWithOffsets", "MatMul"} <= operations
    assert operations <= {*CORE_OPERATIONS.split(), *graph.TEXT_OPERATIONS}
    assert not graph.refused_operations(path)
    assert not any(node.attr["_XlaMustCompile"].b for node in nodes)
    assert not any(node.op.startswith("Xla") for node in nodes)


def test_offsets_in_cased_text_need_nothing_more(tmp_path):
    tokenizer = Tokenizer([*SPECIAL_TOKENS, "the", "Cat"], lower_case=False)
    module = tf.Module()
    module.offsets = tf.function(
        lambda text: tokenizer.tokenize_with_offsets(text)[1].flat_values,
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    tf.saved_model.save(module, str(tmp_path))
    assert graph.operations(str(tmp_path)) <= {*CORE_OPERATIONS.split(), *graph.TEXT_OPERATIONS}


def test_a_directory_holds_what_is_said(exported, tmp_path):
    path = exported["classify_export"] / "1"
    assert sorted(p.name for p in path.iterdir()) == [
        "README.md", "assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables",
    ]  # fmt: skip
    card = (path / "README.md").read_text()
    megabytes = (path / "saved_model.pb").stat().st_size / 1e6
    assert f"Weights: 0.0 MB. Graph: {megabytes:.1f} MB.\nIts outputs are at most " in card, card
    assert "LiteRT" not in card
    for part in ("shatter/classify", "`probabilities`, float32 [B, 3]", "TF Serving 2.12", "cls_accuracy", "curl"):
        assert part in card, card
    functions = signatures(exported, "classify")
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record.numpy())
        for record in tf.data.TFRecordDataset(str(path / "assets.extra/tf_serving_warmup_requests"))
    ]
    seen = set()
    for log in logs:
        request = log.predict_log.request
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        outputs = functions[request.model_spec.signature_name](**inputs)
        seen.add((request.model_spec.signature_name, {v.shape[0] for v in outputs.values()}.pop()))
    assert seen == {(name, size) for name in ("serving_default", "embed", "token_ids") for size in (1, 8)}


def test_versions_count_up_and_failures_leave_nothing(exported, tmp_path, monkeypatch, capsys):
    flags = [f"--model_dir={exported['classify']}", f"--export_dir={tmp_path}/served"]
    (tmp_path / "served/7").mkdir(parents=True)
    export(*flags)
    assert sorted(os.listdir(tmp_path / "served")) == ["7", "8"]
    assert "from the trained model" in capsys.readouterr().out

    monkeypatch.setattr(samples, "difference", lambda *args: 2e-4)
    with pytest.raises(UserError, match="differs .* by 2.0e-04"):
        export(*flags)
    monkeypatch.setattr(samples, "difference", lambda *args: float("nan"))
    with pytest.raises(UserError, match="differs .* by nan"):
        export(*flags)
    assert sorted(os.listdir(tmp_path / "served")) == ["7", "8"]


def test_what_a_killed_export_left_is_removed_and_never_published(exported, tmp_path, monkeypatch):
    flags = [f"--model_dir={exported['classify']}", f"--export_dir={tmp_path}/served"]
    old = f"incomplete-{'7d' * 16}"
    new = f"incomplete-{'0f' * 16}"
    others = "incomplete-drafts"
    for name, age in ((old, 7200), (new, 10), (others, 7200)):
        left = tmp_path / "served" / name / "assets.extra/token_ids.tflite"
        left.parent.mkdir(parents=True)
        left.write_text("left")
        os.utime(left, (time.time() - age,) * 2)
    export(*flags)
    assert sorted(os.listdir(tmp_path / "served")) == ["1", new, others]  # one may be at work, the other is not ours
    assert not (tmp_path / "served/1/assets.extra/token_ids.tflite").exists()
    assert '"served/1"' in (tmp_path / "served/1/README.md").read_text()

    # Another export takes the same version in the meantime.
    monkeypatch.setattr(saved_model, "write_card", lambda *args: (tmp_path / "served/2").mkdir())
    with pytest.raises(UserError, match="served/2: .* another export"):
        export(*flags)
    assert sorted(os.listdir(tmp_path / "served")) == ["1", "2", new, others]


@pytest.mark.parametrize("name", ["pretrain", "question_answering"])
def test_matrices_in_bfloat16_are_half_the_size_and_rounded(exported, tmp_path, capsys, name):
    export(f"--model_dir={exported[name]}", f"--export_dir={tmp_path}", "--weights=bfloat16")
    (difference,) = re.findall(r"at most ([\d.e-]+) from the trained model", capsys.readouterr().out)
    assert 1e-4 < float(difference) < 0.1
    assert "stored as bfloat16 and float32" in (tmp_path / "1/README.md").read_text()
    whole, rounded = (
        tf.train.load_checkpoint(f"{path}/1/variables/variables") for path in (exported[f"{name}_export"], tmp_path)
    )
    names = set(whole.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    shapes = whole.get_variable_to_shape_map()
    matrices = [n for n in names if sum(size > 1 for size in shapes[n]) > 1]  # a norm's scale is [1, 1, D]
    assert len(matrices) > 5
    for n in names:
        expected = tf.constant(whole.get_tensor(n))
        if n in matrices:
            assert rounded.get_variable_to_dtype_map()[n] == tf.bfloat16
            expected = tf.cast(expected, tf.bfloat16)
        np.testing.assert_array_equal(rounded.get_tensor(n), expected.numpy())


def test_a_difference_is_found(exported):
    run, servable = load(exported, "classify")
    path = str(exported["classify_export"] / "1")
    assert samples.difference(servable, path) < 1e-5

    bias = servable.model.trainable_variables[-1]
    bias.assign_add(np.linspace(0.0, 1.0, bias.shape.num_elements()))
    assert samples.difference(servable, path) > 1e-2
    bias.assign(np.full(bias.shape, np.nan))
    assert np.isnan(samples.difference(servable, path))
    run.params.task.train_data.labels.reverse()
    assert samples.difference(build_servable(run, servable.model), path) == np.inf


def test_a_keras_layer_of_tf_hub_can_be_used_and_trained(exported):
    path = str(exported["pretrain_export"] / "1")
    layer = hub.KerasLayer(path, trainable=True)
    texts = tf.constant(TEXTS)
    np.testing.assert_allclose(
        layer(texts), signatures(exported, "pretrain")["embed"](text=texts)["embedding"], atol=1e-6
    )
    model = tf_keras.Sequential([tf_keras.Input([], dtype=tf.string), layer, tf_keras.layers.Dense(1)])
    before = [variable.numpy() for variable in layer.trainable_variables]
    assert len(before) > 10
    model.compile("sgd", "mse")
    model.fit(texts, tf.ones([len(TEXTS), 1]), verbose=0)
    changed = [np.any(v.numpy() != b) for v, b in zip(layer.trainable_variables, before, strict=True)]
    assert np.mean(changed) > 0.7


@pytest.mark.parametrize("experiment", ["pretrain", "tag"])
def test_long_inputs_are_attended_to_in_blocks_and_give_the_same(experiment):
    results = []
    for block in (32, 96):
        tf_keras.utils.set_random_seed(0)
        servable = toy_servable(experiment, seq_length=96, max_sequence_length=96, query_block_size=block)
        texts = [" ".join(f"w{i % 50}" for i in range(n)) for n in (3, 50, 90)]
        for texts_of_batch in (texts, texts[:1], []):
            batch = tf.constant(texts_of_batch, tf.string)
            for name in servable.functions.keys() - {"token_ids"}:
                takes = servable.signatures[name].takes
                results.append(servable.functions[name](*[batch] * len(takes)))
    half = len(results) // 2
    for blocks, whole in zip(results[:half], results[half:], strict=True):
        for key, value in whole.items():
            if value.dtype == tf.float32:
                np.testing.assert_allclose(blocks[key], value, atol=1e-5)
            else:
                np.testing.assert_array_equal(blocks[key], value)


@pytest.mark.parametrize(("experiment", "block"), [("classify", 64), ("tag", 16), ("pretrain", 16), ("answer", 16)])
def test_each_part_of_a_signature_is_in_its_graph_once(experiment, block):
    servable = toy_servable(experiment, seq_length=64, query_block_size=block)
    for name, function in servable.functions.items():
        graph_def = function.get_concrete_function().graph.as_graph_def()
        nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
        count = {op: sum(node.op == op for node in nodes) for op in ("FastWordpieceTokenizeWithOffsets", "TopKV2")}
        texts = len(servable.signatures[name].takes) if name != "token_ids" else 0
        assert count["FastWordpieceTokenizeWithOffsets"] == texts
        if name == "fill_mask":
            assert count["TopKV2"] == 1
        models = sum(node.op == "ResourceGather" for node in nodes)  # it looks up the words' vectors
        assert models == (2 if block == 16 and texts == 1 else 1)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"shatter"}))  # the exports above are of Shatter
def test_every_family_is_served_and_may_be_loaded(family, tmp_path):
    long = dict(smart_bird=dict(dense_up_to=16))  # in the ways of long inputs, too
    servable = toy_servable("classify", family, num_layers=1, **long.get(family, {}))
    tf.saved_model.save(servable.trackable(), str(tmp_path), signatures=servable.functions)
    assert graph.refused_operations(str(tmp_path)) == set()
    assert samples.difference(servable, str(tmp_path)) < 1e-4
    for name, function in tf.saved_model.load(str(tmp_path)).signatures.items():
        takes = servable.signatures[name].takes
        outputs = function(**{spec.name: tf.zeros([0, 6][: spec.shape.rank], spec.dtype) for spec in takes})
        assert {value.shape[0] for value in outputs.values()} == {0}


def test_refusals(exported, tmp_path):
    empty = tmp_path / "run"
    shutil.copytree(exported["classify"], empty, ignore=shutil.ignore_patterns("ckpt*", "best"))
    with pytest.raises(UserError, match=f"--model_dir={empty}: no checkpoint"):
        export(f"--model_dir={empty}", f"--export_dir={tmp_path}/served")
    with pytest.raises(UserError, match="not a training directory"):
        export(f"--model_dir={tmp_path}", f"--export_dir={tmp_path}/served")
    params = (empty / "params.yaml").read_text()
    shutil.copytree(exported["classify"], tmp_path / "other")
    (tmp_path / "other/params.yaml").write_text(params.replace("intermediate_size: 10", "intermediate_size: 11"))
    with pytest.raises(UserError, match=f"{tmp_path}/other/.*does not fit the settings"):
        export(f"--model_dir={tmp_path}/other", f"--export_dir={tmp_path}/served")


def test_only_what_the_directory_refuses_is_said_to_be_its_fault(exported, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match=f"^--export_dir={tmp_path}/file: cannot be written") as refusal:
        export(f"--model_dir={exported['classify']}", f"--export_dir={tmp_path}/file")
    assert "\n" not in str(refusal.value)

    def fail(*args):
        raise tf.errors.InternalError(None, None, "no answer")

    monkeypatch.setattr(tf.saved_model, "save", lambda *args, **kwargs: None)
    monkeypatch.setattr(samples, "difference", fail)
    with pytest.raises(tf.errors.InternalError, match="no answer"):
        export(f"--model_dir={exported['classify']}", f"--export_dir={tmp_path}/served")


@pytest.mark.slow
def test_the_graph_of_a_base_model_is_small(pretrain, tmp_path):
    """With all that its size depends on: layers, parts, length and wordpieces; widths do not count."""
    sizes = dict(num_layers=12, num_parts=12, hidden_size=24, max_sequence_length=512, vocab_size=30528)
    more = ",".join(f"task.model.encoder.shatter.{name}={value}" for name, value in sizes.items())
    run = pretrain(more=more + ",task.train_data.seq_length=512")
    run.vocabulary += [f"word{i}" for i in range(30522 - len(run.vocabulary))]
    run_dir.write(str(tmp_path / "run"), run)
    Session(run, str(tmp_path / "run")).saver.save()
    export(f"--model_dir={tmp_path}/run", f"--export_dir={tmp_path}/served")
    assert 5e6 < (tmp_path / "served/1/saved_model.pb").stat().st_size < 10e6
