"""The arrays that a snapshot derives from its stages, and the one file that holds them, mapped.

They are what serving would otherwise compute over all users: who chose what, in both directions, what fold-in knows of
the trained nodes, and the items' averaged embeddings. Shapes: N users, M items, E interactions, L layers, D width.
"""

import os
from dataclasses import dataclass, fields

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from xrec.embeddings import Embeddings


@dataclass(frozen=True)
class Neighbours:
    """One direction of the interactions, as compressed sparse rows.

    Attributes:
        offsets: `[n + 1]` int64.
        others: `[E]` int32, ascending within a row.
    """

    offsets: np.ndarray
    others: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """The nodes that one node has interacted with, ascending; int32."""
        return self.others[self.offsets[row] : self.offsets[row + 1]]

    def count(self, row: int) -> int:
        return int(self.offsets[row + 1] - self.offsets[row])


@dataclass(frozen=True)
class SnapshotArrays:
    """Everything in `arrays.safetensors`.

    Attributes:
        user_offsets, user_items: the known interactions by user: training ones, and `fold_in` ones of zero-shot nodes.
        item_offsets, item_users: the same by item.
        users_by_id, items_by_id: `[N]` and `[M]` int32, see `node_table.sorted_rows`.
        user_degree, item_degree: `[N]` and `[M]` int32, training interactions alone.
        user_map, item_map: `[D, D]` float32, see `xrec.graph.FoldIn`.
        average_user, average_item: `[L + 1, D]` float32, the trained nodes' mean in every layer.
        item_mean: `[M, D]` float32, the layers averaged.
    """

    user_offsets: np.ndarray
    user_items: np.ndarray
    item_offsets: np.ndarray
    item_users: np.ndarray
    users_by_id: np.ndarray
    items_by_id: np.ndarray
    user_degree: np.ndarray
    item_degree: np.ndarray
    user_map: np.ndarray
    item_map: np.ndarray
    average_user: np.ndarray
    average_item: np.ndarray
    item_mean: np.ndarray

    def __post_init__(self) -> None:
        users, items, dim = len(self.user_degree), *self.item_mean.shape
        shapes = {
            "user_offsets": (users + 1,),
            "item_offsets": (items + 1,),
            "user_items": (self.user_offsets[-1],),
            "item_users": (self.user_offsets[-1],),
            "users_by_id": (users,),
            "items_by_id": (items,),
            "item_degree": (items,),
            "user_map": (dim, dim),
            "item_map": (dim, dim),
            "average_user": (len(self.average_item), dim),
            "average_item": (len(self.average_item), dim),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has the shape {getattr(self, name).shape}, expected {shape}")

    @property
    def of_users(self) -> Neighbours:
        return Neighbours(self.user_offsets, self.user_items)

    @property
    def of_items(self) -> Neighbours:
        return Neighbours(self.item_offsets, self.item_users)

    def save(self, path: str | os.PathLike) -> None:
        """Write a new local file."""
        save_file({f.name: torch.from_numpy(np.ascontiguousarray(getattr(self, f.name))) for f in fields(self)}, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SnapshotArrays":
        """Map a file that `save` wrote.

        Raises:
            ValueError: it holds other arrays, or arrays that do not fit each other.
        """
        with safe_open(os.fspath(path), framework="pt") as file:
            names = {f.name for f in fields(cls)}
            if set(file.keys()) != names:
                raise ValueError(f"it holds {sorted(file.keys())}, expected {sorted(names)}")
            return cls(**{name: file.get_tensor(name).numpy() for name in names})


def derive_arrays(
    embeddings: Embeddings,
    trained: tuple[int, int],
    train: np.ndarray,
    known: np.ndarray,
    by_id: tuple[np.ndarray, np.ndarray],
) -> SnapshotArrays:
    """Compute the arrays of a snapshot.

    Args:
        embeddings: of all nodes.
        trained: how many users and items training has seen; they come first.
        train: `[2, E]` int64 users and items of the training interactions.
        known: `[2, E]` int64 those of the interactions that serving knows of.
        by_id: `users_by_id` and `items_by_id`.
    """
    # It brings the graph library, which those who only look up must not load.
    from xrec.graph.fold_in import FoldIn

    user, item = embeddings.user, embeddings.item
    of_trained = Embeddings(user[:, : trained[0]], item[:, : trained[1]])
    fold_in = FoldIn(of_trained, torch.from_numpy(train))
    users, items = user.shape[1], item.shape[1]
    of_users, of_items = _compressed(known[0], known[1], users), _compressed(known[1], known[0], items)
    return SnapshotArrays(
        user_offsets=of_users.offsets,
        user_items=of_users.others,
        item_offsets=of_items.offsets,
        item_users=of_items.others,
        users_by_id=by_id[0],
        items_by_id=by_id[1],
        user_degree=np.bincount(train[0], minlength=users).astype(np.int32),
        item_degree=np.bincount(train[1], minlength=items).astype(np.int32),
        user_map=fold_in.user_map.numpy(),
        item_map=fold_in.item_map.numpy(),
        average_user=of_trained.user.mean(1).numpy(),
        average_item=of_trained.item.mean(1).numpy(),
        item_mean=embeddings.item_mean().numpy(),
    )


def _compressed(rows: np.ndarray, others: np.ndarray, count: int) -> Neighbours:
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=count), out=offsets[1:])
    return Neighbours(offsets, others[np.lexsort((others, rows))].astype(np.int32))
