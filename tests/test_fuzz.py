"""Random settings and damaged inputs: each ends well or in one line that a user can act on, and changes no input."""

import json
import pathlib
import random

import pytest
from official.core import exp_factory
from tiny import tiny_override

from shatter_tf import experiments, model_dir, prepare, settings, trainer
from shatter_tf.command_line import UserError
from shatter_tf.data import labelled, question_answering, shards, tagging, text, tokenizer

CASES = 500
VALUES = [
    "-1",
    "0",
    "1",
    "2",
    "7",
    "1e9",
    "999999999999999999999",
    "0.5",
    "-0.1",
    "nan",
    "inf",
    "1e-3",
    "true",
    "null",
    "''",
]
VALUES += ["foo", "bert", "any", "[1]", "{}", "[]", "gelu", "é", "a b", "../..", "~"]


def names(config, path=""):
    """Returns the dotted names of all settings below `config`."""
    found = []
    for key, value in config.items():
        found += names(value, f"{path}{key}.") if isinstance(value, dict) else [path + key]
    return found


def one_line(error):
    assert str(error).strip()
    assert "\n" not in str(error), error
    return str(error)


def evaluate(run, directory, chosen):
    """Builds all that the settings ask for, and evaluates it once."""
    run.params.runtime.enable_xla = False  # not worth the time here
    try:
        trainer.Session(run, str(directory)).evaluate()
    except UserError as error:
        one_line(error)
    except Exception as error:
        raise AssertionError(chosen) from error


@pytest.mark.slow
@pytest.mark.parametrize("experiment", experiments.NAMES)
def test_random_settings(experiment, write_corpus, random_documents, tmp_path, vocab_file):
    data = write_corpus(random_documents(shards=1, per_shard=9))
    if experiment != "shatter/pretrain":
        data = str(tmp_path)
        answers = [dict(text="mat", answer_start=13)]
        paragraph = dict(context="cat sat on a mat", qas=[dict(id="1", question="where?", answers=answers)])
        for split in ("train", "dev"):
            (tmp_path / f"{split}.tsv").write_text("the cat\t1\n\nthe dog\t2\n\n" * 4)
            (tmp_path / f"{split}.json").write_text(json.dumps(dict(data=[dict(paragraphs=[paragraph])])))
    rng, known = random.Random(0), names(exp_factory.get_exp_config(experiment).as_dict())
    refused = accepted = 0
    for _ in range(CASES // 2):
        chosen = [f"{rng.choice(known)}={rng.choice(VALUES)}" for _ in range(rng.choice([1, 1, 2]))]
        base = [tiny_override(), "task.train_data.global_batch_size=2,task.train_data.seq_length=16"]
        base += [f"task.train_data.vocab_file={vocab_file}"]
        if experiment == "shatter/answer":
            base += ["task.train_data.max_query_length=4,task.max_answer_length=5"]
        override = ",".join([*(base[:2] if experiment == "shatter/pretrain" else base), *chosen])
        try:
            run = settings.resolve(experiment, data_dir=data, params_override=override)
        except UserError as error:
            refused += 1
            one_line(error)
        except Exception as error:
            raise AssertionError(chosen) from error
        else:
            assert run.vocabulary, chosen
            accepted += 1
            if accepted % 15 == 0 and not any("9999" in choice for choice in chosen):  # which no memory would hold
                evaluate(run, tmp_path / f"run{accepted}", chosen)
    assert CASES // 20 < refused < CASES // 2


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Returns `data` with a few bytes changed, a stretch cut out or doubled, or its end missing."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 5, 50])
        kind = rng.randrange(5)
        if kind == 0:
            data[place : place + length] = rng.randbytes(length)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + length]
        elif kind == 3:
            data[place:place] = rng.choice([b"\n", b"\t", b"\0", b'"', b"\xff", b"{", "\u2028".encode(), b"\r"])
        else:
            del data[place:]
    return bytes(data)


def read_model_dir(path: pathlib.Path):
    model_dir.read(str(path.parent))


INPUTS = {
    "rows.tsv": lambda path: labelled.read_rows(str(path)),
    "rows.csv": lambda path: labelled.read_rows(str(path)),
    "rows.jsonl": lambda path: labelled.read_rows(str(path)),
    "squad.json": lambda path: question_answering.read_squad(str(path)),
    "tagged.tsv": lambda path: tagging.read_sentences(str(path)),
    "tagged.jsonl": lambda path: tagging.read_sentences(str(path)),
    "vocab.txt": lambda path: tokenizer.read_vocabulary(str(path)),
    "text.txt": lambda path: list(text.read_documents(str(path))),
    "text.txt.gz": lambda path: list(text.read_documents(str(path))),
    "config.yaml": lambda path: settings.read_config_file(str(path)),
    "corpus/corpus.json": lambda path: shards.Corpus.read(str(path.parent)),
    "corpus/vocab.txt": lambda path: shards.Corpus.read(str(path.parent)),
    "run/params.yaml": read_model_dir,
    "run/experiment.json": read_model_dir,
    "run/vocab.txt": read_model_dir,
    "run/history.jsonl": lambda path: model_dir.read_history(str(path.parent)),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A whole input of every kind."""
    import gzip

    base = tmp_path_factory.mktemp("inputs")
    rows = [("the cat sat", "animal"), ("a red mat", "thing"), ("ünder the tree", "thing")] * 3
    (base / "rows.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))
    (base / "rows.csv").write_text("text,label\n" + "".join(f'"{a}",{b}\n' for a, b in rows))
    (base / "rows.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    qas = [
        dict(id=f"q{i}", question="what?", answers=[dict(text=a[:3], answer_start=0)]) for i, (a, _) in enumerate(rows)
    ]
    paragraphs = [dict(context=a, qas=[qa]) for (a, _), qa in zip(rows, qas, strict=True)]
    (base / "squad.json").write_text(json.dumps(dict(version="1.1", data=[dict(paragraphs=paragraphs)])))
    (base / "tagged.tsv").write_text("".join(f"{a}\t{b}\n" + "\n" * (i % 2) for i, (a, b) in enumerate(rows)))
    (base / "tagged.jsonl").write_text("".join(json.dumps({"tokens": [a], "tags": [b]}) + "\n" for a, b in rows))
    (base / "text.txt").write_text("\n\n".join(f"{a} {i}\nit was {b}" for i, (a, b) in enumerate(rows * 9)))
    (base / "text.txt.gz").write_bytes(gzip.compress((base / "text.txt").read_bytes()))
    (base / "config.yaml").write_text("trainer: {train_steps: 5}\ntask:\n  train_data:\n    seed: 3\n")
    prepare.main(
        [f"--input={base}/text.txt", f"--output_dir={base}/corpus", "--vocab_size=100", "--validation_fraction=0.3"]
    )
    (base / "vocab.txt").write_bytes((base / "corpus/vocab.txt").read_bytes())
    run = settings.resolve(
        "shatter/pretrain",
        data_dir=f"{base}/corpus",
        params_override=tiny_override() + ",trainer.train_steps=5,task.train_data.seq_length=16",
    )
    model_dir.write(f"{base}/run", run)
    model_dir.write_history(f"{base}/run", [dict(step=step, seconds=1.5 * step, loss=3.0) for step in range(9)])
    for name, read in INPUTS.items():
        read(base / name)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_damaged_inputs(inputs, name):
    path, read = inputs / name, INPUTS[name]
    whole, rng = path.read_bytes(), random.Random(name)
    try:
        for _ in range(CASES // 10):
            damaged = mutate(whole, rng)
            path.write_bytes(damaged)
            try:
                read(path)
            except UserError as error:
                one_line(error)
            except Exception as error:
                raise AssertionError(damaged) from error
            assert path.read_bytes() == damaged
    finally:
        path.write_bytes(whole)


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
    path = inputs / "corpus/corpus.json"
    whole = path.read_text()
    corpus = json.loads(whole)
    corpus["train"][0]["file"] = "../text.txt"
    path.write_text(json.dumps(corpus))
    try:
        with pytest.raises(UserError, match="../text.txt is not a plain file name"):
            shards.Corpus.read(str(path.parent))
    finally:
        path.write_text(whole)
