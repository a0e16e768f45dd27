"""How large a graph `embed` can take: memory and time against users, items and edges, measured and on paper.

Graphs have log-normal degrees (as `benchmarks.lightgcn`) and no locality: every worker needs nearly every row that has
many edges, which is the worst case. Every measured row is fresh processes: one that orders the graph and deals it out,
as the stage's own process does, and the workers, each with one thread, in a gloo group without Ray. A worker's peak is
that of its whole life (reading its share, drawing an epoch, steps, a validation) above what it had with its imports.

The formula, for one of W workers with O own rows, H halo rows (and about as many given), K = E / W pairs, width D:

    tables      4 D (7 O + 2 H)   layer 0, two moments, best; gradient, sum, buffer; halo and what is given of it
    matrix      8 (2 E / W) + 4 O values and columns of own rows; and 8 bytes a row of the halo's and the given's lists
    pairs       64 K              user, item, position, the sampler's; an epoch's negatives, places and order
    drawing     6 E               once an epoch, before the steps: the permutation of all pairs and a mask
    numbers     56 min(E, 2^20)   random numbers drawn at once, and the negatives chosen by them
    validation  4 D (6 O + H + M) + 120 K instead of the steps' tables, where it is more

H is the expected number of rows that other workers own and this one's edges touch: the sum over these of
1 - exp(-degree / W). On paper, the seconds a step are those of the largest measured graph an edge and pass, and the
halo's bytes over the network's speed (--gigabits); an epoch has 1,000 steps.

    python -m benchmarks.capacity                                all of it
    python -m benchmarks.capacity --edges 100000,1000000         these alone
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

from benchmarks.lightgcn import synthetic_graph
from tests.ports import free_port
from xrec.graph.distributed import PartitionedTrainer
from xrec.graph.lightgcn import locality_order
from xrec.graph.partition import Share, make_shares
from xrec.graph.training import Trainer, relabel

DIM, LAYERS = 64, 3
EDGES_PER_USER, EDGES_PER_ITEM = 20, 50
PAPER = ((100_000_000, 4), (100_000_000, 16), (1_000_000_000, 16), (1_000_000_000, 64))
STEPS_AN_EPOCH = 1000
_SPREAD = 0.9  # of the logarithm of degrees, as in `synthetic_graph`


@dataclass(frozen=True)
class Size:
    """A graph and the number of workers; 0 is the stage's one process (`Trainer`)."""

    edges: int
    workers: int

    @property
    def users(self) -> int:
        return self.edges // EDGES_PER_USER

    @property
    def items(self) -> int:
        return self.edges // EDGES_PER_ITEM


def expected_halo(size: Size) -> float:
    """Rows of other workers that one worker's edges touch, on average over graphs without locality."""
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0)).mul(_SPREAD).exp()
    weight /= weight.mean()
    halo = 0.0
    for nodes, degree in ((size.users, EDGES_PER_USER), (size.items, EDGES_PER_ITEM)):
        halo += nodes * (1 - 1 / size.workers) * float((1 - torch.exp(-degree * weight / size.workers)).mean())
    return halo


def predicted_bytes(size: Size) -> float:
    """The formula of the module's docstring."""
    workers, halo = size.workers, expected_halo(size)
    own, pairs = (size.users + size.items) / workers, size.edges / workers
    matrix = 16 * pairs + 4 * own + 16 * halo
    step = 4 * DIM * (7 * own + 2 * halo) + 64 * pairs
    drawing = 4 * DIM * (5 * own + halo) + 64 * pairs + 6 * size.edges
    validation = 4 * DIM * (6 * own + halo + size.items) + (32 + 120) * pairs
    return matrix + 56 * min(size.edges, 1 << 20) + max(step, drawing, validation)


def peak_above(before: int) -> int:
    # Not getrusage: its maximum is inherited from the process that started this one.
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 - before


def prepare(_: int, size: Size, folder: str) -> None:
    """What the stage's own process does before the workers start; and the graph itself, which it is given."""
    torch.set_num_threads(1)
    pairs = torch.load(f"{folder}/pairs.pt")
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    order = locality_order(pairs, size.users, size.items)
    train = relabel(pairs, order)
    if size.workers:
        for share in make_shares(train, train[:, ::20], size.users, size.items, size.workers):
            Path(f"{folder}/{share.rank}.safetensors").write_bytes(share.to_bytes())
    # The pairs that it was given count, too.
    memory = peak_above(before) + pairs.numel() * 8
    torch.save({"bytes": memory, "seconds": time.perf_counter() - started}, f"{folder}/prepare.pt")


def work(rank: int, size: Size, folder: str, port: int, steps: int) -> None:
    """One worker's life, but for the number of steps."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=max(1, size.workers))
    before = psutil.Process().memory_info().rss
    settings = (DIM, LAYERS, batch_size(size), 1e-3, 1e-4, 0, "cpu")
    seconds = []
    if size.workers:
        share = Share.from_bytes(Path(f"{folder}/{rank}.safetensors").read_bytes())
        trainer, val, halo = PartitionedTrainer(share, *settings), share.val, len(share.halo)
        batches = trainer.batches(0)
    else:
        pairs = torch.load(f"{folder}/pairs.pt")
        train = relabel(pairs, locality_order(pairs, size.users, size.items))
        trainer, val, halo = Trainer(train, size.users, size.items, *settings), train[:, ::20], 0
        batches = iter(triples_of(trainer).split(batch_size(size), dim=1))
    state = trainer.initial_state()
    started = time.perf_counter()
    for _ in range(steps + 1):
        trainer.step(next(batches))
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    trainer.recall(val)
    validation = time.perf_counter() - started
    assert "best" in state.tensors
    found = {"bytes": peak_above(before), "first": seconds[0], "step": statistics.median(seconds[1:]), "halo": halo}
    torch.save(found | {"validation": validation}, f"{folder}/worker-{rank}.pt")
    dist.destroy_process_group()


def triples_of(trainer: Trainer) -> torch.Tensor:
    """An epoch's triples, as `Trainer.train_epoch` draws them."""
    generator = torch.Generator().manual_seed(0)
    negatives = trainer.sampler.sample(generator)
    triples = torch.stack([trainer.train[0], trainer.train[1] + trainer.users, negatives + trainer.users])
    return triples[:, torch.randperm(triples.shape[1], generator=generator)]


def batch_size(size: Size) -> int:
    return max(64, size.edges // STEPS_AN_EPOCH)


def measure(size: Size, folder: Path, steps: int) -> dict[str, float]:
    """Figures of the largest worker, the slowest step, and the process that prepared."""
    mp.spawn(prepare, args=(size, str(folder)), nprocs=1)
    workers = max(1, size.workers)
    mp.spawn(work, args=(size, str(folder), free_port(), steps), nprocs=workers)
    parts = [torch.load(folder / f"worker-{rank}.pt") for rank in range(workers)]
    figures = {name: max(part[name] for part in parts) for name in parts[0]}
    return figures | {f"prepare {name}": value for name, value in torch.load(folder / "prepare.pt").items()}


def measured_rows(edges: list[int], steps: int) -> dict[Size, dict[str, float]]:
    rows = {}
    for count in edges:
        with tempfile.TemporaryDirectory(prefix="xrec-capacity-") as name:
            folder = Path(name)
            torch.save(synthetic_graph(count // EDGES_PER_USER, count // EDGES_PER_ITEM, count), folder / "pairs.pt")
            for workers in (0, 1, 2):
                size = Size(count, workers)
                rows[size] = measure(size, folder, steps)
    return rows


def passes_edges(size: Size) -> float:
    """Multiplications by an edge's weight in a step of one worker: both directions, forward and backward."""
    return 2 * LAYERS * 2 * size.edges / max(1, size.workers)


def gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g}"


def show(rows: dict[Size, dict[str, float]], gigabits: float) -> None:
    largest = max(size.edges for size in rows)
    an_edge = rows[Size(largest, 1)]["step"] / passes_edges(Size(largest, 1))
    preparing = rows[Size(largest, 2)]["prepare bytes"] / largest
    exchanged = 2 * LAYERS * 4 * DIM * expected_halo(Size(largest, 2))
    spent = rows[Size(largest, 2)]["step"] - an_edge * passes_edges(Size(largest, 2))
    table = Table(title=f"LightGCN, D {DIM}, L {LAYERS}, float32, an epoch of {STEPS_AN_EPOCH} steps; memory in GB")
    headings = ("users", "items", "edges", "workers", "halo rows", "GB a worker", "formula", "formula / measured")
    for heading in (*headings, "s a step", "formula", "h an epoch", "GB to deal out"):
        table.add_column(heading, justify="right")
    for size, figures in rows.items():
        wide, memory = size.workers > 0, figures["bytes"]
        predicted = predicted_bytes(size) if wide else math.nan
        seconds = an_edge * passes_edges(size) + (max(0.0, spent) * size.edges / largest if size.workers > 1 else 0)
        table.add_row(
            *(f"{count:,}" for count in (size.users, size.items, size.edges)),
            str(size.workers) if wide else "in process",
            f"{figures['halo']:,.0f}",
            gigabytes(memory),
            gigabytes(predicted) if wide else "",
            f"{predicted / memory:.2f}" if wide else "",
            f"{figures['step']:.3g}",
            f"{seconds:.3g}" if wide else "",
            f"{figures['step'] * STEPS_AN_EPOCH / 3600:.2g}",
            gigabytes(figures["prepare bytes"]) if wide else "",
        )
    table.add_section()
    for edges, workers in PAPER:
        size = Size(edges, workers)
        network = 2 * LAYERS * 4 * DIM * expected_halo(size) * 8 / (gigabits * 1e9)
        seconds = an_edge * passes_edges(size) + network
        table.add_row(
            *(f"{count:,}" for count in (size.users, size.items, edges)),
            f"{workers} on paper",
            f"{expected_halo(size):,.0f}",
            "",
            gigabytes(predicted_bytes(size)),
            "",
            "",
            f"{seconds:.3g}",
            f"{seconds * STEPS_AN_EPOCH / 3600:.2g}",
            gigabytes(preparing * edges),
        )
    console, paper = Console(width=170), Size(*PAPER[-1])
    console.print(table)
    console.print(
        f"{an_edge * 1e9:.2f} ns an edge, direction and pass (one thread); the exchange of two workers over gloo took "
        f"{max(0.0, spent):.2f} s a step for {exchanged / 1e9:.2f} GB each way; on paper {gigabits:g} Gbit/s a worker. "
        f"Dealing out takes {preparing:.0f} bytes a pair in the stage's own process, which in the end holds all "
        f"layers: {4 * DIM * (LAYERS + 1) * (paper.users + paper.items) / 1e9:.0f} GB at {paper.edges:,} edges."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", default="100000,1000000,10000000", help="of the measured graphs")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one that allocates")
    parser.add_argument("--gigabits", type=float, default=25.0, help="a second, of a worker's network, on paper")
    arguments = parser.parse_args()
    show(measured_rows([int(count) for count in arguments.edges.split(",")], arguments.steps), arguments.gigabits)


if __name__ == "__main__":
    main()
