"""Which files a dump consists of: paths, globs and URIs to files with format, size, kind and content hash.

Only the head of a file is read here, and samples for its hash. Reading it whole is `source_reading.py`'s business.
"""

import gzip
import hashlib
import io
import json
import os
import posixpath
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from xrec.config import IngestConfig
from xrec.data.source_layouts import Kind, Layout, SourceError, generic_layout, recognise

Format = Literal["json", "csv", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".pq": "parquet",
}  # fmt: skip
_ARCHIVES = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_HEAD = 1 << 20
_HEAD_RECORDS = 100
_WHOLE_BELOW = 64 << 20
_SAMPLES, _SAMPLE, _EDGE = 64, 64 << 10, 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """One file of a dump.

    Attributes:
        uri: where it is: an absolute path or an fsspec URI.
        name: its path below the folder that all files share: what reports call it.
        size: bytes, as stored.
        format: how its records are written.
        gzipped: whether it is compressed.
        delimiter: of CSV.
        layout: what its records mean.
        raw: types of the columns of reviews, for the fast JSON parser.
    """

    uri: str
    name: str
    size: int
    format: Format
    gzipped: bool
    delimiter: str
    layout: Layout
    raw: tuple[tuple[str, pa.DataType], ...] = ()

    @property
    def kind(self) -> Kind | None:
        return self.layout.kind

    def open(self) -> AbstractContextManager[BinaryIO]:
        """The file's bytes, decompressed."""
        return open_bytes(self.uri, self.gzipped)


@contextmanager
def open_bytes(uri: str, gzipped: bool = False) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed where it is compressed."""
    fs, path = fsspec.core.url_to_fs(uri)
    with fs.open(path, "rb") as stream:
        if gzipped:
            with gzip.GzipFile(fileobj=stream) as plain:
                yield plain  # type: ignore[misc]
        else:
            yield stream


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def find_files(config: IngestConfig) -> list[SourceFile]:
    """Every file of the dump, in the order of the settings (globs sorted), reviews and items recognised by content.

    Raises:
        SourceError: a path or glob matches nothing, a file is not recognised, two settings name the same file, or none
            holds reviews.
    """
    patterns: dict[Kind, tuple[str, ...]] = {"reviews": config.files, "items": config.items_files}
    named: list[tuple[str, Kind]] = [(uri, kind) for kind, given in patterns.items() for uri in expand(given)]
    uris = [uri for uri, _ in named]
    twice = next((uri for n, uri in enumerate(uris) if uri in uris[:n]), None)
    if twice:
        raise SourceError(f"{twice} is named twice in ingest.files; its reviews would count twice, name it once")
    names = _names(uris)
    files = [_describe(uri, name, kind, config) for (uri, kind), name in zip(named, names, strict=True)]
    if not any(file.kind == "reviews" for file in files):
        held = "; ".join(f"{file.name}: {file.layout.name}" for file in files)
        raise SourceError(f"ingest.files: no file holds reviews ({held}); add the file of reviews")
    return files


def expand(patterns: Iterable[str]) -> list[str]:
    """Absolute paths or URIs of the files that paths and globs name.

    Raises:
        SourceError: one matches nothing, or is a folder, or its protocol is unknown.
    """
    found = []
    for pattern in patterns:
        try:
            fs, path = fsspec.core.url_to_fs(os.path.expanduser(pattern))
        except (ValueError, ImportError) as error:
            raise SourceError(f"ingest.files: {pattern!r}: {error}; use a path or an installed protocol") from error
        paths = sorted(fs.glob(path)) if fsspec.core.has_magic(path) and not fs.exists(path) else [path]
        if not paths or not all(fs.exists(p) for p in paths):
            raise SourceError(f"ingest.files: {pattern!r} names no file; check the path, or quote a glob")
        for p in paths:
            if fs.isdir(p):
                if len(paths) == 1:
                    raise SourceError(
                        f"ingest.files: {pattern!r} is a folder; name its files, such as {pattern}/*.json"
                    )
                continue
            found.append(os.path.abspath(p) if is_local(fs) else fs.unstrip_protocol(p))
    return found


def content_hashes(files: list[SourceFile]) -> dict[str, str]:
    """SHA-256 of each used file's size and content, by name: whole up to 64 MiB, samples of larger ones.

    The samples are the first and last MiB and 64 stretches of 64 KiB at equal distances, so that the identity of a
    file of any size costs about six MiB of reading. An edit of a large file that keeps its size and touches no sample
    goes unseen.
    """
    used = [file for file in files if file.kind]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip((file.name for file in used), pool.map(_content_hash, used), strict=True))


def _content_hash(file: SourceFile) -> str:
    digest = hashlib.sha256(f"{file.size}\n".encode())
    with open_bytes(file.uri) as stream:
        if file.size <= _WHOLE_BELOW:
            while block := stream.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        step = (file.size - 2 * _EDGE) // _SAMPLES
        stretches = [(0, _EDGE), *((_EDGE + n * step, _SAMPLE) for n in range(_SAMPLES)), (file.size - _EDGE, _EDGE)]
        for start, length in stretches:
            stream.seek(start)
            digest.update(stream.read(length))
    return digest.hexdigest()


def _names(uris: list[str]) -> list[str]:
    """Each file's path below the folder that all of them share."""
    split = [uri.split("/") for uri in uris]
    shared = min(map(len, split)) - 1
    while any(parts[:shared] != split[0][:shared] for parts in split):
        shared -= 1
    return ["/".join(parts[shared:]) for parts in split]


def _describe(uri: str, name: str, kind: Kind, config: IngestConfig) -> SourceFile:
    fs, path = fsspec.core.url_to_fs(uri)
    size = fs.info(path)["size"]
    with open_bytes(uri) as stream:
        gzipped = stream.read(2) == b"\x1f\x8b"
    form = _format(name, config)
    delimiter = config.delimiter or ("\t" if ".tsv" in name.lower() else ",")
    records = _head_records(uri, name, form, gzipped, delimiter)
    keys = [set(record) for record in records]
    layout = generic_layout(name, kind, keys, config) if config.source == "generic" else recognise(name, keys, config)
    raw = layout.raw
    if form == "json" and layout.reviews and not raw:
        raw = _types(layout, records)
    return SourceFile(uri, name, size, form, gzipped, delimiter, layout, raw)


def _format(name: str, config: IngestConfig) -> Format:
    lower = name.lower().removesuffix(".gz")
    if lower.endswith(_ARCHIVES):
        raise SourceError(f"{name} is an archive; unpack it (or compress its files with gzip) and name the files in it")
    if config.format != "auto":
        return config.format
    suffix = posixpath.splitext(lower)[1]
    if suffix not in _SUFFIXES:
        raise SourceError(
            f"{name}: the suffix {suffix!r} does not say what format it has (known: {', '.join(_SUFFIXES)}, also with "
            ".gz); set ingest.format"
        )
    return _SUFFIXES[suffix]


def _head_records(uri: str, name: str, form: Format, gzipped: bool, delimiter: str) -> list[dict[str, Any]]:
    """The first records; for CSV and parquet one, whose keys are the columns' names."""
    try:
        with open_bytes(uri, gzipped) as stream:
            if form == "parquet":
                return [dict.fromkeys(pq.read_schema(stream).names)]
            head = stream.read(_HEAD)
    except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid) as error:
        raise SourceError(
            f"{name}: {error}; the file is damaged or not what its suffix says, fetch it again"
        ) from error
    if form == "csv":
        line = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
        table = pyarrow.csv.read_csv(
            io.BytesIO(line.strip("\r").encode() + b"\n"),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
        )
        return [dict.fromkeys(table.column_names)]
    return _head_json(name, head)


def _head_json(name: str, head: bytes) -> list[dict[str, Any]]:
    lines = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    records = []
    for line in lines[:-1] if len(head) == _HEAD else lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
        if len(records) == _HEAD_RECORDS:
            break
    if not records:
        shown = head[:60].decode("utf-8", "replace")
        what = (
            "is empty" if not head.strip() else f"has no JSON object a line in its first MiB; it begins with {shown!r}"
        )
        raise SourceError(f"{name} {what}. JSON lines are needed; for one large array: jq -c '.[]' FILE > FILE.jsonl")
    return records


def _types(layout: Layout, records: list[dict[str, Any]]) -> tuple[tuple[str, pa.DataType], ...]:
    """Types that the first records have; the parser goes by line where later ones differ."""
    assert layout.reviews is not None
    types = {}
    for field, column in layout.reviews:
        if column is None:
            continue
        values = [record[column] for record in records if record.get(column) is not None]
        if field == "rating" and all(isinstance(v, int | float) for v in values):
            types[column] = pa.float64()
        elif field in ("user_id", "item_id", "timestamp") and values and all(type(v) is int for v in values):
            types[column] = pa.int64()
        elif field == "timestamp" and values and all(isinstance(v, int | float) for v in values):
            types[column] = pa.float64()
        else:
            types[column] = pa.string()
    return tuple(types.items())
