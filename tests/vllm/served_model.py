"""vLLM's own server of OpenAI's API, for a model in a folder."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.vllm.conftest import ENGINE, ENVIRONMENT


@contextmanager
def served_model(model: str, name: str, log: Path, *options: str) -> Iterator[str]:
    """Starts `vllm serve`, and ends it.

    Args:
        model: its folder.
        name: by which the server knows it.
        log: a file for what the server says.
        options: of the server's command line.

    Yields:
        The server's address, without a path.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", name, "--enforce-eager", "--dtype", "float32"]
    command += ["--max-model-len", str(ENGINE["max_model_len"]), "--block-size", "32", *options]
    environment = os.environ | ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not come up: {log.read_text()[-3000:]}")
