"""Several labels of a text, rare labels, soft labels, and numbers far from zero."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf
from official.core import task_factory
from sklearn import metrics as sklearn_metrics
from sklearn.utils.class_weight import compute_class_weight
from tiny import PLAIN, tiny_override

from shatter_tf.errors import UserError
from shatter_tf.serving.answers import readable
from shatter_tf.serving.servable import build_servable
from shatter_tf.tasks.scores import balanced_weights, best_thresholds, scores
from shatter_tf.training import settings
from shatter_tf.training.session import Session

ROWS = [
    ("the cat", ["animal"]),
    ("the mat", ["thing"]),
    ("the cat sat on the mat", ["animal", "thing"]),
    ("it ran", []),
]


@pytest.fixture
def several(tmp_path, vocab_file):
    """Returns a function that resolves a tiny run on texts with several labels."""

    def make(rows=ROWS * 3, more=""):
        lines = "".join(json.dumps(dict(text=text, labels=labels)) + "\n" for text, labels in rows)
        for split in ("train", "dev"):
            (tmp_path / f"{split}.jsonl").write_text(lines)
        override = [PLAIN, tiny_override(), "task.train_data.global_batch_size=4,task.train_data.seq_length=16", more]
        override.append(f"task.train_data.vocab_file={vocab_file},task.model.use_encoder_pooler=true")
        override = ",".join(filter(None, override))
        return settings.resolve("shatter/classify", data_dir=str(tmp_path), params_override=override)

    return make


def test_several_labels_are_learned_evaluated_and_served(several, tmp_path):
    learning = "trainer.train_steps=300,trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=1e-2"
    run = several(more=f"{learning},runtime.enable_xla=false")
    task = run.params.task
    assert (task.multi_label, task.metric_type, task.model.num_classes) == (True, "micro_f1", 2)
    session = Session(run, str(tmp_path / "run"))
    session.train(evaluate=True)
    assert session.history[-1]["micro_f1"] == 1.0
    assert session.history[-1]["macro_f1"] == 1.0

    # The thresholds are part of the model.
    thresholds = session.trainer.model.thresholds.numpy()
    assert thresholds.shape == (2,)
    assert (thresholds != 0.5).all()
    assert any(variable is session.trainer.model.thresholds for variable in session.trainer.model.variables)
    again = Session(run, str(tmp_path / "run"))
    assert again.evaluate()["micro_f1"] == 1.0
    np.testing.assert_array_equal(again.trainer.model.thresholds, thresholds)

    answers = build_servable(run, session.trainer.model).functions["serving_default"](tf.constant([t for t, _ in ROWS]))
    for (_, labels), has_label, names in zip(
        ROWS, answers["has_label"].numpy(), answers["labels"].numpy(), strict=True
    ):
        assert [name.decode() for name, has in zip(names, has_label, strict=True) if has] == labels
    row = dict(labels=["a", "b"], has_label=[0, 1], probabilities=[0.1, 0.9])
    assert readable(row) == dict(labels=["b"], probabilities={"a": 0.1, "b": 0.9})
    none = build_servable(run, session.trainer.model).functions["serving_default"](tf.constant([], tf.string))
    assert none["has_label"].shape == (0, 2)


@pytest.mark.parametrize("weights", ["''", "balanced"])
def test_the_loss_of_several_labels(several, weights):
    smoothing = 0.2
    run = several(
        [*ROWS, ("the dog", ["animal"])] * 2,
        f"task.class_weights={weights},task.label_smoothing={smoothing}",
    )
    task = task_factory.get_task(run.params.task)
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    logits = np.array([[2.0, -1.0], [0.5, 0.1], [-3.0, 4.0]])
    rows = np.array([1.0, 1.0, 0.0])
    inputs = dict(
        label_ids=tf.constant(labels), row_weights=tf.constant(rows, tf.float32), input_word_ids=tf.zeros([3, 1])
    )

    positive = (
        np.array([4 / 6, 6 / 4]) if weights == "balanced" else np.ones(2)
    )  # of 10 rows, 6 are animals and 4 things
    targets = labels * (1 - smoothing) + smoothing / 2
    p = 1 / (1 + np.exp(-logits))
    losses = -(positive * targets * np.log(p) + (1 - targets) * np.log(1 - p))
    np.testing.assert_allclose(
        task.loss_sums(inputs, tf.constant(logits))["loss"], (losses.sum(1) * rows).sum(), rtol=1e-5
    )
    assert float(task.weights(inputs)["loss"]) == 2.0


@pytest.mark.parametrize("weights", ["''", "balanced", "[1,2.5,4]"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_of_rare_labels(fine_tune, weights, smoothing):
    rows = [f"the cat\t{label}" for label in "aaaaaabbbc"]
    more = f"task.class_weights={weights},task.label_smoothing={smoothing},task.train_data.global_batch_size=2"
    run = fine_tune("shatter/classify", rows, more=more)
    task = task_factory.get_task(run.params.task)
    logits = np.random.default_rng(0).normal(size=[4, 3])
    labels = np.array([0, 1, 2, 2])
    real = np.array([1.0, 1.0, 1.0, 0.0])
    inputs = dict(
        label_ids=tf.constant(labels), row_weights=tf.constant(real, tf.float32), input_word_ids=tf.zeros([4, 1])
    )

    of_labels = np.ones(3)
    if weights == "balanced":
        of_labels = compute_class_weight("balanced", classes=np.arange(3), y=[0] * 6 + [1] * 3 + [2])
    elif weights != "''":
        of_labels = np.array([1, 2.5, 4])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    losses = -(targets * log_p).sum(1) * of_labels[labels] * real
    np.testing.assert_allclose(task.loss_sums(inputs, tf.constant(logits))["loss"], losses.sum(), rtol=1e-5)
    np.testing.assert_allclose(task.weights(inputs)["loss"], (of_labels[labels] * real).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("task.class_weights=even", "class_weights=even: use balanced"),
        ("task.class_weights=[1,2,3]", "class_weights=.*give 2 positive numbers"),
        ("task.class_weights=[1,-2]", "class_weights=.*give 2 positive numbers"),
        ("task.class_weights=[1,a]", "class_weights=.*give 2 positive numbers"),
        ("task.class_weights=[1,.nan]", "class_weights=.*give 2 positive numbers"),
        ("task.label_smoothing=1", "label_smoothing=1.0 is not in"),
        ("task.metric_type=matthews_corrcoef", "metric_type=matthews_corrcoef: texts have several labels"),
    ],
)
def test_settings_of_labels_that_cannot_be_are_refused(several, more, message):
    with pytest.raises(UserError, match=message):
        several(more=more)


def test_one_label_that_some_rows_have_is_enough(several):
    assert several([("the cat", ["animal"]), ("the mat", [])] * 4).params.task.model.num_classes == 1
    with pytest.raises(UserError, match="no row has a label"):
        several([("the cat", []), ("the mat", [])] * 4)


def test_thresholds_are_the_best_for_f1():
    random = np.random.default_rng(0)
    for _ in range(50):
        targets = random.integers(0, 2, [30, 3])
        targets[:, 2] = 0
        probabilities = np.round(random.random([30, 3]), 1)  # with ties
        thresholds = best_thresholds(targets, probabilities)
        assert thresholds[2] == 0.5  # of a label that no row has
        for label in range(2):
            of_label = functools.partial(f1_at, targets[:, label], probabilities[:, label])
            assert of_label(thresholds[label]) == pytest.approx(max(map(of_label, np.arange(0, 1.05, 0.05))))


def f1_at(targets, probabilities, threshold):
    return sklearn_metrics.f1_score(targets, probabilities >= threshold, zero_division=0)


def test_scores_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    targets, predictions = random.integers(0, 4, [2, 100])
    found = scores(targets, predictions, ["accuracy", "macro_f1", "micro_f1", "matthews_corrcoef"])
    assert found["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(targets, predictions, average="macro"))
    assert found["micro_f1"] == pytest.approx(found["accuracy"])
    assert found["matthews_corrcoef"] == pytest.approx(sklearn_metrics.matthews_corrcoef(targets, predictions))
    assert balanced_weights(np.array([0, 0, 2]), 3)[1] == 1.0  # of a label that no row has


def test_macro_f1_picks_the_best_of_any_number_of_labels(fine_tune, tmp_path):
    rows = [f"the {word}\t{label}" for word, label in (("cat", "a"), ("dog", "b"), ("mat", "c")) for _ in range(4)]
    run = fine_tune(
        "shatter/classify", rows, more="task.metric_type=macro_f1,trainer.train_steps=2,runtime.enable_xla=false"
    )
    assert run.params.trainer.best_checkpoint_eval_metric == "macro_f1"
    session = Session(run, str(tmp_path / "run"))
    session.train(evaluate=True)
    assert 0 <= session.history[-1]["macro_f1"] <= 1


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_numbers_far_from_zero_are_learned_and_served_in_their_unit(fine_tune, tmp_path, offset):
    rows = [
        f"the {word}\t{offset + 1e5 * value:.1f}"
        for word, value in (("cat", 1), ("dog", 2), ("mat", 5))
        for _ in range(4)
    ]
    more = "trainer.train_steps=300,trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=1e-2"
    run = fine_tune("shatter/regress", rows, more=f"{more},runtime.enable_xla=false")
    session = Session(run, str(tmp_path / "run"))
    session.train(evaluate=True)
    assert session.history[-1]["mean_absolute_error"] < 2e4
    servable = build_servable(run, session.trainer.model)
    served = servable.functions["serving_default"](tf.constant(["the cat", "the dog", "the mat"]))["score"]
    np.testing.assert_allclose(served, offset + np.array([1e5, 2e5, 5e5]), atol=5e4)


# === Early stopping ===


def test_training_stops_when_nothing_gets_better_and_resumes_exactly(fine_tune, tmp_path, capsys):
    rows = [f"the {word}\t{label}" for word, label in (("cat", "a"), ("dog", "b")) for _ in range(6)]
    rates = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=0,"
    rates += "trainer.optimizer_config.learning_rate.polynomial.end_learning_rate=0"
    more = f"{rates},trainer.patience=2,trainer.validation_interval=2,trainer.train_steps=20,runtime.enable_xla=false"

    def train(directory):
        session = Session(fine_tune("shatter/classify", rows, more=more), str(tmp_path / directory))
        assert session.train(evaluate=True)
        return session

    session = train("run")
    # Nothing is learned: all evaluations tie, and of ties the later one is the better.
    assert (session.step, session.evaluations_since_best) == (20, 0)

    # With a loss that grows, the first stays the best.
    session.history[:] = [dict(entry, loss=float(i)) for i, entry in enumerate(session.history)]
    assert session.evaluations_since_best == len(session.history) - 1
    session.saver.write_history(session.history[:3])
    capsys.readouterr()
    resumed = Session(fine_tune("shatter/classify", rows, more=more.replace("=20,", "=40,")), str(tmp_path / "run"))
    resumed.history = session.history
    assert resumed.train(evaluate=True)
    assert resumed.step == 20
    out = capsys.readouterr().out
    assert "stopped early at step 20: 2 evaluations in a row were no better than that of step 2" in out
    assert "a larger trainer.patience goes on" in out


def test_patience_needs_evaluations(fine_tune):
    with pytest.raises(UserError, match="patience=-1 is negative"):
        fine_tune("shatter/classify", ["the cat\ta", "the dog\tb"] * 2, more="trainer.patience=-1")
