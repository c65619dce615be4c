"""BptConfig: the settings of BP-Transformer."""

import dataclasses
from typing import ClassVar

from official.modeling import hyperparams

from shatter_tf.encoders.base import Family


@dataclasses.dataclass
class BptConfig(Family, hyperparams.Config):
    """Sizes and choices of a BP-Transformer encoder (Ye, Guo, Gan, Qiu, Zhang 2019, arXiv 1911.04070).

    Example:
    >>> BptConfig(hidden_size=256, num_attention_heads=8).problems()
    []
    >>> BptConfig(hidden_size=256, num_attention_heads=7, neighbors=0).problems()
    ['neighbors=0 is not positive', 'hidden_size=256 is not divisible by num_attention_heads=7']
    """

    vocab_size: int = 30522  # wordpieces in the vocabulary
    hidden_size: int = 768  # model width D
    num_layers: int = 12  # encoder blocks
    num_attention_heads: int = 12  # heads H; must divide hidden_size
    intermediate_size: int = 3072  # width of the feed-forward layer
    hidden_activation: str = "relu"  # of the feed-forward layer: the paper's, or "squared_relu", "gelu", …
    type_vocab_size: int = 2  # kinds of segment (input_type_ids)
    max_sequence_length: int = 512  # longest input in tokens; longer ones are refused where the length is static
    neighbors: int = 4  # about how many nodes k of each level of the tree a token reads on either side
    clip_level: int = 5  # levels from this one on share their relation vectors, so that any length can follow
    pooling: str = "root"  # pooled_output: the state of the span of all tokens, or the "mean" of the tokens' vectors

    # Whether rows may hold several documents. It costs a quarter to a half more time: spans have two states, for their
    # first and their last document. Documents stay apart in any case; without it, all but a row's first miss spans.
    many_documents: bool = True

    dropout_rate: float = 0.1  # of embeddings and sub-layer outputs
    attention_dropout_rate: float = 0.1  # of the attention maps
    initializer_range: float = 0.02  # standard deviation of embeddings; all other matrices are Xavier's, as the paper's

    title = "BP-Transformer"
    sizes = (
        *("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"),
        *("max_sequence_length", "neighbors"),
    )
    own_names: ClassVar[dict[str, str]] = {
        "num_parts": "num_attention_heads",
        "max_position_embeddings": "max_sequence_length",
    }
    own_defaults = ("hidden_activation", "pooling")
    computation = ()

    def problems(self) -> list[str]:
        """Returns one line for each value that no encoder can be built with."""
        found = super().problems()
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads:
            found.append(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}"
            )
        if self.clip_level < 0:
            found.append(f"clip_level={self.clip_level} is negative")
        return found

    def poolings(self) -> tuple[str, ...]:
        """Returns what `pooling` may be."""
        return "root", "mean"

    @property
    def span_states(self) -> int:
        """S: the states of a span."""
        return 2 if self.many_documents else 1
