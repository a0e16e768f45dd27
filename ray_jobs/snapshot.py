"""Publish what is finished for serving: `xrec snapshot` as a job of a cluster.

What a snapshot is is `xrec.serving.publishing`'s business.
"""

from ray_jobs.job import argument_parser, errors_for_users, open_workspace
from xrec.config_files import load_config
from xrec.serving.publishing import publish
from xrec.workspace import Workspace


def run(workspace: Workspace) -> str:
    """Publish; returns the summary line."""
    return f"snapshot {publish(workspace)} of {workspace} is the current one"


def main() -> None:
    """The command line; its exit codes are those of a stage."""
    given = argument_parser("snapshot", "Publish what is finished for serving.").parse_args()
    with errors_for_users():
        print(run(open_workspace(given.workspace, load_config(given.config, given.set))))


if __name__ == "__main__":
    main()
