"""The harness of layer_checks.py over every Layer subclass of the package."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from layer_checks import check_layer

import shatter_tf
from shatter_tf import baselines
from shatter_tf.attention import ShatterAttention, attention_mask
from shatter_tf.config import ShatterConfig
from shatter_tf.encoder import ShatterEncoder, ShatterEncoderBlock
from shatter_tf.partition import position_partition
from shatter_tf.text_encoder import TextEncoder

CONFIG = ShatterConfig(
    vocab_size=31,
    hidden_size=15,
    num_layers=2,
    num_parts=5,
    intermediate_size=13,
    hidden_activation="relu",
    type_vocab_size=3,
    max_sequence_length=29,
    partition="bernstein",
    squashing_scale=3.0,
    sigmoid_bias=0.0,
    normalizer="unit_length",
    use_position_bias=False,
    use_output_projection=True,
    norm_first=False,
    pooling="first_token",
    dropout_rate=0.2,
    attention_dropout_rate=0.3,
    initializer_range=0.1,
    output_range=7,
    query_block_size=4,
    recompute_blocks=True,
    return_attention_scores=True,
)
IDS = tf.constant([[2, 7, 9, 11, 3, 5, 6, 8, 3, 0, 0], [2, 4, 4, 5, 6, 7, 8, 9, 10, 12, 3]])
PACKS = tf.constant([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * 11])
TYPES = tf.constant([[0, 1, 2] * 3 + [0, 0], [1] * 11])

VECTORS = tf.constant(np.random.default_rng(1).normal(size=(2, 11, 15)), tf.float32)


def _call_encoder(layer, training=False):
    return layer(dict(input_word_ids=IDS, input_mask=PACKS, input_type_ids=TYPES), training=training)


def _call_block(layer, training=False):
    return layer(VECTORS, attention_mask(PACKS), position_partition(CONFIG, 11), training=training)


ATTENTION = {f"{part}/{w}" for part in ("query", "value", "output_projection") for w in ("kernel", "bias")}
BLOCK = {f"attention/{name}" for name in ATTENTION} | {
    *(f"{norm}/{norm}/scale" for norm in ("attention_layer_norm", "output_layer_norm")),
    *(f"{dense}/{w}" for dense in ("intermediate", "output") for w in ("kernel", "bias")),
}
ENCODER = {
    "word_embeddings/embeddings",
    "type_embeddings/embeddings",
    "embeddings_layer_norm/embeddings_layer_norm/scale",
    "pooler/kernel",
    "pooler/bias",
    *(f"block_{i}/{name}" for i in range(2) for name in BLOCK),
}
CHECKS = {
    ShatterAttention: (_call_block, ATTENTION),
    ShatterEncoderBlock: (_call_block, BLOCK),
    ShatterEncoder: (_call_encoder, ENCODER),
}
# Model Garden's layers with a change or two: test_baselines.py.
# TextEncoder is one of strings: test_text_encoder.py.
EXEMPT = {TextEncoder} | {
    cls for _, cls in inspect.getmembers(baselines, inspect.isclass) if cls.__module__ == baselines.__name__
}


def all_layers():
    found = set()
    for module in pkgutil.walk_packages(shatter_tf.__path__, "shatter_tf."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(cls, tf_keras.layers.Layer) and cls.__module__.startswith("shatter_tf"):
                found.add(cls)
    return found


def test_no_layer_escapes():
    assert all_layers() - EXEMPT == {*CHECKS}


@pytest.mark.parametrize("cls", CHECKS)
def test_layer(cls, tmp_path):
    call, names = CHECKS[cls]
    check_layer(lambda: cls(CONFIG), call, names, tmp_path)


def test_every_setting_differs_from_its_default():
    assert [key for key, value in CONFIG.as_dict().items() if value == ShatterConfig().as_dict()[key]] == []
