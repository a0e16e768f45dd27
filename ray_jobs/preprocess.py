"""Stage `preprocess`: a workspace's source tables to indices and the one split (`xrec.data.preprocess`)."""

from xrec.config import PreprocessConfig
from xrec.data.preprocess import COLUMNS, OPTIONAL_TABLES, REQUIRED_TABLES, leak_metrics, preprocess
from xrec.workspace import Workspace


def run(workspace: Workspace, config: PreprocessConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Preprocess the data of the workspace and write the tables; returns the summary line.

    Raises:
        ConfigError: a setting leaves nothing, or asks for a split that the source does not have.
        WorkspaceError: there is no data, or the folder holds the result of other settings.
    """
    if dry_run:
        settings = f"min_rating {config.min_rating}, k_core {config.k_core}, split {config.split}"
        return f"preprocess: would filter, index and split {workspace}/data ({settings}) into {workspace}/preprocess"
    stage = workspace.stage("preprocess", config.identity(), inputs=["data"], force=force)
    if stage.done:
        return f"preprocess: already finished ({workspace}/preprocess)"
    optional = [name for name in OPTIONAL_TABLES if workspace.has_table("data", name)]
    # Without the reviews' texts: they need not fit into memory.
    source = {name: workspace.read_table("data", name, COLUMNS.get(name)) for name in (*REQUIRED_TABLES, *optional)}
    tables, metrics = preprocess(source, config)
    for name, table in tables.items():
        stage.write_table(name, table)
    if "explanations" in tables:
        # From the files, not from memory: what later stages read is what has to be free of leaks.
        written = (workspace.read_table("preprocess", name) for name in ("interactions", "explanations"))
        metrics |= leak_metrics(*written)
    stage.finish(metrics)
    return _summary(metrics, workspace)


def _summary(metrics: dict[str, float], workspace: Workspace) -> str:
    splits = ", ".join(
        f"{metrics[f'interactions/{split}']:,} {split}"
        for split in ("train", "val", "test", "fold_in")
        if f"interactions/{split}" in metrics
    )
    return (
        f"preprocess: {metrics['users']:,} users, {metrics['items']:,} items, {metrics['interactions']:,} interactions "
        f"({splits}), {metrics.get('explanations', 0):,} explanations -> {workspace}/preprocess"
    )


if __name__ == "__main__":
    from ray_jobs.job import main

    main("preprocess", run)
