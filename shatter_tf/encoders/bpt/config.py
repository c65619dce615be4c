"""BptConfig: the settings of BP-Transformer."""

import dataclasses
from typing import ClassVar

from official.modeling import hyperparams

from shatter_tf.encoders.base import Family

POOLINGS = ("root", "mean")


@dataclasses.dataclass
class BptConfig(Family, hyperparams.Config):
    """Sizes and choices of a BP-Transformer encoder (Ye, Guo, Gan, Qiu, Zhang 2019, arXiv 1911.04070).

    Attributes:
      vocab_size: wordpieces in the vocabulary.
      hidden_size: model width D.
      num_layers: encoder blocks.
      num_attention_heads: heads H; must divide `hidden_size`.
      intermediate_size: width of the feed-forward layer.
      hidden_activation: activation of the feed-forward layer: "relu" is the paper's; also "squared_relu" or "gelu".
      type_vocab_size: kinds of segment (`input_type_ids`).
      max_sequence_length: longest input in tokens; longer ones are refused where the length is static.
      neighbors: nodes k that a token reads on either side at each level of the tree: more read more finely.
      clip_level: levels above this one share their relation vectors, so that lengths not seen in training work.
      pooling: what `pooled_output` is: "root", the paper's, the state of the span of all tokens, or "mean" of the
        tokens' vectors.
      many_documents: whether a span has two states, for the first and for the last of its documents. Rows of several
        packed documents need it; rows of one give the same result without, with 2 nodes for each token in place of 3:
        two thirds of the time. Documents stay apart in any case, but without it tokens miss spans that their document
        does not begin.
      dropout_rate: dropout of embeddings and sub-layer outputs.
      attention_dropout_rate: dropout of the attention maps.
      initializer_range: standard deviation of the embeddings' truncated normal initializer; the paper's Xavier
        initializer is used for all other matrices.

    Example:
    >>> BptConfig(hidden_size=256, num_attention_heads=8).problems()
    []
    >>> BptConfig(hidden_size=256, num_attention_heads=7, neighbors=0).problems()
    ['neighbors=0 is not positive', 'hidden_size=256 is not divisible by num_attention_heads=7']
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_activation: str = "relu"
    type_vocab_size: int = 2
    max_sequence_length: int = 512
    neighbors: int = 4
    clip_level: int = 5
    pooling: str = "root"
    many_documents: bool = True
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    initializer_range: float = 0.02

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
        heads = max(self.num_attention_heads, 1)
        if self.hidden_size % heads:
            found.append(f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={heads}")
        if self.clip_level < 0:
            found.append(f"clip_level={self.clip_level} is negative")
        return found

    @property
    def span_states(self) -> int:
        """How many states a span has."""
        return 2 if self.many_documents else 1

    def poolings(self) -> tuple[str, ...]:
        """Returns what `pooling` may be."""
        return POOLINGS
