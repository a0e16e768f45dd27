"""Batch explanation on Ray Data, with a real cluster and a tiny model."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_jobs.explain import run
from tests.tiny_world import DIM, ITEMS, USERS
from xrec.config import ExplainCompute, ExplainConfig
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.explainer.explain import Explainer
from xrec.workspace import Workspace, WorkspaceError

COMPUTE = ExplainCompute(batch_size=4, rows_per_block=8, threads=1)


@pytest.fixture
def workspace(tuned_workspace, tmp_path):
    return Workspace(shutil.copytree(tuned_workspace, tmp_path / "w"))


def by_key(rows):
    return {(r["user"], r["item"], r["signal"]): r["explanation"] for r in rows}


def test_every_row_once_and_as_the_explainer_alone_writes_it(workspace, ray_session):
    config = ExplainConfig(controls=("shuffled", "off"), max_new_tokens=16, compute=COMPUTE)
    summary = run(workspace, config)
    rows = workspace.read_table("explain", "predictions").to_pylist()
    explanations = workspace.read_table("preprocess", "explanations").to_pylist()
    pairs = sorted((e["user"], e["item"]) for e in explanations if e["split"] == "test")
    assert f"explain: {3 * len(pairs)} explanations, 0 failed" in summary
    explainer = Explainer.from_workspace(workspace, config, "cpu")
    expected = [row for signal in ("true", "shuffled", "off") for row in explainer.explain(pairs, signal)]
    assert len(rows) == len(expected) == 3 * len(pairs)
    assert by_key(rows) == by_key(expected)
    assert len(set(by_key(rows).values())) > 1
    files = workspace.files("explain", "predictions")
    sizes = [pq.read_metadata(workspace.path("explain", "predictions", f)).num_rows for f in files]
    assert max(sizes) <= 8 and sum(sizes) == len(rows)
    assert not workspace.exists("explain", "work")
    assert workspace.manifest("explain")["fingerprint"]["config"]["engine"] == "hf"

    before = {f: os.stat(workspace.path("explain", "predictions", f)).st_mtime_ns for f in files}
    assert "already finished" in run(workspace, config)
    assert "already finished" in run(workspace, config.model_copy(update={"compute": ExplainCompute()}))
    assert {f: os.stat(workspace.path("explain", "predictions", f)).st_mtime_ns for f in before} == before
    with pytest.raises(WorkspaceError, match=r"config.max_words \(50, now 10\).*--force"):
        run(workspace, config.model_copy(update={"max_words": 10}))


def test_a_dry_run_writes_nothing(workspace):
    assert "would write 3 explanations" in run(workspace, ExplainConfig(limit=3), dry_run=True)
    assert not workspace.exists("explain")


def test_what_cannot_be_explained_is_kept_with_its_reason(workspace, ray_session, tmp_path):
    # Embeddings that lack the last user, as after an interrupted upgrade of the user table.
    stage = workspace.stage("embed", {}, force=True)
    Embeddings(torch.randn(3, USERS - 1, DIM), torch.randn(3, ITEMS, DIM)).save(
        workspace.path("embed", "embeddings.safetensors")
    )
    stage.finish({})
    users = ["u0", f"u{USERS - 1}", "nobody"]
    pq.write_table(pa.table({"user_id": users, "item_id": ["i0"] * 3}), tmp_path / "requests.parquet")
    config = ExplainConfig(requests=str(tmp_path / "requests.parquet"), max_new_tokens=8, compute=COMPUTE)
    summary = run(workspace, config)
    assert "2 explanations (1 pairs rejected), 1 failed" in summary
    rows = {r["user"]: r for r in workspace.read_table("explain", "predictions").to_pylist()}
    assert (rows[0]["status"], rows[0]["error"]) == ("ok", None)
    assert rows[USERS - 1]["status"] == "failed" and "unknown" in rows[USERS - 1]["error"]
    rejected = pq.read_table(workspace.path("explain", "rejected.parquet")).to_pylist()
    assert [r["error"] for r in rejected] == ["user nobody is not in the workspace"]
    metrics = workspace.read_json("explain", "metrics.json")
    assert (metrics["rows"], metrics["failed"], metrics["rejected"]) == (2, 1, 1)


def test_auto_keeps_the_engine_of_a_finished_stage(workspace):
    config = ExplainConfig(limit=3)
    settings = {name: value for name, value in config.identity().items() if name != "requests"}
    stage = workspace.stage("explain", settings | {"engine": "vllm"}, ["backbone", "embed", "preprocess", "tune"])
    stage.finish({})
    assert "already finished" in run(workspace, config)
    with pytest.raises(WorkspaceError, match=r"config.engine \('vllm', now 'hf'\).*--force"):
        run(workspace, config.model_copy(update={"engine": "hf"}))


def test_an_actor_that_cannot_start_ends_the_job_with_its_cause(workspace, ray_session):
    stage = workspace.stage("tune", {"backbone": None}, inputs=["preprocess", "embed", "backbone"], force=True)
    spec = AdapterSpec(embedding_dim=DIM, hidden_size=32, experts=2, backbone_hash="f" * 64)
    XRecAdapter(spec).save_pretrained(workspace.path("tune", "adapter"))
    stage.finish({})
    with pytest.raises(WorkspaceError, match=r"actor failed: .*tuned for the backbone .* with hash ffff.*run the same"):
        run(workspace, ExplainConfig(limit=3, compute=COMPUTE))


@pytest.fixture
def bucket(s3_options):
    """A bucket on a local S3-compatible server, known to this process and to Ray's workers by fsspec's own options."""
    root = Workspace("s3://xrec-test/w", s3_options)
    root.fs.mkdir("xrec-test")
    return root


def test_a_workspace_on_an_object_store(tuned_workspace, bucket, ray_session):
    bucket.fs.put(f"{tuned_workspace}/", bucket.root, recursive=True)
    bucket.fs.invalidate_cache()
    config = ExplainConfig(limit=10, max_new_tokens=8, compute=COMPUTE)
    assert run(bucket, config).startswith("explain: 10 explanations, 0 failed")
    assert len(bucket.read_table("explain", "predictions")) == 10
    assert "already finished" in run(bucket, config)


def test_memory_that_workers_cannot_see_is_refused(tuned_workspace):
    workspace = Workspace("memory://explain-job")
    workspace.fs.put(f"{tuned_workspace}/", workspace.root, recursive=True)
    with pytest.raises(WorkspaceError, match="memory://; use a folder"):
        run(workspace, ExplainConfig(limit=1))
