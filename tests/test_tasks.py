"""Model Garden's tasks take the encoder, train it and evaluate it; weight decay and restores are right."""

import dataclasses
import json
import pathlib
import subprocess

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import tensorflow as tf
import tf_keras
from conftest import WORDS
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.nlp.configs import bert, encoders
from official.nlp.data import pretrain_dataloader
from official.nlp.tasks import masked_lm, question_answering, sentence_prediction, tagging
from tiny import TINY, one_step, real_rows

from shatter_tf import checkpoints
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.errors import UserError
from shatter_tf.tasks import registry as experiments
from shatter_tf.training import run_dir as model_dir
from shatter_tf.training.session import Session

ROOT = pathlib.Path(__file__).parents[1]
SMALL = "runtime.enable_xla=false,trainer.train_steps=2,trainer.steps_per_loop=1"


def tiny_encoder(**choices) -> ShatterConfig:
    return ShatterConfig(vocab_size=64, **{**TINY, "dropout_rate": 0.0, "attention_dropout_rate": 0.0, **choices})


@pytest.mark.parametrize("encoder", ["any", "bert"])
def test_masked_lm(pretrain, encoder, caplog):
    run = pretrain(f"task.model.encoder.type={encoder}")
    _, model, _, changed = one_step(run.params, jit_compile=encoder == "any")
    assert all(changed)
    assert not [record for record in caplog.records if "Gradients do not exist" in record.message]
    names = [variable.name for variable in model.trainable_variables]
    assert not [name for name in names if "pooler" in name]
    assert any("output_bias" in name for name in names)


def test_a_pooler_that_no_loss_depends_on_is_not_trained(tag):
    run = tag(f"{SMALL},task.model.encoder.shatter.pooling=first_token")
    _, model, _, _ = one_step(run.params)
    assert not [variable.name for variable in model.trainable_variables if "pooler" in variable.name]
    assert [variable.name for variable in model.non_trainable_variables if "pooler" in variable.name]


@pytest.mark.parametrize(("columns", "labels", "encoder"), [(1, 2, "any"), (2, 3, "any"), (2, 11, "bert")])
def test_sentence_prediction(classify, columns, labels, encoder, caplog):
    run = classify(columns, labels, f"task.model.encoder.type={encoder}")
    assert run.params.task.model.num_classes == labels
    assert run.params.task.pairs == (columns == 2)
    _, _, _, changed = one_step(run.params, jit_compile=labels == 2)  # which has the most metrics
    assert sum(changed) > 0.8 * len(changed)  # single texts do not use the second segment's embedding
    assert not [record for record in caplog.records if "Gradients do not exist" in record.message]


def evaluate(run, directory):
    """Evaluates random weights; returns what metrics.json says, and predictions and labels of all rows at once."""
    model_dir.write(str(directory), run)
    session = Session(run, str(directory))
    rng = np.random.default_rng(0)
    for variable in session.trainer.model.trainable_variables:  # large enough for predictions to differ
        variable.assign(rng.normal(0, 0.5, variable.shape))
    whole = dataclasses.replace(run.params.task.validation_data, global_batch_size=100)
    (batch,) = session.trainer.task.build_inputs(whole)
    batch = real_rows(batch)
    session.trainer.model.trainable_variables[-1].assign_sub(np.mean(session.trainer.model(batch), axis=0))
    session.evaluate()
    return model_dir.read_metrics(str(directory)), session.trainer.model(batch), batch["label_ids"]


def random_texts(number):
    rng = np.random.default_rng(3)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(number)]


@pytest.mark.parametrize(
    ("metric", "labels", "replicas"), [("accuracy", 3, 1), ("f1", 2, 1), ("f1", 2, 2), ("matthews_corrcoef", 3, 1)]
)
def test_metrics_of_classification_are_those_of_all_rows(fine_tune, tmp_path, monkeypatch, metric, labels, replicas):
    """Ten rows in batches of four: the last is padded."""
    if replicas > 1:
        ops = tf.distribute.ReductionToOneDevice()
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=ops)
        monkeypatch.setattr("shatter_tf.training.session.build_strategy", lambda runtime: strategy)
    rows = [f"{text}\tlabel{i * 7 % labels}" for i, text in enumerate(random_texts(10))]
    run = fine_tune("shatter/classify", rows, more=f"{SMALL},task.metric_type={metric}")
    metrics, logits, truth = evaluate(run, tmp_path / "run")
    predictions = np.argmax(logits, axis=-1)
    assert len(set(predictions)) > 1  # or the metrics would tell nothing
    oracle = {"f1": sklearn.metrics.f1_score, "matthews_corrcoef": sklearn.metrics.matthews_corrcoef}
    assert metrics["cls_accuracy"] == pytest.approx(np.mean(predictions == truth))
    assert {name: metrics[name] for name in oracle if name in metrics} == pytest.approx(
        {name: function(truth, predictions) for name, function in oracle.items() if name == metric}
    )
    assert run.params.trainer.best_checkpoint_eval_metric == {"accuracy": "cls_accuracy"}.get(metric, metric)


@pytest.mark.parametrize("columns", [1, 2])
def test_metrics_of_regression_are_those_of_all_rows(fine_tune, tmp_path, columns):
    texts = random_texts(20)
    rows = ["\t".join([*texts[i : i + columns], f"{(i * i) % 7 / 2:.1f}"]) for i in range(10)]
    run = fine_tune("shatter/regress", rows, more=SMALL)
    assert run.params.task.pairs == (columns == 2)
    metrics, predictions, truth = evaluate(run, tmp_path / "run")
    predictions = np.squeeze(predictions, axis=-1)
    data = run.params.task.train_data
    np.testing.assert_allclose(
        truth * data.label_scale + data.label_mean, [(i * i) % 7 / 2 for i in range(10)], atol=1e-5
    )
    assert np.ptp(predictions) > 0.01
    pearson, spearman = np.corrcoef(predictions, truth)[0, 1], scipy.stats.spearmanr(predictions, truth)[0]
    assert metrics["loss"] == pytest.approx(np.mean((predictions - truth) ** 2), rel=1e-5)
    assert metrics["pearson"] == pytest.approx(pearson, abs=1e-5)
    assert metrics["spearman"] == pytest.approx(spearman, abs=1e-6)
    assert metrics["pearson_spearman_corr"] == pytest.approx((pearson + spearman) / 2, abs=1e-5)
    error = np.mean(np.abs(predictions - truth)) * data.label_scale
    assert metrics["mean_absolute_error"] == pytest.approx(error, rel=1e-5)
    assert run.params.trainer.best_checkpoint_eval_metric == "pearson_spearman_corr"


def test_the_best_checkpoint_and_the_history_go_by_the_metric_of_all_rows(regress, tmp_path):
    run = regress(SMALL)
    Session(run, str(tmp_path / "run")).train(evaluate=True)
    history, metrics = model_dir.read_history(str(tmp_path / "run")), model_dir.read_metrics(str(tmp_path / "run"))
    assert [entry["step"] for entry in history] == [1, 2]
    assert set(history[-1]) - {"seconds"} == {
        *("step", "loss", "pearson", "spearman", "pearson_spearman_corr", "mean_absolute_error")
    }
    assert all(metrics[name] == value for name, value in history[-1].items() if name != "seconds")
    best = max(history, key=lambda entry: entry["pearson_spearman_corr"])
    step = checkpoints.checkpoint_step(checkpoints.best_checkpoint(str(tmp_path / "run")))
    assert step == best["step"]


def test_regression_descends_the_mean_squared_error(regress):
    """Not that of every label against every prediction, whose minimum is at their mean."""
    task = task_factory.get_task(regress(SMALL).params.task)
    numbers, predictions = tf.constant([1.0, 2.0, 4.0]), tf.constant([[1.0], [0.0], [3.0]])
    inputs = dict(label_ids=numbers, input_word_ids=tf.zeros([3, 5], tf.int32))
    assert float(task.build_losses(inputs, predictions)) == pytest.approx((0 + 4 + 1) / 3)


def test_nothing_correlates_with_a_constant(regress):
    task = task_factory.get_task(regress(SMALL).params.task)
    logs = dict(sentence_prediction=[np.ones([3, 1], np.float32)], labels=[np.array([1.0, 2.0, 3.0], np.float32)])
    metrics = task.reduce_aggregated_logs(logs)
    assert [metrics[name] for name in ("pearson", "spearman", "pearson_spearman_corr")] == [0.0, 0.0, 0.0]


def test_model_garden_tasks_take_the_encoder_unmodified():
    encoder = encoders.EncoderConfig(type="any", any=tiny_encoder())
    ids = np.random.default_rng(0).integers(5, 60, (2, 16)).astype(np.int32)
    inputs = dict(input_word_ids=ids, input_mask=np.ones_like(ids), input_type_ids=np.zeros_like(ids))
    tag = tagging.TaggingTask(
        tagging.TaggingConfig(model=tagging.ModelConfig(encoder=encoder), class_names=["a", "b", "c"])
    )
    answer = question_answering.QuestionAnsweringTask(
        question_answering.QuestionAnsweringConfig(
            model=question_answering.ModelConfig(encoder=encoder), train_data=cfg.DataConfig(), validation_data=None
        )
    )
    pretrain = masked_lm.MaskedLMTask(
        masked_lm.MaskedLMConfig(
            model=bert.PretrainerConfig(encoder=encoder),
            train_data=pretrain_dataloader.BertPretrainDataConfig(use_next_sentence_label=False),
        )
    )
    classify = sentence_prediction.SentencePredictionTask(
        sentence_prediction.SentencePredictionConfig(
            model=sentence_prediction.ModelConfig(encoder=encoder, num_classes=2), train_data=cfg.DataConfig()
        )
    )
    spans = dict(start_positions=np.array([1, 2]), end_positions=np.array([3, 4]))
    masked = dict(
        masked_lm_positions=ids[:, :3] % 16, masked_lm_ids=ids[:, :3], masked_lm_weights=np.ones([2, 3], "f4")
    )
    for task, batch, for_evaluation in (
        (pretrain, {**inputs, **masked}, {}),
        (classify, {**inputs, "label_ids": np.array([[0], [1]])}, {}),
        (tag, (inputs, ids % 3), {}),
        (answer, (inputs, spans), dict(unique_ids=np.array([1, 2]))),
    ):
        model = task.build_model()
        optimizer = tf_keras.optimizers.legacy.SGD(0.1)
        logs = task.train_step(batch, model, optimizer, task.build_metrics())
        assert np.isfinite(logs["loss"])
        if for_evaluation:
            batch = ({**inputs, **for_evaluation}, batch[1])
        assert task.validation_step(batch, model, task.build_metrics())


@pytest.mark.parametrize("encoder", ["any", "bert"])
@pytest.mark.parametrize("output_projection", [False, True])
def test_weight_decay_leaves_norms_biases_and_partition_parameters_alone(pretrain, encoder, output_projection):
    more = f"task.model.encoder.type={encoder},task.model.encoder.shatter.use_output_projection={output_projection}"
    run = pretrain(more)
    task = task_factory.get_task(run.params.task)
    model = task.build_model()
    optimizer = task.create_optimizer(run.params.trainer.optimizer_config)
    decayed = {v.name for v in model.trainable_variables if optimizer._do_use_weight_decay(v.name)}
    matrices = {
        v.name
        for v in model.trainable_variables
        if v.name.endswith(("kernel:0", "embeddings:0")) and "position_bias" not in v.name
    }
    assert decayed == matrices
    if encoder == "any":
        per_layer = ["query", "value", "intermediate", "output"] + ["output_projection"] * output_projection
        expected = len(per_layer) + 2 + 1  # the block; embeddings; the masked-LM head
        assert len(decayed) == expected


def test_bert_differs_in_one_override_alone(pretrain):
    shatter, bert = pretrain(), pretrain("task.model.encoder.type=bert")
    config = bert.params.task.model.encoder.get()
    assert (config.hidden_size, config.num_layers, config.num_attention_heads) == (12, 1, 3)
    assert (config.vocab_size, config.max_position_embeddings, config.norm_first) == (64, 32, True)
    ours, theirs = shatter.params.as_dict(), bert.params.as_dict()
    for params in (ours, theirs):
        del params["task"]["model"]["encoder"]
    assert ours == theirs
    post = pretrain("task.model.encoder.type=bert,task.model.encoder.bert.norm_first=false")
    assert post.params.task.model.encoder.get().norm_first is False


def test_bert_keeps_packed_documents_apart(pretrain):
    task = task_factory.get_task(pretrain("task.model.encoder.type=bert").params.task)
    encoder = task.build_model().encoder_network
    ids = np.random.default_rng(0).integers(6, 26, (1, 9)).astype(np.int32)
    packs = np.array([[1] * 4 + [2] * 5], np.int32)
    other = ids.copy()
    other[:, 4:] = 7
    outputs = [
        encoder(dict(input_word_ids=x, input_mask=packs, input_type_ids=np.zeros_like(x)))["sequence_output"][:, :4]
        for x in (ids, other)
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)


def save(tmp_path, task, model):
    items = getattr(model, "checkpoint_items", {})
    checkpoint = tf.train.Checkpoint(global_step=tf.Variable(3, dtype=tf.int64), model=model, **items)
    return checkpoint.save(str(tmp_path / "ckpt"))


def test_restores_are_whole_or_refused(pretrain, classify, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    layers = "task.model.encoder.shatter.num_layers=2"
    task = task_factory.get_task(pretrain(layers).params.task)
    source = task.build_model()
    path = save(tmp_path / "run", task, source)

    params = classify(more=layers).params
    params.task.init_checkpoint = str(tmp_path / "run")
    fine_tuned = task_factory.get_task(params.task)
    model = fine_tuned.build_model()
    fine_tuned.initialize(model)
    said = capsys.readouterr().out
    assert "restored from" in said
    assert "new: 2 variables" in said
    assert "not used: masked_lm" in said
    for a, b in zip(source.encoder_network.weights, model.checkpoint_items["encoder"].weights, strict=True):
        np.testing.assert_array_equal(a, b)

    misfits = {
        "does not fit": [dict(num_layers=3), dict(num_layers=2, hidden_size=15)],
        "variables, this model.s": [dict(num_layers=1)],
    }
    for reason, choices in ((reason, choices) for reason, many in misfits.items() for choices in many):
        params.task.model.encoder.shatter.override({**TINY, **choices})
        model = task_factory.get_task(params.task).build_model()
        items = dict(encoder=model.checkpoint_items["encoder"])
        with pytest.raises(UserError, match=reason):
            checkpoints.restore_pretrained(items, path, model)
    with pytest.raises(UserError, match="nothing in it fits"):
        checkpoints.restore_pretrained(dict(other=model), path, model)
    with pytest.raises(UserError, match="no checkpoint there"):
        checkpoints.restore_pretrained(items, str(tmp_path), model)


def device_step(params, mode):
    """Returns the part of a step that a device is given, for XLA and in bfloat16, and a batch for it."""
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    task = task_factory.get_task(params.task)
    model, metrics = task.build_model(), task.build_metrics()
    optimizer = task.create_optimizer(params.trainer.optimizer_config)
    batch = next(iter(task.build_inputs(params.task.train_data if mode == "train" else params.task.validation_data)))
    arguments = dict(optimizer=optimizer) if mode == "train" else {}
    step = task.train_step if mode == "train" else task.validation_step
    function = tf.function(lambda x: step(x, model=model, metrics=metrics, **arguments)[task.loss], jit_compile=True)
    function.get_concrete_function(batch)  # makes the optimizer's variables
    return function, batch


@pytest.fixture
def embed(fine_tune):
    """Returns a function that resolves a tiny run of shatter/embed."""
    rows = ["anchor\tpositive", *(f"the cat {word}\ta dog {word}" for word in WORDS)]
    return lambda more="": fine_tune("shatter/embed", rows, more=more)


@pytest.mark.parametrize("experiment", ["pretrain", "classify", "regress", "tag", "embed"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_steps_lower_to_static_shapes_on_the_device_alone(request, experiment, mode):
    """What a TPU requires of a step: XLA takes it whole, in bfloat16, with no string, no dynamic shape and no host."""
    function, batch = device_step(request.getfixturevalue(experiment)().params, mode)
    assert not any(tensor.dtype == tf.string for tensor in batch.values())
    hlo = function.experimental_get_compiler_ir(batch)(stage="hlo")
    assert "bf16[" in hlo
    for word in ("<=", "infeed", "outfeed", "send(", "recv("):
        assert word not in hlo, word


@pytest.mark.slow
@pytest.mark.parametrize("target", ["tpu:v4:2x2x1", "gpu:v100", "gpu:h100"])
@pytest.mark.parametrize("experiment", ["pretrain", "classify", "tag"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compilers_of_devices_take_the_steps(request, tmp_path, target, experiment, mode):
    python = ROOT / f".venv-{target[:3]}/bin/python"
    if not python.exists():
        pytest.skip(f"`make {target[:3]}-compiler` has not been run")
    function, batch = device_step(request.getfixturevalue(experiment)().params, mode)
    module = tmp_path / "step.hlo.pb"
    module.write_bytes(function.experimental_get_compiler_ir(batch)(stage="hlo_serialized"))
    command = [python, ROOT / "shatter_tf/measuring/cross_compiler.py", module, target]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert compiled.returncode == 0, compiled.stderr
    assert json.loads(compiled.stdout)["cycles" if target.startswith("tpu") else "temporary_bytes"] > 1000


GOLDEN = pathlib.Path(__file__).with_name("golden.json")


@pytest.mark.parametrize("partition", ["linear", "bernstein"])
def test_golden_first_steps(pretrain, partition):
    """The first losses of a run, to notice unintended changes to the maths, the data or the optimizer."""
    tf_keras.utils.set_random_seed(11)
    encoder = f"task.model.encoder.shatter.partition={partition},task.model.encoder.shatter.num_layers=2"
    run = pretrain(f"{encoder},trainer.train_steps=10")
    task = task_factory.get_task(run.params.task)
    model = task.build_model()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if variable.name.endswith(("kernel:0", "embeddings:0")):
            variable.assign(rng.normal(0, 0.1, variable.shape).astype(np.float32))
    optimizer = task.create_optimizer(run.params.trainer.optimizer_config)
    step = tf.function(lambda x: task.train_step(x, model=model, optimizer=optimizer, metrics=[])["loss"])
    losses = [float(step(batch)) for batch in task.build_inputs(run.params.task.train_data).take(5)]
    expected = json.loads(GOLDEN.read_text())[partition]
    np.testing.assert_allclose(
        losses,
        expected,
        rtol=1e-3,
        err_msg=f"If the change is meant, put {partition}: {[round(x, 5) for x in losses]} into golden.json.",
    )


def test_experiments_are_registered():
    for name in experiments.EXPERIMENTS:
        assert exp_factory.get_exp_config(name).task.model.encoder.type == "shatter"


@pytest.mark.parametrize("experiment", ["classify", "tag", "embed"])
def test_fine_tuning_can_start_from_random_weights(pretrain, request, tmp_path, capsys, experiment):
    """Settings and vocabulary come from the pretraining run all the same."""
    task = task_factory.get_task(pretrain().params.task)
    source = task.build_model()
    (tmp_path / "run").mkdir()
    save(tmp_path / "run", task, source)
    for restores in (True, False):
        params = request.getfixturevalue(experiment)(more=f"task.restore_weights={restores}").params
        params.task.init_checkpoint = str(tmp_path / "run")
        fine_tuned = task_factory.get_task(params.task)
        model = fine_tuned.build_model()
        fine_tuned.initialize(model)
        assert ("restored from" in capsys.readouterr().out) == restores
        ours, theirs = source.encoder_network.weights, model.checkpoint_items["encoder"].weights
        same = [np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]
        assert all(same) == restores


def test_every_fine_tuning_task_can_start_from_random_weights():
    names = {name for name, config in experiments.EXPERIMENTS.items() if hasattr(config(), "restore_weights")}
    assert names >= {f"shatter/{name}" for name in ("classify", "regress", "tag", "answer", "embed")}
