"""A signal ends the process at once, or leaves it the time that it needs, and no more."""

import signal
import subprocess
import sys
import time

import pytest

from shatter_tf.training import preemption

WAIT = """
import os, signal, sys, time
from shatter_tf.training.preemption import StopRequest
stop = StopRequest()
stop.listen()
{before}
os.kill(os.getpid(), signal.{number})
{after}
time.sleep(60)
"""
STUCK = "stopped on request, in steps that did not end; the same command resumes from the last checkpoint\n"
SAVED = "stopped on request, with nothing unsaved; the same command resumes from there\n"


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("", "", SAVED),
        ("stop.unsaved.acquire()", "time.sleep(0.1); stop.unsaved.release()", SAVED),
        ("stop.patience = 0.3; stop.unsaved.acquire()", "", STUCK),
        (  # a checkpoint that takes longer than a step may
            "stop.patience = 0.3; stop.unsaved.acquire(); stop.saving.acquire()",
            "time.sleep(1); stop.unsaved.release(); stop.saving.release()",
            SAVED,
        ),
    ],
)
def test_a_signal_ends_it(number, before, after, said):
    program = WAIT.format(before=before, after=after, number=number)
    process = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=300)
    assert (process.returncode, process.stdout.decode()) == (75, said)


# It reports this only once the first signal is handled: two pending signals of the same kind are one.
HANDLED = "while not stop.asked: time.sleep(0.01)\nprint('on')\n"


def test_a_second_signal_seconds_later_ends_it_and_says_what_is_lost():
    program = WAIT.format(before="stop.unsaved.acquire(); stop.patience = 60", after=HANDLED, number="SIGTERM")
    with subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        time.sleep(preemption._SAME_REQUEST_SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 128 + signal.SIGINT
        assert b"the steps since the last checkpoint are lost" in process.stdout.read()


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_signals_at_once_are_one_request(number):
    """As from `timeout`, which signals a process and then its group; steps are saved before it ends."""
    after = f"{HANDLED}time.sleep(1)\nprint('saved')\nstop.unsaved.release()"
    program = WAIT.format(before="stop.unsaved.acquire()", after=after, number="SIGINT")
    with subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        for _ in range(3):
            process.send_signal(getattr(signal, number))
            time.sleep(0.05)
        assert process.wait(timeout=300) == 75
        assert process.stdout.read().decode() == "saved\n" + SAVED


def test_a_second_signal_ends_it_when_nobody_reads_what_it_says():
    before = "stop.unsaved.acquire(); stop.patience = 60"
    after = f"{HANDLED}print('x' * 1_000_000)"  # more than a pipe holds
    program = WAIT.format(before=before, after=after, number="SIGTERM")
    with subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"on\n"
        time.sleep(preemption._SAME_REQUEST_SECONDS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 128 + signal.SIGTERM


def test_nobody_reads_what_it_says():
    program = "from shatter_tf.console import say\nfor i in range(99): say('x' * 9999)\nraise SystemExit(7)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdout = None
    assert (process.communicate(timeout=300)[1], process.returncode) == (b"", 7)
