"""Runs tuning cases in one group of processes with DeepSpeed, without Ray: for the tests of `ray_jobs/`."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from tests.ports import free_port
from tests.tiny_world import tune_config
from xrec.explainer.loading import backbone_folder
from xrec.explainer.tuning import Tuner, assemble, dtype_of
from xrec.explainer.tuning_engine import Progress, load_checkpoint, save_checkpoint
from xrec.workspace import Workspace


def run_group(
    workspace: Workspace, world: int, cases: list[dict[str, Any]], folder: Path
) -> list[list[dict[str, Any]]]:
    """What each rank saw in each case: `result[case][rank]` with losses, validations, share of the backbone, weights.

    A case is changes to `tune_config`, and optionally `stop` (end after so many steps), `save` and `resume` (folders),
    and `bad` (a step, counted from 0, whose gradient is infinite on the last worker).
    """
    port = free_port()
    mp.spawn(_worker, args=(world, port, workspace.uri, cases, str(folder)), nprocs=world)
    return [
        [torch.load(folder / f"{case}-{rank}.pt", weights_only=True) for rank in range(world)]
        for case in range(len(cases))
    ]


def _worker(rank: int, world: int, port: int, uri: str, cases: list[dict[str, Any]], folder: str) -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    from ray_jobs import deepspeed_engine

    deepspeed_engine.start_processes(gpu=False)
    for number, case in enumerate(cases):
        torch.save(_run(Workspace(uri), dict(case)), f"{folder}/{number}-{rank}.pt")
    torch.distributed.destroy_process_group()


def _run(workspace: Workspace, case: dict[str, Any]) -> dict[str, Any]:
    from ray_jobs.deepspeed_engine import DeepSpeedEngine, input_embeddings, load_frozen_backbone

    stop, save, resume, bad = (case.pop(name, None) for name in ("stop", "save", "resume", "bad"))
    config, place = tune_config(**case), torch.device("cpu")
    dtype = dtype_of(config, place)
    with backbone_folder(workspace, config.backbone) as path:
        backbone, tokenizer = load_frozen_backbone(path, config, dtype, place)
        model, data = assemble(workspace, config, path, backbone, tokenizer, input_embeddings(backbone))
    state, progress, spec = load_checkpoint(resume) if resume else (None, Progress(), model.adapter.spec)
    engine = DeepSpeedEngine(model, config, dtype, state)
    figures: list[tuple[int, dict[str, float]]] = []
    if bad is not None and engine.rank == engine.world - 1:
        model.adapter.user.register_forward_hook(lambda module, args, output: _poison(output, engine.steps == bad))
    tuner = Tuner(engine, data, config, config.compute.micro_batch, lambda step, f: figures.append((step, f)))
    if stop:
        tuner.steps, tuner.config = stop, config.model_copy(update={"validate_every": 10**6})
        tuner.data.validation = []
    progress = tuner.run(progress)
    state = engine.state()
    if save and engine.rank == 0:
        Path(save).mkdir()
        progress.finished = False
        save_checkpoint(save, state, progress, spec)
    share = engine.frozen_share()
    engine.close()
    return {"figures": figures, "weights": state.weights, "share": share, "best": progress.best}


def _poison(vectors: torch.Tensor, now: bool) -> torch.Tensor:
    if now and vectors.requires_grad:
        vectors.register_hook(lambda gradient: gradient / 0.0)
    return vectors
