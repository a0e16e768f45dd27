"""Batch explanation under kill -9, first of an actor, then of the driver: every row exactly once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_world import ITEMS, USERS
from xrec.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
SECONDS_TO_DIE = 5
ROWS_PER_BLOCK = 5


def start(workspace: Path, requests: Path) -> subprocess.Popen:
    settings = {
        "requests": str(requests),
        "engine": "hf",
        "controls": "[shuffled, off]",
        "max_words": 100,
        "compute.actors": "[1, 2]",
        "compute.cpus_per_actor": 0.5,
        "compute.rows_per_block": ROWS_PER_BLOCK,
        "compute.batch_size": 2,
        "compute.threads": 1,
    }
    command = [sys.executable, "-m", "ray_jobs.explain", "--workspace", str(workspace)]
    for name, value in settings.items():
        command += ["--set", f"explain.{name}={value}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def written(workspace: Path) -> set[str]:
    return set(Workspace(workspace).files("explain", "predictions"))


def actors(driver: subprocess.Popen) -> list[psutil.Process]:
    processes = psutil.Process(driver.pid).children(recursive=True)
    return [p for p in processes if "MapWorker(MapBatches(ExplainActor))" in " ".join(p.cmdline())]


def wait_until(driver: subprocess.Popen, what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert driver.poll() is None, f"the driver ended before {what}:\n{driver.communicate()[0]}"
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def modified(workspace: Path, names: set[str]) -> dict[str, int]:
    return {name: (workspace / "explain" / "predictions" / name).stat().st_mtime_ns for name in names}


@pytest.mark.slow
def test_rows_are_written_exactly_once(tuned_workspace, tmp_path):
    workspace = shutil.copytree(tuned_workspace, tmp_path / "w")
    pairs = [(user, item) for user in range(USERS) for item in range(ITEMS)]
    requests = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"user": [u for u, _ in pairs], "item": [i for _, i in pairs]}), requests)
    expected = sorted((u, i, s) for u, i in pairs for s in ("true", "shuffled", "off"))

    driver = start(workspace, requests)
    wait_until(driver, "the pool grew", lambda: bool(written(workspace)) and len(actors(driver)) == 2)
    actors(driver)[0].send_signal(signal.SIGKILL)
    before_actor = written(workspace)
    wait_until(driver, "more blocks were written", lambda: len(written(workspace)) > len(before_actor) + 5)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    before_driver = written(workspace)
    assert before_actor < before_driver
    assert len(before_driver) * ROWS_PER_BLOCK < len(expected), "the job was over before it could be killed"
    assert not (workspace / "explain" / "manifest.json").exists()
    # Its actors may live on for a moment, and end what they had begun.
    time.sleep(SECONDS_TO_DIE)
    before_driver = modified(workspace, written(workspace))

    second = start(workspace, requests)
    output, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, output
    rows = Workspace(workspace).read_table("explain", "predictions").to_pylist()
    assert sorted((r["user"], r["item"], r["signal"]) for r in rows) == expected
    assert {r["status"] for r in rows} == {"ok"}
    assert modified(workspace, set(before_driver)) == before_driver, "rows that were done were explained again"

    after = modified(workspace, written(workspace))
    third = start(workspace, requests)
    output, _ = third.communicate(timeout=PATIENCE_SECONDS)
    assert third.returncode == 0 and "already finished" in output
    assert modified(workspace, written(workspace)) == after
