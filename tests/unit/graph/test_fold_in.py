"""Fold-in: Eq. 7 for new nodes against dense algebra, and what it is worth against training."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from xrec.embeddings import Embeddings
from xrec.graph.fold_in import FoldIn, fold_in_zero_shot
from xrec.graph.interactions import InteractionSplits
from xrec.graph.ranking_metrics import evaluate_ranking
from xrec.graph.training import train_lightgcn

SETTINGS = {"dim": 16, "layers": 3, "batch_size": 256, "learning_rate": 1e-2, "max_epochs": 60}


@pytest.fixture(scope="module")
def trained(taste_world) -> Embeddings:
    world = taste_world
    return train_lightgcn(world.train, world.val, world.users, world.items, **SETTINGS).embeddings


@pytest.fixture(scope="module")
def fold_in(taste_world, trained) -> FoldIn:
    return FoldIn(trained, taste_world.train)


def test_a_new_user_gets_equation_7(taste_world, trained, fold_in):
    chosen = [[3, 50, 7], [11]]
    pairs = torch.tensor([[0, 0, 1, 0], [3, 50, 11, 7]])
    degree = np.bincount(taste_world.train[1], minlength=taste_world.items)
    item = trained.item.double().numpy()
    result = fold_in.users(pairs, 2).numpy()
    for user, items in enumerate(chosen):
        for layer in (1, 2, 3):
            expected = sum(item[layer - 1, i] / np.sqrt(len(items) * degree[i]) for i in items)
            np.testing.assert_allclose(result[layer, user], expected, rtol=1e-4, atol=1e-6)


def test_layer_zero_is_the_ridge_regression_on_layer_one(trained, fold_in):
    one = trained.item[1].double().numpy()
    alpha = 1e-3 * (one**2).sum(0).mean()
    ridge = Ridge(alpha, fit_intercept=False).fit(one, trained.item[0].double().numpy())
    new = fold_in.items(torch.tensor([[4, 9], [0, 0]]), 1)
    expected = torch.from_numpy(ridge.predict(new[1].double().numpy())).float()
    torch.testing.assert_close(new[0], expected, rtol=1e-3, atol=1e-5)


def test_a_users_twin_gets_nearly_the_users_ranking(taste_world, trained, fold_in):
    twins = fold_in.users(taste_world.train, taste_world.users)
    torch.testing.assert_close(twins[1:], trained.user[1:], atol=1e-5, rtol=1e-4)
    item = trained.item_mean()
    lists = [(users.mean(0) @ item.T).topk(20).indices.tolist() for users in (twins, trained.user)]
    shared = [len(set(a) & set(b)) / 20 for a, b in zip(*lists, strict=True)]
    by_chance = 20 / taste_world.items
    assert np.mean(shared) > 0.8 > 5 * by_chance


def test_an_items_twin_is_nearly_the_item(taste_world, trained, fold_in):
    twins = fold_in.items(taste_world.train, taste_world.items).mean(0)
    cosine = torch.cosine_similarity(twins, trained.item_mean())
    unrelated = torch.cosine_similarity(twins, trained.item_mean().roll(1, 0))
    assert cosine.median() > 0.9
    assert unrelated.median() < 0.5


def test_without_neighbours_a_node_is_the_average_one(trained, fold_in):
    user = fold_in.users(torch.tensor([[1], [5]]), 3)
    torch.testing.assert_close(user[:, 0], trained.user.mean(1))
    torch.testing.assert_close(user[:, 2], trained.user.mean(1))
    assert not torch.allclose(user[:, 1], trained.user.mean(1))


def zero_shot_splits(world, users=40, items=15) -> InteractionSplits:
    """The last users and items unseen in training; every other interaction of theirs known for folding in."""
    pairs = torch.cat([world.train, world.val, world.test], 1)
    new = (pairs[0] >= world.users - users) | (pairs[1] >= world.items - items)
    seen = [
        part[:, (part[0] < world.users - users) & (part[1] < world.items - items)]
        for part in (world.train, world.val, world.test)
    ]
    known = torch.arange(int(new.sum())) % 2 == 0
    unseen = pairs[:, new]
    counts = (world.users, world.items, world.users - users, world.items - items)
    return InteractionSplits(*counts, seen[0], seen[1], torch.cat([seen[2], unseen[:, ~known]], 1), unseen[:, known])


def test_zero_shot_users_and_items_are_found_far_above_chance(taste_world):
    splits = zero_shot_splits(taste_world)
    trained = train_lightgcn(splits.train, splits.val, splits.trained_users, splits.trained_items, **SETTINGS)
    embeddings = fold_in_zero_shot(trained.embeddings, splits)
    assert embeddings.user.shape[1:] == (taste_world.users, 16)
    assert embeddings.item.shape[1:] == (taste_world.items, 16)
    assert torch.equal(embeddings.user[:, : splits.trained_users], trained.embeddings.user)
    assert embeddings.metadata["folded_in_users"] == "40"
    assert embeddings.metadata["folded_in_items"] == "15"
    user, item = embeddings.user_mean(), embeddings.item_mean()
    known = torch.cat([splits.train, splits.fold_in], 1)
    new_user, new_item = splits.test[0] >= splits.trained_users, splits.test[1] >= splits.trained_items
    recall = {
        name: evaluate_ranking(user, item, splits.test[:, chosen], known).mean()["recall@20"]
        for name, chosen in {"trained": ~new_user & ~new_item, "users": new_user, "items": new_item & ~new_user}.items()
    }
    chance = 20 / taste_world.items
    assert recall["users"] > 4 * chance
    assert recall["users"] > 0.7 * recall["trained"]
    assert recall["items"] > 2 * chance


def test_zero_shot_nodes_without_a_trained_neighbour_are_counted(taste_world, trained):
    world = taste_world
    fold_in = torch.tensor([[world.users, world.users + 1, world.users + 1, 5], [2, 7, world.items, world.items]])
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    counts = (world.users + 3, world.items + 2, world.users, world.items)
    embeddings = fold_in_zero_shot(trained, InteractionSplits(*counts, world.train, world.val, nothing, fold_in))
    assert embeddings.metadata == {
        "folded_in_users": "3",
        "folded_in_items": "2",
        "folded_in_users_without_neighbours": "1",
        "folded_in_items_without_neighbours": "1",
    }


def test_nothing_to_fold_in_changes_nothing(taste_world, trained):
    world = taste_world
    counts = (world.users, world.items, world.users, world.items)
    splits = InteractionSplits(*counts, world.train, world.val, world.test, torch.zeros(2, 0, dtype=torch.int64))
    embeddings = fold_in_zero_shot(trained, splits)
    assert torch.equal(embeddings.user, trained.user)
    assert embeddings.metadata == {"folded_in_users": "0", "folded_in_items": "0"}


def test_refuses_unknown_items_and_plain_factorisation(taste_world, trained, fold_in):
    with pytest.raises(ValueError, match=r"fold-in of users: item 160 .* is not among the 160 items"):
        fold_in.users(torch.tensor([[0], [160]]), 1)
    with pytest.raises(ValueError, match="layers of 1 or more"):
        FoldIn(Embeddings(trained.user[:1], trained.item[:1]), taste_world.train)
