"""What `compare`, `ablate` and `sparsity` share: systems run side by side, and what they amount to written down.

How the systems run is the business of `study_systems.py`, and what a comparison is that of `xrec/evaluation`.
"""

from typing import Any

from ray_jobs.study_systems import common_stages, plan, run_own_stages, run_systems
from xrec.config import CompareConfig, ConfigError, RunConfig, StudyConfig
from xrec.config_files import with_overrides
from xrec.evaluation import comparison_tables
from xrec.evaluation.comparison import System
from xrec.evaluation.comparison_content import build_comparison, flat_figures
from xrec.evaluation.comparison_report import render_comparison
from xrec.evaluation.metrics import METRICS
from xrec.workspace import Workspace

PAGE = "report.html"
_TITLES = {"compare": "XRec beside other systems", "ablate": "XRec without its parts", "sparsity": "By user frequency"}
# What a study's summary line says, the first of these that all systems have.
_MAIN = ("feature/accuracy", "bert_score_f1", "rouge_l")


def run_study(
    stage: str, workspace: Workspace, config: StudyConfig, settings: RunConfig | None, force: bool, dry_run: bool
) -> str:
    """Run every system of a study that is not finished, and write what they amount to; returns the summary line.

    Writes `comparison.json`, tables in Markdown, LaTeX and HTML, and a page with plots into `<workspace>/<stage>/`.

    Args:
        stage: `compare`, `ablate` or `sparsity`.
        workspace: whose data and split all systems share; what it lacks of it is made first.
        config: the study's settings.
        settings: the run's; where they have no section for tune, explain or evaluate, the workspace's own are taken.
        force: build the study's folder anew; finished systems are kept.
        dry_run: say what would be done; write nothing.

    Raises:
        ConfigError: a system's overrides are wrong, or name what all systems share; an unknown metric.
        WorkspaceError: a system failed, or the workspace holds another study.
    """
    _check_metric(stage, config)
    known = _with_own_settings(workspace, settings or RunConfig())
    runs = plan(known, config)
    if dry_run:
        names = ", ".join(config.systems)
        return f"{stage}: would tune or train, explain with and evaluate {names} at {len(config.seeds)} seeds each"
    run_own_stages(workspace, known, tuple(common_stages(known)))
    imported = _imported(workspace, config)
    systems = [*run_systems(workspace, config, runs, stage), *imported]
    external = {f"{s.name}/{s.seed}": s.workspace.output_hash("evaluate") for s in systems}
    study = workspace.stage(stage, config.identity(), ["preprocess"], external, force)
    if study.done:
        return f"{stage}: already finished ({workspace}/{stage}/{PAGE})"
    split = known.explain.split if known.explain else "test"
    comparison = build_comparison(workspace, stage, config, systems, split)
    study.write_json("comparison.json", comparison)
    for name, text in {
        "table.md": comparison_tables.markdown(comparison),
        "table.tex": comparison_tables.latex(comparison),
        "table.html": comparison_tables.html(comparison),
        PAGE: render_comparison(comparison, _TITLES[stage]),
    }.items():
        workspace.write_bytes(text.encode(), stage, name)
    study.finish(flat_figures(comparison))
    return f"{stage}: {_headline(comparison)} -> {workspace}/{stage}/{PAGE}"


def _check_metric(stage: str, config: StudyConfig) -> None:
    columns = [metric.column for metric in METRICS if metric.column]
    if config.metric not in columns:
        raise ConfigError(
            f"{stage}.metric = {config.metric!r} is no metric of single predictions; use one of {', '.join(columns)}"
        )


def _with_own_settings(workspace: Workspace, settings: RunConfig) -> RunConfig:
    """Settings whose absent sections are what the workspace was made with."""
    missing = [s for s in ("tune", "explain", "evaluate") if settings.section(s) is None and workspace.is_finished(s)]
    own = {stage: workspace.manifest(stage)["fingerprint"]["config"] for stage in missing}
    return with_overrides(settings, own, f"workspace {workspace}") if own else settings


def _imported(workspace: Workspace, config: StudyConfig) -> list[System]:
    names = config.imported if isinstance(config, CompareConfig) else ()
    there = {name for name, _ in workspace.variants()}
    for name in names:
        if name not in there:
            raise ConfigError(
                f"compare.imported names {name!r}, of which {workspace} has no predictions; score them first, with "
                f"`xrec evaluate --predictions FILE --name {name}`"
            )
    return [System(name, "predictions", 0, workspace.variant(name, 0, ("explain", "evaluate"))) for name in names]


def _headline(comparison: dict[str, Any]) -> str:
    """Where the reference stands, in the main metric that all systems have."""
    systems = {s["name"]: s["metrics"] for s in comparison["systems"]}
    key = next((k for k in _MAIN if all(k in found for found in systems.values())), None)
    counted = f"{len(systems)} systems on {comparison['pairs']:,} pairs"
    if key is None:
        return counted
    best = sorted(systems, key=lambda name: -systems[name][key]["value"])[:3]
    return f"{counted}; {key}: " + ", ".join(f"{name} {systems[name][key]['value']:.4f}" for name in best)
