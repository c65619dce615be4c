"""ShatterConfig: the one place where the encoder's settings are declared."""

import dataclasses
from typing import ClassVar, Optional

from official.modeling import hyperparams

from shatter_tf.encoders.base import Family
from shatter_tf.encoders.shatter import squashing

PARTITIONS = ("linear", "bernstein")

NORMALIZERS = ("none", "row_sum", "unit_length", "part_row_sum")

FAR_KEYS = ("tokens", "spans", "none")


@dataclasses.dataclass
class ShatterConfig(Family, hyperparams.Config):
    """Sizes and choices of a Shatter encoder (Tian, Maynez, Parikh 2021, arXiv 2108.13032).

    Attributes:
      vocab_size: wordpieces in the vocabulary.
      hidden_size: model width D.
      num_layers: encoder blocks.
      num_parts: parts P of the relative positions; must divide `hidden_size`.
      intermediate_size: width of the feed-forward layer.
      hidden_activation: activation of the feed-forward layer: "squared_relu", or one that Model Garden knows ("gelu").
      type_vocab_size: kinds of segment (`input_type_ids`).
      max_sequence_length: longest input in tokens; longer ones are refused where the length is static.
      partition: family of the partition of unity: "linear" (piecewise-linear hats) or "bernstein" (polynomials).
      squashing_scale: how far the parts reach. With an even number of parts from 6 on, it is twice the distance from
        relative position 1 to the next knot, in tokens.
      sigmoid_bias: what is subtracted from a score before the sigmoid: 0 is the paper's, and at 5 the sigmoid is nearly
        an exponential, which "part_row_sum" turns into a softmax for each part.
      normalizer: "part_row_sum" divides what is read from each part by the attention paid to it, "row_sum" each row
        of the attention map by its sum, "unit_length" by the root of its sum of squares; "none" divides nothing.
      use_position_bias: whether the score has a term for the query token and the relative position.
      use_output_projection: whether the concatenated parts pass through Wo.
      norm_first: whether the norm comes before (True) or after (False) each sub-layer.
      pooling: what `pooled_output` is: "mean" of the tokens' vectors, which needs no weights of its own, or
        "first_token", BERT's tanh projection of the first token, for a task that trains it.
      query_block_size: attention over inputs longer than this processes that many positions at a time and recomputes
        each block in the backward pass, so that memory grows with the length and no longer with its square.
      far_keys: what is read beyond the blocks of `near_block_size` tokens beside a query's own: "tokens", one by one,
        "spans" of them (spans.py), whose cost hardly grows with the length, or "none". Inputs of up to two blocks have
        nothing beyond.
      near_block_size: tokens in such a block, a power of two; has no effect where far keys are tokens.
      spans_per_block: spans that far blocks are read in; a power of two. The more, the nearer to "tokens".
      recompute_blocks: keep only what passes from block to block, and recompute the rest in the backward pass.
      dropout_rate: dropout of embeddings and sub-layer outputs.
      attention_dropout_rate: dropout of the one attention map.
      initializer_range: standard deviation of the truncated normal initializer.
      output_range: compute only the first `output_range` positions of the last block; None computes all.
      return_attention_scores: also return each layer's attention map.

    Example:
    >>> ShatterConfig(hidden_size=256, num_parts=8).problems()
    []
    >>> ShatterConfig(hidden_size=256, num_parts=7).problems()
    ['hidden_size=256 is not divisible by num_parts=7']
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_parts: int = 12
    intermediate_size: int = 3072
    hidden_activation: str = "squared_relu"
    type_vocab_size: int = 2
    max_sequence_length: int = 512
    partition: str = "linear"
    squashing_scale: float = 1.0
    sigmoid_bias: float = 5.0
    normalizer: str = "part_row_sum"
    use_position_bias: bool = True
    use_output_projection: bool = False
    norm_first: bool = True
    pooling: str = "mean"
    query_block_size: int = 512
    far_keys: str = "tokens"
    near_block_size: int = 64
    spans_per_block: int = 32
    recompute_blocks: bool = False
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    initializer_range: float = 0.02
    output_range: Optional[int] = None
    return_attention_scores: bool = False

    title = "Shatter"
    sizes = (
        *("vocab_size", "hidden_size", "num_layers", "num_parts", "intermediate_size", "type_vocab_size"),
        *("max_sequence_length", "squashing_scale", "query_block_size"),
    )
    own_names: ClassVar[dict[str, str]] = {
        "num_attention_heads": "num_parts",
        "max_position_embeddings": "max_sequence_length",
    }
    own_defaults = ("hidden_activation",)
    computation = (
        *("max_sequence_length", "query_block_size", "far_keys", "near_block_size", "spans_per_block"),
        "recompute_blocks",
    )

    def problems(self) -> list[str]:
        """Returns one line for each value that no encoder can be built with."""
        found = super().problems()
        if self.num_parts > 0 and self.hidden_size % self.num_parts:
            found.append(f"hidden_size={self.hidden_size} is not divisible by num_parts={self.num_parts}")

        for name, allowed in (("partition", PARTITIONS), ("normalizer", NORMALIZERS), ("far_keys", FAR_KEYS)):
            if getattr(self, name) not in allowed:
                found.append(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.output_range is not None and self.output_range <= 0:
            found.append(f"output_range={self.output_range} is not positive")
        return found + (self._problems_of_spans() if self.far_keys in FAR_KEYS[1:] and not found else [])

    def _problems_of_spans(self) -> list[str]:
        found = []
        for name in ("near_block_size", "spans_per_block"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                found.append(f"{name}={value} is not a power of two")
        if not self.far_distance:
            found.append(f"far_keys={self.far_keys!r} needs partition='linear' and num_parts of 6 or more")
        if self.near_block_size < self.far_distance:
            found.append(
                f"near_block_size={self.near_block_size}: needs {self.far_distance}, where only two parts reach"
            )
        if self.normalizer not in ("none", "part_row_sum"):
            found.append(f"far_keys={self.far_keys!r} needs normalizer='part_row_sum' or 'none', for each part its own")
        return found

    @property
    def far_distance(self) -> int:
        """The tokens from which on only the two outermost parts on a side are not zero; 0 if there are none such.

        Hats have compact support: from there on only two are left.
        """
        if self.partition != "linear" or self.num_parts < 6:
            return 0
        return squashing.far_distance(self.squashing_scale, self.num_parts)

    @property
    def longest_at_once(self) -> int:
        """The longest sequence whose attention maps are held at once; longer ones are read in blocks."""
        return self.query_block_size if self.far_keys == "tokens" else 2 * self.near_block_size

    @property
    def longest_dynamic(self) -> int:
        return min(self.longest_at_once, self.max_sequence_length)

    def attends_in_blocks(self, length: Optional[int]) -> bool:
        """Returns whether a sequence of this static length is too long for its attention maps to be held at once."""
        return length is not None and length > self.longest_at_once and not self.return_attention_scores
