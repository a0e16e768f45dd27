"""LightGCN against NetworkX's normalised Laplacian and PyTorch Geometric's LGConv and LightGCN."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.nn import LGConv
from torch_geometric.nn.models import LightGCN as ReferenceLightGCN

from xrec.graph.lightgcn import LightGCN, layer_mean, locality_order, normalized_adjacency, propagate

USERS, ITEMS = 40, 25


@pytest.fixture
def pairs() -> torch.Tensor:
    cells = torch.rand(USERS, ITEMS, generator=torch.Generator().manual_seed(0)) < 0.15
    cells[3], cells[:, 5] = False, False  # a user and an item without interactions
    return cells.nonzero().T.contiguous()


@pytest.fixture
def edge_index(pairs) -> torch.Tensor:
    user, item = pairs[0], pairs[1] + USERS
    return torch.stack([torch.cat([user, item]), torch.cat([item, user])])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(USERS + ITEMS, 8, generator=torch.Generator().manual_seed(1))


def test_adjacency_is_one_minus_the_normalized_laplacian(pairs, edge_index):
    graph = nx.Graph()
    graph.add_nodes_from(range(USERS + ITEMS))
    graph.add_edges_from(edge_index.T.tolist())
    laplacian = nx.normalized_laplacian_matrix(graph, nodelist=range(USERS + ITEMS)).toarray()
    connected = np.array([d > 0 for _, d in sorted(graph.degree())], dtype=float)
    adjacency = normalized_adjacency(pairs, USERS, ITEMS).to_dense().numpy()
    np.testing.assert_allclose(adjacency, np.diag(connected) - laplacian, atol=1e-6)


def test_adjacency_needs_no_order_of_the_pairs(pairs):
    shuffled = pairs[:, torch.randperm(pairs.shape[1])]
    first, second = normalized_adjacency(pairs, USERS, ITEMS), normalized_adjacency(shuffled, USERS, ITEMS)
    torch.testing.assert_close(first.to_dense(), second.to_dense())


def test_propagation_equals_lgconv(pairs, edge_index, x):
    expected = LGConv()(x, edge_index)
    torch.testing.assert_close(propagate(normalized_adjacency(pairs, USERS, ITEMS), x), expected)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_layer_mean_equals_the_reference_model(pairs, edge_index, x, layers):
    reference = ReferenceLightGCN(USERS + ITEMS, 8, layers)  # its default weights the layers by 1 / (L + 1)
    reference.embedding.weight.data.copy_(x)
    ours = layer_mean(normalized_adjacency(pairs, USERS, ITEMS), x, layers)
    torch.testing.assert_close(ours, reference.get_embedding(edge_index).detach())


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_gradient_equals_ordinary_autograd(pairs, edge_index, x, layers):
    weights = torch.randn(USERS + ITEMS, 8, generator=torch.Generator().manual_seed(2))
    model = LightGCN(normalized_adjacency(pairs, USERS, ITEMS), 8, layers)
    reference = ReferenceLightGCN(USERS + ITEMS, 8, layers)
    for parameter in (model.embedding, reference.embedding.weight):
        parameter.data.copy_(x)
    (model() * weights).sin().sum().backward()
    (reference.get_embedding(edge_index) * weights).sin().sum().backward()
    torch.testing.assert_close(model.embedding.grad, reference.embedding.weight.grad)


def test_gradient_equals_finite_differences(pairs):
    model = LightGCN(normalized_adjacency(pairs, USERS, ITEMS).double(), 2, 3).double()

    def output(embedding):
        return torch.func.functional_call(model, {"embedding": embedding})

    start = torch.randn(USERS + ITEMS, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, start)


def test_layer_embeddings_are_the_powers_of_the_matrix(pairs, x):
    matrix = normalized_adjacency(pairs, USERS, ITEMS)
    model = LightGCN(matrix, 8, 3)
    model.embedding.data.copy_(x)
    dense, expected = matrix.to_dense().double(), [x.double()]
    for _ in range(3):
        expected.append(dense @ expected[-1])
    layers = model.layer_embeddings()
    torch.testing.assert_close(layers.double(), torch.stack(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layers.mean(0), model().detach())


def test_initial_embeddings_follow_the_generator(pairs):
    matrix = normalized_adjacency(pairs, USERS, ITEMS)
    first, again, other = (LightGCN(matrix, 8, 2, torch.Generator().manual_seed(s)).embedding for s in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_locality_order_is_a_permutation_that_brings_neighbours_together():
    # Ten communities of 30 users and 20 items that choose among themselves, under shuffled names.
    generator = torch.Generator().manual_seed(3)
    users, items = torch.randperm(300, generator=generator), torch.randperm(200, generator=generator)
    community = torch.arange(300) // 30
    cells = (community[:, None] == (torch.arange(200) // 20)[None, :]) & (
        torch.rand(300, 200, generator=generator) < 0.4
    )
    inside = cells.nonzero().T
    pairs = torch.stack([users[inside[0]], items[inside[1]]])
    new_user, new_item = locality_order(pairs, 300, 200)
    assert torch.equal(new_user.sort().values, torch.arange(300))
    assert torch.equal(new_item.sort().values, torch.arange(200))

    def mean_spread_of_a_users_items(item_of_pair):
        spread = [item_of_pair[pairs[0] == u].float().std() for u in range(300)]
        return float(torch.stack(spread).nanmean())

    assert mean_spread_of_a_users_items(new_item[pairs[1]]) < 0.25 * mean_spread_of_a_users_items(pairs[1])
