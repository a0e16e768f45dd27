"""From pairs to rows: signals, unknown indices, determinism, and agreement with the model's own loss."""

import numpy as np
import pytest
import torch

from tests.tiny_world import USERS
from xrec import tables
from xrec.config import ExplainConfig
from xrec.embeddings import Embeddings
from xrec.explainer.explain import Explainer
from xrec.explainer.model import IGNORED, XRecModel
from xrec.workspace import Workspace, WorkspaceError


@pytest.fixture(scope="module")
def workspace(tuned_workspace):
    return Workspace(tuned_workspace)


@pytest.fixture(scope="module")
def explainer(workspace):
    return Explainer.from_workspace(workspace, ExplainConfig(max_new_tokens=12), "cpu")


def test_rows_are_predictions(explainer):
    pairs = [(0, 1), (3, 2), (0, 2)]
    rows = [r for signal in ("true", "shuffled", "off") for r in explainer.explain(pairs, signal)]
    table = tables.from_rows("predictions", rows)
    assert len(table) == 9 and set(table["status"].to_pylist()) == {"ok"}
    assert [(r["user"], r["item"]) for r in rows[:3]] == pairs
    assert all(r["tokens"] > 0 and len(r["adapter_hash"]) == 64 for r in rows)


def test_unknown_indices_become_failed_rows_and_lose_no_other(explainer):
    rows = explainer.explain([(0, 1), (USERS, 1), (1, -1), (2, 3)])
    assert [r["status"] for r in rows] == ["ok", "failed", "failed", "ok"]
    assert f"user {USERS} is unknown" in rows[1]["error"] and "item -1 is unknown" in rows[2]["error"]
    with pytest.raises(ValueError, match=f"user {USERS} is unknown"):
        explainer.negative_log_likelihood([(USERS, 0)], ["x"])


def test_a_mixed_batch_keeps_its_order(explainer):
    batch = {
        "user": np.array([5, 1, 5, 2], np.int32),
        "item": np.array([1, 2, 1, 0], np.int32),
        "signal": np.array(["true", "off", "off", "shuffled"], object),
    }
    columns = explainer(batch)
    assert columns["user"].tolist() == [5, 1, 5, 2] and columns["signal"].tolist() == batch["signal"].tolist()
    alone = [explainer.explain([(5, 1)], "true"), explainer.explain([(1, 2)], "off")]
    assert columns["explanation"][0] == alone[0][0]["explanation"]
    assert columns["explanation"][1] == alone[1][0]["explanation"]


def test_signals_take_the_vectors_they_name(explainer):
    (true,), (shuffled,), (off,) = (explainer.requests([(4, 6)], s) for s in ("true", "shuffled", "off"))
    vectors = explainer.vectors
    user = vectors.embeddings["user"]
    torch.testing.assert_close(true.user_vector, vectors.adapter.user(user[4:5])[0])
    other = int(vectors.permutations["user"][4])
    assert other != 4
    torch.testing.assert_close(shuffled.user_vector, vectors.adapter.user(user[other : other + 1])[0])
    assert off.user_vector is None and off.item_vector is None
    assert true.token_ids == shuffled.token_ids == off.token_ids


def test_likelihood_equals_the_tuned_models_loss(explainer, workspace):
    pairs, texts = [(0, 1), (3, 2)], ["warm bread and tea", "jazz"]
    found, tokens = explainer.negative_log_likelihood(pairs, texts)
    model = XRecModel(explainer.engine.model.backbone, explainer.vectors.adapter, injection="none")
    embeddings = Embeddings.load(workspace.path("embed", "embeddings.safetensors"))
    for i, ((user, item), text) in enumerate(zip(pairs, texts, strict=True)):
        prompt = explainer.requests([(user, item)])[0]
        target = explainer.prompts.target(text)
        ids = torch.tensor([prompt.token_ids + target])
        masks = torch.zeros(2, *ids.shape, dtype=torch.bool)
        masks[0, 0, prompt.user_positions], masks[1, 0, prompt.item_positions] = True, True
        labels = ids.clone()
        labels[0, : len(prompt.token_ids)] = IGNORED
        # The engine has hooked the backbone already; the model only has to pass the vectors on.
        model.injected.injection = "input"
        with torch.no_grad():
            vectors = embeddings.user_mean()[user : user + 1], embeddings.item_mean()[item : item + 1]
            expected = model(ids, torch.ones_like(ids), masks[0], masks[1], *vectors, labels)
        assert found[i] == pytest.approx(float(expected), rel=1e-4)
        assert tokens[i] == len(target)


def test_sampled_text_does_not_depend_on_the_batch(workspace):
    config = ExplainConfig(max_new_tokens=12, temperature=1.0, seed=5)
    explainer = Explainer.from_workspace(workspace, config, "cpu")
    together = [r["explanation"] for r in explainer.explain([(0, 1), (3, 2)])]
    assert explainer.explain([(3, 2)])[0]["explanation"] == together[1]


def test_a_request_that_the_engine_refuses_becomes_a_failed_row_and_loses_no_other(workspace):
    explainer = Explainer.from_workspace(workspace, ExplainConfig(max_new_tokens=8), "cpu")
    expected = explainer.explain([(user, 1) for user in range(6)])
    explainer.vectors.embeddings["user"][[2, 5]] = float("nan")
    rows = explainer.explain([(user, 1) for user in range(6)])
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "failed"]
    assert rows[2]["error"].startswith("user_vector holds values that are not finite") and rows[2]["explanation"] == ""
    for user in (0, 1, 3, 4):
        assert rows[user]["explanation"] == expected[user]["explanation"]


def test_untuned_workspace_is_refused(tmp_path):
    with pytest.raises(WorkspaceError, match="run `xrec tune` first"):
        Explainer.from_workspace(Workspace(tmp_path))


def test_another_backbone_is_refused(tuned_workspace, tmp_path):
    import json
    import shutil

    shutil.copytree(tuned_workspace, tmp_path / "w")
    config = tmp_path / "w" / "tune" / "adapter" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"backbone_hash": "f" * 64}))
    with pytest.raises(WorkspaceError, match="tuned for the backbone"):
        Explainer.from_workspace(Workspace(tmp_path / "w"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"backbone_hash": "", "prompt_hash": "other"}))
    with pytest.raises(WorkspaceError, match="another prompt template"):
        Explainer.from_workspace(Workspace(tmp_path / "w"))
