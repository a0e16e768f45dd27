"""Distinct-n on hand-counted cases and against scikit-learn's n-gram counter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from xrec.evaluation.distinct import distinct_n, words


def test_hand_counted():
    texts = ["the food is good", "the food is great"]
    assert distinct_n(texts, 1) == 5 / 8
    assert distinct_n(texts, 2) == 4 / 6


def test_no_gram_spans_two_texts():
    assert distinct_n(["a b", "c d"], 2) == 1.0
    assert distinct_n(["a", "b"], 2) == 0.0


def test_words_keep_apostrophes_and_drop_punctuation():
    assert words("Don't miss: the CHEF’s menu!") == ["don't", "miss", "the", "chef’s", "menu"]


@given(st.lists(st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), min_size=2, max_size=8), min_size=1, max_size=6))
def test_equals_an_independent_count(texts):
    joined = [" ".join(t) for t in texts]
    for n in (1, 2):
        counts = CountVectorizer(ngram_range=(n, n), token_pattern=r"\S+").fit_transform(joined)
        assert distinct_n(joined, n) == counts.shape[1] / counts.sum()


def test_n_below_one_is_refused():
    with pytest.raises(ValueError, match="n = 0"):
        distinct_n(["a"], 0)
