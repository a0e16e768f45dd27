"""Negative samples against plain Python sets, and their distribution against the uniform one."""

import pytest
import torch
from scipy.stats import chisquare

from xrec.graph.negatives import NegativeSampler


@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_never_a_training_positive(density):
    cells = torch.rand(60, 40, generator=torch.Generator().manual_seed(1)) < density
    pairs = cells.nonzero().T[:, torch.randperm(int(cells.sum()), generator=torch.Generator().manual_seed(2))]
    positives = {(u, i) for u, i in pairs.T.tolist()}
    sampler = NegativeSampler(pairs, 60, 40)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        for user, negative in zip(pairs[0].tolist(), sampler.sample(generator).tolist(), strict=True):
            full = sum(u == user for u, _ in positives) == 40
            assert negative == -1 if full else (0 <= negative < 40 and (user, negative) not in positives)


def test_every_non_positive_is_equally_likely():
    # User 0 has items 0, 3, 4, 9 of 10; user 1 has items 5 and 6; user 2 none.
    pairs = torch.tensor([[0, 1, 0, 0, 1, 0], [9, 6, 0, 4, 5, 3]])
    sampler = NegativeSampler(pairs, 3, 10)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sampler.sample(generator) for _ in range(3000)])
    for user, positives in ((0, [0, 3, 4, 9]), (1, [5, 6])):
        counts = torch.bincount(draws[:, pairs[0] == user].flatten(), minlength=10)
        others = [i for i in range(10) if i not in positives]
        assert counts[positives].sum() == 0
        assert chisquare(counts[others].numpy()).pvalue > 1e-3


def test_draws_differ_from_call_to_call_and_follow_the_generator():
    pairs = torch.stack([torch.arange(500) % 50, torch.arange(500) // 5])
    sampler = NegativeSampler(pairs, 50, 100)
    generator = torch.Generator().manual_seed(0)
    first, second = sampler.sample(generator), sampler.sample(generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, sampler.sample(torch.Generator().manual_seed(0)))


def test_a_user_with_every_item_gets_no_negative():
    pairs = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 1]])
    negatives = NegativeSampler(pairs, 2, 3).sample(torch.Generator().manual_seed(0))
    assert negatives[:3].tolist() == [-1, -1, -1]
    assert int(negatives[3]) in (0, 2)


def test_refuses_a_world_without_negatives():
    with pytest.raises(ValueError, match="every user has all 2 items"):
        NegativeSampler(torch.tensor([[0, 0], [0, 1]]), 1, 2)
