"""The stage `embed`: LightGCN embeddings of every user and item, zero-shot ones folded in.

What LightGCN is and how it is trained is `xrec.graph`'s business. One process on one device: a graph of millions of
interactions fits, and propagation over it is bound by memory, not by the number of machines.
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ray_jobs.devices import chosen_device, limited_threads
from xrec.config import EmbedConfig
from xrec.embeddings import Embeddings
from xrec.graph import InteractionSplits, evaluate_ranking, fold_in_zero_shot, train_lightgcn
from xrec.graph.state import TrainingState
from xrec.graph.training import STOPPING_METRIC, TrainingResult
from xrec.metric_logging import MetricLogger
from xrec.workspace import StageRun, Workspace

EMBEDDINGS = "embeddings.safetensors"
_CHECKPOINT = ("checkpoints", "state.safetensors")


def run(workspace: Workspace, config: EmbedConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Train on the workspace's training interactions and write `embed/embeddings.safetensors`.

    An interrupted run goes on from its last checkpoint and ends with the embeddings it would have had.

    Args:
        workspace: with the stage `preprocess` finished.
        config: the stage's settings.
        force: discard what is there and start anew.
        dry_run: say what would be done; write nothing.

    Returns:
        One line that says what was written where.

    Raises:
        WorkspaceError: `preprocess` has not finished, or `embed` was made from something else.
        ValueError: a split is empty, or the tables contradict each other.
    """
    target = workspace.path("embed", EMBEDDINGS)
    if dry_run:
        splits = _load(workspace)
        return (
            f"embed: would train LightGCN ({config.layers} layers, dim {config.dim}) on {splits.train.shape[1]:,} "
            f"interactions of {splits.trained_users:,} users and {splits.trained_items:,} items -> {target}"
        )
    stage = workspace.stage("embed", config.identity(), inputs=["preprocess"], force=force)
    if stage.done:
        return f"embed: already finished ({target})"
    splits = _load(workspace)
    with limited_threads(config.compute.threads):
        result = _train(workspace, splits, config)
        embeddings = fold_in_zero_shot(result.embeddings, splits)
        metrics = evaluate_splits(
            embeddings, splits, config.top_k, chosen_device(config.compute.device, "embed.compute.device")
        )
    metrics |= {"epochs": len(result.history), "best_epoch": result.best_epoch}
    metrics |= {"seconds_per_epoch": sum(e["seconds"] for e in result.history) / len(result.history)}
    _write(stage, embeddings, result, config)
    workspace.remove("embed", _CHECKPOINT[0])
    stage.finish(metrics)
    return (
        f"embed: {splits.users:,} users, {splits.items:,} items, {len(result.history)} epochs, "
        f"val recall@20 {metrics['val/recall@20']:.4f}, test recall@20 "
        f"{metrics.get('test/recall@20', float('nan')):.4f} -> {target}"
    )


def evaluate_splits(
    embeddings: Embeddings, splits: InteractionSplits, top_k: tuple[int, ...], device: str = "cpu"
) -> dict[str, float]:
    """The final ranking figures, averaged over users; a group without test interactions has none.

    `val/*` and `test/*`: trained users and items, training positives masked, so that the figures compare with those
    of other work (validation positives remain candidates). `test_without_val/*` masks these too.
    `zero_shot_users/*`: folded-in users, trained items as candidates, their known interactions masked.
    `zero_shot_items/*`: trained users finding folded-in items among all items.
    """
    user, item = embeddings.user_mean().to(device), embeddings.item_mean().to(device)
    trained = item[: splits.trained_items]
    test = splits.trained_only(splits.test)
    new_user, new_item = splits.test[0] >= splits.trained_users, splits.test[1] >= splits.trained_items
    known = torch.cat([splits.train, splits.fold_in], 1)
    known_of_trained = known[:, known[1] < splits.trained_items]
    groups = {
        "val": (trained, splits.val, splits.train),
        "test": (trained, test, splits.train),
        "test_without_val": (trained, test, torch.cat([splits.train, splits.val], 1)),
        "zero_shot_users": (trained, splits.test[:, new_user & ~new_item], known_of_trained),
        "zero_shot_items": (item, splits.test[:, ~new_user & new_item], known),
    }
    metrics = {}
    for name, (candidates, relevant, masked) in groups.items():
        if relevant.shape[1]:
            ranking = evaluate_ranking(user, candidates, relevant.to(device), masked.to(device), top_k)
            metrics |= {f"{name}/{figure}": value for figure, value in ranking.mean().items()}
            metrics[f"{name}/users"] = len(ranking.users)
    return metrics


def _load(workspace: Workspace) -> InteractionSplits:
    tables = (workspace.read_table("preprocess", name) for name in ("users", "items_index", "interactions"))
    return InteractionSplits.from_tables(*tables)


def _train(workspace: Workspace, splits: InteractionSplits, config: EmbedConfig) -> TrainingResult:
    resume = None
    if workspace.exists("embed", *_CHECKPOINT):
        resume = TrainingState.from_bytes(workspace.read_bytes("embed", *_CHECKPOINT))

    def save(state: TrainingState) -> None:
        workspace.write_bytes(state.to_bytes(), "embed", *_CHECKPOINT)

    first = resume.epoch if resume else 0
    with MetricLogger(workspace, "embed", keep_below=first) as logger, _progress(first, config.max_epochs) as show:

        def record(entry: dict[str, float]) -> None:
            logger.log(int(entry["epoch"]), **{k: v for k, v in entry.items() if k != "epoch"})
            show(entry)

        settings = config.model_dump(exclude={"compute", "top_k"})
        return train_lightgcn(
            splits.train,
            splits.val,
            splits.trained_users,
            splits.trained_items,
            **settings,
            device=chosen_device(config.compute.device, "embed.compute.device"),
            on_epoch=record,
            resume=resume,
            on_checkpoint=save,
            checkpoint_seconds=config.compute.checkpoint_seconds,
        )


def _write(stage: StageRun, embeddings: Embeddings, result: TrainingResult, config: EmbedConfig) -> None:
    embeddings.metadata |= {
        "model": "LightGCN",
        "layers": str(config.layers),
        "dim": str(config.dim),
        "best_epoch": str(result.best_epoch),
        STOPPING_METRIC: f"{result.best_recall:.6f}",
    }
    with tempfile.TemporaryDirectory(prefix="xrec-embed-") as folder:
        local = Path(folder) / EMBEDDINGS
        embeddings.save(local)
        stage.upload(local, EMBEDDINGS)


@contextmanager
def _progress(first: int, last: int):
    columns = (TextColumn("embed"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("epochs", total=last, completed=first)

        def show(entry: dict[str, float]) -> None:
            recall = f", val recall@20 {entry[STOPPING_METRIC]:.4f}" if STOPPING_METRIC in entry else ""
            bar.update(task, advance=1, description=f"loss {entry['loss']:.4f}{recall}")

        yield show


if __name__ == "__main__":
    from ray_jobs.job import main

    main("embed", run)
