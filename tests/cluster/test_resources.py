"""What a cluster can never hold is refused by the real commands; what it cannot hold yet is waited for, aloud."""

import shutil
import subprocess
import sys

import pytest

from ray_jobs.preprocess import run as preprocess
from ray_jobs.sample import run as make_sample
from tests.simulated_cluster import SimulatedCluster, wait_until
from xrec.config import PreprocessConfig, SampleConfig
from xrec.workspace import Workspace

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with SimulatedCluster(tmp_path_factory.mktemp("nodes")) as started:
        started.add_node(2)
        yield started


def command(stage, workspace, *settings):
    changes = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", f"ray_jobs.{stage}", "--force", "--workspace", str(workspace), *changes]


@pytest.mark.parametrize(
    ("stage", "settings", "messages"),
    [
        ("tune", ["tune.compute.gpu=true"], ["tune: a worker needs {CPU: 1, GPU: 1}", "more than GPU: 0"]),
        (
            "explain",
            ["explain.engine=hf", "explain.compute.cpus_per_actor=4"],
            ["explain: an engine needs {CPU: 4}", "more than CPU: 2", "lower explain.compute.actors, cpus_per_actor"],
        ),
        (
            "explain",
            ["explain.engine=hf", "explain.compute.accelerator_type=A100"],
            ["accelerator_type: A100", "(there can be: none)", "drop accelerator_type"],
        ),
        (
            "profile",
            ["profile.compute.memory_per_actor=100000"],
            ["profile: an actor needs {CPU: 1, memory: 1e+05 GiB}", "memory_per_actor"],
        ),
    ],
)
def test_what_can_never_be_is_refused(cluster, tuned_workspace, tmp_path, stage, settings, messages):
    workspace = tmp_path / "w"
    if stage == "profile":
        make_sample(Workspace(str(workspace)), SampleConfig(users=20, items=15, interactions_per_user=5, features=3))
        preprocess(Workspace(str(workspace)), PreprocessConfig())
    else:
        shutil.copytree(tuned_workspace, workspace)
    found = subprocess.run(
        command(stage, workspace, *settings), env=cluster.environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1, found.stderr
    [line] = [line for line in found.stderr.splitlines() if line.startswith("xrec: error: ")]
    for message in messages:
        assert message in line


def test_a_stage_says_what_it_waits_for_and_goes_on_when_there_is_room(tuned_workspace, tmp_path):
    workspace = shutil.copytree(tuned_workspace, tmp_path / "w")
    output = tmp_path / "explain.log"
    settings = ("explain.engine=hf", "explain.compute.cpus_per_actor=2", "explain.max_new_tokens=4")
    with SimulatedCluster(tmp_path) as cluster, output.open("w") as log:
        busy = cluster.add_node(2)
        holder = subprocess.Popen([sys.executable, "-c", _HOLD], env=cluster.environment, stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            stage = subprocess.Popen(
                command("explain", workspace, *settings), env=cluster.environment, stdout=log, stderr=log
            )
            waits = "explain: waiting for 1 x {CPU: 2}; free in the cluster's 2 nodes: {CPU: 0}"
            wait_until(f"it says that it waits, on {busy}", lambda: waits in output.read_text())
            assert stage.poll() is None
            cluster.add_node(2)
            wait_until("it goes on", lambda: stage.poll() is not None)
        finally:
            holder.kill()
    assert stage.returncode == 0, output.read_text()
    assert Workspace(str(workspace)).is_finished("explain")


# Another job that takes all CPUs.
_HOLD = """
import time
import ray

ray.init(log_to_driver=False)

@ray.remote(num_cpus=2)
class Holder:
    def ready(self):
        return True

holder = Holder.remote()
ray.get(holder.ready.remote())
print("held", flush=True)
time.sleep(600)
"""
