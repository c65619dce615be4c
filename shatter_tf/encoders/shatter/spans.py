"""Attention over long texts whose far tokens are read in spans, at a cost that hardly grows with the length.

A query reads the tokens near it as always. Those further away are read in spans of consecutive tokens, the longer the
further they are, each as one token that is the mean of its own, and counts as many times as it has tokens:

    n_C   = number of tokens of span C in i's document;   x_C, v_Cp, f_p(C - i) = means of x_j, v_jp, f_p(j - i) over C
    s_iC  = q_i . x_C / sqrt(D) + sum_p f_p(C - i) b_ip
    a_iC  = n_C sigmoid(s_iC - 5)

and n_ip and y_ip sum over near tokens and spans. No weights are added, so that a checkpoint reads either way. Where
every span is one token, or all tokens of a span are the same, the result is the same but for how f varies over a span.

Which spans those are follows from positions alone. The text is cut into blocks of Q tokens, and pairs of blocks are
blocks of the next level:

    near      a block of queries reads the tokens of its own block and of those beside it, with all parts
    level l   a pair of blocks of level l - 1 reads the spans of the two pairs beside it, S in each of their blocks, but
              not those of a block that is beside the query's own, which were read at a lower level

So every other token is read exactly once, and no span is longer than 1 / S of its distance. All is known before the
graph is built: nothing is gathered. Spans are so far away that only the two outermost parts on their side are not zero.

Documents that are packed into one row stay exactly apart, though spans may hold tokens of several. Documents are
contiguous: what a query on the left of a span shares with it is the beginning of the span, and on the right the end. So
there are two sets of means, of the tokens of the first document in a span and of those of the last.

Source: ours, with the binary tree of BP-Transformer (Ye et al. 2019, arXiv 1911.04070); spans that grow with their
distance are also in H-Transformer-1D (Zhu, Soricut 2021, arXiv 2107.11906). Letters in shapes are those of
equations.py; N is the number of blocks or pairs.
"""

import dataclasses
from typing import Optional

import tensorflow as tf

from shatter_tf.encoders.shatter.blockwise import cut, join, read_near
from shatter_tf.encoders.shatter.config import ShatterConfig
from shatter_tf.encoders.shatter.equations import normalize_parts, read_parts
from shatter_tf.encoders.shatter.partition import soft_partition
from shatter_tf.layers.masks import same_document


@dataclasses.dataclass(frozen=True)
class Level:
    """Pairs of blocks, which read spans.

    Attributes:
      pair: tokens of a pair.
      spans: spans of a pair.
      first: the number of its first span among those of all levels, by which dropout knows it.
    """

    pair: int
    spans: int
    first: int

    @property
    def span_size(self) -> int:
        return self.pair // self.spans


def levels_of(config: ShatterConfig, length: int) -> tuple[list[Level], int]:
    """Returns the levels at which a text of `length` tokens is read, and how many spans they have in all.

    Example:
    >>> config = ShatterConfig(far_keys="spans", near_block_size=64, spans_per_block=32)
    >>> levels, number = levels_of(config, 512)
    >>> [(level.pair, level.spans, level.span_size) for level in levels], number
    ([(128, 64, 2), (256, 64, 4)], 384)
    """
    levels = []
    first = 0
    if config.far_keys == "spans":
        block = config.near_block_size
        while 2 * block < length:
            level = Level(2 * block, 2 * min(config.spans_per_block, block), first)
            levels.append(level)
            first += -(-length // level.pair) * level.spans
            block = level.pair
    return levels, first


def attend_to_spans(
    config: ShatterConfig,
    query: tf.Tensor,
    position_bias: Optional[tf.Tensor],
    x: tf.Tensor,
    value: tf.Tensor,
    packs: tf.Tensor,
    dropout_keys: Optional[tf.Tensor],
) -> tf.Tensor:
    """Returns what is read of the tokens in near blocks and of spans, [B, L, D]; arguments as for `attend_in_blocks`.

    Example:
    >>> from shatter_tf.encoders.shatter.attention import ShatterAttention
    >>> from shatter_tf.encoders.shatter.equations import mask_and_partition
    >>> spans = dict(far_keys="spans", near_block_size=8, spans_per_block=8)
    >>> layer = ShatterAttention(ShatterConfig(hidden_size=16, num_parts=8, **spans))
    >>> packs = tf.ones([1, 64], tf.int32)
    >>> x = tf.repeat(tf.random.normal([1, 16, 16]), 4, axis=1)  # spans of up to 4 tokens, which are the same
    >>> exact, _ = layer(x, packs, mask_and_partition(layer.config, packs, tf.float32))
    >>> in_spans, _ = layer(x, packs)
    >>> bool(tf.reduce_max(tf.abs(exact - in_spans)) < 1e-3)
    True
    """
    size = config.near_block_size
    length = x.shape[1]
    levels, number = levels_of(config, length)
    stride = length + number

    queries = dict(query=query, packs=packs[..., tf.newaxis])
    if position_bias is not None:
        queries["position_bias"] = position_bias
    keys = dict(x=x, packs=queries["packs"], value=value)
    dropout_keys = {} if dropout_keys is None else dict(dropout_keys=dropout_keys)

    # Every tensor is an argument: what is recomputed must not capture others.
    near = tf.recompute_grad(lambda *tensors: read_near(config, *tensors, size, size, stride))
    y, totals = near(queries, {**keys, **dropout_keys})

    spans = _single_tokens(x, value, packs)
    span_size = 1
    for level in levels:
        while span_size < level.span_size:
            spans = tuple(_merged(side, of_last=i == 0) for i, side in enumerate(spans))
            span_size *= 2
        means = tuple(_means(side, x.dtype) for side in spans)
        far = tf.recompute_grad(lambda *tensors, level=level: _read_level(config, level, length, stride, *tensors))
        more, totals_of_more = far(queries, means, _partition_of_right(config, level), dropout_keys)
        y, totals = y + more, totals + totals_of_more
    return normalize_parts(y, totals) if config.normalizer == "part_row_sum" else y


def _single_tokens(x: tf.Tensor, value: tf.Tensor, packs: tf.Tensor) -> tuple[dict, dict]:
    """Returns every token as a span, for queries on its right and for those on its left.

    Spans are sums, float32 [B, spans, K], over the tokens of their last document, or of their first: `x`; `value`, of
    the two parts that they belong to there, the one with the lower number first; `count`, of tokens. And `packs`, that
    document's number, int32 [B, spans, 1], or 0.
    """
    packs = packs[..., tf.newaxis]
    count = tf.cast(packs > 0, tf.float32)
    x = tf.cast(x, tf.float32) * count
    sides = []
    for parts in (value[:, :2], value[:, -2:]):
        values = tf.concat(tf.unstack(tf.cast(parts, tf.float32), axis=1), axis=-1) * count
        sides.append(dict(x=x, value=values, count=count, packs=packs))
    return tuple(sides)


def _merged(spans: dict, of_last: bool) -> dict:
    """Returns spans twice as long: sums over the tokens of the last or of the first document of each."""
    number = spans["packs"].shape[1]
    spans = {name: tf.pad(t, [[0, 0], [0, number % 2], [0, 0]]) for name, t in spans.items()}
    halves = [{name: t[:, begin::2] for name, t in spans.items()} for begin in ((1, 0) if of_last else (0, 1))]
    whose, other = (half.pop("packs") for half in halves)
    packs = tf.where(whose > 0, whose, other)
    joins = tf.cast(other == packs, tf.float32)
    return {**{name: t + joins * halves[1][name] for name, t in halves[0].items()}, "packs": packs}


def _means(spans: dict, dtype) -> dict:
    """Returns spans with means in place of sums, in `dtype`."""
    share = tf.math.reciprocal(tf.maximum(spans["count"], 1.0))
    return {**spans, **{name: tf.cast(spans[name] * share, dtype) for name in ("x", "value")}}


def _partition_of_right(config: ShatterConfig, level: Level) -> tf.Tensor:
    """Returns f_p(C - i) of the last two parts, for a pair's queries and the next pair's spans, [2, pair, spans].

    A mean of 2 g values is half the sum of two means of g.
    """
    f = soft_partition(config, tf.range(2 * level.pair), range(config.num_parts - 2, config.num_parts))
    size = 1
    while size < level.span_size:
        f = 0.5 * (f[:, :-size] + f[:, size:])
        size *= 2
    r = level.pair + level.span_size * tf.range(level.spans) - tf.range(level.pair)[:, tf.newaxis]
    return tf.gather(f, r, axis=1)


def _read_level(
    config: ShatterConfig,
    level: Level,
    length: int,
    stride: int,
    queries: dict,
    spans: tuple[dict, dict],
    partition: tf.Tensor,
    dropout_keys: dict,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Reads the spans of the pairs beside each pair, and returns [B, L, D] and [B, L, P]."""
    batch_size = tf.shape(queries["query"])[0]
    blocks = {name: _merge_axes(cut(t, level.pair)) for name, t in queries.items()}
    pairs = tf.repeat(tf.range(-(-length // level.pair)), batch_size)[:, tf.newaxis]
    i, k = tf.range(level.pair), tf.range(level.spans)
    keys = dropout_keys.get("dropout_keys")
    keys = None if keys is None else tf.tile(keys, [-(-length // level.pair)])

    read = []
    for side, of_side in enumerate(spans):
        # The pair before or after each.
        cuts = {name: cut(t, level.spans) for name, t in of_side.items()}
        nothing = {name: tf.zeros_like(t[:1]) for name, t in cuts.items()}
        beside = {
            name: _merge_axes(tf.concat([t[1:], nothing[name]] if side else [nothing[name], t[:-1]], axis=0))
            for name, t in cuts.items()
        }

        # Without the block beside the query's own.
        in_near_half = (k < level.spans // 2) if side else (k >= level.spans // 2)
        of_near_half = (i >= level.pair // 2) if side else (i < level.pair // 2)
        is_far = tf.logical_not(tf.logical_and(of_near_half[:, tf.newaxis], in_near_half))
        seen = tf.logical_and(same_document(blocks["packs"][..., 0], beside["packs"][..., 0]), is_far)
        counts = tf.where(seen, tf.transpose(beside["count"], [0, 2, 1]), 0.0)

        bias = blocks.get("position_bias")
        bias = None if bias is None else (bias[..., -2:] if side else bias[..., :2])
        value = tf.stack(tf.split(beside["value"], 2, axis=-1), axis=1)
        f = partition if side else tf.reverse(partition, [0, 1, 2])  # mirror images
        places = (pairs * level.pair + i) * stride, length + level.first + (pairs + 2 * side - 1) * level.spans + k
        read.append(read_parts(config, blocks["query"], bias, beside["x"], value, counts, f, keys, places)[:2])

    results = []
    for left, right in zip(*read, strict=True):
        between = tf.repeat(tf.zeros_like(left), (config.num_parts - 4) // 2, axis=-1)
        results.append(join(tf.concat([left, between, right], axis=-1), level.pair, length))
    return tuple(results)


def _merge_axes(t: tf.Tensor) -> tf.Tensor:
    """[N, B, ...] as [N B, ...]."""
    return tf.reshape(t, [-1, *t.shape[2:]])
