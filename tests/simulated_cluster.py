"""A Ray cluster of several nodes on this machine: real raylets, a dashboard, token authentication, kills of nodes.

`SimulatedCluster` has the nodes that it is told to have; `AutoscalingCluster` has a head without work, and Ray's own
autoscaler starts and removes nodes of the types that it is given. Everything is stopped by process, never `ray stop`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil
import requests

from tests.ports import free_port

HOST = "127.0.0.1"
PATIENCE_SECONDS = 120
_STARTS = 4
# The node id that Ray's simulated provider expects of a head.
_HEAD_ID = "f" * 51 + "00000"
# What that provider calls the head's type, whatever the configuration says.
_HEAD_TYPE = "ray.head.default"


def wait_until(what: str, condition: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    """Poll a condition; fails, naming it, when it has not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what}"
        time.sleep(0.2)


class _Cluster:
    """A head started by `ray start`, and what clients need to know of it.

    Attributes:
        address: of the control service, for `RAY_ADDRESS`.
        dashboard: URL of the dashboard, for `xrec submit --address`.
        environment: of a process that is to be a client: the token is in it.
        token: what clients must show.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.port, self.dashboard_port = free_port(), free_port()
        self.address, self.dashboard = f"{HOST}:{self.port}", f"http://{HOST}:{self.dashboard_port}"
        self.token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
        self.environment = {**os.environ, "RAY_ADDRESS": self.address}
        self.processes: dict[str, subprocess.Popen] = {}
        # Nodes of one machine would else share a folder, unpack jobs' files over each other, and take the address of
        # another cluster for theirs. Not below `folder`: paths of sockets must be short.
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-"))
        self._head_folder = "head"

    def _start(self, name: str, arguments: list[str], environment: dict[str, str] | None = None) -> subprocess.Popen:
        """A `ray start --block` in a process group of its own, so that one signal ends the whole node."""
        folder = self._temporary / (self._head_folder if name == "head" else name)
        log = (self.folder / f"{name}.log").open("w")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *arguments]
        command += [f"--node-name={name}", f"--temp-dir={folder}"]
        own = {**os.environ, **(environment or {})}
        own.pop("RAY_ADDRESS", None)
        process = subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.processes[name] = process
        return process

    def _start_head(self, cpus: int, arguments: list[str], environment: dict[str, str] | None = None) -> None:
        self._start(
            "head",
            [
                "--head",
                f"--node-ip-address={HOST}",
                f"--port={self.port}",
                f"--dashboard-host={HOST}",
                f"--dashboard-port={self.dashboard_port}",
                # Of its own: the usual port belongs to whichever cluster of this machine was first.
                f"--dashboard-agent-listen-port={free_port()}",
                f"--num-cpus={cpus}",
                "--num-gpus=0",
                "--object-store-memory=200000000",
                *arguments,
            ],
            environment,
        )
        wait_until("the dashboard answers", self._answers)
        wait_until("the head is among the nodes", lambda: len(self.nodes()) > 0)

    def _answers(self) -> bool:
        assert self.processes["head"].poll() is None, (self.folder / "head.log").read_text()
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            return requests.get(f"{self.dashboard}/api/jobs/", headers=headers, timeout=5).ok
        except requests.RequestException:
            return False

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes, as the dashboard tells them."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.get(f"{self.dashboard}/nodes?view=summary", headers=headers, timeout=30)
        answer.raise_for_status()
        found = answer.json()["data"]["summary"]
        return [node for node in found if node.get("raylet", {}).get("state") == "ALIVE"]

    def actors(self, name: str) -> int:
        """How many living actors' class names contain a word."""
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.get(f"{self.dashboard}/api/v0/actors?limit=1000", headers=headers, timeout=30)
        answer.raise_for_status()
        found = answer.json()["data"]["result"]["result"]
        return sum(actor["state"] == "ALIVE" and name in actor["class_name"] for actor in found)

    def kill(self, name: str) -> None:
        """What losing a machine means: every process of the node ends at once, without a word."""
        process = self.processes.pop(name)
        family = [process]
        if psutil.pid_exists(process.pid):
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            try:
                one.send_signal(signal.SIGKILL)
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue
        process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in [name for name in self.processes if name != "head"] + ["head"]:
            if name in self.processes:
                self.kill(name)
        shutil.rmtree(self._temporary, ignore_errors=True)


class SimulatedCluster(_Cluster):
    """A head, by default without work, and the nodes that `add_node` starts.

    Args:
        folder: for the nodes' output.
        head_cpus: logical CPUs of the head.
        environment: further variables of every node, such as `RAY_REDIS_ADDRESS`'s.
    """

    def __init__(self, folder: Path, head_cpus: int = 0, environment: dict[str, str] | None = None):
        super().__init__(folder)
        self._own, self._head_cpus = environment or {}, head_cpus
        self.started = 0
        self._start_head(head_cpus, [], self._own)

    def add_node(self, cpus: float = 1, resources: dict[str, float] | None = None, gpus: int = 0) -> str:
        """Start a node; returns its name, for `kill`. It is known to the cluster when this returns."""
        name = f"node-{self.started}"
        self.started += 1
        arguments = [
            f"--address={self.address}",
            f"--node-ip-address={HOST}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--num-cpus={cpus:g}",
            f"--num-gpus={gpus}",
            "--object-store-memory=200000000",
            f"--resources={json.dumps(resources or {})}",
        ]
        self._share_logs(name)
        # Ray gives up on a node that has not joined within 30 s, as happens on a busy machine: then it is tried again.
        for _ in range(_STARTS):
            process = self._start(name, arguments, self._own)
            wait_until(f"{name} joins", lambda p=process: self._knows(name) or p.poll() is not None)
            if process.poll() is None:
                return name
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def _knows(self, name: str) -> bool:
        return any(node["raylet"]["nodeName"] == name for node in self.nodes())

    def _share_logs(self, name: str) -> None:
        """Give a node the head's folder of logs: Ray finds the log of a job by its node's IP, which is the head's."""
        session = (self._temporary / self._head_folder / "session_latest").resolve()
        own = self._temporary / name / session.name
        own.mkdir(parents=True)
        (own / "logs").symlink_to(session / "logs")

    def restart_head(self) -> None:
        """Start a killed head again, on the same address."""
        # In the old folder, Ray would take the nodes that remain on this machine for a head that still runs.
        self._head_folder += "-again"
        self._start_head(self._head_cpus, [], self._own)


class AutoscalingCluster(_Cluster):
    """A head without work, and nodes that Ray's autoscaler starts for what waits and removes when idle.

    Args:
        folder: for the head's output.
        node_types: name of a type of node to `{"resources": {...}, "max_workers": N}`, as in cluster.yaml. Among the
            resources must be `object_store_memory`; Ray's simulated provider takes no `memory`.
        idle_seconds: after which an idle node is removed.
    """

    def __init__(self, folder: Path, node_types: dict[str, dict[str, Any]], idle_seconds: float = 6.0):
        super().__init__(folder)
        types = {name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in node_types.items()}
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "simulated",
            "max_workers": sum(kind["max_workers"] for kind in types.values()),
            "idle_timeout_minutes": idle_seconds / 60,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "launch_multiple": True,
                "head_node_id": _HEAD_ID,
            },
            "available_node_types": {_HEAD_TYPE: head, **types},
            "head_node_type": _HEAD_TYPE,
            "auth": {},
            "file_mounts": {},
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
        }
        file = folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        environment = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        }
        self._start_head(0, [f"--autoscaling-config={file}"], environment)
