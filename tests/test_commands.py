"""The commands as a user runs them: real processes, from text to a served prediction, and every refusal."""

import importlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from shatter_tf.errors import UserError
from shatter_tf.files import held

ROOT = pathlib.Path(__file__).parents[1]
SENTENCES = [
    "the cat sat on the mat",
    "a big dog ran very fast",
    "the old tree was small and red",
    "then it was under the mat",
]
TINY = (
    "task.model.encoder.shatter.hidden_size=16,task.model.encoder.shatter.num_layers=1,task.model.encoder.shatter.num_parts=4,"
    "task.model.encoder.shatter.intermediate_size=16"
)


def command(name, *flags, stdin=None):
    """Runs a command; returns its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", f"shatter_tf.{name}", *map(str, flags)],
        capture_output=True, text=True, cwd=ROOT, input=stdin, timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def succeed(name, *flags, stdin=None):
    code, out, err = command(name, *flags, stdin=stdin)
    assert code == 0, err
    return out, err


def run_here(name, *flags):
    """Runs a command in this process, which saves minutes."""
    importlib.import_module(f"shatter_tf.{name}").main([str(flag) for flag in flags])


def refuse(name, *flags):
    """Asserts that a command refuses, and returns the line it would print."""
    with pytest.raises(UserError) as refusal:
        run_here(name, *flags)
    message = str(refusal.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A corpus, a pretrained and a fine-tuned run, and an export: made once, by the commands themselves."""
    base = tmp_path_factory.mktemp("world")
    (base / "text.txt").write_text("\n\n".join(f"{s}\n{s} {i}" for i in range(60) for s in SENTENCES) + "\n")
    (base / "labelled").mkdir()
    rows = [f"{SENTENCES[i % 4]}\t{'animal' if i % 4 < 2 else 'thing'}\n" for i in range(40)]
    (base / "labelled/train.tsv").write_text("".join(rows))
    (base / "labelled/dev.tsv").write_text("".join(rows[:10]))
    out = {}
    out["prepare"] = succeed(
        "prepare", f"--input={base}/text.txt", f"--output_dir={base}/corpus", "--vocab_size=120", "--seq_length=32",
        "--validation_fraction=0.1",
    )  # fmt: skip
    override = f"{TINY},trainer.train_steps=6,trainer.steps_per_loop=2,task.train_data.global_batch_size=8"
    out["pretrain"] = succeed(
        "train", "--experiment=shatter/pretrain", f"--data_dir={base}/corpus", f"--model_dir={base}/pretrain",
        f"--params_override={override}",
    )  # fmt: skip
    out["classify"] = succeed(
        "train", "--experiment=shatter/classify", f"--data_dir={base}/labelled", f"--model_dir={base}/classify",
        f"--init_checkpoint={base}/pretrain",
        "--params_override=trainer.train_steps=60,task.train_data.global_batch_size=8,task.train_data.seq_length=16,"
        "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=0.01",
    )  # fmt: skip
    out["export"] = succeed("export", f"--model_dir={base}/classify", f"--export_dir={base}/served")
    return base, out


def test_the_whole_path(world):
    base, out = world
    corpus = json.loads((base / "corpus/corpus.json").read_text())
    assert corpus["seq_length"] == 32
    assert sum(s["documents"] for s in corpus["train"] + corpus["validation"]) == 240
    assert corpus["unknown_tokens"] == 0

    stdout, stderr = out["pretrain"]
    assert stderr == ""  # the libraries' noise is kept off
    lines = [line for line in stdout.splitlines() if line.startswith("step ") and "validation" not in line]
    assert [line.split()[1] for line in lines][-1] == "6/6"
    for word in ("loss", "masked_lm_accuracy", "learning_rate", "examples/s", "left"):
        assert word in lines[-1]
    metrics = json.loads((base / "pretrain/metrics.json").read_text())
    assert metrics["step"] == 6
    assert metrics["loss"] > 0
    for path in ("experiment.json", "params.yaml", "vocab.txt", "checkpoint", "best/checkpoint", "train", "validation"):
        assert (base / "pretrain" / path).exists(), path

    stdout, stderr = out["classify"]
    assert stderr.splitlines() == [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert "validation rows that are training rows" in stderr
    assert "restored from" in stdout
    assert "not used: masked_lm" in stdout
    accuracy = json.loads((base / "classify/metrics.json").read_text())["cls_accuracy"]
    assert accuracy == 1.0  # four memorised sentences

    for flags, stdin in (([*SENTENCES], None), ([], "\n".join(SENTENCES) + "\n")):
        stdout, stderr = succeed("predict", f"--model={base}/served", *flags, stdin=stdin)
        predictions = [json.loads(line) for line in stdout.splitlines()]
        assert [p["label"] for p in predictions] == ["animal", "animal", "thing", "thing"]
        assert [p["text"] for p in predictions] == SENTENCES
        assert all(abs(sum(p["probabilities"].values()) - 1) < 1e-4 for p in predictions)
        assert stderr == ""


@pytest.mark.slow
def test_relaunching_goes_on_and_eval_changes_nothing(world, tmp_path, capsys):
    base, _ = world
    run = tmp_path / "run"
    flags = ["--experiment=shatter/pretrain", f"--data_dir={base}/corpus", f"--model_dir={run}"]
    sizes = f"{TINY},task.train_data.global_batch_size=8,trainer.steps_per_loop=2,runtime.enable_xla=false"
    run_here("train", *flags, "--mode=train", f"--params_override={sizes},trainer.train_steps=2")
    assert not (run / "metrics.json").exists()
    capsys.readouterr()
    run_here("train", *flags, f"--params_override={sizes},trainer.train_steps=4")
    out = capsys.readouterr().out
    assert "from step 2" in out
    assert "step 4/4" in out
    before = sorted((p.name, p.stat().st_size) for p in run.glob("ckpt*"))
    run_here("train", *flags, "--mode=eval", f"--params_override={sizes},trainer.train_steps=4")
    assert sorted((p.name, p.stat().st_size) for p in run.glob("ckpt*")) == before
    assert json.loads((run / "metrics.json").read_text())["step"] == 4


@pytest.mark.slow
def test_a_refusal_is_one_line_and_exit_code_2(tmp_path):
    """And comes before any device is initialized, after which threads could not be set."""
    program = """
import atexit
from shatter_tf import console, train
def set_threads():
    import tensorflow as tf
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print("no device")
atexit.register(set_threads)
console.run(train.main)
"""
    flags = ["--experiment=shatter/pretrian", f"--model_dir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "did you mean shatter/pretrain?" in done.stderr
    assert done.stdout == "no device\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--experiment=shatter/pretrian", "--data_dir={base}/corpus"], "did you mean shatter/pretrain?"),
        (["--params_override=trainer.train_step=5"], "no setting trainer.train_step (did you mean train_steps"),
        (["--params_override=task.model.encoder.shatter.hidden_size=foo"], "hidden_size='foo' is not a whole number"),
        (
            ["--params_override=task.model.encoder.shatter.num_parts=7"],
            "hidden_size=768 is not divisible by num_parts=7",
        ),
        (["--params_override=task.train_data.seq_length=1024"], "seq_length=1024 is longer than the encoder's 512"),
        (["--params_override=runtime.num_gpus=8"], "runtime.num_gpus=8, but this machine has 0"),
        (["--params_override=runtime.mixed_precision_dtype=float8"], "use auto, float32, bfloat16, float16"),
        (["--params_override=task.model.encoder.shatter.vocab_size=50"], "less than the vocabulary's"),
        (["--params_override=nonsense"], "expected key=value"),
        (["--config_file={base}/none.yaml"], "no such file"),
        (["--data_dir={base}/none"], "no such file; make a corpus with"),
        (["--init_checkpoint={base}/labelled"], "not a training directory"),
    ],
)
def test_train_refuses(world, tmp_path, flags, message):
    base, _ = world
    given = {flag.split("=")[0] for flag in flags}
    defaults = [f"--data_dir={base}/corpus", "--experiment=shatter/pretrain"]
    defaults = [flag for flag in defaults if flag.split("=")[0] not in given]
    flags = [flag.format(base=base) for flag in flags]
    assert message in refuse("train", *defaults, *flags, f"--model_dir={tmp_path}/run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_refuses_unfit_data_and_directories(world, tmp_path):
    base, _ = world
    labelled = tmp_path / "labelled"
    shutil.copytree(base / "labelled", labelled)
    with open(labelled / "dev.tsv", "a") as f:
        f.write("it was fast\tplant\n")
    classify = ["--experiment=shatter/classify", f"--init_checkpoint={base}/pretrain", f"--data_dir={labelled}"]
    message = refuse("train", *classify, f"--model_dir={tmp_path}/run")
    assert "dev.tsv:11: the label 'plant' is not among the training labels (animal, thing)" in message

    (labelled / "dev.tsv").write_text("a row without a label\n")
    assert "dev.tsv:1: 1 column" in refuse("train", *classify, f"--model_dir={tmp_path}/run")

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat"]))
    flag = f"--params_override=task.train_data.vocab_file={vocabulary}"
    message = refuse("train", *classify[:2], f"--data_dir={base}/labelled", flag, f"--model_dir={tmp_path}/run")
    assert "its vocabulary is not the one of this run" in message
    assert not (tmp_path / "run").exists()

    # A model_dir of another experiment or shape is refused before anything in it changes.
    run = tmp_path / "pretrain"
    shutil.copytree(base / "pretrain", run)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}
    flags = [f"--data_dir={base}/labelled", f"--init_checkpoint={base}/pretrain", f"--model_dir={run}"]
    assert "holds a run of shatter/pretrain" in refuse("train", "--experiment=shatter/classify", *flags)
    flags = ["--experiment=shatter/pretrain", f"--data_dir={base}/corpus", f"--model_dir={run}"]
    message = refuse("train", *flags, f"--params_override={TINY},task.model.encoder.shatter.num_layers=2")
    assert "encoder.shatter.num_layers was 1, not 2" in message
    (tmp_path / "home").mkdir()
    (tmp_path / "home/diary.txt").write_text("dear")
    assert "not empty" in refuse("train", *flags[:2], f"--model_dir={tmp_path}/home")
    with held(str(run)):
        assert "another process trains there" in refuse("train", *flags, f"--params_override={TINY}")
    assert before == {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_prepare_refuses(world, tmp_path):
    base, _ = world
    (tmp_path / "bad.txt").write_bytes(b"fine\nnot \xff fine\n" * 3)
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "vocab.txt").write_text("[PAD]\ncat\n")
    text, out = f"--input={base}/text.txt", f"--output_dir={tmp_path}/corpus"
    assert "invalid UTF-8 at byte 9" in refuse("prepare", f"--input={tmp_path}/bad.txt", out)
    assert "empty.txt: the file is empty" in refuse("prepare", f"--input={tmp_path}/empty.txt", out)
    assert "no such file" in refuse("prepare", f"--input={tmp_path}/none*", out)
    assert "lacks [UNK] [CLS] [SEP] [MASK]" in refuse("prepare", text, out, f"--vocab_file={tmp_path}/vocab.txt")
    assert "not empty" in refuse("prepare", text, f"--output_dir={base}/corpus", "--vocab_size=120")
    message = refuse("prepare", text, out, "--vocab_size=120", "--validation_fraction=0.000001")
    assert "0 for validation; give more documents" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "empty.txt", "vocab.txt"]  # nothing left behind
    succeed(
        "prepare", f"--input={tmp_path}/bad.txt,{base}/text.txt", out, "--errors=replace", "--layout=blank_line",
        "--vocab_size=120", "--validation_fraction=0.2",
    )  # fmt: skip


def test_text_to_validate_on_stays_out_of_training(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat\n" * 3 + "the dog ran\n" * 3)
    (tmp_path / "held_out.txt").write_text("the cat ran\n" * 2)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    flags = [f"--input={tmp_path}/text.txt", f"--vocab_file={tmp_path}/vocab.txt", "--layout=line", "--keep_duplicates"]
    held_out = f"--validation_input={tmp_path}/held_out.txt"
    run_here("prepare", *flags, held_out, f"--output_dir={tmp_path}/corpus")
    corpus = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert [shard["documents"] for shard in corpus["train"]] == [6]
    assert [shard["documents"] for shard in corpus["validation"]] == [2]
    assert [source["documents"] for source in corpus["sources"]] == [6, 2]
    assert corpus["unknown_tokens"] == 5  # ran
    counts = [8, 5, 3, 3]  # the, cat, dog, sat
    entropy = -sum(n / 19 * math.log(n / 19) for n in counts)
    assert corpus["unigram_entropy"] == pytest.approx(entropy)

    out = f"--output_dir={tmp_path}/other"
    assert "--validation_input=none: no such file" in refuse("prepare", *flags, out, "--validation_input=none")
    assert "text.txt is in --input, too" in refuse("prepare", *flags, out, f"--validation_input={tmp_path}/t*.txt")


@pytest.mark.slow
def test_export_and_predict_refuse(tmp_path):
    assert "not a training directory" in refuse("export", f"--model_dir={tmp_path}", f"--export_dir={tmp_path}/out")
    assert "no SavedModel there" in refuse("predict", f"--model={tmp_path}", "text")
    assert not (tmp_path / "out").exists()


def test_a_missing_flag_is_one_line_of_usage():
    code, _, err = command("train")
    assert code == 2
    assert "required: --experiment, --model_dir" in err
