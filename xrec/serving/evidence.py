"""What stands behind a pair's vectors: similar users who chose the item, and the user's own items that are like it."""

import numpy as np

from xrec.serving.nodes import Node, averaged, best, cosine
from xrec.serving.queries import Evidence, ItemRow, SimilarUser
from xrec.serving.snapshot import Snapshot

_SHOWN, _SHARED = 5, 3
# An item may have been chosen by millions: of more than this, evenly spaced ones are compared.
_COMPARED = 20_000


def evidence(snapshot: Snapshot, user: Node, item: Node) -> Evidence:
    """The evidence of a pair; either side may be new."""
    own = _some(user.others[user.others != (-1 if item.row is None else item.row)])
    similarities = cosine(averaged(snapshot, "item", own), item.embedding)
    nearest = best(similarities, _SHOWN)
    rows = [_item_row(snapshot, int(own[place]), float(similarities[place])) for place in nearest]
    return Evidence(float(user.embedding @ item.embedding), _similar_users(snapshot, user, item), rows)


def _similar_users(snapshot: Snapshot, user: Node, item: Node) -> list[SimilarUser]:
    choosers = _some(item.others[item.others != (-1 if user.row is None else user.row)])
    similarities = cosine(averaged(snapshot, "user", choosers), user.embedding)
    found = []
    for place in best(similarities, _SHOWN):
        chooser = int(choosers[place])
        shared = np.intersect1d(snapshot.arrays.of_users.of(chooser), user.others, assume_unique=True)
        # The items nearest to the one in question say most about it.
        nearness = cosine(averaged(snapshot, "item", shared), item.embedding)
        rows = [_item_row(snapshot, int(shared[k])) for k in best(nearness, _SHARED)]
        found.append(SimilarUser(snapshot.users.id(chooser), float(similarities[place]), rows))
    return found


def _some(nodes: np.ndarray) -> np.ndarray:
    if len(nodes) <= _COMPARED:
        return nodes
    return nodes[np.linspace(0, len(nodes) - 1, _COMPARED).astype(np.int64)]


def _item_row(snapshot: Snapshot, row: int, score: float | None = None) -> ItemRow:
    items = snapshot.items
    return ItemRow(items.id(row), items.title(row), score)
