"""How well texts find what belongs to them: figures of all rows of an evaluation, and what TF-IDF reaches on these.

Every row is an anchor and its positive. Each anchor looks for its positive among the distinct positives of all rows, by
the product of their vectors. Left out is what it must not be blamed for: other positives of an equal anchor, and a
text that equals the anchor itself.
"""

import hashlib
import time
from typing import Optional, Union

import numpy as np
from scipy import sparse

from shatter_tf.data.labelled import Row, label_numbers
from shatter_tf.data.pairs import number_texts
from shatter_tf.tasks import baseline

Vectors = Union[np.ndarray, sparse.csr_array]

_CHUNK = 256  # anchors at a time: with 20,000 positives, 20 MB


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., D] divided by their lengths, in their own dtype; those without a direction stay zero.

    Example:
    >>> unit_length(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def ranks(anchors: Vectors, positives: Vectors, text_ids: np.ndarray) -> np.ndarray:
    """Returns the place of each row's positive among all, from 1 on, float64 [N].

    It is 1, and 1 for every other text that is nearer to the anchor, and a half for every one that is as near: vectors
    that are all alike find nothing. A row whose vectors are not finite has the place infinity.

    Args:
      anchors, positives: of N rows, [N, D], dense or sparse.
      text_ids: of both texts of each row, int [N, 2], the same for equal texts.

    Example:
    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    >>> ranks(vectors, vectors[[0, 2, 1]], np.array([[0, 1], [2, 3], [4, 5]])).tolist()
    [1.0, 2.0, 3.0]
    """
    _, first, target = np.unique(text_ids[:, 1], return_index=True, return_inverse=True)
    place_of = {text: place for place, text in enumerate(text_ids[first, 1].tolist())}
    documents = positives[first].T

    not_sought: dict[int, set[int]] = {}  # by the number of an anchor's text
    for anchor, place in zip(text_ids[:, 0].tolist(), target.tolist(), strict=True):
        not_sought.setdefault(anchor, {place_of[anchor]} if anchor in place_of else set()).add(place)

    found = np.empty(len(text_ids))
    for begin in range(0, len(text_ids), _CHUNK):
        rows = np.arange(begin, min(begin + _CHUNK, len(text_ids)))
        scores = anchors[rows] @ documents
        scores = scores.toarray() if sparse.issparse(scores) else scores
        own = scores[rows - begin, target[rows]]
        for i, anchor in enumerate(text_ids[rows, 0].tolist()):
            scores[i, [*not_sought[anchor]]] = -np.inf

        nearer = np.sum(scores > own[:, np.newaxis], axis=1)
        as_near = np.sum(scores == own[:, np.newaxis], axis=1)
        found[rows] = np.where(np.isfinite(own), 1 + nearer + as_near / 2, np.inf)
    return found


def figures(places: np.ndarray) -> dict[str, float]:
    """Returns the figures of search by name, from the places of N positives [N], counted from 1.

    `recall_at_K` is the share among the first K; `mrr` the mean of 1 / place; `ndcg_at_10` that of 1 / log2(1 + place)
    for the first ten and 0 for others, the normalized discounted cumulative gain where one text is sought (Järvelin and
    Kekäläinen 2002).

    Example:
    >>> figures(np.array([1, 3, 20, 1]))
    {'recall_at_1': 0.5, 'recall_at_10': 0.75, 'mrr': 0.5958333333333333, 'ndcg_at_10': 0.625}
    """
    gains = np.where(places <= 10, 1 / np.log2(1 + places), 0)
    means = dict(recall_at_1=places <= 1, recall_at_10=places <= 10, mrr=1 / places, ndcg_at_10=gains)
    return {name: float(np.mean(values)) for name, values in means.items()}


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosine of each row's two vectors, both [N, D]: [N]."""
    return np.sum(unit_length(first) * unit_length(second), axis=-1)


def spearman(numbers: np.ndarray, others: np.ndarray) -> float:
    """Returns Spearman's correlation of numbers, both [N]; 0 where either is constant or not finite.

    Example:
    >>> spearman(np.array([1, 2, 3]), np.array([10, 20, 900])), spearman(np.array([1, 2]), np.array([5, 5]))
    (1.0, 0.0)
    """
    from scipy import stats  # here, because it takes long, and other tasks do not need it

    varied = np.ptp(numbers) > 0 and np.ptp(others) > 0  # nothing correlates with a constant, or with NaN
    return float(stats.spearmanr(numbers, others)[0]) if varied else 0.0


def measure_tf_idf(
    train: list[Row], validation: list[Row], metric: str, seed: int, before: Optional[dict] = None
) -> dict:
    """Returns what the cosine of TF-IDF weights achieves, in the form of `baseline.measure`.

    Args:
      train: rows whose texts weigh words and pairs of words.
      validation: rows of two texts or more; where they have a label, pairs with a score.
      metric: the figure that is wanted: one of `figures`, or "spearman".
      seed: of the draw, where there are more training texts than can be weighed in seconds.
      before: what this function returned earlier; it is returned again if it is about the same rows.
    """
    begin = time.monotonic()
    digest = hashlib.sha256(f"{metric} {seed}".encode())
    for row in (*train, None, *validation):
        digest.update("\t".join(("", *row.texts, row.label)).encode() if row else b"\n")
    data = digest.hexdigest()[:16]
    if before and before.get("data") == data:
        return before

    chosen = baseline.draw(train, baseline.MOST_CHARACTERS, seed)
    anchors, positives = _tf_idf([text for i in chosen for text in train[i].texts], validation)
    if metric == "spearman":
        value = spearman(label_numbers(validation), np.ravel(anchors.multiply(positives).sum(axis=1)))
    else:
        value = figures(ranks(anchors, positives, number_texts(validation)[:, :2]))[metric]
    return dict(
        tf_idf=value,
        title="cosine of TF-IDF",
        rows=len(validation),
        training_rows=len(chosen),
        all_training_rows=len(train),
        seconds=round(time.monotonic() - begin, 1),
        data=data,
    )


def _tf_idf(texts: list[str], rows: list[Row]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Returns the weights of the rows' first and second texts, of length 1, [rows, features], learned from `texts`."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here, because it takes long

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    try:
        vectorizer.fit(texts)
    except ValueError:  # no text has a word of at least two letters
        return sparse.csr_array((len(rows), 1)), sparse.csr_array((len(rows), 1))
    first, second = (sparse.csr_array(vectorizer.transform([row.texts[i] for row in rows])) for i in range(2))
    return first, second
