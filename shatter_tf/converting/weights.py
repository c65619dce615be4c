"""The weights of a BERT: which there are, of what shapes, and under which names they are stored.

Weights are called here as in Google's code (google-research/bert): "encoder/layer_0/output/dense/kernel". Each kind of
checkpoint has a function from these names to its own.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf
from official.nlp.tools.tf1_bert_checkpoint_converter_lib import BERT_V2_NAME_REPLACEMENTS

from shatter_tf.encoders.bert.config import BertConfig

POOLER, MASKED_LM = "pooler/", "cls/predictions/"  # begin the names of what a checkpoint may lack
TABLE = "embeddings/word_embeddings"
MAP = "embedding_map/"  # from sentence-transformers; Google has no name for it

_LISTED = 3  # names in an error


@dataclasses.dataclass
class Stored:
    """A weight in a file.

    Attributes:
      shape: as it is stored.
      read: returns it so, as numbers of any kind.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each weight by its name, in Google's layout: kernels are [in, out], heads are not split.

    Example:
    >>> shapes(BertConfig(num_layers=1))["encoder/layer_0/intermediate/dense/kernel"]
    (768, 3072)
    """
    found: dict[str, tuple[int, ...]] = {}
    width = config.hidden_size

    def dense(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}/kernel"] = (inputs, outputs)
        found[f"{name}/bias"] = (outputs,)

    def norm(name: str) -> None:
        found[f"{name}/gamma"] = found[f"{name}/beta"] = (width,)

    found[TABLE] = (config.vocab_size, width)
    found["embeddings/position_embeddings"] = (config.max_position_embeddings, width)
    found["embeddings/token_type_embeddings"] = (config.type_vocab_size, width)
    norm("embeddings/LayerNorm")

    for i in range(config.num_layers):
        layer = f"encoder/layer_{i}"
        for part in ("query", "key", "value"):
            dense(f"{layer}/attention/self/{part}", width, width)
        dense(f"{layer}/attention/output/dense", width, width)
        norm(f"{layer}/attention/output/LayerNorm")
        dense(f"{layer}/intermediate/dense", width, config.intermediate_size)
        dense(f"{layer}/output/dense", config.intermediate_size, width)
        norm(f"{layer}/output/LayerNorm")

    dense(f"{POOLER}dense", width, width)
    dense(f"{MASKED_LM}transform/dense", width, width)
    norm(f"{MASKED_LM}transform/LayerNorm")
    found[f"{MASKED_LM}output_bias"] = (config.vocab_size,)
    return found


def variable_name(name: str) -> str:
    """Returns what Model Garden's encoder, and so ours, calls a weight.

    Example:
    >>> variable_name("encoder/layer_0/output/dense/kernel"), variable_name("cls/predictions/output_bias")
    ('transformer/layer_0/output/kernel', 'bert/cls/predictions/output_bias/bias')
    """
    for google, model_garden in BERT_V2_NAME_REPLACEMENTS:
        name = name.replace(google, model_garden)
    return name


def fit(
    stored: dict[str, Stored], config: BertConfig, spell: Callable[[str], str], layout: Callable[[str, tuple], tuple]
) -> tuple[dict[str, Stored], list[str], list[str]]:
    """Finds the weights of a BERT among those stored.

    Args:
      stored: by their own names.
      config: the sizes.
      spell: from Google's name to the stored one.
      layout: from Google's name and shape to the stored shape.

    Returns:
      The weights by Google's names; a line for each kind of problem; and the stored names that are not among them.
    """
    wanted = shapes(config)
    names = {name: spell(name) for name in wanted}
    for part in (POOLER, MASKED_LM):  # there is none, or all of it
        if not any(names[name] in stored for name in wanted if name.startswith(part)):
            names = {name: own for name, own in names.items() if not name.startswith(part)}

    found = {name: stored[own] for name, own in names.items() if own in stored}
    problems = []
    missing = [own for own in names.values() if own not in stored]
    if missing:
        problems.append(f"weights are missing: {listed(missing)}")

    unfit = []
    for name, weight in found.items():
        shape = layout(name, wanted[name])
        if tuple(weight.shape) != shape:
            unfit.append(f"{names[name]} is {list(weight.shape)}, not {list(shape)}")
    if unfit:
        problems.append(f"weights do not have the shapes of the configuration: {listed(unfit)}")
    return found, problems, [own for own in stored if own not in set(names.values())]


def listed(names: Iterable[str]) -> str:
    """Returns names in one line, of many only the first.

    Example:
    >>> listed("abcde")
    'a, b, c and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def variables_by_name(items: dict[str, tf.Module]) -> dict[str, tf.Variable]:
    """Returns the variables of an encoder, and of a masked-LM head, by Model Garden's names."""
    found = {}
    for item in items.values():
        for variable in item.variables:
            # An encoder's own name comes first, but for what is made before it is built.
            name = re.sub(r":\d+$", "", variable.name)
            name = name if name.startswith(("bert/cls/", MAP)) else name.partition("/")[2]
            found[name] = variable
    return found
