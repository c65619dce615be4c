"""Paths that only tf.io.gfile can open: gs:// and hdfs:// go through the same calls as TensorFlow's own ram://."""

import importlib
import json

import tensorflow as tf
from tiny import tiny_override

ROOT = "ram://remote"


def command(name, *flags):
    importlib.import_module(f"shatter_tf.{name}").main(list(flags))


def write(path, text):
    with tf.io.gfile.GFile(f"{ROOT}/{path}", "w") as f:
        f.write(text)


def test_the_whole_path_without_a_local_file(vocab_file, capsys):
    sentences = ["the cat sat on a mat", "a big dog ran very fast", "the old tree was small", "then it was red"]
    write("text/a.txt", "\n\n".join(f"{s}\n{s} {i}" for i, s in enumerate(sentences * 10)))
    rows = [f"{s}\t{'animal' if i % 4 < 2 else 'thing'}\n" for i, s in enumerate(sentences * 8)]
    write("labels/train.tsv", "".join(rows))
    write("labels/dev.tsv", "".join(rows[:8]))
    tf.io.gfile.copy(vocab_file, f"{ROOT}/vocab.txt")
    settings = tiny_override(max_sequence_length=128)
    settings += ",runtime.enable_xla=false,trainer.train_steps=4,trainer.steps_per_loop=2"

    command(
        "prepare", f"--input={ROOT}/text/*.txt", f"--output_dir={ROOT}/corpus", f"--vocab_file={ROOT}/vocab.txt",
        "--validation_fraction=0.3",
    )  # fmt: skip
    write("settings/mlm.yaml", "task: {train_data: {global_batch_size: 4}, validation_data: {global_batch_size: 4}}")
    command(
        "train", "--experiment=shatter/pretrain", f"--data_dir={ROOT}/corpus", f"--model_dir={ROOT}/pretrain",
        f"--config_file={ROOT}/settings/mlm.yaml", f"--params_override={settings}",
    )  # fmt: skip
    for steps in (4, 6):
        more = f"trainer.train_steps={steps},task.train_data.global_batch_size=4"
        command(
            "train", "--experiment=shatter/classify", f"--data_dir={ROOT}/labels", f"--model_dir={ROOT}/classify",
            f"--init_checkpoint={ROOT}/pretrain", f"--params_override={settings},{more}",
        )  # fmt: skip
    assert "from step 4" in capsys.readouterr().out
    with tf.io.gfile.GFile(f"{ROOT}/classify/metrics.json") as f:
        assert json.load(f)["step"] == 6
    command("export", f"--model_dir={ROOT}/classify", f"--export_dir={ROOT}/served")
    command("predict", f"--model={ROOT}/served", "the cat sat")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["label"] in ("animal", "thing")
