"""The pretraining loader: masking statistics, packing, and an order that is a pure function of (seed, step)."""

import itertools
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from shatter_tf.data.masking import mask_row
from shatter_tf.data.pretraining import PretrainDataConfig, PretrainDataLoader, cut_into_rows
from shatter_tf.errors import UserError

MASK, SPECIAL = 5, {0, 2, 3, 4, 5}


def make_loader(path, **choices):
    sizes = dict(input_path=path, is_training=True, seq_length=16, global_batch_size=4)
    return PretrainDataLoader(PretrainDataConfig(**{**sizes, **choices}))


def take(dataset, number):
    return [{key: value.numpy() for key, value in batch.items()} for batch in dataset.take(number)]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def unmask(batch):
    ids = batch["input_word_ids"].copy()
    for row, (positions, labels, weights) in enumerate(
        zip(batch["masked_lm_positions"], batch["masked_lm_ids"], batch["masked_lm_weights"], strict=True)
    ):
        chosen = weights > 0
        ids[row, positions[chosen]] = labels[chosen]
    return ids


def masked(rows=4000, length=40, **choices):
    rng = np.random.default_rng(0)
    ids = rng.integers(6, 28, (rows, length)).astype(np.int32)
    ids[:, 0], ids[:, -5], ids[:, -4:] = 3, 4, 0
    packs = np.where(ids == 0, 0, 1).astype(np.int32)
    settings = dict(mask_rate=0.15, max_predictions=6, mask_id=MASK)
    settings.update(choices)
    ordinary = np.array([i not in SPECIAL for i in range(28)])

    @tf.function  # eagerly, map_fn is a loop in Python
    def mask_rows(*rows):
        return tf.map_fn(
            lambda x: mask_row(
                x[0],
                x[1],
                tf.random.fold_in([7, 7], x[2]),
                ordinary_ids=tf.constant(np.flatnonzero(ordinary), tf.int32),
                is_ordinary=tf.constant(ordinary),
                **settings,
            ),
            rows,
            fn_output_signature=dict(
                **{key: tf.int32 for key in ("input_word_ids", "input_mask", "input_type_ids")},
                **{key: tf.int32 for key in ("masked_lm_positions", "masked_lm_ids")},
                masked_lm_weights=tf.float32,
            ),
        )

    outputs = mask_rows(ids, packs, np.arange(rows, dtype=np.int64))
    return ids, {key: value.numpy() for key, value in outputs.items()}


def test_masking_statistics():
    ids, batch = masked()
    chosen = batch["masked_lm_weights"] > 0
    assert np.all(chosen.sum(axis=1) == round(0.15 * 34))
    np.testing.assert_array_equal(unmask(batch), ids)
    labels = batch["masked_lm_ids"][chosen]
    assert not set(labels) & SPECIAL
    hidden = np.take_along_axis(batch["input_word_ids"], batch["masked_lm_positions"], axis=1)[chosen]
    number = len(labels)
    share = {
        "mask": np.mean(hidden == MASK),
        "same": np.mean(hidden == labels),
        "random": np.mean((hidden != MASK) & (hidden != labels)),
    }
    # 80 / 10 / 10; one random wordpiece in 23 is the same one by chance. Four standard deviations.
    for name, expected in (("mask", 0.8), ("same", 0.1 + 0.1 / 23), ("random", 0.1 - 0.1 / 23)):
        assert abs(share[name] - expected) < 4 * np.sqrt(expected * (1 - expected) / number), share
    assert not set(hidden[hidden != MASK]) & SPECIAL
    positions = batch["masked_lm_positions"][chosen]
    counts = np.bincount(positions, minlength=40)[1:-5]
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()
    assert counts.sum() == number  # never a special token or padding


def test_a_row_without_ordinary_tokens_predicts_nothing():
    ordinary = np.array([False] * 28)
    outputs = mask_row(
        tf.constant([3, 4, 0, 0]), tf.constant([1, 1, 0, 0]), tf.constant([1, 2]), mask_rate=0.15, max_predictions=2,
        mask_id=MASK, ordinary_ids=tf.constant([6]), is_ordinary=tf.constant(ordinary),
    )  # fmt: skip
    assert not np.any(outputs["masked_lm_weights"])
    np.testing.assert_array_equal(outputs["input_word_ids"], [3, 4, 0, 0])


def test_a_step_is_a_function_of_seed_and_step(write_corpus, random_documents):
    path = write_corpus(random_documents(shards=3, per_shard=17))
    steps = 60  # several epochs
    whole = take(make_loader(path, seed=5).load(), steps)
    assert_same(take(make_loader(path, seed=5).load(), steps), whole)
    for start in (1, 7, 23, 59):
        assert_same(take(make_loader(path, seed=5).load(start_step=start), steps - start), whole[start:])
    other = take(make_loader(path, seed=6).load(), 1)
    assert np.any(other[0]["input_word_ids"] != whole[0]["input_word_ids"])


def test_an_epoch_sees_every_row_once_in_a_new_order_and_masking(write_corpus, random_documents):
    path = write_corpus(random_documents(shards=3, per_shard=17))
    loader = make_loader(path, global_batch_size=1)
    rows = loader.rows_per_epoch
    batches = take(loader.load(), 2 * rows)
    first, second = ([unmask(b)[0].tolist() for b in batches[e * rows : (e + 1) * rows]] for e in range(2))
    assert sorted(first) == sorted(second)
    assert first != second
    in_corpus = list(itertools.chain(*(loader_rows(loader, visit) for visit in range(3))))
    assert sorted(first) == sorted(in_corpus)
    where = {tuple(row): n for n, row in enumerate(first)}
    again = [where[tuple(row)] for row in second]
    same = [
        np.array_equal(batches[n]["input_word_ids"], batches[rows + i]["input_word_ids"]) for i, n in enumerate(again)
    ]
    assert np.mean(same) < 0.5


def loader_rows(loader, visit):
    return loader.read_visit(tf.constant(visit, tf.int64))[0].numpy().tolist()


@pytest.mark.parametrize("pipelines", [2, 4])
def test_any_number_of_machines_sees_the_same_global_batch(write_corpus, random_documents, pipelines):
    path = write_corpus(random_documents(shards=2, per_shard=20))
    whole = take(make_loader(path).load(), 10)
    parts = [
        take(make_loader(path).load(tf.distribute.InputContext(pipelines, n, pipelines)), 10) for n in range(pipelines)
    ]
    for step, batch in enumerate(whole):
        together = np.concatenate([part[step]["input_word_ids"] for part in parts])
        np.testing.assert_array_equal(together, batch["input_word_ids"])


def test_a_resume_reads_one_shard_at_most(write_corpus, random_documents):
    """From the shard that holds its first row on; no row before that shard is read."""
    loader = make_loader(write_corpus(random_documents(shards=3, per_shard=17)))
    for row in range(0, 3 * loader.rows_per_epoch, 5):
        visit, skipped = loader.locate(row)
        epoch, place = divmod(visit, 3)
        rows = loader.rows[loader.shard_order(epoch).numpy()]
        assert 0 <= skipped < rows[place]
        assert epoch * loader.rows_per_epoch + rows[:place].sum() + skipped == row


def test_a_corpus_that_is_not_what_it_was_is_refused(write_corpus, random_documents):
    path = pathlib.Path(write_corpus(random_documents(shards=2, per_shard=9)))
    shard, about = next(path.glob("train-*")), path / "corpus.json"
    whole, said = shard.read_bytes(), about.read_text()
    shard.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=rf"{shard.name}: [\d,]+ bytes, and \S+corpus.json says [\d,]+; copy it again"):
        make_loader(str(path))
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: no such file, but \S+corpus.json names it"):
        make_loader(str(path))
    shard.write_bytes(whole)
    for key, value in dict(train=[], seq_length="16", unigram_entropy=-1, lower_case=0, unknown_tokens=1.5).items():
        about.write_text(json.dumps({**json.loads(said), key: value}))
        with pytest.raises(UserError, match="not a corpus description"):
            make_loader(str(path))
    corpus = json.loads(said)
    for entry in corpus["train"]:
        del entry["bytes"]  # prepared before sizes were recorded
    about.write_text(json.dumps(corpus))
    make_loader(str(path))


def test_documents_are_packed_and_numbered(write_corpus):
    path = write_corpus([[[3, 7, 8, 4], [3, 9, 4], [3, *range(6, 26), 4]]], validation=[[3, 7, 4], [3, 8, 9, 4]])
    (batch,) = take(make_loader(path, is_training=False, global_batch_size=2).load(), 5)
    assert batch["input_mask"][0].tolist() == [1, 1, 1, 2, 2, 2, 2] + [0] * 9
    assert unmask(batch)[0].tolist() == [3, 7, 4, 3, 8, 9, 4] + [0] * 9
    # The second row fills the batch: nothing in it, nothing to predict.
    assert not np.any(batch["input_mask"][1])
    assert not np.any(batch["masked_lm_weights"][1])
    rows = take(make_loader(path, global_batch_size=1).load(), 2)
    assert sorted(b["input_mask"][0].tolist() for b in rows) == [
        [1] * 13 + [0] * 3,
        [1] * 4 + [2] * 3 + [3] * 9,
    ]


def test_shapes_are_static(write_corpus, random_documents):
    path = write_corpus(random_documents(shards=1, per_shard=9))
    for is_training in (True, False):
        spec = make_loader(path, is_training=is_training).load().element_spec
        assert {key: tuple(s.shape) for key, s in spec.items()} == {
            **{key: (4, 16) for key in ("input_word_ids", "input_mask", "input_type_ids")},
            **{key: (4, 3) for key in ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")},
        }


def test_validation_is_the_same_every_time(write_corpus, random_documents):
    path = write_corpus(random_documents(shards=1, per_shard=9), validation=random_documents(1, 11, seed=3)[0])
    loader = make_loader(path, is_training=False)
    first = take(loader.load(), 100)
    assert_same(take(loader.load(), 100), first)
    assert len(first) == -(-loader.rows_per_epoch // 4)


def test_one_very_long_document_among_many_takes_no_more_memory_than_its_tokens():
    # As a table of documents x the longest one's tokens, this would be 320 GB.
    lengths = [2] * 200_000 + [200_000]
    tokens = tf.RaggedTensor.from_row_lengths(tf.range(sum(lengths)), lengths)
    ids, packs = cut_into_rows(tokens, 1000, pad_id=0)
    np.testing.assert_array_equal(ids.numpy().ravel(), np.arange(600_000))
    np.testing.assert_array_equal(packs.numpy()[0], np.arange(1000) // 2 + 1)
    np.testing.assert_array_equal(packs.numpy()[400:], 1)
