"""`shatter evaluate` and `export --temperature`: figures against those of scikit-learn, seqeval and SQuAD; refusals."""

import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet
from scipy import special, stats
from seqeval import metrics as of_entities
from sklearn import metrics
from test_export import CORE_OPERATIONS

from shatter_tf import evaluate, export, train
from shatter_tf.data.labelled import Row
from shatter_tf.data.question_answering import Question
from shatter_tf.data.sentences import Sentence
from shatter_tf.errors import UserError
from shatter_tf.measuring.evaluation import answers, calibration, labels, tags
from shatter_tf.serving import operations, predictor, temperature

LABELS = ["animal", "thing", "tierchen äöü"]


def evaluated(model, file, directory, *flags):
    """Runs the command; returns its figures and the rows with their predictions."""
    written = [f"--output={directory}/out.jsonl", f"--json={directory}/out.json", f"--pictures={directory}/pictures"]
    evaluate.main([f"--model={model}", f"--input={file}", *written, *flags])
    rows = [json.loads(line) for line in (directory / "out.jsonl").read_text().splitlines()]
    return json.loads((directory / "out.json").read_text()), rows


@pytest.fixture
def labelled(tmp_path):
    """A file whose rows have columns of their own, and a label that no model knows."""
    rows = [(f"r{i}", f"the cat sat on a {'mat' if i % 2 else 'tree'} {i}", [*LABELS, "new"][i % 4]) for i in range(50)]
    with open(tmp_path / "test.csv", "w") as f:
        csv.writer(f).writerows([("id", "text", "label"), *rows])
    return tmp_path / "test.csv"


def assert_same_figures(one, other):
    """Asserts that two evaluations agree but for where the model is."""
    for key in one.keys() - {"model", "mistakes"}:
        flat, others = (json.dumps(figures[key], sort_keys=True) for figures in (one, other))
        if flat != others:  # float32, in another order of batches
            numbers = [np.array(numbers_of(figures[key])) for figures in (one, other)]
            np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-5)


def numbers_of(value):
    if isinstance(value, (dict, list)):
        values = value.values() if isinstance(value, dict) else value
        return [number for each in values for number in numbers_of(each)]
    return [value] if isinstance(value, (int, float)) else []


def test_a_run_and_its_export_have_scikit_learns_figures(exported, labelled, tmp_path, capsys):
    figures, rows = evaluated(exported["classify_export"], labelled, tmp_path)
    printed = capsys.readouterr().out
    of_run, _ = evaluated(exported["classify"], labelled, tmp_path)
    assert_same_figures(figures, of_run)

    # The file's columns are there, and what was predicted.
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(50)]
    truth, predicted = [row["label"] for row in rows], [row["prediction"]["label"] for row in rows]
    report = metrics.classification_report(truth, predicted, output_dict=True, zero_division=0)
    assert figures["rows"] == 50
    assert figures["accuracy"] == pytest.approx(report["accuracy"])
    for name, key in (("macro", "macro avg"), *((label, label) for label in [*LABELS, "new"])):
        ours = figures["labels"].get(name) or figures[name]
        for ours_name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert ours[ours_name] == pytest.approx(report[key][theirs])
    assert figures["micro"]["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="micro"))
    assert figures["labels"]["animal"]["rows"] == 13

    # What the model does not know counts as wrong, and is said.
    assert figures["unknown_labels"] == {"new": 12}
    assert "12 rows" in printed
    assert "new" in printed

    wrong = [
        (row["prediction"]["probability"], row["id"]) for row in rows if row["label"] != row["prediction"]["label"]
    ]
    assert len(figures["mistakes"]) == 10
    assert figures["mistakes"][0]["probability"] == pytest.approx(max(wrong)[0], abs=1e-5)
    places = {f"{labelled}:{int(name[1:]) + 2}" for _, name in wrong}
    assert {mistake["where"] for mistake in figures["mistakes"]} <= places
    for name in ("confusion", "reliability"):
        assert (tmp_path / f"pictures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_columns_are_those_of_training_unless_told(exported, tmp_path):
    """The columns' usual names would be others, with other texts and labels."""
    shutil.copytree(exported["classify"], tmp_path / "run")
    params = (tmp_path / "run/params.yaml").read_text()
    for name, old, new in (("text_fields", "[]", "[body]"), ("label_field", "''", "truth")):
        assert f"{name}: {old}" in params
        params = params.replace(f"{name}: {old}", f"{name}: {new}")
    (tmp_path / "run/params.yaml").write_text(params)

    (tmp_path / "a.csv").write_text("text,body,label,truth\na,the cat,thing,animal\nb,the dog,thing,animal\n")
    for flags, text, label in (
        ((), "the dog", "animal"),
        (("--text_fields=text", "--label_field=label"), "b", "thing"),
    ):
        figures, _ = evaluated(tmp_path / "run", tmp_path / "a.csv", tmp_path, *flags)
        assert {name for name, of_label in figures["labels"].items() if of_label["rows"]} == {label}
        (expected, _) = evaluated(
            exported["classify"], tmp_path / "a.csv", tmp_path, f"--text_fields={'body' if text != 'b' else 'text'}",
            f"--label_field={'truth' if label == 'animal' else 'label'}",
        )  # fmt: skip
        assert_same_figures(figures, expected)
    (tmp_path / "b.csv").write_text("text,label\nthe cat,thing\n")
    assert evaluated(tmp_path / "run", tmp_path / "b.csv", tmp_path)[0]["rows"] == 1


def test_labels_that_are_numbers_mean_what_the_file_says_or_else_the_models(exported, tmp_path):
    names = dict(info=dict(features=dict(label=dict(names=["thing", *LABELS[::-2]], _type="ClassLabel"))))
    table = pa.Table.from_pylist([dict(text=f"the cat {i}", label=0) for i in range(5)])
    file = tmp_path / "a.parquet"
    parquet.write_table(table, file)
    assert evaluated(exported["classify"], file, tmp_path)[0]["labels"]["animal"]["rows"] == 5
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), file)
    assert evaluated(exported["classify"], file, tmp_path)[0]["labels"]["thing"]["rows"] == 5
    (tmp_path / "a.csv").write_text("text,label\n" + "the cat,1\n" * 5)
    assert evaluated(exported["classify"], tmp_path / "a.csv", tmp_path)[0]["labels"]["thing"]["rows"] == 5
    (tmp_path / "labels.txt").write_text("thing\nanimal\n")
    assert evaluated(exported["classify"], tmp_path / "a.csv", tmp_path)[0]["labels"]["animal"]["rows"] == 5


def test_numbers_are_judged_as_scipy_and_scikit_learn_do(exported, tmp_path):
    (tmp_path / "test.jsonl").write_text(
        "\n".join(json.dumps(dict(review=f"the {'cat ' * i}", score=0.3 * i)) for i in range(1, 30))
    )
    figures, rows = evaluated(exported["regress_export"], tmp_path / "test.jsonl", tmp_path)
    assert_same_figures(figures, evaluated(exported["regress"], tmp_path / "test.jsonl", tmp_path)[0])
    truth, predicted = [row["score"] for row in rows], [row["prediction"]["score"] for row in rows]
    expected = dict(
        pearson=stats.pearsonr(truth, predicted)[0],
        spearman=stats.spearmanr(truth, predicted)[0],
        mean_absolute_error=metrics.mean_absolute_error(truth, predicted),
        root_mean_squared_error=metrics.mean_squared_error(truth, predicted) ** 0.5,
        r2=metrics.r2_score(truth, predicted),
    )
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert figures["mistakes"][0]["where"] == f"{tmp_path}/test.jsonl:29"
    assert (tmp_path / "pictures/scatter.png").exists()


@pytest.mark.parametrize("name", ["pairs", "tag", "question_answering"])
def test_other_kinds_have_the_same_figures_as_run_and_as_export(exported, tmp_path, name):
    file = exported[name].parents[1] / name / ("dev.json" if name == "question_answering" else "dev.tsv")
    figures, rows = evaluated(exported[f"{name}_export"], file, tmp_path)
    assert_same_figures(figures, evaluated(exported[name], file, tmp_path)[0])
    assert figures["rows"] == len(rows) > 3
    if name == "tag":
        truth = [tag for row in rows for tag in row["tags"]]
        predicted = [word["tag"] for row in rows for word in row["prediction"]["words"]]
        assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
        assert figures["macro"]["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


def test_the_figures_are_those_of_the_runs_own_evaluation(exported, tmp_path):
    file = exported["classify"].parents[1] / "classify/dev.tsv"
    figures, _ = evaluated(exported["classify"], file, tmp_path)
    history = [json.loads(line) for line in (exported["classify"] / "history.jsonl").read_text().splitlines()]
    (own,) = (entry for entry in history if figures["model"].endswith(f"step {entry['step']}"))
    assert figures["accuracy"] == pytest.approx(own["cls_accuracy"])
    assert figures["macro"]["f1"] == pytest.approx(own["macro_f1"])
    assert figures["calibration"]["log_loss"] == pytest.approx(own["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")  # of training's first evaluations
def test_entities_of_a_run_and_its_export_have_the_figures_of_its_own_evaluation(exported, tmp_path):
    sentences = [["Mia", "B-PER", "left", "O", "St.", "B-LOC", "Ives", "I-LOC", "on", "O", "U.S.", "B-LOC", "mat", "O"]]
    sentences += [["the", "O", "cat", "B-PER", "sat", "I-PER", "on", "O", "Oslo.", "B-LOC"]]
    blocks = ["\n".join(f"{w}\t{t}" for w, t in zip(s[::2], s[1::2], strict=True)) for s in sentences * 8]
    (tmp_path / "data").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"data/{split}.tsv").write_text("\n\n".join(blocks) + "\n")
    run = tmp_path / "run"
    flags = [f"--data_dir={tmp_path}/data", f"--model_dir={run}", f"--init_checkpoint={exported['pretrain']}"]
    flags += ["--train_steps=80", "--batch_size=4", "--seq_length=16", "--learning_rate=0.02"]
    flags += ["--params_override=runtime.enable_xla=false,runtime.mixed_precision_dtype=float32"]
    train.main(["--experiment=tag", *flags])
    export.main([f"--model_dir={run}", f"--export_dir={tmp_path}/served"])

    figures, _ = evaluated(run, tmp_path / "data/dev.tsv", tmp_path)
    assert_same_figures(figures, evaluated(tmp_path / "served", tmp_path / "data/dev.tsv", tmp_path)[0])
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    (own,) = (entry for entry in history if figures["model"].endswith(f"step {entry['step']}"))
    assert figures["accuracy"] == pytest.approx(own["accuracy"])
    assert own["f1"] > 0
    for name in ("precision", "recall", "f1"):
        assert figures["micro"][name] == pytest.approx(own[name])
    for kind in ("LOC", "PER"):
        assert figures["entities"][kind]["f1"] == pytest.approx(own[f"f1/{kind}"])
    assert figures["not_matched"] == 0
    assert figures["words"] + figures["cut_off"] == 8 * (11 + 6)


# === Parts ===


def test_the_calibration_error_is_the_mean_distance_of_bins():
    rng = np.random.default_rng(0)
    confidence, is_right = rng.uniform(size=1000), rng.integers(0, 2, 1000)
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        expected += abs(np.sum(confidence[inside]) - np.sum(is_right[inside])) / 1000
    assert calibration.error(calibration.bins(confidence, is_right)) == pytest.approx(expected)
    (only,) = calibration.bins(np.array([0.0, 1 / 15]), np.array([0, 1]))  # ends belong to the bin before
    assert only["rows"] == 2


def test_the_temperature_of_logits_is_found():
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=[20_000, 5])
    ids = np.array([rng.choice(5, p=p) for p in special.softmax(logits, axis=1)])
    found = calibration.of_labels(special.softmax(logits * 3.0, axis=1), ids)
    assert found["temperature"] == pytest.approx(3.0, rel=0.03)
    assert found["calibration_error_at_temperature"] < 0.02 < found["calibration_error"]
    best = found["log_loss_at_temperature"]
    for other in (0.97, 1.03):
        scaled = special.softmax(logits * 3.0 / (found["temperature"] * other), axis=1)
        assert metrics.log_loss(ids, scaled) > best
    assert best == pytest.approx(metrics.log_loss(ids, special.softmax(logits * 3.0 / found["temperature"], axis=1)))
    assert not found["at_a_bound"]
    assert calibration.of_labels(special.softmax(logits, axis=1), logits.argmax(axis=1))["at_a_bound"]  # always right

    unknown = calibration.of_labels(special.softmax(logits * 3.0, axis=1), np.where(ids == 4, -1, ids))
    assert unknown["calibration_error"] > found["calibration_error"]
    none = calibration.of_labels(special.softmax(logits, axis=1), np.full(20_000, -1))
    assert "temperature" not in none


def test_several_labels_are_judged_at_the_models_thresholds():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(size=[200, 3])
    has_label = (probabilities > [0.3, 0.5, 0.9]).astype(int)
    targets = (probabilities + rng.normal(scale=0.3, size=[200, 3]) > 0.5).astype(int)
    names = ["a", "b", "c"]
    rows = [
        Row((f"text {i}",), tuple(n for n, has in zip(names, target, strict=True) if has), f"f:{i}")
        for i, target in enumerate(targets)
    ]
    rows[0].label += ("new",)
    outputs = [dict(probabilities=p, has_label=h) for p, h in zip(probabilities, has_label, strict=True)]
    sample = dict(labels=np.array([[name.encode() for name in names]]))
    found = labels.SeveralLabels(["text"], sample).judge(rows, outputs).figures

    truth = np.pad(targets, [[0, 0], [0, 1]])
    truth[0, 3] = 1
    predicted = np.pad(has_label, [[0, 0], [0, 1]])
    for average in ("macro", "micro"):
        assert found[average]["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average=average))
    each = metrics.precision_score(truth, predicted, average=None, zero_division=0)
    assert [found["labels"][name]["precision"] for name in [*names, "new"]] == pytest.approx(each)
    assert found["exact_match"] == pytest.approx(np.mean(np.all(truth == predicted, axis=1)))
    assert found["unknown_labels"] == {"new": 1}

    worst = max((abs(targets[i, j] - probabilities[i, j]), i, j) for i, j in np.argwhere(targets != has_label).tolist())
    assert found["mistakes"][0]["where"] == f"f:{worst[1]}"
    assert found["mistakes"][0]["label"] == names[worst[2]]


def words_of(words, tags_of_words):
    return dict(
        words=np.array([word.encode() for word in words] + [b""]),
        tags=np.array([tag.encode() for tag in tags_of_words] + [b""]),
        probabilities=np.linspace(0.9, 0.5, len(words) + 1),
    )


def test_entities_are_judged_as_seqeval_does_on_words_that_both_sides_have():
    rows = [
        Sentence(
            ["In", "St.", "Ives", ",", "Mia", "Berg"], ["O", "B-LOC", "I-LOC", "O", "B-PER", "I-PER"], "f", range(6)
        ),
        Sentence(["Oslo", "and", "far", "away"], ["B-LOC", "O", "O", "O"], "f", range(7, 11)),
    ]
    cut = ["In", "St", ".", "Ives", ",", "Mia", "Berg"]
    predicted = [["O", "B-LOC", "I-LOC", "I-LOC", "O", "B-PER", "O"], ["B-PER", "O"]]
    outputs = [words_of(cut, predicted[0]), words_of(["Oslo", "and", "far", "away"], [*predicted[1], "", ""])]
    report = tags.Tags(["text"], {}).judge(rows, outputs)
    found = report.figures

    truth = [["O", "B-LOC", "I-LOC", "I-LOC", "O", "B-PER", "I-PER"], ["B-LOC", "O"]]
    expected = of_entities.classification_report(truth, predicted, output_dict=True, zero_division=0)
    for kind in ("LOC", "PER"):
        assert found["entities"][kind]["f1"] == pytest.approx(expected[kind]["f1-score"])
        assert found["entities"][kind]["rows"] == expected[kind]["support"]
    assert found["macro"]["f1"] == pytest.approx(expected["macro avg"]["f1-score"])
    assert found["micro"]["f1"] == pytest.approx(of_entities.f1_score(truth, predicted))
    assert found["accuracy"] == pytest.approx(of_entities.accuracy_score(truth, predicted))
    assert (found["words"], found["cut_off"], found["not_matched"]) == (9, 2, 0)
    assert any(line.startswith("2 words") for line in report.lines)
    assert {mistake["where"] for mistake in found["mistakes"]} == {"f:5", "f:7"}


def test_words_that_a_model_cuts_otherwise_are_counted():
    row = Sentence(["can't", "go"], ["VERB", "VERB"], "f")
    found = tags.Tags(["text"], {}).judge([row], [words_of(["can", "'", "t", "go"], ["VERB"] * 4)]).figures
    assert (found["words"], found["not_matched"]) == (1, 1)


def test_answers_are_judged_as_squad_does():
    questions = [
        Question(str(i), "who?", 0, answer, None) for i, answer in enumerate([("a cat",), ("dog", "big dog"), ()])
    ]
    rows = [answers.Asked(question, "the cat", "f") for question in questions]
    outputs = [dict(answer=answer, score=np.float32(1.0)) for answer in (b"The cat!", b"red big dog", b"mat")]
    found = answers.Answers([], {}).judge(rows, outputs).figures
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1 + 0.8 + 0) / 3)
    assert [mistake["predicted"] for mistake in found["mistakes"]] == ["mat"]


# === Temperature ===


def test_a_temperature_changes_probabilities_and_no_label(exported, labelled, tmp_path):
    flags = [f"--model_dir={exported['classify']}", f"--export_dir={tmp_path}/served", "--temperature=0.25"]
    export.main(flags)
    assert "temperature 0.25" in (tmp_path / "served/1/README.md").read_text()
    assert operations.operations(str(tmp_path / "served/1")) <= {*CORE_OPERATIONS.split(), *operations.TEXT_OPERATIONS}

    before, rows = evaluated(exported["classify_export"], labelled, tmp_path)
    after, scaled = evaluated(tmp_path / "served", labelled, tmp_path)
    p, q = ([[*row["prediction"]["probabilities"].values()] for row in each] for each in (rows, scaled))
    np.testing.assert_allclose(q, special.softmax(np.log(p) / 0.25, axis=1), atol=1e-4)
    assert [row["prediction"]["label"] for row in rows] == [row["prediction"]["label"] for row in scaled]
    assert before["accuracy"] == after["accuracy"]
    assert before["calibration"]["log_loss"] != after["calibration"]["log_loss"]

    # Clients with a tokenizer of their own get the same.
    functions = tf.saved_model.load(f"{tmp_path}/served/1").signatures
    ids = tf.constant([[2, 7, 8, 3]])
    inputs = dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))
    plain = tf.saved_model.load(f"{exported['classify_export']}/1").signatures["token_ids"](**inputs)["probabilities"]
    np.testing.assert_allclose(
        functions["token_ids"](**inputs)["probabilities"], special.softmax(np.log(plain) / 0.25, axis=1), atol=1e-5
    )


def test_the_fitted_temperature_lowers_the_log_loss_of_an_export(exported, labelled, tmp_path):
    before, _ = evaluated(exported["classify"], labelled, tmp_path)
    fitted = before["calibration"]["temperature"]
    export.main([f"--model_dir={exported['classify']}", f"--export_dir={tmp_path}/served", f"--temperature={fitted}"])
    after, _ = evaluated(tmp_path / "served", labelled, tmp_path)
    assert after["calibration"]["log_loss"] < before["calibration"]["log_loss"]
    assert after["calibration"]["log_loss"] == pytest.approx(before["calibration"]["log_loss_at_temperature"], abs=1e-5)


@pytest.mark.parametrize("t", [0.01, 0.5, 3.0, 50.0])
def test_scaled_probabilities_are_those_of_scaled_logits(t):
    logits = np.random.default_rng(0).normal(scale=3.0, size=[500, 12])
    p = tf.nn.softmax(tf.constant(logits, tf.float32))
    found = temperature.scaled(dict(probabilities=p), t)["probabilities"].numpy()
    np.testing.assert_allclose(found, special.softmax(logits / t, axis=1), atol=2e-5 / min(t, 1))
    assert np.all(found.argmax(axis=1) == logits.argmax(axis=1))

    # Where a text may have several labels, thresholds move along, and so no decision changes.
    thresholds = np.linspace(0.05, 0.95, 12)
    outputs = dict(
        probabilities=tf.sigmoid(tf.constant(logits, tf.float32)), thresholds=tf.constant(thresholds, tf.float32)
    )
    found = {name: values.numpy() for name, values in temperature.scaled(outputs, t).items()}
    np.testing.assert_allclose(found["probabilities"], special.expit(logits / t), atol=2e-5 / min(t, 1))
    undecided = np.isclose(special.expit(logits), thresholds, atol=1e-4)
    same = (found["probabilities"] >= found["thresholds"]) == (special.expit(logits) >= thresholds)
    is_saturated = (found["probabilities"] == found["thresholds"]) & (t < 0.1)
    assert np.all(same | undecided | is_saturated)
    assert temperature.scaled(dict(embedding=p), t) == dict(embedding=p)


# === Several labels, from training to the served temperature ===


@pytest.mark.slow
def test_a_run_of_several_labels(exported, tmp_path):
    rows = [dict(text=f"the cat sat {i}", topics=[["a"], ["a", "b"], [], ["c"]][i % 4]) for i in range(40)]
    (tmp_path / "data").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"data/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = tmp_path / "run"
    flags = [f"--data_dir={tmp_path}/data", f"--model_dir={run}", f"--init_checkpoint={exported['pretrain']}"]
    flags += ["--label_field=topics", "--train_steps=4", "--batch_size=8", "--seq_length=16"]
    flags += ["--params_override=runtime.enable_xla=false,runtime.mixed_precision_dtype=float32"]
    train.main(["--experiment=classify", *flags])
    file = tmp_path / "data/dev.jsonl"
    figures, found = evaluated(run, file, tmp_path, "--label_field=topics")
    truth, predicted = (
        np.array([[name in labels for name in "abc"] for labels in each])
        for each in ([row["topics"] for row in rows], [row["prediction"]["labels"] for row in found])
    )
    assert figures["micro"]["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="micro"))
    assert figures["macro"]["f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))

    export.main([f"--model_dir={run}", f"--export_dir={tmp_path}/served", "--temperature=0.5"])
    _, scaled = evaluated(tmp_path / "served", file, tmp_path, "--label_field=topics")
    assert [row["prediction"]["labels"] for row in found] == [row["prediction"]["labels"] for row in scaled]
    assert [row["prediction"]["probabilities"] for row in found] != [
        row["prediction"]["probabilities"] for row in scaled
    ]


# === Refusals ===


def test_what_cannot_be_judged_is_refused(exported, labelled, tmp_path):
    def refuse(name, file=labelled, *flags):
        with pytest.raises(UserError) as refusal:
            evaluate.main([f"--model={exported[name]}", f"--input={file}", *map(str, flags)])
        assert "\n" not in str(refusal.value)
        return str(refusal.value)

    assert "embedding" in refuse("pretrain")
    assert "embedding" in refuse("pretrain_export")
    assert "--input=/nope" in refuse("classify", "/nope")
    assert "--output" in refuse("classify", labelled, "--output=x.xlsx")
    assert "--text_fields" in refuse("pairs")
    assert f"{labelled}:2" in refuse("regress")
    assert "no column 'body'" in refuse("classify", labelled, "--text_fields=body")
    assert str(tmp_path / "test.csv/x.json") in refuse("classify", labelled, f"--json={tmp_path}/test.csv/x.json")

    (tmp_path / "lists.jsonl").write_text('{"text": "the cat", "label": ["animal", "thing"]}\n')
    assert f"{tmp_path}/lists.jsonl:1" in refuse("classify", tmp_path / "lists.jsonl")
    shutil.copytree(exported["classify"], tmp_path / "empty", ignore=shutil.ignore_patterns("ckpt*", "best"))
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate.main([f"--model={tmp_path}/empty", f"--input={labelled}"])


def test_an_export_is_loaded_only_if_trusted(exported, labelled, monkeypatch):
    asked = []
    monkeypatch.setattr(predictor, "refused_operations", lambda path: asked.append(path) or {"ReadFile"})
    with pytest.raises(UserError, match="ReadFile.*--trust"):
        evaluate.main([f"--model={exported['classify_export']}", f"--input={labelled}"])
    assert asked == [f"{exported['classify_export']}/1"]


@pytest.mark.parametrize(("name", "value"), [("regress", 2), ("tag", 2), ("classify", 0), ("classify", "nan")])
def test_a_temperature_is_a_positive_number_for_a_classifier(exported, tmp_path, name, value):
    with pytest.raises(UserError, match=f"--temperature={value}: "):
        export.main([f"--model_dir={exported[name]}", f"--export_dir={tmp_path}/served", f"--temperature={value}"])
    assert not (tmp_path / "served").exists()
