"""Which way to compute is chosen, and that a run keeps it."""

import itertools
import types

import pytest
import tensorflow as tf
from official.core import config_definitions as cfg

from shatter_tf.errors import UserError
from shatter_tf.tasks.registry import RuntimeConfig
from shatter_tf.training import device, settings, trial
from shatter_tf.training.device import AUTO, Way
from shatter_tf.training.session import Session

STEPS = "trainer.train_steps=2,trainer.steps_per_loop=1"
OPEN = f"{STEPS},runtime.enable_xla=auto,runtime.mixed_precision_dtype=auto"


@pytest.fixture
def cpu(monkeypatch):
    """Returns a function that makes the CPU one with, or without, instructions for bfloat16."""

    def pretend(instructions):
        monkeypatch.setattr(device, "bfloat16_instructions", lambda: instructions)

    return pretend


@pytest.mark.parametrize(
    ("flags", "instructions"),
    [
        ("flags : fpu avx512_bf16 amx_bf16", "AMX"),
        ("flags : fpu avx512_bf16", "AVX-512 BF16"),
        ("flags : fpu avx512f", None),
    ],
)
def test_instructions_of_a_cpu(monkeypatch, flags, instructions):
    monkeypatch.setattr(device.pathlib.Path, "read_text", lambda path: flags)
    assert device.bfloat16_instructions() == instructions


@pytest.mark.parametrize(
    ("given", "instructions", "expected"),
    [
        ({}, "AMX", Way(False, "bfloat16")),
        (dict(enable_xla=True), "AMX", Way(True, "float32")),
        (dict(enable_xla=False), "AMX", Way(False, "bfloat16")),
        (dict(mixed_precision_dtype="float32"), "AMX", Way(False, "float32")),
        (dict(mixed_precision_dtype=None), "AMX", Way(False, None)),
        (dict(enable_xla=True, mixed_precision_dtype="float16"), "AMX", Way(True, "float16")),
        ({}, None, Way(AUTO, AUTO)),
        (dict(distribution_strategy="multi_worker_mirrored"), None, Way(False, "float32")),
        (dict(distribution_strategy="tpu"), None, Way(True, "bfloat16")),
    ],
)
def test_known_ways(cpu, given, instructions, expected):
    cpu(instructions)
    runtime = RuntimeConfig(**given)
    device.choose(runtime)
    assert Way(runtime.enable_xla, runtime.mixed_precision_dtype) == expected


@pytest.mark.parametrize(("capability", "precision"), [((7, 0), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_a_gpu_compiles_and_its_generation_decides(monkeypatch, capability, precision):
    details = dict(compute_capability=capability, device_name="Any GPU")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["/physical_device:GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    assert device.known_way(cfg.RuntimeConfig()) == (Way(True, precision), "Any GPU")


def test_what_is_tried_agrees_with_what_is_set():
    for xla, precision in itertools.product((AUTO, True, False), (AUTO, None, "float32", "bfloat16")):
        ways = device.candidates(RuntimeConfig(enable_xla=xla, mixed_precision_dtype=precision))
        assert len(ways) == (2 if xla == AUTO else 1)
        assert {way.enable_xla for way in ways} == ({True, False} if xla == AUTO else {xla})
        assert {way.precision for way in ways} == {"bfloat16" if precision == "bfloat16" else "float32"}


def test_a_run_keeps_its_way_on_another_machine(cpu, pretrain, tmp_path):
    cpu("AMX")
    Session(pretrain(more=OPEN), str(tmp_path / "run")).train(evaluate=False)

    cpu(None)
    corpus = pretrain().params.task.train_data.input_path

    def resume(more):
        override = f"{STEPS},task.model.encoder.shatter.max_sequence_length=32{more}"
        flags = dict(data_dir=corpus, model_dir=str(tmp_path / "run"), params_override=override)
        return settings.resolve("shatter/pretrain", **flags).params.runtime

    kept = resume("")
    assert (kept.enable_xla, kept.mixed_precision_dtype) == (False, "bfloat16")
    assert resume(",runtime.mixed_precision_dtype=float32").mixed_precision_dtype == "float32"


@pytest.mark.slow
def test_an_unknown_cpu_is_tried(cpu, pretrain, tmp_path, capsys):
    cpu(None)
    run = pretrain(more=OPEN)
    assert device.is_open(run.params.runtime)
    way, seconds = trial.fastest(run)
    assert way in (Way(True, "float32"), Way(False, "float32"))
    assert 0 < seconds < 10

    session = Session(run, str(tmp_path / "run"))
    assert "trying steps with float32, no XLA and with float32, XLA" in capsys.readouterr().out
    assert not device.is_open(run.params.runtime)
    assert "float32, " in session.describe()


@pytest.mark.slow
def test_a_trial_that_fails_says_why(pretrain):
    run = pretrain()
    run.params.task.train_data.input_path = "/nowhere"
    with pytest.raises(UserError, match=r"no step could be tried \(/nowhere"):
        trial.fastest(run)


def test_steps_within_a_budget(pretrain):
    run = pretrain()
    rows = run.params.task.rows(run.data)[1]
    steps = trial.steps_within(615.0, 0.1, run)  # 600 seconds after the start
    evaluations = 5 * rows / 3 * 0.1 / 4
    assert steps % 20 == 0
    assert steps == pytest.approx((600 - evaluations) / 0.1, abs=20)
    run.params.trainer.validation_steps = 30
    assert steps > trial.steps_within(615.0, 0.1, run)
    with pytest.raises(UserError, match="a budget of 15 s is too short"):
        trial.steps_within(15.0, 0.1, run)


def test_a_budget_sets_the_steps_and_what_follows(pretrain, monkeypatch, tmp_path):
    monkeypatch.setattr(trial, "fastest", lambda run: (Way(False, "float32"), 0.01))
    corpus = pretrain().params.task.train_data.input_path
    arguments = types.SimpleNamespace(data_dir=corpus, model_dir=str(tmp_path / "run"))

    run = settings.resolve("shatter/pretrain", **vars(arguments), budget=60.0)
    steps = run.params.trainer.train_steps
    assert 4_000 < steps <= 4_500
    assert run.chosen["train_steps"] == steps
    assert run.params.trainer.optimizer_config.learning_rate.polynomial.decay_steps == steps
    assert run.params.trainer.optimizer_config.warmup.polynomial.warmup_steps == steps // 10
    assert 0 < run.params.trainer.validation_interval < steps

    Session(run, str(tmp_path / "run")).saver.begin()
    monkeypatch.setattr(trial, "fastest", None)  # which a run that has begun does not need
    again = settings.resolve("shatter/pretrain", **vars(arguments), budget=600.0)
    assert again.params.trainer.train_steps == steps
    with pytest.raises(UserError, match="budget sets the steps, and so does train_steps"):
        settings.resolve("shatter/pretrain", data_dir=corpus, budget=60.0, train_steps=7)


def test_a_budget_is_for_one_device(pretrain):
    corpus = pretrain().params.task.train_data.input_path
    override = "runtime.distribution_strategy=tpu,runtime.tpu=local"
    with pytest.raises(UserError, match="budget is for one device; give train_steps"):
        settings.resolve("shatter/pretrain", data_dir=corpus, budget=60.0, params_override=override)
