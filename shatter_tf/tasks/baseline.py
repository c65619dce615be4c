"""What simple models achieve on a run's own rows: figures for it to beat, measured in seconds.

TF-IDF weighs the words and pairs of neighboring words of a text, and a linear model learns from these. Of a pair of
texts it is given the weights of both, and their products, which tell what the texts have in common. Nothing is tuned.
"""

import hashlib
import time
import warnings
from typing import Optional

import numpy as np
from scipy import sparse

from shatter_tf.data.labelled import Row
from shatter_tf.tasks.base import Data

TITLES = dict(tf_idf="TF-IDF with a linear model", majority="guessing the majority")

# More training text would take longer than about 20 seconds on one core, and a GB of memory.
MOST_CHARACTERS = 30_000_000
# With more labels, each with weights of its own, fewer characters.
_MOST_LABELS = 8


def measure(config, data: Data, most_rows: Optional[int] = None, before: Optional[dict] = None) -> dict:
    """Returns what simple models that learn from the training rows achieve on the validation rows.

    Args:
      config: a ClassifyConfig: says which models these are, what they learn, and how they are scored.
      data: of the run, labelled rows.
      most_rows: how many validation rows the run is evaluated on; None for all.
      before: what this function returned earlier; it is returned again if it is about the same rows.

    Returns:
      A figure for each of the config's `simple_models`; `rows`, on which they are measured; `training_rows`, which they
      learn from, and `all_training_rows`; `seconds` it took; and `data`, a hash of all that the figures depend on.
    """
    begin = time.monotonic()
    validation = data.validation[:most_rows]
    goals = [config.targets(rows) for rows in (data.train, validation)]
    digest = _hash(f"{config.main_metric} {config.train_data.seed}", [data.train, validation], goals)
    if before and before.get("data") == digest:
        return before

    most = MOST_CHARACTERS * min(1.0, _MOST_LABELS / config.model.num_classes)
    chosen = draw(data.train, int(most), config.train_data.seed)
    train = [data.train[i] for i in chosen]
    inputs = _features(train, validation)
    figures = {
        name: float(config.score(goals[1], _predict(model, inputs, goals[0][chosen])))
        for name, model in config.simple_models().items()
    }
    return dict(
        **figures,
        rows=len(validation),
        training_rows=len(train),
        all_training_rows=len(data.train),
        seconds=round(time.monotonic() - begin, 1),
        data=digest,
    )


def describe(metric: str, value: float, baseline: dict) -> list[str]:
    """Returns lines that compare a run with what `measure` returned.

    Example:
    >>> baseline = dict(tf_idf=0.75, majority=0.5, rows=1000, training_rows=80, all_training_rows=90)
    >>> for line in describe("f1", 0.7, baseline):
    ...     print(line)
    f1 on 1,000 validation rows: this run 0.700, TF-IDF with a linear model 0.750, guessing the majority 0.500
    (80 of 90 training rows were drawn for these; more would take too long)
    TF-IDF does as well or better on these rows: pretrain longer or on more text, or use that
    """
    titles = {**TITLES, "tf_idf": baseline.get("title", TITLES["tf_idf"])}
    figures = {titles[name]: baseline[name] for name in titles if name in baseline}
    compared = ", ".join(f"{title} {figure:.3f}" for title, figure in {"this run": value, **figures}.items())
    lines = [f"{metric} on {baseline['rows']:,} validation rows: {compared}"]
    if baseline["training_rows"] < baseline["all_training_rows"]:
        rows = f"{baseline['training_rows']:,} of {baseline['all_training_rows']:,} training rows"
        lines.append(f"({rows} were drawn for these; more would take too long)")

    if value <= baseline.get("majority", -np.inf):
        lines.append("this run is no better than guessing: try another learning rate, or more steps")
    elif value <= baseline["tf_idf"]:
        lines.append("TF-IDF does as well or better on these rows: pretrain longer or on more text, or use that")
    return lines


def draw(rows: list[Row], most_characters: int, seed: int) -> np.ndarray:
    """Returns the places of randomly drawn rows, int64 [rows], in order; all, if their texts are short enough."""
    order = np.random.default_rng(seed).permutation(len(rows))
    characters = np.cumsum([sum(map(len, rows[i].texts)) for i in order])
    return np.sort(order[: max(1, np.searchsorted(characters, most_characters, side="right"))])


def _hash(settings: str, parts: list[list[Row]], goals: list[np.ndarray]) -> str:
    digest = hashlib.sha256(settings.encode())
    for rows, targets in zip(parts, goals, strict=True):
        digest.update(targets.tobytes())
        for row in rows:
            digest.update("\t".join(("", *row.texts)).encode())
    return digest.hexdigest()[:16]


def _features(train: list[Row], validation: list[Row]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Returns the features of training and of validation rows, [rows, features]."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here, because it takes long, and training needs none

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    try:
        return _of_columns(vectorizer.fit_transform, train), _of_columns(vectorizer.transform, validation)
    except ValueError:  # no text has a word of at least two letters: there is nothing to learn from
        return sparse.csr_array((len(train), 1)), sparse.csr_array((len(validation), 1))


def _of_columns(vectorize, rows: list[Row]) -> sparse.csr_array:
    columns = list(zip(*(row.texts for row in rows), strict=True))
    weights = sparse.csr_array(vectorize([text for column in columns for text in column]))
    blocks = [weights[i * len(rows) : (i + 1) * len(rows)] for i in range(len(columns))]
    if len(blocks) == 2:
        blocks.append(blocks[0].multiply(blocks[1]))
    return sparse.hstack(blocks, "csr")


def _predict(model, inputs: tuple[sparse.csr_array, sparse.csr_array], targets: np.ndarray) -> np.ndarray:
    """Returns a model's predictions for the second inputs, [rows], after it has learned from the first."""
    from sklearn.exceptions import ConvergenceWarning

    train, validation = inputs
    if np.ptp(targets) == 0:  # a classifier would refuse to learn
        return np.full(validation.shape[0], targets[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it predicts well enough before
        return model.fit(train, targets).predict(validation)
