"""Checkpoints: finding them, and restoring from another run's without a silent gap."""

import os
from typing import Optional

import tensorflow as tf
import tf_keras
from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

from shatter_tf.command_line import UserError

BEST_SUBDIR = "best"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def latest_checkpoint(model_dir: str) -> Optional[str]:
    """Returns the prefix of the newest checkpoint in `model_dir`, or None."""
    return tf.train.latest_checkpoint(model_dir)


def best_checkpoint(model_dir: str) -> Optional[str]:
    """Returns the prefix of the checkpoint whose evaluation was best, or None."""
    return tf.train.latest_checkpoint(os.path.join(model_dir, BEST_SUBDIR))


def checkpoint_step(checkpoint: str) -> int:
    """Returns the training step at which `checkpoint` was written."""
    return int(tf.train.load_variable(checkpoint, "global_step" + _VALUE))


def _parts(checkpoint: str) -> dict[str, set[str]]:
    """Returns, for each top-level part of `checkpoint`, the keys of the variables that belong to it.

    A shared variable (the masked-LM head holds the encoder's embedding table) has one key but belongs to several parts;
    only the checkpoint's object graph tells.
    """
    graph = TrackableObjectGraph()
    graph.ParseFromString(tf.train.load_variable(checkpoint, "_CHECKPOINTABLE_OBJECT_GRAPH"))

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


def restore_pretrained(items: dict[str, tf_keras.layers.Layer], init_checkpoint: str, model: tf_keras.Model) -> None:
    """Restores whole parts of `model` from another run, and prints what was and was not restored.

    Args:
      items: parts by the names under which checkpoints hold them; those that the checkpoint has are restored.
      init_checkpoint: a model_dir, or the prefix of one checkpoint.
      model: what the parts belong to.

    Raises:
      UserError: when there is no checkpoint, when it holds none of `items`, or when a part does not fit exactly: a
        variable missing, left over, or of another shape.
    """
    is_dir = tf.io.gfile.isdir(init_checkpoint)
    checkpoint = latest_checkpoint(init_checkpoint) if is_dir else init_checkpoint
    if not checkpoint or not tf.io.gfile.exists(checkpoint + ".index"):
        raise UserError(f"--init_checkpoint={init_checkpoint}: no checkpoint there")
    stored = _parts(checkpoint)
    restored, names = set(), []
    for name, item in items.items():
        if name not in stored:
            continue
        try:
            status = tf.train.Checkpoint(**{name: item}).read(checkpoint).expect_partial()
            status.assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--init_checkpoint={checkpoint}: its {name} does not fit this model's: {reason}"
            ) from error
        if len(stored[name]) != len(item.variables):
            raise UserError(
                f"--init_checkpoint={checkpoint}: its {name} has {len(stored[name])} variables, this model's has "
                f"{len(item.variables)}; leave the encoder's settings to the checkpoint"
            )
        restored.update({variable.ref() for variable in item.variables})
        names.append(name)
    if not restored:
        raise UserError(f"--init_checkpoint={checkpoint}: nothing in it fits this model ({', '.join(items)})")
    new = [variable for variable in model.variables if variable.ref() not in restored]
    unused = sorted(set(stored) - set(names) - {"model", "optimizer", "global_step", "save_counter"})
    weights, others = count_parameters(ref.deref() for ref in restored), count_parameters(new)
    heads = sorted({variable.name.split("/")[0] for variable in new})
    print(
        f"restored from {checkpoint}: {', '.join(names)} ({len(restored)} variables, {weights:,} numbers); "
        f"new: {len(new)} variables, {others:,} numbers{' (' + ', '.join(heads) + ')' if heads else ''}; "
        f"not used: {', '.join(unused) or 'nothing'}",
        flush=True,
    )
