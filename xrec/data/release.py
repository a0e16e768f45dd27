"""Imports a published XRec data folder: the interaction graph, its split, and the texts.

The graph is `total_{trn,val,tst}.csv` (columns user, item), and for a part that has no such file the neighbour lists
`{trn,val,tst}_user_nb` of `para_dict.pickle`; `total.csv` alone is a graph without a split. The texts are the tables
`{trn,val,tst}.pkl` (uid, iid, title, user_summary, item_summary, explanation), whichever are there. Ids become the
strings of the published integers. Reviews have no rating, time or text here: the release has none.

The release names only the items that have texts. The others get the placeholder title `item <id>`, which says nothing
but keeps prompts well formed.

Left out: the published predictions (`tst_pred.pkl`), times in the Amazon files, and the prompts.
"""

import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from xrec.data.unpickling import ReleaseError, load_frame, load_plain

PARTS = {"train": "trn", "val": "val", "test": "tst"}
GRAPH_FILES = (*(f"total_{part}.csv" for part in PARTS.values()), "total.csv", "para_dict.pickle")
TEXT_FILES = tuple(f"{part}.pkl" for part in PARTS.values())
TEXT_COLUMNS = ("title", "user_summary", "item_summary", "explanation")
PAIR = ["user_id", "item_id"]


def release_files(folder: str | os.PathLike) -> list[str]:
    """The names of the files in `folder` that an import reads.

    Raises:
        ReleaseError: it is no folder, or has no graph.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ReleaseError(f"import.path = {str(root)!r} is not a folder; name a published XRec data folder")
    found = [name for name in (*GRAPH_FILES, *TEXT_FILES) if (root / name).is_file()]
    if not set(found) & set(GRAPH_FILES):
        raise ReleaseError(
            f"import.path = {str(root)!r} has no interaction graph; looked for {', '.join(GRAPH_FILES)} "
            f"(and for texts: {', '.join(TEXT_FILES)})"
        )
    return found


def read_release(folder: str | os.PathLike) -> tuple[dict[str, pa.Table], dict[str, int]]:
    """Read a published XRec data folder.

    Returns:
        tables: `reviews`, `items`, and where the release has them `source_split`, `source_item_profiles`,
            `source_user_profiles`, `source_explanations`, for `tables.validate`.
        counts: sizes; interactions and explanations whose pair occurred before (`dropped/<table>/duplicate`); further
            texts of a node that has one (`dropped/<table>/conflict`). The first is kept.

    Raises:
        ReleaseError: a file is absent, malformed, or refers to something that is refused.
    """
    root, found = Path(folder), release_files(folder)
    counts: dict[str, int] = {}
    graph = _graph(root, found)
    pairs = _first_of_each(graph, PAIR, counts, "interactions")
    texts = _texts(root, found)
    explanations = _first_of_each(texts, PAIR, counts, "explanations")
    item_texts = _first_of_each(texts, ["item_id"], counts, "item_profiles", "item_summary")
    user_texts = _first_of_each(texts, ["user_id"], counts, "user_profiles", "user_summary")
    reviews = pairs.select(PAIR)
    for column, kind in (("rating", pa.float32()), ("timestamp", pa.int64()), ("text", pa.string())):
        reviews = reviews.append_column(column, pa.nulls(pairs.num_rows, kind))
    tables = {"reviews": reviews, "items": _items(pairs, texts, item_texts)}
    split = pairs.filter(pc.is_valid(pairs["split"]))
    if split.num_rows:
        tables["source_split"] = split
    if texts.num_rows:
        tables["source_item_profiles"] = _with_provenance(item_texts, {"item_id": "item_id", "item_summary": "profile"})
        tables["source_user_profiles"] = _with_provenance(user_texts, {"user_id": "user_id", "user_summary": "profile"})
        kept = {"user_id": "user_id", "item_id": "item_id", "split": "split", "explanation": "explanation"}
        table = _with_provenance(explanations, kept)
        tables["source_explanations"] = table.append_column("feature", pa.nulls(table.num_rows, pa.string()))
    return tables, counts | _sizes(tables)


def _graph(root: Path, found: list[str]) -> pa.Table:
    """user_id, item_id, split of every edge: train, val, test, then those that are in `total.csv` alone."""
    neighbours = load_plain(root / "para_dict.pickle") if "para_dict.pickle" in found else None
    parts = []
    for split, part in PARTS.items():
        if f"total_{part}.csv" in found:
            parts.append(_edges(*_read_edges(root / f"total_{part}.csv"), split))
        elif neighbours is not None:
            parts.append(_edges(*_neighbour_edges(root / "para_dict.pickle", neighbours, f"{part}_user_nb"), split))
    if parts and len(parts) < len(PARTS):
        absent = [f"total_{part}.csv" for part in PARTS.values() if f"total_{part}.csv" not in found]
        raise ReleaseError(
            f"import.path = {str(root)!r}: a part of the graph is missing; looked for {', '.join(absent)}, and for "
            "para_dict.pickle in their place"
        )
    if "total.csv" in found:
        parts.append(_edges(*_read_edges(root / "total.csv"), None))
    whole = pa.concat_tables(parts)
    in_a_part = pc.is_valid(whole["split"])
    alone = whole.filter(pc.invert(in_a_part)).join(whole.filter(in_a_part), keys=PAIR, join_type="left anti")
    return pa.concat_tables([whole.filter(in_a_part), alone.select(whole.column_names)])


def _edges(user: pa.ChunkedArray | pa.Array, item: pa.ChunkedArray | pa.Array, split: str | None) -> pa.Table:
    splits = pa.array([split] * len(user), pa.string())
    return pa.table({"user_id": user.cast(pa.string()), "item_id": item.cast(pa.string()), "split": splits})


def _read_edges(path: Path) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    integers = {"user": pa.int64(), "item": pa.int64()}
    try:
        table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=integers))
    except pa.ArrowInvalid as error:
        raise ReleaseError(f"{path}: not a table of integer user and item ids ({error}); get the file again") from error
    for column in integers:
        if column not in table.column_names:
            raise ReleaseError(
                f"{path}: the column {column!r} is missing (found: {', '.join(table.column_names)}); add it"
            )
        if table[column].null_count:
            row = pc.index(pc.is_null(table[column]), True).as_py()
            raise ReleaseError(f"{path}: column {column!r} is empty in data row {row}; fill it in or drop the row")
    return table["user"], table["item"]


def _neighbour_edges(path: Path, neighbours: Any, key: str) -> tuple[pa.Array, pa.Array]:
    """The edges of a list that holds, for each user, the list of that user's items."""
    if not isinstance(neighbours, dict) or key not in neighbours:
        keys = ", ".join(map(repr, neighbours)) if isinstance(neighbours, dict) else type(neighbours).__name__
        raise ReleaseError(f"{path}: the entry {key!r} is missing (found: {keys}); add it, or a total_*.csv")
    try:
        lists = pa.array(neighbours[key], pa.list_(pa.int64()))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ReleaseError(f"{path}: entry {key!r} is not a list of lists of item ids ({error})") from error
    return pc.list_parent_indices(lists), pc.list_flatten(lists)


def _texts(root: Path, found: list[str]) -> pa.Table:
    """user_id, item_id, split and the cleaned text columns of every row of the text files."""
    parts = []
    for split, part in PARTS.items():
        if f"{part}.pkl" not in found:
            continue
        path = root / f"{part}.pkl"
        frame = load_frame(path)
        absent = [c for c in ("uid", "iid", *TEXT_COLUMNS) if c not in frame]
        if absent:
            raise ReleaseError(f"{path}: the column {absent[0]!r} is missing (found: {', '.join(map(str, frame))})")
        edges = _edges(_ids(path, "uid", frame["uid"]), _ids(path, "iid", frame["iid"]), split)
        for column in TEXT_COLUMNS:
            edges = edges.append_column(column, _cleaned(path, column, frame[column]))
        parts.append(edges)
    empty = pa.schema([(c, pa.string()) for c in (*PAIR, "split", *TEXT_COLUMNS)]).empty_table()
    return pa.concat_tables([empty, *parts])


def _ids(path: Path, column: str, values: np.ndarray) -> pa.Array:
    try:
        ids = pa.array(values.tolist(), pa.int64())
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ReleaseError(f"{path}: column {column!r} does not hold integer ids ({error})") from error
    if ids.null_count:
        raise ReleaseError(f"{path}: column {column!r} is empty in row {pc.index(pc.is_null(ids), True)}; drop the row")
    return ids


def _cleaned(path: Path, column: str, values: Iterable) -> pa.Array:
    texts = []
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise ReleaseError(f"{path}: column {column!r}, row {row}: {value!r} is not a text; drop the row")
        texts.append(clean_text(value))
    return pa.array(texts, pa.string())


def clean_text(text: str) -> str:
    """Published text as plain text: HTML entities decoded, white space single, quotes around the whole taken off."""
    plain = " ".join(html.unescape(text).split())
    quoted = len(plain) > 2 and plain[0] == plain[-1] == '"' and '"' not in plain[1:-1]
    return plain[1:-1].strip() if quoted else plain


def _first_of_each(
    table: pa.Table, key: list[str], counts: dict[str, int], name: str, text: str | None = None
) -> pa.Table:
    """The first row of each key; what goes is counted: every other row or, given `text`, every other value of it."""
    numbered = table.append_column("row", pa.array(np.arange(table.num_rows)))
    first = numbered.group_by(key).aggregate([("row", "min")])["row_min"]
    kept = table.take(first.take(pc.sort_indices(first)))
    if text is None:
        counts[f"dropped/{name}/duplicate"] = table.num_rows - kept.num_rows
    else:
        distinct = table.select([*key, text]).group_by([*key, text]).aggregate([])
        counts[f"dropped/{name}/conflict"] = distinct.num_rows - kept.num_rows
    return kept


def _items(pairs: pa.Table, texts: pa.Table, item_texts: pa.Table) -> pa.Table:
    ids = pc.unique(pa.chunked_array([*pairs["item_id"].chunks, *texts["item_id"].chunks]))
    title = item_texts["title"].take(pc.index_in(ids, value_set=item_texts["item_id"]))
    nothing = pa.nulls(len(ids), pa.string())
    named = pc.coalesce(title, pc.binary_join_element_wise("item ", ids, ""))
    return pa.table({"item_id": ids, "title": named, "attributes": nothing, "description": nothing})


def _with_provenance(table: pa.Table, columns: dict[str, str]) -> pa.Table:
    zeros = pa.array(np.zeros(table.num_rows, dtype=np.int64))
    provenance = {
        "model": pa.repeat("xrec-release", table.num_rows),
        "prompt_hash": pa.repeat("", table.num_rows),
        "tokens_in": zeros,
        "tokens_out": zeros,
        "status": pa.repeat("ok", table.num_rows),
        "error": pa.nulls(table.num_rows, pa.string()),
    }
    return pa.table({new: table[old] for old, new in columns.items()} | provenance)


def _sizes(tables: dict[str, pa.Table]) -> dict[str, int]:
    sizes = {"interactions": tables["reviews"].num_rows, "items": tables["items"].num_rows}
    sizes["users"] = len(pc.unique(tables["reviews"]["user_id"]))
    for name, table in (("interactions", "source_split"), ("explanations", "source_explanations")):
        if table in tables:
            for count in pc.value_counts(tables[table]["split"]).to_pylist():
                sizes[f"{name}/{count['values']}"] = count["counts"]
    return sizes
