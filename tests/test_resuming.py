"""What a run that goes on takes over, says and refuses, and which of its checkpoints is the best."""

import json
import math
import os
import pathlib
import shutil

import pytest

from shatter_tf import checkpoints
from shatter_tf.data.corpus.shards import Corpus
from shatter_tf.data.labelled import Row
from shatter_tf.errors import UserError
from shatter_tf.serving import load, saved_model
from shatter_tf.training import job, run_dir, settings
from shatter_tf.training.preemption import StopRequest
from shatter_tf.training.session import Session

STEPS = "trainer.train_steps=8,trainer.steps_per_loop=2,trainer.checkpoint_interval=2,trainer.validation_interval=2"
STEPS += ",runtime.enable_xla=false"
OLD = pathlib.Path(__file__).parent / "data/0.1"
LENGTHS = "task.train_data.seq_length=32,task.train_data.max_query_length=8,task.max_answer_length=8"  # of OLD


# === The best checkpoint ===

ENTRIES = [(1, 0.0, 0.9), (2, 0.0, 0.5), (3, 0.0, 0.5), (4, 0.0, 0.7), (5, math.nan, 0.1), (6, -1.0, 0.1)]


@pytest.mark.parametrize(
    ("metric", "comparison", "until", "best"),
    [
        ("f1", "higher", 6, 3),  # the lower loss of the highest, then the later
        ("f1", "higher", 2, 2),
        ("f1", "higher", 1, 1),
        ("f1", "lower", 6, 6),
        ("loss", "lower", 4, 3),
        ("loss", "lower", 6, 6),
        ("none", "higher", 6, None),
    ],
)
def test_ties_go_to_the_lower_loss_and_then_to_the_later(metric, comparison, until, best):
    history = [dict(step=step, f1=f1, loss=loss) for step, f1, loss in ENTRIES[:until]]
    assert (run_dir.best_entry(history, metric, comparison) or {}).get("step") == best


def evaluations(session, losses):
    """Makes a session evaluate to the same accuracy at every step, with these losses."""
    name = session.params.trainer.best_checkpoint_eval_metric
    session.evaluate = lambda: {"loss": losses[session.step], name: 0.5}


@pytest.mark.parametrize("dies", ["before the best is kept", "before the history is written"])
def test_the_best_checkpoint_is_the_same_after_a_kill(pretrain, tmp_path, monkeypatch, dies):
    losses = {2: 0.9, 4: 0.5, 6: 0.5, 8: 0.8}
    directory = str(tmp_path / "run")
    session = Session(pretrain(STEPS), directory)
    evaluations(session, losses)
    name = "save_best" if dies.startswith("before the best") else "write_history"
    do = getattr(session.saver, name)

    def die_at_6(*args):
        if session.step == 6:
            raise KeyboardInterrupt
        do(*args)

    monkeypatch.setattr(session.saver, name, die_at_6)
    with pytest.raises(KeyboardInterrupt):
        session.train(evaluate=True)

    resumed = Session(pretrain(STEPS), directory)
    evaluations(resumed, losses)
    resumed.train(evaluate=True)
    assert checkpoints.best_checkpoint(directory) == f"{directory}/best/ckpt-6"
    assert resumed.best["step"] == 6
    assert [entry["step"] for entry in run_dir.read_history(directory)] == [2, 4, 6, 8]


# === Without what it began with ===


@pytest.fixture
def fine_tuned(tmp_path):
    """A run made by an old version, whose pretraining run and vocabulary file are gone; returns how to resume it."""
    shutil.copytree(OLD / "runs/answer", tmp_path / "run")
    gone = tmp_path / "gone"

    def resolve(model_dir=str(tmp_path / "run"), more="", **flags):
        flags["params_override"] = LENGTHS + more
        return settings.resolve(
            "answer", data_dir=str(OLD / "answer"), init_checkpoint=str(gone), model_dir=model_dir, **flags
        )

    return resolve


def test_a_fine_tuned_run_needs_nothing_outside_its_directory(fine_tuned, tmp_path, capsys):
    before = run_dir.read(str(tmp_path / "run"))
    run = fine_tuned(train_steps=before.params.trainer.train_steps + 2)
    said = capsys.readouterr().out
    assert f"init_checkpoint={tmp_path}/gone" in said
    assert run.params.task.model.as_dict() == before.params.task.model.as_dict()
    assert run.vocabulary == before.vocabulary
    assert Session(run, str(tmp_path / "run")).train(evaluate=False)

    # And once more, from what it has written now.
    gone = f",task.train_data.vocab_file={tmp_path}/gone/vocab.txt"
    for _ in range(2):
        run = fine_tuned(train_steps=before.params.trainer.train_steps + 2, more=gone)
        assert run.params.task.train_data.vocab_file == f"{tmp_path}/run/vocab.txt"
        assert run.params.task.validation_data.vocab_file == f"{tmp_path}/run/vocab.txt"


def test_such_a_run_is_evaluated(fine_tuned, tmp_path, capsys):
    flags = dict(data_dir=str(OLD / "answer"), init_checkpoint=str(tmp_path / "gone"), params_override=LENGTHS)
    assert job.run("answer", str(tmp_path / "run"), "eval", StopRequest(), **flags) == 0
    assert "validation: loss" in capsys.readouterr().out


def test_a_new_run_needs_its_pretraining_run(fine_tuned, tmp_path):
    with pytest.raises(UserError, match=f"init_checkpoint={tmp_path}/gone: not a training directory"):
        fine_tuned(model_dir=str(tmp_path / "new"))
    for checkpoint in (tmp_path / "run").glob("ckpt-*"):
        checkpoint.unlink()
    with pytest.raises(UserError, match=f"init_checkpoint={tmp_path}/gone: not a training directory"):
        fine_tuned()


@pytest.mark.parametrize("part", ["ckpt-6000", "ckpt-6000.index", "best", "best/ckpt-4", "train/"])
@pytest.mark.parametrize("name", ["init_checkpoint", "model_dir"])
def test_a_part_of_a_run_is_refused_with_the_run(name, part):
    path = OLD / "runs/classify"
    with pytest.raises(UserError, match=f"^{name}={path}/{part}: .* give that: {name}={path}$"):
        run_dir.read(f"{path}/{part}", name)


# === What it says and refuses ===


@pytest.fixture
def corpus_run(pretrain, tmp_path, capsys):
    """A run of four steps; returns how to go on with it."""
    run = pretrain(STEPS.replace("train_steps=8", "train_steps=4"))
    path = run.params.task.train_data.input_path
    Session(run, str(tmp_path / "run")).train(evaluate=False)
    capsys.readouterr()

    def resolve(data_dir=path, **flags):
        return settings.resolve("pretrain", data_dir=data_dir, model_dir=str(tmp_path / "run"), **flags)

    return resolve


def test_a_larger_train_steps_says_how_the_learning_rate_jumps(corpus_run, tmp_path, capsys):
    session = Session(corpus_run(train_steps=8), str(tmp_path / "run"))
    session.train(evaluate=False)
    said = capsys.readouterr().out
    assert "trainer.train_steps=8; so far it was 4" in said
    assert "the learning rate at step 4 was 0, and is now 0.0005\n" in said

    Session(corpus_run(), str(tmp_path / "run")).train(evaluate=False)
    said = capsys.readouterr().out
    assert "nothing to train: the run is at step 8" in said
    assert "learning rate" not in said


def test_fewer_steps_than_were_taken_are_refused(corpus_run):
    with pytest.raises(UserError, match="trainer.train_steps=3: the run has already taken 4 steps"):
        corpus_run(train_steps=3)


def test_another_batch_size_is_said(corpus_run, capsys):
    corpus_run(batch_size=8)
    assert "task.train_data.global_batch_size=8; so far it was 4" in capsys.readouterr().out


def test_other_training_data_is_said(corpus_run, tmp_path, capsys):
    path = corpus_run().params.task.train_data.input_path
    shutil.copytree(path, tmp_path / "moved")
    corpus_run(data_dir=str(tmp_path / "moved"))
    assert capsys.readouterr().err == ""

    description = json.loads((tmp_path / "moved/corpus.json").read_text())
    description["train"].reverse()
    (tmp_path / "moved/corpus.json").write_text(json.dumps(description))
    corpus_run(data_dir=str(tmp_path / "moved"))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/moved" in line
    assert path in line


def test_an_old_run_says_where_its_data_was(fine_tuned, tmp_path, capsys):
    fine_tuned()
    assert f"training data is {OLD}/answer/train.json; so far it was " in capsys.readouterr().out


def test_the_hash_of_data_is_that_of_its_content():
    rows = [Row((f"text {i}", "b"), "label", f"a.tsv:{i}") for i in range(3)]
    moved = [Row(row.texts, row.label, "elsewhere.tsv:1") for row in rows]
    assert run_dir.content_hash(rows) == run_dir.content_hash(moved)
    others = [
        moved[::-1],
        moved[:2],
        [*moved[:2], Row(moved[2].texts, "other", "")],
        [*moved[:2], Row(("text 2b", ""), "label", "")],
        Corpus(9, "0", True, "NFC", 16, 0, 1.0, [], [], []),
    ]
    assert len({run_dir.content_hash(data) for data in (rows, *others)}) == 6
    assert run_dir.content_hash(object()) is None


# === Directories ===


def test_what_a_file_system_keeps_in_a_directory_does_not_count(pretrain, tmp_path):
    (tmp_path / "run/lost+found").mkdir(parents=True)
    for name in (".gitkeep", ".DS_Store"):
        (tmp_path / "run" / name).touch()
    run = pretrain()
    run_dir.check(str(tmp_path / "run"), run)
    (tmp_path / "run/diary.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        run_dir.check(str(tmp_path / "run"), run)
    with pytest.raises(UserError, match="diary.txt: a file"):
        run_dir.check(str(tmp_path / "run/diary.txt"), run)


def test_a_run_that_cannot_be_written_to_is_evaluated(corpus_run, tmp_path, capsys):
    directory = tmp_path / "run"
    (directory / "validation").write_text("in the way")
    (directory / "metrics.json.incomplete").mkdir()
    data = corpus_run().params.task.train_data.input_path
    assert job.run("pretrain", str(directory), "eval", StopRequest(), data_dir=data) == 0
    said = capsys.readouterr()
    assert "validation: loss" in said.out
    assert "metrics.json" in said.err
    assert "make room" not in said.err
    assert len(said.err.splitlines()) == 2

    # Training needs it.
    with pytest.raises(UserError, match="make room"):
        Session(corpus_run(train_steps=8), str(directory)).train(evaluate=True)


# === Checkpoints that vanish ===


def move_on(directory, step):
    """Does what training does: a newer checkpoint of a step more, and the older one is gone."""
    for path in directory.glob(f"ckpt-{step}.*"):
        path.rename(str(path).replace(f"ckpt-{step}.", f"ckpt-{step + 1}."))


def test_a_checkpoint_that_vanishes_while_it_is_looked_at(tmp_path, corpus_run, monkeypatch, capsys):
    damage = checkpoints._damage
    seen = []

    def vanish(checkpoint):
        if not seen:
            move_on(tmp_path / "run", 4)
        seen.append(os.path.basename(checkpoint))
        return damage(checkpoint)

    monkeypatch.setattr(checkpoints, "_damage", vanish)
    assert checkpoints.latest_checkpoint(str(tmp_path / "run")) == f"{tmp_path}/run/ckpt-5"
    assert seen == ["ckpt-4", "ckpt-5"]
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_vanishes_before_it_is_evaluated(tmp_path, corpus_run, monkeypatch, capsys):
    restore = Session._restore
    seen = []

    def vanish(session):
        if not seen:
            move_on(tmp_path / "run", 4)
        seen.append(os.path.basename(session.checkpoint))
        restore(session)

    monkeypatch.setattr(Session, "_restore", vanish)
    data = corpus_run().params.task.train_data.input_path
    assert job.run("pretrain", str(tmp_path / "run"), "eval", StopRequest(), data_dir=data) == 0
    assert seen == ["ckpt-4", "ckpt-5"]
    assert "validation: loss" in capsys.readouterr().out


def test_checkpoints_that_vanish_again_and_again_are_one_line():
    def load():
        return checkpoints._reader("/nowhere/ckpt-1")

    with pytest.raises(UserError, match="/nowhere/ckpt-1.*max_to_keep"):
        checkpoints.while_training(load)


def test_a_checkpoint_that_vanishes_while_it_is_exported(tmp_path, corpus_run, monkeypatch, capsys):
    """Once before it is read, and once before it is described."""
    find = load.best_or_latest_checkpoint
    read = saved_model.load_model
    found = []

    def find_and_vanish(*args):
        found.append(find(*args))
        if len(found) == 1:
            move_on(tmp_path / "run", 4)
        return found[-1]

    def read_and_vanish(*args, **kwargs):
        result = read(*args, **kwargs)
        move_on(tmp_path / "run", 5)
        return result

    monkeypatch.setattr(load, "best_or_latest_checkpoint", find_and_vanish)
    monkeypatch.setattr(saved_model, "load_model", read_and_vanish)
    lines = saved_model.export(str(tmp_path / "run"), str(tmp_path / "served"))
    assert [os.path.basename(path) for path in found] == ["ckpt-4", "ckpt-5"]
    assert f"{tmp_path}/run/ckpt-5" in lines[-1]
    assert (tmp_path / "served/1/saved_model.pb").exists()
