"""LiteRT models against the layers."""

import importlib
import pathlib
import re
import runpy
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations
from serving.toy import grown, toy_servable

from shatter_tf.encoders.shatter.partition import far_parts
from shatter_tf.errors import UserError
from shatter_tf.serving import litert

TEXTS = tf.constant(["w1 w2 w3", "", " ".join(f"w{i}" for i in range(40))])


@pytest.mark.parametrize("num_parts", [3, 8])
def test_a_classifier(num_parts):
    servable = grown(toy_servable("classify", num_parts=num_parts))
    exact = litert.convert(servable, int8_weights=False)
    assert litert.difference(servable, exact, TEXTS) < 1e-5

    bias = servable.model.trainable_variables[-1]
    bias.assign_add([0.0, 1.0, 2.0])
    assert litert.difference(servable, exact, TEXTS) > 0.01
    bias.assign([np.nan] * 3)
    assert np.isnan(litert.difference(servable, exact, TEXTS))


@pytest.mark.parametrize(("length", "num_parts"), [(32, 3), (128, 8)])
def test_long_inputs_are_attended_to_in_blocks(length, num_parts):
    servable = grown(toy_servable("pretrain", seq_length=length, num_parts=num_parts, query_block_size=16))
    distance, _ = far_parts(servable.encoder.config)
    assert (distance > 0 and 16 + 2 * distance < length) == (num_parts == 8)  # whether near keys are read by themselves
    exact = litert.convert(servable, int8_weights=False)
    assert litert.difference(servable, exact, TEXTS) < 1e-4


def test_weights_of_eight_bits_are_a_quarter():
    servable = toy_servable("pretrain", hidden_size=128, intermediate_size=256)
    exact, small = (litert.convert(servable, int8_weights) for int8_weights in (False, True))
    assert len(small) < 0.4 * len(exact)
    assert 1e-5 < litert.difference(servable, small, TEXTS) < 0.5


@pytest.mark.parametrize("problem", ["missing", "full"])
def test_without_room_for_temporary_files_it_says_where(tmp_path, monkeypatch, problem):
    directory = tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    if problem == "full":
        directory.mkdir()

        def full(*args, **kwargs):
            raise tf.errors.ResourceExhaustedError(None, None, f"{directory}/x; No space left on device")

        monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(UserError, match=f"^litert=int8: .*{directory}.*TMPDIR") as refusal:
        litert.convert_and_check(toy_servable("classify"), "int8", 1e-4)
    assert "\n" not in str(refusal.value)


def test_export_writes_it_beside_the_warmup_requests(exported, tmp_path, monkeypatch, capsys):
    export = importlib.import_module("shatter_tf.export").main
    flags = [f"--model_dir={exported['regress']}", f"--export_dir={tmp_path}/served"]
    export([*flags, "--litert=float32"])
    path = tmp_path / "served/1/assets.extra/token_ids.tflite"
    line = f"LiteRT: assets.extra/token_ids.tflite, {path.stat().st_size / 1e6:.1f} MB, weights in float32, for 1 x 128"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "served/1/README.md").read_text()

    # The program of docs/serving.md, as it stands.
    page = (pathlib.Path(__file__).parents[1] / "docs/serving.md").read_text()
    (program,) = re.findall(r"```python\n([^`]+token_ids\.tflite[^`]+)```", page)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/classify").symlink_to(exported["regress"])
    (tmp_path / "served/classify").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    score = runpy.run_path("program.py")["outputs"]["score"]
    expected = tf.saved_model.load("served/1").signatures["serving_default"](text=tf.constant(["a text"]))["score"]
    np.testing.assert_allclose(score, expected, atol=1e-5)

    monkeypatch.setattr(litert, "difference", lambda *args: np.nan)
    for weights in ("float32", "int8"):
        with pytest.raises(UserError, match=f"litert={weights}: .* by nan"):
            export([*flags, f"--litert={weights}"])
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == ["1", "classify"]
