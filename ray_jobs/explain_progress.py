"""Progress of the stage `explain`."""

from typing import Any

from ray_jobs.block_pool import BlockProgress
from xrec.explainer.requests import STAGE
from xrec.workspace import Workspace


class ExplainProgress(BlockProgress):
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
        super().__init__(workspace, STAGE, "explain, blocks", blocks, done)
        self.failed = 0
        self.actors: set[str] = set()

    def add(self, result: dict[str, Any]) -> None:
        self.failed += result["failed"]
        self.actors.add(result["actor"])
        super().add(result)

    def figures(self) -> dict[str, float]:
        return {"rows_done": self.rows, "failed": self.failed, "rows_per_second": self.rows_per_second}

    def shown(self) -> str:
        return f"{self.rows:,} rows, {self.failed:,} failed, {self.rows_per_second:.1f} a second"
