"""Compares settings: trains a grid of variants, learning rates and seeds, and plots the results.

  python -m shatter_tf.compare --grid=research/ladder.yaml --data_dir=corpus --output_dir=runs/ladder
  python -m shatter_tf.compare --grid=research/ladder.yaml --data_dir=corpus --output_dir=runs/ladder --time_steps=20

Every run is an ordinary `python -m shatter_tf.train`; the whole grid is checked before the first. Stop it at any time:
the same command resumes where it was, in the middle of a run too. Start it several times, on one GPU each
(CUDA_VISIBLE_DEVICES) or on machines that share a disk, and they share the runs. OUTPUT_DIR gets results.jsonl (a line
for each finished run), report.md and figures, updated after every run, and each run's settings, log and checkpoints.

--time_steps measures how long a training step of each variant takes, in turn in one process, so that variations in the
machine's speed affect all alike; the report's wall-clock is then steps times that. Run it on an idle machine.

A grid is YAML:

  experiment: shatter/pretrain
  config_file: configs/pretrain_mini.yaml
  settings: {trainer.train_steps: 1000}        # of every run, dotted or nested
  under: task.model.encoder                    # what the keys of variants are relative to; nothing if left out
  learning_rates: [1e-3]
  seeds: [0, 1, 2]
  reference: bert                              # the variant that others are measured against
  plot: [bert, shatter]                        # curves to draw; all if left out
  evaluate_at: [512]                           # other lengths, in tokens, to evaluate at when pretraining ends
  variants:
    shatter: {}
    narrow: {any.num_parts: 4}
    bert: {type: bert, learning_rates: [5e-4, 1e-3]}

A variant may have its own learning_rates, seeds, data_dir, init_checkpoint, and `settings` with full names.
"""

import argparse
import copy
import dataclasses
import datetime
import functools
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time

from shatter_tf.command_line import UserError, nearest, new_parser, quieten_logging, run, say

RESULTS_FILE, STEP_SECONDS_FILE = "results.jsonl", "step_seconds.json"
_GRID_KEYS = (
    *("experiment", "config_file", "settings", "under", "learning_rates", "seeds"),
    *("reference", "plot", "evaluate_at", "variants"),
)
_SEED = "task.train_data.seed"
_LEARNING_RATE = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate"

# What asks a comparison to stop: schedulers, Ctrl-C, and a terminal that is closed.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_stopped = threading.Event()  # set by them


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a grid: its name, and what `train` needs for it."""

    variant: str
    learning_rate: float
    seed: int
    settings: dict
    data_dir: str | None
    init_checkpoint: str | None

    @property
    def key(self) -> tuple:
        return self.variant, self.learning_rate, self.seed

    @property
    def name(self) -> str:
        return f"{self.variant}/lr{self.learning_rate:g}-seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid file, read and checked; `metric` is what runs are judged by, and `sign` is 1 where higher is better."""

    experiment: str
    reference: str
    plot: list[str]
    evaluate_at: list[int]
    jobs: list[Job]
    metric: str = "loss"
    sign: int = -1


def nest(settings: dict) -> dict:
    """Returns settings, whose keys may be dotted, as nested dicts.

    Example:
    >>> nest({"trainer.train_steps": 10, "trainer": {"max_to_keep": 1}})
    {'trainer': {'train_steps': 10, 'max_to_keep': 1}}
    """
    from shatter_tf.settings import merge

    result = {}
    for key, value in settings.items():
        value = nest(value) if isinstance(value, dict) else value
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def read_grid(path: str, data_dir: str | None = None) -> Grid:
    """Returns the grid in a YAML file; raises UserError."""
    from shatter_tf.files import check_name
    from shatter_tf.settings import merge, read_config_file

    grid = read_config_file(path, "--grid")
    unknown = [key for key in grid if key not in _GRID_KEYS]
    if unknown:
        raise UserError(f"--grid={path}: no setting {unknown[0]}{nearest(unknown[0], _GRID_KEYS)}")
    variants = grid.get("variants")
    if "experiment" not in grid or not isinstance(variants, dict) or not variants:
        raise UserError(f"--grid={path}: needs an experiment and variants")
    if not isinstance(grid.get("settings") or {}, dict) or not isinstance(grid.get("under"), str | None):
        raise UserError(f"--grid={path}: settings must be a mapping of names to values, and under a name")
    shared = read_config_file(grid["config_file"]) if grid.get("config_file") else {}
    shared = merge(shared, nest(grid.get("settings") or {}))
    under, jobs = grid.get("under"), []
    variants = {str(name): own for name, own in variants.items()}
    lengths = grid.get("evaluate_at") or []
    if not _are(int, lengths):
        raise UserError(f"--grid={path}: evaluate_at={lengths}: needs a list of lengths in tokens")
    for name, own in variants.items():
        if not isinstance(own, dict | None) or not isinstance((own or {}).get("settings") or {}, dict):
            raise UserError(f"--grid={path}: {name}: {own!r} is no settings")
        check_name(name, f"--grid={path}: variant")
        own = dict(own or {})
        rates, seeds = (own.pop(key, grid.get(key)) for key in ("learning_rates", "seeds"))
        if not (rates and _are((int, float), rates) and seeds and _are(int, seeds)):
            raise UserError(f"--grid={path}: {name}: learning_rates and seeds must be lists of numbers")
        flags = dict(data_dir=own.pop("data_dir", data_dir), init_checkpoint=own.pop("init_checkpoint", None))
        whole = nest(own.pop("settings", None) or {})
        settings = merge(merge(shared, nest({under: own} if under else own)), whole)
        for seed, rate in itertools.product(seeds, rates):
            more = nest({_SEED: seed, _LEARNING_RATE: float(rate)})
            jobs.append(Job(name, float(rate), seed, merge(settings, more), **flags))
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    # The first seed of every variant before the second of any, so that all can be compared early.
    jobs.sort(key=lambda job: seeds.index(job.seed))
    reference = str(grid.get("reference", next(iter(variants))))
    plot = [str(name) for name in grid.get("plot") or variants]
    for name in (reference, *plot):
        if name not in variants:
            raise UserError(f"--grid={path}: no variant {name}{nearest(name, variants)}")
    return Grid(grid["experiment"], reference, plot, lengths, jobs)


def _are(kind, values) -> bool:
    """Whether `values` is a list of `kind`; booleans do not count as such."""
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


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


def _finished(output_dir: str) -> set[tuple]:
    """Returns the keys of the finished jobs, including those of other processes."""
    from shatter_tf.files import held

    with held(output_dir, wait=True):
        return {(line["variant"], line["learning_rate"], line["seed"]) for line in read_results(output_dir)}


def _commit() -> str:
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True).stdout.strip()

    try:
        # When installed, this file may lie inside a repository that is not its own.
        is_ours = git("ls-files", os.path.basename(__file__))
        return (is_ours and git("describe", "--always", "--dirty")) or "unknown"
    except OSError:  # no git here
        return "unknown"


def prepare_job(grid: Grid, job: Job, output_dir: str) -> tuple:
    """Writes the job's settings into its directory and checks them; returns (directory, Run). Raises UserError."""
    import yaml

    from shatter_tf import model_dir as model_dirs
    from shatter_tf import settings
    from shatter_tf.files import write_whole

    directory = os.path.join(output_dir, job.name)
    config_file = os.path.join(directory, "settings.yaml")
    inputs_file, inputs = os.path.join(directory, "inputs.json"), _inputs(job)
    if os.path.exists(os.path.join(directory, "model")):
        _check_settings(directory, settings.read_config_file(config_file), job)
        if os.path.exists(inputs_file):
            with open(inputs_file, encoding="utf8") as f:
                changed = model_dirs.differences(json.load(f), inputs)
            if changed:
                raise UserError(f"{directory}: begun with other data ({'; '.join(changed)}); name another --output_dir")
    os.makedirs(directory, exist_ok=True)
    write_whole(inputs_file, json.dumps(inputs))
    write_whole(config_file, yaml.safe_dump(copy.deepcopy(job.settings), sort_keys=False))
    resolve = functools.partial(
        settings.resolve,
        grid.experiment,
        config_file=config_file,
        data_dir=job.data_dir,
        init_checkpoint=job.init_checkpoint,
    )
    for length in grid.evaluate_at:
        resolve(params_override=_at_length(length))
    return directory, resolve(model_dir=os.path.join(directory, "model"))


def _inputs(job: Job) -> dict[str, str | None]:
    """Returns the real paths of a job's data and weights, independent of the working directory."""
    from shatter_tf.files import real_path

    flags = dict(data_dir=job.data_dir, init_checkpoint=job.init_checkpoint)
    return {flag: path and real_path(path) for flag, path in flags.items()}


def _at_length(length: int) -> str:
    return f"task.validation_data.seq_length={length}"


def _check_settings(where: str, recorded: dict, job: Job) -> None:
    """Raises UserError when the recorded settings of a run are not those of the job."""
    from shatter_tf import model_dir as model_dirs

    changed = model_dirs.differences(recorded, job.settings)
    if changed:
        raise UserError(
            f"{where}: begun with other settings ({'; '.join(changed)}); give the variant another name, or name "
            "another --output_dir"
        )


def check_results(grid: Grid, output_dir: str) -> None:
    """Raises UserError when a finished run has the name of one in the grid, but other settings or data."""
    jobs = {job.key: job for job in grid.jobs}
    for line in read_results(output_dir):
        job = jobs.get((line["variant"], line["learning_rate"], line["seed"]))
        if job:
            where = f"{os.path.join(output_dir, RESULTS_FILE)}: {job.name}"
            _check_settings(where, line["settings"], job)
            for flag in ("data_dir", "init_checkpoint"):
                old, new = line.get(flag), getattr(job, flag)
                if old and new and os.path.realpath(old) != os.path.realpath(new):
                    raise UserError(f"{where}: {flag} was {old}, not {new}; name another --output_dir")


def run_job(grid: Grid, job: Job, directory: str) -> dict:
    """Trains one job to its end, resuming where it was; returns its line of results.jsonl.

    Raises:
      UserError: when training failed, with the last line of its output.
    """
    from shatter_tf import model_dir as model_dirs

    model_dir, log_path = os.path.join(directory, "model"), os.path.join(directory, "train.log")
    command = [sys.executable, "-m", "shatter_tf.train", f"--experiment={grid.experiment}", f"--model_dir={model_dir}"]
    command.append(f"--config_file={os.path.join(directory, 'settings.yaml')}")
    command += [f"--{flag}={value}" for flag in ("data_dir", "init_checkpoint") if (value := getattr(job, flag))]
    _call(command, job, log_path)
    other_lengths = {}
    for length in grid.evaluate_at:
        _call([*command, "--mode=eval", f"--params_override={_at_length(length)}"], job, log_path)
        other_lengths[str(length)] = model_dirs.read_metrics(model_dir)
    metrics = model_dirs.read_metrics(model_dir)
    return dict(
        variant=job.variant,
        learning_rate=job.learning_rate,
        seed=job.seed,
        parameters=metrics["parameters"],
        commit=_commit(),
        finished=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        settings=job.settings,
        data_dir=job.data_dir,
        init_checkpoint=job.init_checkpoint,
        history=model_dirs.read_history(model_dir),
        other_lengths=other_lengths,
    )


def _call(command: list[str], job: Job, log_path: str) -> None:
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
        say("stopped, as asked; the same command resumes from there")
        sys.exit(os.EX_TEMPFAIL)
    if code:
        with open(log_path, encoding="utf8") as log:
            last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{job.name}: {last} (more in {log_path})")


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = new_parser("compare", __doc__)
    parser.add_argument("--grid", required=True, metavar="F", help="YAML; see above")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="where runs, results and report go")
    parser.add_argument("--data_dir", metavar="DIR", help="prepared corpus, or labelled text")
    parser.add_argument("--time_steps", type=int, default=0, metavar="N", help="only time N steps of each variant")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = parse_arguments(argv)
    from shatter_tf import report
    from shatter_tf.files import check_name, held, write_whole
    from shatter_tf.training_step import TrainingStep, measure

    quieten_logging()
    if args.time_steps < 0:
        raise UserError(f"--time_steps={args.time_steps} is negative")
    check_name(args.output_dir, "--output_dir")
    if "://" in args.output_dir:
        raise UserError(f"--output_dir={args.output_dir}: must be on a disk")
    grid = read_grid(args.grid, args.data_dir)
    os.makedirs(args.output_dir, exist_ok=True)
    with held(args.output_dir, wait=True):
        check_results(grid, args.output_dir)
        prepared = {job.key: prepare_job(grid, job, args.output_dir) for job in grid.jobs}
    grid = _judged(grid, prepared[grid.jobs[0].key][1].params)

    if args.time_steps:
        first_jobs = {job.variant: job for job in reversed(grid.jobs)}
        steps = {}
        for variant, job in first_jobs.items():
            say(f"compiling {variant}", sys.stderr)
            steps[variant] = TrainingStep(prepared[job.key][1].params)
            steps[variant]()
        medians = {variant: statistics.median(s) for variant, s in measure(steps, args.time_steps).items()}
        with open(os.path.join(args.output_dir, STEP_SECONDS_FILE), "w", encoding="utf8") as f:
            json.dump(medians, f, indent=1)

    done = _finished(args.output_dir)
    todo = [job for job in grid.jobs if job.key not in done] if not args.time_steps else []
    if todo:
        _handle_signals()
    elsewhere, failures = 0, []
    for number, job in enumerate(todo, 1):
        directory = prepared[job.key][0]
        with held(directory) as free:
            if not free or job.key in _finished(args.output_dir):
                elsewhere += 1
                continue
            say(f"[{number}/{len(todo)}] {job.name}")
            begin = time.monotonic()
            try:
                line = run_job(grid, job, directory)
            except UserError as error:
                say("  failed")
                failures.append(str(error))
                continue
            with held(args.output_dir, wait=True):
                results = [*read_results(args.output_dir), line]
                lines = "".join(json.dumps(line) + "\n" for line in results)
                write_whole(os.path.join(args.output_dir, RESULTS_FILE), lines)
                report.write(grid, results, args.output_dir)
        last, took = line["history"][-1], datetime.timedelta(seconds=round(time.monotonic() - begin))
        figures = "  ".join(f"{key} {value:.4f}" for key, value in last.items() if key not in ("step", "seconds"))
        say(f"  step {last['step']}  {figures}  ({took})")
    if elsewhere:
        say(f"{elsewhere} left to other processes of this comparison")
    with held(args.output_dir, wait=True):
        results = read_results(args.output_dir)
        if results:
            report.write(grid, results, args.output_dir)
            say(f"{len(results)} runs in {os.path.join(args.output_dir, report.REPORT_FILE)}")
    if failures:
        raise UserError("; ".join(failures))


def _judged(grid: Grid, params) -> Grid:
    """Returns the grid with its task's metric; for pretraining that is the loss, which is finer than the accuracy."""
    if grid.experiment == "shatter/pretrain":
        return grid
    sign = 1 if params.trainer.best_checkpoint_metric_comp == "higher" else -1
    return dataclasses.replace(grid, metric=params.trainer.best_checkpoint_eval_metric, sign=sign)


def _handle_signals() -> None:
    """From now on a comparison that is asked to stop first stops its run, in a way that can be resumed."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            # An exception would not do: if the signal interrupts a destructor, Python drops it.
            signal.signal(number, lambda *_: _stopped.set())


if __name__ == "__main__":
    run(main)
