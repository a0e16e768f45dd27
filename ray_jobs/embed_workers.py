"""LightGCN's training on Ray Train workers, each with a share of the graph; any of them may be lost on the way.

What a worker computes is `xrec.graph.distributed`'s business. The process that starts the workers deals the graph out,
writes each share into the stage's folder, and puts the workers' rows together in the end; a worker reads its own share
alone. So this process is what bounds the graph: it holds all training pairs, and in the end all embeddings.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.fs
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from safetensors.torch import load, save

from ray_jobs.embed_checkpoint import CHECKPOINTS, commit, load_part, save_part
from ray_jobs.resources import Demand, how_many_fit, require, section_demands, waiting
from xrec.config import EmbedConfig
from xrec.embeddings import Embeddings
from xrec.graph import InteractionSplits, TrainingResult
from xrec.graph.lightgcn import locality_order
from xrec.graph.partition import Ranges, Share, make_shares
from xrec.graph.state import TrainingState
from xrec.graph.training import check_training, relabel, run_epochs
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace, WorkspaceError

# Below `checkpoints`, which the stage removes when it has finished.
_SHARES, _RESULT, _RAY = "shares", "result", "ray"


def train_on_workers(workspace: Workspace, splits: InteractionSplits, config: EmbedConfig) -> TrainingResult:
    """`train_lightgcn` on `compute.workers` workers, going on from the last state in the stage's folder.

    Raises:
        WorkspaceError: the workspace is out of the workers' reach, or a worker failed more often than
            `compute.max_failures` allows.
        ConfigError: the cluster can never hold the workers asked for.
        ValueError: as `train_lightgcn`.
    """
    if not workspace.is_local and workspace.uri.startswith("memory:"):
        raise WorkspaceError(
            f"workspace {workspace.uri}: the workers of `embed` cannot see this process's memory; use a folder or an "
            "object store (s3://…), or set embed.compute.workers to 1"
        )
    demand = worker_demand(config)
    users, items = splits.trained_users, splits.trained_items
    names = ("dim", "layers", "batch_size", "max_epochs", "patience", "evaluate_every", "seed")
    check_training(splits.train, splits.val, users, items, **{name: getattr(config, name) for name in names})
    order = locality_order(splits.train, users, items)
    ranges = _write_shares(workspace, splits, order, config.compute.workers)
    with waiting([demand]):
        outcome = _fit(workspace, config, demand.bundles[0])
    embeddings = _assemble(workspace, ranges, order, config)
    return TrainingResult(embeddings, outcome["history"], outcome["best_epoch"], outcome["best_recall"])


def worker_demand(config: EmbedConfig) -> Demand:
    """Connect to Ray; what the workers ask of the cluster, with a GPU each where the settings and the cluster say so.

    Raises:
        ConfigError: the cluster can never hold them, not even after it has scaled up.
    """
    shape = require(section_demands("embed", config))
    if config.compute.gpu == "auto":
        compute = config.compute.model_copy(update={"gpu": True})
        (with_gpus,) = section_demands("embed", config.model_copy(update={"compute": compute}))
        fitting = how_many_fit(with_gpus, shape)
        if fitting is not None and fitting >= config.compute.workers:
            return with_gpus
    (demand,) = section_demands("embed", config)
    return demand


def _write_shares(
    workspace: Workspace, splits: InteractionSplits, order: tuple[torch.Tensor, torch.Tensor], workers: int
) -> Ranges:
    train, val = relabel(splits.train, order), relabel(splits.val, order)
    ranges = None
    for share in make_shares(train, val, splits.trained_users, splits.trained_items, workers):
        workspace.write_bytes(share.to_bytes(), "embed", CHECKPOINTS, _SHARES, f"{share.rank}.safetensors")
        ranges = share.ranges
    assert ranges is not None
    return ranges


def _fit(workspace: Workspace, config: EmbedConfig, resources: dict[str, float]) -> dict[str, Any]:
    compute, gpu = config.compute, resources.get("GPU", 0) > 0
    filesystem = None if workspace.is_local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(workspace.fs))
    workspace.remove("embed", CHECKPOINTS, _RAY)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"workspace": workspace.uri, "config": config.model_dump(mode="json"), "gpu": gpu},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=compute.workers, use_gpu=gpu, resources_per_worker=resources),
        # Ray Train restarts lost workers; states are kept by `embed_checkpoint`, for any number of them, one included.
        run_config=RunConfig(
            name=_RAY,
            storage_path=workspace.path("embed", CHECKPOINTS),
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=compute.max_failures),
        ),
    )
    try:
        outcome: Any = trainer.fit().return_value
    except WorkerGroupError as error:
        rank, cause = min(error.worker_failures.items(), key=lambda failure: failure[0])
        raise WorkspaceError(
            f"workspace {workspace.uri}: embed failed on worker {rank}: {str(cause).strip().splitlines()[-1]}; "
            "run `xrec embed` again to resume from the last checkpoint"
        ) from error
    except TrainingFailedError as error:
        raise WorkspaceError(f"workspace {workspace.uri}: embed failed: {error}; run `xrec embed` again") from error
    return outcome


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs; it writes its rows of the result, and worker 0 the log.

    Args:
        settings: `workspace` (URI), `config` (of the stage, as JSON values), `gpu` (whether each worker has one).

    Returns:
        `history`, `best_epoch` and `best_recall`.
    """
    from xrec.graph.distributed import PartitionedTrainer

    workspace, config = Workspace(settings["workspace"]), EmbedConfig.model_validate(settings["config"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    if not settings["gpu"]:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(config.compute.threads or max(1, cores // context.get_local_world_size()))
    share = Share.from_bytes(workspace.read_bytes("embed", CHECKPOINTS, _SHARES, f"{rank}.safetensors"))
    names = ("dim", "layers", "batch_size", "learning_rate", "weight_decay", "seed")
    trainer = PartitionedTrainer(share, **{name: getattr(config, name) for name in names}, device=get_device())
    resume = load_part(workspace, share.ranges, rank)

    def keep(state: TrainingState) -> None:
        save_part(workspace, state, rank)
        torch.distributed.barrier()
        if rank == 0:
            commit(workspace, state, share.ranges)

    with _log(workspace, resume.epoch if resume else 0, rank == 0) as record:
        state = run_epochs(
            trainer,
            share.val,
            resume,
            max_epochs=config.max_epochs,
            patience=config.patience,
            evaluate_every=config.evaluate_every,
            on_epoch=record,
            on_checkpoint=keep,
            checkpoint_seconds=config.compute.checkpoint_seconds,
        )
    for layer, rows in enumerate(trainer.layers_of_best(state)):
        workspace.write_bytes(save({"rows": rows.contiguous()}), "embed", *_result_path(rank, layer))
    return {"history": state.history, "best_epoch": state.best_epoch, "best_recall": state.best_recall}


@contextmanager
def _log(workspace: Workspace, epoch: int, first: bool) -> Iterator[Any]:
    if not first:
        yield None
        return
    with MetricLogger(workspace, "embed", keep_below=epoch) as logger:
        yield lambda entry: logger.log(int(entry["epoch"]), **{k: v for k, v in entry.items() if k != "epoch"})


def _assemble(
    workspace: Workspace, ranges: Ranges, order: tuple[torch.Tensor, torch.Tensor], config: EmbedConfig
) -> Embeddings:
    """All workers' rows of all layers, in the caller's order; one file at a time beside the whole."""
    user, item = (torch.empty(config.layers + 1, bounds[-1], config.dim) for bounds in (ranges.users, ranges.items))
    places = [ranks.argsort() for ranks in order]  # the caller's index of each node in the order of training
    for rank in range(ranges.workers):
        owned = ranges.of(rank)
        for layer in range(config.layers + 1):
            rows = load(workspace.read_bytes("embed", *_result_path(rank, layer)))["rows"]
            parts = rows.split([own.stop - own.start for own in owned])
            for side, place, own, part in zip((user, item), places, owned, parts, strict=True):
                side[layer, place[own]] = part
    return Embeddings(user, item)


def _result_path(rank: int, layer: int) -> tuple[str, ...]:
    return CHECKPOINTS, _RESULT, str(rank), f"{layer}.safetensors"
