"""The stage `explain` with vLLM engines as Ray Data's actors."""

import shutil
import signal
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_world import DIM, ITEMS, make_workspace
from tests.vllm.tiny_backbones import HIDDEN, save_backbone
from xrec.config import ExplainConfig
from xrec.workspace import Workspace, WorkspaceError

pytestmark = pytest.mark.timeout(900)

ARGUMENTS = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1"}


def settings(**changes) -> ExplainConfig:
    compute = {
        "rows_per_block": 8,
        "threads": 1,
        "engine_arguments": ARGUMENTS,
        "engine_environment": ENVIRONMENT,
    } | changes.pop("compute", {})
    return ExplainConfig.model_validate({"engine": "vllm", "compute": compute} | changes)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A workspace as `xrec tune` leaves it, with a backbone of a size that vLLM's attention runs."""
    import torch

    from xrec.explainer.adapter import AdapterSpec, XRecAdapter

    workspace = make_workspace(tmp_path_factory.mktemp("tuned") / "w")
    stage = workspace.stage("backbone", {}, force=True)
    save_backbone(workspace.path("backbone", "model"), "llama-grouped-query")
    stage.finish({})
    torch.manual_seed(0)
    stage = workspace.stage("tune", {"backbone": None}, inputs=["preprocess", "embed", "backbone"])
    XRecAdapter(AdapterSpec(embedding_dim=DIM, hidden_size=HIDDEN, experts=2)).save_pretrained(
        workspace.path("tune", "adapter")
    )
    stage.finish({})
    return Path(workspace.path())


@pytest.fixture
def workspace(tuned, tmp_path) -> Workspace:
    return Workspace(shutil.copytree(tuned, tmp_path / "w"))


def by_key(rows):
    return {(row["user"], row["item"], row["signal"]): row["explanation"] for row in rows}


def as_hugging_face_writes(workspace: Workspace, config: ExplainConfig, pairs, signals):
    from xrec.explainer.explain import Explainer

    plain = ExplainConfig.model_validate(config.model_dump(exclude={"engine", "compute"}))
    explainer = Explainer.from_workspace(workspace, plain, "cpu")
    return by_key([row for signal in signals for row in explainer.explain(pairs, signal)])


def engine_actor() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        if process.is_running() and "MapWorker(MapBatches(ExplainActor))" in " ".join(process.cmdline()):
            return process
    return None


class Killer(threading.Thread):
    """Kills the engine's actor once it has written some blocks, and remembers the processes that it had started."""

    def __init__(self, workspace: Workspace, blocks: int):
        super().__init__(daemon=True)
        self.workspace, self.blocks = workspace, blocks
        self.children: list[psutil.Process] = []
        self.written = 0

    def run(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            self.written = len(self.workspace.files("explain", "predictions"))
            actor = engine_actor() if self.written >= self.blocks else None
            if actor is not None:
                self.children = actor.children(recursive=True)
                actor.send_signal(signal.SIGKILL)
                return
            time.sleep(0.02)


def test_a_killed_engine_loses_and_doubles_no_row_and_leaves_no_process(ray_session, workspace, tmp_path):
    from ray_jobs.explain import run

    pairs = [(user, item) for user in range(8) for item in range(ITEMS)]
    pq.write_table(pa.table({"user": [u for u, _ in pairs], "item": [i for _, i in pairs]}), tmp_path / "r.parquet")
    config = settings(requests=str(tmp_path / "r.parquet"), controls=("shuffled", "off"), max_new_tokens=40)
    killer = Killer(workspace, blocks=4)
    killer.start()
    assert f"explain: {3 * len(pairs)} explanations, 0 failed" in run(workspace, config)
    killer.join()
    blocks = workspace.files("explain", "predictions")
    assert 4 <= killer.written < len(blocks), "the job was over before its actor could be killed"
    assert killer.children, "the engine had no process of its own"
    _, alive = psutil.wait_procs(killer.children, timeout=20)
    assert not alive, f"orphans: {[process.cmdline() for process in alive]}"
    rows = workspace.read_table("explain", "predictions").to_pylist()
    assert len(rows) == 3 * len(pairs)
    expected = as_hugging_face_writes(workspace, config, pairs, ("true", "shuffled", "off"))
    assert by_key(rows) == expected
    assert len(set(expected.values())) > len(pairs) / 2
    assert any(expected[u, i, "true"] != expected[u, i, "off"] for u, i in pairs)
    # What is finished stays so where there is no GPU and `auto` would choose the other engine.
    assert "already finished" in run(workspace, config.model_copy(update={"engine": "auto"}))


@pytest.mark.slow
def test_an_engine_that_cannot_start_ends_the_stage_with_the_cause_in_its_worker(ray_session, workspace):
    from ray_jobs.explain import run

    # More than there is: known when the worker has loaded the model.
    arguments = ARGUMENTS | {"kv_cache_memory_bytes": 2**50}
    config = settings(limit=8, compute={"engine_arguments": arguments, "engine_environment": {}})
    with pytest.raises(WorkspaceError, match=r"less than requested memory for kv \(1048576.0 GiB\)"):
        run(workspace, config)


@pytest.mark.slow
def test_engines_of_two_workers(ray_session, workspace):
    import ray

    from ray_jobs.explain import run

    config = settings(limit=8, max_new_tokens=16, compute={"tensor_parallel_size": 2, "cpus_per_actor": 2})
    assert "explain: 8 explanations, 0 failed" in run(workspace, config)
    rows = workspace.read_table("explain", "predictions").to_pylist()
    pairs = [(row["user"], row["item"]) for row in rows]
    assert by_key(rows) == as_hugging_face_writes(workspace, config, pairs, ("true",))
    groups = ray.util.placement_group_table().values()
    assert [(list(group["bundles"].values()), group["state"]) for group in groups] == [([{"CPU": 2.0}], "REMOVED")]
    assert ray.available_resources()["CPU"] == 4
