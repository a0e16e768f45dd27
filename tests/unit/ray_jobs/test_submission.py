"""What `xrec submit` sends, and what it refuses before it sends anything."""

import dataclasses
import http.server
import os
import re
import threading
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.job_submission import JobDetails, JobStatus, JobType

from ray_jobs.demands import ClusterShape, NodeType
from ray_jobs.job_client import Jobs, dashboard_url
from ray_jobs.job_following import exit_code, failure
from ray_jobs.submission import (
    JOBS,
    chosen_environment,
    job_folder,
    job_resources,
    prepare,
    refuse_unplaceable,
    visible_workspace,
)
from tests.ports import free_port
from xrec.config import ConfigError
from xrec.workspace import WorkspaceError

ROOT = Path(__file__).resolve().parents[3]
S3 = "s3://bucket/run"


@pytest.fixture
def config(tmp_path) -> Path:
    file = tmp_path / "my settings.yaml"
    file.write_text(f"workspace: {S3}\nsample: {{users: 20}}\ntune: {{epochs: 2}}\n")
    return file


def test_the_command_is_that_of_the_stage(config):
    job = prepare("tune", None, str(config), ["tune.epochs=3"], ["--force"])
    assert job.entrypoint == (
        "python -m ray_jobs.tune --config 'config/my settings.yaml' --workspace s3://bucket/run "
        "--set tune.epochs=3 --force"
    )
    assert prepare("import", S3, overrides=["import.path=/data"]).command[2] == "ray_jobs.import_release"
    assert re.fullmatch(r"xrec-tune-\d{8}-\d{6}-[0-9a-f]{6}", job.new_id()) and job.new_id() != job.new_id()
    assert job.metadata()["stage"] == "tune" and job.metadata()["workspace"] == S3


@pytest.mark.parametrize("stage", [job for job in JOBS if job not in ("import", "ingest", "run", "baseline")])
def test_every_stage_has_a_module_that_is_a_command(stage):
    module = prepare(stage, S3).command[2]
    text = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    assert 'if __name__ == "__main__":' in text


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("tuning", {}, r"stage 'tuning' .*sample, import.*baseline, run, snapshot"),
        ("serve", {}, "stage 'serve'"),
        ("tune", {"config": "absent.yaml"}, "'absent.yaml' does not exist"),
        ("tune", {"overrides": ["tune.epochs=many"]}, "tune.epochs = 'many'"),
        ("tune", {"flags": ["--repair"]}, "--repair belongs to the stage profile"),
        ("snapshot", {"flags": ["--force"]}, "snapshot takes no --force"),
        ("run", {}, "pass --config FILE"),
        ("import", {}, "import"),
        ("tune", {"working_dir": "/absent"}, "--working-dir '/absent' is not a folder"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_sent(stage, arguments, message):
    with pytest.raises(ConfigError, match=message):
        prepare(stage, S3, **arguments)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (None, "no workspace is named"),
        (" ", "no workspace is named"),
        ("runs/demo", "relative to a folder of this machine.*s3://bucket/run"),
        ("file://runs/demo", "relative"),
        ("memory://demo", "this process's memory"),
        ("s4://bucket/run", "no filesystem is called 's4'"),
    ],
)
def test_a_workspace_that_a_cluster_cannot_see_is_refused(uri, message):
    with pytest.raises((ConfigError, WorkspaceError), match=message):
        visible_workspace(uri)


@pytest.mark.parametrize("uri", ["/shared/run", "file:///shared/run", S3, "gs://bucket/run", "s3://bucket/a b"])
def test_a_workspace_that_a_cluster_can_see_is_passed_as_it_is(uri):
    assert visible_workspace(uri) == uri


def test_what_is_sent_is_the_packages_and_the_config_file_alone(config):
    with job_folder(prepare("tune", None, str(config))) as folder:
        sent = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        assert (folder / "config" / "my settings.yaml").read_text() == config.read_text()
    packages = {
        file.relative_to(ROOT).as_posix()
        for package in ("xrec", "ray_jobs", "serve")
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert sent == packages | {"config/my settings.yaml"}
    assert not folder.exists()
    with job_folder(prepare("tune", None, str(config), with_code=False)) as folder:
        assert [file.name for file in folder.rglob("*") if file.is_file()] == ["my settings.yaml"]


def test_a_folder_that_is_named_is_sent_as_it_is_with_the_config_inside_it(config, tmp_path):
    job = prepare("tune", None, str(config), working_dir=str(tmp_path))
    assert "--config 'my settings.yaml'" in job.entrypoint
    with job_folder(job) as folder:
        assert folder == tmp_path
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="not inside --working-dir"):
        prepare("tune", None, str(config), working_dir=str(tmp_path / "other"))


def test_the_repository_as_a_working_directory_is_small_and_leaves_out_what_git_ignores(tmp_path):
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    names = zipfile.ZipFile(package).namelist()
    assert {"ray_jobs/tune.py", "configs/demo.yaml", "serve/static/app.js"} <= set(names)
    ignored = (".venv", ".venv-vllm", ".git", "runs", "__pycache__", ".pytest_cache")
    assert not [name for name in names if set(name.split("/")) & set(ignored)]
    assert package.stat().st_size < 20e6


def test_variables_are_chosen_by_name_by_pattern_or_by_value():
    here = {"FSSPEC_S3_KEY": "k", "FSSPEC_S3_SECRET": "s", "HF_TOKEN": "h", "RAY_AUTH_TOKEN": "t", "RAY_SEED": "1"}
    chosen = chosen_environment(["FSSPEC_S3_*", "HF_TOKEN", "XREC_TRACEBACK=1", "EMPTY="], here)
    assert chosen == {
        "FSSPEC_S3_KEY": "k",
        "FSSPEC_S3_SECRET": "s",
        "HF_TOKEN": "h",
        "XREC_TRACEBACK": "1",
        "EMPTY": "",
    }
    assert chosen_environment(["RAY_*"], here) == {"RAY_SEED": "1"}
    for wanted, message in (("AWS_*", "AWS_"), ("ABSENT", "ABSENT"), ("=x", "=x")):
        with pytest.raises(ConfigError, match=re.escape(message)):
            chosen_environment([wanted], here)
    for wanted in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN=x"):
        with pytest.raises(ConfigError, match="not passed to jobs"):
            chosen_environment([wanted], here)


def test_what_the_driver_needs_is_given_to_ray_by_its_names():
    needs = {"CPU": 2.0, "GPU": 1.0, "memory": 3.0 * 2**30, "accelerator_type:L4": 0.001}
    assert job_resources(needs) == {
        "entrypoint_num_cpus": 2.0,
        "entrypoint_num_gpus": 1.0,
        "entrypoint_memory": 3 * 2**30,
        "entrypoint_resources": {"accelerator_type:L4": 0.001},
    }
    assert job_resources({}) == {}


def test_a_driver_that_fits_on_no_node_is_refused_unless_nodes_may_come():
    nodes = [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]
    job = prepare("sample", S3)
    both, large = (dataclasses.replace(job, resources={"CPU": cpus, "GPU": 1.0}) for cpus in (2.0, 4.0))
    refuse_unplaceable(dataclasses.replace(job, resources={}), ClusterShape())
    refuse_unplaceable(both, ClusterShape(nodes))
    with pytest.raises(
        ConfigError, match=r"sample: the job's own process needs \{CPU: 4, GPU: 1\}.*sample.compute.cpus"
    ):
        refuse_unplaceable(large, ClusterShape(nodes))
    refuse_unplaceable(large, ClusterShape(nodes, open_ended=True))
    refuse_unplaceable(large, ClusterShape(nodes, [NodeType("big", {"CPU": 8.0, "GPU": 1.0}, 1)]))


def test_a_job_of_several_stages_needs_what_the_neediest_does(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("sample: {compute: {cpus: 3}}\nembed: {compute: {gpus: 1, memory: 2}}\nexplain: {}\n")
    assert prepare("run", S3, str(file)).resources == {"CPU": 3.0, "GPU": 1.0, "memory": 2 * 2**30}
    assert prepare("explain", S3, str(file)).resources == prepare("snapshot", S3, str(file)).resources == {}


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ("http://head:8265/", {"RAY_ADDRESS": "http://other:8265"}, "http://head:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "https://a", "RAY_ADDRESS": "http://b:8265"}, "https://a"),
        (None, {"RAY_ADDRESS": "http://b:8265"}, "http://b:8265"),
        (None, {"RAY_ADDRESS": "local"}, "no cluster is named"),
        (None, {}, "no cluster is named"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "RAY_ADDRESS = '10.0.0.1:6379' is not the URL"),
        ("head:8265", {}, "--address = 'head:8265' is not the URL"),
    ],
)
def test_the_address_is_that_of_the_command_line_or_of_the_environment(monkeypatch, given, environment, expected):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if expected.startswith("http"):
        assert dashboard_url(given) == expected
        assert {n: os.environ[n] for n in environment} == environment
    else:
        with pytest.raises(ConfigError, match=re.escape(expected)):
            dashboard_url(given)


def test_an_address_without_a_dashboard_is_told_as_such():
    with pytest.raises(ConnectionError, match="no dashboard of Ray answers at http://127.0.0.1"):
        Jobs(f"http://127.0.0.1:{free_port()}", print)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for kind in ("page", "absent", "broken"):
            with pytest.raises(OSError, match="(is no dashboard of Ray|refused)"):
                Jobs(f"http://127.0.0.1:{server.server_port}/{kind}", print)
    finally:
        server.shutdown()


class _Silent(http.server.BaseHTTPRequestHandler):
    """Some other server."""

    def do_GET(self) -> None:
        self.send_response({"page": 200, "absent": 404, "broken": 500}[self.path.split("/")[1]])
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


def details(status: JobStatus, code: int | None = None, message: str | None = None) -> JobDetails:
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id="xrec-tune-1",
        entrypoint="python",
        status=status,
        driver_exit_code=code,
        message=message,
    )


@pytest.mark.parametrize(
    ("job", "log", "code", "said"),
    [
        (details(JobStatus.SUCCEEDED, 0), "", 0, None),
        (details(JobStatus.FAILED, 1), "a\nxrec: error: no data\nlater\n", 1, "with exit code 1: no data"),
        (
            details(JobStatus.FAILED, 2),
            "usage: x\nx: error: unknown option\n",
            2,
            "exit code 2: x: error: unknown option",
        ),
        (details(JobStatus.FAILED, 1), "", 1, "exit code 1: no output"),
        (details(JobStatus.FAILED, -9), "half\n", 1, "ended by signal 9"),
        (
            details(JobStatus.FAILED, None, "its node has died"),
            "half\n",
            1,
            "failed: its node has died; submit it again",
        ),
        (details(JobStatus.STOPPED, 143), "half\n", 1, "was stopped; submit it again"),
    ],
)
def test_the_exit_code_and_the_last_line_are_those_of_the_job(job, log, code, said):
    assert exit_code(job) == code
    if said is not None:
        assert said in failure(job, log)
