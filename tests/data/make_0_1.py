"""Made 0.1/: what version 0.1 left behind, which later versions must read; see test_compatibility.py.

  cd tests/data && PYTHONPATH=CHECKOUT_OF_0.1 python make_0_1.py

It runs the commands of that version at toy size: a corpus, a run of every experiment, an export and a grid. What the
same version makes of them when it goes on is in expected.json.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

TARGET = pathlib.Path("0.1")
SENTENCES = ["the cat sat on a mat", "a big dog ran very fast", "the old tree was small", "then it was red"]
SIZES = dict(hidden_size=12, num_layers=1, num_parts=6, intermediate_size=10, max_sequence_length=128)
STEPS, MORE_STEPS = 3, 6
EXPERIMENTS = ("pretrain", "classify", "regress", "tag", "answer", "bert")


def settings(name: str, steps: int) -> str:
    own = {f"task.model.encoder.any.{key}": value for key, value in SIZES.items()}
    own |= {"runtime.enable_xla": "false", "trainer.train_steps": steps, "trainer.max_to_keep": 1}
    own |= {f"trainer.{kind}_interval": STEPS for kind in ("checkpoint", "validation", "summary")}
    own |= {f"task.{split}_data.global_batch_size": 4 for split in ("train", "validation")}
    own |= {"trainer.optimizer_config.learning_rate.polynomial.decay_steps": MORE_STEPS}
    own |= {"trainer.optimizer_config.warmup.polynomial.warmup_steps": 1, "trainer.steps_per_loop": 1}
    if name == "answer":
        own |= {"task.train_data.seq_length": 32, "task.train_data.max_query_length": 8, "task.max_answer_length": 8}
    if name == "bert":
        own["task.model.encoder.type"] = "bert"
    return ",".join(f"{key}={value}" for key, value in own.items())


def command(name: str, *flags: str, **kwargs) -> str:
    # Flat, so that the directories which settings name are relative to where everything is moved later.
    process = subprocess.run(
        [sys.executable, "-m", f"shatter_tf.{name}", *flags], cwd=TARGET, check=True, stdout=subprocess.PIPE, **kwargs
    )
    return process.stdout.decode()


def train_flags(name: str, steps: int) -> list[str]:
    experiment = "pretrain" if name == "bert" else name
    data = "corpus" if experiment == "pretrain" else name
    flags = [f"--experiment=shatter/{experiment}", f"--model_dir=runs/{name}", f"--data_dir={data}"]
    if experiment != "pretrain":
        flags.append("--init_checkpoint=runs/pretrain")
    return [*flags, f"--params_override={settings(name, steps)}"]


def train(name: str, steps: int) -> None:
    command("train", *train_flags(name, steps))


def write_texts() -> None:
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (TARGET / "vocab.txt").write_text("\n".join([*special, *words, "##s", "."]) + "\n")
    (TARGET / "text.txt").write_text("\n\n".join(f"{s}\n{s} {i}" for i, s in enumerate(SENTENCES * 10)))
    contexts = [f"{s}. {t}." for s in SENTENCES for t in SENTENCES]
    paragraphs = [
        dict(context=c, qas=[dict(id=str(i), question=c[:9], answers=[dict(text=c[4:7], answer_start=4)])])
        for i, c in enumerate(contexts)
    ]
    tagged = ["\n".join(f"{w}\t{'long' if len(w) > 3 else 'short'}" for w in s.split()) for s in SENTENCES]
    files = dict(
        classify=("tsv", "".join(f"{s}\t{'yes' if i % 2 else 'no'}\n" for i, s in enumerate(SENTENCES * 2))),
        regress=("tsv", "".join(f"{s}\t{i / 2}\n" for i, s in enumerate(SENTENCES * 2))),
        tag=("tsv", "\n\n".join(tagged) + "\n"),
        answer=("json", json.dumps(dict(version="1.1", data=[dict(title="", paragraphs=paragraphs)]))),
    )
    for name, (extension, content) in files.items():
        (TARGET / name).mkdir()
        for split in ("train", "dev"):
            (TARGET / name / f"{split}.{extension}").write_text(content)


def main() -> None:
    TARGET.mkdir()
    write_texts()
    command("prepare", "--input=text.txt", "--output_dir=corpus", "--vocab_file=vocab.txt",
            "--validation_fraction=0.3", "--seq_length=32")  # fmt: skip
    for name in EXPERIMENTS:
        train(name, STEPS)
    command("export", "--model_dir=runs/classify", "--export_dir=exported")
    grid = dict(
        experiment="shatter/pretrain", under="task.model.encoder", learning_rates=[1e-3], seeds=[0], reference="bert",
        settings={key: json.loads(value) if value[0].isdigit() or value == "false" else value
                  for key, value in (pair.split("=") for pair in settings("pretrain", STEPS).split(","))},
        variants=dict(shatter={}, bert=dict(type="bert")),
    )  # fmt: skip
    (TARGET / "grid.yaml").write_text(json.dumps(grid, indent=1))
    command("compare", "--grid=grid.yaml", "--data_dir=corpus", "--output_dir=grid")

    # What this version makes of it all, from copies: what is kept stays at STEPS.
    shutil.copytree(TARGET / "runs", TARGET / "kept")
    expected = {}
    for name in EXPERIMENTS:
        train(name, MORE_STEPS)
        expected[name] = json.loads((TARGET / "runs" / name / "metrics.json").read_text())
    expected["predict"] = json.loads(command("predict", "--model=exported", "the cat sat"))
    (TARGET / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    shutil.rmtree(TARGET / "runs")
    (TARGET / "kept").rename(TARGET / "runs")

    for directory in [*(TARGET / "runs").iterdir(), *(TARGET / "grid").glob("*/*/model")]:
        for name in ("train", "validation"):  # TensorBoard's
            shutil.rmtree(directory / name)
        shutil.rmtree(directory / "best", ignore_errors=directory.name != "classify")
    for directory in (TARGET / "grid").glob("*/*/model"):  # results.jsonl says what came out
        shutil.rmtree(directory)
    for name in [*TARGET.rglob(".lock"), *TARGET.rglob("inputs.json")]:  # the latter have absolute paths
        os.remove(name)
    shutil.make_archive(TARGET / "exported", "gztar", root_dir=TARGET, base_dir="exported")
    shutil.rmtree(TARGET / "exported")


if __name__ == "__main__":
    main()
