"""Systems of a study, side by side on Ray: which there are, where they lie, and what runs in them.

A system at a seed is a variant workspace (`variants/<system>/<seed>/`) in which the ordinary stages run: tune, explain
and evaluate for XRec, baseline and evaluate for a baseline. Each is resumable by itself, and studies that name the same
system share it. Stages before those that a system cannot take from the workspace (another backbone) lie in
a place that all systems asking for the same share.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from ray_jobs.resources import actor_options, require, study_demands
from ray_jobs.runtime import innermost_cause
from xrec.config import ConfigError, ExplainConfig, RunConfig, StudyConfig
from xrec.config_files import section_config, with_overrides
from xrec.evaluation.comparison import System
from xrec.fingerprint import hash_of
from xrec.workspace import Workspace, WorkspaceError

# The stages that all systems share, and those that a system may have for itself.
_COMMON = ("sample", "import", "ingest", "preprocess", "profile")
_PER_SYSTEM = ("embed", "backbone")
_PER_SEED = ("tune", "explain", "evaluate")
_BASELINE = ("baseline", "evaluate")
_FLOORS = ("item_profile", "similar_user")
# Name, workspace, settings and stages of one piece of work.
Work = tuple[str, Workspace, RunConfig, tuple[str, ...]]


@dataclass(frozen=True)
class Run:
    """One system at one seed.

    Attributes:
        system: its name.
        seed: of tuning or training.
        kind: `xrec` (as the file has it), `ablation`, `baseline` or `floor`.
        config: its settings.
        shared: stages before those of a seed that the system cannot take from the workspace.
        own: stages of this seed.
    """

    system: str
    seed: int
    kind: str
    config: RunConfig
    shared: tuple[str, ...]
    own: tuple[str, ...]

    def workspace(self, base: Workspace) -> Workspace:
        """Where it lies, made if need be."""
        own = ("baseline", "explain", "evaluate") if "baseline" in self.own else self.own
        return base.variant(self.system, self.seed, own, self.shared_workspace(base))

    def shared_workspace(self, base: Workspace) -> Workspace | None:
        """Where its shared stages lie, made if need be: one place for all systems that ask for the same."""
        if not self.shared:
            return None
        identities = {stage: self.config.section(stage).identity() for stage in self.shared}
        return base.shared_variant(hash_of(identities)[:12], self.shared)


def plan(settings: RunConfig, study: StudyConfig) -> list[Run]:
    """Every system at every seed.

    Raises:
        ConfigError: a system's overrides are wrong, or would change what all systems share.
    """
    runs = []
    for system, overrides in study.systems.items():
        changed = with_overrides(settings, overrides, f"systems.{system}")
        for stage in _COMMON:
            if changed.section(stage) != settings.section(stage):
                raise ConfigError(
                    f"systems.{system} changes `{stage}`, but all systems share the data, the split and the texts; "
                    "make another workspace for that"
                )
        baseline = changed.baseline if "baseline.name" in overrides else None
        kind = "floor" if baseline and baseline.name in _FLOORS else "baseline" if baseline else "ablation"
        for seed in study.seeds:
            fixed = _asked_of_baselines(settings, seed) if baseline else _asked_of_xrec(seed)
            config = with_overrides(settings, fixed | overrides, f"systems.{system}")
            shared = () if baseline else _own_from(settings, changed)
            own = _BASELINE if baseline else _PER_SEED
            runs.append(Run(system, seed, kind if overrides else "xrec", config, shared, own))
    return runs


def run_systems(workspace: Workspace, study: StudyConfig, runs: Sequence[Run], stage: str) -> list[System]:
    """Run what is not finished, `compute.parallel` systems at a time; returns where the results are.

    Systems go on where another one fails. What is finished is only looked at.

    Args:
        workspace: with the common stages finished.
        study: the settings.
        runs: what `plan` returned.
        stage: whose log this is.

    Raises:
        WorkspaceError: a system failed; names each one and why. The others are finished.
    """
    failures: dict[str, str] = {}
    with _Progress(stage, len(runs)) as progress:
        _run_all(stage, study, _shared_work(workspace, runs), failures, progress)
        sound = [run for run in runs if _name(run.shared_workspace(workspace)) not in failures]
        work = [(f"{run.system}/{run.seed}", run.workspace(workspace), run.config, run.own) for run in sound]
        _run_all(stage, study, work, failures, progress)
    if failures:
        raise WorkspaceError(
            f"{stage}: {len(failures)} of {len(runs)} systems failed: "
            + "; ".join(f"{name}: {why}" for name, why in failures.items())
            + ". The others are finished: mend the cause and run the same command again"
        )
    return [System(run.system, run.kind, run.seed, run.workspace(workspace)) for run in runs]


def common_stages(settings: RunConfig) -> list[str]:
    """The stages that come before every system's own, in running order."""
    return [s for s in (*_COMMON, *_PER_SYSTEM) if settings.section(s) is not None]


def _asked_of_xrec(seed: int) -> dict[str, Any]:
    # Controls and probes say something of one model, nothing of several.
    return {"tune.seed": seed, "explain.seed": seed, "explain.controls": [], "evaluate.probe": False}


def _asked_of_baselines(settings: RunConfig, seed: int) -> dict[str, Any]:
    """The very pairs that XRec explains, within the same limit of words."""
    asked = settings.explain or ExplainConfig()
    fixed: dict[str, Any] = {
        "baseline.seed": seed,
        "baseline.split": asked.split,
        "baseline.max_words": asked.max_words,
    }
    return fixed | ({} if asked.limit is None else {"baseline.limit": asked.limit})


def _own_from(settings: RunConfig, changed: RunConfig) -> tuple[str, ...]:
    """The stages, from the first that differs on, which the system cannot take from the workspace."""
    present = [s for s in _PER_SYSTEM if changed.section(s) is not None]
    for place, stage in enumerate(present):
        before = settings.section(stage)
        if before is None or before.identity() != changed.section(stage).identity():
            return tuple(present[place:])
    return ()


def _shared_work(workspace: Workspace, runs: Sequence[Run]) -> list[Work]:
    """What the seeds of a system need first, each once."""
    work: dict[str, Work] = {}
    for run in runs:
        folder = run.shared_workspace(workspace)
        if folder is not None:
            work[folder.uri] = (_name(folder), folder, run.config, run.shared)
    return list(work.values())


def _name(folder: Workspace | None) -> str:
    return folder.uri.rpartition("/")[2] if folder else ""


def _run_all(
    stage: str,
    study: StudyConfig,
    work: list[Work],
    failures: dict[str, str],
    progress: "_Progress",
) -> None:
    for name, result in _results(stage, work, study):
        if isinstance(result, Exception):
            failures[name] = innermost_cause(result)
        progress.add(name, result)


def _results(stage: str, work: list[Work], study: StudyConfig) -> Iterator[tuple[str, list[str] | Exception]]:
    """Summaries of each piece of work, or why it failed. What is finished needs no Ray, and comes first."""
    finished = [w for w in work if all(w[1].is_finished(own) for own in w[3])]
    for name, folder, config, stages in finished:
        yield name, run_own_stages(folder, config, stages)
    waiting = [w for w in work if w not in finished]
    if not waiting:
        return
    needed = study_demands(stage, study.compute, [(config, stages) for _, _, config, stages in waiting])
    require(needed)
    remote = ray.remote(max_retries=0, **actor_options(needed[0].bundles[0]))(run_own_stages)
    running: dict[Any, str] = {}
    while waiting or running:
        while waiting and len(running) < study.compute.parallel:
            name, folder, config, stages = waiting.pop(0)
            running[remote.remote(folder, config, stages)] = name
        [ready], _ = ray.wait(list(running), num_returns=1)
        name = running.pop(ready)
        try:
            result = ray.get(ready)
        except RayError as error:
            result = error
        yield name, result


def run_own_stages(workspace: Workspace, config: RunConfig, stages: tuple[str, ...]) -> list[str]:
    """Run some stages of a workspace in order; returns their summary lines."""
    from ray_jobs.job import stage_function

    return [stage_function(stage)(workspace, section_config(stage, config)) for stage in stages]


class _Progress:
    """A bar on a terminal, or a line on stderr for each stage of a system; each stage has a log of its own."""

    def __init__(self, stage: str, total: int):
        self.console = Console(stderr=True)
        columns = *Progress.get_default_columns(), MofNCompleteColumn()
        self.bar = Progress(*columns, console=self.console, disable=not sys.stderr.isatty(), transient=True)
        self.task = self.bar.add_task(f"{stage}: systems", total=total)

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def add(self, name: str, result: list[str] | Exception) -> None:
        """One system, or what its seeds share, is done or has failed."""
        lines = [f"failed: {innermost_cause(result)}"] if isinstance(result, Exception) else result
        for line in lines:
            self.console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
        if "/" in name:
            self.bar.advance(self.task)
