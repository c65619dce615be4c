"""BP-Transformer's graph without lists of edges: which nodes tokens and spans read, of which types, and in which bands.

The nodes form a binary tree. Node m of level j is a token (j = 0) or the span of tokens m 2^j … (m + 1) 2^j - 1. A span
reads its tokens. A token i reads itself and, on either side, some k nodes of every level; on the left

    l_j - c,  c = s_j … k - 1 + s_{j+1}      l_0 = i - 1,  l_{j+1} = floor((l_j - k) / 2),  s_0 = 0,  s_{j+1} = [l_j - k even]

    s_{j+1} = 1 where the node after k, l_j - k, is a left child, whose parent overlaps what is read already. The child
    stands in for the parent (c = k), which is skipped (c = 0 one level up)

and on the right the mirror image. So every other token is read exactly once, by itself or in a span. Types are (0, self),
(min(j, clip), side, c) for c < k, and for a child that stands in its parent's, (min(j + 1, clip), side, 0).

Seen from a token's own ancestor m = floor(i / 2^j), this is the same for all m, and l_j is m - d_j or m - d_j - 1, where
d_0 = 1 and d_{j+1} = floor((d_j + k) / 2). So groups of G tokens, with A = G / 2^j ancestors, read windows of A + k + 1
nodes on either side by matrix products, and one table of types serves all groups. Nodes of less than 16 tokens share a
group: products of much smaller matrices cost more than their arithmetic.

Letters: B batch, H heads, L tokens, K head width; n nodes of a level, S states of a node (see `documents`); N groups, C
columns of a band's windows, U states of a group's spans. Source: Ye et al. 2019, arXiv 1911.04070; the bands are ours.
"""

from typing import NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf

from shatter_tf.encoders.bpt.config import BptConfig

GROUP = 16  # the least G

Size = Union[int, tf.Tensor]  # of an axis; a tensor where it is not known when the graph is made


class Level(NamedTuple):
    """A level of the tree: j, S, and the distance at which windows begin, d_j, or 0 for the tokens'."""

    height: int
    states: int
    nearest: int


class Band(NamedTuple):
    """G, the levels whose nodes groups of G tokens read, C, and the levels of spans, with their shares of U."""

    group: int
    levels: list[Level]
    columns: int
    spans: list[tuple[Level, int]]


def bands(config: BptConfig, length: Optional[int]) -> list[Band]:
    """Returns the bands of sequences of `length` tokens, or of any length if None. The last is the root's, with C = 0.

    Example:
    >>> [(band.group, [level.height for level in band.levels]) for band in bands(BptConfig(neighbors=4), length=512)]
    [(16, [0, 1, 2, 3]), (32, [4]), (64, [5]), (128, [6]), (256, [7]), (512, [9])]
    """
    length = length or config.max_sequence_length
    root = max(1, (length - 1).bit_length())  # that of a single token is a span, too

    near, far, nearest = [Level(0, 1, 0)], [], 1
    for height in range(1, root):
        nearest = (nearest + config.neighbors) // 2
        if nearest <= (length - 1) >> height:
            (near if 2 << height <= GROUP else far).append(Level(height, config.span_states, nearest))

    found = []
    far = [(2 << level.height, [level]) for level in far]
    for group, levels in [(GROUP, near), *far, (1 << root, [Level(root, config.span_states, nearest)])]:
        columns = 0 if levels[0].height == root else sum(2 * _window(config, group, level) for level in levels)
        spans = [(level, level.states * group >> level.height) for level in levels if level.height]
        found.append(Band(group, levels, columns, spans))
    return found


def _window(config: BptConfig, group: int, level: Level) -> int:
    return (group >> level.height) + config.neighbors + 1


def levels(config: BptConfig, length: Optional[int]) -> list[Level]:
    """Returns the levels of all bands, from the tokens' to the root's."""
    return [level for band in bands(config, length) for level in band.levels]


def numbers_of_states(config: BptConfig, packs: tf.Tensor) -> list[Size]:
    """Returns n S for every level, where `packs` is [B, L]."""
    return [level.states * -(-axis_size(packs, 1) // (1 << level.height)) for level in levels(config, packs.shape[1])]


def relation_types(config: BptConfig, band: Band) -> np.ndarray:
    """Returns the type of each column for each token of a group, int [G, C]; -1 where it is not read.

    Each of the levels 0 … clip has 2k + 1 types: self, then the left side's c = 0 … k - 1, then the right side's.

    Source: the edges and types of the authors' code, but for a bug: where a level has an odd number of nodes, it also
    reads the missing right child of the last one, which is another span.
    """
    k, i = config.neighbors, np.arange(band.group)[:, np.newaxis]
    types = []
    for level in band.levels:
        own, above = ((2 * k + 1) * min(j, config.clip_level) for j in (level.height, level.height + 1))
        column = np.arange(_window(config, band.group, level))
        left, right = column - level.nearest - k - 1, column + level.nearest
        # The right side is the left side of -1 - i among nodes -1 - u.
        for side, token, node in ((1, i, left), (1 + k, -1 - i, -1 - right)):
            first, skip = token - 1, 0
            for _ in range(level.height):
                first, skip = (first - k) // 2, 1 - (first - k) % 2
            c = first - node
            read = np.logical_and(c >= skip, c <= k - (first - k) % 2)
            types.append(np.where(read, side + np.where(c < k, own + c, above), -1))

    types = np.concatenate(types, axis=1)
    if not band.levels[0].height:
        types[i, i + k + 1] = 0  # self
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


def make_masks(config: BptConfig, packs: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns which columns tokens read, and which tokens spans read: those of their own documents, and no padding.

    Args:
      config: the bands and types.
      packs: document numbers, int32 [B, L]; 0 for padding.

    Returns:
      bool [B, 1, L, C of all bands], and bool [B, 1, N, U, G] for each band that has spans.
    """
    numbers = {level.height: documents(packs, level) for level in levels(config, packs.shape[1])}
    of_tokens, of_spans = [], []
    for band in bands(config, packs.shape[1]):
        tokens = grouped(numbers[0], band.group)
        if band.columns:
            read = tf.logical_and(
                _same_document(tokens, windows(config, band, numbers)), relation_types(config, band) >= 0
            )
            of_tokens.append(ungrouped(read, axis_size(packs, 1)))
        if band.spans:
            shares = [
                np.arange(share)[:, np.newaxis] // level.states == np.arange(band.group) >> level.height
                for level, share in band.spans
            ]
            of_spans.append(tf.logical_and(_same_document(span_groups(band, numbers), tokens), np.concatenate(shares)))
    return tf.concat(of_tokens, axis=-1), of_spans


def _same_document(queries: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
    nodes = tf.linalg.matrix_transpose(nodes)
    return tf.logical_and(queries == nodes, nodes > 0)


def span_groups(band: Band, nodes: dict[int, tf.Tensor]) -> tf.Tensor:
    """Returns the states of a band's spans in groups, [B, H, N, U, K]; `nodes` are by level, [B, H, n S, K]."""
    return tf.concat([grouped(nodes[level.height], share) for level, share in band.spans], axis=3)


def windows(config: BptConfig, band: Band, nodes: dict[int, tf.Tensor]) -> tf.Tensor:
    """Returns the nodes on the left and on the right of groups, level by level, [B, H, N, C, K]; zeros beyond the ends.

    Args:
      config: k.
      band: the levels.
      nodes: by level, [B, H, n S, K].
    """
    number = -(-axis_size(nodes[0], 2) // band.group)
    sides = []
    for level in band.levels:
        size, width = band.group >> level.height, _window(config, band.group, level)
        # Of a node on the left the last document's state is read, of one on the right the first's; see `documents`.
        left, right = (
            nodes[level.height][:, :, level.states - 1 :: level.states],
            nodes[level.height][:, :, :: level.states],
        )
        left = tf.pad(left, [[0, 0], [0, 0], [level.nearest + width - size, width + size], [0, 0]])
        right = tf.pad(right, [[0, 0], [0, 0], [0, level.nearest + width + size], [0, 0]])[:, :, level.nearest :]

        # Windows overlap: each is made of blocks of A nodes.
        parts = -(-width // size)
        for side in (left, right):
            blocks = grouped(side[:, :, : (number + parts - 1) * size], size)
            moved = [blocks[:, :, part : part + number] for part in range(parts)]
            sides.append(tf.concat(moved, axis=3)[:, :, :, :width])
    return tf.concat(sides, axis=3)


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
