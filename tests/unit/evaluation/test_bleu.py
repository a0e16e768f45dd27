"""BLEU against its formula written out here and against NLTK's, on words that need no tokenizing."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence_bleu

from xrec.evaluation.bleu import BleuScorer, corpus_bleu, sentence_bleu

WORDS = ["the", "food", "is", "great", "music", "and"]
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)


def by_hand(prediction, reference, orders):
    """Geometric mean of clipped precisions; the k-th order without a match counts 1 / (2^k total)."""
    logs, doublings = [], 0
    for n in range(1, orders + 1):
        ours, theirs = (Counter(tuple(w[k : k + n]) for k in range(len(w) - n + 1)) for w in (prediction, reference))
        if not ours:
            break
        matched = (ours & theirs).total()
        if n == 1 and not matched:
            return 0.0
        doublings += not matched
        logs.append(math.log((matched or 2.0**-doublings) / ours.total()))
    short = min(0.0, 1 - len(reference) / len(prediction))
    return 100 * math.exp(short + sum(logs) / len(logs))


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=5))
def test_equals_the_formula(pairs):
    found = sentence_bleu([" ".join(p) for p, _ in pairs], [" ".join(r) for _, r in pairs])
    for name, orders in (("bleu_1", 1), ("bleu_4", 4)):
        np.testing.assert_allclose(found[name], [by_hand(p, r, orders) for p, r in pairs], rtol=1e-9)


def test_equals_nltk():
    generator = np.random.default_rng(0)
    references = [generator.choice(WORDS, 12).tolist() for _ in range(40)]
    predictions = [[w if generator.random() < 0.8 else "x" for w in r[: generator.integers(8, 13)]] for r in references]
    texts = [" ".join(words) for words in predictions], [" ".join(words) for words in references]
    expected = nltk_corpus_bleu([[r] for r in references], predictions)
    assert corpus_bleu(*texts) == pytest.approx(100 * expected)
    assert 20 < corpus_bleu(*texts) < 95
    found = sentence_bleu(*texts)
    for row, (p, r) in enumerate(zip(predictions, references, strict=True)):
        assert found["bleu_1"][row] == pytest.approx(100 * nltk_sentence_bleu([r], p, weights=(1,)))
        expected = nltk_sentence_bleu([r], p, smoothing_function=SmoothingFunction().method3)
        assert found["bleu_4"][row] == pytest.approx(100 * expected)


def test_case_and_punctuation_count():
    assert sentence_bleu(["Good food ."], ["Good food."])["bleu_4"][0] == pytest.approx(100)
    assert sentence_bleu(["good food."], ["Good food."])["bleu_1"][0] == pytest.approx(100 * 2 / 3)


def test_columns_leave_out_rows_without_a_reference():
    scorer = BleuScorer()
    found = scorer.score({"explanation": ["good food", "x", ""], "reference": ["good food", None, "x"]})
    assert set(found) == set(scorer.columns) == {"bleu_1", "bleu_4"}
    for values in found.values():
        np.testing.assert_allclose(values, [100, np.nan, 0])
    assert scorer.facts() == {"tokenization": "13a", "empty": 1}


def test_empty_texts_count_in_the_corpus_and_an_empty_corpus_is_refused():
    assert corpus_bleu(["", "the food is great"], ["the food is great"] * 2) < 50
    with pytest.raises(ValueError, match="predictions is empty"):
        corpus_bleu([], [])
