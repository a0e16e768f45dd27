"""What does the orchestration of `xrec explain` cost on a cluster, and what does a lost driver cost?

A cluster of real raylets on this machine, a head without work and one-CPU nodes; on every node one actor, whose engine
sleeps a fixed time a row instead of running a language model (`benchmarks/simulated_engine.py`). Everything else is
real: prompts, tokens, vectors, files. Two parts:

    scaling   rows a second with 1, 2, 4 and 8 workers, each with as many rows; efficiency is rate(n) / (n rate(1)),
              of medians. `steady`: while all n workers have a block, gaps between blocks included; `blocks`: from the
              beginning of the first block to the end of the last; `job`: of the whole process, in which n actors
              start on however many cores this machine has, and the files are checked and hashed
    million   distinct pairs of a sample world, the driver killed at half of them and the job run again: rows a second,
              memory of the driver in the last third of the blocks against the second third, bytes in the object
              stores, and how many rows the second run had to explain

    python -m benchmarks.cluster [--parts scaling million] [--rows 1000000] [--repetitions 3]
"""

import argparse
import contextlib
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.cluster_watch import CpuShare, Watch, listed
from benchmarks.cluster_world import sample_world, write_pairs
from tests.simulated_cluster import SimulatedCluster
from xrec.explainer.requests import KEY
from xrec.workspace import Workspace

_ROOT = Path(__file__).resolve().parents[1]
_ENGINE = "benchmarks.simulated_engine:SimulatedEngine"
_PATIENCE_SECONDS = 900.0  # without a new file of results


@dataclass
class Given:
    """What is measured with.

    Attributes:
        milliseconds: that the engine takes for a row.
        rows_per_block: pairs a file.
    """

    workspace: Workspace
    cluster: SimulatedCluster
    folder: Path
    milliseconds: float
    rows_per_block: int
    requests: Path = field(init=False)

    def __post_init__(self) -> None:
        self.requests = self.folder / "requests.parquet"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["scaling", "million"], default=["scaling", "million"])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rows-per-worker", type=int, default=3000, help="of the part scaling")
    parser.add_argument("--scaling-milliseconds", type=float, default=10.0, help="a row takes the engine")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the part million")
    parser.add_argument("--milliseconds", type=float, default=3.0, help="a row takes the engine, in the part million")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--hidden", type=int, default=4096, help="numbers of an adapted vector")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the cluster ends with this process
    with tempfile.TemporaryDirectory(prefix="xrec-cluster-", ignore_cleanup_errors=True) as folder:
        set_environment(Path(folder))
        say("making the sample world")
        workspace = sample_world(Path(folder) / "w", options.users, options.items, options.hidden)
        tables: list[Table] = []
        try:
            for part in options.parts:
                (Path(folder) / part).mkdir()
                tables.append(Table())
                with SimulatedCluster(Path(folder) / part) as cluster:
                    given = Given(workspace, cluster, Path(folder) / part, 0.0, 0)
                    (measure_scaling if part == "scaling" else measure_million)(given, options, tables[-1])
        finally:  # what was measured is shown, even where the rest was not
            for table in tables:
                Console(width=120).print(table)


def set_environment(folder: Path) -> None:
    """What the nodes, actors and drivers inherit: a token of their own, one thread each, this repository."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_OFFLINE="1",
        RAY_USAGE_STATS_ENABLED="0",
        PYTHONPATH=os.pathsep.join(paths),
    )
    os.environ.pop("RAY_ADDRESS", None)


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# Scaling -----------------------------------------------------------------------------------------------------------


def measure_scaling(given: Given, options: argparse.Namespace, table: Table) -> None:
    given.milliseconds, given.rows_per_block = options.scaling_milliseconds, 100
    table.title = (
        f"Scaling: {given.milliseconds:g} ms a row, {options.rows_per_worker:,} rows a worker, "
        f"{options.repetitions} repetitions, medians"
    )
    columns = ["workers", "steady, rows/s", "efficiency", "blocks, rows/s", "efficiency", "job, rows/s", "efficiency"]
    for heading in [*columns, "CPU in use"]:
        table.add_column(heading, justify="right")
    first: list[float] = []
    for workers in options.workers:
        grow(given.cluster, workers)
        found = []
        for repetition in range(options.repetitions):
            write_pairs(given.workspace, workers * options.rows_per_worker, given.requests)
            found.append(one_scaling_run(given, workers))
            shown = ", ".join(f"{rate:,.0f}" for rate in found[-1][:3])
            say(f"{workers} workers, repetition {repetition + 1}: {shown} rows/s; CPU {found[-1][3]:.0%}")
        medians = [statistics.median(values) for values in zip(*found, strict=True)]
        first = first or [rate / workers for rate in medians]
        cells = [f"{workers}"]
        for rate, alone in zip(medians[:3], first[:3], strict=True):
            cells += [f"{rate:,.1f}", f"{rate / (workers * alone):.3f}"]
        table.add_row(*cells, f"{medians[3]:.0%}")


def one_scaling_run(given: Given, workers: int) -> tuple[float, float, float, float]:
    """Rows a second, steady, from block to block, and of the whole job; and the share of this machine's CPU in use."""
    given.workspace.remove("explain")
    began = time.monotonic()
    with Driver(given, workers) as driver, CpuShare(given.workspace) as cpu:
        driver.wait()
    seconds = time.monotonic() - began
    starts, ends, rows = intervals(given.workspace)
    steady = steady_rate(starts, ends, rows, workers)
    return steady, rows.sum() / (ends.max() - starts.min()), rows.sum() / seconds, cpu.share()


def intervals(workspace: Workspace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every block: when it began, when its file was there (seconds since the epoch), its rows."""
    found = []
    for file in sorted(Path(workspace.path("explain", "predictions")).glob("*.parquet")):
        latencies = pq.read_table(file, columns=["latency"])["latency"].to_numpy()
        # A row's latency is its share of the time that its block took.
        end = file.stat().st_mtime
        found.append((end - float(latencies.sum()), end, len(latencies)))
    starts, ends, rows = np.array(found).T
    return starts, ends, rows


def steady_rate(starts: np.ndarray, ends: np.ndarray, rows: np.ndarray, workers: int) -> float:
    """Rows a second between the first and the last moment at which every worker has a block."""
    times = np.concatenate([starts, ends])
    order = np.argsort(times)
    running = np.cumsum(np.repeat([1, -1], len(starts))[order])
    full = np.flatnonzero(running >= workers)
    if not len(full):
        say(f"{workers} workers never had a block each at the same time; raise the number of rows")
        return float("nan")
    low, high = times[order][full[0]], times[order][min(full[-1] + 1, len(times) - 1)]
    inside = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None) / (ends - starts)
    return float((inside * rows).sum() / (high - low))


# A million -----------------------------------------------------------------------------------------------------------


def measure_million(given: Given, options: argparse.Namespace, table: Table) -> None:
    given.milliseconds, given.rows_per_block = options.milliseconds, 512
    most = max(options.workers)
    table.title = f"{options.rows:,} pairs, {given.milliseconds:g} ms a row, {given.rows_per_block} rows a block"
    table.add_column("what")
    table.add_column("found", justify="right")
    for workers in sorted(set(options.workers) - {most}):
        grow(given.cluster, workers)
        rows = max(4 * workers * given.rows_per_block, options.rows * workers // (10 * most))
        write_pairs(given.workspace, rows, given.requests)
        steady, blocks, job, cpu = one_scaling_run(given, workers)
        say(f"{workers} nodes, {rows:,} rows: {steady:,.0f} rows/s, steady; {blocks:,.0f} of blocks, {job:,.0f} of all")
        table.add_row(f"{workers} nodes, {rows:,} pairs: rows/s, steady (CPU in use)", f"{steady:,.0f} ({cpu:.0%})")
    grow(given.cluster, most)
    write_pairs(given.workspace, options.rows, given.requests)
    given.workspace.remove("explain")
    total = killed_and_resumed(given, most, options.rows, table)
    say(f"the driver's last words: {total}")


def killed_and_resumed(given: Given, workers: int, rows: int, table: Table) -> str:
    """Kill the driver when half of the blocks are written, and run the job again; returns the second one's summary."""
    began = time.monotonic()
    with (
        Driver(given, workers) as driver,
        Watch(given.cluster, driver.process) as first,
        CpuShare(given.workspace) as cpu,
    ):
        driver.wait(until=rows // 2)
    # From here on the first driver is dead. What its actors had in hand may still become a file.
    half = time.monotonic() - began
    at_kill = files_of(given.workspace)
    say("the driver is killed; waiting for its actors to end")
    settle(given.workspace)
    kept = files_of(given.workspace)
    began = time.monotonic()
    with Driver(given, workers) as driver, Watch(given.cluster, driver.process) as second:
        summary = driver.wait()
    again = time.monotonic() - began
    starts, ends, counts = intervals(given.workspace)
    last = files_of(given.workspace)
    written = {name for name, facts in last.items() if kept.get(name) != facts}
    keys = given.workspace.read_table("explain", "predictions", columns=KEY)
    distinct = len(keys.group_by(KEY).aggregate([]))
    unfinished = rows - rows_of(at_kill)
    resumed = sum(last[name][1] for name in written)
    late = [k for k, name in enumerate(sorted(last)) if name in written]
    early = [k for k, name in enumerate(sorted(last)) if name not in written]
    for name, chosen in (("first", early), ("second", late)):
        rate = steady_rate(starts[chosen], ends[chosen], counts[chosen], workers)
        table.add_row(f"{workers} nodes, {name} run: rows/s, steady", f"{rate:,.0f}")
    table.add_row("CPU in use, first run", f"{cpu.share():.0%}")
    table.add_row("first run until it was killed, second run: seconds with start", f"{half:,.0f}, {again:,.0f}")
    table.add_row("rows written when the driver was killed", f"{rows_of(at_kill):,}")
    table.add_row("unfinished then", f"{unfinished:,}")
    table.add_row(f"rows in flight at most ({workers} actors, one block each)", f"{workers * given.rows_per_block:,}")
    table.add_row("rows that the second run explained", f"{resumed:,}")
    table.add_row("files of the first run that the second touched", f"{len(written & kept.keys()):,}")
    table.add_row("rows, distinct rows", f"{len(keys):,}, {distinct:,}")
    for name, watch in (("first", first), ("second", second)):
        middle, end, peak = watch.driver_thirds(starts, ends, early if name == "first" else late)
        table.add_row(
            f"driver's memory, {name} run: second third, last third (ratio), at most with the end",
            f"{middle / 1e6:,.0f} MB, {end / 1e6:,.0f} MB ({end / middle:.3f}), {peak / 1e6:,.0f} MB",
        )
        table.add_row(f"object stores, {name} run: at most", f"{watch.most_stored() / 1e6:,.2f} MB")
    if distinct != rows or len(keys) != rows or resumed > unfinished or written & kept.keys():
        raise SystemExit("rows are not there exactly once, or the second run explained more than was unfinished")
    return summary


def files_of(workspace: Workspace) -> dict[str, tuple[int, int]]:
    """Of every file of results: when it was written (nanoseconds), and its rows."""
    folder = Path(workspace.path("explain", "predictions"))
    return {f.name: (f.stat().st_mtime_ns, pq.read_metadata(f).num_rows) for f in folder.glob("*.parquet")}


def rows_of(files: dict[str, tuple[int, int]]) -> int:
    return sum(rows for _, rows in files.values())


def settle(workspace: Workspace, seconds: float = 15.0) -> None:
    """Wait until no file has been added for so long: the actors of a killed driver end a moment later."""
    folder, count, since = Path(workspace.path("explain", "predictions")), -1, time.monotonic()
    while time.monotonic() - since < seconds:
        found = len(list(folder.glob("*.parquet")))
        if found != count:
            count, since = found, time.monotonic()
        time.sleep(0.5)


# Processes -----------------------------------------------------------------------------------------------------------


class Driver:
    """`python -m ray_jobs.explain` on the cluster; killed, if it still runs, when the block is left."""

    def __init__(self, given: Given, workers: int):
        self.workspace, self.rows_per_block = given.workspace, given.rows_per_block
        compute = {
            "actors": [workers, workers],
            "rows_per_block": given.rows_per_block,
            "threads": 1,
            "engine_arguments": {"milliseconds": given.milliseconds},
        }
        settings = {"explain": {"engine": _ENGINE, "requests": str(given.requests), "compute": compute}}
        config = given.folder / "config.yaml"  # JSON is YAML
        config.write_text(json.dumps(settings))
        self.log = given.folder / "driver.log"
        command = [
            sys.executable,
            "-m",
            "ray_jobs.explain",
            "--workspace",
            given.workspace.uri,
            "--config",
            str(config),
        ]
        with self.log.open("w") as log:
            self.process = psutil.Popen(
                command, env=given.cluster.environment, stdout=log, stderr=subprocess.STDOUT, cwd=_ROOT
            )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self, until: int | None = None) -> str:
        """Until the job has ended, or so many rows are written; returns the last line that it printed."""
        folder = Path(self.workspace.path("explain", "predictions"))
        count, since, said = -1, time.monotonic(), 0.0
        while self.process.poll() is None:
            found = sum(entry.name.endswith(".parquet") and ".tmp-" not in entry.name for entry in listed(folder))
            if found != count:
                count, since = found, time.monotonic()
            if until is not None and found * self.rows_per_block >= until:
                return ""
            if time.monotonic() - since > _PATIENCE_SECONDS:
                raise SystemExit(f"no file of results for {_PATIENCE_SECONDS:g} s; the job said:\n{self.tail()}")
            if time.monotonic() - said > 30:
                said = time.monotonic()
                say(f"{found:,} blocks written")
            time.sleep(0.2)
        if self.process.returncode or until is not None:
            raise SystemExit(f"the job ended with {self.process.returncode}:\n{self.tail()}")
        return self.tail().splitlines()[-1]

    def tail(self) -> str:
        return self.log.read_text()[-3000:]


def grow(cluster: SimulatedCluster, nodes: int) -> None:
    for number in range(cluster.started, nodes):
        say(f"starting node {number + 1} of {nodes}")
        cluster.add_node(cpus=1)


if __name__ == "__main__":
    main()
