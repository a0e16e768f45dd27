"""The schema of every table that stages exchange, and `validate`, the contract between them.

Keys ending in `_id` are the source's own strings; `user` and `item` are the contiguous int32 indices
that `preprocess` assigns. What a file is called and where it lies is `workspace.py`'s business.
"""

from dataclasses import dataclass, field

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "val", "test", "fold_in")
STATUSES = ("ok", "failed")
SIGNALS = ("true", "shuffled", "other_user", "off")
FINISH_REASONS = ("stop", "sentence", "length")


class TableError(ValueError):
    """A table breaks its schema; the message names the table, column, row and remedy."""


@dataclass(frozen=True)
class TableSpec:
    """The contract of one table.

    Attributes:
        schema: column names and types; `nullable=False` columns may hold no null, and only nullable ones may be absent.
        key: the columns that identify a row; no two rows may share their values.
        allowed: for a column, the only values that it may hold.
        open: whether further columns are allowed (`scores` has one column a metric).
    """

    schema: pa.Schema
    key: tuple[str, ...] = ()
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    open: bool = False


def _column(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _optional(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=True)


_STR, _INDEX = pa.string(), pa.int32()
_USER_ID, _ITEM_ID = _column("user_id", _STR), _column("item_id", _STR)
_USER, _ITEM = _column("user", _INDEX), _column("item", _INDEX)
_PROVENANCE = [
    _column("model", _STR),
    _column("prompt_hash", _STR),
    _column("tokens_in", pa.int64()),
    _column("tokens_out", pa.int64()),
    _column("status", _STR),
    _optional("error", _STR),
    _optional("attempts", pa.int32()),
    _optional("latency", pa.float32()),
    _optional("cost", pa.float64()),
]
_STATUS = {"status": STATUSES}


def _spec(fields: list[pa.Field], key: tuple[str, ...], **options) -> TableSpec:
    return TableSpec(pa.schema(fields), key, **options)


TABLES: dict[str, TableSpec] = {
    # Written by sample / import / ingest into the folder `data`, keyed by the source's own ids.
    # A user may review an item twice: `reviews` has no key; preprocess keeps the latest.
    "reviews": _spec(
        [
            _USER_ID,
            _ITEM_ID,
            _optional("rating", pa.float32()),
            _optional("timestamp", pa.int64()),
            _optional("text", _STR),
        ],
        (),
    ),
    "items": _spec(
        [_ITEM_ID, _column("title", _STR), _optional("attributes", _STR), _optional("description", _STR)],
        ("item_id",),
    ),
    "source_item_profiles": _spec([_ITEM_ID, _column("profile", _STR), *_PROVENANCE], ("item_id",), allowed=_STATUS),
    "source_user_profiles": _spec([_USER_ID, _column("profile", _STR), *_PROVENANCE], ("user_id",), allowed=_STATUS),
    "source_explanations": _spec(
        [
            _USER_ID,
            _ITEM_ID,
            _optional("split", _STR),
            _column("explanation", _STR),
            _optional("feature", _STR),
            *_PROVENANCE,
        ],
        ("user_id", "item_id"),
        allowed={**_STATUS, "split": SPLITS},
    ),
    "source_split": _spec(
        [_USER_ID, _ITEM_ID, _column("split", _STR)], ("user_id", "item_id"), allowed={"split": SPLITS}
    ),
    # Written by preprocess, keyed by index.
    "users": _spec([_USER, _USER_ID, _column("zero_shot", pa.bool_())], ("user",)),
    "items_index": _spec([_ITEM, _ITEM_ID, _column("title", _STR), _column("zero_shot", pa.bool_())], ("item",)),
    "interactions": _spec([_USER, _ITEM, _column("split", _STR)], ("user", "item"), allowed={"split": SPLITS}),
    # Written by preprocess (texts that came with the source) or by profile (texts written here).
    "item_profiles": _spec([_ITEM, _column("profile", _STR), *_PROVENANCE], ("item",), allowed=_STATUS),
    "user_profiles": _spec([_USER, _column("profile", _STR), *_PROVENANCE], ("user",), allowed=_STATUS),
    "explanations": _spec(
        [_USER, _ITEM, _column("split", _STR), _column("explanation", _STR), _optional("feature", _STR), *_PROVENANCE],
        ("user", "item"),
        allowed={**_STATUS, "split": SPLITS},
    ),
    # Written by explain and evaluate.
    "predictions": _spec(
        [
            _USER,
            _ITEM,
            _column("signal", _STR),
            _column("explanation", _STR),
            _optional("finish_reason", _STR),
            _column("tokens", pa.int32()),
            _column("latency", pa.float32()),
            _column("adapter_hash", _STR),
            _column("status", _STR),
            _optional("error", _STR),
        ],
        ("user", "item", "signal"),
        allowed={**_STATUS, "signal": SIGNALS, "finish_reason": FINISH_REASONS},
    ),
    "scores": _spec(
        [_USER, _ITEM, _column("signal", _STR)], ("user", "item", "signal"), allowed={"signal": SIGNALS}, open=True
    ),
}


def spec_of(name: str) -> TableSpec:
    """The contract of table `name`; ValueError names the known tables if there is none."""
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}; the tables are {', '.join(TABLES)}")
    return TABLES[name]


def validate(name: str, table: pa.Table, columns: list[str] | None = None) -> pa.Table:
    """Check `table` against the schema called `name` and return it in the schema's column order and types.

    Args:
        name: a key of `TABLES`.
        table: any number of rows; types that cast without loss (int64 to int32, large_string to string) are cast.
        columns: the part of the schema that is read: other columns are neither checked nor returned, and keys only
            where all of their columns are read. Default: the whole schema.

    Returns:
        The table with exactly the schema's columns (an open table keeps its further columns, last); a nullable column
        that is absent is null.

    Raises:
        TableError: naming the table, the column, the first bad row (0-based) with its value, and the remedy.
    """
    spec = spec_of(name) if columns is None else _part_of(name, columns)
    if columns is not None:
        table = table.select([c for c in table.column_names if c in columns])
    _check_column_names(name, spec, table)
    checked = {column.name: _checked_column(name, column, table) for column in spec.schema}
    for column, values in spec.allowed.items():
        _check_allowed(name, column, checked[column], values)
    _check_key(name, spec.key, checked)
    if spec.open:
        checked.update({c: table[c] for c in table.column_names if c not in checked})
    fields = [spec.schema.field(c) if c in spec.schema.names else pa.field(c, checked[c].type) for c in checked]
    return pa.table(list(checked.values()), schema=pa.schema(fields))


def from_rows(name: str, rows: list[dict]) -> pa.Table:
    """Build table `name` from row dictionaries; keys that are absent become null. Raises TableError as `validate`."""
    schema = spec_of(name).schema
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(f"table {name!r}: {error}; give values of the schema's types:\n{schema}") from error
    return validate(name, table)


def _part_of(name: str, columns: list[str]) -> TableSpec:
    spec = spec_of(name)
    unknown = [c for c in columns if c not in spec.schema.names]
    if unknown and not spec.open:
        raise ValueError(f"table {name!r} has no column {unknown[0]!r}; it has {', '.join(spec.schema.names)}")
    fields = [field for field in spec.schema if field.name in columns]
    key = spec.key if set(spec.key) <= set(columns) else ()
    return TableSpec(pa.schema(fields), key, {c: v for c, v in spec.allowed.items() if c in columns}, spec.open)


def _check_column_names(name: str, spec: TableSpec, table: pa.Table) -> None:
    missing = [f.name for f in spec.schema if not f.nullable and f.name not in table.column_names]
    if missing:
        raise TableError(
            f"table {name!r}: column {missing[0]!r} is missing (found: {', '.join(table.column_names) or 'none'}); "
            f"add it, of type {spec.schema.field(missing[0]).type}"
        )
    surplus = [c for c in table.column_names if c not in spec.schema.names]
    if surplus and not spec.open:
        raise TableError(
            f"table {name!r}: column {surplus[0]!r} is not part of the schema; "
            f"drop it (the columns are {', '.join(spec.schema.names)})"
        )


def _checked_column(name: str, column: pa.Field, table: pa.Table) -> pa.ChunkedArray:
    if column.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, column.type)])
    values = table[column.name]
    if values.type != column.type:
        try:
            values = values.cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TableError(
                f"table {name!r}, column {column.name!r}: type {values.type} does not convert to {column.type} "
                f"({error}); convert it before writing"
            ) from error
    if not column.nullable and values.null_count:
        _fail(name, column.name, values, pc.is_null(values), "is null", "fill it in or drop the row")
    if column.name in ("user", "item"):
        _fail(
            name,
            column.name,
            values,
            pc.less(values, 0),
            "is negative",
            "indices count from 0; map ids with preprocess",
        )
    elif column.name.endswith("_id"):
        empty = pc.equal(pc.utf8_length(values), 0)
        _fail(name, column.name, values, empty, "is empty", "drop the row or give it an id")
    return values


def _check_allowed(name: str, column: str, values: pa.ChunkedArray, allowed: tuple[str, ...]) -> None:
    known = pc.is_in(values, value_set=pa.array([*allowed, None], pa.string()))
    _fail(name, column, values, pc.invert(known), "is not an allowed value", f"use one of {', '.join(allowed)}")


def _check_key(name: str, key: tuple[str, ...], columns: dict[str, pa.ChunkedArray]) -> None:
    if not key or len(columns[key[0]]) == 0:
        return
    keys = pa.table({c: columns[c] for c in key}).append_column("row", pa.array(np.arange(len(columns[key[0]]))))
    counts = keys.group_by(list(key)).aggregate([("row", "count"), ("row", "max")])
    twice = counts.filter(pc.greater(counts["row_count"], 1))
    if len(twice):
        row = twice.sort_by("row_max").slice(0, 1).to_pylist()[0]
        value = ", ".join(f"{c}={row[c]!r}" for c in key)
        raise TableError(
            f"table {name!r}, column {' + '.join(key)}, row {row['row_max']}: the key {value} occurs "
            f"{row['row_count']} times; keep one row a key"
        )


def _fail(name: str, column: str, values: pa.ChunkedArray, bad: pa.ChunkedArray, what: str, remedy: str) -> None:
    row = pc.index(bad, True).as_py()
    if row >= 0:
        raise TableError(
            f"table {name!r}, column {column!r}, row {row}: value {values[row].as_py()!r} {what}; {remedy}"
        )
