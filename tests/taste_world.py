"""A small world in which taste decides: users and items have hidden vectors, and users choose what fits theirs."""

from dataclasses import dataclass

import pyarrow as pa
import torch

from xrec.workspace import Workspace

NEW_USERS, NEW_ITEMS = 20, 10


@dataclass
class TasteWorld:
    users: int
    items: int
    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor


def make_taste_world() -> TasteWorld:
    generator = torch.Generator().manual_seed(7)
    users, items, per_user = 300, 160, 20
    taste = torch.randn(users, 4, generator=generator) @ torch.randn(items, 4, generator=generator).T
    gumbel = -torch.empty(users, items).exponential_(generator=generator).log()
    chosen = (1.5 * taste + gumbel).topk(per_user, dim=1).indices
    pairs = torch.stack([torch.arange(users).repeat_interleave(per_user), chosen.reshape(-1)])
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)]
    train, val, test = pairs.split([int(0.8 * pairs.shape[1]), int(0.1 * pairs.shape[1]), int(0.1 * pairs.shape[1])], 1)
    return TasteWorld(users, items, train, val, test)


def write_preprocess(workspace: Workspace, world, with_val: bool = True) -> None:
    """The stage `preprocess` of the world, its last users and items being zero-shot ones."""
    first_new_user, first_new_item = world.users - NEW_USERS, world.items - NEW_ITEMS
    rows = []
    for split, pairs in (("train", world.train), ("val", world.val), ("test", world.test)):
        for number, (user, item) in enumerate(pairs.T.tolist()):
            zero_shot = user >= first_new_user or item >= first_new_item
            kind = ("fold_in", "test")[number % 2] if zero_shot else split
            if with_val or kind != "val":
                rows.append({"user": user, "item": item, "split": kind})
    stage = workspace.stage("preprocess", {})
    users = [{"user": u, "user_id": f"u{u}", "zero_shot": u >= first_new_user} for u in range(world.users)]
    items = [
        {"item": i, "item_id": f"i{i}", "title": f"item {i}", "zero_shot": i >= first_new_item}
        for i in range(world.items)
    ]
    for name, table in {"users": users, "items_index": items, "interactions": rows}.items():
        stage.write_table(name, pa.Table.from_pylist(table))
    stage.finish()
