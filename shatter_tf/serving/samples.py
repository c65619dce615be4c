"""Texts of random wordpieces: what an export is checked with, and what TF Serving warms up with."""

import os

import numpy as np
import tensorflow as tf

from shatter_tf.serving.servable import Servable

_EXACT = ("labels", "words")  # outputs that do not depend on numbers, which rounding may change
_WARMUP_BATCHES = (1, 8)


def sample_texts(servable: Servable, number: int, words: int) -> np.ndarray:
    """Returns strings, bytes [number], of `words` random wordpieces each, the first of them [MASK]."""
    ids = np.random.default_rng(0).integers(servable.tokenizer.vocabulary_size, size=[number, words])
    ids[:, 0] = servable.tokenizer.mask_id
    return tf.strings.reduce_join(servable.tokenizer.wordpieces(ids), axis=1, separator=" ").numpy()


def sample_inputs(servable: Servable, name: str, number: int, words: int) -> dict[str, tf.Tensor]:
    """Returns inputs for the signature `name`: a batch of `number` texts of `words` words."""
    texts = tf.constant(sample_texts(servable, number, words))
    specs = servable.signatures[name].takes
    if all(spec.dtype == tf.string for spec in specs):
        return {spec.name: texts for spec in specs}
    return servable.encoder_inputs(texts)


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
                    model = model_pb2.ModelSpec(name=model_name, signature_name=name)
                    request = predict_pb2.PredictRequest(model_spec=model)
                    for key, value in sample_inputs(servable, name, number, words).items():
                        request.inputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
                    log = prediction_log_pb2.PredictLog(request=request)
                    writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
