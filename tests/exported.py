"""A run of every kind, made and exported by the commands."""

import importlib
import json
import pathlib

import tf_keras
from tiny import tiny_override

from shatter_tf.data.tokenizer import SPECIAL_TOKENS

EXPORTED = ("pretrain", "classify", "pairs", "regress", "tag", "question_answering")


def make_exported(base: pathlib.Path) -> None:
    """Writes base/runs/NAME and base/exports/NAME for every name in EXPORTED."""
    base.mkdir()

    def command(name, *flags):
        importlib.import_module(f"shatter_tf.{name}").main([str(flag) for flag in flags])
        tf_keras.backend.clear_session()

    sentences = ["the cat sat on a mat", "a big dog ran very fast", "the old tree was small", "then it was red"]
    words = sorted({word for sentence in sentences for word in sentence.split()})
    (base / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *words, "##s", "."]) + "\n")
    (base / "text.txt").write_text("\n\n".join(f"{s}\n{s} {i}" for i, s in enumerate(sentences * 10)))
    labels = ["animal", "tierchen äöü", "thing"]
    for name, texts in (("classify", ["{}"]), ("pairs", ["{}", "{} too"])):
        (base / name).mkdir()
        rows = ["\t".join([*texts, labels[i % 3]]).format(s, s) + "\n" for i, s in enumerate(sentences * 6)]
        (base / name / "train.tsv").write_text("".join(rows))
        (base / name / "dev.tsv").write_text("".join(rows[:6]))
    flags = [f"--vocab_file={base}/vocab.txt", "--validation_fraction=0.3", "--seq_length=32"]
    command("prepare", f"--input={base}/text.txt", f"--output_dir={base}/corpus", *flags)
    settings = tiny_override(max_sequence_length=128) + ",runtime.enable_xla=false,trainer.train_steps=2"
    settings += ",task.train_data.global_batch_size=4,task.validation_data.global_batch_size=4"
    (base / "regress").mkdir()
    (base / "tag").mkdir()
    (base / "question_answering").mkdir()
    contexts = [f"{s}. {t}." for s in sentences for t in sentences]
    paragraphs = [
        dict(context=c, qas=[dict(id=str(i), question=c[:9], answers=[dict(text=c[4:7], answer_start=4)])])
        for i, c in enumerate(contexts)
    ]
    for split in ("train", "dev"):
        numbers = "".join(f"{s}\t{i / 2}\n" for i, s in enumerate(sentences * 2))
        (base / "regress" / f"{split}.tsv").write_text(numbers)
        tagged = "\n\n".join(
            "\n".join(f"{w}\t{'long' if len(w) > 3 else 'short'}" for w in s.split()) for s in sentences
        )
        (base / "tag" / f"{split}.tsv").write_text(tagged + "\n")
        squad = json.dumps(dict(version="1.1", data=[dict(title="", paragraphs=paragraphs)]))
        (base / "question_answering" / f"{split}.json").write_text(squad)
    for name in EXPORTED:
        experiment, more = dict(pairs="classify", question_answering="answer").get(name, name), []
        if name == "question_answering":
            more = ["task.train_data.seq_length=32", "task.train_data.max_query_length=8", "task.max_answer_length=8"]
        flags = [f"--data_dir={base / name}", f"--init_checkpoint={base}/runs/pretrain"]
        command(
            "train", f"--experiment=shatter/{experiment}", f"--model_dir={base}/runs/{name}",
            f"--params_override={','.join([settings, *more])}",
            *([f"--data_dir={base}/corpus"] if name == "pretrain" else flags),
            f"--mode={'train_and_eval' if name in ('pretrain', 'classify') else 'train'}",
        )  # fmt: skip
        command("export", f"--model_dir={base}/runs/{name}", f"--export_dir={base}/exports/{name}")
