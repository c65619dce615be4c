"""What version 0.1 left behind (tests/data/make_0_1.py) is resumed, evaluated, started from, exported, compared."""

import importlib
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tf_keras

from shatter_tf.measuring import comparison
from shatter_tf.serving.load import load_text_encoder
from shatter_tf.training import run_dir

DATA = pathlib.Path(__file__).parent / "data"
sys.path.insert(0, str(DATA))
import make_0_1  # noqa: E402

EXPECTED = json.loads((DATA / "0.1/expected.json").read_text())


@pytest.fixture
def old(tmp_path, monkeypatch) -> pathlib.Path:
    """A copy of the directory, and the working directory that its paths are relative to."""
    shutil.copytree(DATA / "0.1", tmp_path / "0.1")
    shutil.unpack_archive(tmp_path / "0.1/exported.tar.gz", tmp_path / "0.1")
    monkeypatch.chdir(tmp_path / "0.1")
    return tmp_path / "0.1"


def command(name: str, *flags: str) -> None:
    importlib.import_module(f"shatter_tf.{name}").main([*flags])
    tf_keras.backend.clear_session()


def train(name: str, steps: int, *more: str) -> dict:
    flags = make_0_1.train_flags(name, steps)
    command("train", *flags, *more)
    return run_dir.read_metrics(f"runs/{name}")


@pytest.mark.parametrize("name", make_0_1.EXPERIMENTS)
def test_a_run_goes_on_as_the_old_version_would_have(old, name):
    metrics = train(name, make_0_1.MORE_STEPS)
    assert ("baseline" in metrics) == (name in ("classify", "regress"))
    for key, value in EXPECTED[name].items():
        np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)


def test_an_old_export_is_served(old, capsys):
    command("predict", "--model=exported", "the cat sat")
    answer = json.loads(capsys.readouterr().out)
    assert answer == EXPECTED["predict"]


def test_an_old_run_is_exported_as_it_was(old, capsys):
    command("export", "--model_dir=runs/classify", "--export_dir=again")
    command("predict", "--model=again", "the cat sat")
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["label"] == EXPECTED["predict"]["label"]
    assert answer["probability"] == pytest.approx(EXPECTED["predict"]["probability"], abs=2e-6)


def test_an_old_encoder_is_loaded_in_python(old):
    assert load_text_encoder("runs/pretrain")(["the cat sat"]).shape == (1, 12)


def test_an_old_grid_is_extended(old):
    grid = json.loads((old / "grid.yaml").read_text())
    (old / "grid.yaml").write_text(json.dumps({**grid, "seeds": [0, 1]}))
    command("compare", "--grid=grid.yaml", "--data_dir=corpus", "--output_dir=grid")
    results = comparison.read_results("grid")
    assert [(line["variant"], line["seed"]) for line in results] == [
        ("shatter", 0), ("bert", 0), ("shatter", 1), ("bert", 1),
    ]  # fmt: skip
