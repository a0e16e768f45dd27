"""Stage `sparsity`: users by how much is known of them, zero-shot ones among them (the paper's Figure 4)."""

from ray_jobs.study import run_study
from xrec.config import RunConfig, SparsityConfig
from xrec.workspace import Workspace


def run(
    workspace: Workspace,
    config: SparsityConfig,
    *,
    settings: RunConfig | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> str:
    """See `ray_jobs.study.run_study`."""
    return run_study("sparsity", workspace, config, settings, force, dry_run)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("sparsity", run)
