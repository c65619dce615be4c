"""What `shatter export` does: a SavedModel that is checked, described and then published."""

import contextlib
import os
from collections.abc import Iterator
from typing import Optional

import tensorflow as tf
import tf_keras
from official.core import task_factory

from shatter_tf.checkpoints import while_training
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.errors import UserError, argument, first_line
from shatter_tf.files import check_name, publish
from shatter_tf.serving import samples, versions
from shatter_tf.serving import temperature as temperatures
from shatter_tf.serving.card import Export, write_card
from shatter_tf.serving.litert import FILE as LITERT_FILE
from shatter_tf.serving.litert import convert_and_check as convert_to_litert
from shatter_tf.serving.load import in_bfloat16, load_model
from shatter_tf.serving.onnx import FILE as ONNX_FILE
from shatter_tf.serving.onnx import check as check_onnx
from shatter_tf.serving.onnx import convert_and_check as convert_to_onnx
from shatter_tf.serving.servable import Servable, build_servable
from shatter_tf.serving.temperature import WithTemperature
from shatter_tf.training import run_dir

TOLERANCE = 1e-4  # between the trained model's float32 outputs and the exported one's


def export(
    model_dir: str,
    export_dir: str,
    checkpoint: str = "best",
    weights: str = "float32",
    litert: Optional[str] = None,
    temperature: Optional[float] = None,
    onnx: bool = False,
) -> list[str]:
    """Exports a run as the next version in a directory, which gets all of it or nothing.

    Args:
      model_dir: of the run.
      export_dir: gets a directory of the version's number.
      checkpoint: "best" or "latest".
      weights: "float32" or "bfloat16", how they are stored.
      litert: "float32" or "int8", the weights of a LiteRT model beside it; None writes none.
      temperature: that the logits of a classifier are divided by; None leaves its probabilities as they are.
      onnx: whether an ONNX model is written beside it, too.

    Returns:
      Lines on what was written.

    Raises:
      UserError: when there is no run or no checkpoint, when the export does not answer as the trained model does, and
        when it cannot be written.
    """
    check_name(export_dir, argument("export_dir"))
    export_dir = export_dir.rstrip("/")

    if onnx:
        check_onnx()

    # What is trained, and what of it is served.
    run = run_dir.read(model_dir)
    if temperature is not None:
        temperatures.check(temperature, run.params.task, run.experiment)
    model, restored = while_training(lambda: load_model(run, model_dir, best=checkpoint == "best"))
    trained = _servable(run, model, temperature)
    served = trained
    if weights == "bfloat16":
        served = _servable(run, in_bfloat16(run.params.task, model), temperature)

    temporary = versions.temporary(export_dir)
    try:
        # Write it where nobody looks.
        with _writing(export_dir):
            target = versions.next_version(export_dir)
            versions.remove_leftovers(export_dir)
            tf.saved_model.save(served.trackable(), temporary, signatures=served.functions)

        # Check it.
        difference = _check(served, trained, temporary, restored, export_dir)
        notes = [f"Its outputs are at most {difference:.1e} from the trained model's, for texts of random wordpieces."]
        files = {}
        if litert:
            files[LITERT_FILE] = convert_to_litert(trained, litert, TOLERANCE)
        if onnx:
            files[ONNX_FILE] = convert_to_onnx(trained, TOLERANCE)
        lines = [line for _, line in files.values()]

        # Add what belongs to it, and publish it.
        with _writing(export_dir):
            for file, (content, _) in files.items():
                _write_file(os.path.join(temporary, file), content)
            samples.write_warmup_requests(served, temporary, os.path.basename(export_dir))
            write_card(Export(run, model_dir, restored, served, temporary, target, temperature), notes + lines)
            if tf.io.gfile.exists(target):
                raise UserError(f"{target}: written by another export meanwhile; export again, for the next version")
            publish(temporary, target, last="saved_model.pb")
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.rmtree(temporary)

    return [
        *lines,
        f"exported {restored} to {target} ({versions.size(target) / 1e6:.1f} MB); signatures "
        f"{', '.join(served.functions)}; at most {difference:.1e} from the trained model",
    ]


def _servable(run: run_dir.Run, model: tf_keras.Model, temperature: Optional[float]) -> Servable:
    """Returns what is served of a model, at a temperature if there is one."""
    if temperature is None:
        return build_servable(run, model)
    task = WithTemperature(task_factory.get_task(run.params.task), temperature)
    return Servable(task, model, Tokenizer(run.vocabulary, run.lower_case, run.normalizer))


def _check(served: Servable, trained: Servable, path: str, checkpoint: str, export_dir: str) -> float:
    """Returns how much what was written to `path` differs from the trained model.

    Raises:
      UserError: when it differs from what is served by more than the tolerance; rounded weights may differ from the
        trained ones by more.
    """
    difference = samples.difference(served, path)
    if not difference <= TOLERANCE:  # NaN is not
        raise UserError(
            f"{checkpoint}: what was exported differs from the trained model by {difference:.1e}, more than "
            f"{TOLERANCE}; nothing was written to {argument('export_dir')}={export_dir}"
        )
    return difference if served is trained else samples.difference(trained, path)


def _write_file(path: str, content: bytes) -> None:
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(path, "wb") as f:
        f.write(content)


@contextlib.contextmanager
def _writing(export_dir: str) -> Iterator[None]:
    """Raises errors of the disk or the object store as UserError."""
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise UserError(f"{argument('export_dir')}={export_dir}: cannot be written ({first_line(error)})") from error
