"""The users or items of a snapshot, mapped from one Arrow file: row i is index i.

Ids are found by binary search in their sorted order, so that many millions of them need no dictionary in memory.
Shapes: n nodes.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import os
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.workspace import WorkspaceError

# Rows a record batch: a batch's strings stay far below the 2 GiB that one may hold.
_ROWS = 65_536


def sorted_rows(ids: pa.ChunkedArray) -> np.ndarray:
    """`[n]` int32 the rows in the order of their ids (by code point, as Python compares strings).

    Raises:
        WorkspaceError: an id occurs twice.
    """
    order = pc.sort_indices(ids)
    ordered = ids.cast(pa.large_string()).take(order)
    repeated = pc.index(pc.equal(ordered.slice(1), ordered.slice(0, max(0, len(ids) - 1))), True).as_py()
    if repeated >= 0:
        raise WorkspaceError(f"the id {ordered[repeated].as_py()!r} occurs twice; rerun preprocess on data with one")
    return order.to_numpy().astype(np.int32)


def write_nodes(
    path: str | os.PathLike, columns: dict[str, pa.ChunkedArray], nodes: np.ndarray, profiles: pa.ChunkedArray
) -> None:
    """Write the Arrow file.

    Args:
        path: a new local file.
        columns: `id` and, for items, `title`; `[n]`, in index order.
        nodes: `[p]` int64, ascending and distinct: those who have a profile.
        profiles: `[p]` theirs.
    """
    schema = pa.schema([*((name, pa.string()) for name in columns), ("profile", pa.string())])
    with pa.OSFile(os.fspath(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(columns["id"]), _ROWS):
            part = [column.slice(start, _ROWS) for column in columns.values()]
            first, last = np.searchsorted(nodes, [start, start + len(part[0])])
            places = np.full(len(part[0]), -1)
            places[nodes[first:last] - start] = np.arange(last - first)
            taken = profiles.slice(first, last - first).take(pa.array(places, mask=places < 0))
            batch = pa.table([*part, taken], schema=schema).combine_chunks()
            writer.write_table(batch)


class NodeTable:
    """Users or items, looked up by index or by id.

    Args:
        path: a file that `write_nodes` wrote.
        by_id: `[n]` what `sorted_rows` gave.

    Raises:
        ValueError: the file holds another number of rows than `by_id`, or other columns.
    """

    def __init__(self, path: str | os.PathLike, by_id: np.ndarray):
        self.table = pa.ipc.open_file(pa.memory_map(os.fspath(path))).read_all()
        self.by_id: Any = by_id
        if len(self.table) != len(by_id) or not {"id", "profile"} <= set(self.table.column_names):
            raise ValueError(
                f"{path}: {len(self.table)} rows of {', '.join(self.table.column_names)}, expected {len(by_id)} with "
                "id and profile"
            )
        self.ids = self.table["id"]

    def __len__(self) -> int:
        return len(self.by_id)

    def row(self, node_id: str) -> int | None:
        """The index of an id; None where there is no such id."""
        place = self._place(node_id)
        found = place < len(self) and self.id(self.by_id[place]) == node_id
        return int(self.by_id[place]) if found else None

    def id(self, row: int) -> str:
        return self.ids[int(row)].as_py()

    def title(self, row: int) -> str:
        return self.table["title"][int(row)].as_py()

    def profile(self, row: int) -> str | None:
        return self.table["profile"][int(row)].as_py()

    def beginning_with(self, prefix: str, limit: int) -> list[int]:
        """The rows of the first `limit` ids, in their order, that begin with `prefix`."""
        place, found = self._place(prefix), []
        for row in self.by_id[place : place + limit]:
            if not self.id(row).startswith(prefix):
                break
            found.append(int(row))
        return found

    def titled(self, text: str, limit: int, leave_out: Sequence[int] = ()) -> list[int]:
        """The first `limit` rows, in index order, whose title contains `text` in whatever case."""
        if limit < 1 or not _encodable(text):
            return []
        found, start, known = [], 0, set(leave_out)
        for chunk in self.table["title"].chunks:
            matching = np.flatnonzero(pc.match_substring(chunk, text, ignore_case=True).to_numpy(zero_copy_only=False))
            for row in matching[: limit + len(known)] + start:
                if len(found) == limit:
                    return found
                if row not in known:
                    found.append(int(row))
            start += len(chunk)
        return found

    def _place(self, text: str) -> int:
        return bisect_left(self.by_id, text, key=self.id)


def _encodable(text: str) -> bool:
    """Whether Arrow can hold a text: a JSON body may smuggle in half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
