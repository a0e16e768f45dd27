"""Stage `compare`: XRec, baselines, floors, and predictions made elsewhere, in one table (the paper's Table 1)."""

from ray_jobs.study import run_study
from xrec.config import CompareConfig, RunConfig
from xrec.workspace import Workspace


def run(
    workspace: Workspace,
    config: CompareConfig,
    *,
    settings: RunConfig | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> str:
    """See `ray_jobs.study.run_study`."""
    return run_study("compare", workspace, config, settings, force, dry_run)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("compare", run)
