"""Activations of feed-forward layers."""

from collections.abc import Callable

import tensorflow as tf
from official.modeling import tf_utils


@tf.custom_gradient
def squared_relu(x: tf.Tensor):
    """Returns max(x, 0)^2, of x's shape and dtype. Source: So et al. 2021, arXiv 2109.08668.

    Example:
    >>> squared_relu(tf.constant([-1.0, 3.0])).numpy().tolist()
    [0.0, 9.0]
    """
    relu = tf.nn.relu(x)
    # A custom derivative, so that one tensor is kept for it: relu's own would keep the signs of x as well.
    return tf.square(relu), lambda dy: 2.0 * dy * relu


def exact_gelu(x: tf.Tensor) -> tf.Tensor:
    """Returns x Φ(x), with Φ of the normal distribution, which "gelu" approximates by a tanh.

    Source: Hendrycks, Gimpel 2016, arXiv 1606.08415; PyTorch's BERTs have this form.

    Example:
    >>> exact_gelu(tf.constant([0.0, 1.0])).numpy().round(6).tolist()
    [0.0, 0.8413450121879578]
    """
    return tf.nn.gelu(x, approximate=False)


def feed_forward_activation(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the activation that `hidden_activation` names; raises ValueError for an unknown name.

    Example:
    >>> feed_forward_activation("gelu")(tf.constant([0.0])).numpy().tolist()
    [0.0]
    """
    own = dict(squared_relu=squared_relu, exact_gelu=exact_gelu)
    return own.get(name) or tf_utils.get_activation(name)
