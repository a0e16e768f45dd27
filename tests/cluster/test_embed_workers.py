"""The stage `embed` on Ray Train workers: the embeddings of one process, also where a worker is killed on the way."""

import json
import os
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import torch

from ray_jobs import embed
from tests.simulated_cluster import SimulatedCluster, wait_until
from tests.taste_world import TasteWorld, make_taste_world, write_preprocess
from xrec.config import EmbedConfig
from xrec.config_files import to_yaml
from xrec.embeddings import Embeddings
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace

pytestmark = pytest.mark.cluster
# Long enough to be killed on the way.
LONG = EmbedConfig(dim=16, layers=2, batch_size=64, learning_rate=1e-2, max_epochs=40, patience=40)
SHORT = LONG.model_copy(update={"batch_size": 512, "max_epochs": 8})


def on_workers(workers, config):
    compute = config.compute.model_copy(update={"workers": workers, "checkpoint_seconds": 0.0, "threads": 1})
    return config.model_copy(update={"compute": compute})


def load(workspace):
    return Embeddings.load(workspace.path("embed", embed.EMBEDDINGS))


def epochs_logged(workspace):
    return len(read_metrics(workspace, "embed"))


def command(workspace, config, folder):
    settings = folder / "run.yaml"
    settings.write_text("embed:\n" + "".join(f"  {line}\n" for line in to_yaml(config).splitlines()))
    return [sys.executable, "-m", "ray_jobs.embed", "--config", str(settings), "--workspace", workspace.uri]


def workers_of(cluster):
    """The processes of Ray Train's workers on the cluster's nodes."""
    found = []
    for node in cluster.processes.values():
        for process in psutil.Process(node.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if any("RayTrainWorker" in part for part in process.cmdline()):
                    found.append(process)
    return found


@pytest.fixture(scope="module")
def taste_world() -> TasteWorld:
    return make_taste_world()


def alone(world, folder, config):
    """The stage in one process."""
    workspace = Workspace(folder / "alone")
    write_preprocess(workspace, world)
    embed.run(workspace, config)
    return workspace


def expect_the_same(workspace, alone):
    for found, expected in ((load(workspace).user, load(alone).user), (load(workspace).item, load(alone).item)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    lines, wanted = read_metrics(workspace, "embed"), read_metrics(alone, "embed")
    assert [line["step"] for line in lines] == [line["step"] for line in wanted], "every epoch is in the log once"
    for line, other in zip(lines, wanted, strict=True):
        assert line["val/recall@20"] == pytest.approx(other["val/recall@20"], abs=1e-5)
    figures, expected = (one.read_json("embed", "metrics.json") for one in (workspace, alone))
    assert figures["test/recall@20"] == pytest.approx(expected["test/recall@20"], abs=1e-5)
    assert workspace.manifest("embed")["outputs"].keys() == {"embeddings.safetensors"}
    assert not workspace.exists("embed", "checkpoints")


def test_two_nodes_a_killed_worker_and_a_lost_node(taste_world, tmp_path):
    """A killed worker is survived; the loss of a node, too, by a run on the one left that starts from its state."""
    workspace = Workspace(tmp_path / "run")
    write_preprocess(workspace, taste_world)
    with SimulatedCluster(tmp_path) as cluster:
        cluster.add_node(cpus=1)
        second = cluster.add_node(cpus=1)
        environment = cluster.environment | {"XREC_TRACEBACK": "1"}
        with (tmp_path / "driver.log").open("w") as log:
            driver = subprocess.Popen(
                command(workspace, on_workers(2, LONG), tmp_path), env=environment, stdout=log, stderr=log
            )
            try:
                wait_until("the third epoch is logged", lambda: epochs_logged(workspace) >= 3, 240)
                before = workers_of(cluster)
                assert len(before) == 2, "one worker on each node"
                before[0].kill()
                reached = epochs_logged(workspace)
                wait_until("other workers train", lambda: epochs_logged(workspace) >= reached + 3, 240)
                assert driver.poll() is None and not {p.pid for p in before} & {p.pid for p in workers_of(cluster)}
                driver.kill()
                driver.wait()
            finally:
                driver.kill()
        cluster.kill(second)
        state = json.loads(workspace.read_bytes("embed", "checkpoints", "latest.json"))
        assert 0 < state["state"]["epoch"] < LONG.max_epochs and len(state["users"]) == 3
    embed.run(workspace, on_workers(1, LONG))
    expect_the_same(workspace, alone(taste_world, tmp_path, LONG))


def test_the_stage_on_a_session_of_this_machine(taste_world, tmp_path):
    workspace = Workspace(tmp_path / "run")
    write_preprocess(workspace, taste_world)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command(workspace, on_workers(2, SHORT), tmp_path), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "embed: 300 users, 160 items, 8 epochs" in done.stdout
    expect_the_same(workspace, alone(taste_world, tmp_path, SHORT))
