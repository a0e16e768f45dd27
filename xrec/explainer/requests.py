"""Which pairs a batch explains: read and checked before any model is loaded, cut into blocks, counted after it ran.

Block k's requests are a row group of `explain/work/requests/`, its result is `explain/predictions/part-<k>.parquet`
(see `xrec/blocks.py`). How pairs are explained is `explain.py`'s business, and where `ray_jobs/explain.py`'s.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xrec import blocks
from xrec.blocks import RequestIndex
from xrec.config import ExplainConfig
from xrec.explainer.pairs import explained_pairs
from xrec.workspace import Workspace, WorkspaceError

STAGE, WORK, TABLE = "explain", "work", "predictions"
KEY = ["user", "item", "signal"]
# What `prediction_metrics`, and whoever explains its figures, reads of the predictions.
MEASURED = ["explanation", "finish_reason", "tokens", "latency", "status", "error"]
_FOLDER = (STAGE, WORK, "requests")


@dataclass
class Requests:
    """What a batch explains.

    Attributes:
        accepted: columns user, item, signal; distinct, and sorted by signal (`true` first), user and item, so that a
            user's requests, whose prompts begin alike, follow each other.
        rejected: pairs that the workspace does not know: row (0-based, of the request file), user, item (strings, as
            given), error.
        repeated: how many pairs were asked for more than once; each is explained once.
    """

    accepted: pa.Table
    rejected: pa.Table
    repeated: int


def collect_requests(workspace: Workspace, config: ExplainConfig) -> Requests:
    """The pairs of the request file, or of the split where none is named, once for each signal.

    Raises:
        ValueError: the request file has other columns, or no pair that the workspace knows.
        WorkspaceError: the workspace has not been preprocessed, or its split holds no pair.
        FileNotFoundError: there is no request file.
    """
    if config.requests is None:
        pairs, rejected = _split_pairs(workspace, config.split), _no_rejections()
    else:
        pairs, rejected = _known_pairs(workspace, _read_requests(config.requests), config.requests)
    distinct = pairs.group_by(["user", "item"], use_threads=False).aggregate([])
    repeated = len(pairs) - len(distinct)
    if config.limit is not None:
        distinct = distinct.slice(0, config.limit)
    distinct = distinct.sort_by([("user", "ascending"), ("item", "ascending")])
    signals = dict.fromkeys(("true", *config.controls))
    accepted = [distinct.append_column("signal", pa.repeat(signal, len(distinct))) for signal in signals]
    return Requests(pa.concat_tables(accepted), rejected, repeated)


def write_requests(workspace: Workspace, accepted: pa.Table, rows_per_block: int) -> RequestIndex:
    """Cut the requests into blocks and write them, unless they are there already; returns what they amount to."""
    return blocks.write_requests(workspace, _FOLDER, _blocks(accepted, rows_per_block))


def read_block(workspace: Workspace, block: int) -> pa.Table:
    """The requests of a block: user, item, signal."""
    return blocks.read_requests(workspace, _FOLDER, block)


def done_blocks(workspace: Workspace) -> set[int]:
    """The blocks whose result is written."""
    return blocks.done_blocks(workspace, STAGE, TABLE)


def block_result(block: int, rows: pa.Table) -> dict[str, int]:
    """What became of a block, in figures."""
    return {"block": block, "rows": len(rows), "failed": pc.sum(pc.equal(rows["status"], "failed")).as_py() or 0}


def block_bounds(accepted: pa.Table, rows_per_block: int) -> list[int]:
    """Where blocks begin, and where the last one ends.

    The requests of a user under one signal stay together where a block can hold them; more fill blocks of their own.
    """
    user, signal = accepted["user"].to_numpy(), accepted["signal"].to_numpy(zero_copy_only=False)
    changes = np.flatnonzero((user[1:] != user[:-1]) | (signal[1:] != signal[:-1])) + 1
    bounds = [0]
    for start, end in itertools.pairwise([0, *changes.tolist(), len(user)]):
        if end - bounds[-1] > rows_per_block and start > bounds[-1]:
            bounds.append(start)
        while end - bounds[-1] > rows_per_block:
            bounds.append(bounds[-1] + rows_per_block)
    return [*bounds, len(user)]


def _blocks(accepted: pa.Table, rows_per_block: int) -> Iterator[pa.Table]:
    for start, end in itertools.pairwise(block_bounds(accepted, rows_per_block)):
        yield accepted.slice(start, end - start)


def hash_requests(uri: str) -> str:
    """SHA-256 over the contents of a request file, or of every parquet file of a folder."""
    fs, root = fsspec.core.url_to_fs(uri)
    digest = hashlib.sha256()
    for path in sorted(fs.find(root)) if fs.isdir(root) else [root]:
        with fs.open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def check_complete(requested: pa.Table, found: pa.Table) -> None:
    """Check that every requested (user, item, signal) was written exactly once, and nothing else.

    Raises:
        WorkspaceError: naming the first row that is missing, written twice, or unasked for.
    """
    counts = found.select(KEY).group_by(KEY).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))
    problems = {
        "is missing": requested.select(KEY).join(counts, KEY, join_type="left anti"),
        "was not asked for": counts.join(requested.select(KEY), KEY, join_type="left anti"),
        "was written more than once": twice,
    }
    for problem, rows in problems.items():
        if len(rows):
            first = rows.select(KEY).slice(0, 1).to_pylist()[0]
            raise WorkspaceError(
                f"explain/predictions: {len(rows):,} rows are wrong; the first, user {first['user']}, item "
                f"{first['item']}, signal {first['signal']!r}, {problem}; rebuild with `xrec explain --force`"
            )


def prediction_metrics(predictions: pa.Table, max_words: int) -> dict[str, float]:
    """The flat figures of a batch: counts, share failed, cut off and over the word limit, means over sound rows."""
    sound = predictions.filter(pc.equal(predictions["status"], "ok"))
    metrics: dict[str, float] = {
        "rows": len(predictions),
        "failed": len(predictions) - len(sound),
        "failed_share": 1 - len(sound) / max(1, len(predictions)),
    }
    if len(sound):
        words = pa.chunked_array([_words(chunk) for chunk in sound["explanation"].chunks])
        metrics |= {
            "over_limit_share": _mean(pc.greater(words, max_words)),
            "cut_off_share": _mean(pc.equal(sound["finish_reason"], "length")),
            "words_mean": _mean(words),
            "tokens_mean": _mean(sound["tokens"]),
            "latency_mean_seconds": _mean(sound["latency"]),
        }
    return metrics


def _words(texts: pa.Array) -> pa.Array:
    """Words of each text; a chunk at a time, since texts take several times their memory as they are cut."""
    return pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)))


def _mean(values: pa.ChunkedArray) -> float:
    return float(pc.mean(pc.cast(values, pa.float64())).as_py())


def _split_pairs(workspace: Workspace, split: str) -> pa.Table:
    if workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        return explained_pairs(workspace, split).select(["user", "item"])
    interactions = workspace.read_table("preprocess", "interactions")
    pairs = interactions.filter(pc.equal(interactions["split"], split)).select(["user", "item"])
    if not len(pairs):
        raise WorkspaceError(f"workspace {workspace}: the split {split!r} holds no interaction; choose another split")
    return pairs.sort_by([("user", "ascending"), ("item", "ascending")])


def _read_requests(uri: str) -> pa.Table:
    fs, root = fsspec.core.url_to_fs(uri)
    if not fs.exists(root):
        raise FileNotFoundError(f"explain.requests = {uri!r} does not exist; name a parquet file or a folder of them")
    try:
        table = pq.read_table(root, filesystem=fs)
    except pa.ArrowInvalid as error:
        raise ValueError(f"explain.requests = {uri!r} is not parquet ({error}); write it as parquet") from error
    for columns in (["user", "item"], ["user_id", "item_id"]):
        if set(columns) <= set(table.column_names):
            return table.select(columns)
    raise ValueError(
        f"explain.requests = {uri!r} has the columns {', '.join(table.column_names) or '(none)'}; "
        "give it user_id and item_id (the source's ids), or user and item (indices)"
    )


def _known_pairs(workspace: Workspace, asked: pa.Table, uri: str) -> tuple[pa.Table, pa.Table]:
    """Indices of the pairs that the workspace knows, and the others with their reasons."""
    indices = {
        side: _indices(workspace, table, side, asked, uri)
        for side, table in (("user", "users"), ("item", "items_index"))
    }
    unknown = {side: pc.is_null(values) for side, values in indices.items()}
    bad = pc.or_(unknown["user"], unknown["item"])
    given = {"user": _text(asked.column(0)), "item": _text(asked.column(1))}
    reasons = pc.if_else(unknown["user"], _reason("user", given["user"]), _reason("item", given["item"]))
    rows = pa.array(range(len(asked)), pa.int64())
    rejected = pa.table({"row": rows, **given, "error": reasons}).filter(bad)
    pairs = pa.table(indices).filter(pc.invert(bad))
    if not len(pairs):
        first = f"; the first: {rejected['error'][0]}" if len(rejected) else ""
        raise ValueError(f"explain.requests = {uri!r} holds no pair that {workspace} knows{first}")
    return pairs, rejected


def _indices(workspace: Workspace, table: str, side: str, asked: pa.Table, uri: str) -> pa.ChunkedArray:
    """The index of each row's user or item, null where the workspace knows none."""
    known = workspace.read_table("preprocess", table).sort_by(side)
    if f"{side}_id" in asked.column_names:
        position = pc.index_in(_text(asked[f"{side}_id"]), value_set=known[f"{side}_id"].combine_chunks())
        return known[side].take(position)
    values = asked[side]
    if not pa.types.is_integer(values.type):
        raise ValueError(
            f"explain.requests = {uri!r}: column {side!r} is of type {values.type}; it holds indices, which are "
            f"integers: for the source's ids name the column {side}_id"
        )
    inside = pc.and_(pc.greater_equal(values, 0), pc.less(values, len(known)))
    return pc.cast(pc.if_else(inside, values, None), pa.int32())


def _text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.cast(values, pa.string())


def _reason(side: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    shown = pc.fill_null(values, "(null)")
    return pc.binary_join_element_wise(f"{side} ", shown, " is not in the workspace", "")


def _no_rejections() -> pa.Table:
    text = pa.string()
    schema = pa.schema([("row", pa.int64()), ("user", text), ("item", text), ("error", text)])
    return schema.empty_table()
