"""A small world in which taste decides: users and items have hidden vectors, and users choose what fits theirs."""

from dataclasses import dataclass

import pytest
import torch


@dataclass
class TasteWorld:
    users: int
    items: int
    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor


@pytest.fixture(scope="session")
def taste_world() -> TasteWorld:
    generator = torch.Generator().manual_seed(7)
    users, items, per_user = 300, 160, 20
    taste = torch.randn(users, 4, generator=generator) @ torch.randn(items, 4, generator=generator).T
    gumbel = -torch.empty(users, items).exponential_(generator=generator).log()
    chosen = (1.5 * taste + gumbel).topk(per_user, dim=1).indices
    pairs = torch.stack([torch.arange(users).repeat_interleave(per_user), chosen.reshape(-1)])
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)]
    train, val, test = pairs.split([int(0.8 * pairs.shape[1]), int(0.1 * pairs.shape[1]), int(0.1 * pairs.shape[1])], 1)
    return TasteWorld(users, items, train, val, test)
