"""TPUs, without one: TensorFlow's own TPUStrategy, two of whose cores are CPUs, traces what a TPU would be given."""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import task_factory
from tensorflow.python.tpu import tpu_system_metadata

from shatter_tf import model_dir, trainer

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
    session = trainer.Session(run, str(tmp_path), tpu_strategy)
    assert "on 2 replicas" in session.describe()
    session._check_room()
    session._save()
    session = trainer.Session(run, str(tmp_path), tpu_strategy)
    assert session.checkpoint.endswith("ckpt-0")
    loop = session.trainer.create_train_loop_fn()
    train = loop.get_concrete_function(iter(session.trainer.train_dataset), tf.constant(2))
    assert {"TPUReplicateMetadata", "If", "AssignVariableOp"} <= tpu_operations(train)
    evaluate = tf.function(session.trainer.eval_step)
    evaluate = evaluate.get_concrete_function(iter(session.trainer.eval_dataset))
    assert "TPUReplicateMetadata" in tpu_operations(evaluate)


@pytest.mark.parametrize("finite", [True, False])
def test_the_step_without_loss_scaling_is_the_step(pretrain, finite):
    """TPUs have no Keras loss scaling, which elsewhere does the skipping."""
    params = pretrain("runtime.enable_xla=false").params
    results = []
    for scales in (True, False):
        tf_keras.utils.set_random_seed(0)
        task = task_factory.get_task(params.task)
        model = task.build_model()
        optimizer = task.create_optimizer(params.trainer.optimizer_config)
        optimizer._create_all_weights(model.trainable_variables)
        if not finite:
            task.weight = lambda inputs: tf.constant(np.nan)  # what the loss is divided by
        step = tf.function(task.train_step)
        batch = next(iter(task.build_inputs(params.task.train_data)))
        before = [variable.numpy() for variable in model.trainable_variables]
        for _ in range(2):
            logs = step(batch, model, optimizer if scales else optimizer.inner_optimizer)
        assert bool(logs["finite"]) == finite
        assert int(optimizer.iterations) == 2
        moved = [np.any(v.numpy() != b) for v, b in zip(model.trainable_variables, before, strict=True)]
        assert all(moved) if finite else not any(moved)
        results.append([v.numpy() for v in (*model.variables, *optimizer.inner_optimizer.variables())])
    for with_scale, without in zip(*results, strict=True):
        np.testing.assert_array_equal(with_scale, without)
