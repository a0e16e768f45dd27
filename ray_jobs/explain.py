"""Stage `explain`: batches of pairs to the table `predictions`, on Ray Data, every row exactly once.

The requests are cut into blocks, and a block's result is one file: a killed run goes on with the blocks that have none.
What an explanation is, is `xrec.explainer`'s business; who does the blocks is that of `explain_actors.py`.
"""

import tempfile
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_jobs.explain_actors import write_blocks
from ray_jobs.explain_progress import ExplainProgress
from ray_jobs.resources import require, section_demands, waiting
from xrec.config import ExplainConfig
from xrec.explainer.adapter import XRecAdapter
from xrec.explainer.engine_choice import check_engine, choose_engine
from xrec.explainer.loading import backbone_dtype, load_adapter, load_embeddings
from xrec.explainer.requests import (
    KEY,
    MEASURED,
    STAGE,
    TABLE,
    WORK,
    Requests,
    check_complete,
    collect_requests,
    done_blocks,
    hash_requests,
    prediction_metrics,
    write_requests,
)
from xrec.explainer.vectors import SIDES, AdaptedVectors, write_vectors
from xrec.fingerprint import hash_of
from xrec.metric_logging import MetricLogger
from xrec.workspace import MANIFEST, STARTED, StageRun, Workspace, WorkspaceError


def run(workspace: Workspace, config: ExplainConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Explain the requested pairs; returns the summary line.

    Pairs that the workspace does not know are listed in `explain/rejected.parquet`; pairs that it could not explain are
    rows of `predictions` whose status is `failed` and whose error says why.

    Raises:
        ConfigError: the engine cannot do what is asked of it, or is not installed.
        ValueError: the requests are unreadable, or hold no known pair.
        WorkspaceError: an earlier stage is missing, the folder holds something else, the cluster is too small for the
            actors that are asked for, an actor failed, or every row failed.
    """
    if dry_run:
        requests = collect_requests(workspace, config)
        return f"explain: would write {_counted(requests)} to {workspace}/explain/predictions"
    inputs = _inputs(workspace)
    adapter, _ = load_adapter(workspace)
    earlier = None if force else _earlier_engine(workspace)
    engine = earlier if earlier and config.engine == "auto" else choose_engine(workspace, config, adapter.spec)
    config = config.model_copy(update={"engine": engine})
    # A request file's contents, not its path, are part of the stage's identity.
    settings = {name: value for name, value in config.identity().items() if name != "requests"}
    external = {"requests": hash_requests(config.requests)} if config.requests else {}
    stage = workspace.stage(STAGE, settings, inputs, external, force=force)
    if stage.done:
        return f"explain: already finished ({workspace}/explain/predictions)"
    _refuse_private_memory(workspace)
    check_engine(workspace, config, adapter.spec)
    require(section_demands(STAGE, config))
    workspace.remove_unfinished(STAGE)
    requests = collect_requests(workspace, config)
    metrics = _finish(stage, config, requests, _explain(stage, config, requests, adapter))
    return (
        f"explain: {_counted(requests)}, {metrics['failed']:,} failed, "
        f"{metrics['rows_per_second']:.1f} rows a second -> {workspace}/explain/predictions"
    )


def _explain(stage: StageRun, config: ExplainConfig, requests: Requests, adapter: XRecAdapter) -> dict[str, float]:
    """Write the results of the blocks that have none; returns figures of this run."""
    workspace, started = stage.workspace, time.perf_counter()
    index = write_requests(workspace, requests.accepted, config.compute.rows_per_block)
    done = done_blocks(workspace)
    work = [block for block in range(index.blocks) if block not in done]
    with ExplainProgress(workspace, index.blocks, index.blocks - len(work)) as progress:
        if work:
            vectors = _write_vectors(stage, config, requests, adapter)
            with waiting(section_demands(STAGE, config)):
                for result in write_blocks(workspace, config, vectors, work):
                    progress.add(result)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "rows_per_second": progress.rows / seconds, "actors": len(progress.actors)}


def _write_vectors(
    stage: StageRun, config: ExplainConfig, requests: Requests, adapter: XRecAdapter
) -> tuple[str, str, str]:
    """Write the adapted vectors of the requested users and items, unless they are there; returns the file's place."""
    workspace, asked = stage.workspace, requests.accepted
    dtype = backbone_dtype("cuda" if config.compute.gpus_per_actor else "cpu")
    # The fingerprint has the hashes of all that the vectors follow from.
    place = (STAGE, WORK, f"vectors-{hash_of([stage.fingerprint, str(dtype)])[:32]}.safetensors")
    if not workspace.exists(*place):
        embeddings = load_embeddings(workspace)
        source = AdaptedVectors(adapter, embeddings.user_mean(), embeddings.item_mean(), config.seed)
        with tempfile.TemporaryDirectory(prefix="xrec-") as folder:
            nodes: Any = {side: asked[side].to_numpy() for side in SIDES}
            write_vectors(f"{folder}/vectors", source, nodes, ("true", *config.controls), dtype)
            workspace.upload(f"{folder}/vectors", *place)
    return place


def _finish(stage: StageRun, config: ExplainConfig, requests: Requests, figures: dict[str, float]) -> dict[str, float]:
    workspace = stage.workspace
    predictions = workspace.read_table(STAGE, TABLE, [*KEY, *MEASURED])
    check_complete(requests.accepted, predictions)
    metrics = prediction_metrics(predictions, config.max_words)
    if metrics["failed"] == metrics["rows"]:
        raise WorkspaceError(
            f"explain: all {metrics['rows']:,} rows failed; the first: {predictions['error'][0]}. "
            "Mend the cause and rebuild with `xrec explain --force`"
        )
    metrics |= {"rejected": len(requests.rejected), "repeated": requests.repeated} | figures
    if len(requests.rejected):
        workspace.write_bytes(_parquet(requests.rejected), STAGE, "rejected.parquet")
    with MetricLogger(workspace, STAGE) as log:
        log.log(int(metrics["rows"]), **metrics)
    stage.finish(metrics, exclude=(f"{WORK}/",))
    workspace.remove(STAGE, WORK)
    return metrics


def _earlier_engine(workspace: Workspace) -> str | None:
    """The engine that the stage was begun or finished with: `auto` keeps it, wherever it is run again."""
    if workspace.files(STAGE) == [STARTED]:  # it failed before it wrote anything
        return None
    for file in (MANIFEST, STARTED):
        if workspace.exists(STAGE, file):
            return workspace.read_json(STAGE, file)["fingerprint"]["config"].get("engine")
    return None


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
