"""What surrounds the graph of an export: its version, its verification, its warm-up requests and its README."""

import os
import re
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from shatter_tf import __version__
from shatter_tf.checkpoints import checkpoint_step, count_parameters
from shatter_tf.model_dir import Run, read_history
from shatter_tf.serving import MINIMUM_TF_SERVING, Servable

_WARMUP_BATCHES = (1, 8)
_EXACT = ("labels", "words")  # outputs that do not depend on numbers, which rounding may change
CARD_FILE = "README.md"
# Directories that are being written: this and a random number. TF Serving looks only at names that are numbers.
INCOMPLETE = "incomplete-"
_INCOMPLETE = re.compile(INCOMPLETE + "[0-9a-f]{32}/?")
_LEFT_AFTER_SECONDS = 3600


def next_version(export_dir: str) -> int:
    """Returns one more than the highest version in `export_dir`, or 1."""
    names = tf.io.gfile.listdir(export_dir) if tf.io.gfile.exists(export_dir) else []
    return 1 + max((int(name.rstrip("/")) for name in names if name.rstrip("/").isdigit()), default=0)


def remove_leftovers(export_dir: str) -> None:
    """Removes what killed exports left in `export_dir`: directories in which nothing is written any more."""
    names = tf.io.gfile.listdir(export_dir) if tf.io.gfile.exists(export_dir) else []
    for directory in (os.path.join(export_dir, name.rstrip("/")) for name in names if _INCOMPLETE.fullmatch(name)):
        written = max((stat.mtime_nsec / 1e9 for stat in _file_stats(directory)), default=time.time())
        if time.time() - written > _LEFT_AFTER_SECONDS:
            tf.io.gfile.rmtree(directory)


def size(directory: str) -> int:
    """Returns the bytes of all files in a directory."""
    return sum(stat.length for stat in _file_stats(directory))


def _file_stats(directory: str) -> Iterator:
    for folder, _, names in tf.io.gfile.walk(directory):
        yield from (tf.io.gfile.stat(os.path.join(folder, name)) for name in names)


def sample_texts(servable: Servable, number: int, words: int) -> np.ndarray:
    """Returns strings, bytes [number], of `words` random wordpieces each, the first of them [MASK]."""
    ids = np.random.default_rng(0).integers(servable.tokenizer.vocabulary_size, size=[number, words])
    ids[:, 0] = servable.tokenizer.mask_id
    return tf.strings.reduce_join(servable.tokenizer.wordpieces(ids), axis=1, separator=" ").numpy()


def sample_inputs(servable: Servable, name: str, number: int, words: int) -> dict[str, tf.Tensor]:
    """Returns inputs for the signature `name`: a batch of `number` texts of `words` words."""
    texts = tf.constant(sample_texts(servable, number, words))
    if name == "token_ids":
        return servable.tokenizer.pad(servable.encode(texts))
    return {spec.name: texts for spec in servable.functions[name].input_signature}


def difference(servable: Servable, path: str) -> float:
    """Returns the largest difference between the outputs of the SavedModel at `path` and the trained model's.

    For outputs beyond 1 it is relative to the largest, see `relative_difference`. NaN where either gives NaN; infinity
    where labels, words or shapes differ. The SavedModel is loaded from disk and called with batches of several sizes
    and lengths; the trained model computes without a graph, on inputs padded to another length.
    """
    exported = tf.saved_model.load(path)
    differences = []
    for name, signature in exported.signatures.items():
        for number, words in ((1, 1), (3, 12), (2, servable.seq_length)):
            inputs = sample_inputs(servable, name, number, words)
            outputs = signature(**inputs)
            for key, expected in servable.without_graph(name, inputs).items():
                if outputs[key].shape != expected.shape:
                    return np.inf
                if key in _EXACT and not tf.reduce_all(outputs[key] == expected):
                    return np.inf
                if expected.dtype == tf.float32:
                    differences.append(relative_difference(outputs[key].numpy(), expected.numpy()))
    return float(np.max(differences))  # NaN if one is, which Python's max is not


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference of two arrays, relative to the largest expected number if that is beyond 1.

    float32 rounds scores of a thousand by as much as would be an error in a probability.

    Example:
    >>> relative_difference(np.array([1000.0, 3.0]), np.array([1000.0, 2.0]))
    0.001
    """
    return float(np.max(np.abs(actual - expected), initial=0.0) / np.max(np.abs(expected), initial=1.0))


def write_warmup_requests(servable: Servable, path: str, model_name: str) -> None:
    """Writes the requests that TF Serving sends itself before it accepts others: each signature, small and large."""
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    directory = os.path.join(path, "assets.extra")
    tf.io.gfile.makedirs(directory)
    with tf.io.TFRecordWriter(os.path.join(directory, "tf_serving_warmup_requests")) as writer:
        for name in servable.functions:
            for number in _WARMUP_BATCHES:
                for words in (8, servable.seq_length):
                    request = predict_pb2.PredictRequest(
                        model_spec=model_pb2.ModelSpec(name=model_name, signature_name=name)
                    )
                    for key, value in sample_inputs(servable, name, number, words).items():
                        request.inputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
                    log = prediction_log_pb2.PredictLog(request=request)
                    writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def write_card(
    finished: Run, model_dir: str, checkpoint: str, servable: Servable, path: str, target: str, notes: list[str]
) -> None:
    """Writes what a user must know about the export at `path`: its signatures, how good it is, how to serve it.

    Args:
      finished, model_dir, checkpoint: what was exported.
      servable: what of it is served.
      path: where the export lies now.
      target: where it will lie; ends in the names of the model and the version.
      notes: lines on what else was found.
    """
    model_name, version = target.split("/")[-2:]
    step = checkpoint_step(checkpoint)
    evaluations = [entry for entry in read_history(model_dir) if entry["step"] == step]
    metrics = {key: value for key, value in (evaluations or [{}])[-1].items() if key not in ("step", "seconds")}
    rows = []
    for name, function in servable.functions.items():
        outputs = function.get_concrete_function().structured_outputs
        columns = [[_describe(spec.name, spec) for spec in function.input_signature]]
        columns += [[_describe(key, outputs[key]) for key in sorted(outputs)]]
        rows.append(f"| `{name}` | " + " | ".join("<br>".join(column) for column in columns) + " |")
    specs = servable.functions["serving_default"].input_signature
    instance = '"a text"' if len(specs) == 1 else "{" + ", ".join(f'"{spec.name}": "a text"' for spec in specs) + "}"
    encoder = finished.params.task.model.encoder
    variables = servable.model.trainable_variables
    lines = [
        f"# {model_name}",
        "",
        f"A model of `{finished.experiment}`, made by shatter_tf {__version__} with TensorFlow {tf.__version__} from "
        f"step {step:,}. The encoder is {'Shatter' if encoder.type == 'any' else 'BERT'}: {encoder.get().num_layers} "
        f"layers of {encoder.get().hidden_size}; {count_parameters(variables):,} parameters in all, stored as "
        f"{' and '.join(sorted({variable.dtype.name for variable in variables}))}; {len(finished.vocabulary):,} "
        f"wordpieces, {'lower-cased' if finished.lower_case else 'cased'}; {_long_texts(finished, servable)}.",
        "",
        f"Weights: {size(os.path.join(path, 'variables')) / 1e6:.1f} MB. Graph: "
        f"{tf.io.gfile.stat(os.path.join(path, 'saved_model.pb')).length / 1e6:.1f} MB.",
        *notes,
        "",
        "Evaluated at that step: " + (", ".join(f"{k} {v:.4f}" for k, v in metrics.items()) or "never") + ".",
        "",
        "| signature | takes | gives |",
        "|---|---|---|",
        *rows,
        "",
        f"TF Serving {MINIMUM_TF_SERVING} or newer serves it:",
        "",
        f"    docker run -p 8501:8501 -v /path/to/{model_name}:/models/{model_name} -e MODEL_NAME={model_name} "
        "tensorflow/serving",
        f"    curl -d '{{\"instances\": [{instance}]}}' http://localhost:8501/v1/models/{model_name}:predict",
        "",
        "In Python, with tensorflow and tensorflow_text imported:",
        "",
        f'    tf.saved_model.load("{model_name}/{version}").signatures["embed"]'
        '(text=tf.constant(["a text"]))["embedding"]',
        "",
    ]
    with tf.io.gfile.GFile(os.path.join(path, CARD_FILE), "w") as f:
        f.write("\n".join(lines))


def _long_texts(finished: Run, servable: Servable) -> str:
    """Returns how long texts are handled."""
    if finished.experiment != "shatter/answer":
        return f"texts longer than {servable.seq_length} wordpieces are cut"
    return (
        f"contexts are read in windows of {servable.seq_length} wordpieces, and questions longer than "
        f"{finished.params.task.train_data.max_query_length} are cut"
    )


def _describe(name: str, spec) -> str:
    shape = ", ".join("B" if i == 0 else "…" if size is None else str(size) for i, size in enumerate(spec.shape))
    return f"`{name}`, {spec.dtype.name} [{shape}]"
