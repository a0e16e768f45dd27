"""The stage `embed`: LightGCN embeddings of every user and item, zero-shot ones folded in.

What LightGCN is and how it is trained is `xrec.graph`'s business. One process on one device trains on a graph of
millions of interactions; `embed_workers.py` deals a larger one out to several, with the same embeddings. Loading,
folding in and the final figures are this process's in either case, and bound what it can take.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ray_jobs.devices import chosen_device, limited_threads
from ray_jobs.embed_checkpoint import CHECKPOINTS, commit, latest_epoch, load_part, save_part
from xrec.config import EmbedConfig
from xrec.embeddings import Embeddings
from xrec.graph import InteractionSplits, evaluate_ranking, fold_in_zero_shot, train_lightgcn
from xrec.graph.partition import Ranges
from xrec.graph.state import TrainingState
from xrec.graph.training import STOPPING_METRIC, TrainingResult
from xrec.metric_logging import MetricLogger, read_metrics
from xrec.workspace import StageRun, Workspace

EMBEDDINGS = "embeddings.safetensors"
_LOCAL_SECONDS, _REMOTE_SECONDS = 1.0, 15.0


def run(workspace: Workspace, config: EmbedConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Train on the workspace's training interactions and write `embed/embeddings.safetensors`.

    An interrupted run, whether a worker or this process was killed, goes on from its last checkpoint, at any number of
    workers, and ends with the embeddings it would have had.

    Args:
        workspace: with the stage `preprocess` finished.
        config: the stage's settings.
        force: discard what is there and start anew.
        dry_run: say what would be done; write nothing.

    Returns:
        One line that says what was written where.

    Raises:
        WorkspaceError: `preprocess` has not finished, `embed` was made from something else, or a worker failed more
            often than `compute.max_failures` allows.
        ConfigError: the cluster can never hold the workers asked for.
        ValueError: a split is empty, or the tables contradict each other.
    """
    target = workspace.path("embed", EMBEDDINGS)
    if dry_run:
        splits = _load(workspace)
        workers = f", {config.compute.workers} workers" if config.compute.workers > 1 else ""
        return (
            f"embed: would train LightGCN ({config.layers} layers, dim {config.dim}{workers}) on "
            f"{splits.train.shape[1]:,} interactions of {splits.trained_users:,} users and "
            f"{splits.trained_items:,} items -> {target}"
        )
    stage = workspace.stage("embed", config.identity(), inputs=["preprocess"], force=force)
    if stage.done:
        return f"embed: already finished ({target})"
    splits = _load(workspace)
    with limited_threads(config.compute.threads):
        train = _train_on_workers if config.compute.workers > 1 else _train
        result = train(workspace, splits, config)
        embeddings = fold_in_zero_shot(result.embeddings, splits)
        metrics = evaluate_splits(
            embeddings, splits, config.top_k, chosen_device(config.compute.device, "embed.compute.device")
        )
    metrics |= {"epochs": len(result.history), "best_epoch": result.best_epoch}
    metrics |= {"seconds_per_epoch": sum(e["seconds"] for e in result.history) / len(result.history)}
    _write(stage, embeddings, result, config)
    workspace.remove("embed", CHECKPOINTS)
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


def _train_on_workers(workspace: Workspace, splits: InteractionSplits, config: EmbedConfig) -> TrainingResult:
    from ray_jobs.embed_workers import train_on_workers

    with _progress(latest_epoch(workspace), config.max_epochs) as show, _followed(workspace, show):
        return train_on_workers(workspace, splits, config)


def _train(workspace: Workspace, splits: InteractionSplits, config: EmbedConfig) -> TrainingResult:
    whole = Ranges((0, splits.trained_users), (0, splits.trained_items))
    resume = load_part(workspace, whole, 0)

    def save(state: TrainingState) -> None:
        save_part(workspace, state, 0)
        commit(workspace, state, whole)

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
            bar.update(task, completed=int(entry["epoch"]) + 1, description=f"loss {entry['loss']:.4f}{recall}")

        yield show


@contextmanager
def _followed(workspace: Workspace, show: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Show the epochs that workers log, on a terminal, while the block runs."""
    if not Console(stderr=True).is_terminal:
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_LOCAL_SECONDS if workspace.is_local else _REMOTE_SECONDS):
            for line in read_metrics(workspace, "embed")[-1:]:
                show(line | {"epoch": line["step"]})

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    from ray_jobs.job import main

    main("embed", run)
