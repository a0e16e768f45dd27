"""Metrics over single predictions, computed by a pool of Ray Data actors: blocks of rows in, files of scores out.

Each actor holds the scorers of the settings. A single block is scored in this process, where an actor would cost its
start and nothing else. What the metrics are, is the business of `xrec/evaluation`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from ray_jobs.block_pool import BlockProgress, run_blocks
from ray_jobs.resources import actor_options, require, section_demands, waiting
from ray_jobs.runtime import innermost_cause
from xrec import blocks
from xrec.config import EvaluateCompute, EvaluateConfig
from xrec.evaluation.scorer_choice import open_scorers
from xrec.evaluation.scorers import Scorer
from xrec.evaluation.scoring import score_rows
from xrec.workspace import Workspace, WorkspaceError

STAGE, WORK = "evaluate", "work"
_ROWS, _FACTS = (STAGE, WORK, "rows"), (STAGE, WORK, "facts")
_SCORES = "scores"


class ScoreActor:
    """The scorers of the settings: blocks of joined predictions in, files of scores out.

    Args:
        workspace: whose predictions are scored.
        config: the stage's settings.
        device: torch device.
        referenced: whether the data has references.
    """

    def __init__(self, workspace: Workspace, config: EvaluateConfig, device: str, referenced: bool):
        self.workspace = workspace
        self.scorers = open_scorers(workspace, config, device, referenced)
        self.facts = _facts(self.scorers)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """Score one block; returns what became of it, as a row of lists of one."""
        block = int(batch["block"][0])
        rows = blocks.read_requests(self.workspace, _ROWS, block)
        before = _facts(self.scorers)
        scores, seconds = score_rows(rows, self.scorers)
        counted = {family: _minus(facts, before[family]) for family, facts in _facts(self.scorers).items()}
        # The scores come last: a block counts as done when they are there.
        self.workspace.write_json(
            {"facts": self.facts, "counted": counted, "seconds": seconds, "rows": len(rows)}, *_FACTS, f"{block}.json"
        )
        self.workspace.write_table(scores, STAGE, _SCORES, part=blocks.part_name(block))
        return {"block": [block], "rows": [len(rows)]}


class _Progress(BlockProgress):
    def figures(self) -> dict[str, float]:
        return {"rows_done": self.rows, "rows_per_second": self.rows_per_second}

    def shown(self) -> str:
        return f"{self.rows:,} rows, {self.rows_per_second:.1f} a second"


def score_predictions(
    workspace: Workspace, config: EvaluateConfig, joined: pa.Table, device: str
) -> tuple[pa.Table, dict[str, dict[str, Any]]]:
    """Score every joined prediction; blocks that an earlier run has scored are not scored again.

    Args:
        workspace: with the stage begun.
        config: its settings.
        joined: what `scoring.join_references` returned.
        device: torch device.

    Returns:
        The table `scores`, and family -> facts with counts, seconds and rows per second of one actor.

    Raises:
        ConfigError: the cluster can never hold the actors.
        WorkspaceError: an actor failed.
        ValueError: a model cannot be loaded.
    """
    compute = config.compute
    index = blocks.write_requests(workspace, _ROWS, _cut(joined, compute.rows_per_block))
    done = blocks.done_blocks(workspace, STAGE, _SCORES)
    work = [{"block": block} for block in range(index.blocks) if block not in done]
    referenced = joined["reference"].null_count < len(joined)
    arguments = (workspace, config, device, referenced)
    with _Progress(workspace, STAGE, "scores, blocks", index.blocks, len(done)) as progress:
        if len(work) == 1 and not compute.gpus_per_actor:
            actor = ScoreActor(*arguments)
            progress.add({name: value[0] for name, value in actor({"block": [work[0]["block"]]}).items()})
        elif work:
            for result in _on_ray(compute, arguments, work):
                progress.add(result)
    scores = workspace.read_table(STAGE, _SCORES)
    return scores, _merged(workspace, index.blocks)


def remove_work(workspace: Workspace) -> None:
    """Remove what only a run that goes on needs: the parts of the scores, and the rows they are about."""
    workspace.remove(STAGE, WORK)
    workspace.remove(STAGE, _SCORES)


def _on_ray(compute: EvaluateCompute, arguments: tuple, work: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    needed = section_demands(STAGE, EvaluateConfig(compute=compute))
    require(needed)
    size = min(compute.actors[0], len(work)), min(compute.actors[1], len(work))
    try:
        with waiting(needed):
            yield from run_blocks(ScoreActor, arguments, work, size, 1, **actor_options(needed[0].bundles[0]))
    except RayError as error:
        raise WorkspaceError(
            f"evaluate: an actor failed: {innermost_cause(error)}. What is scored is kept: mend the cause and run the "
            "same command again"
        ) from error


def _cut(joined: pa.Table, size: int) -> Iterator[pa.Table]:
    return (joined.slice(start, size) for start in range(0, len(joined), size))


def _merged(workspace: Workspace, count: int) -> dict[str, dict[str, Any]]:
    """What the scorers say of themselves, with counts and times added up over the blocks."""
    merged: dict[str, dict[str, Any]] = {}
    for block in range(count):
        found = workspace.read_json(*_FACTS, f"{block}.json")
        for family, facts in found["facts"].items():
            own = merged.setdefault(family, facts | {"seconds": 0.0, "rows": 0})
            own |= _plus(own, found["counted"][family])
            own["seconds"] += found["seconds"][family]
            own["rows"] += found["rows"]
    return merged


def _facts(scorers: dict[str, Scorer]) -> dict[str, dict[str, Any]]:
    return {family: scorer.facts() for family, scorer in scorers.items()}


def _minus(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """By how much each number has grown, those inside of dictionaries included."""
    return {
        name: _minus(value, before.get(name, {})) if isinstance(value, dict) else value - (before.get(name) or 0)
        for name, value in after.items()
        if isinstance(value, dict) or _is_number(value)
    }


def _plus(facts: dict[str, Any], grown: dict[str, Any]) -> dict[str, Any]:
    return facts | {
        name: _plus(facts.get(name) or {}, value) if isinstance(value, dict) else (facts.get(name) or 0) + value
        for name, value in grown.items()
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
