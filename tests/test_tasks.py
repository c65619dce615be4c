"""Model Garden's tasks take the encoder, train it and evaluate it; weight decay and restores are right."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.core import exp_factory, task_factory
from official.nlp.configs import encoders
from official.nlp.tasks import question_answering, tagging
from tiny import TINY, one_step

from shatter_tf import checkpoints, experiments
from shatter_tf.command_line import UserError
from shatter_tf.config import ShatterConfig


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


@pytest.mark.parametrize(("columns", "labels", "encoder"), [(1, 2, "any"), (2, 3, "any"), (2, 11, "bert")])
def test_sentence_prediction(classify, columns, labels, encoder, caplog):
    run = classify(columns, labels, f"task.model.encoder.type={encoder}")
    assert run.params.task.model.num_classes == labels
    assert run.params.task.pairs == (columns == 2)
    _, _, _, changed = one_step(run.params, jit_compile=labels == 2)  # whose metrics are the most
    assert sum(changed) > 0.8 * len(changed)  # the second segment's embedding is not met by single texts
    assert not [record for record in caplog.records if "Gradients do not exist" in record.message]


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
    spans = dict(start_positions=np.array([1, 2]), end_positions=np.array([3, 4]))
    for task, labels, for_evaluation in (
        (tag, ids % 3, {}),
        (answer, spans, dict(unique_ids=np.array([1, 2]))),
    ):
        model = task.build_model()
        optimizer = tf_keras.optimizers.legacy.SGD(0.1)
        logs = task.train_step((inputs, labels), model, optimizer, task.build_metrics())
        assert np.isfinite(logs["loss"])
        logs = task.validation_step(({**inputs, **for_evaluation}, labels), model, task.build_metrics())
        assert logs


@pytest.mark.parametrize("encoder", ["any", "bert"])
@pytest.mark.parametrize("output_projection", [False, True])
def test_weight_decay_leaves_norms_biases_and_partition_parameters_alone(pretrain, encoder, output_projection):
    more = f"task.model.encoder.type={encoder},task.model.encoder.any.use_output_projection={output_projection}"
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
        expected = 2 * len(per_layer) + 2 + 1  # blocks; embeddings; the masked-LM head
        assert len(decayed) == expected


def test_bert_differs_in_one_override_alone(pretrain):
    shatter, bert = pretrain(), pretrain("task.model.encoder.type=bert")
    config = bert.params.task.model.encoder.get()
    assert (config.hidden_size, config.num_layers, config.num_attention_heads) == (12, 2, 3)
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
    task = task_factory.get_task(pretrain().params.task)
    source = task.build_model()
    path = save(tmp_path / "run", task, source)

    params = classify().params
    params.task.init_checkpoint = str(tmp_path / "run")
    fine_tuned = task_factory.get_task(params.task)
    model = fine_tuned.build_model()
    fine_tuned.initialize(model)
    said = capsys.readouterr().out
    assert "restored from" in said
    assert "new: 4 variables" in said
    assert "not used: masked_lm" in said
    for a, b in zip(source.encoder_network.weights, model.checkpoint_items["encoder"].weights, strict=True):
        np.testing.assert_array_equal(a, b)

    misfits = {
        "does not fit": [dict(num_layers=3), dict(hidden_size=15)],
        "variables, this model.s": [dict(num_layers=1)],
    }
    for reason, choices in ((reason, choices) for reason, many in misfits.items() for choices in many):
        params.task.model.encoder.any.override({**TINY, **choices})
        model = task_factory.get_task(params.task).build_model()
        items = dict(encoder=model.checkpoint_items["encoder"])
        with pytest.raises(UserError, match=reason):
            checkpoints.restore_pretrained(items, path, model)
    with pytest.raises(UserError, match="nothing in it fits"):
        checkpoints.restore_pretrained(dict(other=model), path, model)
    with pytest.raises(UserError, match="no checkpoint there"):
        checkpoints.restore_pretrained(items, str(tmp_path), model)


GOLDEN = pathlib.Path(__file__).with_name("golden.json")


@pytest.mark.parametrize("partition", ["linear", "bernstein"])
def test_golden_first_steps(pretrain, partition):
    """The first losses of a run, to notice a change of the maths, the data or the optimizer that nobody meant."""
    tf_keras.utils.set_random_seed(11)
    run = pretrain(f"task.model.encoder.any.partition={partition},trainer.train_steps=10")
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
    for name in experiments.NAMES:
        assert exp_factory.get_exp_config(name).task.model.encoder.type == "any"
