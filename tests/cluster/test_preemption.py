"""A node lost with all its processes in mid-work, as a spot machine is: the run goes on by itself on what is left.

Where the driver itself is lost, the same command run again goes on with what is not done.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.chat_server import server_process
from tests.dumps import read_plainly, write_dump
from tests.raw_world import as_overrides, expected_keys, keys, make_raw_workspace, profile_config
from tests.simulated_cluster import SimulatedCluster, wait_until
from tests.tiny_world import ITEMS, USERS, make_workspace, tune_config
from xrec.config import ExplainConfig
from xrec.config_files import to_yaml
from xrec.explainer.adapter import XRecAdapter
from xrec.explainer.explain import Explainer
from xrec.explainer.tuning import LOSS, tune
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 240
SECONDS_TO_DIE = 5
# A lost node is noticed sooner than by default (15 s), and Ray Train tries again sooner with the nodes left (60 s).
HASTE = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


class Job:
    """A stage's command as a driver on the cluster's head."""

    def __init__(self, cluster: SimulatedCluster, stage: str, workspace: Workspace, arguments: list[str]):
        command = command_of(stage, workspace, arguments)
        self.log = cluster.folder / f"{stage}-{time.monotonic_ns()}.log"
        environment = cluster.environment | HASTE
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, f"the job ended before {what}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"waited in vain until {what}:\n{self.log.read_text()}"
            time.sleep(0.02)

    def end(self) -> str:
        """The output of a job that is expected to succeed."""
        try:
            assert self.process.wait(PATIENCE_SECONDS) == 0, self.log.read_text()
        finally:
            self.process.kill()
        return self.log.read_text()


def command_of(stage: str, workspace: Workspace, arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", f"ray_jobs.{stage}", "--workspace", workspace.uri, *arguments]


def settings(stage: str, values: dict[str, object]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{stage}.{name}={value}")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with SimulatedCluster(tmp_path_factory.mktemp("cluster"), environment=HASTE) as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster):
    """Two nodes of one CPU, beside the head without work; each has a resource of its own name."""
    names = [name for name in cluster.processes if name != "head"]
    wait_until("lost nodes are noticed", lambda: len(cluster.nodes()) == 1 + len(names))
    while len(names) < 2:
        names.append(cluster.add_node(1, {f"node-{cluster.started}": 1}))
    return names


def parts(workspace: Workspace, *folder: str) -> dict[str, int]:
    """Finished parts of a table, and when they were written."""
    return {f.name: f.stat().st_mtime_ns for f in Path(workspace.path(*folder)).glob("*.parquet")}


def rewritten(before: dict[str, int], after: dict[str, int]) -> int:
    return sum(after[name] != at for name, at in before.items())


# --- tuning


def last_step(workspace: Workspace) -> int:
    return max((line["step"] for line in read_metrics(workspace, "tune")), default=0)


def test_tuning_goes_on_with_the_worker_that_is_left(cluster, nodes, tmp_path):
    compute = {
        "workers": 1,
        "max_workers": 2,
        "zero_stage": 3,
        "threads": 1,
        "max_failures": 1,
        "checkpoint_every": 1,
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
    }
    config, losses = tune_config(epochs=6, compute=compute), {}

    class Log:
        def log(self, step, **figures):
            losses.update({step: figures[LOSS]} if LOSS in figures else {})

    expected, _ = tune(make_workspace(tmp_path / "calm"), config, device="cpu", logger=Log())
    workspace, file = make_workspace(tmp_path / "w"), tmp_path / "run.yaml"
    file.write_text("tune:\n" + "".join(f"  {line}\n" for line in to_yaml(config).splitlines()))
    job = Job(cluster, "tune", workspace, ["--config", str(file)])
    job.wait_until("step 12", lambda: last_step(workspace) >= 12)
    cluster.kill(nodes[0])
    killed_at = last_step(workspace)
    assert "1 to 2 workers" in job.end()
    adapter = XRecAdapter.from_pretrained(workspace.path("tune", "adapter"))
    difference = max(float((adapter.state_dict()[n] - value).abs().max()) for n, value in expected.state_dict().items())
    print(f"killed at step {killed_at} of 40, max |difference| of the adapter {difference:.1e}")
    # Two workers add up in another order than one.
    assert difference < 1e-4
    lines = read_metrics(workspace, "tune")
    assert [line["step"] for line in lines if LOSS not in line] == list(range(1, 41)), "every step once, in order"
    assert {line["step"]: line[LOSS] for line in lines if LOSS in line} == pytest.approx(losses, abs=1e-4)


# --- explanation

ROWS_PER_BLOCK = 5
EXPLAIN = {
    "engine": "hf",
    "controls": "[shuffled, off]",
    "max_words": 100,
    # Both actors have to run, and there is but one node left in the end.
    "compute.actors": "[2, 2]",
    "compute.cpus_per_actor": 1,
    "compute.rows_per_block": ROWS_PER_BLOCK,
    "compute.batch_size": 2,
    "compute.threads": 1,
}


@pytest.fixture
def explained(tuned_workspace, tmp_path) -> tuple[Workspace, list[str]]:
    """A workspace ready to be explained, and the arguments that ask for all pairs."""
    pairs = [(user, item) for user in range(USERS) for item in range(ITEMS)]
    requests = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"user": [u for u, _ in pairs], "item": [i for _, i in pairs]}), requests)
    folder = shutil.copytree(tuned_workspace, tmp_path / "w")
    return Workspace(folder), settings("explain", {"requests": requests, **EXPLAIN})


def explanations(workspace: Workspace) -> list[tuple]:
    rows = workspace.read_table("explain", "predictions").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    return sorted((row["user"], row["item"], row["signal"], row["explanation"]) for row in rows)


def explained_calmly(workspace: Workspace) -> list[tuple]:
    """What one process writes that nobody kills."""
    config = ExplainConfig(engine="hf", controls=("shuffled", "off"), max_words=100)
    explainer = Explainer.from_workspace(workspace, config, "cpu")
    pairs = [(user, item) for user in range(USERS) for item in range(ITEMS)]
    rows = [row for signal in ("true", "shuffled", "off") for row in explainer.explain(pairs, signal)]
    return sorted((row["user"], row["item"], row["signal"], row["explanation"]) for row in rows)


def test_explaining_goes_on_with_the_actor_that_is_left(cluster, nodes, explained):
    workspace, arguments = explained
    expected = explained_calmly(workspace)
    assert len(expected) == 3 * USERS * ITEMS
    job = Job(cluster, "explain", workspace, arguments)
    job.wait_until("30 blocks", lambda: len(parts(workspace, "explain", "predictions")) >= 30)
    cluster.kill(nodes[0])
    before = parts(workspace, "explain", "predictions")
    assert len(before) * ROWS_PER_BLOCK < len(expected), "the job was over before the node was lost"
    job.end()
    again = rewritten(before, parts(workspace, "explain", "predictions"))
    print(f"{len(before) * ROWS_PER_BLOCK} of {len(expected)} rows at the loss, {again} finished blocks written twice")
    assert again <= 1, "more than the block in the lost actor's hand was explained again"
    assert explanations(workspace) == expected


def test_a_driver_lost_with_its_node_is_run_again(cluster, nodes, explained):
    workspace, arguments = explained
    client = JobSubmissionClient(cluster.dashboard)
    entry = " ".join(f"'{word}'" for word in command_of("explain", workspace, arguments))

    def submit(resources: dict[str, float]) -> str:
        return client.submit_job(entrypoint=f"cd {ROOT} && {entry}", entrypoint_resources=resources)

    def written() -> int:
        return len(parts(workspace, "explain", "predictions"))

    first = submit({nodes[0]: 0.5})
    wait_until("blocks are written", lambda: written() >= 20, PATIENCE_SECONDS)
    cluster.kill(nodes[0])
    wait_until("the job failed", lambda: client.get_job_status(first) == JobStatus.FAILED, PATIENCE_SECONDS)
    # Actors of the lost driver may live on for a moment, and end what they had begun.
    time.sleep(SECONDS_TO_DIE)
    before = parts(workspace, "explain", "predictions")
    assert not workspace.is_finished("explain")
    print(f"{len(before) * ROWS_PER_BLOCK} rows at the loss; the job says: {client.get_job_info(first).message}")
    cluster.add_node(1)
    second = submit({})
    wait_until("the job ends", lambda: client.get_job_status(second).is_terminal(), PATIENCE_SECONDS)
    assert client.get_job_status(second) == JobStatus.SUCCEEDED, client.get_job_logs(second)
    assert rewritten(before, parts(workspace, "explain", "predictions")) == 0
    assert len({row[:3] for row in explanations(workspace)}) == len(explanations(workspace)) == 3 * USERS * ITEMS


# --- generation


def profiles(workspace: Workspace) -> dict[str, dict]:
    texts = {}
    for table, wanted in expected_keys(workspace).items():
        rows = workspace.read_table("profile", table).to_pylist()
        assert keys(rows, table) == wanted, table
        column = "explanation" if table == "explanations" else "profile"
        texts[table] = sorted((row.get("user", -1), row.get("item", -1), row["status"], row[column]) for row in rows)
    return texts


def test_generation_goes_on_with_the_actor_that_is_left(cluster, nodes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    cluster.environment["OPENAI_API_KEY"] = "k"
    workspace = make_raw_workspace(tmp_path / "w", users=60, items=40, interactions=10)
    calm = Workspace(shutil.copytree(workspace.path(), tmp_path / "calm"))
    rows_per_block, concurrency = 8, 8
    at_once = concurrency // rows_per_block + 1
    compute = {
        "rows_per_block": rows_per_block,
        "concurrency": concurrency,
        "actors": (2, 2),
        "cpus_per_actor": 1,
        # So that there is the actor that all others ask.
        "requests_per_minute": 100_000,
    }
    with server_process("--latency", "0.1") as server:
        config = profile_config(server.url, compute=compute)
        arguments = [part for override in as_overrides(config) for part in ("--set", override)]
        Job(cluster, "profile", calm, arguments).end()
        total = sum(map(len, profiles(calm).values()))
        assert server.get("stats")["requests"] == total
        server.post("reset")

        def written() -> int:
            return sum(f.endswith(".parquet") and "work/" not in f for f in workspace.files("profile"))

        job = Job(cluster, "profile", workspace, arguments)
        # The item profiles are 5 blocks, the users' 8.
        job.wait_until("explanations are written", lambda: written() >= 20)
        cluster.kill(nodes[0])
        at_loss = written() * rows_per_block
        job.end()
        requests = server.get("stats")["requests"]
    print(f"{at_loss} of {total} rows at the loss, {requests - total} calls repeated")
    assert at_loss < total, "the job was over before the node was lost"
    assert profiles(workspace) == profiles(calm)
    assert requests <= total + at_once * rows_per_block


# --- ingestion


def test_ingestion_goes_on_with_the_node_that_is_left(cluster, nodes, tmp_path):
    dump, workspace = write_dump(tmp_path / "review.json", "yelp", lines=60_000), Workspace(tmp_path / "w")
    values = {"files": f"[{dump}]", "source": "yelp", "compute.chunk_megabytes": 0.02}
    job = Job(cluster, "ingest", workspace, settings("ingest", values))
    job.wait_until("parts are written", lambda: len(parts(workspace, "data", "reviews")) >= 10)
    cluster.kill(nodes[0])
    before = parts(workspace, "data", "reviews")
    assert not workspace.is_finished("data"), "the job was over before the node was lost"
    job.end()
    after = parts(workspace, "data", "reviews")
    print(f"{len(before)} of {len(after)} chunks at the loss, {rewritten(before, after)} finished chunks read twice")
    assert rewritten(before, after) <= 1
    rows, _ = read_plainly(dump, "yelp")
    assert workspace.read_table("data", "reviews").to_pylist() == rows
