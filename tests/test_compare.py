"""Grids of runs: read strictly, resumed where they stopped, and reported without cherry-picking."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny import TINY

from shatter_tf import compare
from shatter_tf.errors import UserError
from shatter_tf.files import held
from shatter_tf.measuring import comparison, report
from shatter_tf.measuring.grid import STEP_SECONDS_FILE, read_grid

ROOT = pathlib.Path(__file__).parents[1]
TINY_SETTINGS = {f"task.model.encoder.shatter.{key}": value for key, value in TINY.items()}
GRID = dict(
    experiment="shatter/pretrain",
    settings={
        **TINY_SETTINGS,
        "trainer": {"train_steps": 4, "steps_per_loop": 2, "validation_interval": 2},
        "task.train_data.global_batch_size": 2,
        "runtime.enable_xla": False,
    },
    under="task.model.encoder",
    learning_rates=[1e-3],
    seeds=[0, 1],
    reference="bert",
    evaluate_at=[24],
    variants={"shatter": {}, "bert": {"type": "bert", "learning_rates": [1e-3, 2e-3], "seeds": [0]}},
)


def write_grid(tmp_path, **changes):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}, sort_keys=False))
    return str(path)


def test_read_grid(tmp_path):
    # "any" is what shatter was called.
    variant = {
        "any.num_parts": 6, "init_checkpoint": "runs/x", "data_dir": "y", "settings": {"trainer.train_steps": 9},
    }  # fmt: skip
    grid = read_grid(write_grid(tmp_path, variants={**GRID["variants"], "six": variant}), data_dir="corpus")
    assert [job.name for job in grid.jobs] == [
        "shatter/lr0.001-seed0", "bert/lr0.001-seed0", "bert/lr0.002-seed0", "six/lr0.001-seed0",
        "shatter/lr0.001-seed1", "six/lr0.001-seed1",
    ]  # fmt: skip
    shatter, bert, six = grid.jobs[0], grid.jobs[2], grid.jobs[3]
    assert (six.data_dir, six.init_checkpoint, shatter.data_dir) == ("y", "runs/x", "corpus")
    assert six.settings["trainer"] == {**shatter.settings["trainer"], "train_steps": 9}
    encoder = six.settings["task"]["model"]["encoder"]
    assert encoder["shatter"]["num_parts"] == 6
    assert encoder["shatter"]["hidden_size"] == TINY["hidden_size"]
    assert shatter.settings["task"]["model"]["encoder"]["shatter"]["num_parts"] == TINY["num_parts"]
    assert bert.settings["task"]["model"]["encoder"]["type"] == "bert"
    assert bert.settings["trainer"]["optimizer_config"]["learning_rate"]["polynomial"] == {
        "initial_learning_rate": 2e-3
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(variant={}), r"variant\b.*\bvariants"),
        (dict(variants={}), "experiment and variants"),
        (dict(seeds=0), "shatter: .*seeds"),
        (dict(learning_rates=[]), "shatter: learning_rates"),
        (dict(learning_rates=["fast"]), "shatter: learning_rates"),
        (dict(variants={"four": 4}), "four: 4"),
        (dict(variants={"text": {"settings": "trainer.train_steps=4"}}), "text: .*trainer.train_steps=4"),
        (dict(variants={"any[4]": {}}), r"variant=any\[4\]: .*\[ \]"),
        (dict(settings="trainer.train_steps=4"), "settings"),
        (dict(under=["task"]), "under"),
        (dict(evaluate_at=512), "evaluate_at=512"),
        (dict(reference="brt"), r"\bbrt\b.*\bbert\b"),
        (dict(plot=["shattr"]), r"\bshattr\b.*\bshatter\b"),
        (dict(config_file="none.yaml"), "config_file=none.yaml"),
    ],
)
def test_read_grid_refuses(tmp_path, changes, message):
    path = write_grid(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as refusal:
        read_grid(path)
    assert "config_file" in changes or f"grid={path}: " in str(refusal.value)


def test_the_commit_is_ours_or_unknown(monkeypatch):
    """Not that of a repository in which shatter_tf is installed; and there may be no git."""
    assert (comparison._commit() != "unknown") == (ROOT / ".git").exists()
    assert comparison._commit(str(ROOT / "shatter_tf/installed.py")) == "unknown"
    monkeypatch.setenv("PATH", "")
    assert comparison._commit() == "unknown"


def test_a_mistake_in_the_last_variant_stops_the_first_run(tmp_path, write_corpus, random_documents):
    data = write_corpus(random_documents(shards=1, per_shard=20))
    grid = write_grid(tmp_path, variants={**GRID["variants"], "wrong": {"any.num_partz": 6}})
    flags = [f"--data_dir={data}", f"--output_dir={tmp_path}/out"]
    with pytest.raises(UserError, match="task.model.encoder.shatter.num_partz"):
        compare.main([f"--grid={grid}", *flags])
    with pytest.raises(UserError, match="--output_dir=gs://b/out"):
        compare.main([f"--grid={grid}", "--output_dir=gs://b/out"])
    with pytest.raises(UserError, match="validation_data.seq_length=4096"):
        compare.main([f"--grid={write_grid(tmp_path, evaluate_at=[4096])}", *flags])
    assert not list((tmp_path / "out").rglob("model"))


def test_results_of_other_settings_are_not_taken_for_these(tmp_path, write_corpus, random_documents):
    data, out = write_corpus(random_documents(shards=1, per_shard=20)), tmp_path / "out"
    grid = read_grid(write_grid(tmp_path), data)
    (out / grid.jobs[0].name / "model").mkdir(parents=True)
    (out / grid.jobs[0].name / "settings.yaml").write_text(yaml.safe_dump(grid.jobs[0].settings))
    comparison.prepare_job(grid, grid.jobs[0], str(out))
    more = read_grid(write_grid(tmp_path, settings={**GRID["settings"], "task.train_data.seq_length": 8}), data)
    with pytest.raises(UserError, match=r"task.train_data.seq_length .*None.* 8\b"):
        comparison.prepare_job(more, more.jobs[0], str(out))

    (tmp_path / "other").symlink_to(data)
    comparison.prepare_job(grid, dataclasses.replace(grid.jobs[0], data_dir=str(tmp_path / "other")), str(out))
    with pytest.raises(UserError, match="data_dir .*corpus.*labels"):
        comparison.prepare_job(grid, dataclasses.replace(grid.jobs[0], data_dir=str(tmp_path / "labels")), str(out))

    finished = {**make_result("shatter", 1e-3, 0, [5.0]), "settings": grid.jobs[0].settings, "data_dir": data}
    (out / "results.jsonl").write_text(json.dumps(finished) + "\n")
    comparison.check_results(grid, str(out))
    with pytest.raises(UserError, match="results.jsonl: shatter/lr0.001-seed0: .*seq_length"):
        comparison.check_results(more, str(out))
    with pytest.raises(UserError, match="results.jsonl: shatter/lr0.001-seed0: data_dir .*/elsewhere"):
        comparison.check_results(read_grid(write_grid(tmp_path), "/elsewhere"), str(out))
    (out / "results.jsonl").write_text(json.dumps(finished) + '\n{"variant": "sh')
    with pytest.raises(UserError, match="results.jsonl: "):
        comparison.check_results(grid, str(out))


def test_a_grid_of_version_0_1_is_taken_for_the_same(tmp_path):
    """Its files say "any" for shatter."""
    recorded = ROOT / "tests/data/0.1/grid"
    grid = json.loads((ROOT / "tests/data/0.1/grid.yaml").read_text())
    renamed = {key.replace(".any.", ".shatter."): value for key, value in grid["settings"].items()}
    assert renamed != grid["settings"]
    for settings in (grid["settings"], renamed):
        path = tmp_path / "grid.yaml"
        path.write_text(json.dumps({**grid, "settings": settings}))
        comparison.check_results(read_grid(str(path), "corpus"), str(recorded))

    report.write(read_grid(str(path)), comparison.read_results(str(recorded)), str(tmp_path))
    assert "| bert | 3,554 | 0.001 |" in (tmp_path / report.REPORT_FILE).read_text()

    path.write_text(json.dumps({**grid, "variants": {"shatter": {"any.num_parts": 4}, "bert": {"type": "bert"}}}))
    with pytest.raises(UserError, match="num_parts .*6.* 4"):
        comparison.check_results(read_grid(str(path), "corpus"), str(recorded))


def make_result(variant, rate, seed, losses, parameters=1000):
    history = [dict(step=10 * (i + 1), seconds=1.0 * (i + 1), loss=loss) for i, loss in enumerate(losses)]
    return dict(
        variant=variant, learning_rate=rate, seed=seed, parameters=parameters, commit="abc", history=history,
        other_lengths={"24": {"loss": losses[-1] + 1}},
    )  # fmt: skip


def test_a_rate_that_ends_in_no_number_is_not_the_best():
    results = [make_result("shatter", 1e-2, 0, [float("nan")]), make_result("shatter", 1e-3, 0, [3.0])]
    for sign in (-1, 1):
        assert report.best_runs(results, "loss", sign)["shatter"][0]["learning_rate"] == 1e-3


def test_report(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    results = [
        make_result("shatter", 1e-3, 0, [5.0, 3.0, 2.0]),
        make_result("shatter", 1e-3, 1, [5.0, 3.0, 1.0]),
        make_result("bert", 1e-3, 0, [6.0, 5.0, 4.5]),
        make_result("bert", 2e-3, 0, [6.0, 5.0, 4.0]),
    ]
    report.write(grid, results, str(tmp_path))
    text = (tmp_path / report.REPORT_FILE).read_text()
    # BERT is taken at its better learning rate; Shatter's mean passes BERT's end, 4.0, half-way from step 10 to 20.
    assert "| shatter | 1,000 | 0.001 | 2 | 1.500 ± 0.707 | 15 (50%) | 2.500 ± 0.707 |" in text
    assert "| bert | 1,000 | 0.002 of 2 | 1 | 4.000 | 30 (100%) | 5.000 |" in text
    assert "| bert | 4.500 | 4.000 |" in text
    for name in (report.CURVES_FILE, report.FINAL_FILE):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    # Wall-clock is shown once step times have been measured.
    (tmp_path / STEP_SECONDS_FILE).write_text(json.dumps(dict(shatter=0.2, bert=0.4)))
    report.write(grid, results, str(tmp_path))
    assert "| 200 | 15 (50%) | 25% |" in (tmp_path / report.REPORT_FILE).read_text()
    # A variant already below the reference's final loss at its first evaluation may have passed it earlier.
    results[0]["history"][0]["loss"] = results[1]["history"][0]["loss"] = 3.9
    report.write(grid, results, str(tmp_path))
    assert "| 200 | ≤ 10 (≤ 33%) | ≤ 17% |" in (tmp_path / report.REPORT_FILE).read_text()


def launch(grid, data, out):
    flags = [f"--grid={grid}", f"--data_dir={data}", f"--output_dir={out}"]
    return subprocess.Popen(
        [sys.executable, "-m", "shatter_tf.compare", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_where_it_was(tmp_path, write_corpus, random_documents, monkeypatch):
    data = write_corpus(random_documents(shards=1, per_shard=40))
    grid, out = write_grid(tmp_path, seeds=[0], variants={"shatter": {}, "bert": {"type": "bert"}}), tmp_path / "out"
    first = launch(grid, data, out)
    deadline = time.time() + 500
    while not (out / "results.jsonl").exists() and first.poll() is None and time.time() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    printed, errors = first.communicate(timeout=300)
    assert first.returncode == 75, printed + errors
    finished = (out / "results.jsonl").read_text()
    assert finished.count("\n") == 1, "it ended before it was stopped"
    running = subprocess.run(["pgrep", "-f", str(out)], capture_output=True, text=True).stdout
    assert not running  # the training process went with it

    second = launch(grid, data, out)
    printed, errors = second.communicate(timeout=500)
    assert second.returncode == 0, errors
    assert "[1/1]" in printed
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (out / "results.jsonl").read_text().startswith(finished)
    assert [(line["variant"], line["seed"]) for line in lines] == [("shatter", 0), ("bert", 0)]
    for line in lines:
        assert [entry["step"] for entry in line["history"]] == [2, 4]
        assert set(line["other_lengths"]) == {"24"}
    assert "| shatter |" in (out / "report.md").read_text()

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    compare.main([f"--grid={grid}", f"--data_dir={data}", f"--output_dir={out}", "--time_steps=2"])
    assert set(json.loads((out / "step_seconds.json").read_text())) == {"shatter", "bert"}


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path, write_corpus, random_documents, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    data, out = write_corpus(random_documents(shards=1, per_shard=40)), tmp_path / "out"
    grid = write_grid(tmp_path, seeds=[0], variants={"shatter": {}}, reference="shatter")
    directory = out / "shatter/lr0.001-seed0"
    directory.mkdir(parents=True)
    with held(str(directory)):
        compare.main([f"--grid={grid}", f"--data_dir={data}", f"--output_dir={out}"])
    assert capsys.readouterr().out.startswith("1 ")  # how many were left
    assert not (out / "results.jsonl").exists()
    assert not (directory / "model").exists()


WORK = """
import os, sys, time
from shatter_tf.training.preemption import StopRequest
stop = StopRequest()
stop.listen()
stop.unsaved.acquire()
print("on", flush=True)
while not stop.asked: time.sleep(0.01)
time.sleep(1)
print("saved", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_a_terminal_costs_the_run_nothing(tmp_path, number):
    log = tmp_path / "log"
    program = (
        "import signal, sys\nfrom shatter_tf.measuring import comparison\nfrom shatter_tf.measuring.grid import Job\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # where tests run in the background, it is ignored
        "comparison._handle_signals()\n"
        "job = Job('v', 1e-3, 0, {}, None, None)\n"
        f"comparison._call([sys.executable, '-c', {WORK!r}], job, {str(log)!r})"
    )
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as process:
        deadline = time.time() + 300
        while not (log.exists() and "on\n" in log.read_text()) and time.time() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, number)
        try:
            assert process.wait(timeout=100) == os.EX_TEMPFAIL
        finally:
            process.kill()
    assert "saved" in log.read_text()


@pytest.mark.slow
def test_two_processes_share_a_comparison(tmp_path, write_corpus, random_documents):
    data = write_corpus(random_documents(shards=1, per_shard=40))
    grid = write_grid(tmp_path, seeds=[0], variants={"shatter": {}, "narrow": {"any.num_parts": 2}}, reference="narrow")
    processes = [launch(grid, data, tmp_path / "out") for _ in range(2)]
    printed = ""
    for process in processes:
        out, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        printed += out
    assert printed.count("  loss ") == 2, printed  # each run once, whichever process took it
    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert {line["variant"] for line in lines} == {"shatter", "narrow"}
    assert len(lines) == 2
    assert "2 runs" in (tmp_path / "out/report.md").read_text()
