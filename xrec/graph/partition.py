"""A graph dealt out to workers by rows: who owns which nodes, and what each needs of the others'. No communication.

Users and items are cut into contiguous ranges, and worker r owns range r of both: their rows of every table
(embeddings, Adam's moments), their rows of the adjacency matrix, and the training pairs of its users. Nodes are
numbered so that a worker's are contiguous, its users before its items; with one worker that is the usual order. The
matrix's columns that other workers own are the worker's halo: their rows are fetched before every layer.
Shapes: N users, M items, E interactions, W workers; of one worker: O own rows, H halo rows, K training pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array

from xrec.training_state import pack, unpack

# What a row costs beside its edges, in edges: the optimiser and the sums over layers touch every row, edges or none.
_ROW_COST = 4


@dataclass(frozen=True)
class Ranges:
    """Where users and items are cut: worker r owns `users[r]` to `users[r + 1] - 1`, and items likewise."""

    users: tuple[int, ...]
    items: tuple[int, ...]

    @property
    def workers(self) -> int:
        return len(self.users) - 1

    @property
    def first_nodes(self) -> torch.Tensor:
        """`[W + 1]` int64: the first node of every worker, and how many there are in all."""
        return torch.tensor(self.users) + torch.tensor(self.items)

    def user_nodes(self, users: torch.Tensor) -> torch.Tensor:
        """The numbers of users as nodes."""
        return users + torch.tensor(self.items)[_owners(self.users, users)]

    def item_nodes(self, items: torch.Tensor) -> torch.Tensor:
        """The numbers of items as nodes."""
        return items + torch.tensor(self.users)[_owners(self.items, items) + 1]

    def node_owners(self, nodes: torch.Tensor) -> torch.Tensor:
        """The workers that own nodes."""
        return torch.searchsorted(self.first_nodes, nodes, right=True) - 1

    def of(self, rank: int) -> tuple[slice, slice]:
        """The users and the items of a worker."""
        return slice(*self.users[rank : rank + 2]), slice(*self.items[rank : rank + 2])


@dataclass(frozen=True)
class Share:
    """All that one worker must know of the graph.

    Attributes:
        ranges, rank: the cuts, and which share this is.
        interactions: E, of the whole graph.
        crow `[O + 1]`, column, values: the own rows of `normalized_adjacency`; a column below O is an own row, and
            O + h is row h of the halo. A row's columns keep the whole matrix's order, so that sums have its bits, too.
        halo: `[H]` int64, the nodes of other workers that own rows need, ascending, and so by owner.
        user, item: `[K]` int32, training pairs of own users: the user's own row, and the item.
        position: `[K]` int64 ascending, where the pairs stand among all.
        saturated: int64, positions of all workers' pairs whose users have every item: they have no negatives.
        val: `[2, V]` int64, validation pairs of own users: the user's own row, and the item.
    """

    ranges: Ranges
    rank: int
    interactions: int
    crow: torch.Tensor
    column: torch.Tensor
    values: torch.Tensor
    halo: torch.Tensor
    user: torch.Tensor
    item: torch.Tensor
    position: torch.Tensor
    saturated: torch.Tensor
    val: torch.Tensor

    @property
    def own(self) -> int:
        """O, the number of own rows."""
        return len(self.crow) - 1

    @property
    def own_users(self) -> int:
        """How many of the own rows are users; they come first."""
        return self.ranges.users[self.rank + 1] - self.ranges.users[self.rank]

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        scalars = {"rank": self.rank, "interactions": self.interactions, **vars(self.ranges)}
        return pack(scalars, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Share":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else, or damaged.
        """
        scalars, tensors = unpack(data, "a worker's share of a graph", "run the stage anew")
        ranges = Ranges(tuple(scalars["users"]), tuple(scalars["items"]))
        return cls(ranges, scalars["rank"], scalars["interactions"], **tensors)


def balanced_cuts(degree: torch.Tensor, workers: int) -> tuple[int, ...]:
    """W + 1 bounds of contiguous ranges with about as much work each, by the degrees of the nodes."""
    work = (degree + _ROW_COST).cumsum(0)
    wanted = torch.arange(1, workers) * work[-1] / workers
    return (0, *torch.searchsorted(work, wanted.long()).tolist(), len(degree))


def make_shares(
    train: torch.Tensor, val: torch.Tensor, users: int, items: int, workers: int, only: int | None = None
) -> Iterator[Share]:
    """Deal a graph out; one share after another, so that one is held at a time beside the whole.

    Args:
        train: `[2, E]` int64 distinct pairs, as `Trainer` takes them.
        val: `[2, V]` int64.
        users, items: N and M.
        workers: W.
        only: the one share that is wanted; default: all.

    Raises:
        ValueError: there are more workers than nodes to deal out.
    """
    degrees = torch.bincount(train[0], minlength=users), torch.bincount(train[1], minlength=items)
    ranges = Ranges(balanced_cuts(degrees[0], workers), balanced_cuts(degrees[1], workers))
    if bool((ranges.first_nodes.diff() == 0).any()):
        raise ValueError(
            f"workers = {workers}: some would have none of the {users} users and {items} items; lower the number"
        )
    scales = [_inverse_root(degree) for degree in degrees]
    by_user = csr_array((np.arange(train.shape[1]), (train[0].numpy(), train[1].numpy())), shape=(users, items))
    by_item = csr_array(by_user.T)
    by_user.sort_indices()
    by_item.sort_indices()
    saturated = torch.nonzero(degrees[0][train[0]] == items).flatten()
    for rank in range(workers) if only is None else (only,):
        own_users, own_items = ranges.of(rank)
        item, position, user_counts = _rows(by_user, own_users)
        user, _, item_counts = _rows(by_item, own_items)
        columns = torch.cat([ranges.item_nodes(item), ranges.user_nodes(user)])
        own_scale = torch.cat([scales[0][own_users], scales[1][own_items]])
        counts = torch.cat([user_counts, item_counts])
        values = own_scale.repeat_interleave(counts) * torch.cat([scales[1][item], scales[0][user]])
        column, halo = _local(columns, *ranges.first_nodes[rank : rank + 2].tolist())
        order = position.argsort()
        row = torch.arange(len(user_counts), dtype=torch.int32).repeat_interleave(user_counts)
        mine = (val[0] >= own_users.start) & (val[0] < own_users.stop)
        yield Share(
            ranges=ranges,
            rank=rank,
            interactions=train.shape[1],
            crow=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
            column=column,
            values=values,
            halo=halo,
            user=row[order],
            item=item[order].int(),
            position=position[order],
            saturated=saturated,
            val=torch.stack([val[0, mine] - own_users.start, val[1, mine]]),
        )


def _rows(matrix: csr_array, rows: slice) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Column indices and values of a range of rows (int64), and how many each row has."""
    bounds = torch.from_numpy(matrix.indptr[rows.start : rows.stop + 1].astype("int64"))
    low, high = int(bounds[0]), int(bounds[-1])
    columns, values = (torch.from_numpy(part[low:high].astype("int64")) for part in (matrix.indices, matrix.data))
    return columns, values, bounds.diff()


def _local(columns: torch.Tensor, first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes as a worker numbers them, who owns `first` to `end - 1` (int32 where it suffices), and its halo."""
    mine = (columns >= first) & (columns < end)
    halo = columns[~mine].unique()
    local = torch.where(mine, columns - first, end - first + torch.searchsorted(halo, columns))
    return local.to(torch.int32 if end - first + len(halo) < 2**31 else torch.int64), halo


def _inverse_root(degree: torch.Tensor) -> torch.Tensor:
    scale = degree.float().pow(-0.5)
    return scale.masked_fill_(scale == torch.inf, 0.0)


def _owners(bounds: tuple[int, ...], indices: torch.Tensor) -> torch.Tensor:
    return torch.searchsorted(torch.tensor(bounds), indices, right=True) - 1
