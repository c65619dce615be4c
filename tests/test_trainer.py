"""The training loop: what it does when training goes wrong, and what it leaves behind."""

import contextlib
import json
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import time
import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from conftest import signals_itself, train_command
from tiny import tiny_override

from shatter_tf import checkpoints
from shatter_tf.errors import UserError
from shatter_tf.tasks.masked_lm import PretrainTask
from shatter_tf.training import loop
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training.session import Session
from shatter_tf.training.timing import TrainingStep

NO_XLA = "runtime.enable_xla=false"  # which takes longer to compile a toy than to train it
STEPS = "trainer.train_steps=8,trainer.steps_per_loop=2,trainer.checkpoint_interval=2,trainer.validation_interval=4"
STEPS += f",{NO_XLA}"


def train(run, directory, evaluate=False):
    model_dir.write(str(directory), run)
    session = Session(run, str(directory))
    session.train(evaluate)
    return session


def start(run, directory):
    model_dir.write(str(directory), run)
    return Session(run, str(directory))


def poison(session, first, last, what="loss"):
    """Makes the loss of the steps from `first` to `last`, counted from 1, not finite; or only its gradients."""
    loss_sums = session.trainer.task.loss_sums

    def poisoned(inputs, outputs):
        step = session.trainer.global_step + 1
        factor = tf.where((step >= first) & (step <= last), np.inf, 1.0)
        loss = loss_sums(inputs, outputs)["loss"]
        if what == "loss":
            return dict(loss=loss * factor)

        @tf.custom_gradient
        def grow(x):
            return tf.identity(x), lambda upstream: upstream * factor

        return dict(loss=grow(loss))

    session.trainer.task.loss_sums = poisoned


def values(session):
    return [variable.numpy() for variable in [*session.trainer.model.variables, *session.trainer.optimizer.variables()]]


@pytest.mark.parametrize(("what", "xla"), [("loss", "true"), ("gradients", "false")])
def test_steps_that_are_not_finite_are_skipped_and_counted(pretrain, tmp_path, capsys, monkeypatch, what, xla):
    session = start(pretrain(STEPS + f",runtime.enable_xla={xla}"), tmp_path / "run")
    poison(session, 5, 6, what)
    before = {}
    report = loop.Loop._report

    def watch(self, logs, *args):
        before[session.step] = values(session)
        return report(self, logs, *args)

    monkeypatch.setattr(loop.Loop, "_report", watch)
    session.train(evaluate=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines if "skipped 2 (not finite)" in line] == ["6/8"]
    assert sum("skipped" in line for line in lines) == 1
    changed = [not np.array_equal(a, b) for a, b in zip(before[4], before[6], strict=True)]
    variables = [*session.trainer.model.variables, *session.trainer.optimizer.variables()]
    names = {variable.name.split("/")[-1] for variable, c in zip(variables, changed, strict=True) if c}
    assert names == {"iter:0", "batches:0"}  # the schedule goes on, and so does dropout
    assert any(not np.array_equal(a, b) for a, b in zip(before[6], before[8], strict=True))
    assert all(np.all(np.isfinite(value)) for value in before[8])


@pytest.mark.parametrize("last", [100, 7])  # with 7, the loop that reports it ends in a step that is finite
def test_many_steps_in_a_row_that_are_not_finite_end_the_run_and_leave_the_batch(pretrain, tmp_path, last):
    session = start(pretrain(STEPS + ",trainer.max_skipped_steps=3"), tmp_path / "run")
    poison(session, 5, last)
    rows = "rows 16 to 19 of training, seed 0"
    message = (
        rf"not finite in 3 steps in a row from step 5 on, .* checkpoint: \S+ckpt-6; .*{rows}.* in \S+not_finite.npz; "
    )
    with pytest.raises(UserError, match=message):
        session.train(evaluate=False)
    assert checkpoints.checkpoint_step(checkpoints.latest_checkpoint(str(tmp_path / "run"))) == 6
    saved = np.load(tmp_path / "run/not_finite.npz")
    batch = next(iter(session.trainer.task.build_inputs(session.params.task.train_data, start_step=4)))
    assert set(saved) == {*batch, "step", "first_row", "seed"}
    assert (saved["step"], saved["first_row"], saved["seed"]) == (5, 16, 0)
    for name, array in batch.items():
        np.testing.assert_array_equal(saved[name], array)


def test_data_that_cannot_be_read_is_said(pretrain, tmp_path):
    """Its size is right, so that the damage cannot be seen beforehand."""
    run = pretrain(STEPS)
    session = start(run, tmp_path / "run")
    for shard in pathlib.Path(run.params.task.train_data.input_path).glob("train-*"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(
        UserError, match="the data cannot be read after step .*corrupted record .*; fix it, and the same"
    ):
        session.train(evaluate=False)


def test_validation_data_that_cannot_be_read_is_said(pretrain, tmp_path):
    run = pretrain(STEPS)
    session = start(run, tmp_path / "run")
    for shard in pathlib.Path(run.params.task.validation_data.input_path).glob("validation-*"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match="the data cannot be read after step 0 .*corrupted record"):
        session.evaluate()


def test_an_evaluation_that_is_not_finite_is_never_the_best(pretrain, tmp_path, monkeypatch):
    session = start(pretrain(STEPS), tmp_path / "run")
    name, best = session.params.trainer.best_checkpoint_eval_metric, []
    for step, value in enumerate((math.nan, 0.2, math.nan, 0.1, 0.3)):
        session.trainer.global_step.assign(step)
        monkeypatch.setattr(session, "evaluate", lambda value=value: {"loss": 1.0, name: value})
        session.evaluate_in_training()
        best.append(session.saver._best_manager.latest_checkpoint or "")
    assert [re.sub(r".*-", "", path) for path in best] == ["", "1", "1", "1", "4"]


def test_weights_that_are_not_finite_are_not_saved(pretrain, tmp_path):
    session = start(pretrain(STEPS), tmp_path / "run")
    session.trainer.model.trainable_variables[0].assign(session.trainer.model.trainable_variables[0] * np.inf)
    with pytest.raises(UserError, match=r"is not finite at step 0, last good checkpoint: none; "):
        session.saver.save()
    assert checkpoints.latest_checkpoint(str(tmp_path / "run")) is None


@pytest.mark.parametrize(("entropy", "said"), [(3.0, "not even"), (4.15, "and nothing else"), (100.0, "")])
def test_a_run_that_learns_at_most_frequencies_is_told_so_once(pretrain, tmp_path, capsys, entropy, said):
    corpus = pathlib.Path(pretrain().params.task.train_data.input_path) / "corpus.json"
    corpus.write_text(json.dumps({**json.loads(corpus.read_text()), "unigram_entropy": entropy}))
    train(pretrain(STEPS + ",task.sanity_steps=3"), tmp_path / "run")
    warned = capsys.readouterr().err
    assert warned.count("warning: after 4 steps the loss is ") == bool(said)
    assert said in warned


def test_loops_end_where_anything_is_due(pretrain, tmp_path, monkeypatch):
    steps = "trainer.train_steps=8,trainer.steps_per_loop=5,trainer.summary_interval=4,trainer.checkpoint_interval=3"
    session = start(pretrain(f"{STEPS},{steps},trainer.validation_interval=7,trainer.max_to_keep=9"), tmp_path / "run")
    summarized = []
    monkeypatch.setattr(session.saver, "summarize", lambda name, _: summarized.append((name, session.step)))
    session.train(evaluate=True)
    assert [step for name, step in summarized if name == "train"] == [4, 8]
    saved = {checkpoints.checkpoint_step(path) for path in session.saver._manager.checkpoints}
    assert saved == {3, 6, 7, 8}
    assert [entry["step"] for entry in model_dir.read_history(str(tmp_path / "run"))] == [7, 8]


def test_history_holds_every_evaluation_once_over_a_resume(pretrain, tmp_path):
    directory = tmp_path / "run"
    session = start(pretrain(STEPS + ",trainer.validation_interval=2"), directory)
    session.params.trainer.train_steps = 4
    session.train(evaluate=True)
    before = model_dir.read_history(str(directory))
    assert [entry["step"] for entry in before] == [2, 4]
    # As if it had been killed between an evaluation and the checkpoint that follows it.
    model_dir.write_history(str(directory), [*before, {"step": 6, "seconds": 1e6, "loss": 0.0}])
    session = Session(pretrain(STEPS + ",trainer.validation_interval=2"), str(directory))
    session.train(evaluate=True)
    history = model_dir.read_history(str(directory))
    assert [entry["step"] for entry in history] == [2, 4, 6, 8]
    assert history[:2] == before
    seconds = [entry["seconds"] for entry in history]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3] < 1e5
    assert model_dir.read_metrics(str(directory))["parameters"] == session.parameters


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_half_precision(pretrain, tmp_path, capsys, dtype):
    """Weights stay float32; float16 finds a loss scale that its gradients tolerate."""
    rate = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=0.02"
    steps = "trainer.train_steps=60,trainer.steps_per_loop=10,trainer.validation_interval=60"
    session = start(pretrain(f"{NO_XLA},{steps},{rate},runtime.mixed_precision_dtype={dtype}"), tmp_path / "run")
    session.train(evaluate=True)
    assert tf_keras.mixed_precision.global_policy().compute_dtype == dtype
    assert {variable.dtype for variable in session.trainer.model.trainable_variables} == {tf.float32}
    scale = session.trainer.loss_scale
    assert scale is None if dtype == "bfloat16" else float(scale.value) > 1
    losses = [
        float(line.split()[3])
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("step ") and "left" in line
    ]
    assert losses[-1] < losses[0] - 0.3


def test_a_run_that_goes_on_in_float16_has_float16s_scale(pretrain, tmp_path):
    """The checkpoint of a run in another precision has no scale."""
    directory = str(tmp_path / "run")
    Session(pretrain(STEPS), directory).train(evaluate=False)
    float16 = "runtime.mixed_precision_dtype=float16"
    session = Session(pretrain(f"{STEPS},{float16}"), directory)
    assert session.step == 8
    assert float(session.trainer.loss_scale.value) == 2**15
    session.trainer.loss_scale.value.assign(64.0)
    model_dir.write(directory, session.run)
    session.saver.save()
    resumed = Session(pretrain(f"{STEPS},{float16}"), directory)
    assert float(resumed.trainer.loss_scale.value) == 64
    back = Session(pretrain(STEPS), directory)
    assert back.step == 8
    assert back.trainer.loss_scale is None


def test_too_little_room_for_checkpoints_is_said_before_training(pretrain, tmp_path, monkeypatch):
    session = start(pretrain(STEPS), tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1_000))
    with pytest.raises(UserError, match="checkpoints will take 0 MB, and 0 MB are free; make room, or lower"):
        session.train(evaluate=False)


def test_a_metric_that_is_none_is_refused_with_those_there_are(pretrain, tmp_path):
    with pytest.raises(UserError, match="=masked_accuracy: use loss, masked_lm_accuracy .did you mean masked_lm"):
        start(pretrain(STEPS + ",trainer.best_checkpoint_eval_metric=masked_accuracy"), tmp_path / "run")


def test_a_timed_step_has_the_precision_of_the_run(pretrain):
    for dtype, policy in (("bfloat16", "mixed_bfloat16"), ("float32", "float32")):
        run = pretrain(f"runtime.mixed_precision_dtype={dtype},runtime.enable_xla=false")
        assert math.isfinite(TrainingStep(run.params)())
        assert tf_keras.mixed_precision.global_policy().name == policy


def sleep(seconds):
    """Returns a TensorFlow operation that takes this long."""
    return tf.numpy_function(lambda: time.sleep(seconds), [], [], stateful=True)


@pytest.mark.parametrize(("slow", "says"), [("data", True), ("step", False)])
def test_it_says_so_when_training_waits_for_data_and_only_then(pretrain, tmp_path, capsys, monkeypatch, slow, says):
    build_inputs = PretrainTask.build_inputs
    train_step = PretrainTask.train_step

    def slow_batch(batch):
        with tf.control_dependencies([sleep(0.5 if slow == "data" else 0.02)]):
            return tf.nest.map_structure(tf.identity, batch)

    def slow_step(*args, **kwargs):
        logs = train_step(*args, **kwargs)
        with tf.control_dependencies([*tf.nest.flatten(logs), sleep(0.5 if slow == "step" else 0.0)]):
            return tf.nest.map_structure(tf.identity, logs)

    # On the class, because a session reads its data from the beginning.
    monkeypatch.setattr(
        PretrainTask,
        "build_inputs",
        lambda self, params, input_context=None, start_step=0: (
            build_inputs(self, params, input_context, start_step).map(slow_batch).prefetch(1)
        ),
    )
    monkeypatch.setattr(PretrainTask, "train_step", slow_step)
    # In one loop, after the first step: what is done between loops would give batches the time to be ready.
    monkeypatch.setattr(loop, "MOST_LOOP_SECONDS", 1e9)
    monkeypatch.setattr(loop, "WORTH_SAYING", 0.2)  # which a busy machine does not reach
    one_loop = ",trainer.steps_per_loop=8,trainer.checkpoint_interval=8,trainer.validation_interval=8"
    session = start(pretrain(STEPS + one_loop), tmp_path / "run")
    session.train(evaluate=False)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("step 8/8")
    waiting = re.search(r"waiting for data (\d+)%", last)
    assert bool(waiting) == says, last
    assert not says or int(waiting[1]) > 50, last


@contextlib.contextmanager
def launch(data, directory, more=f"{NO_XLA},trainer.train_steps=4000,trainer.steps_per_loop=20", change=""):
    """Starts a run, which is killed when the context ends."""
    override = ",".join([tiny_override(), "task.train_data.global_batch_size=4", more])
    flags = [f"--data_dir={data}", f"--model_dir={directory}", f"--params_override={override}", "--mode=train"]
    with subprocess.Popen(
        [*train_command(change), "--experiment=shatter/pretrain", *flags],
        cwd=pathlib.Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def read_until(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"it ended before {start!r}")


@pytest.mark.slow
def test_the_one_thread_of_one_core_does_not_count_its_steps_as_waiting(tmp_path, write_corpus, random_documents):
    data, cores = write_corpus(random_documents(shards=1, per_shard=40)), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # the process inherits it
    try:
        with launch(data, tmp_path / "run", f"{NO_XLA},trainer.train_steps=200,trainer.steps_per_loop=20") as process:
            said = process.communicate(timeout=300)[0]
    finally:
        os.sched_setaffinity(0, cores)
    assert process.returncode == 0, said
    loops = [line for line in said.splitlines() if line.startswith("step ") and "left" in line]
    assert loops[-1].startswith("step 200/200")
    waiting = [re.search(r"waiting for data (\d+)%", line) for line in loops]
    # The least of ten loops, because other processes may want the core, too.
    assert min(int(share[1]) if share else 0 for share in waiting) < 50, said


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_a_signal_saves_a_checkpoint_and_asks_to_be_tried_again(tmp_path, write_corpus, random_documents, numbers):
    """So do several at once, as from `timeout`."""
    data, directory = write_corpus(random_documents(shards=1, per_shard=40)), str(tmp_path / "run")
    with launch(data, directory) as process:
        read_until(process, "step 20/")
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.02)  # until it is handled
        stopped_at = int(read_until(process, "stopped at step ").split()[3].rstrip(","))
        assert process.wait(timeout=300) == 75
        assert process.stdout.read() == ""  # it is reported once
    assert checkpoints.checkpoint_step(checkpoints.latest_checkpoint(directory)) == stopped_at

    with launch(data, directory) as process:
        assert f"from step {stopped_at}" in read_until(process, "shatter/pretrain in ")


# The first step does not end before the signal comes.
FIRST_STEP_HELD = """
train_step = trainer.Trainer.train_step
def train_and_wait(*args):
    train_step(*args)
    tf.numpy_function(lambda: time.sleep(600), [], [])
trainer.Trainer.train_step = train_and_wait
"""


@pytest.mark.slow
def test_a_signal_before_there_is_anything_to_save_is_handled_at_once(tmp_path, write_corpus, random_documents):
    """While libraries are imported, and while the first step is compiled."""
    data, directory = write_corpus(random_documents(shards=1, per_shard=40)), tmp_path / "run"
    for change, begun in (
        ("", lambda process: handles_sigterm(process.pid)),
        (FIRST_STEP_HELD, lambda process: (directory / "experiment.json").exists()),
    ):
        with launch(data, directory, "trainer.train_steps=4000", change) as process:
            while not begun(process):
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=300)[0]
        assert process.returncode == 75, said
        assert "nothing unsaved" in said


def handles_sigterm(pid):
    """Whether the process blocks the signal, for which one of its threads then waits."""
    blocked = re.search(r"SigBlk:\s*(\w+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_nobody_reads_what_training_says(tmp_path, write_corpus, random_documents):
    """Ctrl-C ends `tee`, too: the checkpoint is written all the same."""
    data, directory = write_corpus(random_documents(shards=1, per_shard=40)), str(tmp_path / "run")
    with launch(data, directory) as process:
        read_until(process, "step 20/")
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 75
    assert checkpoints.checkpoint_step(checkpoints.latest_checkpoint(directory)) >= 20


@pytest.mark.slow
def test_killed_twice_with_sigkill_it_ends_with_the_same_weights(tmp_path, write_corpus, random_documents):
    data = write_corpus(random_documents(shards=2, per_shard=40))
    more = "trainer.train_steps=100,trainer.steps_per_loop=5,trainer.checkpoint_interval=20"
    more += ",task.model.encoder.shatter.dropout_rate=0.1,task.model.encoder.shatter.attention_dropout_rate=0.1"
    with launch(data, tmp_path / "whole", more) as process:
        last = read_until(process, "step 100/")
        assert process.wait(timeout=300) == 0
    for step in (35, 70):
        with launch(data, tmp_path / "killed", more, signals_itself(step, signal.SIGKILL)) as process:
            said = process.communicate(timeout=300)[0]
            assert process.returncode == -signal.SIGKILL, said
    with launch(data, tmp_path / "killed", more) as process:
        assert "from step 60" in read_until(process, "shatter/pretrain in ")
        again = read_until(process, "step 100/")
        assert process.wait(timeout=300) == 0
    assert last.split()[:6] == again.split()[:6]  # the loss and the accuracy of the last steps
    whole, killed = (
        tf.train.load_checkpoint(checkpoints.latest_checkpoint(str(tmp_path / name))) for name in ("whole", "killed")
    )
    names = {*whole.get_variable_to_shape_map()} - {"_CHECKPOINTABLE_OBJECT_GRAPH", f"save_counter{checkpoints._VALUE}"}
    assert len(names) > 30
    for name in names:
        np.testing.assert_array_equal(whole.get_tensor(name), killed.get_tensor(name), err_msg=name)


@pytest.mark.parametrize("experiment", ["pretrain", "classify", "tag"])
def test_a_run_that_was_killed_ends_with_the_same_weights(
    pretrain, classify, fine_tune, tmp_path, monkeypatch, experiment
):
    """Data, masking, dropout, optimizer and schedule all resume where they were: bit for bit, on a CPU."""
    more = STEPS + ",task.model.encoder.shatter.dropout_rate=0.2,task.model.encoder.shatter.attention_dropout_rate=0.2"
    if experiment == "tag":
        words = [f"the\tA\ncat\tB\n{'sat' if i % 2 else 'ran'}\tA\n" for i in range(12)]
        run = fine_tune("shatter/tag", words, more=more + ",task.model.head_dropout=0.2")
    else:
        run = dict(pretrain=pretrain, classify=classify)[experiment](more=more)
    whole = train(run, tmp_path / "whole")

    killed = start(run, tmp_path / "killed")
    save = killed.saver.save

    def save_and_die():
        if killed.step == 6:  # after a checkpoint at 4 and steps 5 and 6, which are lost
            raise KeyboardInterrupt
        save()

    monkeypatch.setattr(killed.saver, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        killed.train(evaluate=False)
    resumed = start(run, tmp_path / "killed")
    assert resumed.step == 4
    resumed.train(evaluate=False)

    expected, actual = whole.trainer.model.variables, resumed.trainer.model.variables
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.name)


def test_iterators_do_not_autotune(pretrain, tmp_path):
    """Otherwise destroying one would wait, about every other time, for as long as its tuning sleeps."""
    session = start(pretrain(NO_XLA), tmp_path).trainer
    for dataset in (session.train_dataset, session.eval_dataset):
        assert dataset.options().autotune.enabled is False


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "flipped":
        data[len(data) // 2] ^= 0xFF
    else:
        data = b""
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("how", ["cut", "flipped", "emptied"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, file, how):
    weights = tf.Variable(tf.random.stateless_normal([500, 20], [0, 0]))
    for step in (20, 40):
        tf.train.Checkpoint(weights=weights).write(str(tmp_path / f"ckpt-{step}"))
    (tmp_path / "checkpoint").write_text("half a li")  # TensorFlow's own list is not relied on
    assert checkpoints.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-40")
    damage(tmp_path / f"ckpt-40.{file}", how)
    assert checkpoints.latest_checkpoint(str(tmp_path)) == str(tmp_path / "ckpt-20")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/ckpt-40 is damaged and left aside (")
    (tmp_path / "ckpt-20.data-00000-of-00001").unlink()
    with pytest.raises(UserError, match="all of its checkpoints are damaged"):
        checkpoints.latest_checkpoint(str(tmp_path))


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(pretrain, tmp_path):
    """And ends as if nothing had happened."""
    run = pretrain(STEPS)
    whole = train(run, tmp_path / "whole")
    broken = start(pretrain(STEPS), tmp_path / "broken")
    broken.params.trainer.train_steps = 6
    broken.train(evaluate=False)
    damage(tmp_path / "broken/ckpt-6.data-00000-of-00001", "flipped")
    resumed = start(pretrain(STEPS), tmp_path / "broken")
    assert resumed.step == 4
    resumed.train(evaluate=False)
    for one, other in zip(values(whole), values(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_full_disk_stops_training_with_one_line_and_the_last_checkpoint_whole(
    tmp_path, write_corpus, random_documents
):
    data, directory = write_corpus(random_documents(shards=1, per_shard=40)), tmp_path / "run"
    more = f"{NO_XLA},trainer.train_steps=100000,trainer.steps_per_loop=20,trainer.checkpoint_interval=20"
    more += ",trainer.summary_interval=100000"  # TensorBoard's files, too, would grow beyond the limit
    with launch(data, directory, more) as process:
        read_until(process, "step 60/")
        # No file may grow beyond 10 kB from here on, the closest this process can come to a full disk.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
        line = read_until(process, "error: ")
        assert process.wait(timeout=300) == 2
    assert "cannot write a checkpoint at step " in line
    assert "make room, and the same command resumes from there" in line
    latest = checkpoints.latest_checkpoint(str(directory))
    assert f"last good checkpoint: {latest};" in line
    with launch(data, directory, more) as process:
        assert f"from step {checkpoints.checkpoint_step(latest)}" in read_until(process, "shatter/pretrain in ")


@pytest.mark.slow
def test_a_store_that_does_not_answer_asks_to_be_tried_again(tmp_path, write_corpus, random_documents):
    data, directory = write_corpus(random_documents(shards=1, per_shard=40)), tmp_path / "run"
    more = f"{NO_XLA},trainer.train_steps=60,trainer.steps_per_loop=20,trainer.checkpoint_interval=20"
    with launch(data, directory, more, change=_NO_ANSWER) as process:
        line = read_until(process, "stopped: ")
        assert process.wait(timeout=300) == os.EX_TEMPFAIL
    assert line == "stopped: no answer; the same command resumes from the last checkpoint\n"
    with launch(data, directory, more) as process:
        assert "from step 20" in read_until(process, "shatter/pretrain in ")
        assert process.wait(timeout=300) == 0


# As from gs:// after ten attempts.
_NO_ANSWER = """
save = tf.train.CheckpointManager.save
def save_once(manager, checkpoint_number):
    if checkpoint_number > 20:
        raise tf.errors.AbortedError(None, None, "no answer")
    return save(manager, checkpoint_number=checkpoint_number)
tf.train.CheckpointManager.save = save_once
"""
