"""Percentile bootstrap intervals of means and of ratios of sums, over whole examples (Efron and Tibshirani 1993).

The unit of resampling is the example (a user-item pair); the tokens of one example are never torn apart. Examples that
share a user or an item are taken as independent.
"""

from dataclasses import dataclass

import numpy as np

_WEIGHTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its bootstrap interval.

    Attributes:
        value: the figure on all examples.
        low: lower end.
        high: upper end.
        rows: examples that it rests on.
        p: two-sided p-value of the figure being 0: twice the share of resamples on the other side of 0 or at it, at
            most 1. What it can tell apart is bounded by the number of resamples.
    """

    value: float
    low: float
    high: float
    rows: int
    p: float


def ratio_intervals(
    numerators: np.ndarray, denominators: np.ndarray, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> list[Interval]:
    """Intervals of `sum(numerator) / sum(denominator)` for K figures at once, all from the same resamples.

    A figure per token has the examples' token counts as denominators. A mean has ones, with zeros in both arrays for
    the examples that lack it. A paired difference has the differences as numerators.

    Args:
        numerators: `[n, K]`, finite.
        denominators: `[n, K]`, finite and not negative; an example with 0 takes no part in that figure.
        resamples: bootstrap resamples.
        seed: the same seed gives the same intervals.
        confidence: share of the resamples inside the interval.

    Returns:
        K intervals.

    Raises:
        ValueError: shapes differ, a value is not finite, or a figure has no example.
    """
    numerators, denominators = _checked(numerators, denominators)
    totals = denominators.sum(0)
    if (totals <= 0).any():
        raise ValueError(f"bootstrap: figure {int(np.argmax(totals <= 0))} has no example with a positive denominator")
    n, generator = len(numerators), np.random.default_rng(seed)
    chunk = max(1, _WEIGHTS_AT_ONCE // n)
    ratios = []
    for start in range(0, resamples, chunk):
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(chunk, resamples - start)).astype(np.float64)
        below = counts @ denominators
        # A figure that few examples have may be absent from a resample; that resample then says nothing about it.
        ratios.append(np.divide(counts @ numerators, below, out=np.full_like(below, np.nan), where=below > 0))
    tail = (1 - confidence) / 2
    drawn = np.concatenate(ratios)
    low, high = np.nanquantile(drawn, [tail, 1 - tail], axis=0)
    values, rows = numerators.sum(0) / totals, (denominators > 0).sum(0)
    found = zip(values, low, high, rows, _p_values(drawn), strict=True)
    return [Interval(float(v), float(a), float(b), int(r), float(p)) for v, a, b, r, p in found]


def mean_intervals(scores: np.ndarray, resamples: int = 2000, seed: int = 0, confidence: float = 0.95):
    """Intervals of the K means of `scores` `[n, K]`, NaN where an example lacks a score. See `ratio_intervals`."""
    present = ~np.isnan(scores)
    return ratio_intervals(np.where(present, scores, 0.0), present, resamples, seed, confidence)


def _p_values(drawn: np.ndarray) -> np.ndarray:
    """`[K]` from the resampled figures `[resamples, K]`; the observed data count as one resample more."""
    known = (~np.isnan(drawn)).sum(0) + 1
    below, above = ((drawn <= 0).sum(0) + 1) / known, ((drawn >= 0).sum(0) + 1) / known
    return np.minimum(1.0, 2 * np.minimum(below, above))


def _checked(numerators: np.ndarray, denominators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if numerators.ndim != 2 or numerators.shape != denominators.shape:
        raise ValueError(
            f"bootstrap: numerators {numerators.shape} and denominators {denominators.shape} must both be [n, K]"
        )
    if not len(numerators):
        raise ValueError("bootstrap: there is no example to resample")
    for name, values in (("numerators", numerators), ("denominators", denominators)):
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"bootstrap: {name}[{row}, {column}] = {values[row, column]}; give finite values")
    if (denominators < 0).any():
        raise ValueError("bootstrap: denominators hold a negative value; they are counts or weights")
    return numerators, denominators
