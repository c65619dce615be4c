"""Pictures of a run: what they show is what the model computes, and what cannot be shown is reported."""

import json
import re
import shutil
import time

import numpy as np
import pytest
import reference
import tensorflow as tf
from matplotlib import font_manager
from matplotlib.colors import to_hex
from official.core import task_factory

from shatter_tf import visualize
from shatter_tf.checkpoints import best_checkpoint
from shatter_tf.encoders.shatter.partition import position_partition
from shatter_tf.errors import UserError
from shatter_tf.measuring import pictures
from shatter_tf.measuring.run_pictures import Shown, read_scalars
from shatter_tf.training import run_dir
from shatter_tf.training.session import Session

FAST = "runtime.enable_xla=false,trainer.train_steps=4,trainer.steps_per_loop=2"


@pytest.fixture
def figures(monkeypatch):
    """Returns the list to which every figure that is drawn is added."""
    drawn = []
    to_png = pictures.to_png
    monkeypatch.setattr(pictures, "to_png", lambda figure: drawn.append(figure) or to_png(figure))
    return drawn


@pytest.fixture
def draw(tmp_path, capsys):
    """Returns a function that runs the command, and returns what it printed and the names of the files it wrote."""

    def run(directory, *flags):
        output_dir = tmp_path / "pictures"
        shutil.rmtree(output_dir, ignore_errors=True)
        capsys.readouterr()
        visualize.main([f"--model_dir={directory}", f"--output_dir={output_dir}", *flags])
        for path in output_dir.iterdir():
            assert path.read_bytes().startswith(b"\x89PNG"), path
        return capsys.readouterr().out, sorted(path.name for path in output_dir.iterdir())

    return run


def write_untrained(run, directory, history=()):
    """Makes a model_dir as training does, without a checkpoint."""
    run_dir.write(str(directory), run)
    run_dir.write_history(str(directory), list(history))
    return directory


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("family", ["linear", "bernstein"])
def test_partition_shows_every_part(pretrain, tmp_path, family):
    run = pretrain(f"task.model.encoder.shatter.num_parts=4,task.model.encoder.shatter.partition={family}")
    shown = Shown(run, str(tmp_path))
    r, f = shown.parts
    assert (r[0], r[-1]) == (-15, 15)  # as far as sequences of 16 tokens reach
    assert {*range(-15, 16)} - {0} <= set(r.tolist())
    assert np.abs(r).min() == 1  # a token does not read itself
    for place in (0, len(r) // 2, 700):
        expected = [reference.part(p, r[place], 4, family, 1.0) for p in range(4)]
        np.testing.assert_allclose(f[:, place], expected, atol=1e-6)

    axes = shown.partition().axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert len({to_hex(line.get_color()) for line in lines}) == 4
    np.testing.assert_allclose(np.nansum([line.get_ydata() for line in lines], axis=0), 1.0, atol=1e-6)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (legend[0], legend[-1]) == ("0, far left", "3, far right")


@pytest.mark.parametrize(("layers", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (12, 3)])
def test_attention_shows_maps_and_totals(layers, rows):
    rng = np.random.default_rng(0)
    tokens = ["[CLS]", "$a$", "a_very_long_wordpiece", "##b", "[SEP]"]
    maps = {f"layer {i + 1}": rng.uniform(size=[5, 5]) for i in range(layers)}
    totals = {layer: rng.uniform(size=[5, 3]) for layer in maps}
    figure = pictures.draw_attention(tokens, maps, totals, ["0", "1", "2"])
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    bars = [axes for axes in figure.axes if axes.get_title().startswith("sum")]
    assert [axes.get_title() for axes in panels] == list(maps)
    assert len({round(axes.get_position().y0, 3) for axes in panels}) == rows
    for panel, bar, layer in zip(panels, bars, maps, strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), maps[layer])
        assert ticks(panel.xaxis) == ticks(panel.yaxis) == tokens
        stairs = [patch.get_data() for patch in bar.patches]
        np.testing.assert_allclose(np.transpose([s.values - s.baseline for s in stairs]), totals[layer])
        assert bar.get_ylim() == panel.get_ylim()  # a bar stands beside its row
    pictures.to_png(figure)
    assert {label.get_parse_math() for label in panels[0].get_xticklabels()} == {False}


def test_many_names_are_thinned_and_none_is_cut():
    figure = pictures.draw_confusion([f"label {i}" for i in range(100)], np.eye(100, dtype=int))
    assert ticks(figure.axes[0].xaxis) == [f"label {i}" for i in range(0, 100, 2)]
    assert not figure.axes[0].texts  # too many numbers to be read


def test_confusion_counts_and_shares():
    counts = np.array([[3, 1, 0], [0, 2000, 0], [0, 0, 0]])
    axes = pictures.draw_confusion(["a", "b", "c"], counts).axes[0]
    assert axes.get_title().startswith("100.0% of 2,004 ")
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {(0, 0): "3", (1, 0): "1", (1, 1): "2,000"}
    assert ticks(axes.yaxis) == ["a (4)", "b (2,000)", "c (0)"]


def test_letters_that_no_font_has_are_named(monkeypatch, capsys):
    fonts = [entry for entry in font_manager.fontManager.ttflist if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    pictures.style(["a", "кот"])
    assert capsys.readouterr().err == ""
    pictures.style(["a本", "日本"])
    assert "日本" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trained_classifier(fine_tune, tmp_path, draw, figures):
    directory = tmp_path / "model"
    train = [f"the cat sat\tlabel{i % 3}" for i in range(12)]
    dev = ["the cat sat\tlabel0", "the dog ran\tlabel1", "a big tree\tlabel1", "the cat ran on the mat\tlabel2"] * 4
    run = fine_tune("shatter/classify", train, dev, FAST + ",trainer.validation_interval=2")
    Session(run, str(directory)).train(evaluate=True)
    out, names = draw(directory)
    assert names == ["attention.png", "confusion.png", "curves.png", "partition.png"]
    assert [line.split("/")[-1] for line in out.splitlines()] == [
        "partition.png", "attention.png", "curves.png", "confusion.png",
    ]  # fmt: skip
    _, attention, curves, confusion = figures

    # The same numbers by another way: the model itself, made to return its maps.
    run.params.task.model.encoder.shatter.return_attention_scores = True
    model = task_factory.get_task(run.params.task).build_model()
    checkpoint = tf.train.Checkpoint(model=model).read(best_checkpoint(str(directory)))
    checkpoint.expect_partial().assert_existing_objects_matched()
    tokens = ["[CLS]", "the", "cat", "sat", "[SEP]"]
    ids = tf.constant([[run.vocabulary.index(token) for token in tokens]])
    inputs = dict(input_word_ids=ids, input_mask=tf.ones_like(ids), input_type_ids=tf.zeros_like(ids))
    scores = model.checkpoint_items["encoder"](inputs)["attention_scores"][0][0, 0].numpy()
    panel, bar = attention.axes[:2]
    assert ticks(panel.xaxis) == tokens
    shares = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(panel.images[0].get_array(), shares, rtol=1e-5)
    f = position_partition(run.params.task.model.encoder.shatter, 5).numpy()
    stairs = [patch.get_data() for patch in bar.patches]
    np.testing.assert_allclose([s.values - s.baseline for s in stairs], (shares * f).sum(-1), rtol=1e-5, atol=1e-7)

    history = run_dir.read_history(str(directory))
    assert [axes.get_ylabel() for axes in curves.axes] == ["loss", "cls_accuracy"]
    for axes in curves.axes:
        training, validation = axes.lines
        assert list(training.get_xdata()) == list(validation.get_xdata()) == [2, 4]
        np.testing.assert_allclose(validation.get_ydata(), [entry[axes.get_ylabel()] for entry in history])
        assert np.isfinite(training.get_ydata()).all()

    best = max(entry["cls_accuracy"] for entry in history)
    assert confusion.axes[0].get_title().startswith(f"{best:.1%} of 16 ")
    assert ticks(confusion.axes[0].yaxis) == ["label0 (4)", "label1 (8)", "label2 (4)"]

    # Data that is gone, and a vocabulary that only the run has kept.
    (tmp_path / "vocab.txt").unlink()
    _, names = draw(directory, "--text=the dog sat on the mat", "--layer=1")
    assert "confusion.png" in names
    assert ticks(figures[5].axes[0].xaxis) == ["[CLS]", "the", "dog", "sat", "on", "the", "mat", "[SEP]"]
    (tmp_path / "dev.tsv").unlink()
    out, names = draw(directory)
    assert names == ["curves.png", "partition.png"]
    assert re.search(r"attention.png: .*dev.tsv.*--text", out)
    assert re.search(r"confusion.png: .*dev.tsv", out)


TEXT = "the dog sat on the mat"


@pytest.mark.parametrize(
    "flags",
    [
        ["--model={run}", TEXT, "--output={file}"],  # as docs/design.md promises
        [TEXT, "--output={file}", "--model={run}"],
        ["--output", "{file}", "--model_dir", "{run}", "--layer", "1", TEXT],
        ["--model_dir={run}", f"--text={TEXT}", "--output={file}"],
    ],
)
def test_one_file_has_the_partition_above_the_attention(exported, tmp_path, figures, capsys, flags):
    file = tmp_path / "new/one.png"
    visualize.main([flag.format(run=exported["classify"], file=file) for flag in flags])
    assert capsys.readouterr().out == f"wrote {file}\n"
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in file.parent.iterdir()] == ["one.png"]
    (figure,) = figures
    partition, attention, bars, _ = figure.axes
    assert "3 parts" in partition.get_title()
    assert partition.get_position().y0 > attention.get_position().y1
    assert ticks(attention.yaxis) == ["[CLS]", *TEXT.split(), "[SEP]"]
    assert len(bars.patches) == 3
    np.testing.assert_allclose(attention.images[0].get_array().sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [[], ["--output=a.png", "--output_dir=b"], ["--output=a.png", "the cat", "--text=the cat"], ["--outpu=a.png"]],
)
def test_usage(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        visualize.main(["--model=run", *flags])
    assert "usage" in capsys.readouterr().err


def test_a_run_without_a_checkpoint(pretrain, tmp_path, draw, figures):
    history = [dict(step=step, seconds=1.0, loss=9.0 - step, masked_lm_accuracy=0.1 * step) for step in (1, 2)]
    directory = write_untrained(pretrain(FAST), tmp_path / "model", history)
    out, names = draw(directory)
    assert names == ["curves.png", "partition.png"]
    assert re.search(rf"attention.png: .*{directory}: no checkpoint", out)
    assert re.search("confusion.png: .*shatter/pretrain", out)
    loss, accuracy = figures[1].axes
    assert loss.get_title() == "validation loss 7 at step 2"
    assert list(accuracy.lines[0].get_ydata()) == pytest.approx([0.1, 0.2])

    (directory / "history.jsonl").unlink()
    out, names = draw(directory)
    assert names == ["partition.png"]
    assert re.search("curves.png: .*history.jsonl", out)
    (directory / "ckpt-2.index").write_text("damaged")
    assert re.search(f"attention.png: {directory}: .*damaged", draw(directory)[0])
    with pytest.raises(UserError, match="--output=a.png: .*damaged"):
        visualize.main([f"--model={directory}", "--output=a.png"])


def test_a_pooler_that_is_not_trained_is_no_obstacle(pretrain, tmp_path, draw):
    run, directory = pretrain(f"{FAST},task.model.encoder.shatter.pooling=first_token"), tmp_path / "model"
    Session(run, str(directory)).train(evaluate=False)
    out, names = draw(directory)
    assert "attention.png" in names, out


def test_bert_has_only_curves(pretrain, tmp_path, draw):
    run = pretrain("task.model.encoder.type=bert")
    history = [dict(step=1, seconds=1.0, loss=2.0, masked_lm_accuracy=0.5)]
    out, names = draw(write_untrained(run, tmp_path / "model", history))
    assert names == ["curves.png"]
    for name in ("partition", "attention"):
        assert re.search(f"{name}.png: .*BERT.* parts", out)


def test_the_text_is_the_beginning_of_the_first(pretrain, classify, tmp_path):
    run = pretrain(FAST)
    inputs = Shown(run, str(tmp_path)).sample_inputs()
    assert inputs["input_word_ids"].numpy().tolist() == [[2, 10, 5, 4]]

    (tmp_path / "dev.tsv").write_text("the cat sat on the mat and then\tit was very fast\tlabel0\n")
    run = classify(columns=2, more=FAST)
    (tmp_path / "dev.tsv").write_text(f"the{' cat' * 40}\tthe{' dog' * 40}\tlabel0\n")
    inputs = Shown(run, str(tmp_path)).sample_inputs()
    tokens = [run.vocabulary[i] for i in inputs["input_word_ids"][0].numpy()]
    assert tokens == ["[CLS]", "the", *["cat"] * 10, "[SEP]", "the", *["dog"] * 9, "[SEP]"]
    assert inputs["input_type_ids"][0].numpy().tolist() == [0] * 13 + [1] * 11


def test_steps_done_twice_count_once(tmp_path):
    for loss in (5.0, 4.0):  # a run that was killed, and resumed from an earlier step
        time.sleep(1.1)  # files are read in the order of their names, which begin with the second
        with tf.summary.create_file_writer(str(tmp_path), filename_suffix=f".{loss}").as_default():
            for step in (10, 20):
                tf.summary.scalar("loss", loss, step=step)
    assert read_scalars(str(tmp_path), ("loss", "other")) == {"loss": [(10, 4.0), (20, 4.0)], "other": []}
    assert read_scalars(str(tmp_path / "none"), ("loss",)) == {"loss": []}


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        (1, ["--layer=0"], "--layer=0: .* 1 to 1$"),
        (1, ["--layer=2"], "--layer=2: .* 1 to 1$"),
        (1, ["--text= "], "--text=' ': .*one text"),
        (1, ["--text=the cat\tthe dog"], "--text='the cat.*the dog': .*one text"),
        (2, ["--text=the cat"], "--text='the cat': .*two texts"),
        (2, ["--text=the cat\t"], "--text='the cat.*two texts"),
        (1, ["--text=" + "the " * 31], "--text: 33 tokens.* at most 32"),
        (1, ["--model={base}"], "--model={base}: "),
        (1, ["--output_dir={base}/vocab.txt"], "--output_dir: {base}/vocab.txt/partition.png"),
        (1, ["--output={base}/one.pdf"], "--output={base}/one.pdf: .*.png"),
    ],
)
def test_refusals(classify, tmp_path, columns, flags, message):
    directory = write_untrained(classify(columns=columns, more=FAST), tmp_path / "model")
    flags = [flag.format(base=tmp_path) for flag in flags]
    if not flags[0].startswith("--output="):
        flags = [f"--output_dir={tmp_path}/pictures", *flags]
    with pytest.raises(UserError, match=message.format(base=tmp_path)):
        visualize.main([f"--model={directory}", *flags])
    assert not (tmp_path / "pictures").exists()
    assert json.loads((directory / "experiment.json").read_text())["experiment"] == "shatter/classify"
