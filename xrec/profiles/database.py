"""DuckDB over the parquet tables of a workspace, on any filesystem, within bounded memory.

What is asked of the tables is `selection.py`'s business.
"""

import re
import tempfile
from collections.abc import Iterator
from typing import Any

import duckdb

from xrec.workspace import Workspace, WorkspaceError

# Rows of one batch that is read back: enough to be quick, few enough to be small with long reviews.
_BATCH = 2048


class Database:
    """A database of its own, in a temporary folder that goes with it; a context manager.

    Args:
        workspace: whose tables are read.
        memory_limit: what it may hold in memory, in DuckDB's notation; the rest goes to disk.
        threads: how many it may use; default: one a core.
        temporary: a local folder for what exceeds the memory; default: the system's.
    """

    def __init__(self, workspace: Workspace, memory_limit: str, threads: int | None, temporary: str | None):
        self.workspace = workspace
        self._folder = tempfile.TemporaryDirectory(prefix="xrec-records-", dir=temporary)
        settings: dict[str, Any] = {
            "memory_limit": memory_limit,
            "temp_directory": f"{self._folder.name}/spilled",
            # Everything that is needed comes with the package: nothing is to be fetched.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        self._connection = duckdb.connect(
            f"{self._folder.name}/records.duckdb", config=settings | ({"threads": threads} if threads else {})
        )
        if not workspace.is_local:
            self._connection.register_filesystem(workspace.fs)

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def execute(self, statement: str) -> list[tuple]:
        return self._connection.execute(statement).fetchall()

    def stream(self, query: str) -> Iterator[dict[str, Any]]:
        """The rows of a query, of which only a batch is in Python's memory at a time."""
        for batch in self._connection.sql(query).to_arrow_reader(_BATCH):
            yield from batch.to_pylist()

    def view(self, stage: str, table: str, columns: dict[str, str]) -> None:
        """Make the view `table` on the given columns of a stage's table, and `row`, the number of each row.

        Args:
            columns: name -> type; a column that the files lack is null.
        """
        source = self.parquet(stage, table)
        found = {name for name, *_ in self.execute(f"DESCRIBE SELECT * FROM {source}")}
        chosen = [f'"{c}"' if c in found else f'NULL::{kind} AS "{c}"' for c, kind in columns.items()]
        chosen.append("file_index::BIGINT * 1099511627776 + file_row_number AS row")
        self.execute(f"CREATE OR REPLACE TEMP VIEW {table} AS SELECT {', '.join(chosen)} FROM {source}")

    def parquet(self, stage: str, table: str) -> str:
        """SQL that reads a stage's table: one file, or every file of its folder.

        Raises:
            WorkspaceError: the table is not there.
        """
        workspace = self.workspace
        if workspace.exists(stage, f"{table}.parquet"):
            files = [workspace.path(stage, f"{table}.parquet")]
        else:
            files = [workspace.path(stage, table, f) for f in workspace.files(stage, table) if f.endswith(".parquet")]
        if not files:
            raise WorkspaceError(
                f"workspace {workspace}: the stage {stage!r} has no table {table!r}, which texts are written from; "
                "make or import the data again, then run `xrec preprocess`"
            )
        names = files if workspace.is_local else [workspace.fs.unstrip_protocol(file) for file in files]
        # DuckDB takes a name for a pattern.
        escaped = (literal(re.sub(r"([*?\[])", r"[\1]", name)) for name in names)
        return f"read_parquet([{', '.join(escaped)}], union_by_name = true)"


def literal(value: str) -> str:
    """A string as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"
