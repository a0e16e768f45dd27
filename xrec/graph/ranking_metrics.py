"""Ranking quality of embeddings: Recall@k, NDCG@k, precision@k and MRR, per user.

Every item is a candidate but those a user is known to have; nothing is sampled. Where numbers go is the caller's
business. Shapes: N users, M items, D width, E interactions, Q users that have something to find, K the largest cut-off.
"""

from dataclasses import dataclass

import torch

_CELLS = 1 << 22  # scores held at once: 16 MiB of float32, which a processor's cache can hold


@dataclass(frozen=True)
class Ranking:
    """Per-user figures of the users that have at least one relevant item.

    Attributes:
        users: `[Q]` int64.
        values: `"recall@20"` and the like -> `[Q]` float32.
    """

    users: torch.Tensor
    values: dict[str, torch.Tensor]

    def mean(self) -> dict[str, float]:
        """Each figure averaged over the users."""
        return {name: float(value.double().mean()) for name, value in self.values.items()}


def recall_at_k(hits: torch.Tensor, relevant: torch.Tensor, k: int) -> torch.Tensor:
    """`[Q]`: the share of a user's relevant items among the first k. `hits` `[Q, K]` bool, `relevant` `[Q]` counts."""
    return hits[:, :k].sum(1) / relevant


def precision_at_k(hits: torch.Tensor, k: int) -> torch.Tensor:
    """`[Q]`: the share of the first k that is relevant; divided by k also where fewer candidates exist."""
    return hits[:, :k].sum(1) / k


def ndcg_at_k(hits: torch.Tensor, relevant: torch.Tensor, k: int) -> torch.Tensor:
    """`[Q]`: discounted cumulative gain (binary, `1 / log2(rank + 1)`) over that of the best possible order."""
    discount = 1 / torch.log2(torch.arange(2, k + 2, dtype=torch.float32, device=hits.device))
    ideal = discount.cumsum(0)[relevant.clamp(max=k) - 1]
    return (hits[:, :k] * discount[: hits.shape[1]]).sum(1) / ideal


def reciprocal_rank(scores: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """`[Q]`: one over the rank of the best relevant item, over the whole ranking.

    Args:
        scores: `[Q, M]`, known items at -inf.
        relevant: `[Q, M]` bool. Irrelevant items that tie with the best relevant one are ranked before it, so that
            embeddings without information score low, not high.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    return 1 / (1 + ((scores >= best) & ~relevant & (scores > -torch.inf)).sum(1))


def evaluate_ranking(
    user: torch.Tensor,
    item: torch.Tensor,
    relevant: torch.Tensor,
    known: torch.Tensor,
    top_k: tuple[int, ...] = (20,),
    mrr: bool = True,
) -> Ranking:
    """Rank all items for each user by inner product and compare with what the user really chose.

    Args:
        user: `[N, D]`.
        item: `[M, D]`.
        relevant: `[2, E]` the (user, item) pairs to find; only their users are evaluated.
        known: `[2, E']` pairs that are never candidates, such as the training positives.
        top_k: the cut-offs.
        mrr: whether to compute `mrr` too, which looks at the whole ranking.

    Returns:
        `recall@k`, `ndcg@k`, `precision@k` for each k, and `mrr`.

    Raises:
        ValueError: there is nothing to find, or a cut-off is below 1.
    """
    if relevant.shape[1] == 0:
        raise ValueError("relevant: no (user, item) pairs to find; evaluate on a split that has interactions")
    if not top_k or min(top_k) < 1:
        raise ValueError(f"top_k = {top_k}: give at least one cut-off of 1 or more")
    users = relevant[0].unique()
    relevant, known = _by_position(relevant, users), _by_position(known, users)
    counts = torch.bincount(relevant[0])
    chunk = min(len(users), max(1, _CELLS // len(item)))
    # Held over all chunks: large tensors that come and go between small ones that stay tear the heap into pieces, which
    # took gigabytes with many users.
    scores = torch.empty(chunk, len(item), dtype=user.dtype, device=user.device)
    found = torch.zeros(chunk, len(item), dtype=torch.bool, device=user.device)
    values = {name: torch.empty(len(users), device=user.device) for name in _names(top_k, mrr)}
    for start in range(0, len(users), chunk):
        stop = min(start + chunk, len(users))
        some, right = scores[: stop - start], _cells(relevant, start, stop)
        torch.mm(user[users[start:stop]], item.T, out=some)
        some[_cells(known, start, stop)] = -torch.inf
        found[right] = True
        figures = _figures(some, found[: stop - start], counts[start:stop], top_k, mrr)
        for name, value in values.items():
            value[start:stop] = figures[name]
        found[right] = False
    return Ranking(users, values)


def _names(top_k: tuple[int, ...], mrr: bool) -> list[str]:
    names = [f"{name}@{k}" for k in top_k for name in ("recall", "ndcg", "precision")]
    return [*names, "mrr"] if mrr else names


def _figures(
    scores: torch.Tensor, relevant: torch.Tensor, counts: torch.Tensor, top_k: tuple[int, ...], mrr: bool
) -> dict[str, torch.Tensor]:
    best = scores.topk(min(max(top_k), scores.shape[1]), dim=1)
    # A user with few candidates left has known items (-inf) at the end of the list; they are not recommendations.
    hits = relevant.gather(1, best.indices) & (best.values > -torch.inf)
    values = {}
    for k in top_k:
        values[f"recall@{k}"] = recall_at_k(hits, counts, k)
        values[f"ndcg@{k}"] = ndcg_at_k(hits, counts, k)
        values[f"precision@{k}"] = precision_at_k(hits, k)
    if mrr:
        values["mrr"] = reciprocal_rank(scores, relevant)
    return values


def _by_position(pairs: torch.Tensor, users: torch.Tensor) -> torch.Tensor:
    """`pairs` of `users` (sorted, distinct) only, sorted by user, each user replaced by its position in `users`."""
    pairs = pairs[:, torch.isin(pairs[0], users)]
    position, order = torch.searchsorted(users, pairs[0].contiguous()).sort()
    return torch.stack([position, pairs[1, order]])


def _cells(pairs: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = torch.searchsorted(pairs[0].contiguous(), torch.tensor([start, stop], device=pairs.device)).tolist()
    return pairs[0, low:high] - start, pairs[1, low:high]
