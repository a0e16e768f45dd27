"""The stage `backbone`: what it writes, that it does so once, and that nothing half-written is ever taken for done."""

import json
import os

import pytest
import torch

from ray_jobs import backbone
from tests.random_models import random_llama, save_gguf, save_llama, train_tokenizer
from xrec.config import BackboneConfig, ConfigError
from xrec.explainer.loading import backbone_folder
from xrec.explainer.model import load_backbone
from xrec.workspace import Workspace, WorkspaceError

TEXTS = ["warm bread and fresh coffee"]


@pytest.fixture
def given(tmp_path) -> str:
    return save_llama(tmp_path / "given", TEXTS)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "w")


def contents(workspace: Workspace) -> dict[str, int]:
    return {f: os.stat(workspace.path(f)).st_mtime_ns for f in workspace.files()}


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(4, 20).unsqueeze(0)).logits


def test_it_writes_a_folder_that_everything_else_loads(workspace, given):
    dry = backbone.run(workspace, BackboneConfig(pretrained=given), dry_run=True)
    assert f"would write {given} -> {workspace.path('backbone', 'model')}" in dry and workspace.files() == []
    summary = backbone.run(workspace, BackboneConfig(pretrained=given))
    with backbone_folder(workspace, None) as folder:
        model, _ = load_backbone(folder)
    assert torch.equal(logits(model), logits(load_backbone(given)[0]))
    figures = workspace.read_json("backbone", "metrics.json")
    assert figures["parameters"] == model.num_parameters() and f"{figures['parameters']:,} parameters" in summary
    assert workspace.manifest("backbone")["fingerprint"]["inputs"].keys() == {"pretrained"}
    assert {"model/model.safetensors", "model/tokenizer.json"} <= set(workspace.manifest("backbone")["outputs"])


def test_a_second_run_does_nothing_and_a_changed_model_is_refused(workspace, given):
    config = BackboneConfig(pretrained=given)
    backbone.run(workspace, config)
    before = contents(workspace)
    assert "already finished" in backbone.run(workspace, config)
    # How it is computed is no part of what it is.
    backbone.run(workspace, BackboneConfig(pretrained=given, compute={"cpus": 2}))
    assert contents(workspace) == before
    with pytest.raises(WorkspaceError, match=r"another config\.dtype \('auto', now 'bfloat16'\)"):
        backbone.run(workspace, BackboneConfig(pretrained=given, dtype="bfloat16"))
    save_llama(given, TEXTS, seed=1)
    with pytest.raises(WorkspaceError, match=r"another inputs\.pretrained .*--force"):
        backbone.run(workspace, config)
    assert contents(workspace) == before
    backbone.run(workspace, config, force=True)
    written = load_backbone(workspace.path("backbone", "model"))[0]
    assert torch.equal(logits(written), logits(load_backbone(given)[0]))


def test_a_gguf_file_in_an_object_store_workspace(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    model = random_llama(tokenizer)
    save_gguf(model, tokenizer, tmp_path / "model.gguf")
    workspace = Workspace("memory://backbone-of-gguf")
    config = BackboneConfig(pretrained=str(tmp_path / "model.gguf"))
    backbone.run(workspace, config)
    with backbone_folder(workspace, None) as folder:
        assert torch.allclose(logits(load_backbone(folder)[0]), logits(model), atol=1e-5)
    assert "already finished" in backbone.run(workspace, config)


def test_a_run_that_dies_leaves_nothing_that_looks_done(workspace, given, monkeypatch):
    config, prepare = BackboneConfig(pretrained=given), backbone.prepare_backbone

    def die(pretrained, folder, dtype):
        prepare(pretrained, folder, dtype)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backbone, "prepare_backbone", die)
        with pytest.raises(KeyboardInterrupt):
            backbone.run(workspace, config)
    assert workspace.files("backbone") == ["started.json"]
    assert os.listdir(workspace.path("backbone")) == ["started.json"]
    # A process that is killed cannot clean up: the next one does.
    left = workspace.path("backbone", "model.tmp-0123456789ab")
    os.makedirs(left)
    for name in ("config.json", "model.safetensors"):
        with open(os.path.join(left, name), "w") as file:
            json.dump({}, file)
    backbone.run(workspace, config)
    assert not os.path.exists(left) and workspace.is_finished("backbone")


def test_nothing_is_written_for_a_model_that_is_not_there(workspace, tmp_path):
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=r"^backbone\.pretrained = '.*none\.gguf': there is no such file"):
            backbone.run(workspace, BackboneConfig(pretrained=str(tmp_path / "none.gguf")), dry_run=dry_run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty' cannot be loaded"):
        backbone.run(workspace, BackboneConfig(pretrained=str(tmp_path / "empty")))
    assert workspace.files("backbone") == ["started.json"]
