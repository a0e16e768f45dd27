"""`xrec submit` against a real cluster: output, exit codes, lost connections, cancellation, tokens."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import requests

from ray_jobs.job_client import Jobs
from ray_jobs.job_following import follow
from ray_jobs.submission import prepare
from tests.cut_connections import Relay
from tests.simulated_cluster import SimulatedCluster, wait_until
from xrec.config import ConfigError
from xrec.workspace import Workspace

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
TINY = "sample: {users: 20, items: 15, interactions_per_user: 5, features: 3}\n"
# A stage that goes on until a file appears, and counts meanwhile.
COUNTING = """
import itertools, pathlib, sys, time
print("begun", flush=True)
end = pathlib.Path(sys.argv[sys.argv.index("--workspace") + 1])
for n in itertools.count():
    print(n, flush=True)
    time.sleep(0.05)
    if end.exists():
        break
print("ended", flush=True)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    # Jobs run `python`, which has to be the one with the packages.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with SimulatedCluster(tmp_path_factory.mktemp("nodes"), environment={"PATH": path}) as started:
        started.add_node(2)
        wait_until("the node is there", lambda: len(started.nodes()) == 2)
        yield started


@pytest.fixture
def config(tmp_path) -> Path:
    file = tmp_path / "tiny settings.yaml"
    file.write_text(TINY)
    return file


@pytest.fixture
def counting(tmp_path) -> Path:
    """A working directory whose stage `sample` runs until the workspace that it is given exists."""
    folder = tmp_path / "code"
    (folder / "ray_jobs").mkdir(parents=True)
    (folder / "ray_jobs" / "__init__.py").touch()
    (folder / "ray_jobs" / "sample.py").write_text(COUNTING)
    return folder


def command(address: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "xrec.cli", "submit", "--address", address, *map(str, arguments)]


def submit(cluster: SimulatedCluster, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    own = {**os.environ, **environment}
    return subprocess.run(
        command(cluster.dashboard, *arguments),
        env=own,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def job_of(stderr: str) -> str:
    found = re.search(r"submitted (xrec-\S+?)[: ]", stderr)
    assert found, stderr
    return found[1]


class Following:
    """`xrec submit` at work, and what it has written so far."""

    def __init__(self, address: str, *arguments: object):
        self.process = subprocess.Popen(
            command(address, *arguments), cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.out, self.err = "", ""
        self.readers = [threading.Thread(target=self._read, args=(name,)) for name in ("out", "err")]
        for reader in self.readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, f"std{name}"):
            setattr(self, name, getattr(self, name) + line)

    def until(self, text: str) -> None:
        wait_until(f"{text!r} is shown", lambda: text in self.out + self.err or self.process.poll() is not None)
        assert text in self.out + self.err, self.err

    def end(self) -> int:
        code = self.process.wait(timeout=120)
        for reader in self.readers:
            reader.join()
        return code


def test_a_stage_runs_on_the_cluster_and_its_output_comes_here(cluster, config, tmp_path):
    done = submit(cluster, "sample", "--config", config, "--workspace", tmp_path / "w", "--set", "sample.seed=3")
    assert done.returncode == 0, done.stderr
    assert "sample: " in done.stdout.strip().splitlines()[-1]
    assert job_of(done.stderr) and "--set sample.seed=3" in done.stderr
    manifest = Workspace(tmp_path / "w").manifest("data")
    assert manifest["fingerprint"]["config"]["seed"] == 3 and manifest["fingerprint"]["config"]["users"] == 20


def test_a_failed_stage_fails_here_with_its_own_last_line(cluster, config, tmp_path):
    done = submit(cluster, "preprocess", "--config", config, "--workspace", tmp_path / "empty")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(
        r"xrec: error: job xrec-preprocess-\S+ failed with exit code 1: workspace .* has not finished", last
    )


def test_every_stage_of_a_config_in_one_job(cluster, config, tmp_path):
    config.write_text(TINY + "preprocess: {}\n")
    done = submit(cluster, "run", "--config", config, "--workspace", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert Workspace(tmp_path / "w").is_finished("preprocess")
    assert re.search(r"s\] sample: .*\n.*s\] preprocess: ", done.stdout)


def test_a_job_is_followed_again_by_its_name(cluster, config, tmp_path):
    started = submit(cluster, "sample", "--config", config, "--workspace", tmp_path / "w", "--no-wait")
    job = started.stdout.strip()
    assert started.returncode == 0 and job == job_of(started.stderr)
    first, again = (submit(cluster, "--attach", job) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr
    assert "sample: " in first.stdout and first.stdout == again.stdout
    listed = submit(cluster, "--list").stdout
    assert re.search(rf"{job} .*SUCCEEDED .*sample .*{re.escape(str(tmp_path))}/w", listed)
    unknown = submit(cluster, "--attach", "xrec-never")
    assert unknown.returncode == 1 and "knows no job 'xrec-never'" in unknown.stderr


def test_each_line_is_shown_once_over_lost_connections(cluster, counting, tmp_path):
    with Relay(cluster.dashboard_port) as relay:
        address = f"http://127.0.0.1:{relay.port}"
        following = Following(address, "sample", "--working-dir", counting, "--workspace", tmp_path / "end")
        for shown in ("\n5\n", "\n60\n", "\n150\n"):
            following.until(shown)
            before = relay.accepted
            relay.cut()
            wait_until("it connects again", lambda before=before: relay.accepted > before)
        (tmp_path / "end").mkdir()
        assert following.end() == 0, following.err
    lines = following.out[following.out.index("begun") :].strip().splitlines()  # Ray has a line of its own before
    assert lines == ["begun", *map(str, range(len(lines) - 2)), "ended"] and len(lines) > 150


def test_an_interrupted_follower_leaves_the_job_which_can_be_cancelled(cluster, counting, tmp_path):
    following = Following(cluster.dashboard, "sample", "--working-dir", counting, "--workspace", tmp_path / "end")
    following.until("\n5\n")
    following.process.send_signal(signal.SIGINT)
    assert following.end() == 130
    job = job_of(following.err)
    assert f"job {job} goes on" in following.err and f"--attach {job}" in following.err

    attached = Following(cluster.dashboard, "--attach", job)
    attached.until("\n10\n")
    cancelled = submit(cluster, "--cancel", job)
    assert cancelled.returncode == 0 and cancelled.stdout.strip() == f"{job}: stopped", cancelled.stderr
    assert attached.end() == 1 and attached.err.strip().endswith("submit it again, and it goes on where it was")
    assert submit(cluster, "--cancel", job).stdout.strip() == f"{job}: stopped"


def test_without_the_token_nothing_is_submitted(cluster, config, tmp_path):
    arguments = ("sample", "--config", config, "--workspace", tmp_path / "w")
    (tmp_path / "wrong").write_text("0" * 64)
    for environment, said in (
        ({"RAY_AUTH_MODE": "disabled"}, "wants a token: set RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, "refused the token of RAY_AUTH_TOKEN_PATH"),
        ({"RAY_AUTH_TOKEN": "1" * 64}, "refused the token of RAY_AUTH_TOKEN;"),
        ({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent")}, "RAY_AUTH_TOKEN_PATH"),
    ):
        done = submit(cluster, *arguments, **environment)
        assert done.returncode == 1, done.stderr
        assert said in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_request_with_a_wrong_token_is_refused_by_the_cluster_itself(cluster):
    answers = [
        requests.get(f"{cluster.dashboard}/api/jobs/", headers=h, timeout=60).status_code
        for h in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Bearer {cluster.token}"})
    ]
    assert answers == [401, 403, 200]


def test_a_driver_that_no_node_can_take_is_refused(cluster, config, tmp_path):
    jobs = Jobs(cluster.dashboard, say=print)
    wait_until("the cluster says that it has no autoscaler", lambda: not jobs.grows())
    submission = prepare("sample", str(tmp_path / "w"), str(config))
    for needs in ({"GPU": 1.0}, {"CPU": 1.5, "memory": 2.0**50}, {"CPU": 3.0}):
        with pytest.raises(
            ConfigError, match=r"sample: the job's own process needs \{.*, but .*; lower sample.compute"
        ):
            jobs.submit(dataclasses.replace(submission, resources=needs))
    job = jobs.submit(dataclasses.replace(submission, resources={"CPU": 2.0}))
    assert follow(jobs, job, print).driver_exit_code == 0
    (head,) = (node for node in cluster.nodes() if node["raylet"]["isHeadNode"])
    assert jobs.details(job).driver_node_id != head["raylet"]["nodeId"]


def test_a_driver_that_waits_for_a_node_says_so(cluster, counting, tmp_path):
    said: list[str] = []
    jobs = Jobs(cluster.dashboard, said.append)
    ends = (tmp_path / "first", tmp_path / "second")
    both = [prepare("sample", str(end), working_dir=str(counting)) for end in ends]
    first, second = (jobs.submit(dataclasses.replace(job, resources={"CPU": 2.0})) for job in both)
    ends[1].mkdir()
    following = threading.Thread(target=follow, args=(jobs, second, lambda _: None))
    following.start()
    wait_until("it says what it waits for", lambda: any("waits for a node with {CPU: 2}" in line for line in said))
    ends[0].mkdir()
    following.join()
    assert [jobs.details(job).driver_exit_code for job in (first, second)] == [0, 0]


def test_ray_job_submit_from_the_repository(cluster, tmp_path):
    stage = ["python", "-m", "ray_jobs.sample", "--workspace", str(tmp_path / "w"), "--set", "sample.users=20"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", *stage]
    environment = {**os.environ, "RAY_API_SERVER_ADDRESS": cluster.dashboard}
    done = subprocess.run(ray, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Workspace(tmp_path / "w").is_finished("data")
