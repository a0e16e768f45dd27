"""The interactions of every split as tensors, with the checks that training and fold-in rely on.

Shapes: E interactions, N users, M items.
"""

from dataclasses import dataclass

import pyarrow as pa
import torch

from xrec.tables import SPLITS


@dataclass(frozen=True)
class InteractionSplits:
    """Who interacted with what, split by split; `[2, E]` int64, row 0 the user and row 1 the item.

    Attributes:
        users, items: how many there are, zero-shot ones included.
        trained_users, trained_items: how many of them training sees; zero-shot nodes have the last indices.
        train, val, test: the split. Test interactions of zero-shot nodes are among `test`.
        fold_in: known interactions of zero-shot nodes, from which they are folded in.
    """

    users: int
    items: int
    trained_users: int
    trained_items: int
    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor
    fold_in: torch.Tensor

    @classmethod
    def from_tables(cls, users: pa.Table, items: pa.Table, interactions: pa.Table) -> "InteractionSplits":
        """From the tables `users`, `items_index` and `interactions`.

        Raises:
            ValueError: indices are not 0, 1, 2 …, zero-shot nodes are not last, or an interaction of `train` or
                `val` names a zero-shot or an unknown node.
        """
        trained_users = _trained_prefix("users", users, "user")
        trained_items = _trained_prefix("items_index", items, "item")
        pairs = torch.stack([_column(interactions, "user"), _column(interactions, "item")])
        split = interactions["split"].to_numpy(zero_copy_only=False)
        parts = {s: pairs[:, torch.from_numpy(split == s)] for s in SPLITS}
        for name, part in parts.items():
            zero_shot = name in ("test", "fold_in")
            limits = (len(users), len(items)) if zero_shot else (trained_users, trained_items)
            check_pairs(f"interactions, split {name!r}", part, *limits)
        return cls(len(users), len(items), trained_users, trained_items, **parts)

    def trained_only(self, pairs: torch.Tensor) -> torch.Tensor:
        """The `[2, E]` pairs whose user and item were both seen in training."""
        return pairs[:, (pairs[0] < self.trained_users) & (pairs[1] < self.trained_items)]


def check_pairs(name: str, pairs: torch.Tensor, users: int, items: int) -> None:
    """Raise ValueError unless `pairs` is `[2, E]` int64 with users below `users` and items below `items`."""
    if pairs.ndim != 2 or pairs.shape[0] != 2 or pairs.dtype != torch.int64:
        raise ValueError(
            f"{name}: expected an int64 tensor [2, interactions] of users and items, got {pairs.dtype} "
            f"{list(pairs.shape)}"
        )
    for row, kind, limit in ((0, "user", users), (1, "item", items)):
        bad = torch.nonzero((pairs[row] < 0) | (pairs[row] >= limit)).flatten()
        if len(bad):
            raise ValueError(
                f"{name}: {kind} {int(pairs[row, bad[0]])} at position {int(bad[0])} is not among the {limit} {kind}s "
                f"that may stand there (0 to {limit - 1}); rerun preprocess, or correct the number of {kind}s"
            )


def _trained_prefix(name: str, nodes: pa.Table, key: str) -> int:
    index, zero_shot = _column(nodes, key), torch.tensor(nodes["zero_shot"].to_pylist(), dtype=torch.bool)
    if not torch.equal(index, torch.arange(len(nodes))):
        raise ValueError(f"table {name!r}: column {key!r} does not count 0, 1, 2 …; rerun preprocess")
    trained = int((~zero_shot).sum())
    if bool(zero_shot[:trained].any()):
        first = int(torch.nonzero(zero_shot)[0])
        raise ValueError(
            f"table {name!r}: {key} {first} is zero-shot but comes before trained ones; zero-shot nodes must have the "
            "last indices, rerun preprocess"
        )
    return trained


def _column(table: pa.Table, name: str) -> torch.Tensor:
    return torch.from_numpy(table[name].to_numpy().astype("int64"))
