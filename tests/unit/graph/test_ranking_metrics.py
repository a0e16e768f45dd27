"""Ranking metrics against a loop in plain Python, scikit-learn's NDCG and PyTorch Geometric's metrics."""

import math

import pytest
import torch
from sklearn.metrics import ndcg_score
from torch_geometric.metrics import LinkPredMRR, LinkPredNDCG, LinkPredPrecision, LinkPredRecall

from xrec.graph import ranking_metrics
from xrec.graph.ranking_metrics import evaluate_ranking, ndcg_at_k, precision_at_k, recall_at_k, reciprocal_rank

USERS, ITEMS, CUT_OFFS = 37, 29, (1, 5, 20)


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(USERS, ITEMS, generator=generator)
    known, relevant = cells < 0.2, (cells >= 0.2) & (cells < 0.35)
    relevant[4] = False  # a user with nothing to find
    user, item = torch.randn(USERS, 6, generator=generator), torch.randn(ITEMS, 6, generator=generator)
    shuffle = torch.randperm(int(relevant.sum()), generator=generator)
    return user, item, relevant.nonzero().T[:, shuffle], known.nonzero().T


def naive(user, item, relevant, known):
    """Sort, look, count: per user with something to find."""
    figures = {}
    for u in sorted(set(relevant[0].tolist())):
        wanted = set(relevant[1, relevant[0] == u].tolist())
        masked = set(known[1, known[0] == u].tolist())
        scores = {i: float(user[u] @ item[i]) for i in range(len(item)) if i not in masked}
        ranked = sorted(scores, key=scores.get, reverse=True)
        for k in CUT_OFFS:
            hits = [i in wanted for i in ranked[:k]]
            gain = sum(1 / math.log2(r + 2) for r, hit in enumerate(hits) if hit)
            ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(wanted))))
            figures.setdefault(f"recall@{k}", []).append(sum(hits) / len(wanted))
            figures.setdefault(f"precision@{k}", []).append(sum(hits) / k)
            figures.setdefault(f"ndcg@{k}", []).append(gain / ideal)
        figures.setdefault("mrr", []).append(1 / (1 + min(ranked.index(i) for i in wanted)))
    return figures


def test_equals_a_naive_loop(world):
    ranking, expected = evaluate_ranking(*world, CUT_OFFS), naive(*world)
    assert set(ranking.values) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(ranking.values[name], torch.tensor(values), msg=name)
        assert ranking.mean()[name] == pytest.approx(sum(values) / len(values), rel=1e-6)
    assert 4 not in ranking.users.tolist()


def test_chunks_change_nothing(world, monkeypatch):
    whole = evaluate_ranking(*world, CUT_OFFS)
    monkeypatch.setattr(ranking_metrics, "_CELLS", 3 * ITEMS)
    in_chunks = evaluate_ranking(*world, CUT_OFFS)
    for name, values in whole.values.items():
        torch.testing.assert_close(in_chunks.values[name], values)


def test_equals_pytorch_geometric(world):
    user, item, relevant, known = world
    ranking = evaluate_ranking(*world, CUT_OFFS)
    scores = user @ item.T
    scores[known[0], known[1]] = -torch.inf
    position = {u: p for p, u in enumerate(ranking.users.tolist())}
    labels = torch.stack([torch.tensor([position[u] for u in relevant[0].tolist()]), relevant[1]])
    order = scores[ranking.users].argsort(dim=1, descending=True)
    for k in CUT_OFFS:
        for name, metric in (("recall", LinkPredRecall), ("ndcg", LinkPredNDCG), ("precision", LinkPredPrecision)):
            reference = metric(k)
            reference.update(order[:, :k], labels)
            assert ranking.mean()[f"{name}@{k}"] == pytest.approx(float(reference.compute()), rel=1e-5)
    reference = LinkPredMRR(ITEMS)
    reference.update(order, labels)
    assert ranking.mean()["mrr"] == pytest.approx(float(reference.compute()), rel=1e-5)


def test_ndcg_equals_scikit_learn(world):
    user, item, relevant, known = world
    scores = user @ item.T
    scores[known[0], known[1]] = -1e9
    truth = torch.zeros(USERS, ITEMS)
    truth[relevant[0], relevant[1]] = 1
    ranking = evaluate_ranking(*world, CUT_OFFS)
    for k in CUT_OFFS:
        expected = [ndcg_score(truth[u : u + 1], scores[u : u + 1], k=k) for u in ranking.users.tolist()]
        torch.testing.assert_close(ranking.values[f"ndcg@{k}"], torch.tensor(expected, dtype=torch.float32))


def test_hand_computed_figures():
    hits, relevant = torch.tensor([[True, False, True], [False, False, False]]), torch.tensor([4, 1])
    assert recall_at_k(hits, relevant, 3).tolist() == [0.5, 0.0]
    assert precision_at_k(hits, 2).tolist() == [0.5, 0.0]
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ndcg_at_k(hits, relevant, 3).tolist() == pytest.approx([1.5 / best, 0.0])


def test_ties_count_against_the_relevant_item():
    scores = torch.tensor([[0.0, 0.0, 0.0, -torch.inf], [2.0, 1.0, 2.0, 0.0]])
    relevant = torch.tensor([[False, True, False, False], [True, False, True, False]])
    assert reciprocal_rank(scores, relevant).tolist() == pytest.approx([1 / 3, 1.0])


def test_fewer_candidates_than_the_cut_off():
    user, item = torch.ones(1, 2), torch.eye(2)[[0, 1, 0]]
    ranking = evaluate_ranking(user, item, torch.tensor([[0], [1]]), torch.tensor([[0], [0]]), (20,))
    assert ranking.mean()["recall@20"] == 1
    assert ranking.mean()["precision@20"] == pytest.approx(1 / 20)


def test_a_known_item_is_no_recommendation():
    pair = torch.tensor([[0], [1]])
    ranking = evaluate_ranking(torch.ones(1, 2), torch.ones(3, 2), pair, pair, (3,))
    assert ranking.mean()["recall@3"] == 0


def test_refuses_nothing_to_find_and_bad_cut_offs(world):
    user, item, relevant, known = world
    with pytest.raises(ValueError, match=r"no \(user, item\) pairs"):
        evaluate_ranking(user, item, relevant[:, :0], known)
    with pytest.raises(ValueError, match=r"top_k = \(0,\)"):
        evaluate_ranking(user, item, relevant, known, (0,))
