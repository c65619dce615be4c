"""Tries a few training steps of a run before it starts: which way to compute is fastest, and what a budget allows.

The steps are taken in a process of their own, so that the run itself begins as if nothing had been tried.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile

from shatter_tf.console import notice, quieten_logging, run
from shatter_tf.errors import UserError
from shatter_tf.tasks.registry import get_experiment
from shatter_tf.training import device
from shatter_tf.training.device import Way
from shatter_tf.training.run_dir import Run
from shatter_tf.training.timing import TrainingStep, measure

_ROUNDS = 5

# Of a run, beside its steps: start-up, evaluations and checkpoints.
START_SECONDS = 15.0
_EVALUATIONS = 5
_EVALUATION_COST = 1 / 3  # of a row, in that of training on one: the forward pass only


def fastest(run: Run) -> tuple[Way, float]:
    """Returns the fastest of the ways that the settings of `run` leave open, and the seconds of a step.

    Raises:
      UserError: when no step can be taken, for lack of memory, say.
    """
    ways = device.candidates(run.params.runtime)
    notice(f"trying steps with {' and with '.join(map(str, ways))}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as vocabulary:
        vocabulary.write("\n".join(run.vocabulary) + "\n")
        vocabulary.flush()
        given = dict(
            experiment=run.experiment,
            params=run.params.as_dict(),
            vocab_file=vocabulary.name,
            ways=[dataclasses.asdict(way) for way in ways],
        )
        command = [sys.executable, "-m", __name__]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise UserError(f"no step could be tried ({lines[-1].removeprefix('error: ')})")
    seconds = json.loads(done.stdout.splitlines()[-1])
    best = min(range(len(ways)), key=seconds.__getitem__)
    return ways[best], seconds[best]


def steps_within(budget: float, seconds: float, run: Run) -> int:
    """Returns how many steps fit into a time, with a start, evaluations and checkpoints.

    Args:
      budget: the time, in seconds.
      seconds: of a step.
      run: whose evaluations count.

    Raises:
      UserError: when not even one step fits.
    """
    task = run.params.task
    evaluation = run.params.trainer.validation_steps * task.validation_data.global_batch_size
    rows = task.rows(run.data)[1] if evaluation <= 0 else evaluation
    row_seconds = seconds / task.train_data.global_batch_size
    others = START_SECONDS + _EVALUATIONS * rows * row_seconds * _EVALUATION_COST
    steps = math.floor((budget - others) / seconds)
    if steps < 1:
        raise UserError(
            f"a budget of {budget:.0f} s is too short: start-up and evaluations alone take about {others:.0f} s"
        )
    return steps - steps % 20 or steps  # a round number: five evaluations, evenly


def main(argv: list[str]) -> None:
    """Reads what `fastest` gives, and writes the seconds of a step for each way."""
    quieten_logging()
    given = json.load(sys.stdin)
    steps = {}
    for i, way in enumerate(given["ways"]):
        params = get_experiment(given["experiment"])
        params.override(given["params"], is_strict=True)
        if hasattr(params.task.train_data, "vocab_file"):
            params.task.train_data.vocab_file = given["vocab_file"]
        params.override({"runtime": dict(enable_xla=way["enable_xla"], mixed_precision_dtype=way["precision"])})
        steps[i] = TrainingStep(params)
    print(json.dumps([statistics.median(seconds) for seconds in measure(steps, _ROUNDS).values()]))


if __name__ == "__main__":
    run(main)
