"""Stage `data` from a published XRec data folder (`xrec.data.release`): writes its tables into a workspace."""

from xrec.config import ImportConfig
from xrec.data.release import read_release, release_files
from xrec.fingerprint import hash_files
from xrec.workspace import Workspace


def run(workspace: Workspace, config: ImportConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Read the release and write its tables; returns the summary line.

    The files' contents, not the folder's path, are the stage's identity.

    Raises:
        ReleaseError: a file is absent, malformed, or refers to something that is refused.
        WorkspaceError: the folder holds other data.
    """
    files = release_files(config.path)
    if dry_run:
        return f"import: would read {', '.join(files)} from {config.path} into {workspace}/data"
    contents = {file: hash_files(config.path, file) for file in files}
    stage = workspace.stage("data", {"source": "import"}, external=contents, force=force)
    if stage.done:
        return f"import: already finished ({config.path} in {workspace}/data)"
    tables, counts = read_release(config.path)
    for name, table in tables.items():
        stage.write_table(name, table)
    stage.finish({name: float(count) for name, count in counts.items()})
    explanations = tables["source_explanations"].num_rows if "source_explanations" in tables else 0
    return (
        f"import: {counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions, "
        f"{explanations:,} explanations -> {workspace}/data"
    )


if __name__ == "__main__":
    from ray_jobs.job import main

    main("import", run)
