"""Replicas, accumulation and machines: however a batch is shared, the step is the same; and what is refused."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import WORDS, signals_itself, train_command
from official.core import config_definitions as cfg
from tiny import PLAIN, tiny_override

from shatter_tf import checkpoints, cluster
from shatter_tf.errors import UserError
from shatter_tf.training import distribution
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training.session import Session

ROOT = pathlib.Path(__file__).parents[1]
DROPOUT = "task.model.encoder.shatter.dropout_rate=0.1,task.model.encoder.shatter.attention_dropout_rate=0.1"
RATE = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate"
STEPS = "trainer.train_steps=6,trainer.steps_per_loop=1,trainer.checkpoint_interval=2,trainer.validation_interval=3"


def start(data, directory, override, experiment="shatter/pretrain", change="", **environment):
    """Starts `python -m shatter_tf.train`, changed if need be; its output can be read from it."""
    masks = ["task.train_data.mask_rate=0.15"] if experiment == "shatter/pretrain" else []
    settings = ",".join(
        [PLAIN, *masks, tiny_override(), STEPS, DROPOUT, "task.train_data.global_batch_size=8", override]
    )
    flags = [f"--experiment={experiment}", f"--data_dir={data}", f"--model_dir={directory}"]
    return subprocess.Popen(
        [*train_command(change), *flags, f"--params_override={settings}"],
        cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def weights(directory):
    reader = tf.train.load_checkpoint(checkpoints.latest_checkpoint(str(directory)))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if not name.startswith("_")}


def assert_same_weights(directory, other):
    """Asserts it for all that a checkpoint holds except which batches come next and how many checkpoints there were."""
    ours, theirs = weights(directory), weights(other)
    assert len(ours) > 15, ours.keys()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if not name.endswith(("batches/.ATTRIBUTES/VARIABLE_VALUE", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")):
            np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=2e-6, err_msg=name)


def losses(output):
    """Returns the reported loss of each step, and every metric of pretraining."""
    lines = re.findall(r"^(step \S+  (?:validation: )?)(loss [\d.]+(?:  masked_lm_accuracy [\d.]+)?)", output, re.M)
    return {step + name: float(x) for step, said in lines for name, x in re.findall(r"(\w+) ([\d.]+)", said)}


def assert_same_losses(said, other):
    """Asserts it except for the last digit: sums in another order may round differently."""
    assert losses(said)
    assert losses(said) == pytest.approx(losses(other), abs=1.5e-4)


@pytest.fixture
def run(pretrain, tmp_path, monkeypatch, capsys):
    """Returns a function that trains with given settings on so many CPUs; it returns the directory and the output."""

    def train(name, override="", cpus=1, resolve=pretrain):
        # CPUs' collectives would remember the size of their group for as long as the process lives.
        devices, ops = [f"CPU:{i}" for i in range(cpus)], tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=ops)
        if cpus > 1:
            monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime: strategy)
        settings = f"{STEPS},{DROPOUT},task.train_data.global_batch_size=8,runtime.enable_xla=false,{override}"
        session = Session(resolve(more=settings.rstrip(",")), str(tmp_path / name))
        assert session.trainer.strategy.num_replicas_in_sync == cpus
        session.train(evaluate=True)
        monkeypatch.undo()
        return tmp_path / name, capsys.readouterr().out

    return train


@pytest.mark.parametrize("cpus", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_replicas_takes_the_same_steps(run, cpus):
    """Losses, accuracies, dropout, clipping, evaluations: up to the rounding of float32."""
    alone, said = run("alone")
    together, said_together = run("together", cpus=cpus)
    assert_same_losses(said, said_together)
    assert_same_weights(alone, together)


def test_two_replicas_fine_tune_as_one_does(run, classify):
    """The dropout before the head, too."""
    alone, _ = run("alone", resolve=classify)
    together, _ = run("together", cpus=2, resolve=classify)
    assert_same_weights(alone, together)


def test_two_replicas_embed_as_one_does(run, fine_tune):
    """Negatives are from the whole batch, and the evaluation's figures are of all rows."""
    rows = ["anchor\tpositive", *(f"the {word} {other}\ta {word} sat" for word in WORDS[:10] for other in WORDS[10:12])]
    resolve = lambda more: fine_tune("shatter/embed", rows, rows[:11], more)  # noqa: E731
    alone, _ = run("alone", resolve=resolve)
    together, _ = run("together", cpus=2, resolve=resolve)
    assert_same_weights(alone, together)
    expected, metrics = (model_dir.read_metrics(str(path)) for path in (alone, together))
    assert metrics == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("xla", "cpus"), [("true", 1), pytest.param("false", 2, marks=pytest.mark.slow)])
def test_accumulated_gradients_are_those_of_the_whole_batch(run, xla, cpus):
    settings = f"runtime.enable_xla={xla},{DROPOUT.replace('0.1', '0.0')}"
    whole, said = run("whole", settings)
    parts, said_parts = run("parts", settings + ",trainer.accumulation_steps=4", cpus)
    assert_same_losses(said, said_parts)
    assert_same_weights(whole, parts)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.train_data.global_batch_size=3", "task.train_data.global_batch_size=3 cannot be shared by 2 replicas"),
        (
            "task.train_data.global_batch_size=6,trainer.accumulation_steps=2",
            "task.train_data.global_batch_size=6 cannot be shared by 2 replicas in 2 parts each",
        ),
        ("task.validation_data.global_batch_size=5", "task.validation_data.global_batch_size=5 cannot be shared by 2"),
    ],
)
def test_batches_that_replicas_cannot_share_are_refused(pretrain, tmp_path, override, message):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with pytest.raises(UserError, match=message):
        Session(pretrain(more=override), str(tmp_path / "run"), strategy)


# A hundred for each test process, below the ports that a system gives to connections, any of which could take a port
# before the worker that it is meant for.
PORTS = itertools.count(20_000 + os.getpid() % 100 * 100)


def free_ports(number):
    ports = []
    while len(ports) < number:
        port = next(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
    return ports


def start_workers(data, directory, number, override, experiment="shatter/pretrain", changes=()):
    """Starts a number of workers; `changes` are pairs: the number of one, and what is changed in it."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(number)]}
    tasks = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(number)]
    override = f"runtime.distribution_strategy=multi_worker_mirrored,{override}"
    changes = dict(changes)
    return [
        start(data, directory, override, experiment, changes.get(i, ""), TF_CONFIG=task) for i, task in enumerate(tasks)
    ]


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_only_the_chief_writes(run, fine_tune, tmp_path):
    """Evaluations, too, of ten rows in batches of eight: one process has both rows of the second, the other none."""
    experiment = "shatter/tag"
    rng = np.random.default_rng(0)
    rows = [line for i in range(10) for line in (f"{' '.join(rng.choice(WORDS, 5))}\t{i % 4}", "")]
    alone, said = run("alone", resolve=lambda more: fine_tune(experiment, rows, more=more))
    override = f"task.train_data.vocab_file={tmp_path}/vocab.txt,task.train_data.seq_length=16"
    workers = start_workers(tmp_path, tmp_path / "run", 2, f"{override},runtime.enable_xla=false", experiment)
    outputs = [worker.communicate(timeout=900)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "waiting for 1 more worker" in outputs[0]
    assert "on 2 replicas (CPU)" in outputs[0]
    assert outputs[1] == ""
    assert_same_losses(said, outputs[0])
    assert len(losses(said)) >= 6
    assert_same_weights(alone, tmp_path / "run")
    assert {*os.listdir(alone), ".lock", "data.json"} == {*os.listdir(tmp_path / "run")}
    expected, metrics = (model_dir.read_metrics(str(path)) for path in (alone, tmp_path / "run"))
    assert metrics.keys() == expected.keys()
    assert len(metrics) > 4
    assert metrics == pytest.approx(expected, rel=1e-3, abs=1e-3)


def read_until(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return
    raise AssertionError(f"it ended before {start!r}")


@pytest.mark.slow
def test_when_one_of_several_processes_goes_all_can_be_started_again(run, tmp_path):
    """Asked to stop, all stop after the same step; if one is killed, even the first, the others notice; all resume."""
    settings = "task.train_data.global_batch_size=6,trainer.train_steps=60,trainer.checkpoint_interval=5"
    settings += ",trainer.validation_interval=30,runtime.enable_xla=false"
    alone, said = run("alone", settings)
    # How many there are may change from one start to the next.
    for number, step, worker, signal_number in (
        (2, 10, 1, signal.SIGTERM),
        (2, 27, 1, signal.SIGKILL),
        (3, 42, 0, signal.SIGKILL),
    ):
        changes = [(worker, signals_itself(step, signal_number))]
        workers = start_workers(tmp_path / "corpus", tmp_path / "run", number, settings, changes=changes)
        rest = [worker.communicate(timeout=900)[0] for worker in workers]
        codes = [75] * number
        codes[worker] = 75 if signal_number == signal.SIGTERM else -signal_number
        assert [worker.returncode for worker in workers] == codes, rest

    workers = start_workers(tmp_path / "corpus", tmp_path / "run", 2, settings)
    outputs = [worker.communicate(timeout=900)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "from step 40" in outputs[0]
    again, whole = losses(outputs[0]), losses(said)
    assert len(again) > 40
    assert again == pytest.approx({name: whole[name] for name in again}, abs=1.5e-4)
    assert_same_weights(alone, tmp_path / "run")


@pytest.mark.slow
def test_processes_that_wait_for_another_can_be_stopped(pretrain, tmp_path):
    pretrain()
    workers = start_workers(tmp_path / "corpus", tmp_path / "run", 3, "task.train_data.global_batch_size=6")
    workers[2].kill()
    workers[2].communicate()
    read_until(workers[0], "waiting for 2 more workers")
    for worker in workers[:2]:
        worker.send_signal(signal.SIGTERM)
    rest = [worker.communicate(timeout=900)[0] for worker in workers[:2]]
    assert [worker.returncode for worker in workers[:2]] == [75, 75], rest
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differ", "override"),
    [("checkpoints", ""), ("settings", "trainer.train_steps=7")],
)
def test_processes_that_differ_are_refused(run, tmp_path, differ, override):
    """One that does not see the others' model_dir would train from its own first weights."""
    settings = "task.train_data.global_batch_size=6,runtime.enable_xla=false"
    run("run", f"{settings},trainer.train_steps=2")
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    workers = []
    for i, (directory, more) in enumerate([("run", ""), ("elsewhere" if differ == "checkpoints" else "run", override)]):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}})
        more = f"runtime.distribution_strategy=multi_worker_mirrored,{settings},{more}".rstrip(",")
        workers.append(start(tmp_path / "corpus", tmp_path / directory, more, TF_CONFIG=config))
    outputs = [worker.communicate(timeout=900)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [2, 2], outputs
    for output in outputs:
        assert f"error: the processes of this run differ in their {differ}: all need the same command" in output


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (tf.errors.UnavailableError(None, None, "no answer\nmore"), distribution.WorkerLost),
        (tf.errors.UnknownError(None, None, "in f\nRuntimeError: lost\n"), distribution.WorkerLost),
        (tf.errors.DataLossError(None, None, "corrupted"), tf.errors.DataLossError),
        (tf.errors.ResourceExhaustedError(None, None, "memory"), tf.errors.ResourceExhaustedError),
    ],
)
def test_what_others_are_to_blame_for(error, becomes):
    with pytest.raises(becomes, match="^(no answer|lost|corrupted|memory)$"), distribution.with_others(True):
        raise error
    with pytest.raises(type(error)), distribution.with_others(False):
        raise error


@pytest.mark.parametrize(
    ("error", "becomes", "message"),
    [
        (
            tf.errors.UnknownError(None, None, "Could not start gRPC server"),
            UserError,
            r"localhost:\d+ in TF_CONFIG: Could",
        ),
        (ValueError("no such all-reduce"), UserError, r"multi_worker_mirrored, localhost:\d+ .*no such all-reduce"),
        (tf.errors.DeadlineExceededError(None, None, "no worker came"), distribution.WorkerLost, "no worker came"),
    ],
)
def test_machines_that_do_not_come_together(monkeypatch, error, becomes, message):
    def fail(*args, **kwargs):
        raise error

    config = {"cluster": {"worker": [f"localhost:{free_ports(1)[0]}"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    monkeypatch.setattr(distribution.distribute_utils, "get_distribution_strategy", fail)
    with pytest.raises(becomes, match=message):
        distribution.build_strategy(cfg.RuntimeConfig(distribution_strategy="multi_worker_mirrored"))


@pytest.mark.parametrize(
    ("workers", "index", "becomes", "message"),
    [
        (["localhost:{}", "localhost:{}"], 0, distribution.WorkerLost, r"localhost:\d+ did not come"),
        (["localhost", "localhost:{}"], 1, UserError, "TF_CONFIG: localhost: expected host:port"),
        (["localhost:{}", "localhost:99999"], 0, UserError, "TF_CONFIG: localhost:99999: .*out of range"),
    ],
)
def test_workers_that_do_not_come(monkeypatch, workers, index, becomes, message):
    monkeypatch.setattr(distribution, "_MOST_SECONDS_TO_COME", 0.0)
    workers = [address.format(port) for address, port in zip(workers, free_ports(2), strict=True)]
    config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(becomes, match=message):
        distribution.build_strategy(cfg.RuntimeConfig(distribution_strategy="multi_worker_mirrored"))


def test_a_port_that_is_taken_is_refused(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        config = {
            "cluster": {"worker": [f"localhost:{taken.getsockname()[1]}"]},
            "task": {"type": "worker", "index": 0},
        }
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        with pytest.raises(UserError, match=r"localhost:\d+ in TF_CONFIG: Address already in use"):
            distribution.build_strategy(cfg.RuntimeConfig(distribution_strategy="multi_worker_mirrored"))


@pytest.mark.parametrize(
    ("choices", "tf_config", "message"),
    [
        (dict(distribution_strategy="mirrord"), None, "use one_device, .*did you mean mirrored"),
        (dict(distribution_strategy="mirrored", num_gpus=3), None, "num_gpus=3, but this machine has 0"),
        (dict(distribution_strategy="tpu"), None, "runtime.tpu is not set"),
        (dict(distribution_strategy="tpu", tpu="no-such-tpu"), None, "runtime.tpu=no-such-tpu: "),
        (dict(distribution_strategy="multi_worker_mirrored"), None, "TF_CONFIG does not say which machines"),
        (dict(distribution_strategy="multi_worker_mirrored"), "{", "TF_CONFIG={: .*expected something like"),
        (
            dict(distribution_strategy="multi_worker_mirrored"),
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "worker 1, is not in its cluster",
        ),
        (
            dict(distribution_strategy="mirrored"),
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}',
            "TF_CONFIG names 2 machines: use runtime.distribution_strategy=multi_worker_mirrored",
        ),
    ],
)
def test_devices_that_are_not_there_are_refused_at_once(monkeypatch, choices, tf_config, message):
    monkeypatch.setenv("TF_CONFIG", tf_config or "")
    with pytest.raises(UserError, match=message):
        distribution.build_strategy(cfg.RuntimeConfig(**choices))


def test_a_tpu_that_is_not_there_is_refused():
    """In a process of its own: looking for a TPU begins by discarding every function of the process."""
    code = (
        "from official.core import config_definitions as cfg; from shatter_tf import console\n"
        "from shatter_tf.training import distribution\n"
        "choices = cfg.RuntimeConfig(distribution_strategy='tpu', tpu='local')\n"
        "console.run(lambda _: distribution.build_strategy(choices))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "error: runtime.tpu=local: TPUs not found" in done.stderr


@pytest.mark.parametrize(
    ("config", "chief"),
    [
        ({}, True),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}, True),
        ({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}, False),
        ({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "worker", "index": 0}}, False),
        ({"cluster": {"chief": ["a:1"], "worker": ["b:1"]}, "task": {"type": "chief", "index": 0}}, True),
    ],
)
def test_one_process_is_the_chief(monkeypatch, config, chief):
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert cluster.is_chief() == chief
