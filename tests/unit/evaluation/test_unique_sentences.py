"""The unique sentence ratio on hand-counted cases and on the published predictions."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrec.data.unpickling import load_plain
from xrec.evaluation.unique_sentences import grouped_unique_sentence_ratio, unique_sentence_ratio


def test_hand_counted():
    assert unique_sentence_ratio(["a b", "a b", "a  b ", "c"]) == 2 / 4
    assert unique_sentence_ratio(["one"]) == 1.0


def test_case_and_punctuation_make_a_difference():
    assert unique_sentence_ratio(["Good food.", "good food.", "Good food"]) == 1.0


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="empty"):
        unique_sentence_ratio([])


def test_each_group_counts_the_same():
    texts, users = ["a", "a", "a", "b", "a"], ["u", "u", "u", "u", "v"]
    assert grouped_unique_sentence_ratio(texts, users) == (2 / 4 + 1) / 2
    assert grouped_unique_sentence_ratio(texts, [0] * 5) == unique_sentence_ratio(texts)
    assert grouped_unique_sentence_ratio(texts, range(5)) == 1.0


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c  d", "c d "]), st.integers(0, 3)), min_size=1, max_size=20))
def test_groups_against_a_loop_over_each(pairs):
    ratios = []
    for group in {g for _, g in pairs}:
        texts = [t.split() for t, g in pairs if g == group]
        ratios.append(Fraction(sum(t not in texts[:k] for k, t in enumerate(texts)), len(texts)))
    found = grouped_unique_sentence_ratio([t for t, _ in pairs], [g for _, g in pairs])
    assert found == pytest.approx(float(sum(ratios) / len(ratios)))


def test_groups_need_a_text_each():
    with pytest.raises(ValueError, match="0 texts and 0 groups"):
        grouped_unique_sentence_ratio([], [])
    with pytest.raises(ValueError, match="1 texts and 2 groups"):
        grouped_unique_sentence_ratio(["a"], [1, 2])


@pytest.mark.parametrize("dataset", ["yelp", "amazon"])
def test_published_predictions_reach_the_papers_figure(release_data, dataset):
    """The paper reports a USR of 1.0000 on both datasets (arXiv 2406.02377, Table 2)."""
    texts = load_plain(release_data / "xrec-release" / dataset / "tst_pred.pkl")
    assert len(texts) == 3000
    assert round(unique_sentence_ratio(texts), 4) == 1.0
