"""`xrec serve`: the whole server on this machine, until it is told to stop."""

import contextlib
import json
import math
import os
import queue
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence

import ray
import yaml
from ray import serve
from ray.serve.schema import ServeDeploySchema

from ray_jobs.runtime import innermost_cause, start_ray
from serve.app import build_app
from serve.protection import KEYS_VARIABLE, load_keys
from xrec.config import ConfigError, ServeConfig
from xrec.serving.publishing import publish
from xrec.workspace import Workspace, WorkspaceError

APPLICATION = "xrec"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The server cuts off what is still unanswered so long after its own deadline.
_GRACE_SECONDS = 5


def run_server(
    workspaces: dict[str, str],
    settings: Callable[[], ServeConfig],
    host: str = "127.0.0.1",
    port: int = 8000,
    metrics_port: int | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Publish snapshots of workspaces, serve them, and return when the process is told to stop.

    SIGTERM and Ctrl-C stop it, requests in hand being finished first. SIGHUP has it read its settings again: replicas
    with new ones take the places of the old without a request lost.

    Args:
        workspaces: name: workspace; their snapshots are brought up to date, and they come before the config's datasets.
        settings: reads the config.
        host, port: where it listens.
        metrics_port: where Prometheus finds its figures; None: a port of Ray's choice.
        say: gets lines for people.

    Raises:
        ConfigError: the address is public and there is no key, the port is taken, or no dataset is named.
        WorkspaceError: a workspace is not finished, or its snapshot is not sound.
        ValueError: the server does not start.
    """
    config = completed(workspaces, settings(), host)
    _check_port(host, port)
    for name, uri in workspaces.items():
        say(f"{name}: snapshot {publish(Workspace(uri))} of {uri}")
    start_ray(_cpus(config), metrics_port)
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    # After Ray, whose own handlers would end the process on the spot.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: told.put(number))
    try:
        http = {"host": host, "port": port, "request_timeout_s": config.limits.deadline_seconds + _GRACE_SECONDS}
        serve.start(http_options=http)
        start_application(config)
        say(_greeting(config, host, port))
        while _next(told) == signal.SIGHUP:
            _reload(lambda: completed(workspaces, settings(), host), say)
        say("stopping: requests in hand are finished first; again to stop at once")
        _drain(config, told)
    finally:
        ray.shutdown()


def _drain(config: ServeConfig, told: "queue.SimpleQueue[int]") -> None:
    """Let replicas finish, unless that takes too long (a part of Ray has ended before us) or a signal comes again."""

    def drain() -> None:
        serve.delete(APPLICATION)
        serve.shutdown()

    draining = threading.Thread(target=drain, daemon=True)
    draining.start()
    longest = max(part.drain_seconds for part in (config.lookup, config.explainer, config.ingress))
    deadline = time.monotonic() + longest + _GRACE_SECONDS
    while draining.is_alive() and time.monotonic() < deadline and told.empty():
        draining.join(0.2)


def _next(told: "queue.SimpleQueue[int]") -> int:
    while True:
        # A wait without end would not let Python run its signal handlers.
        with contextlib.suppress(queue.Empty):
            return told.get(timeout=0.2)


def _reload(settings: Callable[[], ServeConfig], say: Callable[[str], object]) -> None:
    try:
        start_application(settings())
        say("serving with the new settings")
    except (ValueError, WorkspaceError) as error:
        say(f"the new settings are refused, the old ones serve on: {error}")


def start_application(config: ServeConfig) -> None:
    """Deploy on the connected Ray, or replace what is deployed; returns when it answers.

    Raises:
        ValueError: a replica does not start; the message has its cause.
    """
    try:
        serve.run(build_app(config), name=APPLICATION)
    except RuntimeError as error:
        raise ValueError(f"the server did not start: {innermost_cause(error)}") from error


def deployment_yaml(config: ServeConfig, host: str, port: int) -> str:
    """The same server as a file for `serve deploy`, which runs it on a cluster."""
    deployment = {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": host,
            "port": port,
            "request_timeout_s": config.limits.deadline_seconds + _GRACE_SECONDS,
        },
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "serve.app:build_app",
                "args": config.model_dump(mode="json"),
            }
        ],
    }
    ServeDeploySchema.model_validate(deployment)
    return yaml.safe_dump(deployment, sort_keys=False)


def completed(workspaces: dict[str, str], config: ServeConfig, host: str) -> ServeConfig:
    """The settings with workspaces as datasets, and with what an address calls for.

    Raises:
        ConfigError: the address is public and there is no key, or no dataset is named.
    """
    if not workspaces and not config.datasets:
        raise ConfigError("no workspace is named; pass one, such as `xrec serve runs/demo`, or set serve.datasets")
    if host not in _LOOPBACK and not load_keys(config.api_keys_file):
        raise ConfigError(
            f"--host {host} lets others in, but there is no API key; put `name:key` in the environment's "
            f"{KEYS_VARIABLE} or in serve.api_keys_file, or keep to 127.0.0.1"
        )
    # Replicas run in folders of their own.
    datasets = {name: Workspace(uri).uri for name, uri in (workspaces | config.datasets).items()}
    changes: dict[str, object] = {"datasets": datasets}
    if host in _LOOPBACK and config.allowed_hosts == ("*",):
        # Otherwise a page of another site could reach the server by a name that it points here.
        changes["allowed_hosts"] = ("127.0.0.1", "localhost", "[::1]")
    return ServeConfig.model_validate({**config.model_dump(), **changes})


def _cpus(config: ServeConfig) -> int:
    """Logical CPUs on which every replica finds room, whatever the machine has."""
    parts = (config.lookup, config.explainer, config.ingress)
    needed = sum(part.replicas[1] * part.cpus for part in parts)
    # Those of a new version start beside the old ones.
    return max(os.cpu_count() or 1, math.ceil(2 * needed))


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port}: {error.strerror}; choose another --port") from error


def _greeting(config: ServeConfig, host: str, port: int) -> str:
    lookup = serve.get_deployment_handle("EmbeddingLookup", APPLICATION)
    _, [(user, _), *_] = lookup.search_users.remote(None, "", 1).result()
    _, [item, *_] = lookup.search_items.remote(None, "", 1).result()
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    lines: Sequence[str] = (
        f"serving {', '.join(config.datasets)} on {base} (documentation: {base}/docs); stop with Ctrl-C",
        f"try: {curl(base, user, item.item_id)}",
        f"logs: {ray._private.worker.global_worker.node.get_session_dir_path()}/logs/serve",  # pyright: ignore
    )
    return "\n".join(lines)


def curl(base: str, user_id: str, item_id: str) -> str:
    """A command that asks a server for one explanation."""
    body = json.dumps({"pairs": [{"user_id": user_id, "item_id": item_id}]})
    return f"curl {base}/v1/explanations -H 'Content-Type: application/json' -d {shlex.quote(body)}"
