"""Cost of each stage against the size of the sample world: seconds, peak memory and bytes written.

Every stage of every size runs in a process of its own, so that nothing is warm and its memory is its own. `sample`,
`preprocess` and `embed` (one epoch) do the whole world; `explain` and `evaluate`, whose work is per row, do a capped
number of rows, so what grows in their columns is what they pay for the size of the tables alone. The backbone is a
small random LLaMA, which `backbone` copies whatever the size. The adapter is untrained, which costs a row no less:
tuning is `benchmarks/tuning.py`'s subject.

    python -m benchmarks.scale [--sizes 1 10 100] [--rows 200]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks import generation_world
from tests.random_models import save_llama
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import AdapterSpec, XRecAdapter
from xrec.workspace import Workspace

STAGES = ("sample", "preprocess", "embed", "backbone", "explain", "evaluate")
USERS, ITEMS, INTERACTIONS_PER_USER = 600, 300, 24
EPOCHS, BACKBONE_HIDDEN, NEW_TOKENS = 1, 64, 32
SAMPLED_EVERY_SECONDS = 0.1


@dataclass
class Cost:
    """What one stage took: seconds, bytes of memory of its largest process at its peak, bytes written."""

    seconds: float
    memory: int
    written: int


def settings(size: int, rows: int, backbone: str) -> dict:
    """One size's config: the world grows with it, the rows of the stages that work row by row do not."""
    return {
        "sample": {"users": USERS * size, "items": ITEMS * size, "interactions_per_user": INTERACTIONS_PER_USER},
        "preprocess": {"ratios": [0.96, 0.02, 0.02]},
        "embed": {"max_epochs": EPOCHS, "batch_size": 8192, "learning_rate": 5e-3, "compute": {"threads": 1}},
        "backbone": {"pretrained": backbone},
        "explain": {"limit": rows, "max_new_tokens": NEW_TOKENS},
        "evaluate": {"likelihood_rows": rows, "bootstrap": 200, "probe": False},
    }


def measure(stage: str, config: Path, workspace: Path) -> Cost:
    """Run one stage by its command, in a fresh process."""
    command = [sys.executable, "-m", "xrec.cli", stage, "--config", str(config), "--workspace", str(workspace)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    sampled: list[int] = []
    watcher = threading.Thread(target=_watch, args=(process.pid, sampled))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"scale: `{' '.join(command)}` failed with exit code {process.returncode}; see above")
    folder = workspace / ("data" if stage == "sample" else stage)
    written = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    return Cost(seconds, max(usage.ru_maxrss * 1024, *sampled, 0), written)


def _watch(pid: int, sampled: list[int]) -> None:
    # The kernel's own peak covers the process and what it waited for; Ray's workers it never waits for, so the largest
    # of them is sampled.
    while True:
        try:
            tree = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        sampled.append(max((_resident(p) for p in tree), default=0))
        time.sleep(SAMPLED_EVERY_SECONDS)


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def save_untrained_adapter(folder: Path) -> None:
    """The stage `tune` with an adapter as it is before its first step."""
    workspace = Workspace(folder)
    embeddings = Embeddings.load(workspace.path("embed", "embeddings.safetensors"))
    stage = workspace.stage("tune", {"backbone": None}, inputs=["preprocess", "embed", "backbone"])
    torch.manual_seed(0)
    adapter = XRecAdapter(AdapterSpec(embedding_dim=embeddings.dim, hidden_size=BACKBONE_HIDDEN))
    adapter.fit_normalization(embeddings.user_mean(), embeddings.item_mean())
    adapter.save_pretrained(workspace.path("tune", "adapter"))
    stage.finish({})


def save_backbone(folder: Path) -> str:
    texts = generation_world.Texts(seed=0)
    corpus = [texts.profile() for _ in range(500)]
    size = {"hidden_size": BACKBONE_HIDDEN, "intermediate_size": 128, "max_position_embeddings": 1024}
    return save_llama(folder / "backbone", corpus, 512, num_key_value_heads=4, **size)


def measure_size(size: int, rows: int, folder: Path, backbone: str) -> dict[str, Cost]:
    config = folder / f"{size}.yaml"
    config.write_text(yaml.safe_dump(settings(size, rows, backbone)))
    workspace = folder / f"workspace-{size}"
    costs = {}
    for stage in STAGES:
        if stage == "explain":
            save_untrained_adapter(workspace)
        costs[stage] = measure(stage, config, workspace)
        print(f"{size}x {stage}: {costs[stage].seconds:.1f} s", file=sys.stderr)
    shutil.rmtree(workspace)
    return costs


def show(costs: dict[int, dict[str, Cost]], rows: int) -> None:
    sizes = list(costs)
    interactions = ", ".join(f"{s}x = {USERS * s * INTERACTIONS_PER_USER:,}" for s in sizes)
    table = Table(
        title=f"Cost of a stage against the world's size (interactions: {interactions})",
        caption=f"ratios are to {sizes[0]}x; embed: {EPOCHS} epochs; explain and evaluate: {rows:,} rows; memory: "
        "largest process",
    )
    table.add_column("stage")
    for size in sizes:
        table.add_column(f"{size}x: seconds", justify="right")
        table.add_column("ratio", justify="right")
        table.add_column("memory MB", justify="right")
        table.add_column("written MB", justify="right")
    for stage in STAGES:
        cells = []
        for size in sizes:
            cost = costs[size][stage]
            ratio = cost.seconds / costs[sizes[0]][stage].seconds
            cells += [f"{cost.seconds:.1f}", f"{ratio:.1f}", f"{cost.memory / 1e6:,.0f}", f"{cost.written / 1e6:,.1f}"]
        table.add_row(stage, *cells)
    Console(width=max(120, 40 * len(sizes))).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100], help="multiples of the smallest world")
    parser.add_argument("--rows", type=int, default=200, help="rows of the stages that work row by row")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xrec-scale-") as folder:
        backbone = save_backbone(Path(folder))
        costs = {size: measure_size(size, given.rows, Path(folder), backbone) for size in sorted(given.sizes)}
    show(costs, given.rows)


if __name__ == "__main__":
    main()
