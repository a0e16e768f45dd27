"""One Ray session for a process: join the cluster that is named, or start a quiet one on this machine.

What runs on it, and how wide, is each stage's business. Nothing here stops a cluster that it did not start.
"""

import importlib.util
import logging
import os
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

if TYPE_CHECKING:
    from ray.data import DataContext

# Ray Train's controller asks the dashboard for the state of actors, which a session without a dashboard lacks.
_QUIET = {"RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_AUTH_LOGGER = "ray._private.authentication.authentication_token_setup"
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception)\b")
_CAUSE_CHARACTERS = 1000


def start_ray(cpus: int | None = None, metrics_port: int | None = None) -> None:
    """Connect this process to Ray; does nothing where it is connected already.

    With `RAY_ADDRESS` set (as inside a submitted job), joins that cluster. Otherwise starts one on this machine,
    without a dashboard, that ends with the process. The session is guarded by a token that lives in this process's
    environment alone, unless `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH` say otherwise.

    Args:
        cpus: logical CPUs of a cluster started here; default: the machine's. It may exceed the machine's cores.
        metrics_port: where a cluster started here exports figures for Prometheus; default: any free one.

    Raises:
        ConnectionError: `RAY_ADDRESS` names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Logs of workers stay in the session's folder: errors travel with results, figures with the stage's metrics.
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        ray.init(**quiet)
        return
    _keep_token_in_memory()
    _let_workers_import("xrec", "ray_jobs", "serve")
    ports: dict[str, Any] = {} if metrics_port is None else {"_metrics_export_port": metrics_port}
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet, **ports)


def data_context() -> "DataContext":
    """Ray Data's settings for a stage that has a bar of its own: a copy of the current ones, to make current."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    # On a terminal the bar is ours; where a submitted job's log is all there is to see, Ray Data's own.
    submitted = os.environ.get("RAY_ADDRESS", "local") != "local"
    context.enable_progress_bars = submitted and not sys.stderr.isatty()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return context


def innermost_cause(error: Exception) -> str:
    """What an error of a worker says at its root, in one line: Ray's own wraps the worker's whole traceback."""
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines() if line.strip()] or [repr(error)]
    # The innermost error comes last, and may go on for a few lines.
    last = next((n for n in reversed(range(len(lines))) if _ERROR_LINE.match(lines[n])), len(lines) - 1)
    return " ".join(lines[last : last + 4])[:_CAUSE_CHARACTERS]


def logs_of_workers() -> str:
    """Where the logs of a session started here are, as the end of an error's message; empty on a joined cluster."""
    from ray._private.worker import global_worker

    node = global_worker.node
    return f"; the engine's log is among {node.get_session_dir_path()}/logs/worker-*" if node else ""


def _keep_token_in_memory() -> None:
    """Give Ray a token by the environment, because it writes one into the home folder where it finds none."""
    chosen = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if not any(os.environ.get(name) for name in chosen):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    logging.getLogger(_AUTH_LOGGER).setLevel(logging.ERROR)


def _let_workers_import(*packages: str) -> None:
    """Put the folders of packages that are importable here, but not installed, on the path that workers inherit."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(
                f"package {package!r} is not importable; install the project with `pip install -e .`"
            )
        folder = str(Path(next(iter(spec.submodule_search_locations))).resolve().parent)
        if folder not in folders and "site-packages" not in folder:
            folders.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(f for f in folders if f)
