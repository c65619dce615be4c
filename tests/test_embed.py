"""shatter/embed: its data, its loss over the global batch, its figures, and vectors in Python and in files."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import tensorflow as tf
import tf_keras
from conftest import WORDS
from official.core import task_factory
from tiny import one_step, tiny_override

from shatter_tf import export, predict
from shatter_tf.data import pairs
from shatter_tf.errors import UserError
from shatter_tf.serving import predictor
from shatter_tf.serving.load import load_text_encoder
from shatter_tf.tasks import retrieval
from shatter_tf.tasks.embed import contrastive_losses, gathered
from shatter_tf.tasks.registry import get_experiment
from shatter_tf.training import run_dir, settings
from shatter_tf.training.session import Session

QUICK = "runtime.enable_xla=false,trainer.train_steps=2,trainer.steps_per_loop=1"
DROPOUT = "task.model.encoder.shatter.dropout_rate=0.2,task.model.encoder.shatter.attention_dropout_rate=0.2"
HEADERS = {1: "text", 2: "anchor\tpositive", 3: "anchor\tpositive\tnegative"}


def rows_of(texts: int, number: int = 12, seed: int = 0) -> list[str]:
    """Returns the lines of a table of random sentences, with a header; its third and fourth positives are equal."""
    rng = np.random.default_rng(seed)
    rows = [[" ".join(rng.choice(WORDS, 4)) for _ in range(texts)] for _ in range(number)]
    rows[3][texts - 1] = rows[2][texts - 1]
    return [HEADERS[texts], *map("\t".join, rows)]


@pytest.fixture
def embed(fine_tune):
    """Returns a function that resolves a tiny run of shatter/embed on rows of so many texts."""
    return lambda texts=2, more="": fine_tune("shatter/embed", rows_of(texts), rows_of(2, seed=1), more)


# === The loss ===


def oracle(vectors, ids, temperature=0.05):
    """Returns the loss of each row of [N, T, D], with loops: what may be a negative is asked one by one."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    losses = []
    for i, row in enumerate(unit):
        candidates = [row[1]]
        for j in range(len(unit)):
            for role in range(1, unit.shape[1]):
                is_known = ids[j, role] in (ids[i, 0], ids[i, 1]) or (role == 1 and ids[j, 0] == ids[i, 0])
                if not is_known:
                    candidates.append(unit[j, role])
        exponents = [math.exp(row[0] @ candidate / temperature) for candidate in candidates]
        losses.append(-math.log(exponents[0] / sum(exponents)))
    return np.array(losses)


def batch_of(rows, texts, size=5, seed=0):
    """Returns random vectors [rows, texts, size] and numbers of texts, some of which are equal."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=[rows, texts, size]).astype(np.float32), rng.integers(0, rows, [rows, texts])


@pytest.mark.parametrize("texts", [2, 3])
def test_the_loss_is_that_of_its_formula(texts):
    vectors, ids = batch_of(7, texts)
    assert len(np.unique(ids)) < ids.size
    numbers = tf.cast(ids, tf.float32)
    losses = contrastive_losses(vectors, vectors, numbers, numbers, tf.range(7), 0.05)
    np.testing.assert_allclose(losses, oracle(vectors, ids), rtol=1e-4, atol=1e-5)


def test_matryoshka_is_the_mean_over_sizes(embed):
    task = task_factory.get_task(embed(more="task.matryoshka=[2,3],task.temperature=0.1").params.task)
    vectors, ids = batch_of(7, 3)
    inputs = dict(input_word_ids=tf.zeros([7, 3, 4], tf.int32), text_ids=tf.constant(ids, tf.int32))
    expected = np.mean([oracle(vectors[..., :size], ids, 0.1) for size in (2, 3, 5)])
    assert float(task.build_losses(inputs, tf.constant(vectors))) == pytest.approx(expected, rel=1e-4)


def test_padding_rows_are_no_candidates_and_do_not_count(embed):
    task = task_factory.get_task(embed().params.task)
    vectors, ids = batch_of(7, 2)
    weights = tf.constant([1.0] * 5 + [0.0] * 2)
    inputs = dict(input_word_ids=tf.zeros([7, 2, 4], tf.int32), text_ids=tf.constant(ids), row_weights=weights)
    expected = oracle(vectors[:5], ids[:5]).mean()
    assert float(task.build_losses(inputs, tf.constant(vectors))) == pytest.approx(expected, rel=1e-4)


def test_two_replicas_take_the_step_that_one_takes(embed):
    """Each of them has negatives from the other, gradients go back through these, and dropout is the same."""
    params = embed(3, f"task.train_data.global_batch_size=8,task.matryoshka=[4],{DROPOUT}").params
    (batch,) = task_factory.get_task(params.task).build_inputs(params.task.train_data).take(1)

    def stepped(replicas):
        ops = tf.distribute.ReductionToOneDevice()
        devices = [f"CPU:{i}" for i in range(replicas)]
        strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=ops)
        tf_keras.utils.set_random_seed(1)
        with strategy.scope():
            task = task_factory.get_task(params.task)
            model = task.build_model()
            optimizer = tf_keras.optimizers.legacy.SGD(0.1)
        rows = 8 // replicas
        shares = [{key: value[i * rows : (i + 1) * rows] for key, value in batch.items()} for i in range(replicas)]
        shares = strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        run = tf.function(lambda x: strategy.run(task.train_step, args=(x, model, optimizer)), autograph=False)
        loss = strategy.experimental_local_results(run(shares)["loss"])[0]
        return float(loss), [variable.numpy() for variable in model.trainable_variables]

    (whole, weights), (shared, others) = stepped(1), stepped(2)
    assert shared == pytest.approx(whole, rel=1e-5)
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_rows_are_gathered_in_their_order():
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
    rows = tf.random.normal([8, 3])
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: rows[2 * context.replica_id_in_sync_group :][:2]
    )
    results = strategy.run(tf.function(gathered), args=(shares,))
    for i in range(4):
        found, own = (strategy.experimental_local_results(result)[i] for result in results)
        np.testing.assert_array_equal(found, rows)
        assert own.numpy().tolist() == [2 * i, 2 * i + 1]


@pytest.mark.parametrize(("texts", "family"), [(1, "shatter"), (3, "bert")])
def test_a_step_with_xla_in_bfloat16(embed, texts, family, caplog):
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    more = "task.model.encoder.shatter.embedding_dimensions=6,task.model.encoder.shatter.dropout_rate=0.1"
    params = embed(texts, f"{more},task.model.encoder.type={family}").params
    assert params.task.model.encoder.get().embedding_unit_length
    task, model, _, changed = one_step(params, jit_compile=True)
    assert "embedding_map" in " ".join(variable.name for variable in model.trainable_variables)
    assert sum(changed) >= len(changed) - 2  # vectors do not depend on the second segment, and first updates are small
    assert not [record for record in caplog.records if "Gradients do not exist" in record.message]
    (batch,) = task.build_inputs(params.task.train_data).take(1)
    vectors = model(batch)
    assert (vectors.dtype, vectors.shape) == (tf.float32, [4, max(texts, 2), 6])
    assert task.build_losses(batch, vectors).dtype == tf.float32


# === Figures ===


def test_figures_are_those_of_sklearn():
    """Chunks, too: there are more rows than are compared at a time."""
    rng = np.random.default_rng(0)
    anchors, positives = (retrieval.unit_length(rng.normal(size=[600, 5]) + 0.2) for _ in range(2))
    ids = np.arange(1200).reshape(600, 2)
    found = retrieval.figures(retrieval.ranks(anchors, positives, ids))
    scores, truth = anchors @ positives.T, np.eye(600)
    assert found["ndcg_at_10"] == pytest.approx(sklearn.metrics.ndcg_score(truth, scores, k=10), rel=1e-6)
    for k in (1, 10):
        hits = sklearn.metrics.top_k_accuracy_score(np.arange(600), scores, k=k)
        assert found[f"recall_at_{k}"] == pytest.approx(hits)
    assert found["mrr"] == pytest.approx(sklearn.metrics.label_ranking_average_precision_score(truth, scores))


def test_equal_texts_count_once_and_known_ones_are_not_in_the_way():
    """Four texts are sought: 10 by two anchors, and 11 and 12 by the same one; text 3 is an anchor, too."""
    ids = np.array([[0, 10], [1, 10], [2, 11], [2, 12], [3, 13], [5, 3]])
    angles = {10: 0.0, 11: 0.3, 12: 0.5, 13: 1.4, 3: 1.2}
    positives = np.array([[math.cos(angles[i]), math.sin(angles[i])] for i in ids[:, 1]])
    anchors = np.array([[math.cos(a), math.sin(a)] for a in (0.1, 0.45, 0.5, 0.5, 1.2, 0.9)])
    assert retrieval.ranks(anchors, positives, ids).tolist() == [1, 3, 1, 1, 1, 1]


def test_vectors_that_are_all_alike_or_not_finite_find_nothing():
    ids = np.arange(200).reshape(100, 2)
    alike = np.ones([100, 3])
    assert retrieval.ranks(alike, alike, ids).tolist() == [50.5] * 100
    assert retrieval.figures(retrieval.ranks(alike * np.nan, alike, ids))["mrr"] == 0


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=[2, 50, 4])
    numbers = rng.integers(0, 5, 50)
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)]
    assert retrieval.spearman(numbers, retrieval.cosines(first, second)) == pytest.approx(
        scipy.stats.spearmanr(numbers, cosine)[0]
    )
    assert retrieval.spearman(numbers, np.full(50, np.nan)) == 0


# === Data ===


def read(tmp_path, name, text, is_training=False, **given):
    (tmp_path / name).write_text(text)
    rows, note = pairs.read_rows(str(tmp_path / name), pairs.PairsDataConfig(is_training=is_training, **given))
    return [(row.texts, row.label) for row in rows], note


@pytest.mark.parametrize(
    ("name", "text", "given", "first"),
    [
        ("a.tsv", "the cat\ta mat\nthe dog\ta tree\n", {}, ("the cat", "a mat")),
        ("a.tsv", "the cat\ta mat\ta tree\nthe dog\ta tree\tx\n", {}, ("the cat", "a mat", "a tree")),
        ("a.csv", "id,document,query\n1,a mat,the cat\n", {}, ("the cat", "a mat")),
        ("a.csv", "title,text\nthe cat,a mat\n", {}, ("the cat", "a mat")),
        ("a.csv", "answer,question\na mat,the cat\n", {}, ("the cat", "a mat")),
        ("a.csv", "negative,anchor,positive\nx,the cat,a mat\n", {}, ("the cat", "a mat", "x")),
        ("a.csv", "a,b,c\nx,the cat,a mat\n", dict(text_fields=["b", "c"]), ("the cat", "a mat")),
        ("a.csv", "text,label\nthe cat,7\n", {}, ("the cat",)),
        ("a.csv", "text\nthe cat\nthe dog\n", {}, ("the cat",)),
        ("a.txt", "the cat\n\n the dog, too \n", {}, ("the cat",)),
        ("a.jsonl", '{"sentence1": "the cat", "sentence2": "a mat"}\n', {}, ("the cat", "a mat")),
        (
            "a.csv",
            "text_a,text_b,score\nthe cat,a mat,2\n",
            dict(text_fields=["text_a", "text_b"], is_training=True),
            ("the cat", "a mat"),
        ),
    ],
)
def test_columns_are_told_by_their_names(tmp_path, name, text, given, first):
    rows, note = read(tmp_path, name, text, **given)
    assert rows[0] == (first, "")
    assert str(tmp_path / name) in note


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("sentence1\tsentence2\tsimilarity\nthe cat\ta cat\t4.5\n", {}),
        ("the cat\ta cat\t4.5\nthe dog\tit\t1\n", {}),
        ("a\tb\thow\nthe cat\ta cat\t4.5\n", dict(text_fields=["a", "b"], label_field="how")),
    ],
)
def test_a_number_beside_a_pair_is_how_alike_it_is(tmp_path, text, given):
    assert read(tmp_path, "a.tsv", text, **given)[0][0] == (("the cat", "a cat"), "4.5")


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("text_a,text_b,score\na,b,1\n", dict(is_training=True), r"'score'.*dev_file.*text_fields=text_a,text_b"),
        ("text_a,text_b,label\na,b,entails\n", {}, r"'label' is not a number.*text_fields=text_a,text_b"),
        ("anchor,positive,negative_1,negative_2\na,b,c,d\n", {}, "negative_2, negative_1.*text_fields"),
        ("a,b\nx,y\n", dict(text_fields=["a", "c"]), "text_fields=c"),
        ("alpha,beta,id\nx,y,1\nz,w,2\n", {}, "text_fields=.*'alpha'|header"),
        ("the cat,1\nthe dog,2\n", {}, "column 2 holds only numbers"),
        ("anchor,positive\nthe cat,\n", {}, "a.csv:2.*'positive'.* is empty"),
        ("a,b,c,d\nx,y,z,w\n", dict(text_fields=["a", "b", "c", "d"]), "text_fields=a,b,c,d"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path, text, given, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, "a.csv", text, **given)


def test_single_texts_are_evaluated_by_their_halves(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join(f"the cat {word} sat on {word}" for word in WORDS))
    run = settings.resolve(
        "embed",
        data_dir=str(tmp_path),
        params_override=f"{tiny_override(dropout_rate=0.1)},task.train_data.seq_length=16",
    )
    assert run.params.task.of_single_texts
    assert run.params.trainer.best_checkpoint_eval_metric == "recall_at_10"
    assert (len(run.data.train), len(run.data.validation)) == (18, 2)
    assert {len(row.texts) for row in run.data.train} == {1}
    first, second = run.data.validation[0].texts
    assert first.startswith("the cat")
    assert second.endswith(first.split()[2])
    assert "half" in run.data.notes[1]
    (batch,) = task_factory.get_task(run.params.task, data=run.data).build_inputs(run.params.task.train_data).take(1)
    np.testing.assert_array_equal(batch["input_word_ids"][:, 0], batch["input_word_ids"][:, 1])
    np.testing.assert_array_equal(batch["text_ids"][:, 0], batch["text_ids"][:, 1])


@pytest.mark.parametrize(
    ("texts", "more", "message"),
    [
        (1, "", "task.train_data: single texts .*shatter.dropout_rate"),
        (2, "task.temperature=0", "task.temperature=0.* is not positive"),
        (2, "task.matryoshka=[8,12]", "task.matryoshka=.*: 12 .* 12"),
        (2, "task.matryoshka=[8,8]", "task.matryoshka=.* twice"),
        (2, "task.train_data.tfds_name=x", "tfds_name"),
        (2, "task.train_data.global_batch_size=64", "12 training rows are fewer than global_batch_size=64"),
    ],
)
def test_settings_that_cannot_be(embed, texts, more, message):
    with pytest.raises(UserError, match=message):
        embed(texts, more)


def test_parts_of_a_batch_are_refused(embed):
    with pytest.raises(UserError, match="trainer.accumulation_steps=2: this task compares the rows of a batch"):
        embed(more="trainer.accumulation_steps=2")


def test_batches_have_the_length_of_their_longest_text(fine_tune):
    rows = ["anchor\tpositive", *(f"the cat\t{'the dog ' * (20 if i % 2 else 2)}" for i in range(16))]
    run = fine_tune("shatter/embed", rows, more="task.train_data.seq_length=32,task.train_data.length_buckets=true")
    batches = task_factory.get_task(run.params.task, data=run.data).build_inputs(run.params.task.train_data).take(4)
    assert sorted(batch["input_word_ids"].shape.as_list() for batch in batches) == [[4, 2, 16]] * 2 + [[4, 2, 32]] * 2


def test_the_report_says_what_was_read(embed, fine_tune):
    run = embed(3)
    report = run.params.task.report(run.data)
    assert report.facts["rows"] == dict(train=12, validation=12)
    assert any("negative: 'negative'" in line for line in report.lines)
    run = fine_tune("shatter/embed", ["anchor\tpositive", *(f"the cat {word}\tthe dog" for word in WORDS)])
    assert "nothing to learn" in run.params.task.report(run.data).problems[0]


# === Runs ===


def test_pairs_that_share_no_word_are_learned(tmp_path):
    """The anchor has one of 30 words, and the positive another that belongs to it; TF-IDF cannot know."""
    rng = np.random.default_rng(0)
    others, keys = [f"o{i}" for i in range(8)], range(30)

    def lines(times):
        rows = [(*rng.choice(others, 2), key, *rng.choice(others, 2)) for key in keys for _ in range(times)]
        return "\n".join(["anchor\tpositive", *(f"{a} x{key} {b}\t{c} y{key} {d}" for a, b, key, c, d in rows)])

    (tmp_path / "train.tsv").write_text(lines(8))
    (tmp_path / "dev.tsv").write_text(lines(1))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *others, *(f"{side}{key}" for key in keys for side in "xy")]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    more = f"{tiny_override(hidden_size=24)},task.train_data.vocab_file={tmp_path}/vocab.txt,task.matryoshka=[8]"
    more += ",task.train_data.seq_length=16,runtime.enable_xla=false,trainer.steps_per_loop=20"
    run = settings.resolve("embed", data_dir=str(tmp_path), params_override=more, train_steps=60, learning_rate=1e-2)
    session = Session(run, str(tmp_path / "run"))
    before = session.evaluate()
    session.train(evaluate=True)
    session.conclude()
    metrics = run_dir.read_metrics(str(tmp_path / "run"))
    assert before["recall_at_10"] < 0.7
    assert metrics["recall_at_10"] > 0.9
    assert metrics["recall_at_10/8"] > 0.9
    assert metrics["baseline"]["tf_idf"] < 0.6
    assert metrics["baseline"]["rows"] == 30


def test_scored_pairs_are_evaluated_by_their_rank(fine_tune, tmp_path, monkeypatch):
    """Ten rows in batches of four, on two replicas: the last is padded."""
    ops = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=ops)
    monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime: strategy)
    numbers = [i * 7 % 5 for i in range(10)]
    dev = [f"{line}\t{number}" for line, number in zip(rows_of(2, 10, seed=2)[1:], numbers, strict=True)]
    run = fine_tune("shatter/embed", rows_of(2), ["text_a\ttext_b\tscore", *dev], QUICK)
    assert run.params.trainer.best_checkpoint_eval_metric == "spearman"
    run_dir.write(str(tmp_path / "run"), run)
    session = Session(run, str(tmp_path / "run"))
    session.compare_with_baseline(session.evaluate())
    session.saver.save()

    metrics = run_dir.read_metrics(str(tmp_path / "run"))
    encoder = load_text_encoder(str(tmp_path / "run"), dtype="float32")
    cosine = np.array([encoder.similarity(*line.split("\t")[:2])[0, 0] for line in dev])
    assert metrics["spearman"] == pytest.approx(scipy.stats.spearmanr(numbers, cosine)[0], abs=1e-6)
    assert metrics["loss"] == pytest.approx(np.mean((cosine - np.array(numbers) / 4) ** 2), rel=1e-4)
    assert "tf_idf" in metrics["baseline"]


def test_a_run_that_was_killed_ends_with_the_same_weights(embed, tmp_path):
    steps = f"{QUICK},trainer.train_steps=4,trainer.checkpoint_interval=2,trainer.validation_interval=2,{DROPOUT}"
    whole = Session(embed(1, steps), str(tmp_path / "run"))
    whole.train(evaluate=True)
    expected = [variable.numpy() for variable in whole.trainer.model.variables]
    for path in (tmp_path / "run").glob("ckpt-4*"):  # as if it had been killed after the one before
        path.unlink()

    resumed = Session(embed(1, steps), str(tmp_path / "run"))
    assert resumed.step == 2
    resumed.train(evaluate=False)
    for one, other in zip(expected, resumed.trainer.model.variables, strict=True):
        np.testing.assert_array_equal(one, tf.convert_to_tensor(other), err_msg=other.name)


# === What is served ===

TEXTS = ["the cat sat", "a big dog ran very fast " * 10, "", "the old tree"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run without data of its own, as `convert` writes it, and its export: their directories."""
    base = tmp_path_factory.mktemp("embed")
    params = get_experiment("shatter/embed")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    sizes = dict(vocab_size=32, hidden_size=12, num_layers=1, num_parts=3, intermediate_size=10)
    vectors = dict(embedding_dimensions=6, embedding_unit_length=True)
    params.task.model.encoder.shatter.override({**sizes, **vectors})
    params.task.train_data.seq_length = 16
    run_dir.write(str(base / "run"), run_dir.Run("shatter/embed", params, vocabulary, lower_case=True))
    model = task_factory.get_task(params.task).build_model()
    step = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=model, global_step=step, **model.checkpoint_items)
    tf.train.CheckpointManager(checkpoint, str(base / "run"), max_to_keep=1).save(checkpoint_number=0)
    export.main([f"--model_dir={base}/run", f"--export_dir={base}/served"])
    return base


def test_python_and_an_export_give_the_same_vectors(served, tmp_path, capsys):
    encoder = load_text_encoder(str(served / "run"), dtype="float32")
    vectors = encoder.encode(TEXTS, batch_size=2)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 6))
    np.testing.assert_allclose(vectors, encoder(tf.constant(TEXTS)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    capsys.readouterr()
    predict.main([f"--model={served}/served", TEXTS[0], TEXTS[3]])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0].keys() == {"text", "embedding"}
    np.testing.assert_allclose([answer["embedding"] for answer in answers], vectors[[0, 3]], atol=1e-5)


def test_vectors_are_cut_and_compared(served):
    encoder = load_text_encoder(str(served / "run"), dtype="float32")
    vectors = encoder.encode(TEXTS)
    cut = encoder.encode(TEXTS, dimensions=4)
    np.testing.assert_allclose(cut, retrieval.unit_length(vectors[:, :4]), atol=1e-7)
    for empty in ([], ()):
        assert encoder.encode(empty).shape == (0, 6)
        assert encoder.similarity(empty, TEXTS).shape == (0, 4)
    np.testing.assert_allclose(encoder.similarity(TEXTS, vectors), vectors @ vectors.T, atol=1e-6)
    np.testing.assert_allclose(encoder.similarity("the cat sat", 3 * vectors)[0, 0], 1, atol=1e-6)
    for dimensions in (0, 7):
        with pytest.raises(UserError, match=f"dimensions={dimensions}: a vector has 6"):
            encoder.encode(TEXTS, dimensions=dimensions)


def run_predict(served, *flags):
    predict.main([f"--model={served}/served", "--signature=embed", *flags])


def test_vectors_of_a_file_are_an_array(served, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS * 20) + "\n")
    run_predict(served, f"--input={tmp_path}/in.txt", f"--output={tmp_path}/out/vectors.npy")
    assert f"20 rows have no text, and a vector of zeros; the first is {tmp_path}/in.txt:3" in capsys.readouterr().err
    vectors = np.load(tmp_path / "out/vectors.npy")
    expected = load_text_encoder(str(served / "run"), dtype="float32").encode(TEXTS * 20)
    expected[2::4] = 0
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)

    (tmp_path / "in.csv").write_text("id,text\n1,the cat\n2,the dog\n")
    run_predict(served, f"--input={tmp_path}/in.csv", f"--output={tmp_path}/rows.npy")
    assert np.load(tmp_path / "rows.npy").shape == (2, 6)
    run_predict(served, "the cat", f"--output={tmp_path}/one.npy")
    assert np.load(tmp_path / "one.npy").shape == (1, 6)


def test_arrays_are_written_whole_or_not_at_all(served, tmp_path, monkeypatch):
    (tmp_path / "in.csv").write_text("id,text\n1,the cat\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "the cat"}\n{"text": 7}\n')
    for file, message in (("bad.jsonl", "bad.jsonl:2"), ("none.txt", "no row has a text")):
        (tmp_path / "none.txt").write_text("\n\n")
        with pytest.raises(UserError, match=message):
            run_predict(served, f"--input={tmp_path}/{file}", f"--output={tmp_path}/out.npy")
    monkeypatch.setattr(predictor.Model, "gives", ["label", "labels", "probabilities"])
    with pytest.raises(UserError, match="out.npy: .*signature=embed gives label, labels, probabilities.*=embed"):
        run_predict(served, "the cat", f"--output={tmp_path}/out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "in.csv", "none.txt"]


def test_a_pretrained_encoder_is_trained_on(pretrain, tmp_path, capsys):
    pretrained = pretrain(QUICK)
    run_dir.write(str(tmp_path / "pretrained"), pretrained)
    Session(pretrained, str(tmp_path / "pretrained")).saver.save()
    (tmp_path / "train.tsv").write_text("\n".join(rows_of(2)))
    more = f"{QUICK},task.train_data.global_batch_size=4,task.train_data.seq_length=16"
    flags = dict(data_dir=str(tmp_path), init_checkpoint=str(tmp_path / "pretrained"), params_override=more)
    run = settings.resolve("embed", **flags)
    encoder = run.params.task.model.encoder.get()
    assert (encoder.dropout_rate, encoder.embedding_unit_length) == (0.1, True)
    Session(run, str(tmp_path / "run"))
    assert "new: 0 variables" in capsys.readouterr().out
