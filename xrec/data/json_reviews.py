"""JSON lines to columns, fast where the lines are as expected and line by line where they are not.

A buffer of lines goes through pyarrow's parser at once. If that fails, the buffer is halved until the lines that it
fails on stand alone; those go through Python's parser, which is more lenient about types (`"4"` for a rating, a number
for an id). A line gets the same values on either way, so results do not depend on where buffers end.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from xrec.data.line_ranges import Lines
from xrec.data.review_columns import BAD_TIME, clean_text, id_text, number

_OPEN, _CLOSE = ord("{"), ord("}")
_ALONE = 16
_BLOCK = 1 << 20  # what the parser takes at once: fits the processor's cache

_NUL = b"\\u0000"
_UNREADABLE = "unreadable"

Bad = tuple[int, str]  # position in the file, what is wrong with the line


def parse_lines(lines: Lines, schema: pa.Schema, time: str | None = None) -> tuple[pa.Table, list[Bad]]:
    """The lines' values and, by position, those that are no JSON object.

    Args:
        lines: see `line_ranges.py`.
        schema: names and types (string, float64, int64) of the keys that are wanted.
        time: the key, if any, under which a list or an object is an unreadable time, where elsewhere it is nothing.

    Returns:
        The table, with a last column `position`; and the bad lines.
    """
    tables, bad = _parse(lines, schema, time)
    full = schema.append(pa.field("position", pa.int64()))
    return (pa.concat_tables(tables) if tables else full.empty_table()), bad


def _parse(lines: Lines, schema: pa.Schema, time: str | None) -> tuple[list[pa.Table], list[Bad]]:
    if not len(lines):
        return [], []
    table = _parse_at_once(lines, schema)
    if table is not None:
        return [table], []
    if len(lines) <= _ALONE:
        return _parse_each(lines, schema, time)
    middle = len(lines) // 2
    halves = (slice(0, middle), slice(middle, None))
    parts = [_parse(Lines(lines.data, lines.offset, lines.starts[h], lines.ends[h]), schema, time) for h in halves]
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]


def _parse_at_once(lines: Lines, schema: pa.Schema) -> pa.Table | None:
    """None where the parser refuses, or where its rows may not be the lines.

    The parser takes white space between objects, so a line might hold two objects or a part of one. Where every line
    begins with `{` and ends with `}`, every line's end is the end of an object, because nothing but an object's end
    can stand between a `}` and a `{`: then as many rows as lines means one object a line.
    """
    content = np.frombuffer(lines.data, dtype=np.uint8)
    if not ((content[lines.starts] == _OPEN).all() and (content[lines.ends - 1] == _CLOSE).all()):
        return None
    first, last = int(lines.starts[0]), int(lines.ends[-1])
    if lines.data.find(_NUL, first, last) >= 0:  # which Python's way leaves out of texts, and the parser keeps
        return None
    data = pa.py_buffer(memoryview(lines.data)[first:last])
    longest = int((lines.ends - lines.starts).max())
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=max(_BLOCK, 2 * longest)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != len(lines) or not _is_utf8(table):
        return None
    return table.append_column("position", pa.array(lines.positions(), pa.int64()))


def _is_utf8(table: pa.Table) -> bool:
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _parse_each(lines: Lines, schema: pa.Schema, time: str | None) -> tuple[list[pa.Table], list[Bad]]:
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    for n, position in enumerate(lines.positions().tolist()):
        try:
            record = parse_object(lines.line(n))
        except ValueError as error:
            bad.append((position, str(error)))
            continue
        values = {field.name: _as(field.type, record.get(field.name)) for field in schema}
        if time is not None and values[time] is None and record.get(time) is not None:
            values[time] = _UNREADABLE
        rows.append({**values, "position": position})
    full = schema.append(pa.field("position", pa.int64()))
    return [pa.Table.from_pylist(rows, schema=full)], bad


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; broken UTF-8 becomes U+FFFD.

    Raises:
        ValueError: it is none; the message says why, in a few words.
    """
    try:
        record = json.loads(line.decode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    return record


def _as(kind: pa.DataType, value: Any) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return clean_text(value) if isinstance(value, str) else id_text(value)
    figure = number(value)
    if figure is None or pa.types.is_floating(kind):
        return figure
    if type(value) is int:
        return value if abs(value) < 2**63 else BAD_TIME
    return int(figure) if abs(figure) < 2**63 else BAD_TIME
