"""What `shatter train` does, from settings to the exit code."""

import contextlib
import functools
import os
import sys

from shatter_tf.checkpoints import latest_checkpoint, while_training
from shatter_tf.cluster import is_chief
from shatter_tf.console import notice, say, warn
from shatter_tf.errors import UserError, argument, first_line, raise_all
from shatter_tf.files import PASSING_ERRORS
from shatter_tf.training import run_dir, settings
from shatter_tf.training.distribution import WorkerLost, build_strategy
from shatter_tf.training.preemption import StopRequest
from shatter_tf.training.run_dir import Run
from shatter_tf.training.session import Session


def report_data(run: Run) -> None:
    """Prints what the data is like, unless the run is resumed; raises UserError if training on it is pointless.

    Every process of a run looks at the data: if it is refused, all end.
    """
    report = None if run.before else run.params.task.report(run.data)
    if not report:
        return
    raise_all(report.problems)
    run.facts = {**report.facts, "warnings": report.warnings}
    for line in report.lines:
        notice(line)
    for line in report.warnings:
        warn(line)


def run(experiment: str, model_dir: str, mode: str, stop: StopRequest, **given) -> int:
    """Trains or evaluates a run to its end.

    Args:
      experiment, model_dir: the run, and where it lives.
      mode: "train_and_eval", "train" or "eval".
      stop: asked between steps.
      **given: the other arguments of `settings.resolve`.

    Returns:
      The exit code: 0, or os.EX_TEMPFAIL when the same command should be tried again.

    Raises:
      UserError: for everything that a user has to change first.
    """
    resolved = settings.resolve(experiment, model_dir=model_dir, **given)
    if mode == "eval" and not latest_checkpoint(model_dir):
        raise UserError(f"{argument('model_dir')}={model_dir}: no checkpoint to evaluate")
    if mode == "train" and resolved.params.trainer.patience:
        raise UserError(f"trainer.patience counts evaluations, and {argument('mode')}=train has none")
    try:
        strategy = build_strategy(resolved.params.runtime)
        if mode != "eval":
            report_data(resolved)
        writes = mode != "eval" and is_chief()
        with run_dir.held_for_training(model_dir) if writes else contextlib.nullcontext():
            build = functools.partial(Session, resolved, model_dir, strategy)
            session = build() if mode != "eval" else while_training(build)
            notice(session.describe())
            if resolved.chosen:
                notice(f"chosen: {'  '.join(f'{name}={value}' for name, value in resolved.chosen.items())}")
            if mode == "eval":
                session.saver.only_metrics = True
                session.compare_with_baseline(session.evaluate())
                return 0
            finished = session.train(evaluate=mode == "train_and_eval", stop=stop)
            if finished:
                session.conclude()
    except WorkerLost as error:
        say(f"another worker is gone; restart all, they resume from the last checkpoint ({error})")
        os._exit(os.EX_TEMPFAIL)  # without an orderly shutdown, which would wait for the one that is gone
    except PASSING_ERRORS as error:
        say(f"stopped: {first_line(error)}; the same command resumes from the last checkpoint", sys.stderr)
        return os.EX_TEMPFAIL
    return 0 if finished else os.EX_TEMPFAIL
