"""The retrieval floor against a search by brute force."""

import numpy as np
import pytest
import torch

from xrec.baselines.similar_user import SimilarUser

USERS, ITEMS = 30, 20


@pytest.fixture
def world():
    generator = np.random.default_rng(5)
    user, item = generator.normal(size=(USERS, 6)), generator.normal(size=(ITEMS, 6))
    # Users 20 and up, items 15 and up have no training explanation.
    pairs = [(u, i) for u in range(20) for i in range(15) if generator.random() < 0.1]
    return user, item, pairs


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def by_brute_force(user, item, pairs, u: int, i: int) -> tuple[int, str]:
    others = [n for n, pair in enumerate(pairs) if pair != (u, i)]
    for source, wanted in (("item", lambda n: pairs[n][1] == i), ("user", lambda n: pairs[n][0] == u)):
        found = [n for n in others if wanted(n)]
        if found:
            side, table, own = (0, user, user[u]) if source == "item" else (1, item, item[i])
            return max(found, key=lambda n: (cosine(table[pairs[n][side]], own), -n)), source
    writer = max({pairs[n][0] for n in others} - {u}, key=lambda w: (cosine(user[w], user[u]), -w))
    found = [n for n in others if pairs[n][0] == writer]
    return max(found, key=lambda n: (cosine(item[pairs[n][1]], item[i]), -n)), "neighbour"


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_chooses_what_a_search_by_brute_force_finds(world, batch_size):
    user, item, pairs = world
    explained = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    chooser = SimilarUser(torch.tensor(user).float(), torch.tensor(item).float(), *explained)
    asked = [(u, i) for u in range(USERS) for i in range(ITEMS)]
    chosen, sources = chooser.choose(np.array([u for u, _ in asked]), np.array([i for _, i in asked]), batch_size)
    rounded = user.astype(np.float32).astype(float), item.astype(np.float32).astype(float)
    expected = [by_brute_force(*rounded, pairs, *pair) for pair in asked]
    assert list(zip(chosen.tolist(), sources, strict=True)) == expected
    assert set(sources) == {"item", "user", "neighbour"}


def test_a_training_pair_never_gets_its_own_explanation(world):
    user, item, pairs = world
    explained = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    chooser = SimilarUser(torch.tensor(user), torch.tensor(item), *explained)
    chosen, _ = chooser.choose(*explained)
    assert not (chosen == np.arange(len(pairs))).any()


def test_of_equally_similar_ones_the_first_counts():
    user = torch.ones(4, 3)
    chooser = SimilarUser(user, torch.ones(2, 3), np.array([1, 2, 3]), np.array([0, 0, 1]))
    assert chooser.choose(np.array([0, 0]), np.array([0, 1]))[0].tolist() == [0, 2]


def test_without_training_explanations_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match="no training explanation"):
        SimilarUser(torch.ones(1, 2), torch.ones(1, 2), np.empty(0, int), np.empty(0, int))
