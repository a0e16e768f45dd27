"""Columns of raw reviews in whatever types a dump has them, to the types of the table `reviews`.

Ids and texts become strings without NUL and without broken UTF-8, ratings float32, times Unix seconds. A value that is
there but cannot be read is marked, not lost: a rating as not-a-number, a time as `BAD_TIME`; `review_filters.py`
counts and drops those.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import html
import math
import re
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BAD_TIME = -(2**63)
_MILLISECONDS_ABOVE = 1e11
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999
_SURROGATE = re.compile("[\ud800-\udfff]")
_BREAK = re.compile(r"\s*<br\s*/?>\s*", re.IGNORECASE)
_HTML = r"&(#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z]+\d*);|<[bB][rR]\s*/?>"

Column: TypeAlias = "pa.Array | pa.ChunkedArray"


def id_text(value: Any) -> str | None:
    """An id as text: strings as they are, whole numbers in digits, anything else None."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def clean_text(value: str) -> str:
    """Without NUL; halves of surrogate pairs, which UTF-8 cannot hold, become U+FFFD."""
    return _SURROGATE.sub("�", value.replace("\0", ""))


def plain_text(value: str) -> str:
    """Character references resolved and line breaks of HTML made line breaks of text."""
    return html.unescape(_BREAK.sub("\n", value)).replace("\0", "")


def number(value: Any) -> float | None:
    """A number as it is or spelled as text; None stays None, anything unreadable is not-a-number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def to_text(column: Column) -> Column:
    """Strings of a column of strings, bytes or numbers, valid UTF-8, without NUL."""
    column = _plain(column)
    if pa.types.is_floating(column.type) or not _is_text(column.type):
        column = pa.array([id_text(v) for v in column.to_pylist()], pa.string())
    if _is_text(column.type) and not pa.types.is_string(column.type):
        try:
            column = column.cast(pa.string())
        except pa.ArrowInvalid:
            values = (None if v is None else v.decode("utf-8", "replace") for v in column.to_pylist())
            column = pa.array(values, pa.string())
    return pc.replace_substring(column, "\0", "") if _may_hold_nul(column) else column


def to_plain_text(column: Column) -> Column:
    """`plain_text` of every value; those without anything to resolve are not touched."""
    marked = pc.fill_null(pc.match_substring_regex(column, _HTML), False)
    if not pc.any(marked).as_py():
        return column
    resolved = pa.array([plain_text(v) for v in column.filter(marked).to_pylist()], pa.string())
    return pc.replace_with_mask(_combined(column), _combined(marked), resolved)


def to_rating(column: Column) -> Column:
    """float32; unreadable values are not-a-number, empty texts null."""
    column = _plain(column)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float32(), safe=False)
    if pa.types.is_string(column.type):
        try:
            return column.cast(pa.float32())
        except pa.ArrowInvalid:
            pass
    return pa.array([number(v) for v in column.to_pylist()], pa.float64()).cast(pa.float32(), safe=False)


def to_seconds(column: Column, unit: str = "auto") -> Column:
    """Unix seconds, int64; what is there but unreadable, or beyond the years 1 to 9999, is `BAD_TIME`.

    Args:
        column: timestamps, dates, numbers, or texts: ISO 8601 or spelled numbers.
        unit: `seconds`, `milliseconds` or `auto`, of numbers.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_temporal(kind):
        return column.cast(pa.timestamp("s", getattr(kind, "tz", None)), safe=False).cast(pa.int64())
    if pa.types.is_string(kind):
        try:
            return column.cast(pa.timestamp("s")).cast(pa.int64())
        except pa.ArrowInvalid:
            encoded = _combined(column).dictionary_encode()
            seconds = pa.array([_seconds_of_text(v, unit) for v in encoded.dictionary.to_pylist()], pa.int64())
            return seconds.take(encoded.indices)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return pa.array([_seconds_of_text(None if v is None else str(v), unit) for v in column.to_pylist()], pa.int64())
    return _seconds_of_numbers(column, unit)


def _seconds_of_numbers(column: Column, unit: str) -> pa.Array:
    column = _combined(column)
    missing = pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)
    values = column.cast(pa.float64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False)
    scale = {"seconds": 1.0, "milliseconds": 1000.0}.get(unit)
    divisor = np.where(np.abs(values) > _MILLISECONDS_ABOVE, 1000.0, 1.0) if scale is None else scale
    with np.errstate(invalid="ignore"):
        seconds = np.floor(values / divisor)
        good = (seconds >= _EARLIEST) & (seconds <= _LATEST)
    whole = np.where(good, np.where(good, seconds, 0).astype(np.int64), BAD_TIME)
    return pa.array(whole, mask=missing)


def _seconds_of_text(value: str | None, unit: str) -> int | None:
    if value is None or not value.strip():
        return None
    figure = number(value)
    if figure is not None and math.isfinite(figure):
        return _seconds_of_numbers(pa.array([figure]), unit)[0].as_py()
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return BAD_TIME
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _may_hold_nul(column: Column) -> bool:
    """By the smallest byte of the buffers, which costs a tenth of a search in every string."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    buffers = (chunk.buffers()[2] for chunk in chunks)
    return any(b is not None and b.size > 0 and np.frombuffer(b, dtype=np.uint8).min() == 0 for b in buffers)


def _plain(column: Column) -> Column:
    """Without dictionary encoding, and strings in the one type of strings that the tables have."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    wide = pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
    return column.cast(pa.string()) if wide else column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _combined(column: Column) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
