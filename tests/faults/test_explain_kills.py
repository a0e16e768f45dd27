"""Batch explanation under kill -9, first of its actor, then of its driver: every row exactly once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_world import ITEMS, USERS
from xrec.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240


def start(workspace: Path, requests: Path) -> subprocess.Popen:
    settings = {
        "requests": str(requests),
        "controls": "[shuffled]",
        "max_words": 100,
        "compute.rows_per_block": 8,
        "compute.batch_size": 4,
        "compute.threads": 1,
    }
    command = [sys.executable, "-m", "ray_jobs.explain", "--workspace", str(workspace)]
    for name, value in settings.items():
        command += ["--set", f"explain.{name}={value}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def committed(workspace: Path) -> set[str]:
    """The files that Ray Data has recorded as done, by their common name with the file of predictions."""
    found = workspace.glob("explain/work/checkpoint-*/*.parquet")
    return {f.name for f in found if not f.name.endswith(".pending.parquet")}


def wait_for_files(workspace: Path, count: int, driver: subprocess.Popen) -> set[str]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(committed(workspace)) < count:
        assert driver.poll() is None, f"the driver ended early:\n{driver.communicate()[0]}"
        assert time.monotonic() < deadline, "the driver wrote nothing more"
        time.sleep(0.05)
    return committed(workspace)


def kill_actor(driver: subprocess.Popen) -> None:
    processes = psutil.Process(driver.pid).children(recursive=True)
    actors = [p for p in processes if "MapWorker(MapBatches(ExplainActor))" in " ".join(p.cmdline())]
    assert len(actors) == 1
    actors[0].send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_rows_are_written_exactly_once(tuned_workspace, tmp_path):
    workspace = shutil.copytree(tuned_workspace, tmp_path / "w")
    pairs = [(user, item) for user in range(USERS) for item in range(ITEMS)]
    requests = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"user": [u for u, _ in pairs], "item": [i for _, i in pairs]}), requests)
    expected = sorted((u, i, s) for u, i in pairs for s in ("true", "shuffled"))

    driver = start(workspace, requests)
    before_actor = wait_for_files(workspace, 3, driver)
    kill_actor(driver)
    before_driver = wait_for_files(workspace, len(before_actor) + 3, driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert before_actor < before_driver
    assert len(before_driver) * 8 < len(expected), "the job was over before it could be killed"
    assert not (workspace / "explain" / "manifest.json").exists()

    second = start(workspace, requests)
    output, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, output
    rows = Workspace(workspace).read_table("explain", "predictions").to_pylist()
    assert sorted((r["user"], r["item"], r["signal"]) for r in rows) == expected
    assert {r["status"] for r in rows} == {"ok"}
    kept = {f.name for f in (workspace / "explain" / "predictions").iterdir()}
    assert before_driver <= kept, "rows that were done were explained again"

    third = start(workspace, requests)
    output, _ = third.communicate(timeout=PATIENCE_SECONDS)
    assert third.returncode == 0 and "already finished" in output
    assert {f.name for f in (workspace / "explain" / "predictions").iterdir()} == kept
