"""Long texts, in windows or cut; and batches of texts of about the same length."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from tiny import real_rows

from shatter_tf.data.batches import order_in_buckets
from shatter_tf.data.labelled import LabelledDataConfig, LabelledDataLoader, padded_lengths
from shatter_tf.encoders.registry import FAMILIES
from shatter_tf.errors import UserError
from shatter_tf.layers.windows import Windows
from shatter_tf.serving.servable import build_servable
from shatter_tf.training.session import Session

LENGTH = 8
WHOLE = "task.train_data.long_text=windows,task.train_data.seq_length=8,task.model.use_encoder_pooler=true"


def texts(rows=24, longest=40):
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran"]
    return [" ".join(random.choice(words, random.integers(1, longest))) for _ in range(rows)]


@pytest.fixture
def loader(tmp_path, vocab_file):
    lines = "".join(f"{text}\t{'xy'[i % 2]}\n" for i, text in enumerate(texts()))
    (tmp_path / "train.tsv").write_text(f"text\tlabel\n{lines}")

    def make(**choices):
        settings = dict(
            input_path=str(tmp_path / "train.tsv"),
            vocab_file=vocab_file,
            labels=["x", "y"],
            global_batch_size=4,
            seq_length=LENGTH,
            is_training=True,
        )
        return LabelledDataLoader(LabelledDataConfig(**{**settings, **choices}))

    return make


# === Windows ===


def windows_of(tokens, length, most, cls=3, sep=4):
    """The oracle: one window after the other, padded."""
    room = length - 2
    pieces = [tokens[i : i + room] for i in range(0, len(tokens), room)][:most] or [[]]
    return [[cls, *piece, sep, *[0] * (room - len(piece))] for piece in pieces]


def test_windows_hold_every_token_once(loader):
    whole = loader(long_text="windows", is_training=False, max_windows=3)
    batches = [real_rows(batch) for batch in whole.load()]
    ids, mask = (np.concatenate([batch[key] for batch in batches]) for key in ("input_word_ids", "input_mask"))
    assert ids.shape == (24, 3 * LENGTH)
    for row, row_mask, tokens in zip(ids, mask, whole.segments[0].to_list(), strict=True):
        windows = windows_of(tokens, LENGTH, 3)
        assert row.tolist() == [*itertools.chain(*windows), *[0] * (3 - len(windows)) * LENGTH]
        assert (row_mask == (row != 0)).all()


@pytest.mark.parametrize("keep", ["head", "tail", "head_tail"])
def test_a_cut_text_keeps_its_parts(loader, keep):
    cut = loader(long_text=keep, is_training=False)
    ids = np.concatenate([real_rows(batch)["input_word_ids"] for batch in cut.load()])
    room = LENGTH - 2
    head = dict(head=room, tail=0, head_tail=room // 4)[keep]
    for row, tokens in zip(ids, cut.segments[0].to_list(), strict=True):
        kept = tokens if len(tokens) <= room else tokens[:head] + tokens[len(tokens) - (room - head) :]
        assert [token for token in row.tolist() if token > 4] == kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_an_encoder_reads_each_window_by_itself(family, pooling):
    config = FAMILIES[family].config_class()
    sizes = dict(vocab_size=60, hidden_size=12, num_layers=1, intermediate_size=16, num_parts=3, num_attention_heads=3)
    config.override({name: size for name, size in sizes.items() if name in config.__dict__})
    config.pooling = "mean"
    encoder = FAMILIES[family](config)
    ids = np.array([windows_of([*range(5, 5 + n)], 6, 3) + [[0] * 6] * (3 - -(-n // 4)) for n in (3, 4, 9)])
    inputs = {"input_word_ids": ids.reshape(3, 18)}
    inputs["input_mask"] = (inputs["input_word_ids"] > 0).astype(np.int32)
    inputs["input_type_ids"] = np.zeros_like(inputs["input_mask"])
    inputs = {name: tf.constant(value, tf.int32) for name, value in inputs.items()}

    of_windows = encoder({name: tf.reshape(t, [9, 6]) for name, t in inputs.items()})
    encoder.windows = Windows(6, pooling)
    outputs = encoder(inputs)
    h = of_windows["sequence_output"].numpy().reshape(3, 3, 6, -1)
    np.testing.assert_allclose(outputs["sequence_output"], h.reshape(3, 18, -1), atol=1e-5)

    mask = inputs["input_mask"].numpy().reshape(3, 3, 6, 1)
    if pooling == "mean":
        expected = (h * mask).sum((1, 2)) / mask.sum((1, 2))
    else:
        means = (h * mask).sum(2) / np.maximum(mask.sum(2), 1)
        expected = np.where(mask.any(2), means, -np.inf).max(1)
    np.testing.assert_allclose(outputs["pooled_output"], expected, atol=1e-5)

    # The same where the length is not known; and short inputs are one window.
    dynamic = tf.function(encoder, input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in inputs}])
    np.testing.assert_allclose(dynamic(inputs)["pooled_output"], expected, atol=1e-5)
    short = {name: t[:2, :5] for name, t in inputs.items()}
    alone = dynamic(short)["pooled_output"]
    encoder.windows = None
    np.testing.assert_allclose(alone, encoder(short)["pooled_output"], atol=1e-5)


def test_padding_has_no_influence_in_windows():
    windows = Windows(2, "max")
    h = tf.constant(np.random.default_rng(0).normal(size=[2, 4, 3]), tf.float32)
    mask = tf.constant([[1, 1, 0, 0], [0, 0, 0, 0]])
    pooled = windows.pool(tf.reshape(h, [4, 2, 3])[:, 0], h, mask).numpy()
    np.testing.assert_array_equal(pooled[0], h[0, 0])
    np.testing.assert_array_equal(pooled[1], 0)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_model_of_windows_is_trained_and_served_alike(fine_tune, tmp_path, pooling):
    rows = [f"{text}\t{'xy'[i % 2]}" for i, text in enumerate(texts())]
    more = f"{WHOLE},task.model.windows_pooling={pooling},task.train_data.length_buckets=true"
    run = fine_tune("shatter/classify", rows, more=f"{more},trainer.train_steps=3,task.train_data.max_windows=4")
    assert run.params.task.validation_data.long_text == "windows"
    session = Session(run, str(tmp_path / "run"))
    session.train(evaluate=False)

    given = [*texts(5), "", "the " * 100, "the"]
    servable = build_servable(run, session.trainer.model)
    served = servable.functions["serving_default"](tf.constant(given))["probabilities"].numpy()
    expected = servable.without_graph("serving_default", dict(text=tf.constant(given)))["probabilities"]
    np.testing.assert_allclose(served, expected, atol=1e-5)
    for text, row in zip(given, served, strict=True):  # whatever else is in the batch
        alone = servable.functions["serving_default"](tf.constant([text]))["probabilities"]
        np.testing.assert_allclose(alone[0], row, atol=1e-5)
    # The last window counts.
    two = servable.functions["serving_default"](tf.constant(["the " * 10, "the " * 9 + "dog"]))["probabilities"]
    assert np.abs(two[0] - two[1]).max() > 1e-6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("task.train_data.long_text=window", "long_text=window: use .*did you mean windows"),
        ("task.train_data.long_text=windows", "long_text=windows needs model.use_encoder_pooler=true"),
        (f"{WHOLE},task.model.windows_pooling=sum", "windows_pooling=sum: use mean or max"),
        (f"{WHOLE},task.train_data.max_windows=0", "max_windows=0 is not positive"),
    ],
)
def test_windows_that_cannot_be_are_refused(fine_tune, more, message):
    with pytest.raises(UserError, match=message):
        fine_tune(
            "shatter/classify", ["the cat\tx", "the dog\ty"] * 4, more=f"task.model.use_encoder_pooler=false,{more}"
        )


# === Buckets ===


def rows_of_epochs(loader, epochs, start_step=0):
    batches = loader.load(start_step=start_step).take(epochs * (24 // 4) - start_step)
    return [{key: value.numpy() for key, value in batch.items()} for batch in batches]


def test_batches_have_texts_of_about_the_same_length(loader):
    bucketed = loader(length_buckets=True, long_text="windows", max_windows=8)
    lengths = padded_lengths(bucketed.lengths, bucketed.params)
    assert len(set(lengths)) > 2
    batches = rows_of_epochs(bucketed, 4)
    for batch in batches:
        used = batch["input_mask"].sum(1).max()
        assert batch["input_mask"].shape[1] == padded_lengths(np.array([used]), bucketed.params)[0]
    # Little is padding that one length for all would not spare, and nothing of a text is lost.
    tokens = sum(batch["input_mask"].sum() for batch in batches)
    assert tokens == 4 * bucketed.lengths.sum()
    assert sum(batch["input_mask"].size for batch in batches) < 0.7 * len(batches) * 4 * lengths.max()


def test_a_bucketed_step_is_a_function_of_seed_and_step(loader):
    whole = rows_of_epochs(loader(length_buckets=True, long_text="windows"), 3)
    for start in (1, 5, 6, 13):
        for a, b in zip(
            rows_of_epochs(loader(length_buckets=True, long_text="windows"), 3, start), whole[start:], strict=True
        ):
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])
    other = rows_of_epochs(loader(length_buckets=True, long_text="windows", seed=1), 3)
    assert any(
        a["input_word_ids"].tobytes() != b["input_word_ids"].tobytes() for a, b in zip(whole, other, strict=True)
    )


def test_every_epoch_has_whole_batches_of_different_rows():
    params = LabelledDataConfig(is_training=True, global_batch_size=4)
    buckets = np.random.default_rng(0).integers(0, 3, 23)
    rows = [int(row) for row in order_in_buckets(buckets, params, 0).take(4 * 20)]
    left_out = []
    for epoch in range(4):
        seen = rows[epoch * 20 : (epoch + 1) * 20]
        assert len(set(seen)) == 20
        left_out += {*range(23)} - {*seen}
        mixed = [batch for batch in np.reshape(seen, [5, 4]) if len({*buckets[batch]}) > 1]
        assert len(mixed) <= 2  # where one bucket ends and the next begins
    assert len(set(left_out)) > 3


def test_evaluation_sees_every_row_once_short_ones_first(loader):
    batches = [real_rows(batch) for batch in loader(length_buckets=True, long_text="windows", is_training=False).load()]
    lengths = [length for batch in batches for length in batch["input_mask"].sum(1)]
    assert len(lengths) == 24
    assert [batch["input_mask"].shape[1] for batch in batches] == sorted(
        batch["input_mask"].shape[1] for batch in batches
    )


def test_machines_share_a_bucketed_batch_at_one_length(loader):
    settings = dict(length_buckets=True, long_text="windows")
    parts = [
        [real_rows(batch) for batch in loader(**settings).load(tf.distribute.InputContext(2, n, 2)).take(6)]
        for n in range(2)
    ]
    for step, batch in enumerate(rows_of_epochs(loader(**settings), 1)):
        both = np.concatenate([part[step]["input_word_ids"] for part in parts])
        np.testing.assert_array_equal(both, batch["input_word_ids"])


def test_buckets_resume_exactly(fine_tune, tmp_path):
    rows = [f"{text}\t{'xy'[i % 2]}" for i, text in enumerate(texts())]
    more = f"{WHOLE},task.train_data.length_buckets=true,runtime.enable_xla=false"

    def train(directory, *ends):
        for steps in ends:
            run = fine_tune("shatter/classify", rows, more=f"{more},trainer.train_steps={steps}")
            run.params.trainer.optimizer_config.learning_rate.polynomial.decay_steps = 9
            run.params.trainer.optimizer_config.warmup.polynomial.warmup_steps = 1
            session = Session(run, str(tmp_path / directory))
            session.train(evaluate=False)
        return [variable.numpy() for variable in session.trainer.model.trainable_variables]

    for whole, resumed in zip(train("whole", 9), train("resumed", 4, 9), strict=True):
        np.testing.assert_array_equal(whole, resumed)
