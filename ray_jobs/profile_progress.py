"""Progress of the stage `profile`."""

import sys
from typing import Any

from ray_jobs.block_pool import BlockProgress
from xrec.config import ProfileConfig, TextKind
from xrec.profiles.accounting import cost_of
from xrec.profiles.parts import STAGE, TABLE
from xrec.workspace import Workspace

_COUNTS = ("failed", "tokens_in", "tokens_out", "attempts")


class ProfileProgress(BlockProgress):
    """Adds up what the blocks of one kind of text report.

    Args:
        workspace: whose metrics.jsonl is written to.
        config: has the model's price.
        kind: which texts.
        blocks: how many are to be done.
        cost: what earlier work has cost; goes on from there.

    Attributes:
        cost: what is spent, in the price's currency; 0 without a price.
    """

    def __init__(self, workspace: Workspace, config: ProfileConfig, kind: TextKind, blocks: int, cost: float):
        self.table, self.cost = TABLE[kind], cost
        super().__init__(workspace, STAGE, f"{self.table}, blocks", blocks)
        self.price = config.price
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.said = ""

    def add(self, result: dict[str, Any]) -> None:
        for name in _COUNTS:
            self.counts[name] += int(result[name])
        self.cost += cost_of(result["tokens_in"], result["tokens_out"], self.price) or 0.0
        super().add(result)

    def say(self, sentence: str) -> None:
        """Show what is going on elsewhere: beside the bar, or as a line of its own where there is none."""
        if sentence != self.said and self.bar.disable:
            print(f"profile: {self.table}: {sentence}", file=sys.stderr, flush=True)
        self.said = sentence
        self.bar.update(self.task, figures=sentence)

    def figures(self) -> dict[str, float]:
        counts = {"rows": self.rows, **self.counts, "rows_per_second": self.rows_per_second}
        figures = {f"{self.table}/{name}": float(count) for name, count in counts.items()}
        return figures if self.price is None else figures | {"cost": self.cost}

    def shown(self) -> str:
        cost = f", cost {self.cost:.4g}" if self.price is not None else ""
        return f"{self.counts['failed']:,} failed of {self.rows:,} rows{cost}"
