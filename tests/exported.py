"""A run of every kind, made and exported by the commands."""

import importlib
import json
import pathlib

import tf_keras
from tiny import tiny_override

from shatter_tf.data.vocabulary import SPECIAL_TOKENS

EXPORTED = ("pretrain", "classify", "pairs", "regress", "tag", "question_answering", "several", "entities")
EXPERIMENTS = dict(pairs="classify", several="classify", entities="tag", question_answering="answer")
SENTENCES = ["the cat sat on a mat", "a big dog ran very fast", "the old tree was small", "then it was red"]


def make_exported(base: pathlib.Path) -> None:
    """Writes base/runs/NAME and base/exports/NAME for every name in EXPORTED."""
    base.mkdir()
    _write_data(base)
    _command(
        "prepare", f"--input={base}/text.txt", f"--output_dir={base}/corpus", f"--vocab_file={base}/vocab.txt",
        "--validation_fraction=0.3", "--seq_length=32",
    )  # fmt: skip

    settings = tiny_override(max_sequence_length=128) + ",runtime.enable_xla=false,trainer.train_steps=2"
    settings += ",runtime.mixed_precision_dtype=float32"
    settings += ",trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate=1e-4"
    settings += ",task.train_data.global_batch_size=4,task.validation_data.global_batch_size=4"
    for name in EXPORTED:
        experiment = dict(pairs="classify", several="classify", entities="tag", question_answering="answer").get(
            name, name
        )
        data = [f"--data_dir={base / name}", f"--init_checkpoint={base}/runs/pretrain"]
        more = ""
        if name == "pretrain":
            data = [f"--data_dir={base}/corpus"]
        if name == "question_answering":
            more = ",task.train_data.seq_length=32,task.train_data.max_query_length=8,task.max_answer_length=8"
        _command(
            "train", f"--experiment=shatter/{experiment}", f"--model_dir={base}/runs/{name}", *data,
            f"--params_override={settings}{more}",
            f"--mode={'train_and_eval' if name in ('pretrain', 'classify') else 'train'}",
        )  # fmt: skip
        _command("export", f"--model_dir={base}/runs/{name}", f"--export_dir={base}/exports/{name}")


def _command(name: str, *flags: str) -> None:
    importlib.import_module(f"shatter_tf.{name}").main([*flags])
    tf_keras.backend.clear_session()


def _write_data(base: pathlib.Path) -> None:
    """Writes a vocabulary, a text to pretrain on, and train and dev files for each of the others."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    (base / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words, "##s", "."]) + "\n")
    (base / "text.txt").write_text("\n\n".join(f"{s}\n{s} {i}" for i, s in enumerate(SENTENCES * 10)))

    labels = ["animal", "tierchen äöü", "thing"]
    contexts = [f"{s}. {t}." for s in SENTENCES for t in SENTENCES]
    paragraphs = [
        dict(context=c, qas=[dict(id=str(i), question=c[:9], answers=[dict(text=c[4:7], answer_start=4)])])
        for i, c in enumerate(contexts)
    ]
    tagged = ["\n".join(f"{w}\t{'long' if len(w) > 3 else 'short'}" for w in s.split()) for s in SENTENCES]
    several = [dict(text=s, labels=labels[: i % 3]) for i, s in enumerate(SENTENCES * 6)]
    spans = [dict(text=f"{s}.", spans=[dict(start=2, end=len(s), label="X")]) for s in SENTENCES if s[1] == " "] * 8
    files = dict(
        classify=("tsv", "".join(f"{s}\t{labels[i % 3]}\n" for i, s in enumerate(SENTENCES * 6))),
        pairs=("tsv", "".join(f"{s}\t{s} too\t{labels[i % 3]}\n" for i, s in enumerate(SENTENCES * 6))),
        regress=("tsv", "".join(f"{s}\t{i / 2}\n" for i, s in enumerate(SENTENCES * 2))),
        tag=("tsv", "\n\n".join(tagged) + "\n"),
        several=("jsonl", "".join(json.dumps(row) + "\n" for row in several)),
        entities=("jsonl", "".join(json.dumps(row) + "\n" for row in spans)),
        question_answering=("json", json.dumps(dict(version="1.1", data=[dict(title="", paragraphs=paragraphs)]))),
    )
    for name, (extension, content) in files.items():
        (base / name).mkdir()
        for split in ("train", "dev"):
            (base / name / f"{split}.{extension}").write_text(content)
