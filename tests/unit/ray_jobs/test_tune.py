"""How often the stage `tune` goes on after failures of workers: what is counted, and between what."""

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from ray_jobs import tune
from xrec.config import TuneConfig
from xrec.workspace import Workspace, WorkspaceError


class Trainer:
    """Stands for Ray Train's: each `fit` reaches a step, and fails but for the last."""

    def __init__(self, workspace, steps):
        self.workspace, self.steps, self.fits = workspace, list(steps), 0

    def fit(self):
        self.fits += 1
        step = self.steps.pop(0)
        self.workspace.write_bytes(b"", "tune", "checkpoints", f"step_{step:08d}", "progress.json")
        if self.steps:
            raise WorkerGroupError("failed", {0: RuntimeError("Connection reset by peer")})
        self.return_value = {"steps": step}
        return self


def fit(tmp_path, monkeypatch, steps, most):
    workspace = Workspace(tmp_path)
    trainer = Trainer(workspace, steps)
    monkeypatch.setattr(tune, "_trainer", lambda *_: trainer)
    config = TuneConfig.model_validate({"compute": {"max_failures": most}})
    try:
        return tune._fit(workspace, config, False)["steps"]
    except WorkspaceError as error:
        assert "worker 0: Connection reset by peer" in str(error)
        return trainer.fits


def test_losses_after_a_new_checkpoint_are_not_added_up(tmp_path, monkeypatch, capsys):
    assert fit(tmp_path, monkeypatch, range(10, 40, 10), 1) == 30
    assert "going on from step_00000020" in capsys.readouterr().err


@pytest.mark.parametrize(("most", "fits"), [(0, 1), (1, 3), (2, 4)])
def test_failures_without_one_are(tmp_path, monkeypatch, most, fits):
    assert fit(tmp_path, monkeypatch, [10, 20, 20, 20, 20, 20], most) == fits


def test_no_limit(tmp_path, monkeypatch):
    assert fit(tmp_path, monkeypatch, [10] * 9, -1) == 10
