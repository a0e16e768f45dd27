"""Comparisons of made-up systems against loops over their rows."""

import math

import numpy as np
import pytest

from xrec.evaluation.comparison import Scored, compare, most_different, pair_numbers, shared_pairs


def scored(name, kind, by_seed, column="bert_score_f1", corpus=None, cost=None):
    """`by_seed`: seed -> {(user, item): score}; every seed has the same pairs."""
    first = next(iter(by_seed.values()))
    keys = sorted(first)
    numbers = pair_numbers(np.array([u for u, _ in keys]), np.array([i for _, i in keys]))
    values = np.array([[rows[key] for key in keys] for rows in by_seed.values()], np.float64)
    return Scored(name, kind, list(by_seed), numbers, {column: values}, corpus or {}, cost)


@pytest.fixture
def systems():
    random = np.random.default_rng(0)
    pairs = [(int(u), int(i)) for u in range(12) for i in (70_000, 3)]
    own = {seed: {p: float(random.normal(0.6, 0.1)) for p in pairs} for seed in (0, 1, 2)}
    other = {seed: {p: float(random.normal(0.5, 0.1)) for p in pairs[1:]} for seed in (0, 5)}
    return (
        [
            scored("xrec", "xrec", own, corpus={"usr": [0.5, 0.7, 0.9]}),
            scored("peter", "baseline", other, corpus={"usr": [0.1, 0.2]}, cost=3.5),
        ],
        own,
        other,
    )


def number(user, item):
    return user * 2**32 + item


def test_shared_pairs_are_those_of_every_system_of_ours(systems):
    found, _, other = systems
    expected = sorted(number(*pair) for pair in next(iter(other.values())))
    assert shared_pairs(found).tolist() == expected
    elsewhere = scored("published", "predictions", {0: {(0, 3): 0.2}})
    assert shared_pairs([*found, elsewhere]).tolist() == expected
    assert shared_pairs(found, np.array(expected[:2])).tolist() == expected[2:]


def test_means_spread_and_differences_equal_loops(systems):
    found, own, other = systems
    pairs = shared_pairs(found)
    keys = [divmod(n, 2**32) for n in pairs.tolist()]
    xrec, peter = compare(found, "xrec", pairs, resamples=500)
    every = [own[seed][key] for seed in own for key in keys]
    means = [sum(own[seed][key] for key in keys) / len(keys) for seed in own]
    figures = xrec["metrics"]["bert_score_f1"]
    assert figures["value"] == pytest.approx(sum(means) / 3)
    mean = sum(every) / len(every)
    assert figures["std"] == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in every) / len(every)))
    spread = math.sqrt(sum((m - sum(means) / 3) ** 2 for m in means) / 2)
    assert figures["seed_std"] == pytest.approx(spread)
    gaps = [sum(own[s][k] for s in own) / 3 - sum(other[s][k] for s in other) / 2 for k in keys]
    difference = peter["difference"]["bert_score_f1"]
    assert difference["value"] == pytest.approx(sum(gaps) / len(gaps))
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["p"] < 0.05 and difference["rows"] == len(keys)
    assert "difference" not in xrec
    assert (xrec["metrics"]["usr"]["value"], peter["cost"]) == (pytest.approx(0.7), 3.5)
    assert (peter["label"], peter["seeds"]) == ("PETER", [0, 5])


def test_a_difference_is_positive_where_the_reference_is_better_also_where_less_is_better():
    own = scored("xrec", "xrec", {0: {(0, i): 0.1 + i / 100 for i in range(9)}}, "hallucination")
    other = scored("nrt", "baseline", {0: {(0, i): 0.4 + i / 100 for i in range(9)}}, "hallucination")
    _, row = compare([own, other], "xrec", own.pairs, resamples=50)
    assert row["difference"]["hallucination"]["value"] == pytest.approx(0.3)


def test_a_system_without_a_pair_is_compared_on_those_that_it_has():
    own = scored("xrec", "xrec", {0: {(0, i): 0.5 for i in range(6)}})
    other = scored("published", "predictions", {0: {(0, i): 0.3 for i in (2, 4, 99)}})
    _, row = compare([own, other], "xrec", own.pairs, resamples=50)
    assert row["metrics"]["bert_score_f1"]["rows"] == 2
    assert row["difference"]["bert_score_f1"]["rows"] == 2


def test_most_different_takes_both_sides():
    own = scored("xrec", "xrec", {0: {(0, i): v for i, v in enumerate((0.9, 0.5, 0.1, 0.5))}})
    other = scored("nrt", "baseline", {0: {(0, i): v for i, v in enumerate((0.1, 0.4, 0.8, 0.5))}})
    found = most_different([own, other], "xrec", own.pairs, "bert_score_f1", 2)
    assert found.tolist() == [0, 2]
    assert most_different([own, other], "xrec", own.pairs, "bert_score_f1", 0).tolist() == []
    assert most_different([own], "xrec", own.pairs, "bert_score_f1", 3).tolist() == []
