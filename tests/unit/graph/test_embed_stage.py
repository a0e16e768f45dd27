"""The stage `embed` on a small workspace: what it writes, and what a killed or repeated run leaves behind."""

import pytest
import torch

from ray_jobs import embed
from tests.taste_world import NEW_ITEMS, NEW_USERS, write_preprocess
from xrec.config import EmbedConfig
from xrec.embeddings import Embeddings
from xrec.metric_logging import read_metrics
from xrec.workspace import Workspace, WorkspaceError

CONFIG = EmbedConfig(dim=16, layers=2, batch_size=512, learning_rate=1e-2, max_epochs=8)


@pytest.fixture
def workspace(tmp_path, taste_world) -> Workspace:
    workspace = Workspace(tmp_path / "run")
    write_preprocess(workspace, taste_world)
    return workspace


def load(workspace: Workspace) -> Embeddings:
    return Embeddings.load(workspace.path("embed", embed.EMBEDDINGS))


def test_writes_a_row_for_every_node_and_the_figures(workspace, taste_world):
    summary = embed.run(workspace, CONFIG)
    assert summary.startswith("embed: 300 users, 160 items, 8 epochs, val recall@20 0.")
    embeddings = load(workspace)
    assert embeddings.user.shape == (3, taste_world.users, 16)
    assert embeddings.item.shape == (3, taste_world.items, 16)
    assert embeddings.metadata["folded_in_users"] == str(NEW_USERS)
    assert embeddings.metadata["folded_in_items"] == str(NEW_ITEMS)
    metrics = workspace.read_json("embed", "metrics.json")
    for group in ("val", "test", "test_without_val", "zero_shot_users", "zero_shot_items"):
        for figure in ("recall@5", "recall@20", "ndcg@20", "precision@20", "mrr"):
            assert 0 < metrics[f"{group}/{figure}"] <= 1
    assert metrics["epochs"] == 8
    log = read_metrics(workspace, "embed")
    assert [line["step"] for line in log] == list(range(8))
    assert max(line["val/recall@20"] for line in log) == pytest.approx(metrics["val/recall@20"], abs=1e-6)
    assert log[metrics["best_epoch"]]["val/recall@20"] == max(line["val/recall@20"] for line in log)
    assert workspace.files("embed") == ["embeddings.safetensors", "manifest.json", "metrics.json", "metrics.jsonl"]


def test_masking_validation_positives_leaves_fewer_rivals(workspace):
    embed.run(workspace, CONFIG)
    metrics = workspace.read_json("embed", "metrics.json")
    assert metrics["test_without_val/recall@20"] > metrics["test/recall@20"]


def test_a_finished_stage_does_nothing(workspace):
    embed.run(workspace, CONFIG)
    before = workspace.manifest("embed")
    assert "already finished" in embed.run(workspace, CONFIG)
    assert workspace.manifest("embed") == before
    with pytest.raises(WorkspaceError, match=r"config.dim \(16, now 8\).*--force"):
        embed.run(workspace, CONFIG.model_copy(update={"dim": 8}))
    embed.run(workspace, CONFIG.model_copy(update={"dim": 8}), force=True)
    assert load(workspace).dim == 8


def test_dry_run_writes_nothing(workspace):
    summary = embed.run(workspace, CONFIG, dry_run=True)
    assert "would train LightGCN (2 layers, dim 16)" in summary
    assert "280 users and 150 items" in summary
    assert workspace.files("embed") == []


def test_an_interrupted_run_resumes_to_the_same_embeddings(workspace, taste_world, tmp_path, monkeypatch):
    whole = Workspace(tmp_path / "whole")
    write_preprocess(whole, taste_world)
    embed.run(whole, CONFIG)

    class Killed(BaseException):
        pass

    log = embed.MetricLogger.log

    def log_until_killed(self, step, **figures):
        log(self, step, **figures)
        if step == 5:
            raise Killed

    config = CONFIG.model_copy(update={"compute": CONFIG.compute.model_copy(update={"checkpoint_seconds": 0.0})})
    with monkeypatch.context() as patch:
        patch.setattr(embed.MetricLogger, "log", log_until_killed)
        with pytest.raises(Killed):
            embed.run(workspace, config)
    assert not workspace.is_finished("embed")
    assert not workspace.exists("embed", embed.EMBEDDINGS)
    assert workspace.exists("embed", "checkpoints", "latest.json")

    embed.run(workspace, config)
    assert torch.equal(load(workspace).user, load(whole).user)
    assert torch.equal(load(workspace).item, load(whole).item)
    assert [line["step"] for line in read_metrics(workspace, "embed")] == list(range(8))
    assert not workspace.exists("embed", "checkpoints")


def test_works_on_an_object_store(taste_world):
    workspace = Workspace("memory://embed-stage")
    write_preprocess(workspace, taste_world)
    embed.run(workspace, CONFIG.model_copy(update={"max_epochs": 2}))
    with workspace.local("embed", embed.EMBEDDINGS) as path:
        assert Embeddings.load(path).user.shape == (3, taste_world.users, 16)
    workspace.fs.rm(workspace.root, recursive=True)


def test_needs_preprocess_and_a_validation_split(tmp_path, taste_world):
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match="'preprocess' has not finished"):
        embed.run(workspace, CONFIG)
    write_preprocess(workspace, taste_world, with_val=False)
    with pytest.raises(ValueError, match="val: the split has no interactions"):
        embed.run(workspace, CONFIG)
    assert not workspace.exists("embed", embed.EMBEDDINGS)


def test_threads_are_set_for_the_stage_only(workspace, monkeypatch):
    before, during = torch.get_num_threads(), []
    train = embed.train_lightgcn

    def spy(*args, **kwargs):
        during.append(torch.get_num_threads())
        return train(*args, **kwargs)

    monkeypatch.setattr(embed, "train_lightgcn", spy)
    compute = CONFIG.compute.model_copy(update={"threads": before + 1})
    embed.run(workspace, CONFIG.model_copy(update={"compute": compute, "max_epochs": 1}))
    assert (during, torch.get_num_threads()) == ([before + 1], before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_refuses_a_gpu_that_is_not_there(workspace):
    compute = CONFIG.compute.model_copy(update={"device": "cuda:0"})
    with pytest.raises(ValueError, match=r"embed.compute.device = 'cuda:0'.*use auto or cpu"):
        embed.run(workspace, CONFIG.model_copy(update={"compute": compute}))


def test_several_workers_need_a_workspace_that_they_can_see(taste_world):
    workspace = Workspace("memory://embed-workers")
    write_preprocess(workspace, taste_world)
    wide = CONFIG.model_copy(update={"compute": CONFIG.compute.model_copy(update={"workers": 2})})
    assert "dim 16, 2 workers" in embed.run(workspace, wide, dry_run=True)
    with pytest.raises(WorkspaceError, match="cannot see this process's memory.*embed.compute.workers to 1"):
        embed.run(workspace, wide)
    workspace.fs.rm(workspace.root, recursive=True)


def test_a_device_is_for_one_process():
    with pytest.raises(ValueError, match=r"device = 'cuda:0'.*workers = 2; leave it at auto"):
        EmbedConfig.model_validate({"compute": {"workers": 2, "device": "cuda:0"}})
