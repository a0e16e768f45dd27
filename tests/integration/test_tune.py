"""Tuning on DeepSpeed in a group of two processes, against one plain PyTorch process; and the stage's refusals."""

import pytest
import torch

from tests.tiny_world import make_workspace, tune_config
from tests.zero_group import run_group
from xrec.config import ConfigError, TuneCompute, TuneConfig
from xrec.explainer.model import load_backbone
from xrec.explainer.tuning import LOSS, SHUFFLED_LOSS, Tuner, assemble
from xrec.explainer.tuning_engine import TorchEngine, load_checkpoint, save_checkpoint
from xrec.workspace import Workspace, WorkspaceError

# Tiny parameters would otherwise stay whole on every worker.
SHARD_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
SHORT = {"epochs": 2}
STOP = 8


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("world"), tied=True)


def single_process(workspace, changes, resume=None, save=None, save_at=0):
    """Losses by (step, name) and final weights of the plain engine; optionally resumed, or saved on the way."""
    config, folder = tune_config(**changes), workspace.path("backbone", "model")
    model, data = assemble(workspace, config, folder, *load_backbone(folder))
    state, progress, _ = load_checkpoint(resume) if resume else (None, None, None)
    engine, figures = TorchEngine(model, config, state), []

    def keep(progress):
        if progress.step == save_at:
            save.mkdir()
            save_checkpoint(save, engine.state(), progress, model.adapter.spec)

    Tuner(engine, data, config, log=lambda step, f: figures.append((step, f)), save=keep).run(progress)
    return by_step(figures), engine.state().weights


def by_step(figures):
    return {(step, name): value for step, named in figures for name, value in named.items()}


@pytest.fixture(scope="module")
def outcome(workspace, tmp_path_factory):
    """Every case in one group of two processes, because starting a group takes longer than most cases."""
    folder = tmp_path_factory.mktemp("group")
    single_process(workspace, SHORT, save=folder / "one_worker", save_at=5)
    cases = {
        "zero3": {"compute": {"zero_stage": 3, "deepspeed": SHARD_ALL}},
        "zero0": {**SHORT, "compute": {"zero_stage": 0}},
        "zero1 in pieces": {**SHORT, "compute": {"zero_stage": 1, "micro_batch": 2}},
        "zero2 checkpointed": {**SHORT, "compute": {"zero_stage": 2, "gradient_checkpointing": True}},
        "zero3 pieces checkpointed": {
            **SHORT,
            "compute": {"zero_stage": 3, "micro_batch": 3, "gradient_checkpointing": True, "deepspeed": SHARD_ALL},
            "stop": STOP,
            "save": str(folder / "two_workers"),
        },
        "zero2 resumed": {**SHORT, "compute": {"zero_stage": 2}, "resume": str(folder / "one_worker")},
        "zero3 resumed": {
            **SHORT,
            "compute": {"zero_stage": 3, "deepspeed": SHARD_ALL},
            "resume": str(folder / "one_worker"),
        },
        "zero3, a bad step": {
            **SHORT,
            "compute": {"zero_stage": 3, "deepspeed": SHARD_ALL},
            "bad": 4,
        },
        "zero0, a bad step": {**SHORT, "compute": {"zero_stage": 0}, "bad": 4},
        "zero1, a bad last step": {**SHORT, "compute": {"zero_stage": 1}, "bad": STOP - 1, "stop": STOP},
        "zero1, one step less": {**SHORT, "compute": {"zero_stage": 1}, "stop": STOP - 1},
        "bfloat16": {**SHORT, "precision": "bfloat16", "compute": {"zero_stage": 3, "deepspeed": SHARD_ALL}},
    }
    results = run_group(workspace, 2, list(cases.values()), folder)
    return dict(zip(cases, results, strict=True)), folder


@pytest.fixture(scope="module")
def short_reference(workspace):
    return single_process(workspace, SHORT)


def agree(found, expected, tolerance=1e-4):
    assert found and found.keys() <= expected.keys()
    assert max(abs(found[key] - expected[key]) for key in found) < tolerance


def same_weights(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0)


def test_zero3_on_two_workers_follows_one_process(workspace, outcome):
    figures, weights = single_process(workspace, {})
    for rank in outcome[0]["zero3"]:
        same_weights(rank["weights"], weights)
        found = by_step(rank["figures"])
        assert bool(found) == (rank is outcome[0]["zero3"][0]), "rank 0 alone keeps the log"
    found = by_step(outcome[0]["zero3"][0]["figures"])
    assert found.keys() == figures.keys() and sum("nll" in name for _, name in found) >= 20
    assert {name for _, name in found} >= {"warmup/nll_per_token", "train/nll_per_token", LOSS, SHUFFLED_LOSS}
    agree(found, figures)


def test_each_worker_holds_half_of_the_frozen_backbone(outcome):
    for name, ranks in outcome[0].items():
        sharded = name.startswith("zero3") or name == "bfloat16"
        for rank in ranks:
            assert rank["share"] == pytest.approx(0.5 if sharded else 1.0, abs=0.01), name


@pytest.mark.parametrize("case", ["zero0", "zero1 in pieces", "zero2 checkpointed"])
def test_other_stages_agree_too(outcome, short_reference, case):
    result = outcome[0][case][0]
    agree(by_step(result["figures"]), short_reference[0])
    same_weights(result["weights"], short_reference[1])


def test_a_step_that_is_not_finite_on_one_worker_is_skipped_on_all(outcome, short_reference):
    results = outcome[0]
    for case in ("zero3, a bad step", "zero0, a bad step"):
        found = by_step(results[case][0]["figures"])
        assert [key for key in found if "skipped" in key[1]] == [(5, "train/skipped")], case
        before = {key: value for key, value in found.items() if key[0] < 5}
        agree(before, short_reference[0])
        for rank in results[case]:
            assert all(torch.isfinite(value).all() for value in rank["weights"].values())
            same_weights(rank["weights"], results[case][0]["weights"], tolerance=0)
    # The skipped step leaves the weights where they were a step before.
    same_weights(results["zero1, a bad last step"][0]["weights"], results["zero1, one step less"][0]["weights"], 1e-6)


def test_bfloat16_stays_near(outcome, short_reference):
    result = outcome[0]["bfloat16"][0]
    agree(by_step(result["figures"]), short_reference[0], tolerance=0.05)
    assert any(not torch.equal(v, v.bfloat16().float()) for v in result["weights"].values()), "masters are float32"


def test_two_workers_resume_what_one_began(outcome, short_reference):
    for case in ("zero2 resumed", "zero3 resumed"):
        result = outcome[0][case][0]
        found = by_step(result["figures"])
        assert min(step for step, _ in found) == 6
        agree(found, short_reference[0])
        same_weights(result["weights"], short_reference[1])


def test_one_worker_resumes_what_two_began(workspace, outcome, short_reference):
    begun = by_step(outcome[0]["zero3 pieces checkpointed"][0]["figures"])
    assert max(step for step, _ in begun) == STOP
    agree(begun, short_reference[0])
    found, weights = single_process(workspace, SHORT, resume=outcome[1] / "two_workers")
    assert min(step for step, _ in found) == STOP + 1
    agree(found, short_reference[0])
    same_weights(weights, short_reference[1])


def test_a_checkpoint_holds_the_adapter_alone(outcome):
    files = {file.name: file for file in (outcome[1] / "two_workers").iterdir()}
    assert files.keys() == {"adapter.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"}
    state, _, spec = load_checkpoint(outcome[1] / "two_workers")
    assert state.steps == STOP and spec.hidden_size == 32
    assert state.moments.keys() == {f"{name}//{m}" for name in state.weights for m in ("exp_avg", "exp_avg_sq")}
    assert {name.split(".")[0] for name in state.weights} == {"user", "item"}


def test_the_stage_refuses_what_it_cannot_do(ray_session, workspace):
    from ray_jobs.tune import run, use_gpu

    with pytest.raises(ConfigError, match=r"a worker needs \{CPU: 2\}, 64 times, but the cluster can hold 2 at most"):
        use_gpu(TuneConfig(compute=TuneCompute(workers=64, cpus_per_worker=2)))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no node has or can get more than GPU: 0"):
            use_gpu(TuneConfig(compute=TuneCompute(workers=2, gpu=True)))
        assert use_gpu(TuneConfig(compute=TuneCompute(workers=2))) is False
    with pytest.raises(WorkspaceError, match="cannot see this process's memory"):
        run(Workspace("memory://tune-refused"), tune_config())
    with pytest.raises(ConfigError, match=r"tune\.backbone = 'no/such-model' cannot be loaded"):
        run(workspace, tune_config(backbone="no/such-model"), dry_run=True)


def test_a_dry_run_writes_nothing(workspace):
    from ray_jobs.tune import run

    before = workspace.files("tune")
    line = run(workspace, tune_config(), dry_run=True)
    assert "would train 3 experts a side on 40 rows (28 steps of 7, 1 worker, ZeRO-0)" in line
    assert workspace.files("tune") == before == []
