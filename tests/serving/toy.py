"""What is served of small models that were not trained."""

import numpy as np
from official.core import task_factory

from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import SPECIAL_TOKENS
from shatter_tf.serving.servable import Servable
from shatter_tf.tasks.registry import EXPERIMENTS

SIZES = dict(vocab_size=64, hidden_size=24, num_layers=2, intermediate_size=16)
TOKENIZER = Tokenizer([*SPECIAL_TOKENS, *(f"w{i}" for i in range(50))], lower_case=True)


def toy_servable(experiment: str, family: str = "shatter", seq_length: int = 32, **sizes) -> Servable:
    """Returns what is served of a small model of any experiment and family, with random weights."""
    config = EXPERIMENTS[f"shatter/{experiment}"]()
    own = {"num_parts" if family == "shatter" else "num_attention_heads": 4}
    config.model.encoder.override({"type": family, family: {**SIZES, **own, **sizes}})
    config.train_data.seq_length = seq_length

    labels = ["a", "b", "c"]
    if experiment == "classify":
        config.train_data.labels = labels
        config.model.num_classes = len(labels)
    if experiment == "regress":
        config.model.num_classes = 1
    if experiment == "tag":
        config.class_names = labels
    if experiment == "answer":
        config.train_data.max_query_length = 8
        config.max_answer_length = 8

    task = task_factory.get_task(config)
    return Servable(task, task.build_model(), TOKENIZER)


def grown(servable: Servable) -> Servable:
    """Makes random weights large enough to tell right from wrong."""
    rng = np.random.default_rng(0)
    for variable in servable.model.trainable_variables:
        variable.assign_add(rng.normal(0, 0.2, variable.shape))
    return servable
