"""ONNX models against the layers."""

import importlib
import pathlib
import re
import runpy

import numpy as np
import pytest
from serving.toy import grown, toy_servable

from shatter_tf.errors import UserError
from shatter_tf.serving import onnx


def test_a_classifier():
    servable = grown(toy_servable("classify"))
    model = onnx.convert(servable)
    assert onnx.difference(servable, model) < 1e-5

    bias = servable.model.trainable_variables[-1]
    bias.assign_add([0.0, 1.0, 2.0])
    assert onnx.difference(servable, model) > 0.01
    bias.assign([np.nan] * 3)
    assert np.isnan(onnx.difference(servable, model))


def test_small_attention_is_as_exact():
    """Far below a sigmoid's midpoint ONNX Runtime's own would be wrong by a percent and more."""
    servable = grown(toy_servable("pretrain", sigmoid_bias=14.0))
    assert onnx.difference(servable, onnx.convert(servable)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["pretrain", "regress", "tag", "answer", "embed"])
def test_every_task(experiment):
    servable = grown(toy_servable(experiment))
    assert onnx.difference(servable, onnx.convert(servable)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("choices", [{}, dict(far_keys="spans", near_block_size=16, spans_per_block=2)])
def test_long_inputs_have_one_length(choices):
    servable = grown(toy_servable("pretrain", seq_length=128, num_parts=8, query_block_size=16, **choices))
    model, line = onnx.convert_and_check(servable, 1e-4)
    assert "texts of 128 tokens" in line
    assert onnx.difference(servable, model) < 1e-4


def test_export_writes_it(exported, tmp_path, monkeypatch, capsys):
    export = importlib.import_module("shatter_tf.export").main
    flags = [f"--model_dir={exported['regress']}", f"--export_dir={tmp_path}/served", "--onnx"]
    export(flags)
    path = tmp_path / "served/1/assets.extra/token_ids.onnx"
    line = f"ONNX: assets.extra/token_ids.onnx, {path.stat().st_size / 1e6:.1f} MB, for any number of texts of up to"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "served/1/README.md").read_text()

    # The program of docs/serving.md, as it stands.
    page = (pathlib.Path(__file__).parents[1] / "docs/serving.md").read_text()
    (program,) = re.findall(r"```python\n([^`]+token_ids\.onnx[^`]+)```", page)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/classify").symlink_to(exported["regress"])
    (tmp_path / "served/classify").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    import tensorflow as tf

    (score,) = runpy.run_path("program.py")["outputs"]
    texts = tf.constant(["a text", "another, longer text"])
    expected = tf.saved_model.load("served/1").signatures["serving_default"](text=texts)["score"]
    np.testing.assert_allclose(score, expected, atol=1e-5)

    monkeypatch.setattr(onnx, "difference", lambda *args: np.nan)
    with pytest.raises(UserError, match=r"onnx: .* by nan"):
        export(flags)
    assert not (tmp_path / "served/2").exists()


def test_without_the_packages_it_says_what_to_install(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnx: needs tf2onnx; pip install 'shatter_tf\[onnx\]'"):
        importlib.import_module("shatter_tf.export").main(
            [f"--model_dir={exported['regress']}", f"--export_dir={tmp_path}/served", "--onnx"]
        )
    assert not (tmp_path / "served").exists()
