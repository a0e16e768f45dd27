"""Nodes that come while blocks of a batch explanation wait, and go when they are done: Ray's own autoscaler."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.simulated_cluster import AutoscalingCluster, wait_until
from tests.tiny_world import ITEMS, USERS
from xrec.workspace import Workspace

pytestmark = pytest.mark.cluster
MOST_NODES = 3
SETTINGS = (
    # A fixed time a row: long enough that nodes are there before the work is done.
    "explain.engine=benchmarks.simulated_engine:SimulatedEngine",
    "explain.compute.engine_arguments={milliseconds: 500}",
    f"explain.compute.actors=[1, {MOST_NODES}]",
    "explain.compute.threads=1",
    "explain.compute.rows_per_block=1",
    "explain.controls=[shuffled]",
)


def test_nodes_come_while_blocks_wait_and_go_afterwards(tuned_workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    workspace = Workspace(shutil.copytree(tuned_workspace, tmp_path / "w"))
    pairs = [(user, item) for user in range(USERS) for item in range(ITEMS)]
    table = pa.table({"user": [user for user, _ in pairs], "item": [item for _, item in pairs]})
    pq.write_table(table, tmp_path / "pairs.parquet")
    command = [sys.executable, "-m", "ray_jobs.explain", "--workspace", workspace.uri]
    for setting in (*SETTINGS, f"explain.requests={tmp_path / 'pairs.parquet'}"):
        command += ["--set", setting]
    kind = {"resources": {"CPU": 1, "object_store_memory": 200_000_000}, "max_workers": MOST_NODES}
    trace = []
    with AutoscalingCluster(tmp_path, {"worker": kind}) as cluster, (tmp_path / "explain.log").open("w") as log:
        assert len(cluster.nodes()) == 1
        begun = time.monotonic()
        driver = subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=subprocess.STDOUT)

        def observe() -> int:
            state = (len(cluster.nodes()), cluster.actors("MapWorker"))
            if not trace or trace[-1][1:] != state:
                trace.append((round(time.monotonic() - begun), *state))
                print("seconds {:4d}: {} nodes, {} actors".format(*trace[-1]), flush=True)
            return state[0]

        wait_until("the explanation ends", lambda: bool(observe()) and driver.poll() is not None, 300)
        output = (tmp_path / "explain.log").read_text()
        print(output)
        assert driver.returncode == 0, output
        wait_until("the nodes are removed", lambda: observe() == 1)
    rows = workspace.read_table("explain", "predictions").to_pylist()
    keys = {(row["user"], row["item"], row["signal"]) for row in rows}
    assert len(rows) == len(keys) == 2 * len(pairs)
    assert {row["status"] for row in rows} == {"ok"}
    # The head alone, then a node for the first actor, then more for those that the waiting blocks ask for.
    assert trace[0][1] == 1 and trace[-1][1] == 1
    assert max(nodes for _, nodes, _ in trace) > 2
    assert max(actors for _, _, actors in trace) > 1
    assert "explain: waiting for 1 x {CPU: 1}" in output
