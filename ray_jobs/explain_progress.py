"""Progress of the stage `explain`: a line in metrics.jsonl as blocks end, and a bar on a terminal."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xrec.explainer.requests import STAGE
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace

_SECONDS_BETWEEN_LINES = 5.0


class ExplainProgress:
    """Adds up what the blocks report.

    Args:
        workspace: whose metrics.jsonl is written to.
        blocks: of the whole batch.
        done: those of earlier runs.

    Attributes:
        rows, failed: of this run.
        actors: ids of those that worked.
    """

    def __init__(self, workspace: Workspace, blocks: int, done: int):
        self.rows = self.failed = self.logged_rows = 0
        self.actors: set[str] = set()
        self.started = self.logged = time.monotonic()
        self.log = MetricLogger(workspace, STAGE)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self.task = self.bar.add_task("explain, blocks", total=blocks, completed=done, figures="")

    def __enter__(self) -> "ExplainProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.rows > self.logged_rows:
            self._log()
        self.log.close()

    @property
    def rows_per_second(self) -> float:
        return self.rows / max(1e-9, time.monotonic() - self.started)

    def add(self, result: dict[str, Any]) -> None:
        """Take in what became of one block."""
        self.rows += result["rows"]
        self.failed += result["failed"]
        self.actors.add(result["actor"])
        figures = f"{self.rows:,} rows, {self.failed:,} failed, {self.rows_per_second:.1f} a second"
        self.bar.update(self.task, advance=1, figures=figures)
        if time.monotonic() - self.logged > _SECONDS_BETWEEN_LINES:
            self._log()

    def _log(self) -> None:
        self.logged, self.logged_rows = time.monotonic(), self.rows
        self.log.log(self.rows, rows_done=self.rows, failed=self.failed, rows_per_second=self.rows_per_second)
