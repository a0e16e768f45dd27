"""One dataset's lookups: what an explainer needs for a pair, what a user may like, who is there.

A lookup never changes: it belongs to one snapshot, and threads may share it. Shapes: M items, D embedding width, H the
backbone's hidden size.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch

from xrec.explainer.vectors import Side
from xrec.serving.evidence import evidence
from xrec.serving.nodes import Node, best, find_item, find_user, known_row
from xrec.serving.queries import (
    Evidence,
    ItemQuery,
    ItemRow,
    LiveSignal,
    PairInputs,
    RequestError,
    UserDetails,
    UserQuery,
)
from xrec.serving.snapshot import Snapshot

_Query = TypeVar("_Query", UserQuery, ItemQuery)


class DatasetLookup:
    """Answers from a snapshot.

    Args:
        snapshot: an open one.

    Attributes:
        average_user: `[H]` float32, the adapted vector of the mean embedding of the trained users.
    """

    def __init__(self, snapshot: Snapshot):
        self.snapshot = snapshot
        average = torch.from_numpy(snapshot.arrays.average_user.mean(0))
        self.average_user = self._adapted("user", average[None])[0]

    def resolve(
        self, users: Sequence[UserQuery], items: Sequence[ItemQuery], signal: LiveSignal = "true"
    ) -> list[PairInputs]:
        """What an explainer needs for each pair; a query that occurs several times is looked up once.

        Args:
            users, items: of the same length; pair k is `users[k]` and `items[k]`.
            signal: `true`; `off` for no vectors; `average` for the vector of the mean embedding of the trained users in
                place of each user's.

        Raises:
            RequestError: a user or an item is unknown, or a new one has no interactions; it says in which pair.
        """
        of_users, of_items = _each_once(users, self._user), _each_once(items, self._item)
        user_vectors = self._vectors("user", of_users, signal)
        item_vectors = self._vectors("item", of_items, signal)
        spec, pairs = self.snapshot.spec, []
        for user, item in zip(users, items, strict=True):
            pairs.append(
                PairInputs(
                    user_vector=user_vectors[user],
                    item_vector=item_vectors[item],
                    title=of_items[item].title,
                    user_profile=of_users[user].profile,
                    item_profile=of_items[item].profile,
                    prompt=spec.prompt,
                    prompt_hash=spec.prompt_hash,
                    backbone=self.snapshot.backbone_key,
                    adapter_hash=self.snapshot.adapter_hash,
                    cold_start=of_users[user].row is None or of_items[item].row is None,
                )
            )
        return pairs

    def recommend(self, user: UserQuery, k: int) -> list[ItemRow]:
        """LightGCN's best items by the inner product of embeddings (Eq. 9, arXiv 2406.02377), known ones left out.

        Args:
            user: known or new.
            k: how many; there are fewer where fewer are left.

        Raises:
            RequestError: the user is unknown, a new one has no interactions, or `k` is below 1.
        """
        _check_at_least_one("k", k)
        node, items = self._user(user), self.snapshot.items
        scores = self.snapshot.arrays.item_mean @ node.embedding
        scores[node.others] = -np.inf
        chosen = best(scores, min(k, len(scores) - len(node.others)))
        return [ItemRow(items.id(row), items.title(row), float(scores[row])) for row in chosen]

    def evidence(self, user: UserQuery, item: ItemQuery) -> Evidence:
        """What stands behind a pair; at most 5 similar users, at most 5 items of the user's own.

        Raises:
            RequestError: as `resolve`.
        """
        return evidence(self.snapshot, self._user(user), self._item(item))

    def user(self, user_id: str) -> UserDetails:
        """A known user with all that the dataset knows of their choices.

        Raises:
            RequestError: the user is unknown.
        """
        users, items = self.snapshot.users, self.snapshot.items
        row = known_row(users, "user", user_id)
        history = [ItemRow(items.id(i), items.title(i)) for i in self.snapshot.arrays.of_users.of(row)]
        return UserDetails(user_id, users.profile(row), row >= self.snapshot.trained_users, history)

    def search_users(self, query: str = "", limit: int = 20) -> list[tuple[str, int]]:
        """Ids that begin with `query`, in their order, and how many items each user is known to have chosen."""
        _check_at_least_one("limit", limit)
        users, count = self.snapshot.users, self.snapshot.arrays.of_users.count
        return [(users.id(row), count(row)) for row in users.beginning_with(query, limit)]

    def search_items(self, query: str = "", limit: int = 20) -> list[ItemRow]:
        """Items whose id begins with `query`, in the order of their ids, then those whose title contains it."""
        _check_at_least_one("limit", limit)
        items, count = self.snapshot.items, self.snapshot.arrays.of_items.count
        rows = items.beginning_with(query, limit)
        rows += items.titled(query, limit - len(rows), rows)
        return [ItemRow(items.id(row), items.title(row), interactions=count(row)) for row in rows]

    def _user(self, query: UserQuery) -> Node:
        return find_user(self.snapshot, query)

    def _item(self, query: ItemQuery) -> Node:
        return find_item(self.snapshot, query)

    def _vectors(self, side: Side, nodes: dict[_Query, Node], signal: LiveSignal) -> dict[_Query, np.ndarray | None]:
        """`[H]` float32 for each query."""
        if signal == "off" or not nodes:
            return dict.fromkeys(nodes)
        if signal == "average" and side == "user":
            return dict.fromkeys(nodes, self.average_user)
        embeddings = torch.from_numpy(np.stack([node.embedding for node in nodes.values()]))
        return dict(zip(nodes, self._adapted(side, embeddings), strict=True))

    @torch.inference_mode()
    def _adapted(self, side: Side, embeddings: torch.Tensor) -> np.ndarray:
        return getattr(self.snapshot.adapter, side)(embeddings).float().numpy()


def _each_once(queries: Sequence[_Query], find: Callable[[_Query], Node]) -> dict[_Query, Node]:
    found: dict[_Query, Node] = {}
    for index, query in enumerate(queries):
        if query not in found:
            try:
                found[query] = find(query)
            except RequestError as error:
                raise RequestError(error.status, error.code, error.message, error.field, index) from error
    return found


def _check_at_least_one(field: str, value: int) -> None:
    if value < 1:
        raise RequestError(422, f"{field}_out_of_range", f"{field} = {value} must be 1 or more", field)
