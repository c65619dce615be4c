"""shatter/distil: pieces of a corpus, what is learned of a teacher, and that it is learned."""

import dataclasses
import os
import pathlib
import re
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from official.core import task_factory
from tiny import PLAIN, tiny_override

from shatter_tf.data.corpus.shards import Corpus
from shatter_tf.data.distillation import DistilDataConfig, DistilDataLoader, cut_into_pieces
from shatter_tf.encoders.registry import EncoderConfig
from shatter_tf.errors import UserError
from shatter_tf.serving.load import load_text_encoder
from shatter_tf.tasks import base, distil
from shatter_tf.training import run_dir, settings
from shatter_tf.training.session import Session

RATE = "trainer.optimizer_config.learning_rate.polynomial.initial_learning_rate"


@pytest.fixture
def teacher(pretrain, write_corpus, random_documents, tmp_path) -> str:
    """The directory of a pretraining run whose vectors have unit length; its corpus has texts to validate on."""
    directory = str(tmp_path / "teacher")
    write_corpus(random_documents(2, 30), random_documents(1, 6, seed=1)[0])
    run = pretrain("trainer.train_steps=1,task.model.encoder.shatter.embedding_unit_length=true")
    session = Session(run, directory)
    session.train(evaluate=False)
    return directory


@pytest.fixture
def learn(teacher, tmp_path):
    """Returns a function that resolves a tiny run of shatter/distil on the teacher's own corpus."""

    def make(more="", init_teacher=teacher, **flags):
        data = "task.train_data.global_batch_size=8,task.train_data.shortest=4"
        override = ",".join(filter(None, [PLAIN, tiny_override(hidden_size=6), data, more]))
        corpus = str(tmp_path / "corpus")
        return settings.resolve("distil", data_dir=corpus, init_teacher=init_teacher, params_override=override, **flags)

    return make


def loader_of(corpus: str, **choices) -> DistilDataLoader:
    config = DistilDataConfig(input_path=corpus, seq_length=16, global_batch_size=4, shortest=4, **choices)
    return DistilDataLoader(config)


def batches(loader, number, start_step=0, context=None):
    return [*loader.load(context, start_step).take(number).as_numpy_iterator()]


def documents_of(corpus: str, split: str) -> list[list[int]]:
    shards = getattr(Corpus.read(corpus), split)
    records = tf.data.TFRecordDataset([os.path.join(corpus, shard.file) for shard in shards]).as_numpy_iterator()
    examples = (tf.train.Example.FromString(record) for record in records)
    return [list(example.features.feature["ids"].int64_list.value) for example in examples]


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_cut_where_they_end_and_at_random_in_between(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 200, 50)
    cuts = cut_into_pieces(lengths, 5, 30, rng)
    assert (cuts[0], cuts[-1]) == (0, lengths.sum())
    assert {*np.cumsum(lengths)} <= {*cuts}
    sizes = np.diff(cuts)
    assert sizes.min() >= 1
    assert sizes.max() <= 30
    assert len({*sizes}) > 20


def test_pieces_together_are_the_documents(write_corpus, random_documents):
    corpus = write_corpus(random_documents(2, 20))
    loader = loader_of(corpus, is_training=True)
    rows = loader.encode(tf.range(len(loader.lengths), dtype=tf.int64), 16)
    ids, mask = rows["input_word_ids"].numpy(), rows["input_mask"].numpy()
    pieces = [row[: np.sum(m)].tolist() for row, m in zip(ids, mask, strict=True)]
    assert all(piece[0] == 3 and piece[-1] == 4 and 6 <= len(piece) <= 16 for piece in pieces)

    # Only pieces of fewer than 4 tokens are missing.
    text = " ".join(" ".join(map(str, piece[1:-1])) for piece in pieces)
    documents = documents_of(corpus, "train")
    missing = sum(len(document) - 2 for document in documents) - len(text.split())
    assert 0 <= missing < 0.2 * len(text.split())
    whole = [" ".join(map(str, document[1:-1])) for document in documents]
    assert all(any(" ".join(map(str, piece[1:-1])) in document for document in whole) for piece in pieces)


@pytest.mark.parametrize("mask_rate", [0.0, 0.3])
def test_batches_follow_from_seed_and_step(write_corpus, random_documents, mask_rate):
    corpus = write_corpus(random_documents(2, 20))
    choices = dict(is_training=True, mask_rate=mask_rate)
    whole = batches(loader_of(corpus, **choices), 40)
    tf.nest.map_structure(np.testing.assert_array_equal, whole[17:23], batches(loader_of(corpus, **choices), 6, 17))
    contexts = [tf.distribute.InputContext(2, i, 2) for i in range(2)]
    shares = [batches(loader_of(corpus, **choices), 3, 17, context) for context in contexts]
    for batch, *parts in zip(whole[17:20], *shares, strict=True):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, np.concatenate([part[name] for part in parts]))
    other = batches(loader_of(corpus, seed=1, **choices), 1)
    assert not np.array_equal(other[0]["input_word_ids"], whole[0]["input_word_ids"])


def test_hidden_tokens_change_from_pass_to_pass_and_the_teacher_sees_all(write_corpus, random_documents):
    loader = loader_of(write_corpus(random_documents(1, 6)), is_training=True, mask_rate=0.3)
    seen = {}
    for batch in batches(loader, 3 * len(loader.lengths) // 4):
        for ids, whole, positions, labels, weights in zip(
            *(batch[name] for name in ("input_word_ids", "whole_word_ids")),
            *(batch[name] for name in ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")),
            strict=True,
        ):
            assert 5 not in whole  # [MASK]
            assert weights.sum() >= 1
            np.testing.assert_array_equal(whole[positions[weights > 0]], labels[weights > 0])
            seen.setdefault(whole.tobytes(), set()).add(ids.tobytes())
    assert max(map(len, seen.values())) > 1


def test_losses_are_those_of_the_equations(learn):
    """With loops, on an evaluation's last batch, which has padding rows."""
    run = learn("task.train_data.mask_rate=0.3,task.cosine=0.5,task.similarity=2.0,task.tokens=3.0,task.masked_lm=0.25")
    task = task_factory.get_task(run.params.task, data=run.data)
    task.prepare()
    model = task.build_model()
    batch = [*task.build_inputs(run.params.task.validation_data)][-1]
    outputs = model(batch, training=False)
    taught = task.teach(batch)
    losses = {name: float(total / weight) for name, (total, weight) in task.losses(batch, outputs).items()}
    halved = task.loss_sums(dict(batch, tokens_share=tf.fill(batch["row_weights"].shape, 0.5)), outputs)
    whole = task.loss_sums(batch, outputs)
    assert {name: float(halved[name] / whole[name]) for name in whole} == {**dict.fromkeys(whole, 1.0), "tokens": 0.5}

    rows = np.flatnonzero(batch["row_weights"])
    assert 0 < len(rows) < len(batch["row_weights"])
    s, t = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (outputs["vectors"].numpy(), taught["vectors"].numpy())
    )
    assert losses["cosine"] == pytest.approx(0.5 * np.mean([1 - s[i] @ t[i] for i in rows]), rel=1e-4)
    expected = 2.0 * np.mean([(s[i] @ s[j] - t[i] @ t[j]) ** 2 for i in rows for j in rows])
    assert losses["similarity"] == pytest.approx(expected, rel=1e-4)

    mapped, states = outputs["tokens"].numpy(), taught["tokens"].numpy()
    errors = [
        np.sum((mapped[i, k] - states[i, k]) ** 2) / np.sum(states[i, k] ** 2)
        for i in rows
        for k in range(mapped.shape[1])
        if batch["input_mask"][i, k]
    ]
    assert losses["tokens"] == pytest.approx(3.0 * np.mean(errors), rel=1e-4)
    logits = outputs["mlm_logits"].numpy()
    entropies = [
        np.log(np.sum(np.exp(logits[i, k]))) - logits[i, k, batch["masked_lm_ids"][i, k]]
        for i in rows
        for k in np.flatnonzero(batch["masked_lm_weights"][i])
    ]
    assert losses["masked_lm"] == pytest.approx(0.25 * np.mean(entropies), rel=1e-4)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("trainer.train_steps=8", [1.0, 0.75, 0.0, 0.0]),
        ("trainer.train_steps=8,task.tokens_steps=4", [1.0, 0.5, 0.0, 0.0]),
        ("trainer.train_steps=8,task.tokens_steps=0", [None] * 4),
        ("trainer.train_steps=8,task.cosine=0,task.similarity=0", [None] * 4),  # nothing else is learned
    ],
)
def test_the_weight_of_tokens_falls_in_training(learn, monkeypatch, more, expected):
    run = learn(more)
    task = task_factory.get_task(run.params.task, data=run.data)
    batch = next(iter(task.build_inputs(run.params.task.train_data)))
    monkeypatch.setattr(base, "take_step", lambda task, inputs, *args: inputs)
    for step, share in zip((0, 2, 8, 9), expected, strict=True):
        given = task.train_step(batch, None, types.SimpleNamespace(iterations=tf.Variable(step, dtype=tf.int64)))
        assert given.keys() - batch.keys() == ({"tokens_share"} if share is not None else set())
        if share is not None:
            assert given["tokens_share"].numpy().tolist() == [share] * 8


def test_word_vectors_begin_along_the_teachers_principal_components(learn):
    run = learn(tiny_override(hidden_size=24))  # wider than the teacher: nothing is lost
    task = task_factory.get_task(run.params.task, data=run.data)
    task.prepare()
    model = task.build_model()
    task.initialize(model)
    teacher, student = (e.get_embedding_table().numpy() for e in (task._teacher, model.encoder))
    teacher = teacher - teacher.mean(axis=0)
    products, expected = student @ student.T, teacher @ teacher.T
    scale = products[0, 0] / expected[0, 0]
    np.testing.assert_allclose(products, scale * expected, atol=1e-6)
    assert student[:, :12].std() == pytest.approx(0.02, rel=1e-3)
    assert not student[:, 12:].any()


def test_a_student_learns_and_its_vectors_can_be_served(learn, tmp_path, capsys):
    run = learn(f"trainer.train_steps=300,{RATE}=0.02")
    session = Session(run, str(tmp_path / "student"))
    session.train(evaluate=True)
    history = session.history
    assert history[-1]["teacher_cosine"] > 0.9
    assert run.params.task.model.encoder.get().embedding_dimensions == 12
    read = run_dir.read(str(tmp_path / "student"))
    assert read.params.task.init_teacher == str(tmp_path / "teacher")


def test_a_killed_run_ends_like_one_that_was_not(learn, tmp_path):
    steps = "trainer.train_steps=6,trainer.steps_per_loop=1,trainer.checkpoint_interval=3,trainer.validation_interval=6"
    more = f"{steps},task.model.encoder.shatter.dropout_rate=0.1,task.train_data.mask_rate=0.2"

    def train(directory, until=6):
        session = Session(learn(more, model_dir=directory), directory)
        if until < 6:
            session.trainer.train(tf.constant(until, tf.int32))
            session.saver.begin()
            session.saver.save()
        else:
            session.train(evaluate=True)
        return session.trainer.model.get_weights()

    whole = train(str(tmp_path / "whole"))
    train(str(tmp_path / "killed"), until=3)
    resumed = train(str(tmp_path / "killed"))
    for value, other in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(value, other)


def test_a_teacher_that_reads_first_teaches_the_same(learn, tmp_path):
    """To float16's precision; what was read is kept, and read again only where it is missing."""
    more = "task.tokens=0,trainer.train_steps=4"
    losses = []
    for name, cache in (("step", None), ("cached", True)):
        session = Session(learn(more, cache_teacher=cache), str(tmp_path / name))
        session.train(evaluate=True)
        losses.append(session.history[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)

    shards = sorted(pathlib.Path(tmp_path / "cached/teacher").glob("*/*.npy"))
    assert len(shards) == 2  # of training, and of validation
    before = [shard.stat().st_mtime_ns for shard in shards]
    shards[0].unlink()
    task = Session(
        learn(more, cache_teacher=True, model_dir=str(tmp_path / "cached")), str(tmp_path / "cached")
    ).trainer.task
    assert shards[0].exists()
    assert shards[1].stat().st_mtime_ns == before[1]
    vectors = task._vectors[True]
    loader = task.build_loader(task.task_config.train_data)
    row = np.array([len(loader.lengths) - 1])
    expected = task.teach(loader.encode(tf.constant(row), 16))["vectors"].numpy()
    np.testing.assert_allclose(vectors[row].astype(np.float32), expected, atol=1e-3)


def test_a_map_that_nothing_teaches_is_refused():
    teacher = EncoderConfig()
    teacher.get().embedding_dimensions = 5
    task = distil.DistilConfig(init_teacher="x", teacher=teacher, cosine=0.0, similarity=0.0)
    assert any("nothing else teaches the map" in problem for problem in task.problems())


def test_what_does_not_fit_is_refused(learn, pretrain, tmp_path, write_corpus, random_documents):
    with pytest.raises(UserError, match="--?init_teacher|init_teacher"):
        learn(init_teacher=None)
    with pytest.raises(UserError, match="init_teacher=/nowhere: not a training directory"):
        learn(init_teacher="/nowhere")
    with pytest.raises(UserError, match="cosine, similarity and tokens are 0"):
        learn("task.cosine=0,task.similarity=0,task.tokens=0")
    with pytest.raises(UserError, match="embedding_dimensions=5.*12"):
        learn("task.model.encoder.shatter.embedding_dimensions=5")
    with pytest.raises(UserError, match="accumulation_steps=2"):
        learn("trainer.accumulation_steps=2")
    with pytest.raises(UserError, match="shortest=3"):
        learn("task.train_data.shortest=3")

    # A teacher with another vocabulary.
    other = run_dir.read(str(tmp_path / "teacher"))
    shutil.copytree(tmp_path / "teacher", tmp_path / "other")
    run_dir.write(str(tmp_path / "other"), dataclasses.replace(other, vocabulary=[*other.vocabulary, "more"]))
    with pytest.raises(UserError, match="another vocabulary.*--vocab_file=.*other/vocab.txt"):
        learn(init_teacher=str(tmp_path / "other"))
    with pytest.raises(UserError, match="no use for a teacher"):
        settings.resolve("pretrain", data_dir=str(tmp_path / "corpus"), init_teacher=str(tmp_path / "teacher"))


def test_similarities_with_padding_rows():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 5, 7)).astype(np.float32)
    weights = np.array([1, 1, 1, 0, 0], np.float32)
    errors = distil.similarity_errors(tf.constant(s), tf.constant(t), tf.constant(weights)).numpy()
    alone = distil.similarity_errors(tf.constant(s[:3]), tf.constant(t[:3]), tf.ones(3)).numpy()
    np.testing.assert_allclose(errors[:3], alone, rtol=1e-5)


def test_two_replicas_learn_as_one_does(learn, tmp_path, monkeypatch):
    """Similarities are within the whole batch."""
    more = (
        "trainer.train_steps=5,trainer.steps_per_loop=1,task.train_data.mask_rate=0.2,runtime.enable_xla=false,"
        "task.model.encoder.shatter.dropout_rate=0.1"
    )
    found = []
    for cpus in (1, 2):
        devices = [f"CPU:{i}" for i in range(cpus)]
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
        monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime, chosen=strategy: chosen)
        session = Session(learn(more), str(tmp_path / f"{cpus}"))
        assert session.trainer.strategy.num_replicas_in_sync == cpus
        session.train(evaluate=True)
        found.append((session.trainer.model.get_weights(), session.history[-1]["loss"]))
    for alone, together in zip(*(weights for weights, _ in found), strict=True):
        if alone.ndim:  # not the number of batches
            np.testing.assert_allclose(alone, together, rtol=1e-4, atol=2e-6)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)


def test_tasks_and_text_encoders_start_from_a_student(learn, tmp_path, vocab_file):
    """Its map, which tokens passed, too, is part of its encoder."""
    directory = str(tmp_path / "student")
    Session(learn("trainer.train_steps=2"), directory).train(evaluate=False)
    encoder = load_text_encoder(directory, dtype="float32")
    assert encoder.encode(["the cat", "a dog"]).shape == (2, 12)

    rows = tmp_path / "rows.tsv"
    rows.write_text("".join(f"the {word} sat\t{'ab'[i % 2]}\n" for i, word in enumerate(["cat", "dog"] * 8)))
    files = dict(train_file=str(rows), dev_file=str(rows), init_checkpoint=directory, seq_length=16, batch_size=4)
    session = Session(settings.resolve("classify", params_override=PLAIN, **files), str(tmp_path / "classify"))
    ours, theirs = (
        {re.sub(r"^shatter_encoder\w*/", "", variable.name): variable.numpy() for variable in part.variables}
        for part in (session.trainer.model.checkpoint_items["encoder"], encoder.encoder)
    )
    assert {"embedding_map/kernel:0", "word_embeddings/embeddings:0"} < ours.keys()
    tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)
    assert not [v.name for v in session.trainer.model.trainable_variables if "embedding_map" in v.name]

    # A second student begins as the first, and as an encoder without a map.
    for start in (directory, str(tmp_path / "teacher")):
        sizes = tiny_override() if start != directory else ""
        run = learn(sizes, init_checkpoint=start)
        Session(run, str(tmp_path / f"from-{os.path.basename(start)}"))


def test_a_run_goes_on_with_the_teacher_it_began_with(learn, teacher, tmp_path):
    directory = str(tmp_path / "student")
    Session(learn("trainer.train_steps=2"), directory).train(evaluate=False)
    with pytest.raises(UserError, match=f"began with init_teacher={teacher}; give it again|no teacher"):
        learn(init_teacher=None, model_dir=directory)
    session = Session(run_dir.read(teacher), str(tmp_path / "other"))
    session.trainer.initialize()
    session.train(evaluate=False)
    with pytest.raises(UserError, match="not the teacher that this run began with"):
        learn(init_teacher=str(tmp_path / "other"), model_dir=directory)
    with pytest.raises(UserError, match="cannot learn from itself"):
        learn(init_teacher=directory, model_dir=directory)
    with pytest.raises(UserError, match="task.init_teacher=x: give init_teacher"):
        learn("task.init_teacher=x")


def test_a_run_that_was_killed_while_the_teacher_reads_goes_on(learn, tmp_path, monkeypatch):
    directory = str(tmp_path / "student")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "_restore", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Session(learn("task.tokens=0", cache_teacher=True, model_dir=directory), directory)
    assert os.listdir(directory) == ["teacher"]
    Session(learn("task.tokens=0,trainer.train_steps=1", cache_teacher=True, model_dir=directory), directory).train(
        False
    )


def test_fewer_texts_than_a_batch_has_are_refused(learn, tmp_path):
    run = learn("task.train_data.global_batch_size=2000")
    with pytest.raises(UserError, match="texts are fewer than a batch's 2000; lower batch_size"):
        Session(run, str(tmp_path / "student"))
