"""Workers killed in mid-training: the run goes on from its checkpoint and ends with the adapter it would have had."""

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from tests.tiny_world import make_workspace, tune_config
from xrec.config_files import to_yaml
from xrec.explainer.adapter import XRecAdapter
from xrec.explainer.tuning import LOSS, tune
from xrec.metric_logging import read_metrics
from xrec.workspace import WorkspaceError

ROOT = Path(__file__).resolve().parents[2]
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


def config(workers, **compute):
    return tune_config(
        epochs=6, compute={"workers": workers, "zero_stage": 3, "threads": 1, "deepspeed": SHARD_ALL, **compute}
    )


def last_step(workspace):
    return max((line["step"] for line in read_metrics(workspace, "tune")), default=0)


def workers_of(parent):
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
    return found


def wait_until(condition, seconds=500):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def expect_unkilled_result(workspace, expected, losses):
    adapter = XRecAdapter.from_pretrained(workspace.path("tune", "adapter"))
    assert adapter.spec == expected.spec
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(adapter.state_dict()[name], value, atol=1e-4, rtol=0)
    lines = read_metrics(workspace, "tune")
    trained = [line["step"] for line in lines if LOSS not in line]
    assert trained == list(range(1, len(trained) + 1)), "every step is in the log once, in order"
    assert {line["step"]: line[LOSS] for line in lines if LOSS in line} == pytest.approx(losses, abs=1e-4)
    assert workspace.read_json("tune", "metrics.json")[LOSS] == pytest.approx(min(losses.values()), abs=1e-4)


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory):
    """The adapter and validation losses of one plain process that nobody kills."""
    losses = {}

    class Log:
        def log(self, step, **figures):
            losses.update({step: figures[LOSS]} if LOSS in figures else {})

    adapter, _ = tune(make_workspace(tmp_path_factory.mktemp("unkilled")), config(1), device="cpu", logger=Log())
    return adapter, losses


@pytest.mark.slow
def test_killed_workers(ray_session, tmp_path, unkilled):
    """Kills after new checkpoints are survived on two workers; one without ends the run, which one worker finishes."""
    from ray_jobs.tune import run

    workspace, killed_at = make_workspace(tmp_path), []

    def kill():
        moments = [
            lambda: last_step(workspace) >= 8,
            lambda: last_step(workspace) >= 22,
            # The log goes back to the checkpoint when the next workers begin, five steps before they write another.
            lambda: last_step(workspace) < killed_at[1],
        ]
        for condition in moments:
            wait_until(condition)
            killed_at.append(last_step(workspace))
            workers = workers_of(os.getpid())
            max(workers, key=lambda p: p.pid).kill()
            wait_until(lambda workers=workers: not any(p.is_running() for p in workers))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(WorkspaceError, match="tuning failed on worker"):
        run(workspace, config(2, max_failures=1))
    assert len(killed_at) == 3 and killed_at[0] < 20 and killed_at[2] < killed_at[1] < 40
    assert not workspace.is_finished("tune")
    reached = last_step(workspace)
    line = run(workspace, config(1))
    assert "1 worker" in line and last_step(workspace) > reached
    expect_unkilled_result(workspace, *unkilled)
    checkpoints = {name.split("/")[0] for name in workspace.files("tune", "checkpoints") if name.startswith("step_")}
    assert len(checkpoints) == 2, "the last two are kept"
    outputs = workspace.manifest("tune")["outputs"]
    assert set(outputs) == {"adapter/README.md", "adapter/adapter.safetensors", "adapter/config.json"}


@pytest.mark.slow
def test_killed_driver(ray_session, tmp_path, unkilled):
    """The whole command and its cluster are killed; running it again finishes."""
    from ray_jobs.tune import run

    workspace, settings = make_workspace(tmp_path / "world"), tmp_path / "run.yaml"
    indented = "".join(f"  {line}\n" for line in to_yaml(config(2)).splitlines())
    settings.write_text(f"tune:\n{indented}")
    command = [sys.executable, "-m", "ray_jobs.tune", "--config", str(settings), "--workspace", workspace.uri]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(lambda: last_step(workspace) >= 12)
        finally:
            for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
                process.kill()
            driver.wait()
    reached = last_step(workspace)
    assert reached < 40 and not workspace.is_finished("tune")
    run(workspace, config(1))
    expect_unkilled_result(workspace, *unkilled)
