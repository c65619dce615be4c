"""A comparison: the runs of a grid, each trained by `shatter_tf.train`, resumed where it stopped, and reported.

Its directory has

  results.jsonl         a line for each finished run
  step_seconds.json     the median step time of each variant, if measured
  report.md, *.png      see report.py
  VARIANT/lrX-seedY/    a run: settings.yaml and inputs.json, which it was begun with; train.log; model/, its model_dir

Locks keep processes apart that share a comparison: the directory's own is held only to read and write the files on top,
a run's as long as it is trained.
"""

import dataclasses
import datetime
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time

import yaml

import shatter_tf
from shatter_tf.console import say
from shatter_tf.errors import UserError, argument
from shatter_tf.files import check_name, held, real_path, write_whole
from shatter_tf.measuring import report
from shatter_tf.measuring.grid import RESULTS_FILE, STEP_SECONDS_FILE, Grid, Job, read_grid
from shatter_tf.training import overrides, run_dir, settings
from shatter_tf.training.run_dir import Run
from shatter_tf.training.timing import TrainingStep, measure

_DIRECTORIES = ("data_dir", "init_checkpoint", "init_teacher")  # that a run starts from

# What asks a comparison to stop: schedulers, Ctrl-C, and a terminal that is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_stopped = threading.Event()  # set by them


def compare(grid: str, output_dir: str, data_dir: str | None = None, time_steps: int = 0) -> None:
    """Trains the runs of a grid that are not finished, or only times their steps, and writes the report.

    Args:
      grid: its file.
      output_dir: where runs, results and report go.
      data_dir: of the variants that do not name their own.
      time_steps: if positive, only this many steps of each variant are timed.

    Raises:
      UserError: for anything that would stop one of the runs, before the first begins; and in the end, for the runs
        that failed.
    """
    if time_steps < 0:
        raise UserError(f"{argument('time_steps')}={time_steps} is negative")
    check_name(output_dir, argument("output_dir"))
    if "://" in output_dir:
        raise UserError(f"{argument('output_dir')}={output_dir}: must be on a disk")

    # Check everything.
    read = read_grid(grid, data_dir)
    os.makedirs(output_dir, exist_ok=True)
    with held(output_dir, wait=True):
        check_results(read, output_dir)
        runs = {job.key: prepare_job(read, job, output_dir) for job in read.jobs}
    first = runs[read.jobs[0].key].params
    metric, sign = first.task.compared_by(first.trainer)
    read = dataclasses.replace(read, metric=metric, sign=sign)

    # Time or train.
    failures = []
    if time_steps:
        _time_steps({job.variant: runs[job.key] for job in reversed(read.jobs)}, time_steps, output_dir)
    else:
        failures = _train(read, output_dir)

    # Report.
    with held(output_dir, wait=True):
        results = read_results(output_dir)
        if results:
            report.write(read, results, output_dir)
            say(f"{len(results)} runs in {os.path.join(output_dir, report.REPORT_FILE)}")
    if failures:
        raise UserError("; ".join(failures))


def _time_steps(variants: dict[str, Run], rounds: int, output_dir: str) -> None:
    """Writes the median time of a step of each variant, measured in turn."""
    steps = {}
    for variant, run in variants.items():
        say(f"compiling {variant}", sys.stderr)
        steps[variant] = TrainingStep(run.params, data=run.data)
        steps[variant]()

    medians = {variant: statistics.median(seconds) for variant, seconds in measure(steps, rounds).items()}
    write_whole(os.path.join(output_dir, STEP_SECONDS_FILE), json.dumps(medians, indent=1))


def _train(grid: Grid, output_dir: str) -> list[str]:
    """Trains what neither is finished nor trained by another process; returns a line for each run that failed."""
    done = _finished(output_dir)
    todo = [job for job in grid.jobs if job.key not in done]
    if todo:
        _handle_signals()

    elsewhere = 0
    failures = []
    for number, job in enumerate(todo, 1):
        with held(os.path.join(output_dir, job.name)) as free:
            if not free or job.key in _finished(output_dir):
                elsewhere += 1
                continue
            say(f"[{number}/{len(todo)}] {job.name}")
            begin = time.monotonic()
            try:
                result = run_job(grid, job, output_dir)
            except UserError as error:
                say("  failed")
                failures.append(str(error))
                continue
            _add_result(grid, result, output_dir)

        last = result["history"][-1]
        figures = "  ".join(f"{key} {value:.4f}" for key, value in last.items() if key not in ("step", "seconds"))
        took = datetime.timedelta(seconds=round(time.monotonic() - begin))
        say(f"  step {last['step']}  {figures}  ({took})")

    if elsewhere:
        say(f"{elsewhere} left to other processes of this comparison")
    return failures


def read_results(output_dir: str) -> list[dict]:
    """Returns the finished runs of a comparison, in the order in which they finished."""
    path = os.path.join(output_dir, RESULTS_FILE)
    if not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf8") as f:
            return [json.loads(line) for line in f]
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); fix or remove it: it holds the finished runs") from error


def _add_result(grid: Grid, result: dict, output_dir: str) -> None:
    """Adds a run to the finished ones, and to the report."""
    with held(output_dir, wait=True):
        results = [*read_results(output_dir), result]
        write_whole(os.path.join(output_dir, RESULTS_FILE), "".join(json.dumps(line) + "\n" for line in results))
        report.write(grid, results, output_dir)


def _finished(output_dir: str) -> set[tuple]:
    """Returns the keys of the finished jobs, including those of other processes."""
    with held(output_dir, wait=True):
        return {(line["variant"], line["learning_rate"], line["seed"]) for line in read_results(output_dir)}


def check_results(grid: Grid, output_dir: str) -> None:
    """Raises UserError when a finished run has the name of one in the grid, but other settings or data."""
    jobs = {job.key: job for job in grid.jobs}
    for line in read_results(output_dir):
        job = jobs.get((line["variant"], line["learning_rate"], line["seed"]))
        if not job:
            continue
        where = f"{os.path.join(output_dir, RESULTS_FILE)}: {job.name}"
        _check_settings(where, line["settings"], job)
        for name in _DIRECTORIES:
            old, new = line.get(name), getattr(job, name)
            if old and new and os.path.realpath(old) != os.path.realpath(new):
                raise UserError(f"{where}: {name} was {old}, not {new}; name another {argument('output_dir')}")


def _check_settings(where: str, recorded: dict, job: Job) -> None:
    """Raises UserError when the recorded settings of a run are not those of the job."""
    changed = run_dir.differences(overrides.with_current_names(recorded), job.settings)
    if changed:
        raise UserError(
            f"{where}: begun with other settings ({'; '.join(changed)}); give the variant another name, or name "
            f"another {argument('output_dir')}"
        )


def prepare_job(grid: Grid, job: Job, output_dir: str) -> run_dir.Run:
    """Writes the job's settings into its directory; returns the run that they describe.

    Raises:
      UserError: when it could not start, or was begun with other settings or data.
    """
    directory = os.path.join(output_dir, job.name)
    config_file = os.path.join(directory, "settings.yaml")
    inputs_file = os.path.join(directory, "inputs.json")
    inputs = {name: path and real_path(path) for name, path in _data_and_weights(job).items()}

    if os.path.exists(os.path.join(directory, "model")):
        _check_settings(directory, overrides.read_config_file(config_file), job)
        if os.path.exists(inputs_file):
            with open(inputs_file, encoding="utf8") as f:
                changed = run_dir.differences(json.load(f), inputs)
            if changed:
                raise UserError(
                    f"{directory}: begun with other data ({'; '.join(changed)}); name another {argument('output_dir')}"
                )

    os.makedirs(directory, exist_ok=True)
    write_whole(inputs_file, json.dumps(inputs))
    write_whole(config_file, yaml.safe_dump(job.settings, sort_keys=False))
    resolve = functools.partial(settings.resolve, grid.experiment, config_file=config_file, **_data_and_weights(job))
    for length in grid.evaluate_at:
        resolve(params_override=_at_length(length))
    return resolve(model_dir=os.path.join(directory, "model"))


def _data_and_weights(job: Job) -> dict[str, str | None]:
    return {name: getattr(job, name) for name in _DIRECTORIES}


def _at_length(length: int) -> str:
    return f"task.validation_data.seq_length={length}"


def run_job(grid: Grid, job: Job, output_dir: str) -> dict:
    """Trains one job to its end, resuming where it was; returns its line of results.jsonl.

    Raises:
      UserError: when training failed, with the last line of its output.
    """
    directory = os.path.join(output_dir, job.name)
    model_dir = os.path.join(directory, "model")
    log_path = os.path.join(directory, "train.log")
    command = [sys.executable, "-m", "shatter_tf.train", f"--experiment={grid.experiment}", f"--model_dir={model_dir}"]
    command.append(f"--config_file={os.path.join(directory, 'settings.yaml')}")
    command += [f"--{name}={path}" for name, path in _data_and_weights(job).items() if path]

    _call(command, job, log_path)
    other_lengths = {}
    for length in grid.evaluate_at:
        _call([*command, "--mode=eval", f"--params_override={_at_length(length)}"], job, log_path)
        other_lengths[str(length)] = run_dir.read_metrics(model_dir)

    return dict(
        variant=job.variant,
        learning_rate=job.learning_rate,
        seed=job.seed,
        parameters=run_dir.read_metrics(model_dir)["parameters"],
        commit=_commit(),
        finished=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        settings=job.settings,
        **_data_and_weights(job),
        history=run_dir.read_history(model_dir),
        other_lengths=other_lengths,
    )


def _commit(file: str = shatter_tf.__file__) -> str:
    """Returns the commit of the repository that `file`, of this package, belongs to."""

    def git(*command: str) -> str:
        directory = os.path.dirname(os.path.abspath(file))
        return subprocess.run(["git", *command], cwd=directory, capture_output=True, text=True).stdout.strip()

    try:
        # When installed, the package may lie inside a repository that is not its own.
        is_ours = git("ls-files", os.path.basename(file))
        return (is_ours and git("describe", "--always", "--dirty")) or "unknown"
    except OSError:  # no git here
        return "unknown"


def _call(command: list[str], job: Job, log_path: str) -> None:
    """Runs a command of the job to its end, or ends this process when it is to stop; raises UserError if it failed."""
    with open(log_path, "a", encoding="utf8") as log:
        # In a session of its own: Ctrl-C reaches all processes of a terminal, and a second signal would end training
        # without saving.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None and not _stopped.wait(0.1):
                pass
        finally:  # however this process ends, the run does not go on without it
            process.terminate()
            code = process.wait()

    if _stopped.is_set():
        say("stopped; the same command resumes from there")
        sys.exit(os.EX_TEMPFAIL)
    if code:
        with open(log_path, encoding="utf8") as log:
            last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{job.name}: {last} (more in {log_path})")


def _handle_signals() -> None:
    """From now on a comparison that is asked to stop first stops its run, in a way that can be resumed."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            # An exception would not do: if the signal interrupts a destructor, Python drops it.
            signal.signal(number, lambda *_: _stopped.set())
