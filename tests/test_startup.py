"""What commands import, in processes of their own: nothing that takes long and that they do not need."""

import subprocess
import sys

import pytest
from tiny import tiny_override

from shatter_tf import console

PROGRAM = """
import sys
from shatter_tf import console, {command}
console.run({command}.main)
print("imported", *sys.modules)
"""
HELP = """
import sys
from shatter_tf import {command}
try:
    {command}.main(["--help"])
except SystemExit:
    print(*sys.modules)
"""
# Of Model Garden, all of its tasks, each with the libraries of its metrics; and what only pictures need.
NEVER = {"official.nlp.tasks", "official.vision", "tensorflow_hub", "sacrebleu", "seqeval", "matplotlib", "keras"}


def modules(command: str, *flags: str) -> set[str]:
    program = PROGRAM.format(command=command)
    done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.slow
def test_predict_needs_tensorflow_only(exported):
    imported = modules("predict", f"--model={exported['classify_export']}", "the cat sat")
    assert "tensorflow" in imported
    assert imported & {*NEVER, "official", "tf_keras", "tensorflow_text", "tensorflow_datasets", "sklearn"} == set()


@pytest.mark.slow
def test_neither_does_predicting_a_file(exported, tmp_path):
    (tmp_path / "texts.csv").write_text("text\nthe cat sat\n")
    imported = modules("predict", f"--model={exported['classify_export']}", f"--input={tmp_path}/texts.csv")
    assert imported & {*NEVER, "official", "tf_keras", "tensorflow_text", "tensorflow_datasets", "sklearn"} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "classify"])
def test_training_needs_no_library_of_metrics(exported, tmp_path, name):
    base = exported[name].parents[1]
    settings = tiny_override(max_sequence_length=128) + ",runtime.enable_xla=false"
    imported = modules(
        "train",
        f"--experiment=shatter/{name}",
        f"--model_dir={tmp_path}/run",
        f"--data_dir={base / ('corpus' if name == 'pretrain' else name)}",
        *([] if name == "pretrain" else [f"--init_checkpoint={exported['pretrain']}"]),
        "--mode=train",
        "--train_steps=1",
        f"--params_override={settings},task.train_data.global_batch_size=4,task.validation_data.global_batch_size=4",
    )
    assert "tf_keras" in imported
    assert imported & {*NEVER, "sklearn", "scipy.stats"} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["prepare", "train", "export", "predict", "evaluate", "visualize", "compare", "benchmark"]
)
def test_help_needs_no_library(command):
    program = HELP.format(command=command)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert set(done.stdout.splitlines()[-1].split()) & {"tensorflow", "numpy", "yaml", "official"} == set()


def test_a_hidden_library_is_back_afterwards():
    with console.importing(without="tabnanny"), pytest.raises(ModuleNotFoundError):
        import tabnanny
    import tabnanny  # noqa: F401
