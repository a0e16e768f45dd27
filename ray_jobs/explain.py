"""Stage `explain`: batches of pairs to the table `predictions`, on Ray Data, every row exactly once.

A killed run goes on where it stopped: Ray Data records the ids of the rows of every file that it has written. What an
explanation is, is `xrec.explainer`'s business.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

from ray_jobs.explain_workers import ID, ExplainActor, PredictionFiles
from ray_jobs.runtime import cluster_limit, start_ray
from xrec.config import ExplainCompute, ExplainConfig
from xrec.explainer.requests import Requests, check_complete, collect_requests, hash_requests, prediction_metrics
from xrec.fingerprint import hash_of
from xrec.metric_logging import MetricLogger
from xrec.workspace import StageRun, Workspace, WorkspaceError

_WORK = "work"
# Beside the engine's actors: one CPU for the tasks that read and write, and one for the actor that a resumed run
# filters its requests with. Without them Ray Data waits for ever.
_FURTHER_CPUS = 2
_FURTHER_MEMORY = CheckpointConfig.CHECKPOINT_ACTOR_MEMORY_BYTES


def run(workspace: Workspace, config: ExplainConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Explain the requested pairs; returns the summary line.

    Pairs that the workspace does not know are listed in `explain/rejected.parquet`; pairs that it could not explain are
    rows of `predictions` whose status is `failed` and whose error says why.

    Raises:
        ValueError: the requests are unreadable, or hold no known pair.
        WorkspaceError: an earlier stage is missing, the folder holds something else, the machine is too small for the
            actors that are asked for, or every row failed.
    """
    if dry_run:
        requests = collect_requests(workspace, config)
        return f"explain: would write {_counted(requests)} to {workspace}/explain/predictions"
    # A request file's contents, not its path, are part of the stage's identity.
    settings = {name: value for name, value in config.identity().items() if name != "requests"}
    external = {"requests": hash_requests(config.requests)} if config.requests else {}
    stage = workspace.stage("explain", settings, _inputs(workspace), external, force=force)
    if stage.done:
        return f"explain: already finished ({workspace}/explain/predictions)"
    _refuse_private_memory(workspace)
    requests = collect_requests(workspace, config)
    started = time.perf_counter()
    earlier = _rows_done(workspace, _checkpoint(stage))
    explain_requests(workspace, config, requests, stage)
    metrics = _finish(stage, config, requests, time.perf_counter() - started, earlier)
    return (
        f"explain: {_counted(requests)}, {metrics['failed']:,} failed, "
        f"{metrics['rows_per_second']:.1f} rows a second -> {workspace}/explain/predictions"
    )


def explain_requests(workspace: Workspace, config: ExplainConfig, requests: Requests, stage: StageRun) -> None:
    """Write the predictions of the accepted requests that have not been written yet."""
    compute = config.compute
    start_ray(max(os.cpu_count() or 1, cpus_needed(compute)))
    check_resources(compute, cluster_limit())
    workspace.write_bytes(_parquet(requests.accepted), "explain", _WORK, "requests.parquet")
    filesystem = _arrow_filesystem(workspace)
    context = DataContext.get_current().copy()
    # Kept until the stage has finished: a run that dies between its last row and its manifest must not start over.
    context.checkpoint_config = CheckpointConfig(
        ID,
        workspace.path("explain", _checkpoint(stage)),
        delete_checkpoint_on_success=False,
        override_filesystem=filesystem,
    )
    context.enable_progress_bars = sys.stderr.isatty()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    least, most = compute.actors
    with DataContext.current(context):
        # Read from a file, because Ray Data filters the rows that are done from files only; in blocks, because a block
        # is what is written, and recorded as done, together.
        rows = ray.data.read_parquet(workspace.path("explain", _WORK, "requests.parquet"), filesystem=filesystem)
        rows = rows.repartition(target_num_rows_per_block=compute.rows_per_block)
        rows = rows.map_batches(
            ExplainActor,
            batch_size=min(compute.batch_size, compute.rows_per_block),
            compute=ActorPoolStrategy(min_size=least, max_size=most, initial_size=least),
            fn_constructor_args=(workspace, config, *_placement(compute)),
            num_cpus=compute.cpus_per_actor,
            num_gpus=compute.gpus_per_actor or None,
        )
        # Appending, because replacing would delete what an earlier run has recorded as done.
        rows.write_datasink(
            PredictionFiles(workspace.path("explain", "predictions"), filesystem=filesystem, file_format="parquet")
        )


def cpus_needed(compute: ExplainCompute) -> int:
    """Logical CPUs without which the batch would wait for ever."""
    return math.ceil(compute.actors[0] * compute.cpus_per_actor) + _FURTHER_CPUS


def check_resources(compute: ExplainCompute, resources: Mapping[str, float]) -> None:
    """Refuse what Ray would wait for without end.

    Raises:
        WorkspaceError: the cluster has too few CPUs or GPUs, or too little memory.
    """
    needs = {
        "CPU": float(cpus_needed(compute)),
        "GPU": compute.actors[0] * compute.gpus_per_actor,
        "memory": float(_FURTHER_MEMORY),
    }
    for name, needed in needs.items():
        if resources.get(name, 0.0) < needed:
            raise WorkspaceError(
                f"explain needs {name} {needed:g} ({compute.actors[0]} actors, and what reads, filters and writes), "
                f"but Ray has {resources.get(name, 0.0):g}; lower explain.compute.actors or cpus_per_actor / "
                "gpus_per_actor, or give Ray more"
            )


def _placement(compute: ExplainCompute) -> tuple[str, int]:
    """Device and threads of an actor."""
    threads = compute.threads or max(1, (os.cpu_count() or 1) // compute.actors[1])
    return ("cuda" if compute.gpus_per_actor else "cpu"), threads


def _finish(stage: StageRun, config: ExplainConfig, requests: Requests, seconds: float, earlier: int) -> dict:
    workspace = stage.workspace
    predictions = workspace.read_table("explain", "predictions")
    check_complete(requests.accepted, predictions)
    metrics = prediction_metrics(predictions, config.max_words)
    if metrics["failed"] == metrics["rows"]:
        raise WorkspaceError(
            f"explain: all {metrics['rows']:,} rows failed; the first: {predictions['error'][0]}. "
            "Mend the cause and rebuild with `xrec explain --force`"
        )
    metrics |= {
        "rejected": len(requests.rejected),
        "repeated": requests.repeated,
        "seconds": seconds,
        "rows_per_second": (metrics["rows"] - earlier) / seconds,
    }
    if len(requests.rejected):
        workspace.write_bytes(_parquet(requests.rejected), "explain", "rejected.parquet")
    with MetricLogger(workspace, "explain") as log:
        log.log(int(metrics["rows"]), **metrics)
    stage.finish(metrics, exclude=(f"{_WORK}/",))
    workspace.remove("explain", _WORK)
    return metrics


def _checkpoint(stage: StageRun) -> str:
    # A folder of its own for each fingerprint: never resumed by other settings, whatever happens to the rest.
    return f"{_WORK}/checkpoint-{hash_of(stage.fingerprint)[:16]}"


def _rows_done(workspace: Workspace, checkpoint: str) -> int:
    """How many rows an earlier, killed run has recorded as done."""
    done = [f for f in workspace.files("explain", checkpoint) if not f.endswith(".pending.parquet")]
    return sum(_rows(workspace, checkpoint, file) for file in done)


def _rows(workspace: Workspace, *parts: str) -> int:
    with workspace.fs.open(workspace.path("explain", *parts), "rb") as file:
        return pq.read_metadata(file).num_rows


def _inputs(workspace: Workspace) -> list[str]:
    """The finished stages that explanations follow from: those that tuning followed from, and its own."""
    tuned = workspace.manifest("tune")["fingerprint"]["inputs"]
    return sorted({"preprocess", "embed", "tune"} | {name for name in tuned if workspace.is_finished(name)})


def _refuse_private_memory(workspace: Workspace) -> None:
    if workspace.fs.protocol == "memory":
        raise WorkspaceError(
            f"workspace {workspace}: explain runs in several processes, which do not share memory://; use a folder or "
            "an object store"
        )


def _arrow_filesystem(workspace: Workspace) -> pyarrow.fs.FileSystem:
    if workspace.is_local:
        return pyarrow.fs.LocalFileSystem()
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(workspace.fs))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _counted(requests: Requests) -> str:
    rejected = f" ({len(requests.rejected):,} pairs rejected)" if len(requests.rejected) else ""
    return f"{len(requests.accepted):,} explanations{rejected}"


if __name__ == "__main__":
    from ray_jobs.job import main

    main("explain", run)
