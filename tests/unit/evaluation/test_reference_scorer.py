"""Rows without a reference, and empty texts."""

import numpy as np
import pytest

from xrec.evaluation.reference_scorer import ReferenceScorer, full_pairs


def lengths(predictions, references):
    assert all(p.strip() and r.strip() for p, r in zip(predictions, references, strict=True))
    return {"a": np.array([len(p) for p in predictions]), "b": np.array([len(r) for r in references])}


@pytest.mark.parametrize("worst", [0.0, -7.0, np.nan])
def test_the_function_sees_full_pairs_alone(worst):
    scorer = ReferenceScorer(("a", "b"), lengths, {"model": "m"}, worst)
    rows = {"explanation": ["one", "", "two", "fo ur", "\n"], "reference": ["1", "x", None, "22", None]}
    found = scorer.score(rows)
    np.testing.assert_array_equal(found["a"], [3, worst, np.nan, 5, np.nan])
    np.testing.assert_array_equal(found["b"], [1, worst, np.nan, 2, np.nan])
    # A row without a reference is not compared, so it is no empty one.
    assert scorer.facts() == {"model": "m", "empty": 1}
    scorer.score(rows)
    assert scorer.facts()["empty"] == 2


def test_no_row_at_all():
    scorer = ReferenceScorer(("a", "b"), lengths)
    assert scorer.score({"explanation": [], "reference": []})["a"].shape == (0,)
    assert scorer.score({"explanation": [""], "reference": ["x"]})["a"].tolist() == [0]


def test_full_pairs():
    assert full_pairs(["a", " ", "a", ""], ["b", "b", "\n", ""]).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        full_pairs(["a", "b"], ["c"])
