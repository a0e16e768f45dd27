"""The log of figures: every line is there, also after a kill or a resume, on a local folder and on an object store."""

import json
import math

import pytest

from xrec.metric_logging import MetricLogger, read_metrics
from xrec.workspace import METRICS_LOG, Workspace


@pytest.fixture(params=["local", "memory"])
def workspace(request, tmp_path):
    return Workspace(tmp_path if request.param == "local" else f"memory://log-{tmp_path.name}")


def test_lines_are_json_with_step_and_time(workspace):
    with MetricLogger(workspace, "tune") as logger:
        logger.log(1, loss=2.5, **{"val/nll_per_token": 2.0})
        logger.log(2, loss=math.nan, gradient=math.inf)
    first, second = read_metrics(workspace, "tune")
    assert (first["step"], first["loss"], first["val/nll_per_token"]) == (1, 2.5, 2.0)
    assert first["time"] <= second["time"]
    assert (second["loss"], second["gradient"]) == (None, None)


def test_a_local_log_is_readable_at_once_and_a_remote_one_after_the_flush_interval(tmp_path):
    with MetricLogger(Workspace(tmp_path), "tune") as logger:
        logger.log(1, loss=1.0)
        assert len(read_metrics(Workspace(tmp_path), "tune")) == 1
    remote = Workspace(f"memory://flush-{tmp_path.name}")
    with MetricLogger(remote, "tune", flush_seconds=3600) as logger:
        logger.log(1, loss=1.0)
        assert read_metrics(remote, "tune") == []
    assert len(read_metrics(remote, "tune")) == 1
    with MetricLogger(remote, "tune", flush_seconds=-1) as logger:
        logger.log(2, loss=1.0)
        assert [line["step"] for line in read_metrics(remote, "tune")] == [1, 2]


def test_a_resumed_run_drops_the_steps_that_it_repeats(workspace):
    with MetricLogger(workspace, "tune") as logger:
        for step in range(5):
            logger.log(step, loss=step)
    with MetricLogger(workspace, "tune", keep_below=3) as logger:
        logger.log(3, loss=30)
    assert [(line["step"], line["loss"]) for line in read_metrics(workspace, "tune")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 30),
    ]


def test_without_a_resume_step_earlier_lines_stay(workspace):
    for step in (1, 2):
        with MetricLogger(workspace, "tune") as logger:
            logger.log(step, loss=0.0)
    assert [line["step"] for line in read_metrics(workspace, "tune")] == [1, 2]


def test_a_line_that_a_kill_cut_short_is_dropped(workspace):
    whole = json.dumps({"step": 1, "time": 0.0, "loss": 1.0})
    workspace.write_bytes(f'{whole}\n{{"step": 2, "lo'.encode(), "tune", METRICS_LOG)
    assert [line["step"] for line in read_metrics(workspace, "tune")] == [1]
    with MetricLogger(workspace, "tune", keep_below=9) as logger:
        logger.log(2, loss=0.0)
    assert [line["step"] for line in read_metrics(workspace, "tune")] == [1, 2]


def test_no_log_is_an_empty_list(workspace):
    assert read_metrics(workspace, "tune") == []


def test_tensorboard_files_hold_the_same_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricLogger(Workspace(tmp_path / "w"), "tune", tensorboard=tmp_path / "events") as logger:
        logger.log(1, loss=2.5)
        logger.log(2, loss=1.25)
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 2.5), (2, 1.25)]
