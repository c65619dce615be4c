"""Finds checkpoints, and restores from another run's without silent gaps."""

import hashlib
import os
import re
from collections.abc import Callable
from typing import Optional, TypeVar

import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from shatter_tf.console import notice, warn
from shatter_tf.errors import UserError, argument, first_line

BEST_SUBDIR, PREFIX = "best", "ckpt"

_INDEX_FILE = re.compile(PREFIX + r"-(\d+)\.index")

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"

# How often a checkpoint may vanish while it is read: training writes one every few minutes at most, usually.
_ATTEMPTS = 5

_Result = TypeVar("_Result")


def _checkpoints(model_dir: str) -> list[str]:
    """Returns the prefixes of the checkpoints in `model_dir`, newest first.

    Found by their files: the list that TensorFlow keeps beside them may be lost with the machine that was writing it.
    """
    names = tf.io.gfile.listdir(model_dir) if tf.io.gfile.isdir(model_dir) else []
    numbers = sorted((int(match[1]) for name in names if (match := _INDEX_FILE.fullmatch(name))), reverse=True)
    return [os.path.join(model_dir, f"{PREFIX}-{number}") for number in numbers]


def _reader(checkpoint: str):
    # tf.train.load_checkpoint first checks whether the prefix is a directory, which object stores cannot tell.
    return tf.compat.v1.train.NewCheckpointReader(checkpoint)


def _damage(checkpoint: str) -> Optional[str]:
    """Returns what is wrong with the files of a checkpoint, or None; reads all of them, to verify their checksums."""
    try:
        reader = _reader(checkpoint)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (tf.errors.OpError, LookupError, ValueError, RuntimeError) as error:
        return first_line(error)
    return None


def while_training(load: Callable[[], _Result]) -> _Result:
    """Returns what `load` returns, which finds a checkpoint and reads it, where training may delete it meanwhile.

    Raises:
      UserError: when that happens again and again.
    """
    for _ in range(_ATTEMPTS):
        try:
            return load()
        except tf.errors.NotFoundError as error:
            reason = first_line(error)
    raise UserError(f"checkpoints vanish while they are read ({reason}); raise trainer.max_to_keep, or try again later")


def latest_checkpoint(model_dir: str) -> Optional[str]:
    """Returns the prefix of the newest checkpoint in `model_dir` that is whole, or None if there never was any.

    Damaged ones (a machine died while writing, a disk failed) are reported and skipped.

    Raises:
      UserError: when there are checkpoints and all are damaged.
    """
    return while_training(lambda: _latest_checkpoint(model_dir))


def _latest_checkpoint(model_dir: str) -> Optional[str]:
    """Does `latest_checkpoint` once; raises NotFoundError for a checkpoint that was deleted meanwhile."""
    found = _checkpoints(model_dir)
    for checkpoint in found:
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint
        if not tf.io.gfile.exists(checkpoint + ".index"):
            raise tf.errors.NotFoundError(None, None, damage)
        warn(f"{checkpoint} is damaged and left aside ({damage})")
    if found:
        raise UserError(
            f"{model_dir}: all of its checkpoints are damaged; take another, or train again in a new directory"
        )
    return None


def newest_step(model_dir: str) -> int:
    """Returns the step in the name of the newest checkpoint in `model_dir`, whole or not; 0 without any."""
    return max((int(checkpoint.rpartition("-")[-1]) for checkpoint in _checkpoints(model_dir)), default=0)


def best_checkpoint(model_dir: str) -> Optional[str]:
    """Returns the prefix of the checkpoint whose evaluation was best, or None; raises UserError if it is damaged."""
    return latest_checkpoint(os.path.join(model_dir, BEST_SUBDIR))


def best_or_latest_checkpoint(model_dir: str, name: str = "model_dir", best: bool = True) -> str:
    """Returns the prefix of the best checkpoint, if there is one and it is wanted, or else of the newest one.

    Args:
      model_dir: the argument `name`.

    Raises:
      UserError: when there is none.
    """
    checkpoint = (best_checkpoint(model_dir) if best else None) or latest_checkpoint(model_dir)
    if not checkpoint:
        raise UserError(f"{argument(name)}={model_dir}: no checkpoint there; train it first")
    return checkpoint


def restore_model(model: tf_keras.Model, checkpoint: str) -> None:
    """Restores a whole model from a checkpoint; raises UserError unless it is the model that was saved."""
    try:
        status = tf.train.Checkpoint(model=model).read(checkpoint).expect_partial()
        status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        raise UserError(f"{checkpoint} does not fit the settings beside it: {first_line(error)}") from error


def checkpoint_step(checkpoint: str) -> int:
    """Returns the training step at which `checkpoint` was written."""
    try:
        return int(_reader(checkpoint).get_tensor("global_step" + _VALUE))
    except tf.errors.NotFoundError:  # training has deleted it meanwhile
        return int(checkpoint.rpartition("-")[-1])


def fingerprint(checkpoint: str) -> str:
    """Returns a hash that tells the weights of one checkpoint from those of another.

    Of its index, which has a checksum of each tensor.
    """
    with tf.io.gfile.GFile(checkpoint + ".index", "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()[:16]


def has_part(checkpoint: str, name: str) -> bool:
    """Returns whether `checkpoint` has a top-level part of this name."""
    return name in tf.train.CheckpointView(checkpoint).children(0)


def _parts(checkpoint: str) -> dict[str, set[str]]:
    """Returns, for each top-level part of `checkpoint`, the keys of the variables that belong to it.

    A shared variable (the masked-LM head holds the encoder's embedding table) has one key but belongs to several parts;
    only the checkpoint's object graph tells, and tf.train.CheckpointView does not show its keys.
    """
    graph = TrackableObjectGraph()
    graph.ParseFromString(_reader(checkpoint).get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))

    def keys(node_id: int, seen: set[int]) -> set[str]:
        if node_id in seen:
            return set()
        seen.add(node_id)
        node = graph.nodes[node_id]
        found = {attribute.checkpoint_key for attribute in node.attributes}
        return found.union(*(keys(child.node_id, seen) for child in node.children))

    return {child.local_name: keys(child.node_id, set()) for child in graph.nodes[0].children}


def count_parameters(variables) -> int:
    """Returns how many numbers the variables hold."""
    return sum(int(variable.shape.num_elements()) for variable in variables)


def restore_pretrained(
    items: dict[str, tf_keras.layers.Layer],
    init_checkpoint: str,
    model: tf_keras.layers.Layer,
    name: str = "init_checkpoint",
) -> None:
    """Restores whole parts of `model` from another run, and prints what was and was not restored.

    Args:
      items: parts by their names in checkpoints; those that the checkpoint has are restored.
      init_checkpoint: a model_dir, or the prefix of one checkpoint.
      model: what the parts belong to.
      name: of the argument that this is, for messages.

    Raises:
      UserError: when there is no checkpoint, when it holds none of `items`, or when a part does not fit exactly: a
        variable missing, left over, or of another shape.
    """
    while_training(lambda: _restore_pretrained(items, init_checkpoint, model, argument(name)))


def _restore_pretrained(
    items: dict[str, tf_keras.layers.Layer], init_checkpoint: str, model: tf_keras.layers.Layer, where: str
) -> None:
    is_dir = tf.io.gfile.isdir(init_checkpoint)
    checkpoint = latest_checkpoint(init_checkpoint) if is_dir else init_checkpoint
    if not checkpoint or not tf.io.gfile.exists(checkpoint + ".index"):
        raise UserError(f"{where}={init_checkpoint}: no checkpoint there")

    stored = _parts(checkpoint)
    restored = set()
    names = []
    for name, item in items.items():
        if name in stored:
            root, variables = _without_new_map(item, checkpoint, name)
            _restore_part(name, root, variables, f"{where}={checkpoint}", checkpoint, len(stored[name]))
            restored.update({variable.ref() for variable in variables})
            names.append(name)
    if not restored:
        raise UserError(f"{where}={checkpoint}: nothing in it fits this model ({', '.join(items)})")

    new = [variable for variable in model.variables if variable.ref() not in restored]
    heads = sorted({variable.name.split("/")[0] for variable in new})
    unused = sorted(set(stored) - set(names) - {"model", "optimizer", "global_step", "save_counter", "loss_scale"})
    of_heads = f" ({', '.join(heads)})" if heads else ""
    weights = count_parameters(ref.deref() for ref in restored)
    notice(
        f"restored from {checkpoint}: {', '.join(names)} ({len(restored)} variables, {weights:,} numbers); "
        f"new: {len(new)} variables, {count_parameters(new):,} numbers{of_heads}; "
        f"not used: {', '.join(unused) or 'nothing'}"
    )


def _without_new_map(item: tf_keras.layers.Layer, checkpoint: str, part: str) -> tuple[tf.Module, list[tf.Variable]]:
    """Returns what of an encoder is to be restored from a part of a checkpoint: all, but a map that this lacks.

    And the variables of that.
    """
    embedding_map = getattr(item, "embedding_map", None)
    view = tf.train.CheckpointView(checkpoint)
    if embedding_map is None or "embedding_map" in view.children(view.children(0)[part]):
        return item, item.variables
    children = {name: t for name, t in tf.train.TrackableView(item).children(item).items() if t is not embedding_map}
    new = {variable.ref() for variable in embedding_map.variables}
    others = [variable for variable in item.variables if variable.ref() not in new]
    return tf.train.Checkpoint(**children), others


def _restore_part(
    name: str, item: tf.Module, variables: list[tf.Variable], where: str, checkpoint: str, stored: int
) -> None:
    """Restores one part, of which the checkpoint has `stored` variables; raises UserError unless all of them fit."""
    where = f"{where}: its {name}"
    try:
        status = tf.train.Checkpoint(**{name: item}).read(checkpoint).expect_partial()
        status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        raise UserError(f"{where} does not fit this model's: {first_line(error)}") from error
    if stored != len(variables):
        raise UserError(
            f"{where} has {stored} variables, this model's has {len(variables)}; leave the encoder's settings to "
            "the checkpoint"
        )
