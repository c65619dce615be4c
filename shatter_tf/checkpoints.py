"""Checkpoints: finding them, and restoring from another run's without a silent gap."""

import os
from typing import Optional

import tensorflow as tf
import tf_keras

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


def _variables(checkpoint: str) -> dict[str, list[int]]:
    """Returns the shapes of the model's variables in `checkpoint`, by key; optimizer slots are left out."""
    shapes = tf.train.load_checkpoint(checkpoint).get_variable_to_shape_map()
    return {
        key.removesuffix(_VALUE): shape
        for key, shape in shapes.items()
        if key.endswith(_VALUE) and ".OPTIMIZER_SLOT" not in key and not key.startswith("optimizer/")
    }


def _count(variables) -> int:
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
    stored = _variables(checkpoint)
    restored, names = [], []
    for name, item in items.items():
        in_checkpoint = [key for key in stored if key.startswith(name + "/")]
        if not in_checkpoint:
            continue
        status = tf.train.Checkpoint(**{name: item}).read(checkpoint).expect_partial()
        try:
            status.assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--init_checkpoint={checkpoint}: its {name} does not fit this model's: {reason}") from error
        # The masked-LM head holds the encoder's embedding table, which the checkpoint files under the encoder.
        own = {variable.ref() for variable in item.variables} - {variable.ref() for variable in restored}
        if len(in_checkpoint) != len(own):
            raise UserError(
                f"--init_checkpoint={checkpoint}: its {name} has {len(in_checkpoint)} variables, this model's has "
                f"{len(own)}; leave the encoder's settings to the checkpoint"
            )
        restored += [variable.deref() for variable in own]
        names.append(name)
    if not restored:
        raise UserError(f"--init_checkpoint={checkpoint}: nothing in it fits this model ({', '.join(items)})")
    done = {variable.ref() for variable in restored}
    new = [variable for variable in model.variables if variable.ref() not in done]
    parts = {key.split("/")[0] for key in stored} - {"model", "global_step", "save_counter"}
    print(
        f"restored from {checkpoint}: {', '.join(names)} ({len(restored)} variables, {_count(restored):,} numbers); "
        f"new: {len(new)} variables, {_count(new):,} numbers"
        + (f" ({', '.join(sorted({v.name.split('/')[0] for v in new}))})" if new else "")
        + f"; not used: {', '.join(sorted(parts - set(names))) or 'nothing'}",
        flush=True,
    )
