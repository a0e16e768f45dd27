"""What `xrec submit` sends to a cluster: a command, the folder that it runs in, its environment and its resources.

Everything here happens on the submitting machine, without a connection, so that wrong settings are told at once. How a
job is started and followed is `job_client`'s business.
"""

import fnmatch
import importlib.util
import posixpath
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
from fsspec.utils import get_protocol

from ray_jobs.demands import ClusterShape, Demand, refuse_impossible, shown
from ray_jobs.job import MODULES, stages_of
from ray_jobs.resources import driver_resources
from xrec import __version__
from xrec.config import STAGES, ConfigError, RunConfig
from xrec.config_files import load_config, section_config
from xrec.workspace import WorkspaceError

# What `xrec submit` takes: every stage, another system, everything that a config names, and publication.
JOBS = (*STAGES, "baseline", "run", "snapshot")
_WITHOUT_FORCE = ("snapshot",)
_PACKAGES = ("xrec", "ray_jobs", "serve")
# Nodes know their own token; a job that carried one would show it on the dashboard.
_NOT_PASSED = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class Submission:
    """A job before it is sent.

    Attributes:
        stage: one of `JOBS`.
        command: what runs on the cluster.
        config: the config file here, or None.
        workspace: its URI as the job will see it.
        environment: variables of the job and of its workers.
        resources: what its driver needs, by Ray's names (memory in bytes); empty: it runs on the head.
        working_dir: a folder to send as it is; None: this installation's packages, if `with_code`.
        with_code: whether the packages are sent, rather than found on the cluster.
    """

    stage: str
    command: list[str]
    config: Path | None
    workspace: str
    environment: dict[str, str] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    working_dir: Path | None = None
    with_code: bool = True

    @property
    def entrypoint(self) -> str:
        """The command as a shell reads it."""
        return shlex.join(self.command)

    def new_id(self) -> str:
        """A name for the job that says what it is and when it was submitted."""
        return f"xrec-{self.stage}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"

    def metadata(self) -> dict[str, str]:
        """What `--list`, and whoever follows the job later, are told of it."""
        facts = {"stage": self.stage, "workspace": self.workspace, "xrec": __version__}
        return facts | ({"needs": shown(self.resources)} if self.resources else {})


def prepare(
    stage: str,
    workspace: str | None = None,
    config: str | None = None,
    overrides: list[str] | None = None,
    flags: list[str] | None = None,
    environment: dict[str, str] | None = None,
    working_dir: str | None = None,
    with_code: bool = True,
) -> Submission:
    """Check everything that can be checked without the cluster, and make the job.

    Args:
        stage: one of `JOBS`.
        flags: options of the stage's module, such as `--force`.

    Raises:
        ConfigError: the stage, a setting, or the folder to send is wrong.
        WorkspaceError: the workspace is one that a cluster cannot see.
    """
    if stage not in JOBS:
        raise ConfigError(f"stage {stage!r} is not one that can be submitted; those are {', '.join(JOBS)}")
    flags = flags or []
    if "--repair" in flags and stage != "profile":
        raise ConfigError(f"--repair belongs to the stage profile, not to {stage!r}")
    if stage in _WITHOUT_FORCE and flags:
        raise ConfigError(f"{stage} takes no {' '.join(flags)}")
    settings = load_config(config, overrides)
    _check_settings(stage, settings, config)
    uri = visible_workspace(workspace or settings.workspace)
    folder = None if working_dir is None else _existing_folder(working_dir)
    command = ["python", "-m", f"ray_jobs.{MODULES.get(stage, stage)}"]
    if config is not None:
        command += ["--config", _name_in(folder, Path(config))]
    command += ["--workspace", uri]
    for override in overrides or []:
        command += ["--set", override]
    return Submission(
        stage,
        command + flags,
        None if config is None else Path(config),
        uri,
        environment or {},
        _driver_needs(stage, settings),
        folder,
        with_code,
    )


def visible_workspace(uri: str | None) -> str:
    """The workspace, if the machines of a cluster can see it.

    Raises:
        ConfigError: none is named.
        WorkspaceError: it is in this process's memory, relative to this folder, or of an unknown protocol.
    """
    if not uri or not uri.strip():
        raise ConfigError("no workspace is named; pass --workspace URI, or set `workspace:` in the config file")
    protocol = get_protocol(uri)
    if protocol == "memory":
        raise WorkspaceError(f"workspace {uri!r} is in this process's memory; use s3://bucket/run or a shared folder")
    if protocol not in fsspec.available_protocols():
        raise WorkspaceError(
            f"workspace {uri!r}: no filesystem is called {protocol!r}; use s3://bucket/run or the like"
        )
    if is_folder(uri) and not posixpath.isabs(uri.partition("://")[2] if "://" in uri else uri):
        raise WorkspaceError(
            f"workspace {uri!r} is relative to a folder of this machine, where the cluster's machines do not look; "
            "give a URI such as s3://bucket/run, or the absolute path of a folder that every node shares"
        )
    return uri


def is_folder(uri: str) -> bool:
    """Whether a workspace is a folder, which every node has to share, rather than an object store."""
    return get_protocol(uri) in ("file", "local")


def chosen_environment(wanted: list[str], here: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job is given.

    Args:
        wanted: `NAME`, read from `here`; a pattern of names, such as `FSSPEC_S3_*`; or `NAME=VALUE`.
        here: the environment of this process.

    Raises:
        ConfigError: a name is not set here, a pattern fits none, or the variable is one that nodes have themselves.
    """
    chosen: dict[str, str] = {}
    for given in wanted:
        name, separator, value = given.partition("=")
        if separator:
            found = {name: value}
        else:
            found = {n: here[n] for n in sorted(here) if fnmatch.fnmatchcase(n, name) and n not in _NOT_PASSED}
            if name in _NOT_PASSED:
                found = {name: ""}
        if not name or not found:
            raise ConfigError(
                f"--env {name or given!r}: no such variable is set here; set it, or pass --env NAME=VALUE"
            )
        refused = [n for n in found if n in _NOT_PASSED]
        if refused:
            raise ConfigError(f"--env {refused[0]}: not passed to jobs, since the cluster's nodes have their own")
        chosen |= found
    return chosen


@contextmanager
def job_folder(submission: Submission) -> Iterator[Path]:
    """The folder that is sent: the one that was named, or a temporary one with the packages and the config file."""
    if submission.working_dir is not None:
        yield submission.working_dir
        return
    with TemporaryDirectory(prefix="xrec-submit-") as name:
        folder = Path(name)
        if submission.with_code:
            for package in _PACKAGES:
                shutil.copytree(
                    _package_folder(package), folder / package, ignore=shutil.ignore_patterns("__pycache__")
                )
        if submission.config is not None:
            target = folder / _name_in(None, submission.config)
            target.parent.mkdir()
            shutil.copy(submission.config, target)
        yield folder


def refuse_unplaceable(submission: Submission, shape: ClusterShape) -> None:
    """Refuse a job whose own process no node can ever take: Ray would let it wait for a quarter of an hour.

    Raises:
        ConfigError: names what it needs, and what there can be.
    """
    if submission.resources:
        name, section = f"{submission.stage}: the job's own process", f"{submission.stage}.compute"
        refuse_impossible([Demand(name, [submission.resources], 1, f"{section}.cpus, gpus or memory")], shape)


def _check_settings(stage: str, settings: RunConfig, config: str | None) -> None:
    if stage == "run":
        if config is None:
            raise ConfigError("run does the stages that a config names; pass --config FILE")
        stages_of(settings)
    elif stage != "snapshot":
        section_config(stage, settings)


def _driver_needs(stage: str, settings: RunConfig) -> dict[str, float]:
    """What the job's own process needs: for several stages, the most that any of them does."""
    stages = settings.stages() if stage == "run" else [] if stage == "snapshot" else [stage]
    needs: dict[str, float] = {}
    for one in stages:
        for name, amount in driver_resources(one, settings).items():
            needs[name] = max(amount, needs.get(name, 0.0))
    return {name: amount for name, amount in needs.items() if amount > 0}


def job_resources(resources: Mapping[str, float]) -> dict[str, Any]:
    """The same as keyword arguments of `JobSubmissionClient.submit_job`."""
    other = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU", "memory")}
    given = {
        "entrypoint_num_cpus": resources.get("CPU"),
        "entrypoint_num_gpus": resources.get("GPU"),
        "entrypoint_memory": int(resources["memory"]) if "memory" in resources else None,
        "entrypoint_resources": other or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _existing_folder(name: str) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {name!r} is not a folder")
    return folder.resolve()


def _name_in(folder: Path | None, config: Path) -> str:
    """The config file's path in the folder that is sent."""
    if folder is None:
        return f"config/{config.name}"
    resolved = config.resolve()
    if not resolved.is_relative_to(folder):
        raise ConfigError(
            f"config file {str(config)!r} is not inside --working-dir {str(folder)!r}, which alone is sent; "
            "move it there, or leave --working-dir out"
        )
    return resolved.relative_to(folder).as_posix()


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package {package!r} is not importable; install the project with `pip install -e .`")
    return Path(next(iter(spec.submodule_search_locations)))
