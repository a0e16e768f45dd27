"""LightGCN: propagation over the user-item graph, forward and backward. It knows nothing of losses or data.

He et al., "LightGCN", arXiv 2002.02126, in the form that XRec uses (arXiv 2406.02377, Eq. 7 and 8).
Shapes: N users, M items, D embedding width, L layers. A node is a user (0 to N-1) or an item (N to N+M-1).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor


def normalized_adjacency(pairs: torch.Tensor, users: int, items: int) -> torch.Tensor:
    """The matrix of Eq. 7: entry (u, i) is `1 / sqrt(|N_u| |N_i|)` for an interaction, in both directions.

    Args:
        pairs: `[2, E]` int64 distinct (user, item) interactions.
        users: N.
        items: M.

    Returns:
        Sparse CSR `[N + M, N + M]` float32, symmetric, with int32 indices where they suffice; a node without
        interactions has an empty row.
    """
    nodes = users + items
    edges = _directed_edges(pairs, users)
    _, weights = gcn_norm(edges, None, nodes, add_self_loops=False, dtype=torch.float32)
    with quiet_sparse():
        matrix = to_torch_csr_tensor(edges, weights, size=nodes)
        return sparse_rows(matrix.crow_indices(), matrix.col_indices(), matrix.values(), (nodes, nodes))


def sparse_rows(crow: torch.Tensor, column: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A CSR matrix for `propagate`, with int32 indices where they suffice."""
    index = torch.int32 if max(len(column), *shape) < 2**31 else torch.int64
    with quiet_sparse():
        return torch.sparse_csr_tensor(crow.to(index), column.to(index), values, shape)


@contextmanager
def quiet_sparse() -> Iterator[None]:
    """Neither PyTorch's word that CSR tensors are "beta", once a process, nor its costly checks of them."""
    with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants(False):
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        yield


def propagate(adjacency: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One layer (Eq. 7): the product of a CSR matrix `[rows, nodes]` and `x` `[nodes, D]`; not differentiable."""
    # A sparse row is a weighted bag of rows of x. PyTorch's kernel for bags keeps the row being summed in registers
    # and prefetches, which makes it about three times as fast on a CPU as its sparse matrix product.
    with torch.no_grad():
        return F.embedding_bag(
            adjacency.col_indices(),
            x,
            adjacency.crow_indices(),
            mode="sum",
            per_sample_weights=adjacency.values(),
            include_last_offset=True,
        )


def layer_mean(adjacency: torch.Tensor, x: torch.Tensor, layers: int) -> torch.Tensor:
    """`(x + Ax + … + A^L x) / (L + 1)` (Eq. 8) `[N + M, D]`, by Horner's rule: one buffer, whatever L is."""
    if layers == 0:
        return x.clone()
    total = x
    for _ in range(layers):
        total = propagate(adjacency, total).add_(x)
    return total.div_(layers + 1)


class _LayerMean(torch.autograd.Function):
    """`layer_mean` with its gradient: A is symmetric, so the gradient goes back through the same polynomial in A."""

    @staticmethod
    def forward(ctx, x, adjacency, layers):
        ctx.adjacency, ctx.layers = adjacency, layers
        return layer_mean(adjacency, x, layers)

    @staticmethod
    def backward(ctx, *gradients):
        return layer_mean(ctx.adjacency, gradients[0].contiguous(), ctx.layers), None, None


class LightGCN(nn.Module):
    """Layer-0 embeddings of all nodes, and what propagation makes of them.

    Args:
        adjacency: `normalized_adjacency(...)`.
        dim: D.
        layers: L, the number of propagation layers; 0 is plain matrix factorisation.
        generator: draws the initial embeddings (Xavier uniform).
    """

    adjacency: torch.Tensor

    def __init__(self, adjacency: torch.Tensor, dim: int, layers: int, generator: torch.Generator | None = None):
        super().__init__()
        self.layers = layers
        self.register_buffer("adjacency", adjacency, persistent=False)
        self.embedding = nn.Parameter(torch.empty(adjacency.shape[0], dim))
        nn.init.xavier_uniform_(self.embedding, generator=generator)

    def forward(self) -> torch.Tensor:
        """`[N + M, D]`: the layers averaged (Eq. 8); differentiable."""
        return _LayerMean.apply(self.embedding, self.adjacency, self.layers)  # type: ignore[return-value]

    @torch.no_grad()
    def layer_embeddings(self) -> torch.Tensor:
        """`[L + 1, N + M, D]`: every layer, layer 0 first."""
        layers = [self.embedding.detach()]
        for _ in range(self.layers):
            layers.append(propagate(self.adjacency, layers[-1]))
        return torch.stack(layers)


def locality_order(pairs: torch.Tensor, users: int, items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """New indices of users `[N]` and items `[M]` that put nodes with common neighbours close together.

    Propagation reads the rows of a node's neighbours; neighbours that lie close to one another are likelier to be in
    the cache still. The order is reverse Cuthill-McKee on the bipartite graph.
    """
    source, target = _directed_edges(pairs, users)
    ones = torch.ones(len(source), dtype=torch.int8)
    graph = csr_array((ones.numpy(), (source.numpy(), target.numpy())), shape=(users + items, users + items))
    order = torch.from_numpy(reverse_cuthill_mckee(graph, symmetric_mode=True).astype("int64"))
    return _ranks(order[order < users]), _ranks(order[order >= users] - users)


def _directed_edges(pairs: torch.Tensor, users: int) -> torch.Tensor:
    """`[2, 2E]`: each interaction as an edge from user to item and one back, in node numbers."""
    user, item = pairs[0], pairs[1] + users
    return torch.stack([torch.cat([user, item]), torch.cat([item, user])])


def _ranks(order: torch.Tensor) -> torch.Tensor:
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks
