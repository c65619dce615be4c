"""A family and a task from outside the package (tests/toy), through every command: docs/extending.md in deeds."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from serving.cpp_loader import CppLoader, compile_loader

TOY = pathlib.Path(__file__).parent / "toy"
SENTENCES = ["the cat sat on a mat", "a big dog ran very fast", "the old tree", "then it was red"]
SMALL = "runtime.enable_xla=false,task.train_data.global_batch_size=4,task.validation_data.global_batch_size=4"
SMALL += ",trainer.steps_per_loop=2,trainer.checkpoint_interval=2,trainer.validation_interval=1000"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("toy")
    (base / "text.txt").write_text("\n\n".join(f"{s}\n{s} {i}" for i, s in enumerate(SENTENCES * 10)))
    (base / "counts").mkdir()
    for split in ("train", "dev"):
        (base / "counts" / f"{split}.txt").write_text("\n".join(SENTENCES * 4) + "\n")
    return base


def command(base, name, *flags, expected=0):
    environment = {**os.environ, "PYTHONPATH": f"{TOY}:{TOY.parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-m", f"shatter_tf.{name}", *flags],
        cwd=base, env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    return done.stdout


def kill_and_resume(base, run, *flags):
    """Trains two runs alike, one of which is killed on its way; both must end with the same weights."""
    flags = [*flags, "--mode=train"]
    command(base, "train", *flags, f"--model_dir=runs/{run}_whole")

    environment = {**os.environ, "PYTHONPATH": f"{TOY}:{TOY.parents[1]}"}
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "shatter_tf.train", *flags, f"--model_dir=runs/{run}"],
        cwd=base, env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("step 6/"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert "from step" in command(base, "train", *flags, f"--model_dir=runs/{run}")

    import tensorflow as tf

    whole, killed = (tf.train.load_checkpoint(str(base / f"runs/{name}/ckpt-40")) for name in (f"{run}_whole", run))
    for name in whole.get_variable_to_shape_map():
        if not name.startswith("_"):
            np.testing.assert_array_equal(whole.get_tensor(name), killed.get_tensor(name), err_msg=name)


@pytest.mark.slow
def test_a_family_and_a_task_from_outside_go_through_every_command(base):
    command(base, "prepare", "--input=text.txt", "--output_dir=corpus", "--vocab_size=120",
            "--validation_fraction=0.3", "--seq_length=16")  # fmt: skip
    steps = f"{SMALL},trainer.train_steps=40"
    toy = "task.model.encoder.type=toy,task.model.encoder.toy.hidden_size=12,task.model.encoder.toy.num_layers=2"

    # The family, pretrained; the task on top of it.
    kill_and_resume(base, "pretrain", "--experiment=shatter/pretrain", "--data_dir=corpus",
                    f"--params_override={steps},{toy}")  # fmt: skip
    kill_and_resume(base, "count", "--experiment=toy/count", "--data_dir=counts", "--init_checkpoint=runs/pretrain",
                    f"--params_override={steps}")  # fmt: skip
    command(base, "train", "--experiment=toy/count", "--data_dir=counts", "--init_checkpoint=runs/pretrain",
            f"--params_override={steps}", "--mode=eval", "--model_dir=runs/count")  # fmt: skip
    metrics = json.loads((base / "runs/count/metrics.json").read_text())
    assert metrics["step"] == 40
    assert metrics["loss"] == pytest.approx(metrics["count"] + metrics["long"], rel=1e-5)
    assert metrics["mean_error"] < 8

    # Served, by Python and by the loader in C++.
    program = compile_loader(str(base))
    for run, signature in (("pretrain", "fill_mask"), ("count", "serving_default")):
        command(base, "export", f"--model_dir=runs/{run}", f"--export_dir=served/{run}")
        texts = ["the [MASK] sat", "a mat"]
        flags = [f"--model=served/{run}", f"--signature={signature}", *texts]
        predicted = [json.loads(line) for line in command(base, "predict", *flags).splitlines()]
        loader = CppLoader(program, base / f"served/{run}/1")
        answers = loader.run(signature, dict(text=np.array(texts, object)))
        assert loader.run(signature, dict(text=np.array([], object))).keys() == answers.keys()
        loader.close()
        if run == "count":
            assert [row["words"] for row in predicted] == pytest.approx(answers["count"].tolist(), abs=0.06)
    assert "Toy: 2 layers of 12" in (base / "served/count/1/README.md").read_text()

    # Measured beside Shatter, and compared.
    command(base, "benchmark", "--compare=toy", "--seq_length=16", "--batch_size=2", "--rounds=1", "--json=cost.json",
            "--params_override=task.model.encoder.shatter.hidden_size=12,task.model.encoder.shatter.num_parts=4,"
            "task.model.encoder.shatter.num_layers=1,task.model.encoder.shatter.vocab_size=128")  # fmt: skip
    (measured,) = json.loads((base / "cost.json").read_text())["measurements"]
    assert measured["toy"]["parameters"] > 128 * 12
    refused = command(base, "benchmark", "--compare=tyo", expected=2)
    assert refused == ""


@pytest.mark.slow
def test_a_plugin_that_cannot_be_imported_is_named(base, tmp_path):
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[shatter_tf.plugins]\nbroken = no_such_module\n")
    done = subprocess.run(
        [sys.executable, "-m", "shatter_tf.train", "--experiment=shatter/pretrain", "--model_dir=run"],
        cwd=base, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{TOY.parents[1]}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no_such_module" in done.stderr
    assert done.stderr.count("\n") == 1
