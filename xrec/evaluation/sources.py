"""What is known of a pair without its own review: the texts that may support what an explanation says.

They are the item's title, attributes, description and profile, the user's profile, and reviews of the item and by the
user, under the leak rule of `profiles/selection.py`: of training pairs alone, and of fold-in pairs for a user or item
that no training has seen; the review of a held-out pair is no source of anything. Where no review has a text, as in the
published data, explanations of training pairs take their place.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.profiles.database import Database
from xrec.profiles.records import cut
from xrec.profiles.selection import Selection
from xrec.workspace import Workspace

REVIEW_CHARACTERS = 1000
"""How much of a review, or of a description, is read."""
_MEMORY, _ROWS = "1GB", 4096


@dataclass(frozen=True)
class Texts:
    """Texts of nodes, any number each.

    Attributes:
        nodes: `[n]`, ascending.
        texts: `[n]`, one of that node each.
    """

    nodes: np.ndarray
    texts: pa.ChunkedArray | pa.Array

    def of(self, node: int) -> list[str]:
        start, end = np.searchsorted(self.nodes, [node, node + 1])
        return self.texts.slice(start, end - start).to_pylist()

    @classmethod
    def collect(cls, rows: Iterable[tuple[int, str]]) -> "Texts":
        """From rows in the order of their nodes, of which only a batch is in Python's memory at a time."""
        nodes: list[np.ndarray] = []
        texts: list[pa.Array] = []
        batch: list[tuple[int, str]] = []

        def close() -> None:
            nodes.append(np.array([node for node, _ in batch], np.int64))
            texts.append(pa.array([text for _, text in batch], pa.string()))
            batch.clear()

        for row in rows:
            batch.append(row)
            if len(batch) == _ROWS:
                close()
        close()
        return cls(np.concatenate(nodes), pa.chunked_array(texts, pa.string()))


class Sources:
    """The sources of any pair of a workspace.

    Args:
        item, user: tables of texts, each of which adds what it has of the node.
        kind: `reviews`, or `explanations` where those of training pairs stand in for them, or `none`.
    """

    def __init__(self, item: list[Texts], user: list[Texts], kind: str):
        self._item, self._user, self.kind = item, user, kind

    @classmethod
    def load(cls, workspace: Workspace, reviews: int, pairs: pa.Table | None = None) -> "Sources":
        """Read them.

        Args:
            workspace: stage `preprocess` finished.
            reviews: how many of an item, and of a user, at most; drawn, always the same ones.
            pairs: `user` and `item` of the pairs that will be asked for, whose nodes alone are kept; default: all.

        Raises:
            WorkspaceError: a table is absent.
        """
        wanted = {side: None if pairs is None else set(pc.unique(pairs[side]).to_pylist()) for side in ("item", "user")}
        index = workspace.read_table("preprocess", "items_index", ["item", "title"])
        item = [_sorted(index["item"], index["title"], wanted["item"]), *_profiles(workspace, "item", wanted["item"])]
        user = _profiles(workspace, "user", wanted["user"])
        kind = "none"
        if workspace.has_table("data", "reviews") and workspace.has_table("data", "items"):
            facts, of_items, of_users = _from_reviews(workspace, reviews, wanted)
            item += [facts, of_items]
            user.append(of_users)
            kind = "reviews" if len(of_items.nodes) + len(of_users.nodes) else "none"
        if kind == "none" and reviews and workspace.has_table(workspace.text_stage("explanations"), "explanations"):
            explained = _training_explanations(workspace)
            item.append(_drawn(explained, "item", reviews, wanted["item"]))
            user.append(_drawn(explained, "user", reviews, wanted["user"]))
            kind = "explanations" if len(explained) else "none"
        return cls(item, user, kind)

    def of(self, user: int, item: int) -> list[str]:
        """Every text that may support something said of the pair."""
        return [text for texts in self._item for text in texts.of(item)] + [
            text for texts in self._user for text in texts.of(user)
        ]


def _profiles(workspace: Workspace, side: str, wanted: set[int] | None) -> list[Texts]:
    table = f"{side}_profiles"
    if not workspace.has_table(workspace.text_stage(table), table):
        return []
    rows = workspace.read_text_table(table)
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    return [_sorted(rows[side], rows["profile"], wanted)]


def _sorted(nodes: pa.ChunkedArray, texts: pa.ChunkedArray, wanted: set[int] | None) -> Texts:
    table = pa.table({"node": nodes, "text": texts})
    if wanted is not None:
        table = table.filter(pc.is_in(table["node"], value_set=pa.array(sorted(wanted), pa.int32())))
    table = table.sort_by("node")
    return Texts(table["node"].to_numpy(), table["text"])


def _from_reviews(workspace: Workspace, reviews: int, wanted: dict[str, set[int] | None]) -> tuple[Texts, Texts, Texts]:
    """What the source says of items, and reviews of items and of users."""
    with Database(workspace, _MEMORY, None, None) as database:
        selection = Selection(database, seed=0, characters=REVIEW_CHARACTERS)
        facts: list[tuple[int, str]] = []
        of_items = Texts.collect(_item_reviews(selection.item_texts(reviews), wanted["item"], facts))
        of_users = Texts.collect(
            (row["user"], cut(row["text"], REVIEW_CHARACTERS))
            for row in selection.user_texts(reviews)
            if row["text"] and (wanted["user"] is None or row["user"] in wanted["user"])
        )
    return Texts.collect(facts), of_items, of_users


def _item_reviews(
    rows: Iterable[dict[str, Any]], wanted: set[int] | None, facts: list[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    """Item and review of each row that has one; attributes and descriptions are appended to `facts`."""
    for row in rows:
        if wanted is None or row["item"] in wanted:
            facts += [(row["item"], told) for told in (_plain(row["attributes"]), row["description"]) if told]
            if row["text"]:
                yield row["item"], cut(row["text"], REVIEW_CHARACTERS)


def _plain(attributes: str | None) -> str:
    """Attributes as words: `city: Ashford; price: $`."""
    if not attributes:
        return ""
    try:
        values = json.loads(attributes)
    except json.JSONDecodeError:
        return cut(attributes, REVIEW_CHARACTERS)
    if not isinstance(values, dict):
        return cut(attributes, REVIEW_CHARACTERS)
    return cut("; ".join(f"{name}: {value}" for name, value in values.items()), REVIEW_CHARACTERS)


def _training_explanations(workspace: Workspace) -> pa.Table:
    """`user`, `item`, `explanation` of the training pairs; those that the graph's split holds out are none."""
    rows = workspace.read_text_table("explanations")
    rows = rows.filter(pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["status"], "ok")))
    rows = rows.select(["user", "item", "explanation"])
    pairs = workspace.read_table("preprocess", "interactions")
    held_out = pairs.filter(pc.is_in(pairs["split"], value_set=pa.array(["val", "test"]))).select(["user", "item"])
    kept = rows.join(held_out, keys=["user", "item"], join_type="left anti")
    return kept.sort_by([("user", "ascending"), ("item", "ascending")])


def _drawn(explained: pa.Table, side: str, count: int, wanted: set[int] | None) -> Texts:
    """At most `count` texts of each node, in an order that is random and always the same."""
    random = np.random.default_rng(0).permutation(len(explained))
    shuffled = explained.take(pa.array(random))
    found = _sorted(shuffled[side], shuffled["explanation"], wanted)
    # Rows of a node follow each other: the place of a row in its node is how far it is from the first one.
    place = np.arange(len(found.nodes)) - np.searchsorted(found.nodes, found.nodes)
    kept = np.flatnonzero(place < count)
    return Texts(found.nodes[kept], found.texts.take(pa.array(kept)))
