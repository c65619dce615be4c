"""Normalization layers, with float32 in and out.

Each has "layer_norm" in its name: that is what keeps it out of weight decay.
"""

import tensorflow as tf
import tf_keras
from official.nlp.modeling.layers.transformer_encoder_block import RMSNorm


def rms_norm(name: str) -> tf_keras.layers.Layer:
    """Returns N(h) = h / sqrt(mean(h^2) + 1e-6) * g (Zhang and Sennrich 2019, arXiv 1910.07467) as a layer."""
    return RMSNorm(dtype=tf.float32, name=name)


def layer_norm(name: str) -> tf_keras.layers.Layer:
    """Returns BERT's layer normalization (Ba et al. 2016, arXiv 1607.06450; epsilon 1e-12) as a layer."""
    return tf_keras.layers.LayerNormalization(epsilon=1e-12, dtype=tf.float32, name=name)
