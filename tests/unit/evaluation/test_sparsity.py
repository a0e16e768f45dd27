"""Frequency groups against sorting by hand."""

import itertools

import numpy as np
import pytest

from tests.unit.evaluation.test_comparison import number, scored
from xrec.evaluation.sparsity import frequency_groups, group_figures


def test_groups_are_about_equal_ordered_and_keep_ties_together():
    random = np.random.default_rng(3)
    users, counts = random.permutation(1000), random.geometric(0.08, 1000)
    groups = frequency_groups(users, counts, np.zeros(1000, bool), 5)
    assert [g.name for g in groups] == ["1", "2", "3", "4", "5"]
    assert sorted(u for g in groups for u in g.users.tolist()) == sorted(users.tolist())
    count_of = dict(zip(users.tolist(), counts.tolist(), strict=True))
    bounds = [(min(map(count_of.get, g.users.tolist())), max(map(count_of.get, g.users.tolist()))) for g in groups]
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(bounds))
    assert [g.label for g in groups] == [f"{low} to {high} interactions" for low, high in bounds]
    assert all(120 <= len(g.users) <= 280 for g in groups)


def test_few_distinct_counts_make_fewer_groups_and_zero_shot_users_their_own():
    users, counts = np.arange(8), np.array([1, 1, 1, 1, 1, 9, 0, 0])
    groups = frequency_groups(users, counts, counts == 0, 5)
    assert [(g.name, g.label, g.users.tolist()) for g in groups] == [
        ("1", "1 interaction", [0, 1, 2, 3, 4]),
        ("2", "9 interactions", [5]),
        ("zero-shot", "zero-shot", [6, 7]),
    ]


def test_figures_of_a_group_are_the_means_of_its_pairs():
    values = {(0, 1): 0.2, (0, 2): 0.4, (1, 1): 0.9, (2, 5): 0.7}
    system = scored("xrec", "xrec", {0: values}, corpus={"usr": [1.0]})
    groups = frequency_groups(np.array([0, 1, 2]), np.array([2, 8, 0]), np.array([False, False, True]), 2)
    rows = group_figures([system], groups, np.array(sorted(number(*p) for p in values)), resamples=50)
    assert [(r["name"], r["users"], r["pairs"]) for r in rows] == [("1", 1, 2), ("2", 1, 1), ("zero-shot", 1, 1)]
    figures = [r["systems"]["xrec"] for r in rows]
    assert [f["bert_score_f1"]["value"] for f in figures] == pytest.approx([0.3, 0.9, 0.7])
    assert all("usr" not in f for f in figures)
