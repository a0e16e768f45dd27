"""`xrec serve` as a process of its own, for tests and benchmarks that ask it over HTTP."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 240


class ServingProcess:
    """A running server; a context manager.

    Args:
        workspace: to serve, with its stages finished.
        settings: the config's section `serve`.
        keys: what XREC_API_KEYS holds.

    Attributes:
        url: ends with a slash.
        metrics_url: of the figures for Prometheus.
    """

    def __init__(self, workspace: Path | str, settings: dict[str, Any] | None = None, keys: str = ""):
        self.workspace, self.keys = workspace, keys
        self.port, self.metrics_port = free_port(), free_port()
        self.url, self.metrics_url = f"http://127.0.0.1:{self.port}/", f"http://127.0.0.1:{self.metrics_port}/metrics"
        self._folder = tempfile.TemporaryDirectory(prefix="xrec-serve-")
        self.config = Path(self._folder.name) / "serve.yaml"
        self.output = Path(self._folder.name) / "output.txt"
        self.write_settings(settings or {})

    def write_settings(self, settings: dict[str, Any]) -> None:
        self.config.write_text(yaml.safe_dump({"serve": settings}), encoding="utf-8")

    def __enter__(self) -> "ServingProcess":
        command = [sys.executable, "-m", "xrec.cli", "serve", str(self.workspace), "--config", str(self.config)]
        command += ["--port", str(self.port), "--metrics-port", str(self.metrics_port)]
        environment = os.environ | {"XREC_API_KEYS": self.keys, "PYTHONPATH": str(ROOT)}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        processes = self.descendants()
        self.stop()
        for process in processes:
            if process.is_running():
                process.kill()
        self._folder.cleanup()

    def stop(self) -> int:
        """Ask it to end as a service manager does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.get("readyz")[0] != 200:
            assert self.process.poll() is None, f"the server ended:\n{self.output.read_text()}"
            assert time.monotonic() < deadline, f"the server is not ready:\n{self.output.read_text()}"
            time.sleep(0.3)

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment."""
        name, found = f"ServeReplica:xrec:{deployment}", []
        for process in self.descendants():
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], Any]:
        return self._ask(urllib.request.Request(self.url + path, headers=headers or {}))

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], Any]:
        """Status (0: no answer), headers and body of an answer, which is read as JSON where it is."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = {"Content-Type": "application/json"} | (headers or {})
        return self._ask(urllib.request.Request(self.url + path, data, own))

    def figures(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=30) as answer:
            return answer.read().decode()

    def _ask(self, request: urllib.request.Request) -> tuple[int, dict[str, str], Any]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
                status, headers, text = answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            status, headers, text = error.code, dict(error.headers), error.read().decode()
        except OSError:
            return 0, {}, ""
        headers = {name.lower(): value for name, value in headers.items()}
        is_json = headers.get("content-type", "").startswith("application/json")
        return status, headers, json.loads(text) if is_json else text
