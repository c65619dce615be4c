"""SmartBirdConfig: the settings of a Smart Bird encoder."""

import dataclasses
from typing import ClassVar, Optional

from official.modeling import hyperparams

from shatter_tf.encoders.base import Family

SKETCHES = ("learned", "random", "nearest")


@dataclasses.dataclass
class SmartBirdConfig(Family, hyperparams.Config):
    """Sizes and choices of a Smart Bird encoder (Wu et al. 2021, arXiv 2108.09193; all but the idea is ours).

    Attributes:
      vocab_size: wordpieces in the vocabulary.
      hidden_size: model width D.
      num_layers: encoder blocks.
      num_attention_heads: heads H; must divide `hidden_size`.
      intermediate_size: width of the feed-forward layer.
      hidden_activation: activation of the feed-forward layer, as in ShatterConfig.
      type_vocab_size: kinds of segment (`input_type_ids`).
      max_sequence_length: longest input in tokens, and the number of learned positions.
      sketch_size: width R of the sketch that keys are sampled by.
      sampled_keys: keys K that each query and head reads besides the token itself.
      sketch: what keys are chosen by: "learned", "random" (the sketch's own weights keep their initial values) or
        "nearest" (no sketch: the K nearest tokens); the latter two are for comparisons.
      dense_up_to: inputs up to this length mask the keys that are not read; longer ones gather those that are.
      query_block_size: where keys are gathered, the queries that are processed at a time.
      pooling: what `pooled_output` is: "mean" or "first_token", as in ShatterConfig.
      dropout_rate: dropout of embeddings and sub-layer outputs.
      attention_dropout_rate: dropout of the attention maps.
      initializer_range: standard deviation of the truncated normal initializer.

    Example:
    >>> SmartBirdConfig(hidden_size=256, num_attention_heads=7).problems()
    ['hidden_size=256 is not divisible by num_attention_heads=7']
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_activation: str = "gelu"
    type_vocab_size: int = 2
    max_sequence_length: int = 512
    sketch_size: int = 32
    sampled_keys: int = 64
    sketch: str = "learned"
    dense_up_to: int = 1024
    query_block_size: int = 512
    pooling: str = "mean"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    initializer_range: float = 0.02

    title = "Smart Bird"
    sizes = (
        *("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"),
        *("max_sequence_length", "sketch_size", "sampled_keys", "dense_up_to", "query_block_size"),
    )
    own_names: ClassVar[dict[str, str]] = {
        "num_parts": "num_attention_heads",
        "max_position_embeddings": "max_sequence_length",
    }
    own_defaults = ("hidden_activation",)
    computation = ("dense_up_to", "query_block_size")

    def problems(self) -> list[str]:
        """Returns one line for each value that no encoder can be built with."""
        found = super().problems()
        heads = self.num_attention_heads
        if heads > 0 and self.hidden_size % heads:
            found.append(f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={heads}")
        if self.sketch not in SKETCHES:
            found.append(f"sketch={self.sketch!r} is not one of {', '.join(SKETCHES)}")
        return found

    @property
    def longest_dynamic(self) -> int:
        return min(self.dense_up_to, self.max_sequence_length)

    def gathers(self, length: Optional[int]) -> bool:
        """Returns whether the keys of an input of this static length are gathered."""
        return length is not None and length > self.dense_up_to
