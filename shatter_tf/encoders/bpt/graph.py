"""BP-Transformer's graph without lists of edges: which nodes tokens and spans read, of which type, and how.

The nodes form a binary tree. Node m of level j is a token (j = 0) or the span of tokens m 2^j … (m + 1) 2^j - 1. A span
reads its tokens. A token i reads itself and, on either side, k nodes of level 0, then k of level 1, and so on. On the
left these are

    l_j - c,  c = s_j … k - 1 + s_{j+1},     l_0 = i - 1,  s_0 = 0,  l_{j+1} = floor((l_j - k) / 2),  s_{j+1} = [l_j - k even]

    s_{j+1} = 1 where the next node, l_j - k, is a left child, whose parent overlaps what is read already. The child
    stands in for the parent (c = k), which is skipped (c = 0 one level up)

and the right side is the mirror image. So every other token is read exactly once, by itself or in a span. Types are
(0, self), (min(j, clip), side, c) for c < k, and for a child that stands in its parent's, (min(j + 1, clip), side, 0).

Seen from the token's own ancestor m = floor(i / 2^j), a level is a band: m - l_j is d_j or d_j + 1, where d_0 = 1 and
d_{j+1} = floor((d_j + k) / 2). So the nodes at distances d_j … d_j + k + 1 on either side are R = k + 2 columns, in the
order of the text. Groups of G tokens, which have A ancestors, read them in windows of W = A + R - 1 nodes on either
side: products of much smaller matrices would cost more than their arithmetic.

Letters: B batch, H heads, L tokens, K head width, n nodes of a level, J level of the root, S states of a node (see
`documents`), C columns of all levels, N groups. Source: Ye et al. 2019, arXiv 1911.04070; bands and groups are ours.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf

from shatter_tf.encoders.bpt.config import BptConfig

GROUP = 16  # tokens, at least, whose spans read them at once

Size = Union[int, tf.Tensor]  # of an axis; a tensor where it is not known when the graph is made


class Level(NamedTuple):
    """A level of the tree: j, the states of a node, and d_j."""

    height: int
    states: int
    nearest: int


def levels(config: BptConfig, length: Optional[int]) -> list[Level]:
    """Returns the levels that tokens read in sequences of `length` tokens, of any length if None, and the root's.

    Example:
    >>> [tuple(level) for level in levels(BptConfig(neighbors=4), length=64)]
    [(0, 1, 1), (1, 2, 2), (2, 2, 3), (3, 2, 3), (4, 2, 3), (6, 2, 3)]
    """
    length = length or config.max_sequence_length
    root = max(1, (length - 1).bit_length())  # that of a single token is a span, too
    found, nearest = [], 1
    for height in range(root):
        if nearest <= (length - 1) >> height or not height:
            found.append(Level(height, config.span_states if height else 1, nearest))
        nearest = (nearest + config.neighbors) // 2
    return [*found, Level(root, config.span_states, nearest)]


def numbers_of_nodes(tree: list[Level], length: Size) -> list[Size]:
    """Returns n S of every level."""
    return [level.states * -(-length // (1 << level.height)) for level in tree]


def reads(config: BptConfig, tree: list[Level], length: Size) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns which columns each token reads, and where its types are those of `relation_types` one column before.

    Returns:
      both bool [L, C]. The first column is the token itself; every level has R on the left and R on the right.

    Source: the edges and types of the authors' code, but for a bug: where a level has an odd number of nodes, it also
    reads the missing right child of the last one, which is another span.
    """
    i, column = tf.range(length)[:, tf.newaxis], tf.range(config.neighbors + 2)
    read, shifted = [tf.ones_like(i, tf.bool)], [tf.zeros_like(i, tf.bool)]
    for left, right in zip(_outward(config, tree, i), _outward(config, tree, -1 - i), strict=True):
        for (first, skipped, end), order in ((left, column[::-1]), (right, column)):
            child = order - first
            read.append(tf.logical_and(child >= skipped, child < end))
        shifted += [tf.repeat(t, config.neighbors + 2, axis=1) for t in (left[0] == 0, right[0] == 1)]
    return tf.concat(read, axis=1), tf.concat(shifted, axis=1)


def _outward(config: BptConfig, tree: list[Level], i: tf.Tensor) -> Iterator[tuple[tf.Tensor, ...]]:
    """Yields m - l_j - d_j, s_j and k + s_{j+1}, each of i's shape, for every level; for -1 - i the right side's."""
    node, skipped = i - 1, tf.zeros_like(i)
    for level in tree[:-1]:
        after = node - config.neighbors
        stands_in = 1 - after % 2
        yield i // (1 << level.height) - node - level.nearest, skipped, config.neighbors + stands_in
        node, skipped = after // 2, stands_in


def relation_types(config: BptConfig, tree: list[Level]) -> list[int]:
    """Returns the type of each column where it is not shifted, C numbers; 0 for columns that are not read then.

    Each of the levels 0 … clip has 2k + 1 types: self, then the left side's c = 0 … k - 1, then the right side's.
    """
    k, types = config.neighbors, [0]
    for level in tree[:-1]:
        own, above = (min(j, config.clip_level) * (2 * k + 1) for j in (level.height, level.height + 1))
        left, right = [own + 1 + c for c in range(k)], [own + 1 + k + c for c in range(k)]
        types += [above + 1, *left[::-1], 0, *right, above + 1 + k, 0]
    return types


def documents(packs: tf.Tensor, level: Level) -> tf.Tensor:
    """Returns the number of the document that each state of a level's nodes is of, int32 [B, 1, n S, 1]; 0 for none.

    Documents are numbered in order, so a token on the left of a span can only be in the first of its documents, and a
    token on its right only in the last: two states are enough for any number of documents.

    Args:
      packs: document numbers of tokens, int32 [B, L]; 0 for padding.
      level: S = 2 returns the first and the last document, S = 1 the first.

    Example:
    >>> documents(tf.constant([[1, 1, 1, 2, 2, 0]]), Level(height=2, states=2, nearest=1))[0, 0, :, 0].numpy().tolist()
    [1, 2, 2, 2]
    """
    numbers = grouped(packs[:, tf.newaxis, :, tf.newaxis], 1 << level.height)
    last = tf.reduce_max(numbers, axis=3, keepdims=True)
    first = tf.reduce_min(tf.where(numbers > 0, numbers, last), axis=3, keepdims=True)
    return ungrouped(tf.concat([first, last][: level.states], axis=3))


def token_masks(config: BptConfig, packs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns which columns tokens read, bool [B, 1, L, C], and which are shifted, bool [L, C]; see `reads`.

    Padding is read by nothing but itself, and reads nothing else.
    """
    tree, tokens = levels(config, packs.shape[1]), packs[:, tf.newaxis, :, tf.newaxis]
    read, shifted = reads(config, tree, axis_size(packs, 1))
    nodes = windows(config, tree, [documents(packs, level) for level in tree])
    same = [tf.ones_like(tokens, tf.bool)]
    same += [to_band(config, level, same_document, tokens, t) for level, t in zip(tree, nodes, strict=False)]
    return tf.logical_and(tf.concat(same, axis=-1), read), shifted


def span_masks(config: BptConfig, packs: tf.Tensor) -> list[tf.Tensor]:
    """Returns which of a group's tokens its spans read, bool [B, 1, N, A S, G] for each level of spans."""
    masks = []
    for level in levels(config, packs.shape[1])[1:]:
        queries, tokens = span_group(level)
        own = np.arange(queries)[:, np.newaxis] // level.states == np.arange(tokens) >> level.height
        numbers, leaves = documents(packs, level), packs[:, tf.newaxis, :, tf.newaxis]
        masks.append(tf.logical_and(same_document(grouped(numbers, queries), grouped(leaves, tokens)), own))
    return masks


def same_document(queries: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
    """Returns whether document numbers are the same and not 0, bool [..., G, W], from [..., G, 1] and [..., W, 1]."""
    nodes = tf.linalg.matrix_transpose(nodes)
    return tf.logical_and(queries == nodes, nodes > 0)


def span_group(level: Level) -> tuple[int, int]:
    """Returns the numbers of states of spans, and of tokens, that are computed as one matrix product."""
    tokens = max(GROUP, 1 << level.height)
    return (tokens >> level.height) * level.states, tokens


def ancestors(config: BptConfig) -> int:
    """Returns A; windows of W nodes are made of two blocks of A."""
    return max(8, config.neighbors + 1)


def windows(config: BptConfig, tree: list[Level], nodes: list[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the nodes on the left and on the right of each group, zeros beyond the ends.

    Args:
      tree: the levels.
      nodes: each level's, [B, H, n S, K].

    Returns:
      [B, H, N, 2W, K] for each level that tokens read.
    """
    size, reach = ancestors(config), config.neighbors + 1
    numbers = [-(-axis_size(x, 2) // (size * level.states)) for level, x in zip(tree[:-1], nodes, strict=False)]
    lefts, rights = [], []
    for (_, states, nearest), number, x in zip(tree[:-1], numbers, nodes, strict=False):
        # On the left the states of last documents are read, on the right those of first ones: see `documents`.
        rows = (number + 1) * size
        left, right = x[:, :, states - 1 :: states], x[:, :, ::states]
        lefts.append(tf.pad(left, [[0, 0], [0, 0], [nearest + reach, 2 * size], [0, 0]])[:, :, :rows])
        right = tf.pad(right, [[0, 0], [0, 0], [0, nearest + 2 * size], [0, 0]])
        rights.append(right[:, :, nearest : nearest + rows])

    sides = []
    for levels_of_side in (lefts, rights):
        blocks = grouped(tf.concat(levels_of_side, axis=2), size)
        blocks = tf.concat([blocks, tf.roll(blocks, -1, axis=2)], axis=3)[:, :, :, : size + reach]
        sides.append(blocks)
    every = tf.split(tf.concat(sides, axis=3), [number + 1 for number in numbers], axis=2)
    return [t[:, :, :-1] for t in every]


def to_band(config: BptConfig, level: Level, read: Callable, tokens: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
    """Returns what `read` gives for each token and column of its band, [B, H, L, 2R].

    Args:
      read: takes groups of tokens, [B, H, N, G, K], and their windows, [B, H, N, 2W, K]; returns [B, H, N, G, 2W].
      tokens: [B, H, L, K].
      nodes: the level's windows.
    """
    length, number, size = axis_size(tokens, 2), axis_size(nodes, 2), ancestors(config)
    x = read(grouped(tokens, size << level.height), nodes)

    # The bands of an ancestor's tokens begin one column after those of the one before: rows one longer align them.
    row = nodes.shape[3] << level.height
    x = tf.pad(tf.reshape(x, [-1, size * row]), [[0, 0], [0, size]])
    x = tf.reshape(tf.reshape(x, [-1, size, row + 1])[:, :, :row], [-1, 2, nodes.shape[3] // 2])
    columns = config.neighbors + 2
    return tf.reshape(x[:, :, :columns], [-1, tokens.shape[1], number * (size << level.height), 2 * columns])[
        :, :, :length
    ]


def from_band(config: BptConfig, level: Level, attention: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
    """Returns what tokens read of a level's windows by attention to their bands, [B, H, L, 2R], as [B, H, L, K]."""
    length, number, size = axis_size(attention, 2), axis_size(nodes, 2), ancestors(config)
    row = nodes.shape[3] << level.height

    # The reverse of what `to_band` does.
    x = tf.reshape(grouped(attention, size << level.height), [-1, 2, config.neighbors + 2])
    x = tf.pad(x, [[0, 0], [0, 0], [0, size - 1]])
    x = tf.pad(tf.reshape(x, [-1, size, row]), [[0, 0], [0, 0], [0, 1]])
    x = tf.reshape(x, [-1, size * (row + 1)])[:, : size * row]
    x = tf.reshape(x, [-1, attention.shape[1], number, size << level.height, nodes.shape[3]])
    return ungrouped(tf.matmul(x, nodes), length)


def axis_size(x: tf.Tensor, axis: int) -> Size:
    """Returns the size of an axis, an int where it is known."""
    return x.shape[axis] or tf.shape(x)[axis]


def grouped(x: tf.Tensor, size: int) -> tf.Tensor:
    """Returns [B, H, L, K] in groups, [B, H, N, size, K], the last of which is padded with zeros."""
    length = axis_size(x, 2)
    number = -(-length // size)
    x = tf.pad(x, [[0, 0], [0, 0], [0, number * size - length], [0, 0]])
    return tf.reshape(x, [-1, x.shape[1], number, size, x.shape[3]])


def ungrouped(x: tf.Tensor, length: Optional[Size] = None) -> tf.Tensor:
    """Returns groups, [B, H, N, G, K], as [B, H, L, K]; `length` cuts the padding off."""
    return tf.reshape(x, [-1, x.shape[1], axis_size(x, 2) * x.shape[3], x.shape[4]])[:, :, :length]
