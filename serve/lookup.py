"""The deployment that holds embeddings and profiles: ids in, adapted vectors and texts out."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from serve.metrics import LookupMetrics
from xrec.serving.catalog import Catalog
from xrec.serving.lookup import DatasetLookup
from xrec.serving.queries import ItemQuery, ItemRow, LiveSignal, RequestError, Resolved, UserDetails, UserQuery

T = TypeVar("T")
_log = logging.getLogger("ray.serve")


class EmbeddingLookup:
    """Datasets' snapshots, looked up; a newer snapshot replaces an older one as soon as it is found sound.

    Args:
        datasets: name: workspace; the first is the default.
        refresh_seconds: between looks for newer snapshots.
    """

    def __init__(self, datasets: dict[str, str], refresh_seconds: float):
        self.catalog = Catalog(datasets)
        self.metrics, self.refresh_seconds = LookupMetrics(), refresh_seconds
        self.refreshing = asyncio.get_running_loop().create_task(self._refresh())

    async def resolve(
        self,
        dataset: str | None,
        users: Sequence[UserQuery],
        items: Sequence[ItemQuery],
        signal: LiveSignal,
        evidence: bool,
    ) -> Resolved | RequestError:
        """Everything an explainer needs for pairs, and the evidence behind them."""
        return await self._answer(dataset, lambda name, lookup: _resolve(name, lookup, users, items, signal, evidence))

    async def recommend(
        self, dataset: str | None, user: UserQuery, k: int, signal: LiveSignal, explain: bool, evidence: bool
    ) -> Resolved | RequestError:
        """The user's top-k items with their scores, and, to explain them, what `resolve` gives."""

        def answer(name: str, lookup: DatasetLookup) -> Resolved:
            rows = lookup.recommend(user, k)
            if not explain or not rows:
                snapshot = lookup.snapshot
                return Resolved(name, snapshot.id, snapshot.adapter_hash, rows, [], [], [])
            items = [ItemQuery(item_id=row.item_id) for row in rows]
            resolved = _resolve(name, lookup, [user] * len(items), items, signal, evidence)
            return Resolved(name, *_origin(lookup), rows, resolved.inputs, resolved.averages, resolved.evidence)

        return await self._answer(dataset, answer)

    async def user(self, dataset: str | None, user_id: str) -> tuple[str, UserDetails] | RequestError:
        """A known user's history and profile."""
        return await self._answer(dataset, lambda name, lookup: (name, lookup.user(user_id)))

    async def search_users(
        self, dataset: str | None, query: str, limit: int
    ) -> tuple[str, list[tuple[str, int]]] | RequestError:
        """Ids of known users that begin with a text, and how many interactions each has."""
        return await self._answer(dataset, lambda name, lookup: (name, lookup.search_users(query, limit)))

    async def search_items(
        self, dataset: str | None, query: str, limit: int
    ) -> tuple[str, list[ItemRow]] | RequestError:
        """Known items whose titles contain a text."""
        return await self._answer(dataset, lambda name, lookup: (name, lookup.search_items(query, limit)))

    async def states(self) -> dict[str, Any]:
        """What is served of each dataset."""
        return self.catalog.states()

    async def _answer(self, dataset: str | None, work: Callable[[str, DatasetLookup], T]) -> T | RequestError:
        def answer() -> T:
            return work(dataset or self.catalog.names[0], self.catalog.dataset(dataset))

        # In a thread, so that one large product keeps no other request waiting. A refusal is returned, since it is no
        # fault of this process.
        try:
            return await asyncio.to_thread(answer)
        except RequestError as error:
            return error

    async def _refresh(self) -> None:
        while True:
            for change in await asyncio.to_thread(self.catalog.refresh):
                name, now = change.dataset, change.after
                if change.error is None:
                    _log.info(f"dataset {name}: snapshot {now} instead of {change.before}")
                else:
                    _log.error(f"dataset {name}: a newer snapshot is refused, {now} serves on: {change.error}")
            for name, state in self.catalog.states().items():
                self.metrics.snapshot_refused.set(float(state["error"] is not None), {"dataset": name})
            await asyncio.sleep(self.refresh_seconds)


def _resolve(
    name: str,
    lookup: DatasetLookup,
    users: Sequence[UserQuery],
    items: Sequence[ItemQuery],
    signal: LiveSignal,
    evidence: bool,
) -> Resolved:
    inputs = lookup.resolve(users, items, signal)
    averages: list[Any] = [None] * len(inputs)
    found: list[Any] = [None] * len(inputs)
    if evidence:
        found = [lookup.evidence(user, item) for user, item in zip(users, items, strict=True)]
        if signal == "true":
            averages = [lookup.average_user] * len(inputs)
    rows = [ItemRow(item.item_id or "", one.title) for item, one in zip(items, inputs, strict=True)]
    return Resolved(name, *_origin(lookup), rows, inputs, averages, found)


def _origin(lookup: DatasetLookup) -> tuple[str, str]:
    return lookup.snapshot.id, lookup.snapshot.adapter_hash
