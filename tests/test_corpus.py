"""research/corpus.py: what is text in the packages' markup, which paragraphs are kept, and where rows go."""

import pathlib

import pytest


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / "research")
    import corpus

    return corpus


def kept(paragraphs):
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]


def test_text_comes_out_of_its_markup(corpus):
    html = "<head><title>no</title></head><p>One <b>two</b> &amp; three.<pre>code</pre><ul><li>four<li>five</ul>"
    assert kept(corpus.sources.html_paragraphs(html)) == ["One two & three.", "four", "five"]
    rst = "Title\n=====\n\n.. note:: no\n\n- See :ref:`the *guide* <guide>` and\n  ``code``.\n\n    x = 1\n"
    assert kept(corpus.sources.rst_paragraphs(rst))[1:] == ["See the guide and code."]
    pod = "=head1 NAME\n\nUse C<print> and L<perlfunc|perlfunc>, B<I<now>>.\n\n    code\n"
    assert kept(corpus.sources.pod_paragraphs(pod)) == ["Use print and perlfunc, now."]


@pytest.mark.parametrize(
    ("paragraph", "strict", "is_prose"),
    [
        ("The cat sat on the mat.", True, True),
        ("The cat sat on the mat", True, False),
        ("The cat sat on the mat", False, True),
        ("Too short.", False, False),
        ("a b c 1 2 3 4 5 6 7 8.", False, False),
        ("{a} <b> = c and d, as e | f, too.", True, False),
        ("Кошка сидит на коврике.", False, False),
    ],
)
def test_which_paragraphs_are_kept(corpus, paragraph, strict, is_prose):
    assert corpus.is_prose(paragraph, least_words=4, strict=strict) == is_prose


def test_a_corpus_and_a_task_are_written(corpus, tmp_path, monkeypatch, capsys):
    def fables(packages):
        assert packages == "packages"
        for i in range(200):
            yield [f"Whoever remembered fox number {i}  said “no” again.", "The end is the same everywhere.", "x"]

    monkeypatch.setattr(corpus, "SOURCES", (corpus.Source(fables, least_words=4, strict=False),))
    corpus.write_corpus("packages", str(tmp_path))
    train, dev = ((tmp_path / f"{name}.txt").read_text().split("\n\n") for name in ("corpus", "corpus_dev"))
    assert (len(train), len(dev)) == (198, 2)
    assert sum(document.count("The end") for document in train + dev) == 1  # only the first of equal paragraphs
    assert ' said "no" again.' in train[0]

    corpus.write_task(tmp_path / "tasks/rt", [corpus.Row("a\tb", "pos", False), corpus.Row("c ", "neg", True)])
    assert (tmp_path / "tasks/rt/train.tsv").read_text() == "a b\tpos\n"
    assert (tmp_path / "tasks/rt/dev.tsv").read_text() == "c\tneg\n"

    monkeypatch.setattr(corpus, "PUBLISHED", {"corpus.txt": "0"})
    corpus.compare(str(tmp_path))
    assert "warning: not as published, from packages of Debian 12.15: corpus.txt" in capsys.readouterr().err
