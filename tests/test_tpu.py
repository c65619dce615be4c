"""TPUs, without one: TensorFlow's own TPUStrategy, two of whose cores are CPUs, traces what a TPU would be given."""

import types

import numpy as np
import pytest
import tensorflow as tf
from official.core import task_factory
from tensorflow.python.tpu import tpu_system_metadata

from shatter_tf.training import run_dir as model_dir
from shatter_tf.training.session import Session

CORES = 2
_CPU = "/job:localhost/replica:0/task:0/device:CPU:"


class _Resolver(tf.distribute.cluster_resolver.TPUClusterResolver):
    """Finds a TPU that is not there."""

    def __init__(self):
        pass

    def get_tpu_system_metadata(self):
        cores = [types.SimpleNamespace(name=f"{_CPU.replace('CPU', 'TPU')}{i}") for i in range(CORES)]
        return tpu_system_metadata.TPUSystemMetadata(
            num_cores=CORES, num_hosts=1, num_of_cores_per_host=CORES, topology=None, devices=cores
        )


@pytest.fixture
def tpu_strategy():
    """Returns a TPUStrategy that can make variables, and trace steps, but run none."""
    strategy = tf.distribute.TPUStrategy(_Resolver())
    extended = strategy.extended
    extended._tpu_devices = np.array([[f"{_CPU}{i}"] for i in range(CORES)], dtype=object)
    extended._host_device = f"{_CPU}0"
    for devices in (extended._device_input_worker_devices, extended._host_input_worker_devices):
        devices.clear()
        devices[extended._host_device] = extended._tpu_devices[:, 0].tolist()
    return strategy


def tpu_operations(function: tf.types.experimental.ConcreteFunction) -> set[str]:
    """Returns the types of the operations in the body of a step that is replicated to the cores of a TPU."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for library in graph.library.function for node in library.node_def)]
    return {node.op for node in nodes if "_tpu_replicate" in node.attr}


@pytest.mark.parametrize(
    ("experiment", "more"),
    [
        ("pretrain", ""),
        ("pretrain", "trainer.accumulation_steps=2,task.model.encoder.type=bert"),
        ("classify", ""),
        ("tag", ""),
    ],
)
def test_a_tpu_strategy_takes_training_and_evaluation(request, tmp_path, tpu_strategy, experiment, more):
    run = request.getfixturevalue(experiment)(more=f"runtime.mixed_precision_dtype=bfloat16,{more}".rstrip(","))
    model_dir.write(str(tmp_path), run)
    session = Session(run, str(tmp_path), tpu_strategy)
    assert "on 2 replicas" in session.describe()
    session.saver.check_room()
    session.saver.save()
    session = Session(run, str(tmp_path), tpu_strategy)
    assert session.checkpoint.endswith("ckpt-0")
    loop = session.trainer.create_train_loop_fn()
    train = loop.get_concrete_function(iter(session.trainer.train_dataset), tf.constant(2))
    assert {"TPUReplicateMetadata", "If", "AssignVariableOp"} <= tpu_operations(train)
    evaluate = tf.function(session.trainer.eval_step)
    evaluate = evaluate.get_concrete_function(iter(session.trainer.eval_dataset))
    assert "TPUReplicateMetadata" in tpu_operations(evaluate)


def test_a_run_goes_from_a_cpu_to_a_tpu_and_back(pretrain, tmp_path, tpu_strategy):
    """The stand-in takes no steps; but what it restores and saves is what a TPU would."""
    settings = "runtime.enable_xla=false,trainer.train_steps={},trainer.steps_per_loop=4"
    settings += ",trainer.optimizer_config.learning_rate.polynomial.decay_steps=8"

    def trained(directory, steps):
        run = pretrain(more=settings.format(steps))
        session = Session(run, str(directory))
        session.train(evaluate=False)
        variables = (*session.trainer.model.variables, *session.trainer.optimizer.variables())
        return [variable.numpy() for variable in variables]

    trained(tmp_path / "there_and_back", 4)
    on_tpu = Session(pretrain(more=settings.format(8)), str(tmp_path / "there_and_back"), tpu_strategy)
    assert on_tpu.step == 4
    on_tpu.saver.save()
    for a, b in zip(trained(tmp_path / "there_and_back", 8), trained(tmp_path / "stayed", 8), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_is_taken_in_all_replicas_or_in_none(pretrain, finite, replicas):
    params = pretrain("runtime.enable_xla=false").params
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    with strategy.scope():
        task = task_factory.get_task(params.task)
        model = task.build_model()
        optimizer = task.create_optimizer(params.trainer.optimizer_config)
        optimizer._create_all_weights(model.trainable_variables)
    if not finite:
        task.loss_sums = lambda inputs, outputs: dict(loss=tf.reduce_sum(outputs["mlm_logits"]) * np.nan)
    batch = next(iter(task.build_inputs(params.task.train_data)))
    before = [variable.numpy() for variable in model.trainable_variables]

    step = tf.function(lambda: strategy.run(task.train_step, args=(batch, model, optimizer)), autograph=False)
    for _ in range(2):
        (logs, *_) = strategy.experimental_local_results(step()["finite"])
    assert bool(logs) == finite
    assert int(optimizer.iterations.numpy()) == 2
    moved = [np.any(v.numpy() != b) for v, b in zip(model.trainable_variables, before, strict=True)]
    assert all(moved) if finite else not any(moved)
