"""The program `shatter`: what it lists, refuses and says of the machine, with libraries and without."""

import ast
import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

from shatter_tf import __main__, config_files, doctor, predict, prepare, train
from shatter_tf.errors import UserError
from shatter_tf.measuring import machine

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "shatter_tf"
SHATTER = [sys.executable, "-m", "shatter_tf"]
# What each command cannot do without.
NEEDED = {
    "prepare": ["--input=text.txt", "--output_dir=corpus"],
    "train": ["--experiment=shatter/pretrain", "--model_dir=run"],
    "export": ["--model_dir=run", "--export_dir=served"],
    "predict": ["--model=served", "text"],
    "visualize": ["--model=run", "--output=picture.png"],
    "compare": ["--grid=grid.yaml", "--output_dir=runs"],
    "benchmark": [],
    "doctor": [],
}
HEAVY = {"numpy", "tensorflow", "tf_keras", "official", "apache_beam", "matplotlib"}


def start(program, *flags, **environment):
    """Runs a program in the repository; returns its exit code, standard output and standard error."""
    done = subprocess.run(
        [*program, *flags], capture_output=True, text=True, cwd=ROOT, timeout=300, env={**os.environ, **environment}
    )
    return done.returncode, done.stdout, done.stderr


def test_every_command_is_listed_with_its_purpose():
    runnable = {path.stem for path in PACKAGE.glob("*.py") if "__main__" in path.read_text()} - {"__main__"}
    assert set(__main__.COMMANDS.values()) == runnable

    code, out, err = start(SHATTER)
    assert (code, err) == (0, "")
    assert out == start(SHATTER, "--help")[1]
    lines = out.splitlines()
    for name, module in __main__.COMMANDS.items():
        purpose = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text())).splitlines()[0]
        assert f"{name} {purpose}" in [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("name", __main__.COMMANDS)
def test_help_is_fast_and_names_the_program(name):
    """It does not wait for large libraries to be imported."""
    module = __main__.COMMANDS[name]
    for program, usage in (
        ([*SHATTER, name], f"usage: shatter {name} "),
        ([sys.executable, "-m", f"shatter_tf.{module}"], f"usage: python -m shatter_tf.{module} "),
    ):
        code, out, err = start(program, "--help", PYTHONPROFILEIMPORTTIME="1")  # reports imports on standard error
        assert code == 0
        assert out.startswith(usage)
        assert f"\n  shatter {name}" in out  # an example
        assert len(out.splitlines()) < 45
        imported = {line.split("|")[-1].strip() for line in err.splitlines()}
        assert "argparse" in imported
        assert imported.isdisjoint(HEAVY)


def test_an_unknown_command_is_refused_in_one_line():
    code, out, err = start(SHATTER, "trian")
    assert (code, out) == (2, "")
    assert "did you mean train?" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", NEEDED)
def test_without_libraries_a_command_says_so_in_one_line(name):
    for program in (
        [sys.executable, "-S", "-m", "shatter_tf", name],
        [sys.executable, "-S", "-m", f"shatter_tf.{name}"],
    ):
        code, _, err = start(program, *NEEDED[name])  # -S hides the libraries
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert sys.executable in err
        assert "activate" in err
        assert "pip install" in err


def test_a_mistake_in_an_import_of_our_own_is_not_hidden():
    program = "from shatter_tf import console\ndef main(argv): import shatter_tf.no_such\nconsole.run(main)"
    code, _, err = start([sys.executable, "-c", program])
    assert code == 1
    assert "Traceback" in err
    assert "shatter_tf.no_such" in err


def test_another_python_is_refused_in_one_line():
    ast.parse((PACKAGE / "__init__.py").read_text(), feature_version=(3, 7))
    (supported,) = importlib.metadata.metadata("shatter_tf").get_all("Requires-Python")
    assert set(supported.split(",")) == {">=3.10", "<3.14"}  # as in __init__.py
    for version in ((3, 9), (3, 14)):
        program = f"import sys; sys.version_info = (*{version}, 0); import shatter_tf"
        code, _, err = start([sys.executable, "-c", program])
        assert code == 2
        assert f"{version[0]}.{version[1]};" in err
        assert err.count("\n") == 1


@pytest.mark.slow
def test_a_user_of_the_library_reads_only_own_warnings():
    program = """
import warnings
from shatter_tf.serving.load import load_text_encoder
print(load_text_encoder("tests/data/0.1/runs/classify")(["the cat"]).shape)
warnings.warn("my own")
"""
    set_for_tests = ("TF_CPP_MIN_LOG_LEVEL", "PYTHONWARNINGS")
    environment = {name: value for name, value in os.environ.items() if name not in set_for_tests}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=300, env=environment
    )
    assert done.stdout.endswith("(1, 12)\n")
    (warning,) = done.stderr.splitlines()
    assert "my own" in warning


def test_configs_are_listed_and_printed():
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    code, out, _ = start(SHATTER, "configs")
    assert code == 0
    rows = [line.split(maxsplit=1) for line in out.splitlines()]
    assert [name for name, _ in rows] == [path.stem.removeprefix("pretrain_") for path in paths]
    assert [purpose for _, purpose in rows] == [path.read_text().splitlines()[0].strip("# ") for path in paths]

    assert start(SHATTER, "configs", "tiny")[1] == (ROOT / "configs/pretrain_tiny.yaml").read_text()
    code, out, err = start(SHATTER, "configs", "clasify")
    assert (code, out) == (2, "")
    assert "did you mean classify?" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["pretrain_base", "base", "tag"])
def test_configs_are_found(name):
    assert pathlib.Path(config_files.find_config(name)).stem.endswith(name)


@pytest.mark.parametrize("name", ["", "configs/pretrain_tiny.yaml", "../configs/tag", "pretrain_", "v1"])
def test_what_is_no_name_of_a_config_is_refused(name):
    with pytest.raises(UserError, match="shatter configs"):
        config_files.find_config(name)


def test_the_doctor_says_what_is_there():
    code, out, err = start(SHATTER, "doctor", CUDA_VISIBLE_DEVICES="-1")
    assert (code, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["python"].startswith("{}.{}.{} ".format(*sys.version_info))
    assert f"{len(os.sched_getaffinity(0))} cores" in facts["cpu"]
    assert float(facts["memory"].split()[0]) * 2**30 == pytest.approx(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rel=0.05
    )
    for name in ("shatter_tf", "tensorflow", "tf_keras", "tf-models-official", "tensorflow-text"):
        assert facts[name] == importlib.metadata.version(name)
    assert facts["gpus"].startswith("none")
    assert "XLA" in facts["training"]


def test_the_doctor_names_each_problem_and_what_mends_it(monkeypatch, capsys):
    version = importlib.metadata.version
    wrong = {"tensorflow": "2.19.1", "tf_keras": "2.18.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: wrong.get(name) or version(name))
    monkeypatch.setattr(machine, "LIBRARIES", {"no_such_library": "tensorflow-text"})
    with pytest.raises(SystemExit) as end:
        doctor.main([])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(word in lines[0] for word in ("2.19.1", "pip install 'tensorflow==2.20.*'"))
    assert all(word in lines[1] for word in ("2.18.0", "pip install 'tf_keras==2.20.*'"))
    assert all(word in lines[2] for word in ("no_such_library", f"tensorflow-text=={version('tensorflow-text')}"))


def test_the_doctor_sees_a_gpu_that_tensorflow_does_not(monkeypatch):
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus, (problem,) = machine.gpus()
    assert gpus == "none"
    assert "pip install 'shatter_tf[cuda]'" in problem
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == ("none, with CUDA_VISIBLE_DEVICES=", [])


# === Names of files, and what the terminal shows ===


def test_a_home_in_a_flag_is_found_and_texts_stay(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given in (["--model_dir=~/runs/a~b"], ["--model_dir", "~/runs/a~b"]):
        flags = [*given, "--experiment=tag", "--data_dir=~", "--init_checkpoint=runs/~/x"]
        flags.append("--params_override=task.train_data.vocab_file=~/v.txt,trainer.train_steps=2,task.name=~")
        args = train.parse_arguments(flags)
        assert args.model_dir == "/home/me/runs/a~b"
        assert args.data_dir == "/home/me"
        assert args.init_checkpoint == "runs/~/x"
        override = "task.train_data.vocab_file=/home/me/v.txt,trainer.train_steps=2,task.name=~"
        assert args.params_override == override
    args = prepare.parse_arguments(["--input=~/a*.txt,b/*.txt,~/c.txt", "--output_dir=~/corpus"])
    assert args.input == "/home/me/a*.txt,b/*.txt,/home/me/c.txt"
    assert args.output_dir == "/home/me/corpus"

    args = predict.parse_arguments(["--trust", "~/is a text", "--model=~/served"])
    assert args.texts == ["~/is a text"]
    assert args.model == "/home/me/served"


@pytest.mark.parametrize("flag", [b"--model_dir=caf\xe9", b"--data_dir=caf\xe9"])
def test_a_name_that_is_not_utf8_is_refused_in_one_line(tmp_path, flag):
    flags = ["--experiment=pretrain", f"--model_dir={tmp_path}/run", f"--data_dir={tmp_path}", flag]
    done = subprocess.run([*SHATTER, "train", *flags], capture_output=True, cwd=ROOT, timeout=300)
    name = flag[2:].partition(b"=")[0]
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: --" + name + b"=caf\\udce9: ")
    assert done.stderr.count(b"\n") == 1


def test_a_listed_name_that_is_not_utf8_is_refused_in_one_line(tmp_path):
    (tmp_path / "run").mkdir()
    open(os.fsencode(tmp_path / "run") + b"/caf\xe9", "w").close()
    program = "from shatter_tf import console\ndef main(argv):\n  import tensorflow as tf\n"
    program += "  tf.io.gfile.listdir(argv[0])\nconsole.run(main)"
    code, out, err = start([sys.executable, "-c", program], str(tmp_path / "run"))
    assert (code, out) == (2, "")
    assert r"caf\xe9" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_said_on_any_terminal(encoding):
    program = "from shatter_tf import console\n"
    program += r"def main(argv): console.say('é 中 \udcff'); console.warn('中')" + "\nconsole.run(main)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": encoding}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "é 中 \udcff\n".encode(encoding, "backslashreplace")
    assert done.stderr == "warning: 中\n".encode(encoding, "backslashreplace")


def test_without_an_output_it_runs_all_the_same():
    program = "from shatter_tf import console\ndef main(argv): raise SystemExit(7)\nconsole.run(main)"
    done = subprocess.run(f"exec {sys.executable} -c '{program}' >&- 2>&-", shell=True, cwd=ROOT)
    assert done.returncode == 7
