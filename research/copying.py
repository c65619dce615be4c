"""Whether Smart Bird's sketch learns which keys are worth reading: a text repeats its first half, with gaps to fill.

  python research/copying.py

A gap's answer stands 24 tokens to the left. With 3 keys for each query, of 47, the nearest ones never reach it, and
random ones do once in 16 draws. Prints the accuracy of the last 50 batches for each kind of sketch, and for all keys.
About 5 minutes on one core.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras

from shatter_tf.encoders.smart_bird.config import SmartBirdConfig
from shatter_tf.encoders.smart_bird.encoder import SmartBirdEncoder

HALF, SYMBOLS, GAP, BATCH, STEPS = 24, 40, 41, 32, 600


def batch(rng: np.random.Generator) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns texts with gaps, whole texts, and where the gaps are, each [BATCH, 2 HALF]."""
    half = rng.integers(1, SYMBOLS + 1, [BATCH, HALF])
    whole = np.concatenate([half, half], axis=1)
    gaps = rng.random([BATCH, 2 * HALF]) < 0.3
    gaps[:, :HALF] = False
    return tf.constant(np.where(gaps, GAP, whole)), tf.constant(whole), tf.constant(gaps, tf.float32)


def accuracy(sketch: str, keys: int, seed: int) -> float:
    """Returns the mean accuracy in the gaps over the last 50 batches."""
    tf_keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    encoder = SmartBirdEncoder(
        SmartBirdConfig(
            vocab_size=GAP + 1,
            hidden_size=64,
            num_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_sequence_length=2 * HALF,
            sampled_keys=keys,
            sketch=sketch,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
        )
    )
    head = tf_keras.layers.Dense(GAP + 1)
    optimizer = tf_keras.optimizers.Adam(2e-3)

    @tf.function
    def step(texts, whole, gaps):
        with tf.GradientTape() as tape:
            outputs = encoder(dict(input_word_ids=texts, input_mask=tf.ones_like(texts)), training=True)
            logits = head(outputs["sequence_output"])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(whole, logits)
            loss = tf.reduce_sum(losses * gaps) / tf.reduce_sum(gaps)
        variables = encoder.trainable_variables + head.trainable_variables
        variables = [variable for variable in variables if "pooler" not in variable.name]
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        right = tf.cast(tf.argmax(logits, axis=-1) == tf.cast(whole, tf.int64), tf.float32)
        return tf.reduce_sum(right * gaps) / tf.reduce_sum(gaps)

    return float(np.mean([float(step(*batch(rng))) for _ in range(STEPS)][-50:]))


if __name__ == "__main__":
    for name, sketch, keys in (
        ("learned", "learned", 3),
        ("random", "random", 3),
        ("nearest", "nearest", 3),
        ("all", "learned", 47),
    ):
        print(name, *(f"{accuracy(sketch, keys, seed):.3f}" for seed in range(3)), flush=True)
