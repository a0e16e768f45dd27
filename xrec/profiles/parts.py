"""The files of the stage `profile`: the requests, cut into blocks, and one result file a block.

Block k's requests are a row group of `profile/work/<kind>_requests/`, its result is `profile/<table>/part-<k>.parquet`
(see `xrec/blocks.py`). Who writes the texts is `writer.py`'s business, who does which block `ray_jobs`'.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xrec import blocks as block_files
from xrec.blocks import RequestIndex, part_name
from xrec.config import Price, TextKind
from xrec.profiles.accounting import cost_of
from xrec.profiles.answers import Answer
from xrec.workspace import Workspace, WorkspaceError

STAGE, WORK = "profile", "work"
TABLE: dict[TextKind, str] = {
    "item_profile": "item_profiles",
    "user_profile": "user_profiles",
    "explanation": "explanations",
}
KEYS: dict[TextKind, tuple[str, ...]] = {
    "item_profile": ("item",),
    "user_profile": ("user",),
    "explanation": ("user", "item", "split", "feature"),
}
_TEXT: dict[TextKind, str] = {"item_profile": "profile", "user_profile": "profile", "explanation": "explanation"}
Work = dict[int, list[int] | None]
"""Blocks to write, each with the rows of it to write anew; None: all, it has not been written yet."""


def write_requests(workspace: Workspace, kind: TextKind, blocks: Iterable[pa.Table]) -> RequestIndex:
    """Write the requests of a kind, a block a table, unless they are there already; returns what they amount to.

    Args:
        blocks: tables of the key columns and `record`, each a block.
    """
    return block_files.write_requests(workspace, _requests(kind), blocks)


def read_block(workspace: Workspace, kind: TextKind, block: int) -> pa.Table:
    """The requests of a block: its key columns and `record`."""
    return block_files.read_requests(workspace, _requests(kind), block)


def write_part(
    workspace: Workspace,
    kind: TextKind,
    block: int,
    requests: pa.Table,
    answers: Sequence[Answer],
    prompt_hash: str,
    price: Price | None,
    rows: Sequence[int] | None = None,
) -> None:
    """Write the result of a block.

    Args:
        requests: what `read_block` gave.
        answers: one a request or, with `rows`, one a row named there.
        prompt_hash: `Prompts.hash(kind)`.
        price: what a million tokens cost; None leaves `cost` null.
        rows: write the result anew with other answers for these rows; all others stay as they are.

    Raises:
        ValueError: there are more or fewer answers than rows.
    """
    expected = len(requests) if rows is None else len(rows)
    if len(answers) != expected:
        raise ValueError(f"{kind} block {block}: {len(answers)} answers for {expected} rows; give one a row")
    if rows is None:
        table = _result(kind, requests.select(KEYS[kind]), answers, prompt_hash, price)
    else:
        earlier = read_part(workspace, kind, block)
        keys = requests.select(KEYS[kind]).take(pa.array(rows, pa.int64()))
        answers = [_after(earlier, row, answer) for row, answer in zip(rows, answers, strict=True)]
        again = _result(kind, keys, answers, prompt_hash, price).select(earlier.column_names).cast(earlier.schema)
        place = np.arange(len(earlier))
        place[list(rows)] = len(earlier) + np.arange(len(rows))
        table = pa.concat_tables([earlier, again]).take(pa.array(place))
    workspace.write_table(table, STAGE, TABLE[kind], part=part_name(block))


def read_part(workspace: Workspace, kind: TextKind, block: int) -> pa.Table:
    """The result of a block, in the order of its requests."""
    with workspace.fs.open(workspace.path(STAGE, TABLE[kind], f"{part_name(block)}.parquet"), "rb") as file:
        return pq.ParquetFile(file).read()


def block_result(block: int, answers: Sequence[Answer], deferred: bool = False) -> dict[str, Any]:
    """What became of a block, in figures.

    Args:
        deferred: it was not begun, because it does not fit into the budget.
    """
    return {
        "block": block,
        "deferred": deferred,
        "rows": len(answers),
        "failed": sum(answer.status == "failed" for answer in answers),
        "tokens_in": sum(answer.tokens_in for answer in answers),
        "tokens_out": sum(answer.tokens_out for answer in answers),
        "attempts": sum(answer.attempts for answer in answers),
    }


def done_blocks(workspace: Workspace, kind: TextKind) -> set[int]:
    """The blocks whose result is written."""
    return block_files.done_blocks(workspace, STAGE, TABLE[kind])


def failed_rows(workspace: Workspace, kind: TextKind) -> dict[int, list[int]]:
    """Block -> its rows that failed, of the blocks that have any."""
    failed = {}
    for block in sorted(done_blocks(workspace, kind)):
        status = read_part(workspace, kind, block)["status"].to_numpy()
        if (rows := np.flatnonzero(status == "failed")).size:
            failed[block] = rows.tolist()
    return failed


def check_complete(workspace: Workspace, kind: TextKind, index: RequestIndex, table: pa.Table) -> None:
    """Raise WorkspaceError unless the kind's result holds as many rows as were requested."""
    if len(table) != index.rows:
        raise WorkspaceError(
            f"{workspace.path(STAGE, TABLE[kind])} holds {len(table):,} rows of {index.rows:,}; files of it were "
            "altered or removed, run `xrec profile` again"
        )


def _after(earlier: pa.Table, row: int, answer: Answer) -> Answer:
    """The new answer to a row, with what the earlier ones took added: it was spent."""
    before = earlier.slice(row, 1).to_pylist()[0]
    return replace(
        answer,
        tokens_in=answer.tokens_in + before["tokens_in"],
        tokens_out=answer.tokens_out + before["tokens_out"],
        attempts=answer.attempts + (before["attempts"] or 0),
    )


def _result(
    kind: TextKind, keys: pa.Table, answers: Sequence[Answer], prompt_hash: str, price: Price | None
) -> pa.Table:
    def column(name: str, type_: pa.DataType) -> pa.Array:
        return pa.array([getattr(answer, name) for answer in answers], type_)

    columns = {name: keys[name] for name in keys.column_names} | {
        _TEXT[kind]: column("text", pa.string()),
        "model": column("model", pa.string()),
        "prompt_hash": pa.repeat(prompt_hash, len(answers)),
        "tokens_in": column("tokens_in", pa.int64()),
        "tokens_out": column("tokens_out", pa.int64()),
        "status": column("status", pa.string()),
        "error": column("error", pa.string()),
        "attempts": column("attempts", pa.int32()),
        "latency": column("latency", pa.float32()),
        "cost": pa.array([cost_of(a.tokens_in, a.tokens_out, price) for a in answers], pa.float64()),
    }
    return pa.table(columns)


def _requests(kind: TextKind) -> tuple[str, str, str]:
    return STAGE, WORK, f"{kind}_requests"
