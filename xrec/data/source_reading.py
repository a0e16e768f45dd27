"""Chunks of a dump's files, and their contents: reviews as tables of the schema's columns, items as records.

JSON lines that are not compressed are cut at byte positions and parquet at row groups; a gzip or CSV file is one
chunk. Whatever the format, memory is bounded by a few buffers. What is dropped is decided elsewhere, but for lines
that cannot be read.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from xrec.data.dropped import Tally
from xrec.data.json_reviews import parse_lines, parse_object
from xrec.data.line_ranges import BUFFER, read_lines
from xrec.data.review_columns import to_plain_text, to_rating, to_seconds, to_text
from xrec.data.source_layouts import SourceError
from xrec.data.sources import SourceFile

_ROWS = 20_000
_CSV_BLOCK = 16 << 20


@dataclass(frozen=True)
class Chunk:
    """A part of a file that one task reads.

    Attributes:
        file: number of the file in the dump.
        number: of the chunk in its file.
        start, end: bytes of a JSON file, row groups of a parquet file; `end` None: up to the end.
        size: bytes, as stored.
    """

    file: int
    number: int
    start: int
    end: int | None
    size: int

    @property
    def part(self) -> str:
        """The name of the file that the chunk is written to."""
        return f"part-{self.file:04d}-{self.number:06d}.parquet"


def plan_chunks(files: list[SourceFile], chunk_bytes: int) -> list[Chunk]:
    """Every chunk of every file that is used, in order."""
    chunks = []
    for n, file in enumerate(files):
        if file.kind is None:
            continue
        if file.format == "parquet":
            borders = _row_groups(file, chunk_bytes)
        elif file.format == "json" and not file.gzipped:
            starts = range(0, max(file.size, 1), chunk_bytes)
            borders = [(s, s + chunk_bytes, min(chunk_bytes, file.size - s)) for s in starts]
        else:
            borders = [(0, None, file.size)]
        chunks += [Chunk(n, m, start, end, size) for m, (start, end, size) in enumerate(borders)]
    return chunks


def read_reviews(file: SourceFile, chunk: Chunk, tally: Tally) -> Iterator[pa.Table]:
    """Tables of user_id, item_id, rating, timestamp, text (see `review_columns.py`) and `position` in the file.

    Unreadable lines are counted in `tally`; every line counts as read.

    Raises:
        SourceError: the file is damaged.
    """
    with _damage(file):
        if file.format == "json":
            raw = _json_tables(file, chunk, tally)
        elif file.format == "csv":
            raw = _csv_tables(file, _review_names(file), tally)
        else:
            raw = _parquet_tables(file, chunk, _review_names(file), tally)
        for table in raw:
            yield _as_reviews(file, table)


def read_items(file: SourceFile, chunk: Chunk, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Position in the file and record of every item. Counts and raises as `read_reviews`."""
    with _damage(file):
        if file.format == "json":
            yield from _json_records(file, chunk, tally)
            return
        tables = _csv_tables(file, None, tally) if file.format == "csv" else _parquet_tables(file, chunk, None, tally)
        for table in tables:
            yield from zip(table["position"].to_pylist(), table.drop_columns("position").to_pylist(), strict=True)


def position_unit(file: SourceFile) -> str:
    """What positions count: `byte` (of the decompressed file) or `row` (from 0)."""
    return "byte" if file.format == "json" else "row"


@contextmanager
def _damage(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid) as error:
        raise SourceError(f"{file.name} is damaged ({error}); fetch it again, or repair it") from error


def _json_tables(file: SourceFile, chunk: Chunk, tally: Tally) -> Iterator[pa.Table]:
    schema = pa.schema(list(file.raw))
    time = file.layout.reviews.timestamp if file.layout.reviews else None
    spelled = time if time in schema.names and pa.types.is_string(schema.field(time).type) else None
    with file.open() as stream:
        for lines in read_lines(stream, chunk.start, chunk.end, BUFFER):
            table, bad = parse_lines(lines, schema, spelled)
            tally.read += len(lines) + len(lines.too_long)
            bad += [(position, "the line is too long") for position in lines.too_long]
            _count_bad(file, "bad_json", bad, tally)
            yield table


def _json_records(file: SourceFile, chunk: Chunk, tally: Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open() as stream:
        for lines in read_lines(stream, chunk.start, chunk.end, BUFFER):
            tally.read += len(lines) + len(lines.too_long)
            bad = [(position, "the line is too long") for position in lines.too_long]
            for n, position in enumerate(lines.positions().tolist()):
                try:
                    yield position, parse_object(lines.line(n))
                except ValueError as error:
                    bad.append((position, str(error)))
            _count_bad(file, "bad_json", bad, tally)


def _csv_tables(file: SourceFile, columns: list[str] | None, tally: Tally) -> Iterator[pa.Table]:
    bad: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        text = f"{row.actual_columns} columns instead of {row.expected_columns}"
        bad.append(((row.number or 2) - 2, text))
        return "skip"

    with file.open() as stream:
        names = file_columns(file)
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
            parse_options=_csv_options(file, skip),
            # As bytes: no guesses at types from the first rows, and broken UTF-8 is repaired instead of refused.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.binary()), include_columns=columns or names, check_utf8=False
            ),
        )
        row = 0
        for batch in reader:
            count, dropped = batch.num_rows, len(bad)
            tally.read += count + dropped
            _count_bad(file, "bad_row", bad, tally)
            bad.clear()
            table = pa.table({name: to_text(batch[name]) for name in batch.schema.names})
            yield table.append_column("position", pa.array(range(row, row + count), pa.int64()))
            row += count
        tally.read += len(bad)
        _count_bad(file, "bad_row", bad, tally)


def file_columns(file: SourceFile) -> list[str]:
    """Names of the columns of a CSV file."""
    with file.open() as stream:
        options = _csv_options(file, lambda row: "skip")
        return pyarrow.csv.open_csv(stream, parse_options=options).schema.names


def _csv_options(file: SourceFile, bad_row: Callable[[Any], str]) -> pyarrow.csv.ParseOptions:
    return pyarrow.csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True, invalid_row_handler=bad_row)


def _parquet_tables(file: SourceFile, chunk: Chunk, columns: list[str] | None, tally: Tally) -> Iterator[pa.Table]:
    with file.open() as stream:
        source = pq.ParquetFile(stream)
        end = source.num_row_groups if chunk.end is None else chunk.end
        groups = range(chunk.start, min(end, source.num_row_groups))
        row = sum(source.metadata.row_group(g).num_rows for g in range(chunk.start))
        for batch in source.iter_batches(batch_size=_ROWS, row_groups=list(groups), columns=columns):
            tally.read += batch.num_rows
            table = pa.Table.from_batches([batch])
            yield table.append_column("position", pa.array(range(row, row + batch.num_rows), pa.int64()))
            row += batch.num_rows


def _row_groups(file: SourceFile, chunk_bytes: int) -> list[tuple[int, int | None, int]]:
    with file.open() as stream:
        metadata = pq.read_metadata(stream)
    borders, start, size = [], 0, 0
    for n in range(metadata.num_row_groups):
        group = metadata.row_group(n)
        size += sum(group.column(c).total_compressed_size for c in range(group.num_columns))
        if size >= chunk_bytes or n == metadata.num_row_groups - 1:
            borders.append((start, n + 1, size))
            start, size = n + 1, 0
    return borders or [(0, 0, file.size)]


def _review_names(file: SourceFile) -> list[str]:
    """The source's columns that are read: those of the layout that the file has."""
    assert file.layout.reviews is not None
    with file.open() as stream:
        there = pq.read_schema(stream).names if file.format == "parquet" else file_columns(file)
    return list(dict.fromkeys(column for _, column in file.layout.reviews if column in there))


def _as_reviews(file: SourceFile, raw: pa.Table) -> pa.Table:
    layout, rows = file.layout, raw.num_rows
    assert layout.reviews is not None
    columns = {field: raw[name] for field, name in layout.reviews if name in raw.column_names}

    def get(field: str, kind: pa.DataType) -> Any:
        return columns[field] if field in columns else pa.nulls(rows, kind)

    text = to_text(get("text", pa.string()))
    return pa.table(
        {
            "user_id": to_text(get("user_id", pa.string())),
            "item_id": to_text(get("item_id", pa.string())),
            "rating": to_rating(get("rating", pa.float32())),
            "timestamp": to_seconds(get("timestamp", pa.int64()), layout.unit),
            "text": to_plain_text(text) if layout.html else text,
            "position": raw["position"],
        }
    )


def _count_bad(file: SourceFile, reason: str, bad: list[tuple[int, str]], tally: Tally) -> None:
    unit = position_unit(file)
    examples = ({"file": file.name, unit: position, "detail": detail[:200]} for position, detail in bad)
    tally.drop(reason, len(bad), examples)
