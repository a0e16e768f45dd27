"""Where the adapter's starting point comes from."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.tiny_world import make_workspace, tune_config
from xrec.explainer.model import load_backbone
from xrec.explainer.tuning import assemble, final_metrics
from xrec.explainer.tuning_engine import Progress
from xrec.workspace import Workspace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world") / "w"


@pytest.fixture(scope="module")
def workspace(folder):
    return make_workspace(folder, rows=100)


def start(workspace, **changes):
    path = workspace.path("backbone", "model")
    return assemble(workspace, tune_config(**changes), path, *load_backbone(path))


def test_alignment_moves_the_adapter_unless_switched_off(workspace):
    off, by_explanations, by_profiles = (
        start(workspace, align=a, adapter={"experts": 4}) for a in ("none", "explanations", "profiles")
    )
    weights = [m.adapter.item.expert_weight.detach() for m, _ in (off, by_explanations, by_profiles)]
    assert off[1].figures == {}
    # Ten items are too few to align; the world has them all in training, so nothing may move.
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_alignment_reads_no_text_of_held_out_pairs(folder, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("xrec.explainer.alignment._LEAST_NODES", 5)
    before, data = start(workspace, align="explanations")
    assert set(data.figures) == {"align/user/explained", "align/item/explained"}
    assert "align/item/explained" in final_metrics(Progress(), data)
    changed = tmp_path / "w"
    shutil.copytree(folder, changed)
    path = changed / "preprocess" / "explanations.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        if row["split"] != "train":
            row["explanation"] = "jazz jazz garden"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    after, _ = start(Workspace(changed), align="explanations")
    assert all(torch.equal(a, b) for a, b in zip(before.adapter.parameters(), after.adapter.parameters(), strict=True))
    rows[[r["split"] for r in rows].index("train")]["explanation"] = "jazz jazz garden"
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path)), path)
    control, _ = start(Workspace(changed), align="explanations")
    assert not torch.equal(before.adapter.item.expert_weight, control.adapter.item.expert_weight)
