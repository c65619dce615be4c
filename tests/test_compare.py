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

from shatter_tf import compare, report
from shatter_tf.command_line import UserError
from shatter_tf.files import held

ROOT = pathlib.Path(__file__).parents[1]
TINY_SETTINGS = {f"task.model.encoder.any.{key}": value for key, value in TINY.items()}
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
    variant = {
        "any.num_parts": 6, "init_checkpoint": "runs/x", "data_dir": "y", "settings": {"trainer.train_steps": 9},
    }  # fmt: skip
    grid = compare.read_grid(write_grid(tmp_path, variants={**GRID["variants"], "six": variant}), data_dir="corpus")
    assert [job.name for job in grid.jobs] == [
        "shatter/lr0.001-seed0", "bert/lr0.001-seed0", "bert/lr0.002-seed0", "six/lr0.001-seed0",
        "shatter/lr0.001-seed1", "six/lr0.001-seed1",
    ]  # fmt: skip
    shatter, bert, six = grid.jobs[0], grid.jobs[2], grid.jobs[3]
    assert (six.data_dir, six.init_checkpoint, shatter.data_dir) == ("y", "runs/x", "corpus")
    assert six.settings["trainer"] == {**shatter.settings["trainer"], "train_steps": 9}
    encoder = six.settings["task"]["model"]["encoder"]
    assert encoder["any"]["num_parts"] == 6
    assert encoder["any"]["hidden_size"] == TINY["hidden_size"]
    assert shatter.settings["task"]["model"]["encoder"]["any"]["num_parts"] == TINY["num_parts"]
    assert bert.settings["task"]["model"]["encoder"]["type"] == "bert"
    assert bert.settings["trainer"]["optimizer_config"]["learning_rate"]["polynomial"] == {
        "initial_learning_rate": 2e-3
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(variant={}), r"no setting variant \(did you mean variants\?\)"),
        (dict(variants={}), "needs an experiment and variants"),
        (dict(seeds=0), "shatter: learning_rates and seeds must be lists of numbers"),
        (dict(learning_rates=[]), "shatter: learning_rates and seeds must be lists of numbers"),
        (dict(learning_rates=["fast"]), "shatter: learning_rates and seeds must be lists of numbers"),
        (dict(variants={"four": 4}), "four: 4 is no settings"),
        (dict(variants={"text": {"settings": "trainer.train_steps=4"}}), "text: .* is no settings"),
        (dict(variants={"any[4]": {}}), r"variant=any\[4\]: TensorFlow takes \[ \] for a pattern"),
        (dict(settings="trainer.train_steps=4"), "settings must be a mapping of names to values"),
        (dict(under=["task"]), "settings must be a mapping of names to values, and under a name"),
        (dict(evaluate_at=512), "evaluate_at=512: needs a list of lengths"),
        (dict(reference="brt"), r"no variant brt \(did you mean bert\?\)"),
        (dict(plot=["shattr"]), r"no variant shattr \(did you mean shatter\?\)"),
        (dict(config_file="none.yaml"), "--config_file=none.yaml: no such file"),
    ],
)
def test_read_grid_refuses(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        compare.read_grid(write_grid(tmp_path, **changes))


def test_the_commit_is_ours_or_unknown(monkeypatch):
    """Not that of a repository in which shatter_tf is installed; and there may be no git."""
    assert (compare._commit() != "unknown") == (ROOT / ".git").exists()
    monkeypatch.setattr(compare, "__file__", str(ROOT / "shatter_tf/installed.py"))
    assert compare._commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert compare._commit() == "unknown"


def test_a_mistake_in_the_last_variant_stops_the_first_run(tmp_path, write_corpus, random_documents):
    data = write_corpus(random_documents(shards=1, per_shard=20))
    grid = write_grid(tmp_path, variants={**GRID["variants"], "wrong": {"any.num_partz": 6}})
    flags = [f"--data_dir={data}", f"--output_dir={tmp_path}/out"]
    with pytest.raises(UserError, match="no setting task.model.encoder.any.num_partz"):
        compare.main([f"--grid={grid}", *flags])
    with pytest.raises(UserError, match="--output_dir=gs://b/out: must be on a disk"):
        compare.main([f"--grid={grid}", "--output_dir=gs://b/out"])
    with pytest.raises(UserError, match="validation_data.seq_length=4096 is longer than the encoder's"):
        compare.main([f"--grid={write_grid(tmp_path, evaluate_at=[4096])}", *flags])
    assert not list((tmp_path / "out").rglob("model"))


def test_results_of_other_settings_are_not_taken_for_these(tmp_path, write_corpus, random_documents):
    data, out = write_corpus(random_documents(shards=1, per_shard=20)), tmp_path / "out"
    grid = compare.read_grid(write_grid(tmp_path), data)
    (out / grid.jobs[0].name / "model").mkdir(parents=True)
    (out / grid.jobs[0].name / "settings.yaml").write_text(yaml.safe_dump(grid.jobs[0].settings))
    compare.prepare_job(grid, grid.jobs[0], str(out))
    more = compare.read_grid(write_grid(tmp_path, settings={**GRID["settings"], "task.train_data.seq_length": 8}), data)
    with pytest.raises(UserError, match="begun with other settings .task.train_data.seq_length was None, not 8"):
        compare.prepare_job(more, more.jobs[0], str(out))

    (tmp_path / "other").symlink_to(data)
    compare.prepare_job(grid, dataclasses.replace(grid.jobs[0], data_dir=str(tmp_path / "other")), str(out))
    with pytest.raises(UserError, match="begun with other data .data_dir was .*corpus, not .*labels"):
        compare.prepare_job(grid, dataclasses.replace(grid.jobs[0], data_dir=str(tmp_path / "labels")), str(out))

    finished = {**make_result("shatter", 1e-3, 0, [5.0]), "settings": grid.jobs[0].settings, "data_dir": data}
    (out / "results.jsonl").write_text(json.dumps(finished) + "\n")
    compare.check_results(grid, str(out))
    with pytest.raises(UserError, match="results.jsonl: shatter/lr0.001-seed0: begun with other settings"):
        compare.check_results(more, str(out))
    with pytest.raises(UserError, match="data_dir was .*, not /elsewhere"):
        compare.check_results(compare.read_grid(write_grid(tmp_path), "/elsewhere"), str(out))
    (out / "results.jsonl").write_text(json.dumps(finished) + '\n{"variant": "sh')
    with pytest.raises(UserError, match="results.jsonl: damaged"):
        compare.check_results(grid, str(out))


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
    grid = compare.read_grid(write_grid(tmp_path))
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
    (tmp_path / compare.STEP_SECONDS_FILE).write_text(json.dumps(dict(shatter=0.2, bert=0.4)))
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
    assert "1 left to other processes" in capsys.readouterr().out
    assert not (out / "results.jsonl").exists()
    assert not (directory / "model").exists()


WORK = """
import os, sys, time
from shatter_tf.preemption import StopRequest
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
        "import signal, sys\nfrom shatter_tf import compare\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # where tests run in the background, it is ignored
        "compare._handle_signals()\n"
        "job = compare.Job('v', 1e-3, 0, {}, None, None)\n"
        f"compare._call([sys.executable, '-c', {WORK!r}], job, {str(log)!r})"
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
