"""Stage `data` from raw dumps, on Ray Data: files larger than memory, cut into chunks, one task a chunk.

A killed run goes on where it stopped: a chunk whose part is written is not read again. What a chunk's rows are is
`xrec.data.ingest`'s business.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import ray
from ray.data import DataContext, TaskPoolStrategy
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ray_jobs.resources import actor_options, require, section_demands, waiting
from ray_jobs.runtime import data_context
from xrec.config import IngestConfig
from xrec.data.dropped import Tally
from xrec.data.ingest import FOLDERS, STAGE, WORK, Dump, chunk_tally, ingest_chunk, write_items
from xrec.data.source_layouts import Kind, SourceError
from xrec.data.source_reading import Chunk, plan_chunks
from xrec.data.sources import SourceFile, content_hashes, find_files
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace, WorkspaceError

_PLAN = "plan.json"
_REPORT = "dropped.json"


def run(workspace: Workspace, config: IngestConfig, *, force: bool = False, dry_run: bool = False) -> str:
    """Write the tables `reviews` and `items` and the report on what was dropped; returns the summary line.

    The files' contents and names, not the folder they are in, are the stage's identity.

    Raises:
        SourceError: a file is absent, not recognised, or damaged.
        WorkspaceError: the folder holds other data, a file cannot be read or written, or no review is left.
    """
    files = find_files(config)
    if dry_run:
        return f"ingest: would read {_listed(files)} into {workspace}/{STAGE}"
    stage = workspace.stage(STAGE, config.identity(), external=content_hashes(files), force=force)
    if stage.done:
        return f"ingest: already finished ({len(files)} files in {workspace}/{STAGE})"
    if workspace.fs.protocol == "memory":
        raise WorkspaceError(
            f"workspace {workspace}: ingest runs in several processes, which do not share memory://; use a folder or "
            "an object store"
        )
    dump = Dump(files, config)
    chunks = _chunks(workspace, dump)
    workspace.remove_unfinished(STAGE)
    figures = _ingest(workspace, dump, chunks)
    tallies: dict[str, Tally] = {kind: _total(workspace, kind) for kind in ("reviews", "items")}
    write_items(workspace, dump, tallies["items"])
    _refuse_nothing(tallies["reviews"])
    stage.write_json(_REPORT, {kind: tally.report() for kind, tally in tallies.items()})
    counts = {name: value for kind, tally in tallies.items() for name, value in tally.metrics(kind).items()}
    stage.finish(counts | figures, exclude=(f"{WORK}/",))
    workspace.remove(STAGE, WORK)
    parts = (f"{tally.kept:,} {kind} ({tally.summary()})" for kind, tally in tallies.items())
    return f"ingest: {', '.join(parts)}, {figures['megabytes_per_second']:.1f} MB/s -> {workspace}/{STAGE}"


def _listed(files: list[SourceFile]) -> str:
    facts = (
        f"{file.name} ({file.layout.name}, {file.size / 1e6:,.1f} MB{', gzip' if file.gzipped else ''}"
        f"{'' if file.kind else ', not used'})"
        for file in files
    )
    return ", ".join(facts)


def _chunks(workspace: Workspace, dump: Dump) -> list[Chunk]:
    """The plan of the chunks, as it was when the stage began: parts that are written already are of that plan."""
    if workspace.exists(STAGE, WORK, _PLAN):
        return [Chunk(**chunk) for chunk in workspace.read_json(STAGE, WORK, _PLAN)]
    chunks = plan_chunks(dump.files, max(1, round(dump.config.compute.chunk_megabytes * 1e6)))
    workspace.write_json([asdict(chunk) for chunk in chunks], STAGE, WORK, _PLAN)
    return chunks


def _ingest(workspace: Workspace, dump: Dump, chunks: list[Chunk]) -> dict[str, float]:
    """Do the chunks whose parts are not there; returns what this run has read, and how fast."""
    todo = [_undone(workspace, dump, chunks, kind) for kind in FOLDERS]
    if dump.config.unlisted_items == "keep":  # else the items come first: which reviews stay depends on them
        todo = [todo[0] + todo[1]]
    needed = section_demands("ingest", dump.config)
    if any(todo):
        require(needed)
    done = len(chunks) - sum(map(len, todo))
    begun, read = time.perf_counter(), 0
    watched = waiting(needed) if any(todo) else nullcontext()
    with MetricLogger(workspace, STAGE) as log, _bar() as bar, watched:
        task = bar.add_task("ingest", total=sum(chunk.size for phase in todo for chunk in phase))
        for phase in filter(None, todo):
            for result in _results(workspace, dump, phase):
                if result["error"]:
                    raise WorkspaceError(f"ingest: {result['error']}. What has been read is kept; run it again")
                done, read = done + 1, read + result["size"]
                speed = read / 1e6 / (time.perf_counter() - begun)
                log.log(done, **json.loads(result["counts"]), megabytes=read / 1e6, megabytes_per_second=speed)
                bar.update(task, completed=read)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "megabytes": read / 1e6, "megabytes_per_second": read / 1e6 / seconds}


def _undone(workspace: Workspace, dump: Dump, chunks: list[Chunk], kind: Kind) -> list[Chunk]:
    there = set(workspace.files(STAGE, *FOLDERS[kind]))
    return [chunk for chunk in chunks if dump.files[chunk.file].kind == kind and chunk.part not in there]


def _results(workspace: Workspace, dump: Dump, chunks: list[Chunk]) -> Iterator[dict[str, Any]]:
    """What each chunk's task reports, as they end."""

    def ingest(batch: Any) -> Any:
        return _ingest_one(workspace, dump, Chunk(**json.loads(str(batch["chunk"][0]))))

    with DataContext.current(data_context()):
        rows = [{"chunk": json.dumps(asdict(chunk))} for chunk in chunks]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        compute = TaskPoolStrategy(size=dump.config.compute.tasks)
        taken = actor_options(section_demands("ingest", dump.config)[0].bundles[0])
        yield from data.map_batches(ingest, batch_size=1, compute=compute, **taken).iter_rows()


def _ingest_one(workspace: Workspace, dump: Dump, chunk: Chunk) -> dict[str, Any]:
    """One chunk, in a worker. What a user can mend is reported instead of raised: Ray would repeat it, and wrap it."""
    error, counts = "", {}
    try:
        tally = ingest_chunk(workspace, dump, chunk)
        counts = tally.metrics(dump.files[chunk.file].kind or "")
    except (SourceError, OSError) as problem:
        error = f"{dump.files[chunk.file].uri}: {problem}" if isinstance(problem, OSError) else str(problem)
    return {"size": [chunk.size], "counts": [json.dumps(counts)], "error": [error]}


def _total(workspace: Workspace, kind: Kind) -> Tally:
    total = Tally()
    for part in workspace.files(STAGE, *FOLDERS[kind]):
        total.add(chunk_tally(workspace, *FOLDERS[kind], part))
    return total


def _refuse_nothing(reviews: Tally) -> None:
    if reviews.kept == 0:
        raise WorkspaceError(
            f"ingest: none of {reviews.read:,} reviews is left: {reviews.summary()}. Look at the files, or change the "
            "filters of the section `ingest` and build anew with --force"
        )


def _bar() -> Progress:
    columns = (TextColumn("ingest"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not sys.stderr.isatty(), transient=True)


if __name__ == "__main__":
    from ray_jobs.job import main

    main("ingest", run)
