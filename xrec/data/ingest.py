"""One chunk of a dump to one parquet file, written whole or not at all, which carries its counts.

A chunk whose file is there is done. Which task does which chunk, and when, is the job's business; what the rows are is
`source_reading.py`'s and its neighbours'.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xrec.config import IngestConfig
from xrec.data.dropped import Tally
from xrec.data.item_records import item_row, missing_field, stored
from xrec.data.review_filters import ReviewRules, filter_reviews
from xrec.data.source_layouts import Kind
from xrec.data.source_reading import Chunk, position_unit, read_items, read_reviews
from xrec.data.sources import SourceFile
from xrec.tables import spec_of, validate
from xrec.workspace import Workspace

STAGE, WORK = "data", "work"
# Items are written to the working folder first: which of them are repeated is known when all have been read.
FOLDERS: dict[Kind, tuple[str, ...]] = {"items": (WORK, "items"), "reviews": ("reviews",)}
_COUNTS = b"xrec.ingest"
_ROW_GROUP_BYTES = 16 << 20
_ITEM_ROWS = 5_000
# Snappy, because with zstd the writing would cost as much as the parsing; no statistics of texts.
_PARQUET = {"compression": "snappy", "use_dictionary": ["item_id"], "write_statistics": ["user_id", "item_id"]}
_POSITION = pa.field("position", pa.int64())


@dataclass(frozen=True)
class Dump:
    """What every task needs to know."""

    files: list[SourceFile]
    config: IngestConfig


def ingest_chunk(workspace: Workspace, dump: Dump, chunk: Chunk) -> Tally:
    """Read a chunk and write its part of `reviews` or of the items found.

    Raises:
        SourceError: the file is damaged.
        OSError: it cannot be read, or the part cannot be written.
    """
    file, tally = dump.files[chunk.file], Tally()
    if file.kind == "reviews":
        rules = ReviewRules.of(dump.config, file.layout.stars)
        listed = listed_items(workspace) if dump.config.unlisted_items == "drop" else None
        where = (file.name, position_unit(file))
        tables = (
            validate("reviews", filter_reviews(table, rules, _relevant(listed, table), tally, where))
            for table in read_reviews(file, chunk, tally)
        )
        schema = spec_of("reviews").schema
    else:
        tables = _item_tables(file, chunk, dump.config.required_item_fields, tally)
        schema = spec_of("items").schema.append(_POSITION)
    _write_part(workspace, (*FOLDERS[file.kind or "items"], chunk.part), schema, tables, tally)
    return tally


def chunk_tally(workspace: Workspace, *parts: str) -> Tally:
    """The counts that a part's file carries."""
    with workspace.fs.open(workspace.path(STAGE, *parts), "rb") as file:
        metadata = pq.read_metadata(file).metadata
    return Tally.from_json(json.loads(metadata[_COUNTS]))


def listed_items(workspace: Workspace) -> pa.Array:
    """The ids of the items found."""
    return pa.concat_arrays([pa.array([], pa.string()), *_columns(workspace, *FOLDERS["items"])])


def write_items(workspace: Workspace, dump: Dump, tally: Tally) -> int:
    """Write the table `items` from the items found, the first of each id; returns the number of rows.

    Args:
        tally: counts of the items found; repeated (and, where the settings say so, unreviewed) ones are added to it.
    """
    folder = FOLDERS["items"]
    ids = listed_items(workspace)
    codes = ids.dictionary_encode().indices.to_numpy()
    first = np.zeros(len(ids), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    reviewed = np.ones(len(ids), dtype=bool)
    if dump.config.unreviewed_items == "drop":
        reviewed = pc.is_in(ids, value_set=_reviewed_items(workspace)).to_numpy(zero_copy_only=False)
    schema, row = spec_of("items").schema, 0
    for part in workspace.files(STAGE, *folder):
        with workspace.fs.open(workspace.path(STAGE, *folder, part), "rb") as source:
            table = pq.ParquetFile(source).read()
        here = slice(row, row + table.num_rows)
        row += table.num_rows
        file = dump.files[int(part.split("-")[1])]
        for reason, bad in (("repeated_item", ~first[here]), ("unreviewed_item", first[here] & ~reviewed[here])):
            examples = ({"file": file.name, position_unit(file): p, "detail": i} for p, i in _rows(table, bad))
            tally.drop(reason, int(bad.sum()), examples)
        kept = table.filter(pa.array(first[here] & reviewed[here])).drop_columns("position")
        with workspace.open_new(STAGE, "items", part) as target:
            pq.write_table(validate("items", kept), target, compression="zstd")
    if not workspace.files(STAGE, "items"):
        workspace.write_table(schema.empty_table(), STAGE, "items")
    tally.kept = int((first & reviewed).sum())
    return tally.kept


def _rows(table: pa.Table, bad: np.ndarray) -> Iterator[tuple[int, str]]:
    for row in np.flatnonzero(bad).tolist():
        yield table["position"][row].as_py(), table["item_id"][row].as_py()


def _item_tables(file: SourceFile, chunk: Chunk, required: Iterable[str], tally: Tally) -> Iterator[pa.Table]:
    schema = spec_of("items").schema.append(_POSITION)
    unit, rows = position_unit(file), []
    for position, record in read_items(file, chunk, tally):
        row = item_row(record, file.layout)
        if row["item_id"] is None:
            tally.drop("missing_item_id", 1, [{"file": file.name, unit: position}])
            continue
        missing = missing_field(row, required)
        if missing is not None:
            tally.drop(f"missing_{missing}", 1, [{"file": file.name, unit: position, "detail": row["item_id"]}])
            continue
        tally.kept += 1
        rows.append({**stored(row), "position": position})
        if len(rows) == _ITEM_ROWS:
            yield pa.Table.from_pylist(rows, schema=schema)
            rows = []
    yield pa.Table.from_pylist(rows, schema=schema)


def _write_part(
    workspace: Workspace, parts: tuple[str, ...], schema: pa.Schema, tables: Iterable[pa.Table], tally: Tally
) -> None:
    """Row groups of a bounded size, and the counts in the file's footer: both appear together."""
    with (
        workspace.open_new(STAGE, *parts) as target,
        pq.ParquetWriter(target, schema, **_PARQUET) as writer,
    ):
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table.cast(schema))
            if sum(t.nbytes for t in waiting) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
        writer.add_key_value_metadata({_COUNTS: json.dumps(tally.as_json()).encode()})


def _relevant(listed: pa.Array | None, table: pa.Table) -> pa.Array | None:
    """Those of the listed ids that occur in the table: a look-up in all of them would cost more than the parsing."""
    return (
        None if listed is None else listed.filter(pc.is_in(listed, value_set=pc.utf8_trim_whitespace(table["item_id"])))
    )


def _columns(workspace: Workspace, *folder: str) -> Iterator[pa.Array]:
    for part in workspace.files(STAGE, *folder):
        with workspace.fs.open(workspace.path(STAGE, *folder, part), "rb") as file:
            yield pq.ParquetFile(file).read(columns=["item_id"])["item_id"].combine_chunks()


def _reviewed_items(workspace: Workspace) -> pa.Array:
    known = pa.array([], pa.string())
    for column in _columns(workspace, *FOLDERS["reviews"]):
        known = pc.unique(pa.concat_arrays([known, pc.unique(column)]))
    return known
