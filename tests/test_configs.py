"""Every file in configs/ parses strictly, and takes a train and an eval step when shrunk."""

import dataclasses
import pathlib
import re

import pytest
import tensorflow_datasets as tfds
import yaml
from official.core import exp_factory
from tiny import TINY, one_step

from shatter_tf.config_files import find_config
from shatter_tf.errors import UserError
from shatter_tf.measuring import comparison
from shatter_tf.measuring import grid as grids
from shatter_tf.training import overrides, settings
from shatter_tf.training import run_dir as model_dir

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS, GRIDS = (sorted((ROOT / name).glob("*.yaml")) for name in ("configs", "research"))
# What shrinking changes, whatever the file.
SHRUNK = ",".join(
    [
        *(f"task.model.encoder.shatter.{key}={value}" for key, value in TINY.items()),
        "task.train_data.global_batch_size=4,task.train_data.seq_length=16,runtime.mixed_precision_dtype=float32",
    ]
)


def test_the_files_that_users_are_told_of_exist():
    names = {"pretrain_tiny", "pretrain_mini", "pretrain_small", "pretrain_base", "pretrain_long"}
    assert names | {"pretrain_longer", "classify", "tag"} == {path.stem for path in CONFIGS}


@pytest.fixture
def tfds_without_network():
    """Datasets of random rows, with the features that TensorFlow Datasets declares."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=40, policy=tfds.testing.MockPolicy.USE_CODE):
        yield


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, write_corpus, random_documents, tmp_path, vocab_file):
    text = path.read_text()
    header = text.split("\ntask:")[0]
    (experiment,) = re.findall(r"--experiment=(\S+)", header)
    (name,) = re.findall(r"--config=(\S+)", header)
    assert pathlib.Path(find_config(name)).name == path.name
    assert "Measured:" in header or all(word in header for word in ("Hardware:", "Time:", "Expect:"))

    if experiment == "shatter/pretrain":
        data_dir = write_corpus(random_documents(shards=1, per_shard=30))
        more = ""
    else:
        data_dir = tmp_path
        for split in ("train", "dev"):
            (tmp_path / f"{split}.tsv").write_text("".join(f"the cat {i}\tlabel{i % 2}\n\n" for i in range(40)))
        more = f",task.train_data.vocab_file={vocab_file}"

    def resolve(override):
        return settings.resolve(
            experiment, config_file=str(path), data_dir=str(data_dir), params_override=override.strip(",")
        ).params

    parts = ",task.model.encoder.shatter.num_parts=6" if "far_keys" in text else ""  # spans need as many
    one_step(resolve(SHRUNK + parts + more))
    as_it_is = resolve(more)
    assert as_it_is.task.model.encoder.shatter.problems() == []
    in_file = yaml.safe_load(text)
    del in_file["task"]["model"]  # says which encoder it is, or wins over the checkpoint's settings
    in_file["task"].pop("validation_data", None)  # differs from training's settings, not from the defaults
    in_file.get("trainer", {}).pop("train_steps", None)  # else they follow from the data, whatever the default
    _assert_only_differences(in_file, exp_factory.get_exp_config(experiment).as_dict())


def _public_data():
    """Yields each page of a task with a line of its table of public data: the name, and what to override."""
    for page in sorted((ROOT / "docs/tasks").glob("*.md")):
        for name, override in re.findall(
            r"^\| (\S[^|]*) \| `(task\.train_data\.tfds_name=[^`]+)`", page.read_text(), re.M
        ):
            yield pytest.param(page.stem, override, id=name)


def test_the_pages_have_the_public_data():
    names = {parameters.id for parameters in _public_data()}
    glue = {"CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"}
    assert names == glue | {"IMDB", "SQuAD 1.1", "SQuAD 2.0"}


@pytest.mark.parametrize(("task", "override"), _public_data())
def test_public_data(task, override, vocab_file):
    """Random rows with the features that TensorFlow Datasets declares; answers need rows that make sense."""
    experiment = f"shatter/{task}"
    settings.combine(experiment, None, override)
    if task == "answer":
        return
    small = re.sub(r",task\.train_data\.seq_length=\d+", "", override)
    small += f",{SHRUNK},task.train_data.vocab_file={vocab_file}"
    with tfds.testing.mock_data(num_examples=40, policy=tfds.testing.MockPolicy.USE_CODE):
        run = settings.resolve(experiment, params_override=small)
        one_step(run.params)
    assert run.params.task.pairs == (re.search("sst2|cola|imdb", override) is None)


@pytest.mark.parametrize("data", ["train_data", "validation_data"])
@pytest.mark.parametrize("experiment", ["shatter/pretrain", "shatter/tag"])
def test_tensorflow_datasets_are_refused_where_they_are_not_read(experiment, data):
    with pytest.raises(UserError, match=f"task.{data}.tfds_name=squad/v1.1: .* give data_dir, "):
        settings.resolve(experiment, params_override=f"task.{data}.tfds_name=squad/v1.1")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_run_of_a_grid_could_start(path, write_corpus, random_documents, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    header = path.read_text().split("\nexperiment:")[0]
    assert f"--grid=research/{path.name}" in header
    assert all(word in header for word in ("Corpus:", "Hardware:", "Time:"))
    corpus = write_corpus(random_documents(shards=1, per_shard=30))
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("the cat\tanimal\nthe mat\tthing\n" * 20)
    grid, resolved = grids.read_grid(str(path), corpus), []
    begun_with = {job.init_checkpoint for job in grid.jobs} - {None}
    encoders = {model: _pretend_to_have_run(model, corpus, tmp_path) for model in begun_with}
    for job in grid.jobs:
        if job.init_checkpoint:
            encoder = encoders[job.init_checkpoint]
            job = dataclasses.replace(job, init_checkpoint=encoder, data_dir=str(tmp_path))
        elif grid.experiment != "shatter/pretrain":
            vocabulary = {"task": {"train_data": {"vocab_file": f"{corpus}/vocab.txt"}}}
            job = dataclasses.replace(job, data_dir=str(tmp_path), settings=overrides.merge(job.settings, vocabulary))
        resolved.append(comparison.prepare_job(grid, job, str(tmp_path / "out")))
    assert len({(str(run.params.as_dict())) for run in resolved}) == len(resolved)  # no two variants are the same


def _pretend_to_have_run(model, corpus, base):
    """Makes all but the weights of a run, the demo's or one of a grid: runs/GRID/VARIANT/RUN/model; returns where."""
    if model in ("runs/minilm", "runs/student"):
        more = f"task.model.encoder.type={'bert' if 'minilm' in model else 'shatter'}"
        run = settings.resolve("shatter/pretrain", config="tiny", params_override=more, data_dir=corpus)
    elif model == "demo/out/pretrain":
        run = settings.resolve("shatter/pretrain", config_file="configs/pretrain_tiny.yaml", data_dir=corpus)
    else:
        output = pathlib.Path(*pathlib.Path(model).parts[:2])
        grid = grids.read_grid(f"research/{output.name}.yaml", corpus)
        (job,) = (job for job in grid.jobs if f"{output}/{job.name}/model" == model)
        run = comparison.prepare_job(grid, job, str(base / output))
    model_dir.write(str(base / model), run)
    return str(base / model)


def _assert_only_differences(settings_of_file, defaults, key=""):
    for name, value in settings_of_file.items():
        if isinstance(value, dict):
            _assert_only_differences(value, defaults[name], f"{key}{name}.")
        else:
            assert defaults[name] != value, f"{key}{name}={value} is the default"
