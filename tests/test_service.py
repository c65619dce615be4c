"""Batches made by the workers of a tf.data service are those that training would make itself."""

import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from test_pretraining import assert_same, make_loader, take
from tiny import tiny_override

from shatter_tf.data import service

ROOT = pathlib.Path(__file__).parents[1]


def free_ports(number):
    """Returns ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(number)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def read(batches, number=10_000):
    for _ in range(number):
        next(batches)


@pytest.fixture
def start():
    """Returns a function that runs a command of docs/running.md, its names replaced; it returns the process."""
    processes = []
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

    def start(which, names):
        page = re.sub(r"\\\n *", "", (ROOT / "docs/running.md").read_text())
        commands = [line for line in page.splitlines() if which in line]
        for name, value in names.items():
            commands = [command.replace(name, value) for command in commands]
        _, *arguments = shlex.split(commands[0])
        processes.append(subprocess.Popen([sys.executable, *arguments], env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def start_service(start):
    """Starts a dispatcher and two workers; returns its address, the workers, and a function that starts the second."""
    for _ in range(2):  # another program may take the dispatcher's port before it does
        ports = dict(zip(("5050", "5051", "5052"), map(str, free_ports(3)), strict=True))
        names = {**ports, **dict.fromkeys(("worker0:", "worker1:", "dispatcher:"), "localhost:")}
        second = {**names, "5051": ports["5052"]}
        dispatcher, address = start("DispatchServer", names), f"grpc://localhost:{ports['5050']}"
        deadline = time.monotonic() + 60
        while service.address_problem(address) and dispatcher.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if dispatcher.poll() is None:
            break
    assert service.address_problem(address) is None
    return address, [start("WorkerServer", names), start("WorkerServer", second)], lambda: start("WorkerServer", second)


@pytest.mark.parametrize("address", [None, "", "grpc://", "grpc://[::1:5050", "grpc://localhost:0", "localhost:x"])
def test_what_is_no_address_is_said(address):
    assert service.address_problem(address).startswith("no dispatcher of a tf.data service answers, give one as grpc:/")


@pytest.mark.slow
def test_batches_of_two_workers(start_service, write_corpus, random_documents, monkeypatch):
    address, workers, start_second = start_service
    monkeypatch.setattr(service, "_PATIENCE", 60.0)
    corpus = write_corpus(random_documents(shards=3, per_shard=17))
    here = make_loader(corpus)
    there = make_loader(corpus, enable_tf_data_service=True, tf_data_service_address=address)
    assert there.params.problems() == []
    for step in (0, 5):
        assert_same(take(there.load(start_step=step), 30), take(here.load(start_step=step), 30))

    batches = iter(there.load())
    read(batches, 30)  # a worker that is lost before it gave anything is no loss
    workers[1].kill()
    workers[1].wait()
    workers[1] = start_second()
    with pytest.raises(tf.errors.UnknownError, match=re.escape(f"{address}: a worker was started again")):
        read(batches)

    # A worker that is gone for good: the client would wait for it forever.
    batches = iter(there.load())
    next(batches)
    monkeypatch.setattr(service, "_PATIENCE", 5.0)
    for worker in workers:
        worker.kill()
    with pytest.raises(tf.errors.UnknownError, match="a worker has given nothing for 5 seconds"):
        read(batches)


@pytest.mark.slow
def test_training_that_loses_a_worker_asks_to_be_tried_again(start_service, write_corpus, random_documents, tmp_path):
    address, workers, start_second = start_service
    corpus = write_corpus(random_documents(shards=3, per_shard=17))
    settings = "runtime.enable_xla=false,trainer.train_steps=100000,trainer.steps_per_loop=10"
    settings += f",task.train_data.enable_tf_data_service=true,task.train_data.tf_data_service_address={address}"
    flags = ["--experiment=shatter/pretrain", f"--data_dir={corpus}", f"--model_dir={tmp_path / 'run'}"]
    flags += ["--mode=train", f"--params_override={tiny_override()},task.train_data.global_batch_size=8,{settings}"]
    command = [sys.executable, "-m", "shatter_tf.train", *flags]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as training:
        for line in training.stdout:
            if line.startswith("step 200/"):
                workers[1].kill()
                workers[1].wait()
                start_second()
                break
        *_, last = training.stdout
        assert training.wait(timeout=60) == 75, last
    assert f"restart all, they resume from the last checkpoint ({address}: a worker was started again" in last
