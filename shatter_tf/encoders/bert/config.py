"""BertConfig: the settings of the baseline."""

import dataclasses
from typing import ClassVar

from official.nlp.configs import encoders

from shatter_tf.encoders.base import Family

POSITIONS = ("absolute", "relative_bias", "absolute_and_relative_bias", "rotary")


@dataclasses.dataclass
class BertConfig(Family, encoders.BertEncoderConfig):
    """Model Garden's BERT settings, and how positions are encoded.

    Attributes:
      positions: "absolute" (Devlin et al. 2019), "relative_bias" (T5, arXiv 1910.10683, separate in each layer),
        "absolute_and_relative_bias", or "rotary" (RoFormer, arXiv 2104.09864, Model Garden's own blocks).
      pooling: what `pooled_output` is: "first_token", Model Garden's tanh projection of it, or "mean", as in
        ShatterConfig.
    """

    positions: str = "absolute"
    pooling: str = "first_token"

    title = "BERT"
    sizes = (
        *("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "intermediate_size"),
        *("type_vocab_size", "max_position_embeddings"),
    )
    own_names: ClassVar[dict[str, str]] = {
        "num_parts": "num_attention_heads",
        "max_sequence_length": "max_position_embeddings",
    }
    own_defaults = ("hidden_activation",)

    def problems(self) -> list[str]:
        """Returns one line for each value that no encoder can be built with."""
        found = super().problems()
        heads = max(self.num_attention_heads, 1)
        if self.hidden_size % heads:
            found.append(f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={heads}")
        elif self.positions == "rotary" and self.hidden_size // heads % 2:
            found.append("positions=rotary needs heads of an even width")

        if self.positions == "rotary" and (self.output_range or self.return_attention_scores):
            found.append("positions=rotary has no output_range and no return_attention_scores")
        if self.positions not in POSITIONS:
            found.append(f"positions={self.positions!r} is not one of {', '.join(POSITIONS)}")
        return found

    @property
    def longest(self) -> int:
        return self.max_position_embeddings
