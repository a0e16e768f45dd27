"""From who is asked for to what is known of them: a known node's row, or a new node folded in from its interactions.

Shapes: L layers, D embedding width, n nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrec.explainer.vectors import Side
from xrec.serving.node_table import NodeTable
from xrec.serving.queries import ItemQuery, RequestError, UserQuery
from xrec.serving.snapshot import Snapshot

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Node:
    """A user or an item.

    Attributes:
        row: its index; None for a new one.
        embedding: `[D]` float32, layers averaged.
        others: `[n]` int32 the nodes that it has interacted with, ascending.
        profile: its text, where there is one.
        title: an item's; empty for users.
    """

    row: int | None
    embedding: np.ndarray
    others: np.ndarray
    profile: str | None
    title: str = ""


def find_user(snapshot: Snapshot, query: UserQuery) -> Node:
    """The user that a query means.

    Raises:
        RequestError: the user, or an item of a new user, is unknown; or the query names nobody.
    """
    if query.user_id is None:
        others = _known(snapshot.items, "item", query.interactions, "interactions")
        return Node(None, fold_in(snapshot, "user", others).mean(0), others, query.profile)
    _check_known_alone(query, "user_id")
    row = known_row(snapshot.users, "user", query.user_id)
    embedding = averaged(snapshot, "user", np.array([row]))[0]
    return Node(row, embedding, snapshot.arrays.of_users.of(row), snapshot.users.profile(row))


def find_item(snapshot: Snapshot, query: ItemQuery) -> Node:
    """The item that a query means; raises as `find_user`."""
    if query.item_id is None:
        others = _known(snapshot.users, "user", query.interactions, "item.interactions")
        return Node(None, fold_in(snapshot, "item", others).mean(0), others, query.profile, query.title)
    _check_known_alone(query, "item_id")
    row = known_row(snapshot.items, "item", query.item_id)
    others = snapshot.arrays.of_items.of(row)
    return Node(row, snapshot.arrays.item_mean[row], others, snapshot.items.profile(row), snapshot.items.title(row))


def known_row(table: NodeTable, side: Side, node_id: str, field: str | None = None) -> int:
    """The row of an id; RequestError 404 where there is none."""
    row = table.row(node_id)
    if row is None:
        raise RequestError(
            404,
            f"{side}_not_found",
            f"the {side} {node_id!r} is not in this dataset; send a known id, or the interactions of a new {side}",
            field or f"{side}_id",
        )
    return row


def averaged(snapshot: Snapshot, side: Side, rows: np.ndarray) -> np.ndarray:
    """`[n, D]` float32 embeddings of known nodes, layers averaged (paper Eq. 8, arXiv 2406.02377)."""
    if side == "item":
        return snapshot.arrays.item_mean[rows]
    return snapshot.embeddings.user.numpy()[:, rows].mean(0)


def fold_in(snapshot: Snapshot, side: Side, others: np.ndarray) -> np.ndarray:
    """`[L + 1, D]` of a new node with known neighbours: what `xrec.graph.FoldIn` computes, from stored statistics.

    Args:
        side: the new node's.
        others: `[n]` its neighbours, at least one.
    """
    arrays = snapshot.arrays
    known = (snapshot.embeddings.item if side == "user" else snapshot.embeddings.user).numpy()
    degrees = (arrays.item_degree if side == "user" else arrays.user_degree)[others]
    weights = 1 / np.sqrt(len(others) * np.maximum(degrees, 1), dtype=np.float32)
    upper = np.einsum("lnd,n->ld", known[:-1, others], weights)
    return np.concatenate([upper[:1] @ (arrays.user_map if side == "user" else arrays.item_map), upper])


def cosine(embeddings: np.ndarray, one: np.ndarray) -> np.ndarray:
    """`[n]` cosine similarities of `[n, D]` to `[D]`; 0 where a vector is 0."""
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(one)
    return embeddings @ one / np.maximum(lengths, _TINY)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` highest of `[n]` scores, highest first; equal ones in their order."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    if count < 1:
        return np.empty(0, np.int64)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:count]]


def _known(table: NodeTable, side: Side, ids: Sequence[str], field: str) -> np.ndarray:
    """`[n]` int32 the distinct nodes, ascending, that a new node has interacted with."""
    if not ids:
        raise RequestError(
            422,
            "interactions_empty",
            f"{field} is empty: a new node is known by its interactions alone; name at least one {side}, or send an id",
            field,
        )
    rows = [known_row(table, side, node_id, f"{field}.{place}") for place, node_id in enumerate(ids)]
    return np.unique(np.array(rows, np.int32))


def _check_known_alone(query: UserQuery | ItemQuery, field: str) -> None:
    if query.interactions:
        raise RequestError(
            422, "interactions_not_allowed", f"{field} and interactions exclude each other; send one of them", field
        )
