"""The log of a stage's figures: JSON lines always, TensorBoard if asked. What is measured is the stage's business."""

import json
import math
import time
from pathlib import Path
from typing import Any

from xrec.workspace import METRICS_LOG, Workspace


class MetricLogger:
    """Appends one JSON object a call to `<stage>/metrics.jsonl`.

    Local workspaces are appended to at once; object stores cannot append, so there the file is rewritten every
    `flush_seconds` and at `close`. A resumed stage keeps its earlier lines, but for those at or after the step from
    which it resumes (`keep_below`), which it will log again.

    Args:
        workspace: where the stage writes.
        stage: its name.
        tensorboard: a local folder for TensorBoard event files as well.
        keep_below: drop earlier lines whose `step` is this or more.
        flush_seconds: see above.
    """

    def __init__(
        self,
        workspace: Workspace,
        stage: str,
        tensorboard: str | Path | None = None,
        keep_below: int | None = None,
        flush_seconds: float = 30.0,
    ):
        self.workspace, self.stage, self.flush_seconds = workspace, stage, flush_seconds
        self.lines = self._earlier_lines(keep_below)
        self.flushed = 0.0
        self._save()
        self.writer = None
        if tensorboard is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writer = SummaryWriter(str(tensorboard), purge_step=keep_below)

    def log(self, step: int, **figures: float) -> None:
        """Record figures at a step; not-a-number and infinity are stored as null, which JSON can hold."""
        values: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in figures.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values})
        self.lines.append(line)
        if self.workspace.is_local:
            with open(self.workspace.path(self.stage, METRICS_LOG), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        elif time.time() - self.flushed > self.flush_seconds:
            self._save()
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if not self.workspace.is_local:
            self._save()
        if self.writer is not None:
            self.writer.close()

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _earlier_lines(self, keep_below: int | None) -> list[str]:
        return [
            line
            for line in _lines(self.workspace, self.stage)
            if keep_below is None or json.loads(line)["step"] < keep_below
        ]

    def _save(self) -> None:
        text = "".join(line + "\n" for line in self.lines)
        self.workspace.write_bytes(text.encode(), self.stage, METRICS_LOG)
        self.flushed = time.time()


def read_metrics(workspace: Workspace, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage's log, in order; an empty list where it wrote none."""
    return [json.loads(line) for line in _lines(workspace, stage)]


def _lines(workspace: Workspace, stage: str) -> list[str]:
    if not workspace.exists(stage, METRICS_LOG):
        return []
    # A process killed while it was writing leaves a last line without its end: that one was never logged.
    *complete, _ = workspace.read_bytes(stage, METRICS_LOG).decode(errors="replace").split("\n")
    return complete
