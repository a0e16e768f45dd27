"""Blocks of work on a pool of Ray Data actors that grows while blocks wait, and the bar that shows how far it is.

An actor takes one block a call and returns a row of lists of one; what it does with the block is each stage's business.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, Self

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ray_jobs.runtime import data_context
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace

# Ray Data starts one task a block of its own; beyond this many, several of ours go into one of them.
_MOST_TASKS = 20_000
# Blocks at an actor, as a multiple of those it works on. Ray Data starts another actor when there are 1.75 times as
# many as the actors work on, so with fewer the pool would never grow.
_WAITING_FACTOR = 2
_SECONDS_BETWEEN_LINES = 5.0


def as_dataset(items: Sequence[dict[str, Any]]) -> Dataset:
    """Ray Data's rows, one a block of work."""
    return ray.data.from_items(list(items), override_num_blocks=min(len(items), _MOST_TASKS))


def run_blocks(
    actor: type,
    arguments: tuple[Any, ...],
    items: Sequence[dict[str, Any]],
    size: tuple[int, int],
    at_once: int,
    actor_options: Callable[[], dict[str, Any]] | None = None,
    **resources: Any,
) -> Generator[dict[str, Any], None, None]:
    """Have a pool of actors do the blocks; yields what they return as blocks end.

    Args:
        actor: a class whose instances are called with a batch of one item.
        arguments: its constructor's.
        items: one a block.
        size: the smallest and largest number of actors.
        at_once: blocks that an actor works on together.
        actor_options: further options of each new actor.
        resources: what one actor takes, as Ray Data is told.
    """
    context = data_context()
    if actor_options is not None:
        # One of them asks for an actor's options without starting one, whose placement group would then stand empty.
        context.issue_detectors_config.detectors = []
    with DataContext.current(context):
        results = as_dataset(items).map_batches(
            actor,
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=size[0],
                max_size=size[1],
                max_concurrent_calls_per_actor=at_once,
                max_tasks_in_flight_per_actor=_WAITING_FACTOR * at_once,
            ),
            fn_constructor_args=arguments,
            ray_remote_args_fn=actor_options,
            **resources,
        )
        yield from results.iter_rows()


class BlockProgress(ABC):
    """A line in metrics.jsonl as blocks end, and a bar on a terminal.

    Args:
        workspace: whose metrics.jsonl is written to.
        stage: whose.
        description: before the bar.
        blocks: of the whole work.
        done: those of earlier runs, if the bar begins there.

    Attributes:
        rows: of this run.
    """

    def __init__(self, workspace: Workspace, stage: str, description: str, blocks: int, done: int = 0):
        self.rows = self.logged_rows = 0
        self.started = self.logged = time.monotonic()
        self.log = MetricLogger(workspace, stage)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self.task = self.bar.add_task(description, total=blocks, completed=done, figures="")

    def __enter__(self) -> Self:
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

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """What a line of metrics.jsonl says."""

    @abstractmethod
    def shown(self) -> str:
        """What stands beside the bar."""

    def add(self, result: dict[str, Any]) -> None:
        """Take in what became of one block."""
        self.rows += int(result["rows"])
        self.bar.update(self.task, advance=1, figures=self.shown())
        if time.monotonic() - self.logged > _SECONDS_BETWEEN_LINES:
            self._log()

    def _log(self) -> None:
        self.logged, self.logged_rows = time.monotonic(), self.rows
        self.log.log(self.rows, **self.figures())
