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
from shatter_tf.encoders.base import PackedEncoder
from shatter_tf.encoders.bert import encoder as bert_encoder
from shatter_tf.encoders.bpt.encoder import BptBlock, BptEncoder
from shatter_tf.encoders.shatter.attention import ShatterAttention
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.encoder import ShatterEncoder, ShatterEncoderBlock
from shatter_tf.encoders.smart_bird.encoder import SmartBirdBlock, SmartBirdEncoder
from shatter_tf.serving.text_encoder import TextEncoder
from shatter_tf.tasks.distil import Student
from shatter_tf.tasks.embed import TextVectors

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
    embedding_pooling="first_token",
    embedding_dimensions=5,
    embedding_unit_length=True,
    dropout_rate=0.2,
    attention_dropout_rate=0.3,
    initializer_range=0.1,
    output_range=7,
    query_block_size=4,
    recompute_blocks=True,
    return_attention_scores=True,
)
# The defaults, in blocks of queries, which the settings above rule out: a map is returned whole.
IN_BLOCKS = ShatterConfig(
    vocab_size=31,
    hidden_size=16,
    num_layers=2,
    num_parts=8,
    intermediate_size=13,
    type_vocab_size=3,
    query_block_size=4,
    recompute_blocks=True,
)
IN_SPANS = IN_BLOCKS.replace(far_keys="spans", near_block_size=8, spans_per_block=2)
IDS = tf.constant([[2, 7, 9, 11, 3, 5, 6, 8, 3, 0, 0], [2, 4, 4, 5, 6, 7, 8, 9, 10, 12, 3]])
PACKS = tf.constant([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0], [1] * 11])
TYPES = tf.constant([[0, 1, 2] * 3 + [0, 0], [1] * 11])

VECTORS = tf.constant(np.random.default_rng(1).normal(size=(2, 11, 16)), tf.float32)


def _call_encoder(layer, training=False):
    return layer(dict(input_word_ids=IDS, input_mask=PACKS, input_type_ids=TYPES), training=training)


def _call_block(layer, training=False):
    vectors = VECTORS[..., : layer.config.hidden_size]
    outputs = layer(vectors, PACKS, training=training)
    return outputs[0] if layer.config in (IN_BLOCKS, IN_SPANS) else outputs


def _norm(name):
    return f"{name}/{name}/scale"


def _attention(*parts):
    return {f"{part}/{w}" for part in ("query", "value", *parts) for w in ("kernel", "bias")}


def _block(*parts):
    return {f"attention/{name}" for name in _attention(*parts)} | {
        *(_norm(norm) for norm in ("attention_layer_norm", "output_layer_norm")),
        *(f"{dense}/{w}" for dense in ("intermediate", "output") for w in ("kernel", "bias")),
    }


def _encoder(*more, part):
    embeddings = {"word_embeddings/embeddings", "type_embeddings/embeddings", _norm("embeddings_layer_norm")}
    return {*embeddings, *more, *(f"block_{i}/{name}" for i in range(2) for name in _block(part))}


CHECKS = [
    (ShatterAttention, CONFIG, _call_block, _attention("output_projection")),
    (ShatterAttention, IN_BLOCKS, _call_block, _attention("position_bias")),
    (ShatterAttention, IN_SPANS, _call_block, _attention("position_bias")),
    (ShatterEncoderBlock, CONFIG, _call_block, _block("output_projection")),
    (ShatterEncoderBlock, IN_BLOCKS, _call_block, _block("position_bias")),
    (ShatterEncoder, CONFIG, _call_encoder, _encoder("pooler/kernel", "pooler/bias", part="output_projection")),
    (ShatterEncoder, IN_BLOCKS, _call_encoder, _encoder(_norm("final_layer_norm"), part="position_bias")),
    (ShatterEncoder, IN_SPANS, _call_encoder, _encoder(_norm("final_layer_norm"), part="position_bias")),
]
# Model Garden's layers with a change or two: test_baselines.py.
# TextEncoder is one of strings: test_text_encoder.py. Student and TextVectors are models around an encoder:
# test_distil.py, test_embed.py. PackedEncoder has no blocks of its own. Other families go through the harness in their
# own tests.
EXEMPT = {TextEncoder, PackedEncoder, BptBlock, BptEncoder, SmartBirdBlock, SmartBirdEncoder, Student, TextVectors} | {
    cls for _, cls in inspect.getmembers(bert_encoder, inspect.isclass) if cls.__module__ == bert_encoder.__name__
}


def all_layers():
    found = set()
    for module in pkgutil.walk_packages(shatter_tf.__path__, "shatter_tf."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(cls, tf_keras.layers.Layer) and cls.__module__.startswith("shatter_tf"):
                found.add(cls)
    return found


def test_no_layer_escapes():
    assert all_layers() - EXEMPT == {cls for cls, *_ in CHECKS}


@pytest.mark.parametrize(("cls", "config", "call", "names"), CHECKS)
def test_layer(cls, config, call, names, tmp_path):
    check_layer(lambda: cls(config), call, names, tmp_path)


def test_every_setting_differs_from_its_default():
    """In one of the configs: spans need the default partition."""
    configs = CONFIG.as_dict(), IN_SPANS.as_dict()
    assert [key for key, value in ShatterConfig().as_dict().items() if all(c[key] == value for c in configs)] == []
