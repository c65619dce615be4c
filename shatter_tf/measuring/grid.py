"""A grid file, read and checked: the runs of a comparison. What such a file holds is in shatter_tf/compare.py."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from shatter_tf.config_files import find_config
from shatter_tf.errors import UserError, argument, nearest
from shatter_tf.files import check_name
from shatter_tf.training.overrides import merge, read_config_file, with_current_names

# What a comparison leaves in its directory, for its report.
RESULTS_FILE = "results.jsonl"
STEP_SECONDS_FILE = "step_seconds.json"

_GRID_KEYS = (
    *("experiment", "config", "config_file", "settings", "under", "learning_rates", "seeds"),
    *("reference", "plot", "evaluate_at", "variants"),
)
_SEED = "task.train_data.seed"
_LEARNING_RATE = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a grid: its name, and what `train` needs for it."""

    variant: str
    learning_rate: float
    seed: int
    settings: dict
    data_dir: str | None
    init_checkpoint: str | None
    init_teacher: str | None = None

    @property
    def key(self) -> tuple[str, float, int]:
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
    result = {}
    for key, value in settings.items():
        value = nest(value) if isinstance(value, dict) else value
        for part in reversed(key.split(".")):
            value = {part: value}
        result = merge(result, value)
    return result


def read_grid(path: str, data_dir: str | None = None) -> Grid:
    """Returns the grid in a YAML file; raises UserError.

    Args:
      path: of the file.
      data_dir: of the variants that do not name their own.
    """
    where = f"{argument('grid')}={path}"
    grid = read_config_file(path, "grid")
    _check(grid, where)

    config_file = find_config(str(grid["config"])) if grid.get("config") else grid.get("config_file")
    shared = read_config_file(config_file) if config_file else {}
    shared = merge(with_current_names(shared), with_current_names(nest(grid.get("settings") or {})))
    variants = {str(name): own for name, own in grid["variants"].items()}
    jobs = []
    for name, own in variants.items():
        jobs += _jobs(name, own, grid, shared, data_dir, where)

    # The first seed of every variant before the second of any, so that all can be compared early.
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    jobs.sort(key=lambda job: seeds.index(job.seed))

    reference = str(grid.get("reference", next(iter(variants))))
    plot = [str(name) for name in grid.get("plot") or variants]
    for name in (reference, *plot):
        if name not in variants:
            raise UserError(f"{where}: no variant {name}{nearest(name, variants)}")
    return Grid(grid["experiment"], reference, plot, grid.get("evaluate_at") or [], jobs)


def _check(grid: dict, where: str) -> None:
    """Raises UserError for what is wrong in a grid outside its variants."""
    for key in grid:
        if key not in _GRID_KEYS:
            raise UserError(f"{where}: no setting {key}{nearest(str(key), _GRID_KEYS)}")

    variants = grid.get("variants")
    if "experiment" not in grid or not isinstance(variants, dict) or not variants:
        raise UserError(f"{where}: needs an experiment and variants")
    if not isinstance(grid.get("settings") or {}, dict) or not isinstance(grid.get("under"), str | None):
        raise UserError(f"{where}: settings must be a mapping of names to values, and under a name")

    lengths = grid.get("evaluate_at") or []
    if not _are(int, lengths):
        raise UserError(f"{where}: evaluate_at={lengths}: needs a list of lengths in tokens")


def _jobs(name: str, own: Any, grid: dict, shared: dict, data_dir: str | None, where: str) -> Iterator[Job]:
    """Yields the runs of one variant, whose settings in the grid are `own`; raises UserError."""
    if not isinstance(own, dict | None) or not isinstance((own or {}).get("settings") or {}, dict):
        raise UserError(f"{where}: {name}: {own!r} is no settings")
    check_name(name, f"{where}: variant")

    own = dict(own or {})
    rates, seeds = (own.pop(key, grid.get(key)) for key in ("learning_rates", "seeds"))
    if not (rates and _are((int, float), rates) and seeds and _are(int, seeds)):
        raise UserError(f"{where}: {name}: learning_rates and seeds must be lists of numbers")
    flags = {name: own.pop(name, None) for name in ("init_checkpoint", "init_teacher")}
    flags["data_dir"] = own.pop("data_dir", data_dir)
    with_full_names = nest(own.pop("settings", None) or {})

    # What is left are settings relative to `under`.
    settings = nest({grid["under"]: own} if grid.get("under") else own)
    settings = merge(shared, with_current_names(settings))
    settings = merge(settings, with_current_names(with_full_names))
    for seed, rate in itertools.product(seeds, rates):
        run = nest({_SEED: seed, _LEARNING_RATE: float(rate)})
        yield Job(name, float(rate), seed, merge(settings, run), **flags)


def _are(kind: type | tuple[type, ...], values: Any) -> bool:
    """Returns whether `values` is a list of `kind`; booleans do not count as numbers."""
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
