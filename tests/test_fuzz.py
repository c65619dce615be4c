"""Random settings and damaged inputs, through the commands: each ends well or in one line that a user can act on.

Hypothesis draws them, the same ones every time, and shrinks those that fail.
"""

import contextlib
import functools
import gzip
import io
import json
import shutil
import sys

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as choices
from hypothesis import strategies as st
from official.core import exp_factory
from tiny import PLAIN, tiny_override

from shatter_tf import console, prepare, train
from shatter_tf.data.corpus import shards
from shatter_tf.errors import UserError
from shatter_tf.tasks import registry as experiments
from shatter_tf.training import job, settings
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training.session import Session

# So many settings of each experiment, of which few are accepted, and so many damaged files, are tried.
SETTINGS, CASES = 100, 500
fuzz = functools.partial(
    choices, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def succeeds(command, *argv):
    """Runs a command's `main` as its process would; returns whether it ends well. If not, it must say so in a line."""
    said, before, code = io.StringIO(), sys.argv, 0
    sys.argv = [command.__name__, *map(str, argv)]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            console.run(command.main)
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    if code:
        assert code == 2, said.getvalue()
        assert "Traceback" not in said.getvalue()
        last = said.getvalue().splitlines()[-1]
        assert last.startswith("error: "), said.getvalue()
        assert len(last) > len("error: ."), said.getvalue()
    return not code


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def names(config, path=""):
    """Returns the dotted names of all settings below `config`."""
    found = []
    for key, value in config.items():
        found += names(value, f"{path}{key}.") if isinstance(value, dict) else [path + key]
    return found


class Built(Exception):
    """Everything was built: the settings are good."""


def stop(*args, **kwargs):
    raise Built


@pytest.fixture
def without_building(monkeypatch):
    """Stops `shatter_tf.train` where it would build the model: what is refused is refused before that."""
    monkeypatch.setattr(job, "Session", stop)


def is_accepted(*argv):
    try:
        assert not succeeds(train, *argv)
    except Built:
        return True
    return False


_SMALL = "-1 0 1 2 7 0.5 -0.1 nan inf 1e-3 true null '' foo bert any [1] {} [] gelu loss é ../.. ~"
SMALL_VALUES = st.sampled_from(_SMALL.split())
VALUES = SMALL_VALUES | st.integers().map(str) | st.floats().map(str) | st.text(max_size=8).map(json.dumps)


@pytest.fixture
def data_dir(request, tmp_path, write_corpus, random_documents, vocab_file):
    """A directory that is data for every experiment, and has a teacher for those that need one."""
    corpus = write_corpus(random_documents(shards=1, per_shard=9), random_documents(shards=1, per_shard=4)[0])
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("experiment") == "shatter/distil":
        run = settings.resolve("shatter/pretrain", data_dir=corpus, params_override=f"{PLAIN},{tiny_override()}")
        run.params.trainer.train_steps = 1
        Session(run, str(tmp_path / "teacher")).train(evaluate=False)
    answers = [dict(text="mat", answer_start=13)]
    paragraph = dict(context="cat sat on a mat", qas=[dict(id="1", question="where?", answers=answers)])
    for name in ("answer", "embed"):
        (tmp_path / name).mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("the cat\t1\n\nthe dog\t2\n\n" * 4)
        (tmp_path / f"embed/{split}.tsv").write_text("anchor\tpositive\n" + "the cat\ta cat\nthe dog\ta dog\n" * 4)
        (tmp_path / f"answer/{split}.json").write_text(json.dumps(dict(data=[dict(paragraphs=[paragraph])])))
    return tmp_path


def flags_of(experiment, data_dir, chosen=()):
    """Returns the flags of a small run with chosen settings."""
    override = [tiny_override(), "runtime.enable_xla=false,task.train_data.global_batch_size=2"]
    override.append("task.train_data.seq_length=16,trainer.train_steps=2")
    teacher = [f"--init_teacher={data_dir / 'teacher'}"] if experiment == "shatter/distil" else []
    if experiment in ("shatter/pretrain", "shatter/distil"):
        data_dir = data_dir / "corpus"
    else:
        override.append(f"task.train_data.vocab_file={data_dir / 'vocab.txt'}")
    if experiment == "shatter/answer":
        data_dir = data_dir if (data_dir / "train.json").exists() else data_dir / "answer"
        override.append("task.train_data.max_query_length=4,task.max_answer_length=5")
    if experiment == "shatter/embed":
        data_dir = data_dir / "embed"
    return [
        *teacher,
        f"--experiment={experiment}",
        f"--data_dir={data_dir}",
        f"--params_override={','.join([*override, *chosen])}",
    ]


@st.composite
def some_settings(draw, experiment, values=VALUES, most=2):
    """One or more of all settings, with values that may or may not be valid."""
    known = st.sampled_from(names(exp_factory.get_exp_config(experiment).as_dict()))
    chosen = draw(st.lists(st.tuples(known, values), min_size=1, max_size=most))
    return [f"{name}={value}" for name, value in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", experiments.EXPERIMENTS)
def test_random_settings(experiment, data_dir, without_building):
    before, accepted = contents(data_dir), []

    @fuzz(max_examples=SETTINGS)
    @given(some_settings(experiment))
    def test(chosen):
        accepted.append(is_accepted(*flags_of(experiment, data_dir, chosen), f"--model_dir={data_dir / 'run'}"))

    test()
    assert 0 < sum(accepted) < len(accepted)
    assert contents(data_dir) == before


@pytest.mark.slow
@pytest.mark.parametrize("experiment", experiments.EXPERIMENTS)
def test_random_settings_to_the_end(experiment, data_dir, tmp_path, monkeypatch):
    """Those that are accepted: the run is built, trained and evaluated."""
    before, ended = contents(data_dir), []

    @fuzz(max_examples=2)
    @given(some_settings(experiment, SMALL_VALUES, most=1))
    def test(chosen):
        flags = [*flags_of(experiment, data_dir, chosen), f"--model_dir={tmp_path / 'runs' / str(len(ended))}"]
        with monkeypatch.context() as patch:
            patch.setattr(job, "Session", stop)
            assume(is_accepted(*flags))
        ended.append(succeeds(train, *flags))

    test()
    assert any(ended)
    assert {path: contents(data_dir)[path] for path in before} == before


TROUBLE = st.sampled_from(["", "\n", "\t", "\0", '"', "{", "\u2028", "\r", "\ufeff", "-", ": "]).map(str.encode)
# What is done to a file: where, as a share of its length; how many bytes go there; and what comes in their place.
DAMAGE = st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 5, 50, 10**9]), st.binary(max_size=50) | TROUBLE)


def damaged(data: bytes, damages) -> bytes:
    for share, gone, come in damages:
        place = int(share * len(data))
        data = data[:place] + come + data[place + gone :]
    return data


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Whole inputs of every kind: the files of DAMAGED and what belongs to them."""
    base = tmp_path_factory.mktemp("inputs")
    rows = [("the cat sat", "animal"), ("a red mat", "thing"), ("ünder the tree", "thing")] * 3
    text = "\n\n".join(f"{a} {i}\nit was {b}" for i, (a, b) in enumerate(rows * 9))
    (base / "text.txt").write_text(text)
    (base / "text.txt.gz").write_bytes(gzip.compress(text.encode()))
    flags = [f"--output_dir={base}/pretrain/corpus", "--vocab_size=100", "--validation_fraction=0.3"]
    prepare.main([f"--input={base}/text.txt", *flags])

    tsv = "".join(f"{a}\t{b}\n" for a, b in rows)
    sentences = "".join(f"{a}\t{b}\n" + "\n" * (i % 2) for i, (a, b) in enumerate(rows))
    qas = [
        dict(id=f"q{i}", question="what?", answers=[dict(text=a[:3], answer_start=0)]) for i, (a, _) in enumerate(rows)
    ]
    paragraphs = [dict(context=a, qas=[qa]) for (a, _), qa in zip(rows, qas, strict=True)]
    squad = json.dumps(dict(version="1.1", data=[dict(paragraphs=paragraphs)]))
    files = {
        "classify/train.tsv": tsv,
        "classify/dev.csv": "text,label\n" + "".join(f'"{a}",{b}\n' for a, b in rows),
        "regress/train.tsv": "".join(f"{a}\t{i / 2}\n" for i, (a, _) in enumerate(rows)),
        "regress/dev.jsonl": "".join(json.dumps(dict(text=a, label=i)) + "\n" for i, (a, _) in enumerate(rows)),
        "tag/train.tsv": sentences,
        "tag/dev.jsonl": "".join(json.dumps(dict(tokens=[a], tags=[b])) + "\n" for a, b in rows),
        "answer/train.json": squad,
        "answer/dev.json": squad,
        "classify/config.yaml": "trainer: {train_steps: 2}\ntask:\n  train_data:\n    seed: 3\n",
    }
    for name, whole in files.items():
        path = base / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(whole)
    for experiment in ("classify", "regress", "tag", "answer"):
        (base / experiment / "vocab.txt").write_bytes((base / "pretrain/corpus/vocab.txt").read_bytes())
    train.main([*flags_of("shatter/classify", base / "classify"), f"--model_dir={base}/run"])
    return base


def begin(experiment, *more):
    """Returns a function that begins a run on files of a directory; flags may name {base}, where they are."""

    def run(base, output):
        argv = [flag.format(base=base) for flag in more]
        return is_accepted(*flags_of(f"shatter/{experiment}", base / experiment), f"--model_dir={output}", *argv)

    return run


def prepare_corpus(name):
    """Returns a function that makes a corpus from a file."""
    sizes = ["--vocab_size=100", "--validation_fraction=0.3"]
    return lambda base, output: succeeds(prepare, f"--input={base / name}", f"--output_dir={output}", *sizes)


FROM_RUN = begin("classify", "--init_checkpoint={base}/run")
DAMAGED = {
    "classify/train.tsv": begin("classify"),
    "classify/dev.csv": begin("classify"),
    "regress/dev.jsonl": begin("regress"),
    "tag/train.tsv": begin("tag"),
    "tag/dev.jsonl": begin("tag"),
    "answer/train.json": begin("answer"),
    "answer/dev.json": begin("answer"),
    "classify/vocab.txt": begin("classify"),
    "classify/config.yaml": begin("classify", "--config_file={base}/classify/config.yaml"),
    "text.txt": prepare_corpus("text.txt"),
    "text.txt.gz": prepare_corpus("text.txt.gz"),
    "pretrain/corpus/corpus.json": begin("pretrain"),
    "pretrain/corpus/vocab.txt": begin("pretrain"),
    "run/params.yaml": FROM_RUN,
    "run/experiment.json": FROM_RUN,
    "run/vocab.txt": FROM_RUN,
}


def assert_survives_damage(inputs, name, command, cases, output):
    """Calls `command(inputs, a new output)` with a file of `inputs` damaged in as many ways as `cases`."""
    path, accepted = inputs / name, []
    whole = path.read_bytes()

    @fuzz(max_examples=cases)
    @given(st.lists(DAMAGE, min_size=1, max_size=3))
    def test(damages):
        path.write_bytes(damaged(whole, damages))
        before = contents(inputs)
        accepted.append(command(inputs, output / f"{len(accepted)}"))
        assert contents(inputs) == before

    try:
        test()
        assert not all(accepted)
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_inputs(inputs, name, tmp_path, without_building):
    assert_survives_damage(inputs, name, DAMAGED[name], CASES // len(DAMAGED), tmp_path)


def go_on(base, output):
    """Trains two more steps in a copy of a run."""
    shutil.copytree(base / "run", output)
    flags = flags_of("shatter/classify", base / "classify", ["trainer.train_steps=4"])
    return succeeds(train, *flags, f"--model_dir={output}")


def pretrain_to_the_end(base, output):
    return succeeds(train, *flags_of("shatter/pretrain", base / "pretrain"), f"--model_dir={output}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "command"),
    [("run/history.jsonl", go_on), ("pretrain/corpus/train-00000-of-00001.tfrecord", pretrain_to_the_end)],
)
def test_damaged_inputs_that_training_reads(inputs, name, command, tmp_path):
    assert_survives_damage(inputs, name, command, 5, tmp_path)


@pytest.mark.parametrize("code", ["!!python/object/apply:os.system ['touch hacked']", "!!python/name:os.system"])
def test_settings_from_elsewhere_cannot_run_code(inputs, code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    path = inputs / "run/params.yaml"
    whole = path.read_text()
    path.write_text(whole + f"runtime: {code}\n")
    try:
        with pytest.raises(UserError, match="damaged, or made by another version"):
            model_dir.read(str(path.parent))
    finally:
        path.write_text(whole)
    assert not list(tmp_path.iterdir())


def test_a_corpus_cannot_name_files_outside_of_its_directory(inputs):
    path = inputs / "pretrain/corpus/corpus.json"
    whole = path.read_text()
    corpus = json.loads(whole)
    corpus["train"][0]["file"] = "../text.txt"
    path.write_text(json.dumps(corpus))
    try:
        with pytest.raises(UserError, match="../text.txt is not a plain file name"):
            shards.Corpus.read(str(path.parent))
    finally:
        path.write_text(whole)
