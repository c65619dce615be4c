"""What is said about the data before the first step."""

import json

import numpy as np
import pytest

from shatter_tf.data.report import Report, alike, check_vocabulary
from shatter_tf.data.tokenizer import Tokenizer
from shatter_tf.data.vocabulary import SPECIAL_TOKENS
from shatter_tf.errors import UserError
from shatter_tf.training import job, run_dir


@pytest.fixture
def tokenizer():
    return Tokenizer([*SPECIAL_TOKENS, "the", "cat", "dog"], lower_case=True)


def warnings_of(**parts):
    report = Report()
    for name, arguments in parts.items():
        getattr(report, name)(*arguments)
    return " | ".join(report.warnings), " | ".join(report.problems), report


def test_lengths_and_what_is_cut(tokenizer):
    texts = ["the"] * 5 + ["the cat"] * 3 + ["the " * 6] * 2
    warnings, problems, report = warnings_of(add_lengths=(texts, tokenizer, 4, "read more"))
    tokens = report.facts["tokens"]
    assert (tokens["median"], tokens["ninety_percent"], tokens["longest"]) == (2, 6, 6)
    assert tokens["cut"] == pytest.approx(0.2)
    assert tokens["read"] == pytest.approx((5 + 6 + 8) / (5 + 6 + 12))
    assert "only 83% of the text is read; read more" in warnings
    assert not problems
    warnings, *_ = warnings_of(add_lengths=(texts, tokenizer, 6, "read more"))
    assert not warnings


def test_unknown_wordpieces(tokenizer):
    for known, warned, refused in ((1.0, False, False), (0.98, True, False), (0.4, True, True)):
        words = ["cat"] * round(100 * known) + ["xyz"] * round(100 * (1 - known))
        warnings, problems, report = warnings_of(add_lengths=([" ".join(words)], tokenizer))
        assert report.facts["unknown"] == pytest.approx(1 - known)
        assert bool(warnings or problems) == warned
        assert bool(problems) == refused
    assert check_vocabulary(["the cat " * 50], tokenizer, "vocab.txt") is None
    assert "vocab.txt: 4.8%" in check_vocabulary(["the cat " * 9 + "xyz"], tokenizer, "vocab.txt")  # 1 of 19 + 2
    with pytest.raises(UserError, match=r"vocab.txt: 8\d"):
        check_vocabulary(["xyz " * 10], tokenizer, "vocab.txt")


def test_labels_that_look_wrong():
    warnings, *_ = warnings_of(add_labels=(["pos", "Pos", "neg", "pos\u00a0"], ["pos", "neg"], 4))
    assert "'pos', 'Pos', 'pos\\xa0'" in warnings
    assert alike(["é", "e\u0301", "a"]) == [["é", "e\u0301"]]
    warnings, *_ = warnings_of(add_labels=(["a"] * 95 + ["b"] * 5, ["a", "b"], 100))
    assert "95.0% of the training rows have the label 'a'" in warnings
    warnings, *_ = warnings_of(add_labels=(["a", "b"], ["a", "a"], 2))
    assert "every validation row has the label 'a'" in warnings
    warnings, *_ = warnings_of(add_labels=(["a", "b", "c"], ["a", "b"], 3))
    assert "no validation row has the label 'c'" in warnings
    _, problems, _ = warnings_of(check_distinct=([f"text {i}" for i in range(20)], "train.csv:2"))
    assert "train.csv:2: 20 labels in 20 rows; are the columns swapped?" in problems
    _, problems, _ = warnings_of(check_distinct=([f"{i}.5" for i in range(20)], "train.csv:2"))
    assert "regress" in problems
    _, problems, _ = warnings_of(add_numbers=(np.ones(3),))
    assert "every training row has the number 1" in problems


def test_rows_of_both_parts_are_counted():
    warnings, _, report = warnings_of(add_repeated=([("a",), ("b",)], [("b",), ("b",), ("c",)]))
    assert report.facts["validation_rows_in_train"] == 2
    assert "2" in warnings


def test_the_report_comes_before_the_first_step_and_is_kept(fine_tune, tmp_path, capsys):
    run = fine_tune("shatter/classify", ["the cat\tx", "the dog\ty"] * 4)
    job.report_data(run)
    out, err = capsys.readouterr()
    assert "texts: 8 to train on, 8 to validate on" in out
    assert "labels: x 4, y 4" in out
    assert "validation rows that are training rows, too: 8" in err
    assert run.facts["rows"] == dict(train=8, validation=8)
    run_dir.write(str(tmp_path / "run"), run)
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert facts["labels"]["train"] == {"x": 4, "y": 4}
    assert len(facts["warnings"]) == 1


def test_swapped_columns_are_refused(fine_tune, tmp_path):
    rows = ["text\tlabel", *(f"pos\tthe cat number {i}" for i in range(20))]
    run = fine_tune("shatter/classify", rows)
    with pytest.raises(UserError, match="20 labels in 20 rows"):
        job.report_data(run)
