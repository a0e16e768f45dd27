"""Every stage as a job of a cluster whose head does no work, on a workspace in an object store."""

import os
import re
import sys
from pathlib import Path

import pytest

from ray_jobs.job_client import Jobs
from ray_jobs.job_following import exit_code, failure, follow
from ray_jobs.resources import driver_resources
from ray_jobs.submission import chosen_environment, prepare
from tests.random_models import save_llama
from tests.simulated_cluster import SimulatedCluster, wait_until
from xrec.config_files import load_config
from xrec.workspace import Workspace

pytestmark = pytest.mark.cluster
SETTINGS = """
sample: {users: 40, items: 30, interactions_per_user: 8, features: 4}
preprocess: {}
profile: {compute: {actors: [1, 2]}}
embed: {dim: 16, layers: 2, batch_size: 256, max_epochs: 3, learning_rate: 5.0e-3}
backbone: {pretrained: BACKBONE}
tune:
  epochs: 1
  max_length: 160
  align: none
  validate_every: 20
  adapter: {experts: 2}
  prompt: {profiles: false, max_tokens: 120}
  compute: {workers: 2, cpus_per_worker: 0.5, threads: 1}
explain: {limit: 12, controls: [shuffled], max_new_tokens: 12, compute: {rows_per_block: 8, actors: [1, 2], threads: 1}}
evaluate: {metrics: [length, rouge, bleu], bootstrap: 50, likelihood_rows: 8, probe_words: 3}
baseline: {name: similar_user, limit: 12}
compare:
  systems: {item_profile: {baseline.name: item_profile}, similar_user: {baseline.name: similar_user}}
  reference: item_profile
  metric: rouge_l
  bootstrap: 50
  seeds: [0]
report: {examples: 2}
"""
# What runs, in this order, and the folder that it finishes.
STAGES = {
    "sample": "data",
    "preprocess": "preprocess",
    "profile": "profile",
    "embed": "embed",
    "backbone": "backbone",
    "tune": "tune",
    "explain": "explain",
    "evaluate": "evaluate",
    "baseline": "variants/similar_user/0/baseline",
    "compare": "compare",
    "report": "report",
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    # Jobs run `python`, which has to be the one with the packages.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with SimulatedCluster(tmp_path_factory.mktemp("nodes"), environment={"PATH": path}) as cluster:
        for _ in range(2):
            cluster.add_node(2)
        wait_until("both nodes are there", lambda: len(cluster.nodes()) == 3)
        yield Jobs(cluster.dashboard, print)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    # The simulated nodes all read this machine's disk.
    texts = ["The user would enjoy this place for its warm bread and quiet garden. user item record name explanation"]
    backbone = save_llama(folder / "backbone", texts, max_position_embeddings=1024)
    (folder / "tiny.yaml").write_text(SETTINGS.replace("BACKBONE", backbone))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def workspace(s3_options) -> Workspace:
    opened = Workspace("s3://xrec-jobs/run", s3_options)
    opened.fs.mkdir("xrec-jobs")
    return opened


@pytest.fixture(scope="module")
def environment(s3_options) -> dict[str, str]:
    """The storage options as a user's shell has them, and as jobs are given them."""
    shell = {f"FSSPEC_S3_{name.upper()}": value for name, value in s3_options.items()}
    return chosen_environment(["FSSPEC_S3_*"], shell)


def run(jobs: Jobs, stage: str, workspace: Workspace, config: Path, environment: dict[str, str]) -> tuple[str, str]:
    """Run one stage as a job; returns its name and its output."""
    output: list[str] = []
    job = jobs.submit(prepare(stage, workspace.uri, str(config), environment=environment))
    details = follow(jobs, job, output.append)
    log = "".join(output)
    assert exit_code(details) == 0, f"{failure(details, log)}\n{log}"
    return job, log


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_job(jobs, stage, workspace, config, environment):
    job, log = run(jobs, stage, workspace, config, environment)
    assert f"{stage}: " in log.strip().splitlines()[-1]
    assert workspace.exists(STAGES[stage], "manifest.json")
    assert not workspace.exists(STAGES[stage], "started.json")
    # What computes in the job's own process ran on a node for work.
    heads = {node["nodeId"] for node in _nodes(jobs) if node["isHeadNode"]}
    computes = bool(driver_resources(stage, load_config(config)))
    assert (jobs.details(job).driver_node_id in heads) != computes


def test_what_was_written_is_whole(workspace):
    rows = workspace.read_table("explain", "predictions").to_pylist()
    explained = workspace.read_text_table("explanations").to_pylist()
    pairs = sorted((row["user"], row["item"]) for row in explained if row["split"] == "test")[:12]
    expected = sorted((*pair, signal) for pair in pairs for signal in ("true", "shuffled"))
    assert sorted((row["user"], row["item"], row["signal"]) for row in rows) == expected
    assert {row["status"] for row in rows} == {"ok"}
    page = workspace.read_bytes("report", "report.html")
    assert page.lstrip().lower().startswith(b"<!doctype html>")


def test_another_job_finds_everything_finished(jobs, workspace, config, environment):
    _, log = run(jobs, "run", workspace, config, environment)
    finished = set(re.findall(r"(\w+): already finished", log))
    assert finished >= set(load_config(config).stages())


def test_a_finished_run_is_published_by_a_job(jobs, workspace, config, environment):
    _, log = run(jobs, "snapshot", workspace, config, environment)
    assert "is the current one" in log.strip().splitlines()[-1]


def _nodes(jobs: Jobs) -> list[dict]:
    answer = jobs.client._do_request("GET", "/nodes?view=summary").json()
    return [node["raylet"] for node in answer["data"]["summary"]]
