"""BP-Transformer's graph without lists of edges: which nodes tokens read, of which types, and in which bands.

The nodes form a binary tree. Node m of level j is a token (j = 0) or the span of tokens m 2^j … (m + 1) 2^j - 1. A span
reads its tokens. A token i reads itself and, on either side, about k nodes of every level; on the left

    l_j - c,  c = s_j … k - 1 + s_{j+1}      l_0 = i - 1,  l_{j+1} = floor((l_j - k) / 2)
                                             s_0 = 0,      s_{j+1} = [l_j - k is even]

    s_{j+1} = 1 where the node after k, l_j - k, is a left child, whose parent overlaps what is read already. The child
    stands in for the parent (c = k), which is skipped (c = 0 one level up)

and on the right the mirror image. So every other token is read exactly once, by itself or in a span. The types are
(0, self), (min(j, clip), side, c) for c < k, and (min(j + 1, clip), side, 0), the parent's, for c = k.

Seen from a token's ancestor m = floor(i / 2^j), this depends only on i modulo 2^(j+1), and l_j is m - d_j or
m - d_j - 1, where d_0 = 1 and d_{j+1} = floor((d_j + k) / 2). So groups of G tokens, an even number A = G / 2^j of
ancestors, read windows of A + k + 1 nodes on either side, by matrix products and with one table of types for all. The
lowest levels share a group: products of much smaller matrices cost more than their arithmetic.

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
    """A level of the tree: j, S, and the distance from an ancestor to its window, d_j, but 0 at level 0."""

    height: int
    states: int
    nearest: int


class Band(NamedTuple):
    """G, the levels whose nodes groups of G tokens read, and C, which is 0 for the root's band: no token reads it."""

    group: int
    levels: list[Level]
    columns: int

    @property
    def shares(self) -> list[tuple[Level, int]]:
        """The levels of spans, and what each contributes to U."""
        return [(level, level.states * self.group >> level.height) for level in self.levels if level.height]


class Maps(NamedTuple):
    """What all blocks share.

    Attributes:
      types: `relation_types` of each band that tokens read, int32 [G, C]; 0 for columns that are not read.
      tokens: which columns tokens read, bool [B, 1, L, C] for each of these bands.
      spans: which tokens spans read, bool [B, 1, N, U, G] for each band.
    """

    types: list[tf.Tensor]
    tokens: list[tf.Tensor]
    spans: list[tf.Tensor]


def bands(config: BptConfig, length: Optional[int]) -> list[Band]:
    """Returns the bands of sequences of `length` tokens, or of any length if None, the root's last.

    Example:
    >>> [(band.group, [level.height for level in band.levels]) for band in bands(BptConfig(neighbors=4), length=512)]
    [(16, [0, 1, 2, 3]), (32, [4]), (64, [5]), (128, [6]), (256, [7]), (512, [9])]
    """
    length = length or config.max_sequence_length
    root = max(2, (length - 1).bit_length())  # so that each band has spans, and the root of a single token is one

    tree, nearest = [Level(0, 1, 0)], 1
    for height in range(1, root):
        nearest = (nearest + config.neighbors) // 2
        if height == 1 or nearest <= (length - 1) >> height:  # nodes so far away
            tree.append(Level(height, config.span_states, nearest))

    groups = {}
    for level in tree:
        groups.setdefault(max(GROUP, 2 << level.height), []).append(level)
    read = [Band(group, of, sum(2 * window(config, group, level) for level in of)) for group, of in groups.items()]
    return [*read, Band(1 << root, [Level(root, config.span_states, nearest)], columns=0)]


def levels(config: BptConfig, length: Optional[int]) -> list[Level]:
    """Returns the levels of all bands, from the tokens' to the root's."""
    return [level for band in bands(config, length) for level in band.levels]


def numbers_of_states(config: BptConfig, packs: tf.Tensor) -> list[Size]:
    """Returns n S for every level, where `packs` is [B, L]."""
    return [level.states * -(-axis_size(packs, 1) // (1 << level.height)) for level in levels(config, packs.shape[1])]


def window(config: BptConfig, group: int, level: Level) -> int:
    """Returns A + k + 1."""
    return (group >> level.height) + config.neighbors + 1


def relation_types(config: BptConfig, band: Band) -> np.ndarray:
    """Returns the type of each column for each token of a group, int [G, C]; -1 where it is not read.

    Each of the levels 0 … clip has 2k + 1 types: self, then the left side's c = 0 … k - 1, then the right side's.

    Source: the edges and types of the authors' code, but for a bug: where a level has an odd number of nodes, it also
    reads the missing right child of the last one, which is another span.
    """
    k, i = config.neighbors, np.arange(band.group)[:, np.newaxis]
    types = []
    for level in band.levels:
        own, parent = ((2 * k + 1) * min(j, config.clip_level) for j in (level.height, level.height + 1))
        column = np.arange(window(config, band.group, level))
        left, right = column - level.nearest - k - 1, column + level.nearest
        # The right side is the left side of -1 - i among nodes -1 - u.
        for side, token, node in ((1, i, left), (1 + k, -1 - i, -1 - right)):
            first, skip = token - 1, 0
            for _ in range(level.height):
                first, skip = (first - k) // 2, 1 - (first - k) % 2
            c = first - node
            read = np.logical_and(c >= skip, c <= k - (first - k) % 2)
            types.append(np.where(read, side + np.where(c < k, own + c, parent), -1))

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


def make_maps(config: BptConfig, packs: tf.Tensor) -> Maps:
    """Returns which nodes tokens read and which tokens spans read: those of their own documents, and never padding.

    Args:
      config: the bands and types.
      packs: document numbers, int32 [B, L]; 0 for padding, which reads nothing.
    """
    numbers = {level.height: documents(packs, level) for level in levels(config, packs.shape[1])}
    maps = Maps([], [], [])
    for band in bands(config, packs.shape[1]):
        tokens = grouped(numbers[0], band.group)
        if band.columns:
            types = relation_types(config, band)
            mask = _same_document(tokens, windows(config, band, numbers), types >= 0)
            maps.types.append(tf.constant(np.maximum(types, 0), tf.int32))
            maps.tokens.append(ungrouped(mask, axis_size(packs, 1)))

        token = np.arange(band.group)
        own = [token >> level.height == np.arange(share)[:, np.newaxis] // level.states for level, share in band.shares]
        maps.spans.append(_same_document(spans(band, numbers), tokens, np.concatenate(own)))
    return maps


def _same_document(queries: tf.Tensor, nodes: tf.Tensor, among: np.ndarray) -> tf.Tensor:
    """Returns where `among`, bool [G, C], document numbers [..., G, 1] and [..., C, 1] are the same, and not 0."""
    # Two choices and one comparison: LiteRT has no logical_and for so many axes.
    return tf.where(queries > 0, queries, -1) == tf.where(among, tf.linalg.matrix_transpose(nodes), 0)


def spans(band: Band, nodes: dict[int, tf.Tensor]) -> tf.Tensor:
    """Returns the states of spans in groups, [B, H, N, U, K]; `nodes` are as for `windows`."""
    return tf.concat([grouped(nodes[level.height], share) for level, share in band.shares], axis=3)


def windows(config: BptConfig, band: Band, nodes: dict[int, tf.Tensor]) -> tf.Tensor:
    """Returns the nodes that groups of tokens read, [B, H, N, C, K], zeros beyond the ends.

    Args:
      config: k.
      band: the levels, each of which has a window on the left and one on the right.
      nodes: by level, [B, H, n S, K].
    """
    number = -(-axis_size(nodes[0], 2) // band.group)
    found = []
    for level in band.levels:
        size, width = band.group >> level.height, window(config, band.group, level)
        # Of a span on the left the last document's state is read, of one on the right the first's: see `documents`.
        left = nodes[level.height][:, :, level.states - 1 :: level.states]
        left = tf.pad(left, [[0, 0], [0, 0], [level.nearest + config.neighbors + 1, width + size], [0, 0]])
        right = nodes[level.height][:, :, :: level.states]
        right = tf.pad(right, [[0, 0], [0, 0], [0, level.nearest + width + size], [0, 0]])[:, :, level.nearest :]

        parts = -(-width // size)  # blocks of A nodes in a window, the last not whole
        for side in (left, right):
            blocks = grouped(side[:, :, : (number + parts - 1) * size], size)
            overlapping = [blocks[:, :, part : part + number] for part in range(parts)]
            found.append(tf.concat(overlapping, axis=3)[:, :, :, :width])
    return tf.concat(found, axis=3)


def axis_size(x: tf.Tensor, axis: int) -> Size:
    """Returns the size of an axis, an int where it is known."""
    return x.shape[axis] or tf.shape(x)[axis]


def grouped(x: tf.Tensor, size: int) -> tf.Tensor:
    """Returns [B, H, L, K] in groups, [B, H, N, size, K]; the last is padded with zeros."""
    length = axis_size(x, 2)
    number = -(-length // size)
    x = tf.pad(x, [[0, 0], [0, 0], [0, number * size - length], [0, 0]])
    return tf.reshape(x, [-1, x.shape[1], number, size, x.shape[3]])


def ungrouped(x: tf.Tensor, length: Optional[Size] = None) -> tf.Tensor:
    """Returns groups, [B, H, N, G, K], as [B, H, L, K]; `length` cuts the padding off."""
    return tf.reshape(x, [-1, x.shape[1], axis_size(x, 2) * x.shape[3], x.shape[4]])[:, :, :length]
