"""Every stage that a config names, in order, in one process: `xrec run` as a job of a cluster."""

from ray_jobs.job import argument_parser, errors_for_users, open_workspace, run_stages
from xrec.config_files import load_config


def main() -> None:
    """The command line; its exit codes are those of a stage."""
    parser = argument_parser("run", "Run every stage that a config names, in order, skipping what is done.")
    parser.add_argument("--force", action="store_true", help="discard what is there and build it anew")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    given = parser.parse_args()
    with errors_for_users():
        settings = load_config(given.config, given.set)
        for line in run_stages(open_workspace(given.workspace, settings), settings, given.force, given.dry_run):
            print(line, flush=True)


if __name__ == "__main__":
    main()
