"""BP-Transformer in NumPy: its graph as lists of edges, and states of spans in dictionaries, one document at a time."""

import numpy as np


def left_edges(i: int, first: int, k: int, clip: int) -> dict[tuple[int, int], tuple[int, int]]:
    """What token i reads on its left down to token `first`: (level, c) of each node (its first token, its size).

    A walk outwards from token i. Nothing to the left of `begin` is read yet, everything from there to i is.
    """
    found, begin, level, c = {}, i, 0, 0
    while begin > first:
        size = 2**level
        while c < k and begin > first:
            begin -= size
            found[begin, size] = min(level, clip), c
            c += 1
        c = 0
        if begin > first and begin % (2 * size):  # the parent would overlap: its left child stands in for it
            begin -= size
            found[begin, size] = min(level + 1, clip), 0
            c = 1
        level += 1
    return found


def edges(i: int, length: int, k: int, clip: int) -> dict[tuple[int, int], int]:
    """The type's row in the table of relations for each node that token i reads."""
    left = left_edges(i, 0, k, clip)
    mirrored = left_edges(-1 - i, -length, k, clip)
    row = 2 * k + 1
    return {
        (i, 1): 0,
        **{node: level * row + 1 + c for node, (level, c) in left.items()},
        **{(-begin - size, size): level * row + 1 + k + c for (begin, size), (level, c) in mirrored.items()},
    }


def span_nodes(length: int) -> list[tuple[int, int]]:
    """All spans that hold a token, level by level up to one that holds all."""
    nodes, size = [], 1
    while size == 1 or size < length:
        size *= 2
        nodes += [(begin, size) for begin in range(0, length, size)]
    return nodes


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def layer_norm(x, gamma, beta):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-12) * gamma + beta


def read(q, keys, values, heads):
    """Concatenated heads' softmax(q . k / sqrt(K)) v; keys are [nodes, D]."""
    per_head = [np.split(t, heads, axis=-1) for t in (q, keys, values)]
    return np.concatenate([softmax(k @ q / np.sqrt(len(q))) @ v for q, k, v in zip(*per_head, strict=True)])


def block(states: dict, packs: np.ndarray, weights: dict, heads: int, k: int, clip: int) -> dict:
    """One block's new states. `states` is keyed by (first token, size, document); tokens have size 1."""
    query, key, value = ({node: h @ weights[name] for node, h in states.items()} for name in ("wq", "wk", "wv"))
    new = {}
    for (begin, size, document), h in states.items():
        if size == 1:
            types = {(*node, document): t for node, t in edges(begin, len(packs), k, clip).items()}
            nodes = [node for node in types if node in states]
            relations = [np.tile(weights["relations"][types[node]], heads) for node in nodes]
            keys = np.array([key[node] + r for node, r in zip(nodes, relations, strict=True)])
        else:
            nodes = [node for node in states if node[1:] == (1, document) and begin <= node[0] < begin + size]
            keys = np.array([key[node] for node in nodes])
        y = read(query[begin, size, document], keys, np.array([value[node] for node in nodes]), heads)

        h = layer_norm(h + y @ weights["wo"], weights["g1"], weights["b1"])
        y = np.maximum(h @ weights["w1"] + weights["c1"], 0) @ weights["w2"] + weights["c2"]
        new[begin, size, document] = layer_norm(h + y, weights["g2"], weights["b2"])
    return new


def first_states(h: np.ndarray, packs: np.ndarray) -> dict:
    """What the first block gets: tokens' vectors, [L, D], and zeros for every document of every span."""
    states = {(i, 1, pack): h[i] for i, pack in enumerate(packs) if pack}
    for begin, size in span_nodes(len(packs)):
        for document in sorted({pack for pack in packs[begin : begin + size] if pack}):
            states[begin, size, document] = np.zeros_like(h[0])
    return states


def dense(h, relations, weights, heads, k):
    """A block's attention where every token reads every other by itself: Shaw et al. 2018, relative keys only."""
    q, keys, v = (h @ weights[name] for name in ("wq", "wk", "wv"))
    y = []
    for i in range(len(h)):
        rows = [0 if j == i else i - j if j < i else k + j - i for j in range(len(h))]
        y.append(read(q[i], keys + np.tile(relations[rows], heads), v, heads))
    return np.array(y) @ weights["wo"]
