"""Fine-tuning from a fine-tuned teacher: what it answers, what is learned of that, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS
from official.core import task_factory
from tiny import PLAIN, tiny_override

from shatter_tf.data.sentences import Sentence
from shatter_tf.errors import UserError
from shatter_tf.tasks.teaching import mixed, soft_losses
from shatter_tf.training import run_dir, settings
from shatter_tf.training.session import Session

SETTINGS = f"{PLAIN},trainer.train_steps=2,task.train_data.global_batch_size=4,task.train_data.seq_length=16"
ROWS = dict(
    classify=[
        f"the {word} {other}\t{label}" for word, label in zip(WORDS, "abcab", strict=False) for other in WORDS[:4]
    ],
    several=[f"the {word}\t{label}" for word, label in zip(WORDS, ["a", "a;b", "b", "c", "a;c"] * 4, strict=True)],
    regress=[f"the {word}\t{10 + i / 3:.2f}" for i, word in enumerate(WORDS)],
    tag=[line for word in WORDS for line in ("the\tD", f"{word}\tN", "sat\tV", "")],
)


@pytest.fixture
def fine_tuned(tmp_path, vocab_file):
    """Returns a function that resolves a run on the rows of a kind, with flags."""

    def make(kind, more="", rows=None, **flags):
        file = tmp_path / f"{kind}.tsv"
        file.write_text("\n".join(rows or ROWS[kind]) + "\n")
        separator = "task.train_data.label_separator=;" if kind == "several" else ""
        override = [SETTINGS, tiny_override(), f"task.train_data.vocab_file={vocab_file}", separator, more]
        return settings.resolve(
            "classify" if kind == "several" else kind,
            train_file=str(file),
            dev_file=str(file),
            params_override=",".join(filter(None, override)),
            **flags,
        )

    return make


@pytest.fixture
def teacher(fine_tuned, tmp_path):
    """Returns a function that trains a run on the rows of a kind, whose answers differ from row to row."""

    def make(kind, more=""):
        directory = str(tmp_path / f"teacher-{kind}")
        session = Session(fine_tuned(kind, more), directory)
        rng = np.random.default_rng(0)
        for variable in session.trainer.model.trainable_variables:
            variable.assign_add(rng.normal(0, 0.3, variable.shape))
        session.train(evaluate=False)
        return directory, session.trainer.task, session.trainer.model

    return make


def prepared(run):
    task = task_factory.get_task(run.params.task, data=run.data)
    task.prepare()
    return task


@pytest.mark.parametrize("kind", ["classify", "several", "regress"])
def test_the_teacher_answers_each_row_as_it_would_alone(fine_tuned, teacher, tmp_path, kind):
    directory, teaching, model = teacher(kind, "task.train_data.length_buckets=true")
    (tmp_path / "more.txt").write_text("the old dog ran under the tree and then it was very fast\n\na cat\n")
    flags = dict(unlabelled_file=str(tmp_path / "more.txt"), init_teacher=directory)
    run = fine_tuned(kind, tiny_override(hidden_size=6), **flags)
    task = prepared(run)
    rows = [*run.data.train, *run.data.unlabelled]
    assert len(rows) == len(ROWS[kind]) + 2
    assert len(task._answers) == len(rows)

    tokenizer = run.data.tokenizer
    for row, answer in zip(rows, task._answers, strict=True):
        inputs = tokenizer.pad(tokenizer.encode(tf.constant([row.texts[0]]), None, 16))
        outputs = {name: t.numpy() for name, t in teaching.predict(model, inputs).items()}
        np.testing.assert_allclose(answer, task.taught(outputs)[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["classify", "several", "regress", "tag"])
def test_rows_without_labels_are_learned_from_the_teacher_alone(fine_tuned, teacher, tmp_path, kind):
    """The loss is that of the equations, row by row, whatever stands in for a missing label."""
    directory, *_ = teacher(kind)
    (tmp_path / "more.txt").write_text("a big dog ran\nthe old cat\n" * 6)
    flags = dict(unlabelled_file=str(tmp_path / "more.txt"), init_teacher=directory)
    more = "task.teacher_share=0.7,task.teacher_temperature=3.0,task.train_data.global_batch_size=32"
    run = fine_tuned(kind, more, **flags)
    task = prepared(run)
    model = task.build_model()
    batch = next(iter(task.build_inputs(run.params.task.train_data)))
    has_label = batch["has_label"].numpy()
    assert 0 < has_label.sum() < len(has_label)
    total, weight = task.losses(batch, model(batch, training=False))["loss"]

    outputs = model(batch, training=False)
    logits = (outputs["logits"] if kind == "tag" else outputs).numpy().astype(np.float64)
    taught, labels = batch["taught"].numpy(), batch["label_ids"].numpy()
    expected = []
    for i, labelled in enumerate(has_label):
        places = [(i,)] if kind != "tag" else [(i, k) for k in np.flatnonzero(labels[i] >= 0)]
        for place in places:
            hard, soft = row_losses(kind, logits[place], taught[place], labels[place], temperature=3.0)
            expected.append(0.3 * hard + 0.7 * soft if labelled else soft)
    assert float(weight) == len(expected)
    assert float(total) == pytest.approx(sum(expected), rel=1e-4)


def row_losses(kind, logits, taught, label, temperature):
    """Returns the losses by the label and by the teacher, from the definitions."""
    if kind == "regress":
        return (logits[0] - label) ** 2, (logits[0] - taught) ** 2
    if kind == "several":
        z = np.log(taught / (1 - taught)) / temperature
        targets = 1 / (1 + np.exp(-z))

        def entropy(targets, logits):
            p = 1 / (1 + np.exp(-logits))
            return -np.sum(targets * np.log(p) + (1 - targets) * np.log(1 - p))

        return entropy(label, logits), temperature**2 * entropy(targets, logits / temperature)
    softmax = lambda z: np.exp(z) / np.sum(np.exp(z))  # noqa: E731
    targets = softmax(np.log(taught) / temperature)
    soft = -np.sum(targets * np.log(softmax(logits / temperature)))
    return -np.log(softmax(logits)[label]), temperature**2 * soft


def test_a_teacher_of_another_vocabulary_tags_the_same_words(fine_tuned, teacher, tmp_path):
    directory, *_ = teacher("tag")
    other = [*run_dir.read(directory).vocabulary, "c", "##at"]
    other.remove("cat")
    (tmp_path / "other.txt").write_text("\n".join(other) + "\n")
    run = fine_tuned("tag", f"task.train_data.vocab_file={tmp_path}/other.txt", init_teacher=directory)
    task = prepared(run)
    assert [len(answer) for answer in task._answers] == [3] * len(WORDS)
    (batch,) = task.build_inputs(run.params.task.train_data).take(1)
    firsts = batch["label_ids"].numpy() >= 0
    np.testing.assert_array_equal(batch["taught"].numpy().sum(axis=-1) > 0.5, firsts)
    np.testing.assert_allclose(batch["taught"].numpy().sum(axis=-1)[firsts], 1.0, rtol=1e-5)


def test_words_that_the_teacher_cut_off_are_learned_from_their_tags(fine_tuned, teacher):
    directory, *_ = teacher("tag", "task.train_data.seq_length=8")
    run = fine_tuned("tag", init_teacher=directory)
    run.data.train.append(Sentence(WORDS[:9], ["N"] * 9, "here"))
    task = prepared(run)
    assert len(task._answers[-1]) == 6
    loader = task.build_loader(run.params.task.train_data)
    rows = [batch for batch in loader.load().take(20)]
    long = next(i for batch in rows for i in range(4) if np.sum(batch["label_ids"][i] >= 0) == 9 and (keep := batch))
    has_tag, has_teacher = task._known(keep)
    assert (int(np.sum(has_tag[long])), int(np.sum(has_teacher[long]))) == (9, 6)


def test_what_the_student_learns_is_the_teachers(fine_tuned, teacher, tmp_path):
    """From texts without labels, beside a few with wrong ones."""
    directory, _, model = teacher("classify")
    (tmp_path / "more.txt").write_text("\n".join(f"the {a} {b}" for a in WORDS for b in WORDS) + "\n")
    rate = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=1e-2"
    more = f"trainer.train_steps=300,task.teacher_share=1.0,{rate},task.train_data.global_batch_size=16"
    run = fine_tuned("classify", more, unlabelled_file=str(tmp_path / "more.txt"), init_teacher=directory)
    session = Session(run, str(tmp_path / "student"))
    session.train(evaluate=False)
    agreements = []
    for batch in session.trainer.task.build_inputs(run.params.task.validation_data):
        ours, theirs = (tf.argmax(m(batch, training=False), axis=-1).numpy() for m in (session.trainer.model, model))
        agreements += [*(ours == theirs)[batch["row_weights"].numpy() > 0]]
    assert np.mean(agreements) > 0.9


def test_soft_losses_are_least_where_student_and_teacher_agree():
    probabilities = tf.constant([[0.7, 0.2, 0.1]])
    for temperature in (0.5, 1.0, 4.0):
        logits = tf.Variable(tf.math.log(probabilities) + 3.0)
        with tf.GradientTape() as tape:
            loss = soft_losses(logits, probabilities, temperature)
        np.testing.assert_allclose(tape.gradient(loss, logits), np.zeros([1, 3]), atol=1e-5)
    certain = soft_losses(tf.constant([[50.0, -50.0]]), tf.constant([[1.0, 0.0]]), 2.0)
    assert np.isfinite(certain.numpy()).all()


@pytest.mark.parametrize("kind", ["classify", "tag"])
def test_held_out_rows_among_those_without_labels_are_reported(fine_tuned, teacher, tmp_path, kind):
    directory, *_ = teacher(kind)
    texts = [row.split("\t")[0] for row in ROWS["classify"]] if kind == "classify" else [" ".join(WORDS[:5])]
    (tmp_path / "more.txt").write_text("\n".join(["something else", *texts]) + "\n")
    run = fine_tuned(kind, init_teacher=directory, unlabelled_file=str(tmp_path / "more.txt"))
    if kind == "classify":  # rows of train.tsv and dev.tsv are the same
        for row in run.data.train:
            row.texts = ("not held out",)
    else:
        run.data.validation[:] = run.data.unlabelled[1:]
    warnings = run.params.task.report(run.data).warnings
    assert any(f"training rows, too: {len(texts)};" in warning for warning in warnings), warnings


def test_losses_are_mixed_by_what_is_known():
    hard, soft = tf.constant([4.0] * 4), tf.constant([2.0] * 4)
    has_label, has_teacher = tf.constant([True, True, False, False]), tf.constant([True, False, True, False])
    assert mixed(hard, soft, has_label, has_teacher, 0.9).numpy().tolist()[:3] == pytest.approx([2.2, 4.0, 2.0])


def test_what_does_not_fit_is_refused(fine_tuned, teacher, tmp_path):
    directory, *_ = teacher("classify")
    with pytest.raises(UserError, match="unlabelled_file=x.txt: give .*init_teacher"):
        fine_tuned("classify", unlabelled_file="x.txt")
    with pytest.raises(UserError, match="/nowhere.txt: no such file"):
        fine_tuned("classify", unlabelled_file="/nowhere.txt", init_teacher=directory)
    with pytest.raises(UserError, match=f"init_teacher={directory}: a run of another experiment"):
        fine_tuned("regress", init_teacher=directory)
    with pytest.raises(UserError, match="teacher_share=0.0"):
        fine_tuned("classify", "task.teacher_share=0.0", init_teacher=directory)

    other = [row.replace("\tc", "\td") for row in ROWS["classify"]]
    with pytest.raises(UserError, match="its labels are a, b, c, and those of this data a, b, d"):
        fine_tuned("classify", rows=other, init_teacher=directory)


def test_two_replicas_have_the_same_teacher(fine_tuned, teacher, tmp_path, monkeypatch):
    directory, *_ = teacher("classify")
    found = []
    for cpus in (1, 2):
        devices = [f"CPU:{i}" for i in range(cpus)]
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
        monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime, chosen=strategy: chosen)
        run = fine_tuned("classify", "trainer.train_steps=3,runtime.enable_xla=false", init_teacher=directory)
        session = Session(run, str(tmp_path / f"{cpus}"))
        session.train(evaluate=False)
        found.append(session.trainer.model.get_weights())
    for alone, together in zip(*found, strict=True):
        np.testing.assert_allclose(alone, together, rtol=1e-4, atol=2e-6)


def test_a_teacher_of_another_kind_is_refused(fine_tuned, teacher):
    several, *_ = teacher("several")
    one, *_ = teacher("classify")
    with pytest.raises(UserError, match="it was, and this run is not, trained on texts with several labels"):
        fine_tuned("classify", init_teacher=several)
    with pytest.raises(UserError, match="this run is, and it was not, trained on texts with several labels"):
        fine_tuned("several", init_teacher=one)
    pairs = ["text_a\ttext_b\tlabel", *(row.replace("\t", "\ta cat\t") for row in ROWS["classify"])]
    with pytest.raises(UserError, match="trained on pairs of texts"):
        fine_tuned("classify", rows=pairs, init_teacher=one)


def test_texts_without_labels_are_counted(fine_tuned, teacher, tmp_path):
    directory, *_ = teacher("classify")
    (tmp_path / "more.txt").write_text("a cat\n\n\na dog\n")
    run = fine_tuned("classify", unlabelled_file=str(tmp_path / "more.txt"), init_teacher=directory)
    assert f"{tmp_path}/more.txt: 2 texts without labels, for the teacher; 2 rows have no text" in run.data.notes
    (tmp_path / "none.txt").write_text("\n\n")
    with pytest.raises(UserError, match="unlabelled_file=.*none.txt: no row of it has a text"):
        fine_tuned("classify", unlabelled_file=str(tmp_path / "none.txt"), init_teacher=directory)


def test_a_run_that_began_with_a_teacher_does_not_go_on_without(fine_tuned, teacher, tmp_path):
    directory, *_ = teacher("classify")
    student = str(tmp_path / "student")
    Session(fine_tuned("classify", init_teacher=directory), student).train(evaluate=False)
    with pytest.raises(UserError, match=f"began with init_teacher={directory}; give it again"):
        fine_tuned("classify", model_dir=student)
