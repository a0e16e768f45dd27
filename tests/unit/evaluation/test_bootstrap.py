"""Bootstrap intervals against scipy, against the normal approximation, and their coverage of a known truth."""

import numpy as np
import pytest
from scipy import stats

from xrec.evaluation.bootstrap import mean_intervals, ratio_intervals


@pytest.fixture
def sample():
    generator = np.random.default_rng(1)
    tokens = generator.integers(5, 60, 400).astype(float)
    return generator.normal(0.03 * tokens, 1.0), tokens


def test_ratio_interval_equals_scipys_paired_percentile_bootstrap(sample):
    difference, tokens = sample
    (own,) = ratio_intervals(difference[:, None], tokens[:, None], resamples=20_000, seed=3)
    other = stats.bootstrap(
        (difference, tokens),
        _ratio_of_sums,
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(4),
    ).confidence_interval
    width = other.high - other.low
    assert own.value == pytest.approx(difference.sum() / tokens.sum())
    assert own.low == pytest.approx(other.low, abs=0.03 * width)
    assert own.high == pytest.approx(other.high, abs=0.03 * width)
    assert own.rows == 400


def test_ratio_interval_equals_the_delta_method(sample):
    """Linearised variance of a ratio estimator (Cochran 1977, eq. 6.13)."""
    difference, tokens = sample
    (own,) = ratio_intervals(difference[:, None], tokens[:, None], resamples=20_000)
    residual = difference - own.value * tokens
    error = np.sqrt((residual**2).mean() / len(tokens)) / tokens.mean()
    assert own.high - own.low == pytest.approx(2 * 1.96 * error, rel=0.04)


def test_mean_interval_covers_the_truth_at_its_nominal_rate():
    generator = np.random.default_rng(5)
    samples = generator.exponential(2.0, size=(120, 300))
    intervals = mean_intervals(samples, resamples=600)
    covered = np.mean([i.low <= 2.0 <= i.high for i in intervals])
    # Binomial(300, 0.95) is in this range but for one time in a thousand; the percentile method is a little narrow.
    assert 0.89 <= covered <= 0.99


def test_missing_scores_take_no_part():
    scores = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 7.0]])
    first, second = mean_intervals(scores, resamples=200)
    assert (first.value, first.rows) == (2.0, 2)
    assert (second.value, second.rows) == (6.0, 2)
    assert 1.0 <= first.low <= first.high <= 3.0


def test_chunks_give_the_same_as_one_pass(sample, monkeypatch):
    difference, tokens = (a[:, None] for a in sample)
    (whole,) = ratio_intervals(difference, tokens, resamples=100, seed=9)
    monkeypatch.setattr("xrec.evaluation.bootstrap._WEIGHTS_AT_ONCE", 1000)
    (parts,) = ratio_intervals(difference, tokens, resamples=100, seed=9)
    assert [parts.low, parts.high] == pytest.approx([whole.low, whole.high], rel=1e-9)


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [
        (np.ones(3), np.ones(3), r"must both be \[n, K\]"),
        (np.ones((0, 1)), np.ones((0, 1)), "no example"),
        (np.array([[np.nan]]), np.ones((1, 1)), r"numerators\[0, 0\] = nan"),
        (np.ones((2, 1)), np.array([[1.0], [-1.0]]), "negative"),
        (np.ones((2, 2)), np.array([[1.0, 0.0], [1.0, 0.0]]), "figure 1 has no example"),
    ],
)
def test_bad_input_is_refused(numerators, denominators, message):
    with pytest.raises(ValueError, match=message):
        ratio_intervals(numerators, denominators)


def _ratio_of_sums(numerator, denominator, axis):
    return numerator.sum(axis=axis) / denominator.sum(axis=axis)
