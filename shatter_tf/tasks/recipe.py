"""How to train well when nobody says how: settings that follow from the encoder's size and the amount of data.

Learning rates were measured at a few widths (docs/results.md, docs/log.md); in between they are interpolated.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

# Names of settings with their values. A name without a dot is that of a flag of `train`.
Recipe = Iterator[tuple[str, Any]]

# By width. From 768 on they are BERT's (Devlin et al. 2019, appendix A.3) and, for pretraining, between BERT's 1e-4
# and RoBERTa's 6e-4 (Liu et al. 2019); nothing was measured there.
_FINE_TUNING_RATES = {128: 3e-3, 256: 1.2e-3, 768: 5e-5, 1024: 3e-5}
# Of BERTs that others pretrained, on a hundred times the text: 1e-4 was measured at 384 (docs/log.md); at 128 it is the
# highest that Turc et al. 2019 (arXiv 1908.08962) tried for their small ones.
_CONVERTED_RATES = {128: 3e-4, 384: 1e-4, 768: 5e-5, 1024: 3e-5}
_PRETRAINING_RATES = {128: 4e-3, 256: 2e-3, 512: 1e-3, 768: 3e-4, 1024: 2e-4}

# The config whose encoder is trained on a task alone, from random weights.
FROM_SCRATCH = "pretrain_tiny"

_BATCH_SIZE = 32
_EMBEDDING_BATCH_SIZE = 64
_DISTILLATION_BATCH_SIZE = 16  # measured: docs/log.md
_PASSES = 3  # over the rows of a task, as in BERT
# Few rows are passed over more often, up to as many times, so that training takes this many steps.
_MOST_PASSES = 30
_FEWEST_STEPS = 500

# Tokens worth learning from in pretraining: a small corpus is passed over several times, but more than about four
# passes teach little (Muennighoff et al. 2023, arXiv 2305.16264).
_PRETRAINING_TOKENS = 100e6
_MOST_PRETRAINING_PASSES = 5


def fine_tuning_rate(hidden_size: int, converted: bool = False) -> float:
    """Returns the peak learning rate of AdamW for fine-tuning an encoder of a width, or one that others pretrained.

    Example:
    >>> [fine_tuning_rate(size) for size in (128, 256, 384, 768)]
    [0.003, 0.0012, 0.00037, 5e-05]
    >>> [fine_tuning_rate(size, converted=True) for size in (256, 384, 768)]
    [0.00015, 0.0001, 5e-05]
    """
    return _interpolated(_CONVERTED_RATES if converted else _FINE_TUNING_RATES, hidden_size)


def pretraining_rate(hidden_size: int, converted: bool = False) -> float:
    """Returns the peak learning rate of AdamW for pretraining an encoder of a width, or one that others pretrained.

    Example:
    >>> [pretraining_rate(size) for size in (128, 256, 384, 512)]
    [0.004, 0.002, 0.0013, 0.001]
    """
    # Not measured for the latter: what fine-tuning does not spoil, training on more text of the same kind should not.
    return _interpolated(_CONVERTED_RATES if converted else _PRETRAINING_RATES, hidden_size)


def _interpolated(rates: dict[int, float], hidden_size: int) -> float:
    """Returns the rate at a width, on straight lines between the logarithms of those that are known."""
    rate = np.exp(np.interp(math.log(hidden_size), np.log([*rates]), np.log([*rates.values()])))
    return float(f"{rate:.2g}")


def fine_tuning_steps(rows: int, batch_size: int) -> int:
    """Returns the steps of a fine-tuning: three passes, or more where rows are few.

    Example:
    >>> [fine_tuning_steps(rows, batch_size=32) for rows in (100, 2_000, 8_118)]
    [100, 500, 780]
    """
    enough = min(_FEWEST_STEPS, _MOST_PASSES * rows / batch_size)
    return 20 * math.ceil(max(enough, _PASSES * rows / batch_size) / 20)  # a round number: five evaluations, evenly


def fine_tuning(task, rows: int, converted: bool = False) -> Recipe:
    """Yields what a task that is fine-tuned on `rows` rows should have, each once what came before it is set.

    Args:
      task: its config.
      rows: to learn from.
      converted: whether the encoder is one that others pretrained.
    """
    yield "task.train_data.global_batch_size", min(_BATCH_SIZE, 2 ** int(math.log2(max(rows, 1))))
    yield "trainer.train_steps", fine_tuning_steps(rows, max(task.train_data.global_batch_size, 1))

    hidden_size = task.model.encoder.get().hidden_size
    yield "learning_rate", fine_tuning_rate(hidden_size, converted)
    # Measured at width 128 only; from 256 on, BERT's.
    yield "task.model.encoder.shatter.dropout_rate", 0.3 if hidden_size <= 128 else 0.1
    yield "task.model.encoder.shatter.attention_dropout_rate", 0.1
    if hasattr(task.model, "use_encoder_pooler"):
        yield "task.model.use_encoder_pooler", True  # the mean over tokens: see docs/log.md
    if hasattr(task.train_data, "long_text"):
        yield from _whole_texts(task)


def _whole_texts(task) -> Recipe:
    """Yields settings with which texts are read whole, and short ones do not pay for long ones, where that can be."""
    encoder = task.model.encoder.get()
    reads_mean = task.model.use_encoder_pooler and encoder.pooling == "mean" and not task.pairs
    if task.train_data.seq_length > encoder.longest_dynamic:
        return
    yield "task.train_data.long_text", "windows" if reads_mean else "head"
    yield "task.train_data.length_buckets", True


def embedding(task, rows: int, converted: bool = False) -> Recipe:
    """Yields what the training of embeddings on `rows` rows should have, as `fine_tuning` does."""
    # Every row of a batch is what the others are told apart from: more of them teach more.
    yield "task.train_data.global_batch_size", min(_EMBEDDING_BATCH_SIZE, 2 ** int(math.log2(max(rows, 1))))
    yield "trainer.train_steps", fine_tuning_steps(rows, max(task.train_data.global_batch_size, 1))

    # Half of fine-tuning's, and SimCSE's dropout (Gao et al. 2021): not measured yet.
    encoder = task.model.encoder.get()
    yield "learning_rate", float(f"{fine_tuning_rate(encoder.hidden_size, converted) / 2:.2g}")
    yield "task.model.encoder.shatter.dropout_rate", 0.1
    yield "task.model.encoder.shatter.attention_dropout_rate", 0.1
    # Search then needs no cosine: the product of two vectors is one.
    yield "task.model.encoder.shatter.embedding_unit_length", True
    if task.train_data.seq_length <= encoder.longest_dynamic:
        yield "task.train_data.length_buckets", True


def pretraining(task, tokens: int, converted: bool = False) -> Recipe:
    """Yields what pretraining on a corpus of `tokens` tokens should have, as `fine_tuning` does."""
    data = task.train_data
    hidden_size = task.model.encoder.get().hidden_size
    # The first million tokens teach more in many steps than in few.
    yield "task.train_data.global_batch_size", 8 if hidden_size <= 128 else _BATCH_SIZE
    yield "learning_rate", pretraining_rate(hidden_size, converted)
    yield "task.train_data.mask_rate", 0.4 if hidden_size <= 256 else 0.15
    yield "task.validation_data.mask_rate", 0.15
    yield "task.model.encoder.shatter.dropout_rate", 0.0
    yield "task.model.encoder.shatter.attention_dropout_rate", 0.0

    passes = min(max(_PRETRAINING_TOKENS / max(tokens, 1), 1), _MOST_PRETRAINING_PASSES)
    tokens_of_step = max(data.global_batch_size * data.seq_length, 1)
    yield "trainer.train_steps", 20 * math.ceil(passes * tokens / tokens_of_step / 20)


def distillation(task, rows: int) -> Recipe:
    """Yields what a student that learns from `rows` texts should have, each once what came before it is set."""
    encoder = "task.model.encoder.shatter"
    yield "task.train_data.global_batch_size", _DISTILLATION_BATCH_SIZE
    yield "learning_rate", pretraining_rate(task.model.encoder.get().hidden_size)
    yield f"{encoder}.dropout_rate", 0.0
    yield f"{encoder}.attention_dropout_rate", 0.0

    # The student's vectors can take the place of the teacher's.
    teacher = task.teacher.get()
    yield f"{encoder}.embedding_dimensions", task.teacher_dimensions
    yield f"{encoder}.embedding_unit_length", teacher.embedding_unit_length
    yield "trainer.train_steps", 20 * math.ceil(rows / task.train_data.global_batch_size / 20)


def pretraining_config(tokens: int, on_cpu: bool) -> str:
    """Returns the name of the config whose encoder suits a corpus of `tokens` tokens.

    Example:
    >>> pretraining_config(1_000_000, on_cpu=True), pretraining_config(10**9, on_cpu=True)
    ('pretrain_tiny', 'pretrain_mini')
    """
    if tokens < 5e6:
        return "pretrain_tiny"
    if tokens < 100e6 or on_cpu:
        return "pretrain_mini"
    return "pretrain_small" if tokens < 2e9 else "pretrain_base"
