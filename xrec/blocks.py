"""A stage's work in blocks: the requests as row groups of a few files, and one result file a block.

The name of a result follows from its block, and a file appears whole or not at all: whoever does a block again, after a
kill or beside a process that was given up for dead, replaces a file and doubles no row. What requests and results are,
and who does which block, is each stage's business.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xrec.workspace import Workspace

# What a request quotes, where requests have it.
_TEXT = "record"
_INDEX = "index.json"
# Row groups a file: enough that files are few, few enough that a file's footer is read in no time.
_BLOCKS_PER_FILE = 64


@dataclass(frozen=True)
class RequestIndex:
    """What requests amount to.

    Attributes:
        rows: requests, over all blocks.
        blocks: blocks, numbered from 0.
        characters: of their records, together; 0 where they have none.
    """

    rows: int
    blocks: int
    characters: int = 0


def write_requests(workspace: Workspace, folder: Sequence[str], blocks: Iterable[pa.Table]) -> RequestIndex:
    """Write requests, a block a table, unless they are there already; returns what they amount to.

    Args:
        folder: theirs alone, as parts of its path in the workspace.
        blocks: tables of one schema; those of a run that goes on are not asked for.
    """
    if workspace.exists(*folder, _INDEX):
        return RequestIndex(**workspace.read_json(*folder, _INDEX))
    workspace.remove(*folder)
    rows = count = characters = 0
    for first, group in _grouped(blocks, _BLOCKS_PER_FILE):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, group[0].schema, compression="zstd") as writer:
            for table in group:
                writer.write_table(table, row_group_size=max(1, len(table)))
                rows, count = rows + len(table), count + 1
                if _TEXT in table.column_names:
                    characters += pc.sum(pc.utf8_length(table[_TEXT])).as_py() or 0
        workspace.write_bytes(sink.getvalue().to_pybytes(), *folder, _file(first // _BLOCKS_PER_FILE))
    index = RequestIndex(rows, count, characters)
    workspace.write_json(asdict(index), *folder, _INDEX)
    return index


def read_requests(workspace: Workspace, folder: Sequence[str], block: int) -> pa.Table:
    """The requests of one block."""
    with workspace.fs.open(workspace.path(*folder, _file(block // _BLOCKS_PER_FILE)), "rb") as file:
        return pq.ParquetFile(file).read_row_group(block % _BLOCKS_PER_FILE)


def part_name(block: int) -> str:
    """The name of a block's result in its table's folder, without the file's ending."""
    return f"part-{block:06d}"


def done_blocks(workspace: Workspace, *table: str) -> set[int]:
    """The blocks whose result is written into the folder of a table."""
    return {int(name.removeprefix("part-").removesuffix(".parquet")) for name in workspace.files(*table)}


def _file(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _grouped(blocks: Iterable[pa.Table], size: int) -> Iterator[tuple[int, list[pa.Table]]]:
    first, group = 0, []
    for block in blocks:
        group.append(block)
        if len(group) == size:
            yield first, group
            first, group = first + size, []
    if group:
        yield first, group
