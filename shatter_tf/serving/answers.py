"""How `shatter_tf.predict` writes what a signature gives for a text: as JSON that is easy to read.

Outputs are recognized by their names, so that nothing has to know which task a model is of. A format is added with
`register`, here or, for the tasks of other packages, in the module that their entry point names.
"""

from collections.abc import Callable
from typing import Any, Optional

Row = dict[str, Any]

FORMATS: dict[frozenset[str], Callable[[Row], Row]] = {}


def register(*names: str) -> Callable[[Callable[[Row], Row]], Callable[[Row], Row]]:
    """Makes the decorated function the format of outputs that have exactly these names."""

    def decorate(function: Callable[[Row], Row]) -> Callable[[Row], Row]:
        FORMATS[frozenset(names)] = function
        return function

    return decorate


def readable(outputs: Row, asked: Optional[Row] = None) -> Row:
    """Returns a text's outputs in their format; others are left as they are.

    Args:
      outputs: plain values and lists by name.
      asked: what they are the answer to, by name, which the format sees, too.

    Example:
    >>> readable(dict(label="cat", labels=["cat", "dog"], probabilities=[0.9, 0.1]))
    {'label': 'cat', 'probability': 0.9, 'probabilities': {'cat': 0.9, 'dog': 0.1}}
    >>> readable(dict(score=3.5))
    {'score': 3.5}
    """
    function = FORMATS.get(frozenset(outputs))
    return function({**(asked or {}), **outputs}) if function else outputs


@register("label", "labels", "probabilities")
def _label(row: Row) -> Row:
    probabilities = dict(zip(row["labels"], row["probabilities"], strict=True))
    return dict(label=row["label"], probability=max(row["probabilities"]), probabilities=probabilities)


@register("has_label", "labels", "probabilities")
def _labels(row: Row) -> Row:
    chosen = [label for label, has_label in zip(row["labels"], row["has_label"], strict=True) if has_label]
    return dict(labels=chosen, probabilities=dict(zip(row["labels"], row["probabilities"], strict=True)))


@register("tokens", "probabilities")
def _masks(row: Row) -> Row:
    """A dict for each [MASK]. Where other texts of the batch have more masks, tokens are empty."""
    masks = zip(row["tokens"], row["probabilities"], strict=True)
    return dict(masks=[dict(zip(tokens, values, strict=True)) for tokens, values in masks if tokens[0]])


@register("words", "tags", "probabilities")
def _tags(row: Row) -> Row:
    """A dict for each word. Where other texts of the batch have more words, words are empty."""
    tagged = zip(row["words"], row["tags"], row["probabilities"], strict=True)
    return dict(words=[dict(word=word, tag=tag, probability=p) for word, tag, p in tagged if word])


@register("words", "tags", "probabilities", "entities", "starts", "ends", "scores")
def _entities(row: Row) -> Row:
    """The words, and a dict for each entity. Where other texts of the batch have more entities, labels are empty."""
    found = zip(row["entities"], row["starts"], row["ends"], row["scores"], strict=True)
    entities = [dict(label=label, start=start, end=end, score=score) for label, start, end, score in found if label]
    text = row.get("text")
    if text is not None:
        entities = [dict(text=text[entity["start"] : entity["end"]], **entity) for entity in entities]
    return {**_tags(row), "entities": entities}
