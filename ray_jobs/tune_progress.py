"""A progress bar for `tune` in the process that waits for the workers: it follows the log that they write."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace

_LOCAL_SECONDS, _REMOTE_SECONDS = 1.0, 15.0


@contextmanager
def show_progress(workspace: Workspace, steps: int) -> Iterator[None]:
    """Show step and losses on a terminal while the block runs; elsewhere, nothing."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    columns = (
        TextColumn("tune"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    ended = threading.Event()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("tune", total=steps, figures="starting workers")

        def follow() -> None:
            while not ended.wait(_LOCAL_SECONDS if workspace.is_local else _REMOTE_SECONDS):
                step, figures = latest_figures(workspace)
                progress.update(task, completed=step, figures=figures or "starting workers")

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def latest_figures(workspace: Workspace) -> tuple[int, str]:
    """The last step in the log, and the latest value of each loss in words."""
    lines, losses = read_metrics(workspace, "tune"), {}
    for line in lines:
        losses |= {name: value for name, value in line.items() if name.endswith("nll_per_token") and value is not None}
    return (lines[-1]["step"] if lines else 0), "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
