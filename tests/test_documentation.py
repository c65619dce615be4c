"""What the README and the pages of docs/ say to type: every command runs here as it stands, but for its size.

What cannot run here (`NOT_RUN` says why) is read by the command's own parser. Programs run, too; links lead somewhere.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap

import filelock
import numpy as np
import pytest
import tf_keras
from hugging_face import CONFIG, random_weights, write_bert

from shatter_tf import __main__ as program
from shatter_tf import config_files
from shatter_tf.data.vocabulary import SPECIAL_TOKENS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
# Records of what was run, with the commands of their time.
RECORDS = {"docs/log.md"}

# Smaller in the ways that cost time and change nothing else.
SIZES = dict(num_layers=1, hidden_size=16, num_parts=4, intermediate_size=16)
TINY_ENCODER = ",".join(f"task.model.encoder.shatter.{name}={size}" for name, size in SIZES.items())
TINY = "runtime.enable_xla=false,trainer.steps_per_loop=2,trainer.validation_interval=2"

NOT_RUN = {
    r"gs://": "reads and writes a bucket",
    r"^docker run": "runs an image",
    r"tfds_name=": "downloads data",
    r"^shatter benchmark --target=(tpu|gpu):": "needs the compilers of TPUs and GPUs",
    r"^shatter benchmark --target=cpu": "takes steps of BERT-Base's size",
    r"^shatter compare": "takes hours",
    r"--config=base": "takes days on accelerators",
}

# Other programs' lines are not read.
OURS = re.compile(
    r"^(?:(?:shatter|python -m shatter_tf\.\w+|docker run .*shatter_tf\S*) |printf .*\| *shatter )"
    r"(?:'[^']*'|[^\n'])*$",  # a quoted argument may go on in the next line
    re.M,
)
# Commands of all programs, with the lines that they go on in.
COMMAND_LINES = re.compile(r"(?:^(?:shatter|python3?|docker|printf|pip|git|make) |(?<=\\\n)).*$", re.M)

SENTENCES = ["the cat sat on the mat", "a big dog ran very fast", "the old house was small", "they left in the morning"]
LABELS = ["animal", "animal", "thing", "thing"]
TAGS = ["DET", "NOUN", "VERB"]


# === What the pages say ===


def without_programs(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", PAGES[page].read_text(), flags=re.M | re.S)


def prose(page: str) -> str:
    return re.sub(r"^    .*$", "", without_programs(page), flags=re.M)


def blocks(page: str) -> list[str]:
    """Returns the indented blocks of a page, without their indentation."""
    found = re.findall(r"(?:^(?: {4}.*)?\n)+", without_programs(page), re.M)
    return [textwrap.dedent(block) for block in found if block.strip()]


def commands(page: str) -> list[str]:
    """Returns the commands of a page that are ours, each in one line, as a shell would join it."""
    return [command for block in blocks(page) for command in commands_of(block)]


def commands_of(block: str) -> list[str]:
    return [match[0] for match in OURS.finditer(re.sub(r"\\\n", "", block))]


def inline_commands(page: str) -> list[str]:
    """Returns the commands with flags that stand within a sentence."""
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page)))
    spans = (re.sub(r", (?=[a-z])", ",", span) for span in spans)  # a list of settings, broken into lines
    return [span for span in spans if re.match(r"(time )?(shatter|python -m shatter_tf\.)\S* .*--", span)]


def argv_of(command: str) -> list[str]:
    """Returns the arguments of `shatter` in a command."""
    words = shlex.split(re.sub(r"^.*?\| *", "", command) if command.startswith("printf") else command, comments=True)
    if words[0] == "docker":
        return words[next(i for i, word in enumerate(words) if word.startswith("shatter_tf")) + 1 :]
    if words[0] == "time":
        words = words[1:]
    if words[0] == "python":
        return [words[2].removeprefix("shatter_tf."), *words[3:]]
    assert words[0] == "shatter", command
    return words[1:]


def reason(command: str) -> str | None:
    """Returns why a command is not run."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads arguments as the command would; exits where it would."""
    name, *arguments = argv
    module = importlib.import_module(f"shatter_tf.{program.COMMANDS[name]}")
    args = module.parse_arguments(arguments) if hasattr(module, "parse_arguments") else argparse.Namespace()
    if getattr(args, "config", None):
        config_files.find_config(args.config)
    if name == "compare" and args.grid and not args.grid.endswith("NAME.yaml"):
        assert (ROOT / args.grid).exists(), argv
    return args


# === Running it ===


def shrink(argv: list[str]) -> list[str]:
    """Returns the arguments of a training run that takes four small steps."""
    if argv[0] != "train":
        return argv
    override = [word.partition("=")[2] for word in argv if word.startswith("--params_override=")] + [TINY]
    if not any(word.startswith("--init_checkpoint=") for word in argv):  # which has its own sizes
        override.append(TINY_ENCODER)
    replaced = ("--params_override=", "--budget=", "--train_steps=")
    kept = [word for word in argv if not word.startswith(replaced)]
    return [*kept, "--train_steps=4", "--batch_size=4", f"--params_override={','.join(override)}"]


def run(command: str) -> str:
    """Runs a command in this process, which saves the time that importing TensorFlow takes; returns what it prints."""
    parse(argv_of(command))
    before = b""
    if command.startswith("printf"):
        before = subprocess.run(command.partition("|")[0], shell=True, capture_output=True, check=True).stdout
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(before)))
        program.run_command(shrink(argv_of(command)))
    tf_keras.mixed_precision.set_global_policy("float32")  # as a new process has it
    tf_keras.backend.clear_session()
    return printed.getvalue()


def run_page(page: str) -> dict[str, str]:
    """Runs the commands of a page in the current directory; returns what each prints."""
    return {command: run(command) for command in commands(page) if not reason(command)}


def answers(outputs: dict[str, str], model: str) -> list[dict]:
    """Returns what the commands that ask a model print, in order."""
    lines = [
        line
        for command, output in outputs.items()
        if re.search(rf"shatter predict --model={model}(?!\S)", command)
        for line in output.splitlines()
    ]
    return [json.loads(line) for line in lines]


def write_data(directory: pathlib.Path) -> None:
    """Writes data under the names of the pages."""
    text = "\n\n".join(f"{sentence}\n{sentence} {i}" for i in range(100) for sentence in SENTENCES)
    numbered = [(sentence, i % 4) for i, sentence in enumerate(SENTENCES * 20)]
    tagged = "\n\n".join("\n".join(f"{word}\t{TAGS[len(word) % 3]}" for word in s.split()) for s in SENTENCES * 5)
    paragraphs = [
        dict(context=s, qas=[dict(id=f"{i}", question=s[:9], answers=[dict(text=s[4:7], answer_start=4)])])
        for i, s in enumerate(SENTENCES * 5)
    ]
    files = {
        "my_labels": ("tsv", "".join(f"{sentence}\t{LABELS[i]}\n" for sentence, i in numbered)),
        "my_scores": ("tsv", "".join(f"{sentence}\t{i / 2}\n" for sentence, i in numbered)),
        "tagged": ("tsv", tagged + "\n"),
        "questions": ("json", json.dumps(dict(version="1.1", data=[dict(title="", paragraphs=paragraphs)]))),
    }
    spans = [
        dict(
            text=f"Nobody knows {a} in {b}.",
            label=[[13, 13 + len(a), "PERSON"], [17 + len(a), 17 + len(a + b), "PLACE"]],
        )
        for a in ("Paul", "Mia Berg", "Ines", "Tom")
        for b in ("Rome", "New York", "Oslo", "Bonn", "Lima")
    ]
    lists = [
        dict(text=sentence, labels=[["delivery", "packaging"], ["delivery"], [], ["packaging"]][i])
        for sentence, i in numbered
    ]
    words = sorted({word for sentence in SENTENCES for word in sentence.split()} | set("0123456789abcdefghijklmnop"))
    vocabulary = [*SPECIAL_TOKENS, *words, *(f"##{i}" for i in range(10))]
    config = dict(CONFIG, max_position_embeddings=128, vocab_size=len(vocabulary))
    weights = random_weights(positions=128, rows=len(vocabulary))
    write_bert(directory / "all-MiniLM-L6-v2", weights, config, vocabulary)
    pairs = [dict(query=sentence, document=f"{sentence} {i}") for i, sentence in enumerate(SENTENCES * 5)]
    (directory / "my_pairs").mkdir()
    for split in ("train", "dev"):
        (directory / f"my_pairs/{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (directory / "more.jsonl").write_text("".join(json.dumps(dict(text=pair["document"])) + "\n" for pair in pairs))

    (directory / "my_text").mkdir(parents=True)
    (directory / "my_text/a.txt").write_text(text)
    for name, (extension, content) in files.items():
        (directory / name).mkdir()
        for split in ("train", "dev"):
            (directory / name / f"{split}.{extension}").write_text(content)

    for name, rows in (("complaints", lists), ("names", spans)):
        (directory / name).mkdir()
        (directory / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    claims = [f"{i},{sentence} {i},{'yes' if i % 20 == 0 else 'no'}" for i, (sentence, _) in enumerate(numbered * 2)]
    (directory / "claims.csv").write_text("\n".join(["id,message,fraud", *claims]))
    reports = [f"{' '.join([sentence] * 60)} {i},{LABELS[n]}" for i, (sentence, n) in enumerate(numbered)]
    (directory / "reports.csv").write_text("\n".join(["report,topic", *reports]))


@pytest.fixture(scope="session")
def tutorial(tmp_path_factory, worker_id):
    """The directory where the tutorial was followed, and what each command printed. Test processes share it."""
    directory = tmp_path_factory.getbasetemp()
    base = (directory if worker_id == "master" else directory.parent) / "tutorial"
    outputs = base / "outputs.json"
    with filelock.FileLock(f"{base}.lock"):
        if not outputs.exists():
            write_data(base)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(base)
                outputs.write_text(json.dumps(run_page("docs/tutorial.md")))
    return base, json.loads(outputs.read_text())


@pytest.fixture
def follow(tutorial, tmp_path, monkeypatch):
    """Returns a function that runs a page's commands in a directory with its data, and with parts of the tutorial's."""

    def follow_page(page, *parts):
        write_data(tmp_path / "here")
        for part in parts:
            shutil.copytree(tutorial[0] / part, tmp_path / "here" / part)
        monkeypatch.chdir(tmp_path / "here")
        return run_page(page)

    return follow_page


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.+?)^```", PAGES[page].read_text(), re.S | re.M)


def run_programs(page: str) -> list[dict]:
    """Runs the programs of a page in the current directory; returns the variables of each."""
    results = []
    for i, text in enumerate(programs(page)):
        pathlib.Path(f"program{i}.py").write_text(text)
        results.append(runpy.run_path(f"program{i}.py"))
        tf_keras.backend.clear_session()
    return results


@pytest.mark.slow
def test_the_readme(tmp_path, monkeypatch):
    """Each of its blocks of commands begins with nothing but the user's files."""
    assert not programs("README.md")
    ways = [way for way in map(commands_of, blocks("README.md")) if way]
    assert len(ways) >= 4  # from a BERT, the doctor, with text, with labels only
    for i, way in enumerate(ways):
        write_data(tmp_path / str(i))
        monkeypatch.chdir(tmp_path / str(i))
        outputs = {command: run(command) for command in way}
        labelled = answers(outputs, "served/model")
        assert {answer["label"] for answer in labelled} <= set(LABELS)
        assert len(labelled) == sum("predict" in command for command in way)


@pytest.mark.slow
def test_the_tutorial(tutorial, monkeypatch):
    base, outputs = tutorial
    (filled,) = answers(outputs, "served/pretrain")
    assert len(filled["masks"][0]) == 5
    labelled = answers(outputs, "served/classify")
    assert len(labelled) == 2
    assert {answer["label"] for answer in labelled} <= set(LABELS)
    for name in ("curves", "partition", "attention", "classify/confusion"):
        assert (base / f"pictures/{name}.png").stat().st_size > 10_000
    trained = [output for command, output in outputs.items() if "shatter/classify" in command]
    assert len(trained) == 4
    assert all("TF-IDF with a linear model" in output for output in trained)
    (complaint,) = answers(outputs, "served/complaints")
    assert set(complaint["probabilities"]) == {"delivery", "packaging"}
    (named,) = answers(outputs, "served/names")
    assert [word["word"] for word in named["words"]][-2:] == ["York", "."]
    assert "entities" in named
    judged = (base / "claims_judged.csv").read_text().splitlines()
    assert len(judged) == 161
    assert judged[0].startswith("id,message,fraud,")

    monkeypatch.chdir(base)
    (variables,) = run_programs("docs/tutorial.md")
    assert variables["vectors"].shape == (2, 16)


@pytest.mark.slow
def test_distillation(follow):
    outputs = follow("docs/tasks/distil.md")
    trained = [output for command, output in outputs.items() if "shatter/distil" in command]
    assert "teacher_cosine" in trained[0]
    learned = [output for command, output in outputs.items() if "unlabelled_file" in command]
    assert "more.jsonl: 20 texts without labels" in learned[0]


@pytest.mark.slow
def test_embedding(follow):
    outputs = follow("docs/tasks/embed.md", "runs/pretrain")
    (answer,) = answers(outputs, "served/embed")[:1]
    assert len(answer["embedding"]) == 16
    assert np.load("vectors.npy").shape == (20, 16)
    (variables,) = run_programs("docs/tasks/embed.md")
    assert variables["nearest"] in (0, 1)


@pytest.mark.slow
def test_pretraining(follow):
    outputs = follow("docs/tasks/pretrain.md")
    (filled,) = answers(outputs, "served/pretrain")
    assert len(filled["masks"][0]) == 5
    printed = "\n".join(outputs.values())
    assert "masked_lm_accuracy" in printed
    assert "next: shatter train --experiment=shatter/classify" in printed
    assert "type: bert" in pathlib.Path("runs/bert/params.yaml").read_text()


@pytest.mark.slow
def test_classification(follow):
    outputs = follow("docs/tasks/classify.md", "runs/pretrain")
    (answer,) = answers(outputs, "served/classify")
    assert set(answer["probabilities"]) == set(LABELS)
    assert pathlib.Path("pictures/classify/confusion.png").stat().st_size > 10_000
    assert json.loads(pathlib.Path("runs/classify/metrics.json").read_text())["baseline"]["tf_idf"] == 1


@pytest.mark.slow
def test_evaluation(follow):
    outputs = follow("docs/tasks/evaluate.md", "runs/classify")
    (report,) = (output for command, output in outputs.items() if "evaluate" in command)
    assert "accuracy" in report
    assert "calibration error" in report
    assert json.loads(pathlib.Path("figures.json").read_text())["rows"] == 80
    assert pathlib.Path("pictures/test/confusion.png").stat().st_size > 10_000
    assert len(pathlib.Path("predicted.jsonl").read_text().splitlines()) == 80


@pytest.mark.slow
def test_regression(follow):
    outputs = follow("docs/tasks/regress.md", "runs/pretrain")
    assert [set(answer) for answer in answers(outputs, "served/regress")] == [{"text", "score"}] * 2
    assert "pearson_spearman_corr" in "\n".join(outputs.values())


@pytest.mark.slow
def test_tagging(follow):
    outputs = follow("docs/tasks/tag.md", "runs/pretrain")
    (answer,) = answers(outputs, "served/tag")
    assert [word["word"] for word in answer["words"]] == answer["text"].split()
    assert {word["tag"] for word in answer["words"]} <= set(TAGS)
    assert "macro_f1" in "\n".join(outputs.values())


@pytest.mark.slow
def test_answers(follow):
    outputs = follow("docs/tasks/answer.md", "runs/pretrain")
    (answer,) = answers(outputs, "served/answer")
    assert answer["context"][answer["start"] : answer["end"]] == answer["answer"]
    assert "exact_match" in "\n".join(outputs.values())


@pytest.mark.slow
def test_serving(follow):
    follow("docs/serving.md", "corpus", "runs/pretrain", "runs/classify")
    for path in ("classify/1/saved_model.pb", "classify/2/assets.extra/token_ids.tflite", "encoder/2/saved_model.pb"):
        assert (pathlib.Path("served") / path).stat().st_size > 1000


@pytest.mark.slow
def test_programs(follow):
    assert not follow("docs/python.md", "runs/pretrain", "served/classify")
    of_keras, search, of_export, of_hub, in_model_garden, trained = run_programs("docs/python.md")
    assert of_keras["again"].input.dtype == "string"
    assert search["best"] in search["texts"]
    for variables in (of_keras, of_export, of_hub):
        assert variables["vectors"].shape == (2, 16)
    assert in_model_garden["outputs"]["pooled_output"].shape == (1, 128)
    assert trained["encoder"].get_embedding_table().shape[1] == 16


# === Reading it ===


def test_every_page_with_commands_is_run_or_says_why_not():
    run_here = {"README.md", "docs/tutorial.md", "docs/serving.md", *(p for p in PAGES if p.startswith("docs/tasks/"))}
    left = {command for page in PAGES for command in commands(page) if page not in run_here and not reason(command)}
    assert left == set()


def test_every_reason_is_needed():
    every = [command for page in PAGES for command in commands(page)]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in every)] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    for command in commands(page):
        parse(argv_of(command))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECORDS])
def test_commands_in_sentences_parse(page, monkeypatch):
    """They may leave out what the sentence is not about, but all that they have is known."""
    parse_args = argparse.ArgumentParser.parse_args

    def without_requirements(parser, *args):
        for one in (*parser._actions, *parser._mutually_exclusive_groups):
            one.required = False
        return parse_args(parser, *args)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", without_requirements)
    for command in inline_commands(page):
        name, *arguments = argv_of(re.sub(r" [<>] .*| \|.*", "", command))
        parse([name, *(["--model_dir=run"] if name == "train" else []), *arguments])


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_commands_are_short(page):
    lines = [line for block in blocks(page) for line in COMMAND_LINES.findall(block)]
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECORDS])
def test_commands_have_their_names(page):
    assert not re.search(r"python -m\s+shatter_tf\.", PAGES[page].read_text())


@pytest.mark.parametrize("page", PAGES)
def test_what_make_makes_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = PAGES[page].read_text()
    assert set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.M)) <= targets
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
    assert set(re.findall(r"(?:shatter_tf|'\.)\[(\w+)\]'", text)) <= extras


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = PAGES[page]
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(path: pathlib.Path) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
