"""Ingestion under kill -9 of its driver: every row exactly once, and finished chunks are not read again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dumps import read_plainly, write_dump
from xrec.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240


def start(workspace: Path, dump: Path) -> subprocess.Popen:
    settings = [f"ingest.files=[{dump}]", "ingest.source=yelp", "ingest.compute.chunk_megabytes=0.02"]
    command = [sys.executable, "-m", "ray_jobs.ingest", "--workspace", str(workspace)]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def parts(workspace: Path) -> dict[str, int]:
    """Finished parts and when they were written."""
    return {f.name: f.stat().st_mtime_ns for f in workspace.glob("data/reviews/part-*.parquet")}


@pytest.mark.slow
def test_rows_are_written_exactly_once(tmp_path):
    dump, workspace = write_dump(tmp_path / "review.json", "yelp", lines=60_000), tmp_path / "w"
    driver = start(workspace, dump)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(parts(workspace)) < 3:
        assert driver.poll() is None, f"the driver ended early:\n{driver.communicate()[0]}"
        assert time.monotonic() < deadline, "the driver wrote nothing"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert not (workspace / "data" / "manifest.json").exists(), "the job was over before it could be killed"
    # Its tasks may outlive it by a moment; what they finish counts as finished.
    time.sleep(3)
    done = parts(workspace)

    second = start(workspace, dump)
    output, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0, output
    rows, _ = read_plainly(dump, "yelp")
    assert Workspace(workspace).read_table("data", "reviews").to_pylist() == rows
    now = parts(workspace)
    assert len(now) > len(done) and {name: now[name] for name in done} == done
    assert not [f for f in workspace.rglob("*") if ".tmp-" in f.name]
