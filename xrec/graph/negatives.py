"""Negative samples for Bayesian personalised ranking: items that a user has not chosen in training."""

import torch


class NegativeSampler:
    """Draws, for each training pair, one item uniformly from those its user has no training pair with.

    It draws the rank of the wanted item among the user's *non*-positives and finds the item by one binary search,
    so there is no rejection loop, however many items a user has. With a user's positives p_0 < p_1 < …, there are
    `p_j - j` non-positives below p_j; the r-th non-positive (from 0) is therefore r plus the number of j with
    `p_j - j <= r`.

    Args:
        pairs: `[2, E]` int64 distinct (user, item) pairs.
        users, items: how many there are.

    Raises:
        ValueError: every user has every item, so that no negative exists.
    """

    def __init__(self, pairs: torch.Tensor, users: int, items: int):
        self.user = pairs[0]
        degree = torch.bincount(pairs[0], minlength=users)
        self.free = items - degree
        if not bool((self.free[self.user] > 0).any()):
            raise ValueError(f"train: every user has all {items} items, so that nothing is left to rank below them")
        keys = (pairs[0] * items + pairs[1]).sort().values
        owner = keys.div(items, rounding_mode="floor")
        self.first = degree.cumsum(0) - degree
        position_in_user = torch.arange(len(keys)) - self.first[owner]
        # Sorted within a user, and from user to user as the stride is more than any `p_j - j`.
        self.stride = items + 1
        self.below = owner * self.stride + (keys - owner * items) - position_in_user

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """`[E]` int64: a negative for each pair, in their order; -1 for users who have every item."""
        return self.choose(self.user, torch.rand(len(self.user), generator=generator, dtype=torch.float64))

    def choose(self, user: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """`[K]` int64: the negatives of `user` `[K]` that numbers from 0 to 1 `[K]` stand for; -1 where is none."""
        free = self.free[user]
        rank = torch.minimum((uniform * free).long(), free - 1)
        passed = torch.searchsorted(self.below, user * self.stride + rank, right=True) - self.first[user]
        return torch.where(free > 0, rank + passed, -1)
