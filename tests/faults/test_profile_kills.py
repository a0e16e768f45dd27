"""The stage `profile` under kill -9 and an endpoint full of faults: every row once, the calls within their bound."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.chat_server import server_process
from tests.raw_world import as_overrides, expected_keys, keys, make_raw_workspace, profile_config
from xrec.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
ROWS_PER_BLOCK, CONCURRENCY = 8, 16
# ray_jobs.profile_actors.blocks_at_once: a kill makes an actor write again the blocks that it was at.
BLOCKS_AT_ONCE = CONCURRENCY // ROWS_PER_BLOCK + 1


def start(workspace: Workspace, config) -> subprocess.Popen:
    command = [sys.executable, "-m", "ray_jobs.profile", "--workspace", str(workspace)]
    for override in as_overrides(config):
        command += ["--set", override]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def written(workspace: Workspace) -> int:
    return sum(file.endswith(".parquet") and "work/" not in file for file in workspace.files("profile"))


def wait_for_blocks(workspace: Workspace, count: int, driver: subprocess.Popen) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while written(workspace) < count:
        assert driver.poll() is None, f"the driver ended early:\n{driver.communicate()[0]}"
        assert time.monotonic() < deadline, "the driver wrote nothing more"
        time.sleep(0.05)
    return written(workspace)


def kill_actor(driver: subprocess.Popen) -> None:
    processes = psutil.Process(driver.pid).children(recursive=True)
    actors = [p for p in processes if "MapWorker(MapBatches(WritingActor))" in " ".join(p.cmdline())]
    assert len(actors) == 1
    actors[0].send_signal(signal.SIGKILL)


def assert_every_row_once(workspace: Workspace) -> int:
    expected, total = expected_keys(workspace), 0
    for table, wanted in expected.items():
        rows = workspace.read_table("profile", table).to_pylist()
        assert keys(rows, table) == wanted, table
        total += len(rows)
    return total


@pytest.mark.slow
def test_killed_actor_and_killed_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    workspace = make_raw_workspace(tmp_path / "w", users=60, items=40, interactions=10)
    with server_process("--latency", "0.1") as server:
        config = profile_config(server.url, compute={"rows_per_block": ROWS_PER_BLOCK, "concurrency": CONCURRENCY})
        driver = start(workspace, config)
        before = wait_for_blocks(workspace, 14, driver)  # the item profiles are 5 blocks, the users' 8
        kill_actor(driver)
        at_kill = wait_for_blocks(workspace, before + 8, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        assert not workspace.is_finished("profile")
        second = start(workspace, config)
        output, _ = second.communicate(timeout=PATIENCE_SECONDS)
        assert second.returncode == 0, output
        total = assert_every_row_once(workspace)
        assert at_kill * ROWS_PER_BLOCK < total, "the job was over before it could be killed"
        requests = server.get("stats")["requests"]
        # An answer that arrives after its block's file was seen is counted, hence blocks of both kills.
        print(f"{total:,} rows, {requests - total} calls repeated after two kills")
        assert total <= requests <= total + 2 * BLOCKS_AT_ONCE * ROWS_PER_BLOCK
        third = start(workspace, config)
        output, _ = third.communicate(timeout=PATIENCE_SECONDS)
        assert third.returncode == 0 and "already finished" in output
        assert server.get("stats")["requests"] == requests, "a finished job called the endpoint"


@pytest.mark.slow
def test_ten_thousand_rows_against_an_endpoint_full_of_faults(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    workspace = make_raw_workspace(tmp_path / "w", users=800, items=300, interactions=14)
    rates = {"429": 0.10, "500-text": 0.03, "500-json": 0.02, "malformed": 0.02, "hang": 0.01}
    arguments = [part for name, rate in rates.items() for part in (f"--rate-{name}", str(rate))]
    compute = {"concurrency": 128, "rows_per_block": 64, "request_timeout": 4.0, "deadline": 40.0, "actors": (2, 2)}
    with server_process("--latency", "0.02", "--retry-after", "0.2", *arguments) as server:
        driver = start(workspace, profile_config(server.url, compute=compute))
        output, _ = driver.communicate(timeout=900)
        assert driver.returncode == 0, output
        total = assert_every_row_once(workspace)
        assert total >= 10_000
        faults = server.get("stats")["faults"]
    for name in rates:
        assert faults.get(name, 0) > 0.5 * rates[name] * total, f"the server showed too few of {name}"
    rows = [
        row
        for table in ("item_profiles", "user_profiles", "explanations")
        for row in Workspace(workspace.path()).read_table("profile", table).to_pylist()
    ]
    assert max(row["latency"] for row in rows) < compute["deadline"] + 5, "a row outlived its deadline"
    assert all((row["status"] == "ok") == (row["error"] is None) for row in rows)
    assert sum(row["attempts"] for row in rows) == sum(faults.values()), "requests and attempts differ"
    failed = [row["error"] for row in rows if row["status"] == "failed"]
    latency = max(row["latency"] for row in rows)
    print(f"{total:,} rows, {len(failed)} failed, {sum(faults.values()):,} requests, longest {latency:.1f} s: {faults}")
    assert len(failed) < 0.01 * total, failed[:5]
