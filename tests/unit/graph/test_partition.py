"""Shares of a graph against scipy's matrix of the whole, and loops over its edges."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array, diags_array

from xrec.graph.distributed import _initial_rows
from xrec.graph.lightgcn import LightGCN, normalized_adjacency
from xrec.graph.partition import Ranges, Share, balanced_cuts, make_shares
from xrec.graph.training import generator_of

USERS, ITEMS, EDGES = 60, 35, 400


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(3)
    cells = torch.randperm(USERS * (ITEMS - 1), generator=generator)[:EDGES]
    return torch.stack([cells // (ITEMS - 1), cells % (ITEMS - 1)])  # the last item has no interaction


@pytest.fixture(scope="module")
def matrix(pairs):
    """Eq. 7 for all nodes, users first, in float64."""
    user, item = pairs[0].numpy(), pairs[1].numpy() + USERS
    ends = np.concatenate([user, item]), np.concatenate([item, user])
    adjacency = coo_array((np.ones(2 * EDGES), ends), shape=(USERS + ITEMS,) * 2).tocsr()
    root = diags_array(1 / np.sqrt(np.maximum(adjacency.sum(1), 1)))
    return (root @ adjacency @ root).toarray()


def shares_of(pairs, workers):
    return list(make_shares(pairs, pairs[:, ::7], USERS, ITEMS, workers))


def old_numbers(ranges):
    """The usual number (users first) of each node, worker by worker, from the meaning of the ranges alone."""
    numbers = []
    for rank in range(ranges.workers):
        numbers += range(ranges.users[rank], ranges.users[rank + 1])
        numbers += range(USERS + ranges.items[rank], USERS + ranges.items[rank + 1])
    return np.array(numbers)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_rows_and_halos_are_those_of_the_whole_matrix(pairs, matrix, workers):
    x = np.random.default_rng(0).normal(size=(USERS + ITEMS, 5))
    for share in shares_of(pairs, workers):
        usual, first = old_numbers(share.ranges), share.ranges.first_nodes.tolist()
        own = range(first[share.rank], first[share.rank + 1])
        halo = share.halo.tolist()
        assert halo == sorted(set(halo)) and not set(halo) & set(own)
        known = usual[[*own, *halo]]
        dense = np.zeros((share.own, len(known)))
        for row in range(share.own):
            for place in range(int(share.crow[row]), int(share.crow[row + 1])):
                dense[row, share.column[place]] += share.values[place]
        np.testing.assert_allclose(dense @ x[known], matrix[usual[list(own)]] @ x, atol=1e-6)
        touched = {n for n in np.flatnonzero(matrix[usual[list(own)]].any(0)) if n not in set(usual[list(own)])}
        assert touched == set(usual[halo]), "the halo has what is needed, and nothing else"


def test_a_row_has_the_whole_matrix_bits_and_order(pairs):
    whole = normalized_adjacency(pairs, USERS, ITEMS)
    for share in shares_of(pairs, 3):
        usual, first = old_numbers(share.ranges), int(share.ranges.first_nodes[share.rank])
        known = np.concatenate([np.arange(first, first + share.own), share.halo.numpy()])
        for row in range(share.own):
            cells = slice(int(share.crow[row]), int(share.crow[row + 1]))
            node = usual[first + row]
            expected = slice(int(whole.crow_indices()[node]), int(whole.crow_indices()[node + 1]))
            assert usual[known[share.column[cells].numpy()]].tolist() == whole.col_indices()[expected].tolist()
            assert torch.equal(share.values[cells], whole.values()[expected])


def test_every_pair_is_one_workers(pairs):
    seen, validated = {}, set()
    for share in shares_of(pairs, 3):
        start = share.ranges.users[share.rank]
        assert bool((share.position.diff() > 0).all())
        for user, item, position in zip(share.user.tolist(), share.item.tolist(), share.position.tolist(), strict=True):
            assert position not in seen
            seen[position] = (start + user, item)
        validated |= {(start + user, item) for user, item in share.val.T.tolist()}
    assert [seen[position] for position in range(EDGES)] == [tuple(pair) for pair in pairs.T.tolist()]
    assert validated == {tuple(pair) for pair in pairs[:, ::7].T.tolist()}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_nodes_are_numbered_worker_by_worker(pairs, workers):
    ranges = shares_of(pairs, workers)[0].ranges
    usual = old_numbers(ranges)
    assert usual[ranges.user_nodes(torch.arange(USERS))].tolist() == list(range(USERS))
    assert usual[ranges.item_nodes(torch.arange(ITEMS))].tolist() == list(range(USERS, USERS + ITEMS))
    owners = ranges.node_owners(torch.arange(USERS + ITEMS)).tolist()
    assert owners == sorted(owners) and set(owners) == set(range(workers))


def test_cuts_balance_edges():
    degree = torch.randint(0, 200, (5000,), generator=torch.Generator().manual_seed(0))
    cuts = balanced_cuts(degree, 8)
    loads = [int(degree[low:high].sum()) for low, high in pairwise(cuts)]
    assert (cuts[0], cuts[-1], len(cuts)) == (0, 5000, 9)
    assert max(loads) < 1.02 * sum(loads) / 8
    hub = torch.cat([torch.ones(10, dtype=torch.int64), torch.tensor([10_000]), torch.ones(10, dtype=torch.int64)])
    assert sorted(balanced_cuts(hub, 3)) == list(balanced_cuts(hub, 3)), "one node with all edges is not divided"


def test_users_without_negatives_are_named():
    everything = torch.stack([torch.full((ITEMS,), 2), torch.arange(ITEMS)])
    pairs = torch.cat([torch.tensor([[0, 1], [3, 4]]), everything], 1)
    for share in make_shares(pairs, pairs[:, :1], USERS, ITEMS, 2):
        assert share.saturated.tolist() == list(range(2, 2 + ITEMS))


def test_a_share_survives_its_file(pairs):
    share = shares_of(pairs, 2)[1]
    again = Share.from_bytes(share.to_bytes())
    assert (again.ranges, again.rank, again.interactions) == (share.ranges, 1, EDGES)
    for name, value in vars(share).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(again, name), value) and getattr(again, name).dtype == value.dtype


def test_initial_rows_are_the_whole_tables(pairs, monkeypatch):
    monkeypatch.setattr("xrec.graph.distributed._DRAWN_AT_ONCE", 100)
    whole = LightGCN(normalized_adjacency(pairs, USERS, ITEMS), 8, 2, generator_of(5, 0)).embedding
    for share in shares_of(pairs, 3):
        first = int(share.ranges.first_nodes[share.rank])
        expected = whole[old_numbers(share.ranges)[first : first + share.own]]
        assert torch.equal(_initial_rows(share, 8, generator_of(5, 0)), expected)


def test_refuses_more_workers_than_nodes():
    pairs = torch.tensor([[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"workers = 9: some would have none of the 2 users and 2 items; lower"):
        list(make_shares(pairs, pairs, 2, 2, 9))


def test_one_worker_has_the_usual_numbers():
    ranges = Ranges((0, USERS), (0, ITEMS))
    assert ranges.item_nodes(torch.arange(ITEMS)).tolist() == list(range(USERS, USERS + ITEMS))
