"""BP-Transformer's graph without lists of edges: which nodes tokens and spans read, of which type, and how.

The nodes form a binary tree. Node m of level j is a token (j = 0) or the span of tokens m 2^j … (m + 1) 2^j - 1. A span
reads its tokens. A token i reads itself and, on either side, about k nodes of every level, the nearest first. On the
left these are

    l_j - c,  c = s_j … k - 1 + s_{j+1}       l_0 = i - 1,  s_0 = 0,  l_{j+1} = floor((l_j - k) / 2),  s_{j+1} = [l_j - k even]

    s_{j+1} = 1 where the next node, l_j - k, is a left child, whose parent overlaps what is read already. The child
    stands in for the parent (c = k), which is skipped (c = 0 one level up)

and the right side is the mirror image. So every other token is read exactly once, by itself or in a span. Types are
(0, self), (min(j, clip), side, c) for c < k, and for a child that stands in its parent's, (min(j + 1, clip), side, 0).

Seen from a token's own ancestor m = floor(i / 2^j), all this is the same for every m: l_j is m - d_j or m - d_j - 1,
where d_0 = 1 and d_{j+1} = floor((d_j + k) / 2). So groups of G tokens, which have A = G / 2^j ancestors, read windows
of W = A + k + 1 nodes on either side, by matrix products and with one table of types for all groups. Levels whose nodes
are shorter than 16 tokens share a group: products of much smaller matrices would cost more than their arithmetic.

Letters: B batch, H heads, L tokens, K head width, n nodes of a level, S states of a node (see `documents`), N groups, C
columns of the windows of a band, both sides of all its levels. Source: Ye et al. 2019, arXiv 1911.04070; bands are ours.
"""

from typing import NamedTuple, Optional, Union

import numpy as np
import tensorflow as tf

from shatter_tf.encoders.bpt.config import BptConfig

GROUP = 16  # the least G

Size = Union[int, tf.Tensor]  # of an axis; a tensor where it is not known when the graph is made


class Level(NamedTuple):
    """A level of the tree: j, S, and the distance of the nearest nodes that are read, d_j, but 0 for tokens."""

    height: int
    states: int
    nearest: int


class Band(NamedTuple):
    """Levels whose nodes tokens read in groups of G, and whose spans read those tokens."""

    group: int
    levels: list[Level]


def bands(config: BptConfig, length: Optional[int]) -> list[Band]:
    """Returns the bands of sequences of `length` tokens, of any length if None; the last is the root, which no token reads.

    Example:
    >>> [(band.group, [level.height for level in band.levels]) for band in bands(BptConfig(neighbors=4), length=512)]
    [(16, [0, 1, 2, 3]), (16, [4]), (32, [5]), (64, [6]), (128, [7]), (512, [9])]
    """
    length = length or config.max_sequence_length
    root = max(1, (length - 1).bit_length())  # that of a single token is a span, too
    near, far, nearest = [Level(0, 1, 0)], [], 1
    for height in range(1, root):
        nearest = (nearest + config.neighbors) // 2
        if nearest <= (length - 1) >> height:
            (near if 1 << height < GROUP else far).append(Level(height, config.span_states, nearest))
    far.append(Level(root, config.span_states, nearest))
    return [Band(GROUP, near), *(Band(1 << level.height, [level]) for level in far)]


def levels(config: BptConfig, length: Optional[int]) -> list[Level]:
    """Returns the levels of all bands, from the tokens' to the root's."""
    return [level for band in bands(config, length) for level in band.levels]


def numbers_of_states(config: BptConfig, packs: tf.Tensor) -> list[Size]:
    """Returns n S for every level."""
    length = axis_size(packs, 1)
    return [level.states * -(-length // (1 << level.height)) for level in levels(config, packs.shape[1])]


def relation_types(config: BptConfig, band: Band) -> np.ndarray:
    """Returns the type of each column for each token of a group, int [G, C]; -1 where it is not read.

    Each of the levels 0 … clip has 2k + 1 types: self, then the left side's c = 0 … k - 1, then the right side's.

    Source: the edges and types of the authors' code, but for a bug: where a level has an odd number of nodes, it also
    reads the missing right child of the last one, which is another span.
    """
    k, types = config.neighbors, []
    for level in band.levels:
        own, above = (min(j, config.clip_level) * (2 * k + 1) for j in (level.height, level.height + 1))
        column = np.arange((band.group >> level.height) + k + 1)
        i = np.arange(band.group)[:, np.newaxis]
        # The right side is the left side of -1 - i among nodes -1 - u.
        for i, node, first in ((i, column - level.nearest - k - 1, 1), (-1 - i, -1 - column - level.nearest, 1 + k)):
            nearest, skipped = i - 1, 0
            for _ in range(level.height):
                nearest, skipped = (nearest - k) // 2, 1 - (nearest - k) % 2
            c = nearest - node
            read = np.logical_and(c >= skipped, c <= k - (nearest - k) % 2)
            types.append(np.where(read, np.where(c < k, own + c, above) + first, -1))
            if not level.height and first == 1:
                types[-1][c == -1] = 0
    return np.concatenate(types, axis=1)


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


def masks(config: BptConfig, packs: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns what tokens and spans read in their own documents; padding is not read and reads nothing.

    Returns:
      bool [B, 1, L, sum of all bands' C], and for each band bool [B, 1, N, its spans' states in a group, G].
    """
    numbers = {level.height: documents(packs, level) for level in levels(config, packs.shape[1])}
    of_tokens, of_spans = [], []
    for band in bands(config, packs.shape[1]):
        tokens = grouped(numbers[0], band.group)
        nodes = windows(config, band, numbers)
        if nodes is not None:
            read = tf.logical_and(_same_document(tokens, nodes), relation_types(config, band) >= 0)
            of_tokens.append(ungrouped(read, axis_size(packs, 1)))

        height = np.concatenate([np.full(size, level.height) for level, size in spans_of(band)])
        span = np.concatenate([np.arange(size) // level.states for level, size in spans_of(band)])
        own = np.arange(band.group) >> height[:, np.newaxis] == span[:, np.newaxis]
        of_spans.append(tf.logical_and(_same_document(spans(band, numbers), tokens), own))
    return tf.concat(of_tokens, axis=-1), of_spans


def _same_document(queries: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
    nodes = tf.linalg.matrix_transpose(nodes)
    return tf.logical_and(queries == nodes, nodes > 0)


def windows(config: BptConfig, band: Band, nodes: dict[int, tf.Tensor]) -> Optional[tf.Tensor]:
    """Returns the nodes that groups of tokens read, [B, H, N, C, K], zeros beyond the ends; None for the root's band.

    Args:
      band: the levels.
      nodes: [B, H, n S, K] by level.
    """
    number = -(-axis_size(nodes[0], 2) // band.group)
    return tf.concat([side for level in band.levels for side in _sides(config, level, band.group, number, nodes)], axis=3)
