"""Progress of the stage `profile`: a line in metrics.jsonl as blocks end, and a bar on a terminal."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xrec.config import ProfileConfig, TextKind
from xrec.metric_logging import MetricLogger
from xrec.profiles.accounting import cost_of
from xrec.profiles.parts import STAGE, TABLE
from xrec.workspace import Workspace

_SECONDS_BETWEEN_LINES = 5.0
_COUNTS = ("rows", "failed", "tokens_in", "tokens_out", "attempts")


class ProfileProgress:
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
        self.price = config.price
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.started = self.logged = time.monotonic()
        self.logged_rows, self.said = 0, ""
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
        self.task = self.bar.add_task(f"{self.table}, blocks", total=blocks, figures="")

    def __enter__(self) -> "ProfileProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.counts["rows"] > self.logged_rows:
            self._log()
        self.log.close()

    def add(self, result: dict[str, Any]) -> None:
        """Take in what became of one block."""
        for name in _COUNTS:
            self.counts[name] += int(result[name])
        self.cost += cost_of(result["tokens_in"], result["tokens_out"], self.price) or 0.0
        self.bar.update(self.task, advance=1, figures=self._figures())
        if time.monotonic() - self.logged > _SECONDS_BETWEEN_LINES:
            self._log()

    def say(self, sentence: str) -> None:
        """Show what is going on elsewhere: beside the bar, or as a line of its own where there is none."""
        if sentence != self.said and self.bar.disable:
            print(f"profile: {self.table}: {sentence}", file=sys.stderr, flush=True)
        self.said = sentence
        self.bar.update(self.task, figures=sentence)

    def _log(self) -> None:
        self.logged, self.logged_rows = time.monotonic(), self.counts["rows"]
        figures = {f"{self.table}/{name}": float(count) for name, count in self.counts.items()}
        figures[f"{self.table}/rows_per_second"] = self.counts["rows"] / max(1e-9, self.logged - self.started)
        if self.price is not None:
            figures["cost"] = self.cost
        self.log.log(self.counts["rows"], **figures)

    def _figures(self) -> str:
        cost = f", cost {self.cost:.4g}" if self.price is not None else ""
        return f"{self.counts['failed']:,} failed of {self.counts['rows']:,} rows{cost}"
