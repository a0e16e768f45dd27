"""LightGCN's training on several processes, each with the rows of its share of the graph; the numbers are `Trainer`'s.

A layer fetches the halo's rows from their owners (one all-to-all) and multiplies the own rows of the matrix; the
gradient goes back through the same polynomial, so that no layer is kept. A triple of a batch is its user's owner's: who
fetches the two items' final rows, and sends their gradients back. Adam sees own rows only. All sums run in the order of
the one process, so that on CPUs the embeddings are the same bit for bit.

Who starts the processes, and where shares and states are kept, is the caller's business.
Shapes: as in `partition.py`, and D embedding width, L layers, B batch; of one worker's part of a batch: T triples,
R rows that all workers ask of it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from xrec.graph.lightgcn import propagate, sparse_rows
from xrec.graph.negatives import NegativeSampler
from xrec.graph.partition import Share
from xrec.graph.ranking_metrics import evaluate_ranking
from xrec.graph.state import TrainingState
from xrec.graph.training import STOPPING_CUT_OFF, Trainer, generator_of

_DRAWN_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Batch:
    """One worker's triples of a batch of B.

    Attributes:
        size: B, of all workers.
        user: `[T]` own rows of the users.
        nodes: `[2, T]` the positive and the negative items' nodes.
        slots: `[2, T]` where these stand in the whole batch: b, or B + b for a negative.
    """

    size: int
    user: torch.Tensor
    nodes: torch.Tensor
    slots: torch.Tensor


class PartitionedLightGCN(nn.Module):
    """The own rows of a `LightGCN`, and how they are propagated together with the other workers' rows.

    Args:
        share: the worker's, of the default process group's size.
        dim: D.
        layers: L.
        generator: draws the initial embeddings of all nodes, of which the own ones are kept.
        device: where the rows are; the group's backend must serve it.
    """

    def __init__(self, share: Share, dim: int, layers: int, generator: torch.Generator, device: torch.device):
        super().__init__()
        if (dist.get_world_size(), dist.get_rank()) != (share.ranges.workers, share.rank):
            raise ValueError(
                f"share {share.rank} of {share.ranges.workers} on worker {dist.get_rank()} of {dist.get_world_size()}; "
                "give each worker its own share, and deal the graph out to as many as there are"
            )
        self.layers, self.own = layers, share.own
        self.adjacency = sparse_rows(share.crow, share.column, share.values, (self.own, self.own + len(share.halo)))
        self.adjacency = self.adjacency.to(device)
        self.embedding = nn.Parameter(_initial_rows(share, dim, generator).to(device))
        self.first_nodes = share.ranges.first_nodes.to(device)
        owners = share.ranges.node_owners(share.halo)
        self.fetched = torch.bincount(owners, minlength=share.ranges.workers).to(device)
        self.given = swap_counts(self.fetched)
        wanted = (share.halo - share.ranges.first_nodes[owners]).to(device)
        self.fetched, self.given = self.fetched.tolist(), self.given.tolist()
        self.asked_of_us = all_to_all(wanted, self.fetched, self.given)
        self.rows = torch.empty(self.own + len(share.halo), dim, device=device)

    @torch.no_grad()
    def layer_mean(self, x: torch.Tensor) -> torch.Tensor:
        """`layer_mean` of the whole graph, own rows of it: `[O, D]` from `[O, D]`; all workers call it together."""
        total = x
        for _ in range(self.layers):
            self._spread(total)
            del total  # the rows are in the buffer now; two tables fewer at the peak
            total = propagate(self.adjacency, self.rows).add_(x)
        return total.clone() if self.layers == 0 else total.div_(self.layers + 1)

    @torch.no_grad()
    def layer_embeddings(self) -> Iterator[torch.Tensor]:
        """Every layer's own rows `[O, D]`, layer 0 first, one at a time; all workers draw them together."""
        rows = self.embedding.detach()
        yield rows
        for _ in range(self.layers):
            self._spread(rows)
            rows = propagate(self.adjacency, self.rows)
            yield rows

    def _spread(self, x: torch.Tensor) -> None:
        """Bring own rows and, from their owners, the halo's into the buffer that the matrix multiplies."""
        self.rows[: self.own] = x
        given = x.index_select(0, self.asked_of_us)
        dist.all_to_all_single(self.rows[self.own :], given, self.fetched, self.given)


class PartitionedTrainer(Trainer):
    """`Trainer` on one share; every worker of the group calls the same methods at the same time.

    Args:
        share: the worker's own.
        The others: as `train_lightgcn`.
    """

    def __init__(
        self,
        share: Share,
        dim: int,
        layers: int,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
        seed: int,
        device: str | torch.device,
    ):
        self.share, self.seed, self.batch_size = share, seed, batch_size
        self.weight_decay, self.device = weight_decay, torch.device(device)
        self.items = share.ranges.items[-1]
        self.user, self.item, self.position = share.user, share.item, share.position
        self.usable = share.interactions - len(share.saturated)
        self.index = self.position
        if len(share.saturated):
            # Pairs without negatives are never trained on; all others count from 0 in the order of the pairs.
            usable = ~torch.isin(share.position, share.saturated)
            self.user, self.item, self.position = share.user[usable], share.item[usable], share.position[usable]
            self.index = self.position - torch.searchsorted(share.saturated, self.position)
        pairs = torch.stack([self.user, self.item]).long()
        self.sampler = NegativeSampler(pairs, share.own_users, self.items) if len(self.user) else None
        model = PartitionedLightGCN(share, dim, layers, generator_of(seed, 0), self.device)
        self.use_model(model, learning_rate)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """See `Trainer.train_epoch`; every worker returns the same but for the seconds."""
        started = time.perf_counter()
        sums = torch.zeros(2, device=self.device)
        for batch in self.batches(epoch):
            sums += self.step(batch)
        dist.all_reduce(sums)
        return self.entry(epoch, sums / self.usable, time.perf_counter() - started)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The own triples of every batch of an epoch, of the same random numbers as `Trainer` draws."""
        generator = generator_of(self.seed, epoch + 1)
        negative = self._negatives(generator)
        places, order = self._places(generator)
        nodes = torch.stack([self.item[order], negative[order]])
        user = self.user[order]
        starts = torch.arange(0, self.usable + self.batch_size, self.batch_size)
        bounds = torch.searchsorted(places, starts).tolist()
        for number, (low, high) in enumerate(pairwise(bounds)):
            start = number * self.batch_size
            size = min(self.batch_size, self.usable - start)
            place = places[low:high] - start
            yield Batch(
                size=size,
                user=user[low:high].long().to(self.device),
                nodes=self.share.ranges.item_nodes(nodes[:, low:high].long()).to(self.device),
                slots=torch.stack([place, place + size]).to(self.device),
            )

    def step(self, batch: Batch) -> torch.Tensor:
        """One optimisation step; the sums over the own triples of the loss's two terms."""
        model, size = self.model, batch.size
        asked = batch.nodes.reshape(-1)
        owners = torch.searchsorted(model.first_nodes, asked, right=True) - 1
        order = owners.argsort(stable=True)
        counts = torch.bincount(owners, minlength=self.share.ranges.workers)
        fetched, given = torch.stack([counts, swap_counts(counts)]).tolist()
        wanted = torch.stack([asked - model.first_nodes[owners], batch.slots.reshape(-1)], 1)[order]
        row, slot = all_to_all(wanted, fetched, given).unbind(1)

        final = model.layer_mean(model.embedding.detach())
        found = all_to_all(final.index_select(0, row), given, fetched)
        user = final.index_select(0, batch.user).requires_grad_()
        del final
        item = torch.empty_like(found).index_copy_(0, order, found).view(2, len(batch.user), -1).requires_grad_()
        bpr = F.softplus((user * (item[1] - item[0])).sum(-1)).sum()
        (bpr / size).backward()
        assert user.grad is not None and item.grad is not None
        back = all_to_all(item.grad.flatten(0, 1)[order], fetched, given)

        by_slot = slot.argsort()
        gradient = torch.zeros_like(model.embedding)
        gradient.index_add_(0, batch.user, user.grad).index_add_(0, row[by_slot], back[by_slot])
        model.embedding.grad = model.layer_mean(gradient)
        del gradient
        squares = self._add_decay(torch.cat([batch.user, row]), size)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([bpr.detach(), squares / 2])

    def _add_decay(self, rows: torch.Tensor, size: int) -> torch.Tensor:
        """Add the gradient of Eq. 10 at own rows, each as often as the batch has it; the sum of their squares."""
        embedding = self.model.embedding
        values = embedding.detach().index_select(0, rows).requires_grad_()
        squares = values.square().sum()
        (self.weight_decay * (squares / (2 * size))).backward()
        # Summed apart from the other term, as autograd does it, but over the rows concerned alone.
        distinct, which = rows.unique(return_inverse=True)
        decay = embedding.new_zeros(len(distinct), embedding.shape[1]).index_add_(0, which, values.grad)
        embedding.grad.index_add_(0, distinct, decay)
        return squares.detach()

    def _negatives(self, generator: torch.Generator) -> torch.Tensor:
        """`[K]` int32: the own pairs' negatives; all pairs' random numbers are drawn, and the own ones are used."""
        negatives = torch.empty_like(self.item)
        for start in range(0, self.share.interactions, _DRAWN_AT_ONCE):
            stop = min(start + _DRAWN_AT_ONCE, self.share.interactions)
            uniform = torch.rand(stop - start, generator=generator, dtype=torch.float64)
            low, high = torch.searchsorted(self.position, torch.tensor([start, stop])).tolist()
            if self.sampler and low < high:
                chosen = self.sampler.choose(self.user[low:high].long(), uniform[self.position[low:high] - start])
                negatives[low:high] = chosen.int()
        return negatives

    def _places(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the own pairs come in the epoch's order of all pairs `[K]`, ascending, and which own pair each is."""
        whole = torch.int32 if self.usable < 2**31 else torch.int64
        permutation = torch.randperm(self.usable, generator=generator, dtype=whole)
        mine = torch.zeros(self.usable, dtype=torch.bool)
        mine[self.index] = True
        places = torch.nonzero(mine.index_select(0, permutation)).flatten()
        return places, torch.searchsorted(self.index, permutation[places].long())

    @torch.no_grad()
    def recall(self, val: torch.Tensor) -> float:
        """See `Trainer.recall`; each worker ranks all items for its own users. `val` is the share's."""
        share = self.share
        final = self.model.layer_mean(self.model.embedding.detach())
        user, own_items = final.split([share.own_users, share.own - share.own_users])
        item = _gather(own_items, list(share.ranges.items))
        values = torch.zeros(0, device=self.device)
        if val.shape[1]:
            known = torch.stack([share.user, share.item]).long().to(self.device)
            ranking = evaluate_ranking(user, item, val.to(self.device), known, (STOPPING_CUT_OFF,), mrr=False)
            values = ranking.values[f"recall@{STOPPING_CUT_OFF}"]
        counts = torch.zeros(share.ranges.workers, dtype=torch.int64, device=self.device)
        counts[share.rank] = len(values)
        dist.all_reduce(counts)
        # Every user's figure, in the order of the users, so that the mean has the bits of the one process's.
        return float(_gather(values, [0, *counts.cumsum(0).tolist()]).double().mean())

    def agreed(self, flag: bool) -> bool:
        """Whether worker 0 says so: clocks differ."""
        said = torch.tensor(int(flag), device=self.device)
        dist.broadcast(said, src=0)
        return bool(said)

    def snapshot(self, state: TrainingState) -> TrainingState:
        """`state` with the own rows of all that is needed to go on, not copied: write it before going on."""
        tensors = {"embedding": self.model.embedding.detach(), "best": state.tensors["best"]}
        tensors |= self.optimizer.state[self.model.embedding]
        return TrainingState(**{**vars(state), "tensors": tensors})

    def layers_of_best(self, state: TrainingState) -> Iterator[torch.Tensor]:
        """The best epoch's layers, own rows `[O, D]` on the CPU, layer 0 first; all workers draw them together."""
        with torch.no_grad():
            self.model.embedding.copy_(state.tensors["best"])
        for rows in self.model.layer_embeddings():
            yield rows.cpu()


def all_to_all(values: torch.Tensor, given: list[int], received: list[int]) -> torch.Tensor:
    """Send the first `given[0]` rows to worker 0, the next to worker 1 …; what the others sent, in their order."""
    result = values.new_empty(sum(received), *values.shape[1:])
    dist.all_to_all_single(result, values.contiguous(), received, given)
    return result


def swap_counts(counts: torch.Tensor) -> torch.Tensor:
    """`[W]`: what every worker has counted for this one, from what this one has counted for each."""
    result = torch.empty_like(counts)
    dist.all_to_all_single(result, counts)
    return result


def _gather(rows: torch.Tensor, bounds: list[int]) -> torch.Tensor:
    """All workers' rows, those of worker r at `bounds[r]` to `bounds[r + 1] - 1`."""
    result = rows.new_empty(bounds[-1], *rows.shape[1:])
    for rank, (low, high) in enumerate(pairwise(bounds)):
        if rank == dist.get_rank():
            result[low:high] = rows
        if low < high:
            dist.broadcast(result[low:high], src=rank)
    return result


def _initial_rows(share: Share, dim: int, generator: torch.Generator) -> torch.Tensor:
    """The own rows of the Xavier-uniform table `[N + M, D]`, users first, without the others' at any time."""
    users, items = share.ranges.users[-1], share.ranges.items[-1]
    bound = (6 / (users + items + dim)) ** 0.5
    own_users, own_items = share.ranges.of(share.rank)
    result, filled = torch.empty(share.own, dim), 0
    step = max(1, _DRAWN_AT_ONCE // dim)
    for start in range(0, users + items, step):
        stop = min(start + step, users + items)
        drawn = torch.empty(stop - start, dim).uniform_(-bound, bound, generator=generator)
        for first, last in ((own_users.start, own_users.stop), (users + own_items.start, users + own_items.stop)):
            low, high = max(first, start), min(last, stop)
            if low < high:
                result[filled : filled + high - low] = drawn[low - start : high - start]
                filled += high - low
    return result
