"""The verb `xrec submit`: a stage as a job of a Ray cluster, followed from here.

What is sent is `ray_jobs.submission`'s business, and how a cluster is talked to `ray_jobs.job_client`'s.
"""

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from ray_jobs.job_client import Jobs

_INTERRUPTED = 130
_KEPT_CHARACTERS = 100_000
EXAMPLES = (
    "Examples: xrec submit explain --address http://head:8265 --config run.yaml --workspace s3://bucket/run; "
    "xrec submit --attach JOB; xrec submit --cancel JOB"
)


def submit(
    stage: Annotated[
        str | None, typer.Argument(help="A stage, baseline, snapshot, or run: every stage that the config names.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The dashboard's URL; default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS if that is a URL."),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="A URI, or a folder that all nodes share; default: the config's."),
    ] = None,
    config: Annotated[str | None, typer.Option("--config", help="YAML file of settings here; it is sent.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Pass a variable of this shell on, by NAME or a pattern such as 'FSSPEC_S3_*', or NAME=VALUE; may be "
            "repeated. Whoever sees the dashboard sees it.",
        ),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(help="Send this folder, such as a repository, instead of the installed packages."),
    ] = None,
    code: Annotated[
        bool, typer.Option("--code/--no-code", help="Send the installed packages, or rely on those of the image.")
    ] = True,
    repair: Annotated[bool, typer.Option("--repair", help="Of profile: write the rows that failed again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Discard what is there and build it anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the job say what it would do, and no more.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit and return; the exit code is 0.")] = False,
    attach: Annotated[str | None, typer.Option(metavar="JOB", help="Follow a job that was submitted before.")] = None,
    cancel: Annotated[str | None, typer.Option(metavar="JOB", help="Stop a job; a later one resumes it.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the cluster's jobs.")] = False,
) -> None:
    """Run a stage as a job of a Ray cluster: send it, show its output, return its exit code."""
    if sum((stage is not None, attach is not None, cancel is not None, listed)) != 1:
        raise typer.BadParameter("give one of STAGE, --attach JOB, --cancel JOB and --list")
    if working_dir is not None and not code:
        raise typer.BadParameter("--working-dir and --no-code exclude each other")
    if stage is not None:
        from ray_jobs.submission import chosen_environment, prepare

        given = [("--force", force), ("--dry-run", dry_run), ("--repair", repair)]
        flags = [flag for flag, wanted in given if wanted]
        environment = chosen_environment(env or [], os.environ)
        submission = prepare(stage, workspace, config, overrides, flags, environment, working_dir, code)
        jobs = _jobs(address)
        job = jobs.submit(submission)
        passed = f" with {', '.join(submission.environment)}" if submission.environment else ""
        _say(f"submitted {job}{passed}: {submission.entrypoint}")
        if no_wait:
            typer.echo(job)
            return
        _follow(jobs, job)
    elif attach is not None:
        _follow(_jobs(address), attach)
    elif cancel is not None:
        _report_cancelled(_jobs(address).stop(cancel))
    else:
        _show(_jobs(address).submitted())


def _jobs(address: str | None) -> "Jobs":
    from ray_jobs.job_client import Jobs

    return Jobs(address, _say)


def _say(message: str) -> None:
    """A remark beside the job's output, which alone goes to stdout."""
    sys.stdout.flush()
    print(f"xrec submit: {message}", file=sys.stderr, flush=True)


def _follow(jobs: "Jobs", job: str) -> None:
    from ray_jobs.job_following import exit_code, failure, follow

    kept = ""

    def show(text: str) -> None:
        nonlocal kept
        kept = (kept + text)[-_KEPT_CHARACTERS:]
        print(text, end="", flush=True)

    try:
        details = follow(jobs, job, show)
    except KeyboardInterrupt:
        at = f"--address {jobs.address}"
        _say(f"job {job} goes on; `xrec submit {at} --attach {job}` follows it, `… --cancel {job}` stops it")
        raise typer.Exit(_INTERRUPTED) from None
    code = exit_code(details)
    if code != 0:
        sys.stdout.flush()
        print(f"xrec: error: {failure(details, kept)}", file=sys.stderr)
        raise typer.Exit(code)


def _report_cancelled(details: "JobDetails") -> None:
    name, status = details.submission_id, details.status.value
    typer.echo(f"{name}: stopped" if status == "STOPPED" else f"{name}: had ended before, {status}")


def _show(jobs: list["JobDetails"]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("Job", "State", "Stage", "Workspace", "Started", "Seconds")
    for job in jobs:
        about, started = job.metadata or {}, (job.start_time or 0) / 1000
        ended = job.end_time / 1000 if job.end_time else time.time()
        row = [str(job.submission_id), job.status.value, about.get("stage", ""), about.get("workspace", "")]
        row += [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)), f"{ended - started:.0f}"]
        table.add_row(*row)
    # Names are to be copied from here: no line is cut.
    Console(width=None if sys.stdout.isatty() else 250).print(table)
