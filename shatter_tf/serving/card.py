"""The README.md of an export: its signatures, how good it is, how to serve it."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Optional

import tensorflow as tf

from shatter_tf import __version__
from shatter_tf.checkpoints import checkpoint_step, count_parameters
from shatter_tf.serving.operations import MINIMUM_TF_SERVING
from shatter_tf.serving.servable import Servable
from shatter_tf.serving.versions import size
from shatter_tf.training.run_dir import Run, read_history

FILE = "README.md"


@dataclasses.dataclass
class Export:
    """What is exported, and where to.

    Attributes:
      run, model_dir, checkpoint: what was trained.
      servable: what of it is served.
      directory: where the export lies now.
      target: where it will lie; ends in the names of the model and the version.
      temperature: that logits are divided by, if that was asked for.
    """

    run: Run
    model_dir: str
    checkpoint: str
    servable: Servable
    directory: str
    target: str
    temperature: Optional[float] = None


def write_card(export: Export, notes: list[str]) -> None:
    """Writes what a user must know about an export.

    Args:
      export: whose directory gets it.
      notes: lines on what else was found.
    """
    name, version = export.target.split("/")[-2:]
    if export.temperature is not None:
        notes = [*notes, f"Probabilities are those of logits divided by the temperature {export.temperature:g}."]
    lines = [
        f"# {name}",
        "",
        f"{_model(export)} {_encoder(export)}",
        "",
        _sizes(export.directory),
        *notes,
        "",
        _metrics(export),
        "",
        *_signatures(export.servable),
        "",
        f"TF Serving {MINIMUM_TF_SERVING} or newer serves it:",
        "",
        f"    docker run -p 8501:8501 -v /path/to/{name}:/models/{name} -e MODEL_NAME={name} tensorflow/serving",
        f"    curl -d '{{\"instances\": [{_instance(export.servable)}]}}' "
        f"http://localhost:8501/v1/models/{name}:predict",
        "",
        "In Python, with tensorflow and tensorflow_text imported:",
        "",
        f'    tf.saved_model.load("{name}/{version}").signatures["embed"](text=tf.constant(["a text"]))["embedding"]',
        "",
    ]
    with tf.io.gfile.GFile(os.path.join(export.directory, FILE), "w") as f:
        f.write("\n".join(lines))


def _model(export: Export) -> str:
    step = checkpoint_step(export.checkpoint)
    return (
        f"A model of `{export.run.experiment}`, made by shatter_tf {__version__} with TensorFlow {tf.__version__} from "
        f"step {step:,}."
    )


def _encoder(export: Export) -> str:
    task = export.run.params.task
    family = task.model.encoder.get()
    variables = export.servable.model.trainable_variables
    dtypes = sorted({variable.dtype.name for variable in variables})
    return (
        f"The encoder is {family.title}: {family.num_layers} layers of {family.hidden_size}; "
        f"{count_parameters(variables):,} parameters in all, stored as {' and '.join(dtypes)}; "
        f"{len(export.run.vocabulary):,} wordpieces, {_casing(export.run)}; "
        f"{task.describe_limits(export.servable.seq_length)}."
    )


def _casing(run: Run) -> str:
    """Returns what the tokenizer does to letters."""
    casing = "lower-cased" if run.lower_case else "cased"
    return f"{casing}, normalized as Hugging Face's {run.normalizer}" if run.normalizer else casing


def _sizes(directory: str) -> str:
    weights = size(os.path.join(directory, "variables"))
    graph = tf.io.gfile.stat(os.path.join(directory, "saved_model.pb")).length
    return f"Weights: {weights / 1e6:.1f} MB. Graph: {graph / 1e6:.1f} MB."


def _metrics(export: Export) -> str:
    """Returns a line on the last evaluation of the checkpoint."""
    step = checkpoint_step(export.checkpoint)
    evaluations = [entry for entry in read_history(export.model_dir) if entry["step"] == step]
    last = evaluations[-1] if evaluations else {}
    metrics = [f"{name} {value:.4f}" for name, value in last.items() if name not in ("step", "seconds")]
    return f"Evaluated at that step: {', '.join(metrics) or 'never'}."


def _signatures(servable: Servable) -> Iterator[str]:
    """Yields the lines of a table of what the signatures take and give."""
    yield "| signature | takes | gives |"
    yield "|---|---|---|"
    for name, function in servable.functions.items():
        outputs = function.get_concrete_function().structured_outputs
        takes = "<br>".join(_describe(spec.name, spec) for spec in servable.signatures[name].takes)
        gives = "<br>".join(_describe(key, outputs[key]) for key in sorted(outputs))
        yield f"| `{name}` | {takes} | {gives} |"


def _describe(name: str, spec) -> str:
    shape = ", ".join("B" if i == 0 else "…" if size is None else str(size) for i, size in enumerate(spec.shape))
    return f"`{name}`, {spec.dtype.name} [{shape}]"


def _instance(servable: Servable) -> str:
    """Returns a row of a request, in JSON."""
    names = [spec.name for spec in servable.signatures["serving_default"].takes]
    return '"a text"' if len(names) == 1 else "{" + ", ".join(f'"{name}": "a text"' for name in names) + "}"
