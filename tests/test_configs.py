"""Every file in configs/ parses strictly, and takes a train and an eval step when shrunk."""

import dataclasses
import json
import pathlib
import re

import pytest
import yaml
from official.core import exp_factory
from tiny import TINY, one_step

from shatter_tf.errors import UserError
from shatter_tf.measuring import comparison
from shatter_tf.measuring import grid as grids
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training import settings

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
    names = {"pretrain_tiny", "pretrain_mini", "pretrain_small", "pretrain_base", "pretrain_long", "classify", "tag"}
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    names |= {"imdb", *(f"glue_{task}" for task in tasks)}
    names |= {"squad_v1", "squad_v2"}
    assert names <= {path.stem for path in CONFIGS}


@pytest.fixture
def tfds_without_network():
    """Datasets of random rows, with the features that TensorFlow Datasets declares."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=40, policy=tfds.testing.MockPolicy.USE_CODE):
        yield


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config(path, write_corpus, random_documents, tmp_path, vocab_file, request):
    text = path.read_text()
    header = text.split("\ntask:")[0]
    (experiment,) = re.findall(r"--experiment=(\S+)", header)
    assert f"configs/{path.name}" in header
    assert all(word in header for word in ("Hardware:", "Time:", "Expect:"))

    shrunk = SHRUNK
    if experiment == "shatter/pretrain":
        data_dir = write_corpus(random_documents(shards=1, per_shard=30))
        more = ""
    elif experiment == "shatter/answer":
        data_dir = tmp_path
        qas = [dict(id="1", question="where sat it?", answers=[dict(text="mat", answer_start=15)])]
        if path.stem == "squad_v2":
            qas.append(dict(id="2", question="who ran?", answers=[], is_impossible=True))
        paragraph = dict(context="the cat sat on mat", qas=qas)
        for split in ("train", "dev"):
            (tmp_path / f"{split}.json").write_text(json.dumps(dict(data=[dict(paragraphs=[paragraph])])))
        more = f",task.train_data.vocab_file={vocab_file},task.train_data.tfds_name=''"
        shrunk += ",task.train_data.max_query_length=4,task.max_answer_length=5"
    elif "tfds_name" in text:
        request.getfixturevalue("tfds_without_network")
        data_dir = None
        more = f",task.train_data.vocab_file={vocab_file}"
    else:
        data_dir = tmp_path
        for split in ("train", "dev"):
            (tmp_path / f"{split}.tsv").write_text("".join(f"the cat {i}\tlabel{i % 2}\n\n" for i in range(40)))
        more = f",task.train_data.vocab_file={vocab_file}"

    def resolve(override):
        return settings.resolve(
            experiment, config_file=str(path), data_dir=data_dir and str(data_dir), params_override=override.strip(",")
        ).params

    one_step(resolve(shrunk + more))
    as_it_is = resolve(more)
    assert as_it_is.task.model.encoder.shatter.problems() == []
    in_file = yaml.safe_load(text)
    if experiment != "shatter/pretrain":
        del in_file["task"]["model"]  # wins over the checkpoint's settings, not over the defaults
    in_file["task"].pop("validation_data", None)  # differs from training's settings, not from the defaults
    _assert_only_differences(in_file, exp_factory.get_exp_config(experiment).as_dict())


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
            job = dataclasses.replace(job, data_dir=str(tmp_path), settings=settings.merge(job.settings, vocabulary))
        resolved.append(comparison.prepare_job(grid, job, str(tmp_path / "out")))
    assert len({(str(run.params.as_dict())) for run in resolved}) == len(resolved)  # no two variants are the same


def _pretend_to_have_run(model, corpus, base):
    """Makes all but the weights of a run, the demo's or one of a grid: runs/GRID/VARIANT/RUN/model; returns where."""
    if model == "demo/out/pretrain":
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
