"""The training loop: what it does when training goes wrong, and what it leaves behind."""

import json
import math
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tiny import tiny_override

from shatter_tf import checkpoints, model_dir, trainer
from shatter_tf.command_line import UserError
from shatter_tf.training_step import TrainingStep

STEPS = "trainer.train_steps=8,trainer.steps_per_loop=2,trainer.checkpoint_interval=2,trainer.validation_interval=4"


def train(run, directory, evaluate=False):
    model_dir.write(str(directory), run)
    session = trainer.Session(run, str(directory))
    session.train(evaluate)
    return session


def start(run, directory):
    model_dir.write(str(directory), run)
    return trainer.Session(run, str(directory))


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_last_good_checkpoint(pretrain, tmp_path):
    session = start(pretrain(STEPS), tmp_path / "run")
    step = session.trainer.task.train_step

    def train_step(inputs, model, optimizer, metrics=None):
        logs = step(inputs, model, optimizer, metrics)
        logs["loss"] += tf.where(session.trainer.global_step >= 4, np.nan, 0.0)  # from the fifth step on
        return logs

    session.trainer.task.train_step = train_step
    with pytest.raises(UserError, match=r"loss is not finite at step 5, last good checkpoint: \S+ckpt-4; "):
        session.train(evaluate=False)
    assert checkpoints.checkpoint_step(checkpoints.latest_checkpoint(str(tmp_path / "run"))) == 4


def test_weights_that_are_not_finite_are_not_saved(pretrain, tmp_path):
    session = start(pretrain(STEPS), tmp_path / "run")
    session.trainer.model.trainable_variables[0].assign(session.trainer.model.trainable_variables[0] * np.inf)
    with pytest.raises(UserError, match=r"weights are not finite at step 0, last good checkpoint: none; "):
        session._save()
    assert checkpoints.latest_checkpoint(str(tmp_path / "run")) is None


@pytest.mark.parametrize(("entropy", "warns"), [(3.0, True), (100.0, False)])
def test_a_run_that_learns_only_frequencies_is_told_so_once(pretrain, tmp_path, capsys, entropy, warns):
    run = pretrain(STEPS + ",task.sanity_steps=3")
    corpus = pathlib.Path(run.params.task.train_data.input_path) / "corpus.json"
    corpus.write_text(json.dumps({**json.loads(corpus.read_text()), "unigram_entropy": entropy}))
    train(run, tmp_path / "run")
    assert capsys.readouterr().err.count("warning: after 4 steps the loss is ") == warns


def test_history_holds_every_evaluation_once_over_a_resume(pretrain, tmp_path):
    directory = tmp_path / "run"
    session = start(pretrain(STEPS + ",trainer.validation_interval=2"), directory)
    session.params.trainer.train_steps = 4
    session.train(evaluate=True)
    before = model_dir.read_history(str(directory))
    assert [entry["step"] for entry in before] == [2, 4]
    # As if it had been killed between an evaluation and the checkpoint that follows it.
    model_dir.write_history(str(directory), [*before, {"step": 6, "seconds": 1e6, "loss": 0.0}])
    session = trainer.Session(pretrain(STEPS + ",trainer.validation_interval=2"), str(directory))
    session.train(evaluate=True)
    history = model_dir.read_history(str(directory))
    assert [entry["step"] for entry in history] == [2, 4, 6, 8]
    assert history[:2] == before
    seconds = [entry["seconds"] for entry in history]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3] < 1e5
    assert model_dir.read_metrics(str(directory))["parameters"] == session.parameters


def test_a_timed_step_has_the_precision_of_the_run(pretrain):
    for dtype, policy in (("bfloat16", "mixed_bfloat16"), ("float32", "float32")):
        run = pretrain(f"runtime.mixed_precision_dtype={dtype},runtime.enable_xla=false")
        assert math.isfinite(TrainingStep(run.params)())
        assert tf_keras.mixed_precision.global_policy().name == policy


def sleep(seconds):
    """Returns a TensorFlow operation that takes so long."""
    return tf.numpy_function(lambda: time.sleep(seconds), [], [], stateful=True)


@pytest.mark.parametrize(("slow", "says"), [("data", True), ("step", False)])
def test_it_says_so_when_training_waits_for_data_and_only_then(pretrain, tmp_path, capsys, monkeypatch, slow, says):
    session = start(pretrain(STEPS + ",runtime.enable_xla=false"), tmp_path / "run")
    task = session.trainer.task
    build_inputs, train_step = task.build_inputs, task.train_step

    def slow_batch(batch):
        with tf.control_dependencies([sleep(1.0 if slow == "data" else 0.02)]):
            return tf.nest.map_structure(tf.identity, batch)

    def slow_step(inputs, model, optimizer, metrics=None):
        logs = train_step(inputs, model, optimizer, metrics)
        with tf.control_dependencies([*tf.nest.flatten(logs), sleep(0.2 if slow == "step" else 0.0)]):
            return tf.nest.map_structure(tf.identity, logs)

    monkeypatch.setattr(task, "build_inputs", lambda *args: build_inputs(*args).map(slow_batch).prefetch(1))
    monkeypatch.setattr(task, "train_step", slow_step)
    session.train(evaluate=False)
    last = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 8/8"))
    assert ("waiting for data" in last) == says, last
    assert says or float(session.input_seconds) < 0.1, last


def launch(data, directory, more="trainer.train_steps=4000,trainer.steps_per_loop=20"):
    override = ",".join([tiny_override(), "task.train_data.global_batch_size=4", more])
    flags = [f"--data_dir={data}", f"--model_dir={directory}", f"--params_override={override}", "--mode=train"]
    return subprocess.Popen(
        [sys.executable, "-m", "shatter_tf.train", "--experiment=shatter/pretrain", *flags],
        cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def read_until(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"it ended before {start!r}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_asks_to_be_tried_again(tmp_path, write_corpus, random_documents, number):
    data, directory = write_corpus(random_documents(shards=1, per_shard=40)), str(tmp_path / "run")
    with launch(data, directory) as process:
        read_until(process, "step 20/")
        process.send_signal(number)
        stopped_at = int(read_until(process, "stopped at step ").split()[3].rstrip(","))
        assert process.wait(timeout=60) == 75
    assert checkpoints.checkpoint_step(checkpoints.latest_checkpoint(directory)) == stopped_at

    with launch(data, directory) as process:
        assert f"from step {stopped_at}" in read_until(process, "shatter/pretrain in ")
        process.kill()


@pytest.mark.slow
def test_killed_twice_with_sigkill_it_ends_with_the_same_weights(tmp_path, write_corpus, random_documents):
    data = write_corpus(random_documents(shards=2, per_shard=40))
    more = "trainer.train_steps=100,trainer.steps_per_loop=5,trainer.checkpoint_interval=20"
    more += ",task.model.encoder.any.dropout_rate=0.1,task.model.encoder.any.attention_dropout_rate=0.1"
    with launch(data, tmp_path / "whole", more) as process:
        last = read_until(process, "step 100/")
        assert process.wait(timeout=60) == 0
    for step in (35, 70):
        with launch(data, tmp_path / "killed", more) as process:
            read_until(process, f"step {step}/")
            process.kill()
    with launch(data, tmp_path / "killed", more) as process:
        assert "from step " in read_until(process, "shatter/pretrain in ")
        again = read_until(process, "step 100/")
        assert process.wait(timeout=60) == 0
    assert last.split()[:6] == again.split()[:6]  # the loss and the accuracy of the last steps
    whole, killed = (
        tf.train.load_checkpoint(checkpoints.latest_checkpoint(str(tmp_path / name))) for name in ("whole", "killed")
    )
    names = {*whole.get_variable_to_shape_map()} - {"_CHECKPOINTABLE_OBJECT_GRAPH", f"save_counter{checkpoints._VALUE}"}
    assert len(names) > 50
    for name in names:
        np.testing.assert_array_equal(whole.get_tensor(name), killed.get_tensor(name), err_msg=name)


def test_a_run_that_was_killed_ends_with_the_same_weights(pretrain, tmp_path, monkeypatch):
    """Data, masking, dropout, optimizer and schedule all go on where they were: bit for bit, on a CPU."""
    run = pretrain(STEPS + ",task.model.encoder.any.dropout_rate=0.2,task.model.encoder.any.attention_dropout_rate=0.2")
    whole = train(run, tmp_path / "whole")

    killed = start(run, tmp_path / "killed")
    save = killed._save

    def save_and_die():
        if killed.step == 6:  # after a checkpoint at 4 and steps 5 and 6, which are lost
            raise KeyboardInterrupt
        save()

    monkeypatch.setattr(killed, "_save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        killed.train(evaluate=False)
    resumed = start(run, tmp_path / "killed")
    assert resumed.step == 4
    resumed.train(evaluate=False)

    expected, actual = whole.trainer.model.variables, resumed.trainer.model.variables
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.name)
