"""Simple models beside a run: against scikit-learn used directly, on small random texts, and through `train`."""

import json
import os
import subprocess

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from conftest import WORDS, train_command
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from test_distribution import start_workers
from tiny import tiny_override

from shatter_tf.data.labelled import Row
from shatter_tf.tasks import baseline
from shatter_tf.tasks.base import Data
from shatter_tf.tasks.classify import ClassifyConfig
from shatter_tf.tasks.registry import EXPERIMENTS
from shatter_tf.tasks.regress import RegressConfig
from shatter_tf.training import job, run_dir
from shatter_tf.training.preemption import StopRequest

SMALL = "runtime.enable_xla=false,trainer.train_steps=2,trainer.steps_per_loop=1,trainer.validation_interval=2"
FACTS = {"rows", "training_rows", "all_training_rows", "seconds", "data"}


def texts(rng, number):
    return [" ".join(rng.choice(WORDS, 5)) for _ in range(number)]


def labelled_rows(label_of, number=80, columns=1, seed=0):
    rng = np.random.default_rng(seed)
    rows = list(zip(*(texts(rng, number) for _ in range(columns)), strict=True))
    return [Row(row, label_of(*row), "") for row in rows]


def cat_or_dog(*row):
    return str(sum(text.split().count("cat") + text.split().count("dog") for text in row) % 3)


def config_of(config_class=ClassifyConfig, **settings):
    return config_class().replace(**settings)


def measured(config, train, validation, **more):
    data = Data(train, validation, [], True)
    config.read_labels(data)
    return config.measure_baseline(data, **more)


def oracle(train, validation, model, targets=lambda row: row.label):
    """Returns the predictions of TF-IDF with a linear model for texts."""
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    inputs = vectorizer.fit_transform([row.texts[0] for row in train])
    model.fit(inputs, [targets(row) for row in train])
    return model.predict(vectorizer.transform([row.texts[0] for row in validation]))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_corrcoef"])
def test_classification(metric):
    label_of = cat_or_dog if metric != "f1" else (lambda text: "yes" if "cat" in text else "no")
    train, validation = labelled_rows(label_of), labelled_rows(label_of, number=37, seed=1)
    found = measured(config_of(metric_type=metric), train, validation)

    truth = [row.label for row in validation]
    labels = [row.label for row in train]
    guess = [max(sorted({*labels}), key=labels.count)] * len(truth)
    predictions = oracle(train, validation, LinearSVC(random_state=0))
    scores = dict(
        accuracy=sklearn.metrics.accuracy_score,
        f1=lambda *pair: sklearn.metrics.f1_score(*pair, pos_label="yes", zero_division=0),
        matthews_corrcoef=sklearn.metrics.matthews_corrcoef,
    )
    assert found["tf_idf"] == pytest.approx(scores[metric](truth, predictions))
    assert found["majority"] == pytest.approx(scores[metric](truth, guess))
    assert found["tf_idf"] > found["majority"]
    assert {*found} == {"tf_idf", "majority", *FACTS}
    assert (found["rows"], found["training_rows"], found["all_training_rows"]) == (37, 80, 80)


def test_regression():
    def number_of(text):
        return str(text.split().count("cat") - 2 * text.split().count("old"))

    train, validation = labelled_rows(number_of), labelled_rows(number_of, number=31, seed=1)
    found = measured(config_of(RegressConfig), train, validation)
    predictions = oracle(train, validation, Ridge(), targets=lambda row: float(row.label))
    numbers = [float(row.label) for row in validation]
    both = np.corrcoef(predictions, numbers)[0, 1], scipy.stats.spearmanr(predictions, numbers)[0]
    assert found["tf_idf"] == pytest.approx(np.mean(both), abs=1e-4)
    assert found["tf_idf"] > 0.5
    assert {*found} == {"tf_idf", *FACTS}


def test_pairs():
    """What two texts have in common cannot be told from the words of each."""

    def same(first, second):
        return "same" if first.split()[0] == second.split()[0] else "other"

    def rows(number, seed):
        rng = np.random.default_rng(seed)
        firsts, seconds = rng.choice(WORDS[:7], [2, number])
        seconds = np.where(rng.random(number) < 0.5, firsts, seconds)
        return [Row(pair, same(*pair), "") for pair in zip(firsts.tolist(), seconds.tolist(), strict=True)]

    train, validation = rows(300, 0), rows(101, 1)
    found = measured(config_of(), train, validation)

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit([t for row in train for t in row.texts])

    def inputs(rows):
        first, second = (vectorizer.transform(column) for column in zip(*(row.texts for row in rows), strict=True))
        return sparse.hstack([first, second, first.multiply(second)], "csr")

    model = LinearSVC(random_state=0).fit(inputs(train), [row.label for row in train])
    assert found["tf_idf"] == pytest.approx(model.score(inputs(validation), [row.label for row in validation]))
    assert found["tf_idf"] == 1.0


def test_rows_are_drawn_by_the_seed_up_to_a_number_of_characters(monkeypatch):
    rows = labelled_rows(cat_or_dog)
    lengths = np.array([len(row.texts[0]) for row in rows])
    places = baseline.draw(rows, 700, seed=3)
    assert places.tolist() == sorted({*places.tolist()})
    assert 700 - lengths.max() < lengths[places].sum() <= 700
    np.testing.assert_array_equal(places, baseline.draw(rows, 700, seed=3))
    assert places.tolist() != baseline.draw(rows, 700, seed=4).tolist()
    assert baseline.draw(rows, lengths.sum(), seed=3).tolist() == list(range(80))
    assert len(baseline.draw(rows, 1, seed=3)) == 1

    # Figures are those of the rows that were drawn, and of all validation rows that the run is evaluated on.
    monkeypatch.setattr(baseline, "MOST_CHARACTERS", 700)
    config = config_of()
    config.train_data.seed = 3
    found = measured(config, rows, rows, most_rows=50)
    predictions = oracle([rows[i] for i in places], rows[:50], LinearSVC(random_state=0))
    assert found["tf_idf"] == pytest.approx(np.mean(predictions == [row.label for row in rows[:50]]))
    assert (found["rows"], found["training_rows"], found["all_training_rows"]) == (50, len(places), 80)
    assert any(f"{len(places)} of 80 training rows" in line for line in baseline.describe("accuracy", 1.0, found))


def test_more_labels_mean_fewer_rows(monkeypatch):
    monkeypatch.setattr(baseline, "MOST_CHARACTERS", 2_000)
    rows = labelled_rows(str)
    few = labelled_rows(cat_or_dog)
    assert measured(config_of(), rows, rows)["training_rows"] < measured(config_of(), few, few)["training_rows"] / 4


@pytest.mark.parametrize("words", ["", "? ! ."], ids=["one label", "no words"])
def test_rows_that_nothing_can_be_learned_from(words):
    """All figures are those of guessing."""
    rows = [Row((words or "the cat",), label, "") for label in "aaab"]
    config = config_of()
    config.train_data.labels = ["a", "b"]
    found = measured(config, rows[: 4 if words else 3], rows)
    assert (found["tf_idf"], found["majority"]) == (0.75, 0.75)


def test_what_was_measured_is_not_measured_again(monkeypatch):
    rows = labelled_rows(cat_or_dog)
    before = measured(config_of(), rows, rows[:20])
    with monkeypatch.context() as patch:
        patch.setattr(baseline, "_features", None)
        assert measured(config_of(), rows, rows[:20], before=before) is before
    others = (
        (config_of(), rows, rows[:21]),
        (config_of(), rows[1:], rows[:20]),
        (config_of(metric_type="matthews_corrcoef"), rows, rows[:20]),
        (config_of(), rows, [Row(row.texts, rows[0].label, "") for row in rows[:20]]),
    )
    for other in others:
        assert measured(*other, before=before)["data"] != before["data"]


def test_what_is_said():
    facts = dict(rows=915, training_rows=80, all_training_rows=80)
    figures = dict(tf_idf=0.907, majority=0.2066, **facts)
    ahead = baseline.describe("cls_accuracy", 0.91, figures)
    assert len(ahead) == 1
    for fact in ("cls_accuracy", "915 validation rows", "0.910", "0.907", "0.207"):
        assert fact in ahead[0]
    assert "pretrain longer" in baseline.describe("cls_accuracy", 0.907, figures)[1]
    assert "learning rate" in baseline.describe("cls_accuracy", 0.2, figures)[1]
    assert len(baseline.describe("cls_accuracy", float("nan"), figures)) == 1
    correlation = baseline.describe("pearson_spearman_corr", 0.3, dict(tf_idf=0.4, **facts))
    assert len(correlation) == 2
    assert "majority" not in correlation[0]


# === In a run ===


@pytest.fixture
def train(tmp_path, vocab_file, capsys):
    """Returns a function that trains a run as the command does; it returns the last lines, and metrics.json."""
    label_of = {"classify": cat_or_dog, "regress": cat_or_dog, "tag": None}

    def call(name="classify", mode="train_and_eval", more="", dev_rows=9):
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        for i, (split, number) in enumerate((("train", 24), ("dev", dev_rows))):
            lines = [
                f"{row.texts[0]}\t{row.label}"
                for row in labelled_rows(label_of[name] or (lambda _: ""), number, seed=i)
            ]
            content = "\n".join(lines) if label_of[name] else "the\tD\ncats\tN\n\nsat\tV\n\n" * number
            (data / f"{split}.tsv").write_text(content + "\n")
        override = f"{tiny_override()},{SMALL},task.train_data.seq_length=16,task.train_data.vocab_file={vocab_file}"
        override += f",task.train_data.global_batch_size=4{more}"
        code = job.run(
            f"shatter/{name}",
            str(tmp_path / "run"),
            mode,
            StopRequest(),
            data_dir=str(data),
            params_override=override,
        )
        assert code == 0
        path = tmp_path / "run/metrics.json"
        return capsys.readouterr().out.splitlines(), json.loads(path.read_text()) if path.exists() else None

    return call


def test_a_run_is_compared_and_the_next_command_said(train, monkeypatch):
    lines, metrics = train()
    found = metrics["baseline"]
    (line,) = [line for line in lines if "validation rows" in line]
    for fact in ("cls_accuracy on 9 ", *(f"{x:.3f}" for x in (metrics["cls_accuracy"], found["tf_idf"]))):
        assert fact in line
    assert metrics["step"] == 2
    assert metrics["parameters"] > 0
    assert lines[-1].startswith("next: shatter export --model_dir=")
    assert "--export_dir=" in lines[-1]

    # Started again, and evaluated, it knows; other rows or a damaged file are another matter.
    with monkeypatch.context() as patch:
        patch.setattr(baseline, "_features", None)
        again, same = train()
        assert (again[-len(lines) :][-1], same) == (lines[-1], metrics)
        assert line in again
        evaluated, same = train(mode="eval")
        assert same == metrics
        assert line in evaluated
        assert not [line for line in evaluated if line.startswith("next")]
    _, other = train(mode="eval", dev_rows=10)
    assert other["baseline"]["rows"] == 10


def test_a_damaged_file_does_not_stop_a_run(train, tmp_path):
    _, metrics = train()
    (tmp_path / "run/metrics.json").write_text("{")
    _, again = train()
    again["baseline"]["seconds"] = metrics["baseline"]["seconds"]
    assert again == metrics


def test_only_the_evaluated_rows_count(train):
    _, metrics = train(more=",trainer.validation_steps=2,task.validation_data.global_batch_size=3")
    assert metrics["baseline"]["rows"] == 6


def test_it_can_be_left_out(train):
    lines, metrics = train(more=",task.baseline=false")
    assert "baseline" not in metrics
    assert not [line for line in lines if "TF-IDF" in line]
    assert lines[-1].startswith("next: shatter export")


def test_a_run_without_evaluations_has_none(train):
    lines, metrics = train(mode="train")
    assert metrics is None
    assert not [line for line in lines if "TF-IDF" in line]
    assert lines[-1].startswith("next: shatter export")


@pytest.mark.parametrize("name", ["regress", "tag"])
def test_other_tasks(train, name):
    lines, metrics = train(name)
    assert ("baseline" in metrics) == (name == "regress")
    assert lines[-1].startswith("next: shatter export")


def test_next_commands_are_for_a_shell():
    directory = "runs/my first"
    for name in EXPERIMENTS:
        command = EXPERIMENTS[name]().next_command(directory)
        words = subprocess.run(
            ["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        is_start = name in ("shatter/pretrain", "shatter/distil")  # of a task
        assert f"--{'init_checkpoint' if is_start else 'model_dir'}={directory}" in words
        assert words[:2] == ["shatter", "train" if is_start else "export"]
    assert "--model_dir=runs/classify" in EXPERIMENTS["shatter/pretrain"]().next_command("runs/pretrain")


@pytest.mark.slow
def test_other_workers_do_not_wait_for_the_chief(tmp_path, vocab_file):
    """Nor does it lose the run when they have left, however long it takes. Metrics of two labels work in bfloat16."""
    for split in ("train", "dev"):
        rows = [f"{row.texts[0]}\t{row.label}" for row in labelled_rows(cat_or_dog, 16)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    override = f"task.train_data.vocab_file={vocab_file},task.train_data.seq_length=16,runtime.enable_xla=false"
    override += ",runtime.mixed_precision_dtype=bfloat16,task.metric_type=f1"
    change = "from shatter_tf.tasks import baseline\nfeatures = baseline._features\n"
    change += "def slow(*args):\n    time.sleep(25)\n    return features(*args)\nbaseline._features = slow\n"
    workers = start_workers(tmp_path, tmp_path / "run", 2, override, "shatter/classify", changes=[(0, change)])
    outputs = [worker.communicate(timeout=900)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "baseline" in run_dir.read_metrics(str(tmp_path / "run"))
    assert outputs[1] == ""
    assert "next: shatter export" in outputs[0]


@pytest.mark.slow
def test_a_signal_ends_it_at_once(tmp_path, vocab_file):
    """Everything is saved by then: the same command measures again."""
    for split in ("train", "dev"):
        rows = [f"{row.texts[0]}\t{row.label}" for row in labelled_rows(cat_or_dog, 16)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    change = "from shatter_tf.tasks import baseline\n"
    change += (
        "def slow(*args):\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(300)\nbaseline._features = slow\n"
    )
    settings = f"{tiny_override()},{SMALL},task.train_data.seq_length=16,task.train_data.global_batch_size=4"
    done = subprocess.run(
        [*train_command(change), "--experiment=shatter/classify", f"--data_dir={tmp_path}",
         f"--model_dir={tmp_path}/run", f"--params_override={settings},task.train_data.vocab_file={vocab_file}"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == os.EX_TEMPFAIL, done.stderr
    assert "nothing unsaved" in done.stdout
    assert run_dir.read_metrics(str(tmp_path / "run"))["step"] == 2
