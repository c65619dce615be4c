"""Every file in configs/ parses strictly, and takes a train and an eval step when shrunk."""

import pathlib

import pytest
import yaml
from official.core import exp_factory
from tiny import TINY, one_step

from shatter_tf import compare, settings

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS, GRIDS = (sorted((ROOT / name).glob("*.yaml")) for name in ("configs", "research"))
# What shrinking changes, whatever the file.
SHRUNK = ",".join(
    [
        *(f"task.model.encoder.any.{key}={value}" for key, value in TINY.items()),
        "task.train_data.global_batch_size=4,task.train_data.seq_length=16,runtime.mixed_precision_dtype=float32",
    ]
)


def test_the_files_that_users_are_told_of_exist():
    names = {"pretrain_tiny", "pretrain_mini", "pretrain_small", "pretrain_base", "pretrain_long", "classify"}
    assert names <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, write_corpus, random_documents, tmp_path, vocab_file):
    text = path.read_text()
    experiment = "shatter/classify" if path.stem.startswith("classify") else "shatter/pretrain"
    header = text.split("\ntask:")[0]
    assert f"--experiment={experiment}" in header
    assert f"configs/{path.name}" in header
    assert all(word in header for word in ("Hardware:", "Time:", "Expect:"))

    if experiment == "shatter/pretrain":
        data_dir = write_corpus(random_documents(shards=1, per_shard=30))
        more = ""
    else:
        data_dir = tmp_path
        for split in ("train", "dev"):
            (tmp_path / f"{split}.tsv").write_text("".join(f"the cat {i}\tlabel{i % 2}\n" for i in range(40)))
        more = f",task.train_data.vocab_file={vocab_file}"

    def resolve(override):
        return settings.resolve(
            experiment, config_file=str(path), data_dir=str(data_dir), params_override=override.strip(",")
        ).params

    one_step(resolve(SHRUNK + more))
    as_it_is = resolve(more)
    assert as_it_is.task.model.encoder.any.problems() == []
    in_file = yaml.safe_load(text)
    if experiment == "shatter/classify":
        del in_file["task"]["model"]  # wins over the checkpoint's settings, not over the defaults
    in_file["task"].pop("validation_data", None)  # differs from training's settings, not from the defaults
    _assert_only_differences(in_file, exp_factory.get_exp_config(experiment).as_dict())


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_a_grid_could_start(path, write_corpus, random_documents, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    header = path.read_text().split("\nexperiment:")[0]
    assert f"--grid=research/{path.name}" in header
    assert all(word in header for word in ("Corpus:", "Hardware:", "Time:"))
    grid = compare.read_grid(str(path), write_corpus(random_documents(shards=1, per_shard=30)))
    if grid.experiment == "shatter/classify":
        return  # it begins with a pretrained encoder, which is not here
    resolved = [compare.prepare_job(grid, job, str(tmp_path / "out"))[1] for job in grid.jobs]
    assert len({(str(run.params.as_dict())) for run in resolved}) == len(resolved)  # no variant is another's twin


def _assert_only_differences(settings_of_file, defaults, key=""):
    for name, value in settings_of_file.items():
        if isinstance(value, dict):
            _assert_only_differences(value, defaults[name], f"{key}{name}.")
        else:
            assert defaults[name] != value, f"{key}{name}={value} is the default"
