"""How fast are the metrics of `xrec evaluate` over many predictions, and does memory stay flat?

A sample world with as many explained pairs as asked for; each pair's "prediction" is another pair's explanation. The
stage's own actors score them in blocks on a Ray session of this process. Printed for each family of metrics: rows a
second of one actor on one core, and the time relative to the fastest family that compares texts (ROUGE); and for
memory: what the driver and what the actors hold in the last third of the blocks, relative to the second third.

    python -m benchmarks.scoring [--rows 100000] [--metrics length rouge bleu feature factuality grounding]
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from ray_jobs import preprocess, sample
from ray_jobs.evaluate_actors import score_predictions
from ray_jobs.runtime import start_ray
from xrec import tables
from xrec.config import EvaluateConfig, PreprocessConfig, SampleConfig
from xrec.config.evaluation import MetricFamily
from xrec.evaluation.scoring import join_references
from xrec.workspace import Workspace

_PER_USER = 24
_SPARE = 1.1  # a user has visited that many items on average, and some fewer


def predicted_workspace(folder: Path, rows: int) -> Workspace:
    """A sample world, and a prediction for each of `rows` explained pairs."""
    workspace = Workspace(folder)
    users = round(_SPARE * rows / _PER_USER) + 10
    sample.run(workspace, SampleConfig(users=users, items=max(300, users // 2), interactions_per_user=_PER_USER))
    preprocess.run(workspace, PreprocessConfig())
    explanations = workspace.read_text_table("explanations").slice(0, rows)
    if len(explanations) < rows:
        raise SystemExit(f"the sample world has {len(explanations):,} explained pairs, fewer than --rows {rows:,}")
    texts = explanations["explanation"].take(pa.array(np.random.default_rng(0).permutation(rows)))
    columns = {
        "user": explanations["user"],
        "item": explanations["item"],
        "signal": pa.repeat("true", rows),
        "explanation": texts,
        "tokens": pa.repeat(0, rows),
        "latency": pa.repeat(0.0, rows),
        "adapter_hash": pa.repeat("", rows),
        "status": pa.repeat("ok", rows),
    }
    stage = workspace.stage("explain", {"split": "all"}, inputs=["preprocess"])
    stage.write_table("predictions", tables.validate("predictions", pa.table(columns)))
    stage.finish({})
    return workspace


class Memory:
    """Samples, every second, of the bytes that this process and its scoring actors hold for themselves."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def thirds(self, part: int) -> tuple[float, float]:
        """Medians over the second and the last third of the time, in bytes; part 1: the driver, 2: the actors."""
        values = np.array([s[part] for s in self.samples if s[2] > 0])
        third = len(values) // 3
        return float(np.median(values[third : 2 * third])), float(np.median(values[2 * third :]))

    def _sample(self) -> None:
        own = psutil.Process()
        while not self._over.wait(1.0):
            actors = 0.0
            for process in own.children(recursive=True):
                try:
                    if "ScoreActor" in " ".join(process.cmdline()):
                        actors += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.samples.append((time.monotonic(), own.memory_full_info().uss, actors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rows-per-block", type=int, default=2048)
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=get_args(MetricFamily),
        default=["length", "rouge", "bleu", "feature", "factuality", "grounding"],
    )
    given = parser.parse_args()
    compute = {"rows_per_block": given.rows_per_block}
    config = EvaluateConfig.model_validate({"metrics": given.metrics, "compute": compute})
    with tempfile.TemporaryDirectory(prefix="xrec-scoring-") as folder:
        workspace = predicted_workspace(Path(folder), given.rows)
        workspace.stage("evaluate", config.identity(), inputs=["explain"])
        predictions = workspace.read_table("explain", "predictions")
        joined = join_references(predictions, workspace.read_text_table("explanations"))
        start_ray(2)
        with Memory() as memory:
            started = time.perf_counter()
            _, facts = score_predictions(workspace, config, joined, "cpu")
            seconds = time.perf_counter() - started
    _print(given.rows, seconds, facts, memory)


def _print(rows: int, seconds: float, facts: dict, memory: Memory) -> None:
    table = Table(title=f"{rows:,} predictions, one actor, {seconds:,.0f} s with its start")
    for heading in ("", "rows a second", "time / ROUGE's"):
        table.add_column(heading, justify="left" if not heading else "right")
    base = facts["rouge"]["seconds"] if "rouge" in facts else None
    for family, found in sorted(facts.items(), key=_seconds):
        relative = "" if base is None else f"{found['seconds'] / base:.2f}"
        table.add_row(family, f"{found['rows'] / max(1e-9, found['seconds']):,.0f}", relative)
    for part, name in ((1, "driver"), (2, "actor")):
        middle, last = memory.thirds(part)
        table.add_row(
            f"memory of the {name}, last third / second third", f"{last / 1e6:,.0f} MB", f"{last / middle:.3f}"
        )
    Console(width=110).print(table)


def _seconds(entry: tuple[str, dict]) -> float:
    return entry[1]["seconds"]


if __name__ == "__main__":
    main()
