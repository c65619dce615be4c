"""The families of encoders by name, and the encoder that a run's settings describe.

A family is added by a line in FAMILIES or, from outside this package, by `register`; docs/extending.md has the steps.
"""

import dataclasses
from typing import Any

import tf_keras
from official.modeling import hyperparams

from shatter_tf.encoders.base import Family
from shatter_tf.encoders.bert.encoder import BertBaseline
from shatter_tf.encoders.bpt.encoder import BptEncoder
from shatter_tf.encoders.shatter.encoder import ShatterEncoder
from shatter_tf.encoders.smart_bird.encoder import SmartBirdEncoder

# By `encoder.type`: encoders, each bound to its config.
FAMILIES: dict[str, type[tf_keras.layers.Layer]] = {
    "shatter": ShatterEncoder,
    "bert": BertBaseline,
    "bpt": BptEncoder,
    "smart_bird": SmartBirdEncoder,
}
DEFAULT = "shatter"
# Model Garden's word for a custom encoder, which older runs and grids say.
_ALIASES = {"any": "shatter"}


def register(name: str, encoder: type[tf_keras.layers.Layer]) -> None:
    """Makes `encoder.type=name` stand for an encoder, whose `config_class` is a `Family`."""
    FAMILIES[name] = encoder


@dataclasses.dataclass
class EncoderConfig(hyperparams.OneOfConfig):
    """One of FAMILIES: its `type`, and the settings of each under its name.

    Example:
    >>> config = EncoderConfig(type="bert")
    >>> config.get().title, config.shatter.title
    ('BERT', 'Shatter')
    >>> config.override({"type": "any", "any": {"num_layers": 3}})
    >>> config.type, config.get().num_layers
    ('shatter', 3)
    """

    type: str = DEFAULT

    def __post_init__(self, default_params, restrictions):
        for name, encoder in FAMILIES.items():
            if name not in self.__dict__:
                self.__dict__[name] = encoder.config_class()
        super().__post_init__(default_params, restrictions)

    def _override(self, override_dict, is_strict=True):
        super()._override(canonical(override_dict), is_strict)


def canonical(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings of an EncoderConfig with today's names of families.

    Example:
    >>> canonical({"type": "any", "any": {"num_layers": 2}, "shatter": {"num_parts": 4}})
    {'type': 'shatter', 'shatter': {'num_layers': 2, 'num_parts': 4}}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = _ALIASES.get(key, key)
        both = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = {**found[name], **value} if both else value
    if isinstance(found.get("type"), str):
        found["type"] = _ALIASES.get(found["type"], found["type"])
    return found


def settings_of(config: EncoderConfig) -> Family:
    """Returns the settings of the chosen family; raises ValueError for a type that is no family."""
    if config.type not in FAMILIES:
        raise ValueError(f"encoder.type={config.type}: use {', '.join(FAMILIES)}")
    return config.get()


def build_encoder(config: EncoderConfig, use_pooler: bool, use_embedding: bool = False) -> tf_keras.layers.Layer:
    """Returns the encoder that `config` describes, whose unused parts are not trained.

    Args:
      config: its family and settings.
      use_pooler: whether `pooled_output` is used.
      use_embedding: whether `text_vectors` is.
    """
    encoder = FAMILIES[config.type](settings_of(config))
    if not use_pooler:
        encoder.freeze_pooler()
    if use_embedding and encoder.embedding_map is not None:
        encoder.embedding_map.trainable = True
    return encoder


def build_encoder_for_head(
    config: EncoderConfig, use_pooler: bool, dropout_rate: float
) -> tuple[tf_keras.layers.Layer, float]:
    """Returns an encoder, and the dropout rate that is left to Model Garden's head.

    That is 0 for encoders with dropout of their own, which resumes exactly and is the same on any number of replicas.
    Where a head has a layer before its output, as without `use_encoder_pooler`, that dropout comes before the layer,
    and the head's after it.
    """
    encoder = build_encoder(config, use_pooler)
    if not hasattr(encoder, "output_dropout_rate"):
        return encoder, dropout_rate

    encoder.output_dropout_rate = dropout_rate
    return encoder, 0.0
