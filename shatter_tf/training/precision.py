"""The precision that layers compute in."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
import tf_keras
from official.core import config_definitions as cfg
from official.modeling import performance


def set_precision(runtime: cfg.RuntimeConfig) -> None:
    """Makes layers built from now on compute in `runtime.mixed_precision_dtype`, float32 if it is unset."""
    performance.set_mixed_precision_policy(tf.as_dtype(runtime.mixed_precision_dtype or "float32"))


@contextlib.contextmanager
def policy_scope(policy) -> Iterator[None]:
    """Makes `policy`, a Keras policy or its name, the one of layers that are built inside and not given another.

    Example:
    >>> with policy_scope("mixed_bfloat16"):
    ...     layer = tf_keras.layers.Dense(1)
    >>> layer.compute_dtype, tf_keras.layers.Dense(1).compute_dtype
    ('bfloat16', 'float32')
    """
    before = tf_keras.mixed_precision.global_policy()
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
