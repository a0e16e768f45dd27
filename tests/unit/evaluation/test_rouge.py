"""ROUGE against counts and a longest common subsequence written out here, and on hand-made sentences."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrec.evaluation.rouge import RougeScorer, rouge

SENTENCES = st.lists(st.sampled_from(["the", "food", "is", "great", "GREAT!", "music"]), max_size=7).map(" ".join)


def f1(shared, predicted, true):
    return 2 * shared / (predicted + true) if shared else 0.0


def grams(text, n):
    tokens = re.findall("[a-z0-9]+", text.lower())
    return Counter(tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1))


def longest_common(a, b):
    """By trying every subsequence of the shorter side, the longest first."""
    for size in range(len(a), 0, -1):
        for chosen in itertools.combinations(a, size):
            rest = iter(b)
            if all(word in rest for word in chosen):
                return size
    return 0


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=4))
def test_equals_counts_by_hand(pairs):
    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    found = rouge(predictions, references)
    for row, (prediction, reference) in enumerate(pairs):
        for name, n in (("rouge_1", 1), ("rouge_2", 2)):
            ours, theirs = grams(prediction, n), grams(reference, n)
            assert found[name][row] == pytest.approx(f1((ours & theirs).total(), ours.total(), theirs.total()))
        a, b = ([w for (w,) in grams_in_order(t)] for t in (prediction, reference))
        assert found["rouge_l"][row] == pytest.approx(f1(longest_common(a, b), len(a), len(b)))


def grams_in_order(text):
    return [(word,) for word in re.findall("[a-z0-9]+", text.lower())]


def test_words_are_not_stemmed():
    assert rouge(["reading books"], ["read book"])["rouge_1"].tolist() == [0]


def test_columns_leave_out_rows_without_a_reference():
    scorer = RougeScorer()
    rows = {"explanation": ["good food", "x", "", "a"], "reference": ["Good food.", None, "x", " "]}
    found = scorer.score(rows)
    assert set(found) == set(scorer.columns) == {"rouge_1", "rouge_2", "rouge_l"}
    for values in found.values():
        assert values[0] == 1.0
        assert np.isnan(values[1])
        assert values[2:].tolist() == [0, 0]
    assert scorer.facts() == {"stemmed": False, "empty": 2}


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        rouge(["a"], ["a", "b"])
