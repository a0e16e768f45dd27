"""Stage `ablate`: XRec without its parts (the paper's Figure 3)."""

from ray_jobs.study import run_study
from xrec.config import AblateConfig, RunConfig
from xrec.workspace import Workspace


def run(
    workspace: Workspace,
    config: AblateConfig,
    *,
    settings: RunConfig | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> str:
    """See `ray_jobs.study.run_study`."""
    return run_study("ablate", workspace, config, settings, force, dry_run)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("ablate", run)
