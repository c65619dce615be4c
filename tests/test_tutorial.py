"""The commands and the program of docs/tutorial.md, as they stand but for the number of steps."""

import importlib
import json
import pathlib
import re
import runpy
import shlex

import pytest
import tf_keras

ROOT = pathlib.Path(__file__).parents[1]
SENTENCES = ["the cat sat on the mat", "a big dog ran very fast", "the old house was small", "they left in the morning"]
# Smaller in the ways that cost time and change nothing else.
SIZES = dict(num_layers=1, hidden_size=16, num_parts=4, intermediate_size=16)
TINY = ",".join(f"task.model.encoder.shatter.{name}={size}" for name, size in SIZES.items())
TINY += ",runtime.enable_xla=false"


def commands(page: str) -> list[list[str]]:
    """Returns the commands of a page: the indented lines that begin with python -m."""
    joined = page.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^    (python -m .+)$", joined, re.M)]


@pytest.mark.slow
def test_the_tutorial(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_text").mkdir()
    (tmp_path / "my_labels").mkdir()
    text = "\n\n".join(f"{sentence}\n{sentence} {i}" for i in range(100) for sentence in SENTENCES)
    (tmp_path / "my_text/a.txt").write_text(text)
    rows = "".join(f"{SENTENCES[i % 4]}\t{'animal' if i % 4 < 2 else 'thing'}\n" for i in range(80))
    for name in ("train", "dev"):
        (tmp_path / f"my_labels/{name}.tsv").write_text(rows)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)

    def run(_, module, *arguments):  # in this process, which saves the minute that importing TensorFlow so often takes
        importlib.import_module(module).main(list(arguments))
        tf_keras.backend.clear_session()
        return capsys.readouterr().out

    page = (ROOT / "docs/tutorial.md").read_text()
    outputs = []
    for _, *arguments in commands(page):
        steps = f"trainer.train_steps=4,trainer.steps_per_loop=2,trainer.validation_interval=2,{TINY}"
        outputs.append(run(*(re.sub(r"trainer\.train_steps=\d+", steps, argument) for argument in arguments)))
    assert len(outputs) == 9
    (masked,) = [json.loads(line) for line in outputs[4].splitlines()]
    assert len(masked["masks"][0]) == 5
    assert {json.loads(line)["label"] for line in outputs[-1].splitlines()} <= {"animal", "thing"}
    for name in ("pictures/curves.png", "pictures/partition.png", "pictures/labels/confusion.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    (program,) = re.findall(r"```python\n(.+?)```", page, re.S)
    (tmp_path / "program.py").write_text(program)
    results = runpy.run_path("program.py")
    assert results["vectors"].shape == (2, 16)
    assert results["cosines"].shape == (3,)
