"""What a run leaves behind, whole, half written or damaged."""

import json
import signal
import subprocess
import sys

import pytest

from shatter_tf.errors import UserError
from shatter_tf.training import run_dir as model_dir


@pytest.mark.parametrize(
    "left",
    [
        [],
        ["vocab.txt.incomplete"],
        ["vocab.txt"],
        ["vocab.txt", "params.yaml.incomplete"],
        ["vocab.txt", "params.yaml", "experiment.json.incomplete"],
    ],
)
def test_a_directory_whose_first_writing_was_cut_short_can_be_begun_again(pretrain, tmp_path, left):
    run = pretrain()
    model_dir.write(str(tmp_path / "whole"), run)
    (tmp_path / "run").mkdir()
    for name in left:
        content = (tmp_path / "whole" / name.removesuffix(".incomplete")).read_text()
        (tmp_path / "run" / name).write_text(content[:20] if name.endswith(".incomplete") else content)
    model_dir.check(str(tmp_path / "run"), run)
    model_dir.write(str(tmp_path / "run"), run)
    assert model_dir.read(str(tmp_path / "run")).vocabulary == run.vocabulary


@pytest.mark.parametrize("files", [{"vocab.txt": "[PAD]\nmine\n"}, {"params.yaml": "mine: 1"}, {"letter.txt": "dear"}])
def test_what_is_not_ours_is_not_written_over(pretrain, tmp_path, files):
    run = pretrain()
    (tmp_path / "run").mkdir()
    for name, content in files.items():
        (tmp_path / "run" / name).write_text(content)
    with pytest.raises(UserError, match="not empty|vocab.txt"):
        model_dir.check(str(tmp_path / "run"), run)


def test_names_that_tensorflow_takes_for_patterns_are_refused(pretrain, tmp_path):
    """TensorFlow would write checkpoints there, and not find them again."""
    with pytest.raises(UserError, match=r"^model_dir=\S+lr.1e-3.: TensorFlow takes \[ \] for a pattern of names"):
        model_dir.check(str(tmp_path / "lr[1e-3]"), pretrain())


def test_a_run_may_go_on_in_less_memory_but_not_as_another_model(pretrain, tmp_path):
    model_dir.write(str(tmp_path), pretrain())
    any_ = "task.model.encoder.any"
    model_dir.check(str(tmp_path), pretrain(f"{any_}.recompute_blocks=true,{any_}.query_block_size=8"))
    model_dir.check(str(tmp_path), pretrain(f"{any_}.max_sequence_length=4096,{any_}.near_block_size=32"))
    bert = pretrain("task.model.encoder.type=bert")
    model_dir.write(str(tmp_path / "bert"), bert)
    model_dir.check(str(tmp_path / "bert"), bert)
    with pytest.raises(UserError, match="holds another model .encoder.shatter.norm_first was True, not False"):
        model_dir.check(str(tmp_path), pretrain(f"{any_}.recompute_blocks=true,{any_}.norm_first=false"))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("experiment.json", "[]", "damaged, or made by another version"),
        ("experiment.json", '{"experiment": "shatter/pretrain", "lower_case": true}', "vocabulary_sha256"),
        ("params.yaml", "", "params.yaml holds no settings"),
        ("params.yaml", "trainer: 5", "params.yaml holds no settings"),
        ("params.yaml", "nothing", "params.yaml holds no settings"),
    ],
)
def test_a_damaged_run_is_refused(pretrain, tmp_path, file, content, message):
    model_dir.write(str(tmp_path), pretrain())
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=message):
        model_dir.read(str(tmp_path))


@pytest.mark.parametrize("line", ['{"step": 5, "sec', '{"step": 5}', "[1]", '{"step": "5", "seconds": 1}'])
def test_a_damaged_history_is_refused(tmp_path, line):
    entry = {"step": 4, "seconds": 1.5, "loss": 2.0}
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(entry) + "\n")
    assert model_dir.read_history(str(tmp_path)) == [entry]
    path.write_text(json.dumps(entry) + "\n" + line)
    with pytest.raises(UserError, match="history.jsonl: damaged .*; fix or remove it"):
        model_dir.read_history(str(tmp_path))


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    directory = str(tmp_path / "run")
    holder = "import sys, time\nfrom shatter_tf.training.run_dir import held_for_training\n"
    holder += "with held_for_training(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(100)"
    with subprocess.Popen([sys.executable, "-c", holder, directory], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        refusal = f"model_dir={directory}: another process trains there"
        with pytest.raises(UserError, match=refusal), model_dir.held_for_training(directory):
            pass
        other.send_signal(signal.SIGKILL)  # which leaves nothing that needs cleaning up
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with model_dir.held_for_training(directory):
        (tmp_path / "run/vocab.txt").write_text("[PAD]")
    assert (tmp_path / "run/vocab.txt").exists()


def test_a_refused_run_leaves_no_directory(tmp_path):
    with pytest.raises(UserError, match="refused"), model_dir.held_for_training(str(tmp_path / "run")):
        raise UserError("refused")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="refused"), model_dir.held_for_training(str(tmp_path / "mine")):
        raise UserError("refused")
    assert (tmp_path / "mine").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"), model_dir.held_for_training(str(tmp_path / "file/run")):
        pass
