"""research/few_rows.py: as many rows of each class as are asked for, the same for a seed."""

import collections
import pathlib

import pytest


@pytest.fixture
def draw(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "research")
    from few_rows import draw

    return draw


def test_rows_of_each_class(draw):
    rows = [f"text {i}\t{'abc'[min(i % 4, 2)]}" for i in range(80)]
    drawn = draw("\n".join(rows) + "\n", 7, seed=1).splitlines()
    assert set(drawn) <= set(rows)
    assert len(set(drawn)) == len(drawn)
    assert collections.Counter(row[-1] for row in drawn) == dict(a=7, b=7, c=7)
    assert draw("\n".join(rows), 7, seed=1).splitlines() == drawn
    assert draw("\n".join(rows), 7, seed=2).splitlines() != drawn


def test_sentences(draw):
    text = "".join(f"the\tD\nword{i}\tN\n\n" for i in range(9))
    drawn = draw(text, 4, seed=0).strip().split("\n\n")
    assert len(set(drawn)) == 4
    assert all(f"{sentence}\n\n" in text for sentence in drawn)
