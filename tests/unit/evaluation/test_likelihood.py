"""Likelihood figures against a bigram model whose probabilities are known in closed form."""

import numpy as np
import pytest

from xrec.evaluation.likelihood import Likelihood, reference_likelihood

PROBABILITY = {"true": 0.5, "shuffled": 0.25, "off": 0.125}


class CountingModel:
    """Every word costs -log p, p known by signal; remembers how it was called."""

    def __init__(self, uneven: bool = False):
        self.calls, self.uneven = [], uneven

    def negative_log_likelihood(self, pairs, texts, signal):
        self.calls.append((signal, len(pairs)))
        tokens = np.array([len(t.split()) + (self.uneven and signal == "off") for t in texts])
        return -tokens * np.log(PROBABILITY[signal]), tokens


PAIRS = [(u, u + 1) for u in range(10)]
TEXTS = ["word " * (n + 1) for n in range(10)]


def test_nats_per_token_and_paired_difference_in_closed_form():
    likelihood = reference_likelihood(CountingModel(), PAIRS, TEXTS)
    signals, differences = likelihood.intervals(resamples=200, seed=0)
    for signal, interval in signals.items():
        assert interval.value == pytest.approx(-np.log(PROBABILITY[signal]))
    # Every token differs by the same amount, so every resample gives the same ratio.
    assert differences["shuffled"].value == pytest.approx(np.log(2))
    assert differences["shuffled"].low == pytest.approx(np.log(2))
    assert differences["off"].high == pytest.approx(2 * np.log(2))


def test_is_weighted_by_tokens_not_by_examples():
    likelihood = Likelihood({"true": np.array([1.0, 30.0]), "shuffled": np.array([2.0, 30.0])}, np.array([1, 9]))
    signals, differences = likelihood.intervals(resamples=100, seed=0)
    assert signals["true"].value == pytest.approx(31 / 10)
    assert differences["shuffled"].value == pytest.approx(1 / 10)


def test_goes_batch_by_batch_and_reports_progress():
    model, done = CountingModel(), []
    whole = reference_likelihood(CountingModel(), PAIRS, TEXTS, batch_size=100)
    parts = reference_likelihood(model, PAIRS, TEXTS, batch_size=4, progress=done.append)
    assert model.calls[:3] == [("true", 4), ("true", 4), ("true", 2)]
    assert sum(done) == 30
    for signal in PROBABILITY:
        np.testing.assert_array_equal(parts.nll[signal], whole.nll[signal])


def test_other_token_counts_are_refused():
    with pytest.raises(ValueError, match="'off' has other token counts"):
        reference_likelihood(CountingModel(uneven=True), PAIRS, TEXTS)


@pytest.mark.parametrize(("pairs", "texts"), [([], []), (PAIRS, TEXTS[:3])])
def test_pairs_and_texts_must_match(pairs, texts):
    with pytest.raises(ValueError, match="pairs and"):
        reference_likelihood(CountingModel(), pairs, texts)
