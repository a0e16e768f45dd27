"""Is our LightGCN step faster than the usual ways to write it? Same graph, batches, negatives, loss and optimiser.

The implementations differ in how the mean of the layers is computed and differentiated, and in nothing else:

    ours            CSR rows as weighted bags (FBGEMM), Horner's rule, the gradient through the same matrix, nodes in
                    reverse Cuthill-McKee order
    ours, unordered the same, nodes in the order of the data
    csr             PyTorch's sparse CSR product (MKL) in place of the bags
    coo             a COO matrix, torch.sparse.mm and ordinary autograd, as the published LightGCN and XRec code do
    lgconv          PyTorch Geometric's LGConv over an edge_index, ordinary autograd

Steps are interleaved, so that whatever else the machine does falls on all alike; on a busy machine the processor time
is the steadier figure. Every implementation starts from the
same embeddings, and all must agree on the losses.

    python -m benchmarks.lightgcn                                   a synthetic graph of the size of Yelp's
    python -m benchmarks.lightgcn --data FOLDER [--batch-size 1024] total_trn.csv of a published data folder
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from pyarrow import csv
from rich.console import Console
from rich.table import Table
from torch import nn
from torch_geometric.nn import LGConv

from xrec.graph.lightgcn import LightGCN, locality_order
from xrec.graph.negatives import NegativeSampler
from xrec.graph.training import Trainer, relabel

YELP = (15_962, 14_085, 314_944)


class SparseProductMean(nn.Module):
    """The layers' mean by a sparse matrix product; ordinary autograd where the layout has it."""

    def __init__(self, ours: LightGCN, layout: torch.layout):
        super().__init__()
        self.embedding, self.layers = nn.Parameter(ours.embedding.detach().clone()), ours.layers
        self.matrix = ours.adjacency.to_sparse_coo().coalesce() if layout == torch.sparse_coo else ours.adjacency

    def forward(self) -> torch.Tensor:
        if self.matrix.layout == torch.sparse_csr:
            return _CsrMean.apply(self.embedding, self.matrix, self.layers)
        x = total = self.embedding
        for _ in range(self.layers):
            x = torch.sparse.mm(self.matrix, x)
            total = total + x
        return total / (self.layers + 1)


class _CsrMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, matrix, layers):
        ctx.matrix, ctx.layers = matrix, layers
        total = x
        for _ in range(layers):
            total = torch.addmm(x, matrix, total)
        return total / (layers + 1)

    @staticmethod
    def backward(ctx, *gradients):
        return _CsrMean.forward(ctx, gradients[0].contiguous(), ctx.matrix, ctx.layers), None, None


class LGConvMean(nn.Module):
    """The layers' mean by PyTorch Geometric's message passing."""

    def __init__(self, ours: LightGCN, edge_index: torch.Tensor):
        super().__init__()
        self.embedding, self.edge_index = nn.Parameter(ours.embedding.detach().clone()), edge_index
        self.convolutions = nn.ModuleList([LGConv() for _ in range(ours.layers)])

    def forward(self) -> torch.Tensor:
        x = total = self.embedding
        for convolution in self.convolutions:
            x = convolution(x, self.edge_index)
            total = total + x
        return total / (len(self.convolutions) + 1)


def synthetic_graph(users: int, items: int, interactions: int, seed: int = 0) -> torch.Tensor:
    """`[2, E]` distinct pairs; users' and items' degrees are log-normal, about as uneven as in the Yelp data."""
    generator = torch.Generator().manual_seed(seed)
    user_weight, item_weight = (torch.randn(n, generator=generator).mul(0.9).exp() for n in (users, items))
    keys = torch.zeros(0, dtype=torch.int64)
    while len(keys) < interactions:
        user = torch.multinomial(user_weight, interactions, replacement=True, generator=generator)
        item = torch.multinomial(item_weight, interactions, replacement=True, generator=generator)
        keys = torch.cat([keys, user * items + item]).unique()
    keys = keys[torch.randperm(len(keys), generator=generator)[:interactions]]
    return torch.stack([keys // items, keys % items])


def load_graph(folder: str | None) -> tuple[torch.Tensor, int, int]:
    if folder is None:
        users, items, _ = YELP
        return synthetic_graph(*YELP), users, items
    table = csv.read_csv(Path(folder) / "total_trn.csv")
    pairs = torch.stack([torch.tensor(table[name].to_numpy()) for name in ("user", "item")])
    pairs = pairs.unique(dim=1)
    return pairs, int(pairs[0].max()) + 1, int(pairs[1].max()) + 1


def build(
    pairs: torch.Tensor, users: int, items: int, layers: int, batch: int
) -> dict[str, tuple[Trainer, torch.Tensor]]:
    """Every implementation's trainer, and the numbers of the nodes in its order."""
    settings = {"dim": 64, "layers": layers, "batch_size": batch, "learning_rate": 1e-3, "weight_decay": 1e-4}
    settings |= {"seed": 0, "device": "cpu"}
    order = locality_order(pairs, users, items)
    number = torch.cat([order[0], order[1] + users])
    ordered = Trainer(relabel(pairs, order), users, items, **settings)
    trainers = {name: Trainer(pairs, users, items, **settings) for name in ("ours, unordered", "csr", "coo", "lgconv")}
    plain = trainers["ours, unordered"].model
    with torch.no_grad():
        ordered.model.embedding[number] = plain.embedding
    edges = torch.stack([pairs[0], pairs[1] + users])
    models = {
        "csr": SparseProductMean(plain, torch.sparse_csr),
        "coo": SparseProductMean(plain, torch.sparse_coo),
        "lgconv": LGConvMean(plain, torch.cat([edges, edges.flip(0)], 1)),
    }
    for name, model in models.items():
        trainers[name].use_model(model, settings["learning_rate"])
    same = torch.arange(users + items)
    return {"ours": (ordered, number)} | {name: (trainer, same) for name, trainer in trainers.items()}


def measure(
    implementations, triples: torch.Tensor, batch: int, repetitions: int
) -> dict[str, list[tuple[float, float]]]:
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in implementations}
    for step in range(repetitions + 2):
        nodes = triples[:, torch.arange(step * batch, (step + 1) * batch) % triples.shape[1]]
        losses = {}
        for name, (trainer, number) in implementations.items():
            renumbered = number[nodes]
            started = time.perf_counter(), time.process_time()
            losses[name] = trainer.step(renumbered)
            if step >= 2:  # the first steps allocate
                seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
        for name, loss in losses.items():
            torch.testing.assert_close(loss, losses["ours"], rtol=1e-3, atol=1e-5, msg=f"{name} has another loss")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a published data folder with total_trn.csv")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs, users, items = load_graph(arguments.data)
    negatives = NegativeSampler(pairs, users, items).sample(torch.Generator().manual_seed(0))
    triples = torch.stack([pairs[0], pairs[1] + users, negatives + users])
    triples = triples[:, torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(1))]
    implementations = build(pairs, users, items, arguments.layers, arguments.batch_size)
    seconds = measure(implementations, triples, arguments.batch_size, arguments.repetitions)
    table = Table(
        title=f"A training step of LightGCN: {users:,} users, {items:,} items, {pairs.shape[1]:,} interactions, "
        f"{arguments.layers} layers, dim 64, batch {arguments.batch_size}, {arguments.threads} thread(s), "
        f"median of {arguments.repetitions}"
    )
    for column in ("implementation", "ms a step", "steps a second", "relative to ours", "CPU ms", "relative to ours"):
        table.add_column(column, justify="left" if column == "implementation" else "right")
    medians = {name: [statistics.median(v) for v in zip(*values, strict=True)] for name, values in seconds.items()}
    our_wall, our_cpu = medians["ours"]
    for name, (wall, cpu) in medians.items():
        figures = (f"{wall * 1e3:.1f}", f"{1 / wall:.1f}", f"{wall / our_wall:.2f}")
        table.add_row(name, *figures, f"{cpu * 1e3:.1f}", f"{cpu / our_cpu:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
