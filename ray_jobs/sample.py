"""Stage `data` from nothing: writes the tables of a synthetic world (`xrec.data.sample`) into a workspace."""

from xrec.config import SampleConfig
from xrec.data.sample import make_world, world_tables
from xrec.workspace import Workspace


def run(workspace: Workspace, config: SampleConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Make the world and write its tables; returns the summary line.

    Raises:
        ConfigError: the sizes contradict each other.
        WorkspaceError: the folder holds other data.
    """
    size = f"{config.users:,} users, {config.items:,} items"
    if dry_run:
        return (
            f"sample: would write a world of {size} and about {config.users * config.interactions_per_user:,} "
            f"reviews to {workspace}/data"
        )
    stage = workspace.stage("data", {"source": "sample", **config.identity()}, force=force)
    if stage.done:
        return f"sample: already finished ({size} in {workspace}/data)"
    world = make_world(config)
    for name, table in world_tables(world).items():
        stage.write_table(name, table)
    reviews = len(world.user)
    stage.finish({"users": config.users, "items": config.items, "reviews": reviews, "noise": float(world.noise.mean())})
    return f"sample: {size}, {reviews:,} reviews with explanations -> {workspace}/data"


if __name__ == "__main__":
    from ray_jobs.job import main

    main("sample", run)
