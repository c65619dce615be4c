"""Every family in every experiment: steps with XLA and in bfloat16, exports in Python and in C++."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from serving.cpp_loader import CppLoader, compile_loader
from tiny import one_step

from shatter_tf import export, predict
from shatter_tf.encoders.registry import FAMILIES
from shatter_tf.training import run_dir, settings
from shatter_tf.training.session import Session
from shatter_tf.training.timing import TrainingStep, synthetic_batch

ROOT = pathlib.Path(__file__).parents[1]
NEW = [name for name in FAMILIES if name not in ("shatter", "bert")]  # those have tests of their own
SQUAD = dict(context="the cat sat on a mat . the dog ran", qas=[])
for _i in range(4):
    SQUAD["qas"].append(dict(id=str(_i), question="the cat", answers=[dict(text="sat", answer_start=8)]))


@pytest.fixture
def answer(tmp_path, vocab_file):
    """Returns a function that resolves a tiny run of shatter/answer."""

    def make(more=""):
        for split in ("train", "dev"):
            (tmp_path / f"{split}.json").write_text(json.dumps(dict(data=[dict(paragraphs=[SQUAD])])))
        sizes = "task.train_data.seq_length=24,task.train_data.max_query_length=6,task.max_answer_length=6"
        sizes += f",task.train_data.global_batch_size=4,task.train_data.vocab_file={vocab_file}"
        sizes += ",task.model.encoder.shatter.hidden_size=12,task.model.encoder.shatter.num_parts=3"
        sizes += ",task.model.encoder.shatter.num_layers=1,task.model.encoder.shatter.intermediate_size=10"
        return settings.resolve("shatter/answer", data_dir=str(tmp_path), params_override=f"{sizes},{more}")

    return make


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("experiment", ["pretrain", "classify", "regress", "tag", "answer"])
def test_a_step_of_every_experiment(request, experiment, family):
    run = request.getfixturevalue(experiment)(more=f"task.model.encoder.type={family}")
    encoder = run.params.task.model.encoder.get()
    assert (encoder.hidden_size, encoder.num_layers, encoder.num_attention_heads) == (12, 1, 3)
    _, model, _, changed = one_step(run.params, jit_compile=experiment == "pretrain")
    still = [v.name for v, c in zip(model.trainable_variables, changed, strict=True) if not c]
    assert len(still) <= 1, still  # one number, whose first updates may be below its resolution


@pytest.mark.parametrize("family", NEW)
def test_bfloat16(pretrain, family):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    one_step(pretrain(more=f"task.model.encoder.type={family}").params, jit_compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", NEW)
def test_an_export_answers_in_c_as_in_python(tmp_path, pretrain, classify, capsys, family):
    program = compile_loader(str(tmp_path))
    for name, make, signature, text in (
        ("pretrain", pretrain, "fill_mask", "the [MASK] sat"),
        ("classify", classify, "serving_default", "the cat sat on a mat"),
    ):
        run = make(more=f"task.model.encoder.type={family},runtime.enable_xla=false,trainer.train_steps=2")
        directory = str(tmp_path / name)
        run_dir.write(directory, run)
        Session(run, directory).train(evaluate=False)
        export.main([f"--model_dir={directory}", f"--export_dir={tmp_path}/served/{name}"])
        capsys.readouterr()
        predict.main([f"--model={tmp_path}/served/{name}", f"--signature={signature}", text])
        answer = json.loads(capsys.readouterr().out)

        loader = CppLoader(program, tmp_path / f"served/{name}/1")
        found = loader.run(signature, dict(text=np.array([text, "a dog"], object)))
        loader.close()
        if name == "classify":
            expected = [answer["probabilities"][label] for label in run.labels]
        else:
            expected = list(answer["masks"][0].values())
        np.testing.assert_allclose(np.ravel(found["probabilities"][0]), expected, atol=2e-6)
        tf_keras.backend.clear_session()


@pytest.mark.slow
@pytest.mark.parametrize("family", NEW)
def test_the_compiler_of_tpus_takes_the_step(tmp_path, family):
    python = ROOT / ".venv-tpu/bin/python"
    if not python.exists():
        pytest.skip("`make tpu-compiler` has not been run")
    sizes = dict(hidden_size=16, num_layers=1, num_parts=2, intermediate_size=16, vocab_size=128)
    override = ",".join(f"task.model.encoder.shatter.{name}={size}" for name, size in sizes.items())
    override += f",task.model.encoder.type={family},task.train_data.seq_length=32,task.train_data.global_batch_size=2"
    params = settings.resolve_without_data(params_override=f"{override},runtime.mixed_precision_dtype=bfloat16")
    module = tmp_path / "step.hlo.pb"
    module.write_bytes(TrainingStep(params, synthetic_batch(params)).hlo().SerializeToString())

    script = ROOT / "shatter_tf/measuring/cross_compiler.py"
    compiled = subprocess.run([python, script, module, "tpu:v4:2x2x1"], capture_output=True, text=True, timeout=580)
    assert compiled.returncode == 0, compiled.stderr
    assert json.loads(compiled.stdout)["cycles"] > 1000


@pytest.mark.parametrize("family", NEW)
def test_a_run_that_was_killed_ends_with_the_same_weights(tmp_path, pretrain, family):
    steps = f"task.model.encoder.type={family},runtime.enable_xla=false,trainer.train_steps=4,trainer.steps_per_loop=1"
    steps += ",trainer.checkpoint_interval=2,task.model.encoder.shatter.dropout_rate=0.2"
    run = pretrain(more=steps)
    whole = Session(run, str(tmp_path / "whole"))
    whole.train(evaluate=False)

    run.params.trainer.train_steps = 2  # as if it had been killed after its first checkpoint
    Session(run, str(tmp_path / "killed")).train(evaluate=False)
    resumed = Session(pretrain(more=steps), str(tmp_path / "killed"))
    assert resumed.step == 2
    resumed.train(evaluate=False)
    for one, other in zip(whole.trainer.model.variables, resumed.trainer.model.variables, strict=True):
        np.testing.assert_array_equal(one, tf.convert_to_tensor(other), err_msg=one.name)
