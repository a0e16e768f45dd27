"""The rules of the one split, checked pair by pair on random graphs."""

from collections import defaultdict

import numpy as np
import pytest

from xrec.config import ConfigError, PreprocessConfig
from xrec.data.splitting import choose_zero_shot, split_pairs


def random_graph(seed, users=60, items=40, edges=700):
    random = np.random.default_rng(seed)
    pairs = np.unique(random.integers(0, [users, items], size=(edges, 2)), axis=0)
    explained = random.random(len(pairs)) < 0.3
    return pairs[:, 0], pairs[:, 1], explained, users, items


def split_graph(seed, **settings):
    config = PreprocessConfig.model_validate(settings)
    user, item, explained, users, items = random_graph(seed)
    random = np.random.default_rng(seed)
    new_user = choose_zero_shot(users, config.zero_shot_users, random)
    new_item = choose_zero_shot(items, config.zero_shot_items, random)
    split = split_pairs(user, item, explained, new_user, new_item, config, random)
    return user, item, explained, new_user, new_item, split


def test_shares_are_exact_with_and_without_an_explanation():
    user, _, explained, *_, split = split_graph(0, ratios=(0.7, 0.2, 0.1), explained_ratios=(0.5, 0.2, 0.3))
    assert len(user) > 400
    for rows, shares in ((~explained, (0.7, 0.2, 0.1)), (explained, (0.5, 0.2, 0.3))):
        counted = [np.count_nonzero(split[rows] == name) for name in ("train", "val", "test")]
        assert counted == pytest.approx(np.array(shares) * rows.sum(), abs=1.5)


def test_explained_pairs_follow_the_ratios_where_they_have_none_of_their_own():
    *_, explained, _, _, split = split_graph(1, ratios=(0.6, 0.2, 0.2))
    assert np.mean(split[explained] == "train") == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("seed", range(6))
def test_every_trained_node_keeps_a_training_pair_where_it_can(seed):
    user, item, _, new_user, new_item, split = split_graph(
        seed, ratios=(0.05, 0.15, 0.8), zero_shot_users=0.1, zero_shot_items=0.1
    )
    could, does = defaultdict(bool), defaultdict(bool)
    for u, i, s in zip(user, item, split, strict=True):
        possible = not new_user[u] and not new_item[i]
        for node in (("user", u), ("item", i)):
            could[node] |= possible
            does[node] |= s == "train"
    assert any(could.values())
    assert dict(could) == dict(does)


def test_a_pair_that_is_given_back_to_training_is_one_without_an_explanation_if_there_is_one():
    user, item = np.array([0, 0, 0, 1]), np.array([0, 1, 2, 0])
    explained = np.array([True, True, False, True])
    for seed in range(10):
        split = split_pairs(
            user,
            item,
            explained,
            np.zeros(2, bool),
            np.zeros(3, bool),
            PreprocessConfig(ratios=(0.0, 0.0, 1.0)),
            np.random.default_rng(seed),
        )
        assert split[2] == "train", "user 0's only pair without an explanation"
        assert split[3] == "train", "user 1's only pair"
        assert split[0] == "test", "user 0 and item 0 have other training pairs"


@pytest.mark.parametrize("seed", range(6))
def test_zero_shot_nodes_never_train_and_fold_in_is_known_to_the_other_side(seed):
    user, item, _, new_user, new_item, split = split_graph(seed, zero_shot_users=0.2, zero_shot_items=0.15)
    assert (new_user.sum(), new_item.sum()) == (12, 6)
    folded, eligible = defaultdict(int), defaultdict(int)
    for u, i, s in zip(user, item, split, strict=True):
        if new_user[u] and new_item[i]:
            assert s == "test"
        elif new_user[u] or new_item[i]:
            node = ("user", u) if new_user[u] else ("item", i)
            assert s in ("fold_in", "test")
            eligible[node] += 1
            folded[node] += s == "fold_in"
        else:
            assert s in ("train", "val", "test")
    for node, count in eligible.items():
        assert folded[node] == min(max(round(0.7 * count), 1), max(count - 1, 1))
    assert len(eligible) == 18


def test_the_share_of_zero_shot_nodes_is_rounded_but_not_to_none():
    random = np.random.default_rng(0)
    assert [choose_zero_shot(50, share, random).sum() for share in (0, 0.001, 0.1, 0.5, 1)] == [0, 1, 5, 25, 50]


def test_the_same_seed_splits_alike_and_another_differently():
    same = [split_graph(3, zero_shot_users=0.1)[-1] for _ in range(2)]
    assert (same[0] == same[1]).all()
    user, item, explained, users, items = random_graph(3)
    known = np.zeros(users, bool), np.zeros(items, bool)
    splits = [
        split_pairs(user, item, explained, *known, PreprocessConfig(), np.random.default_rng(seed)) for seed in (0, 1)
    ]
    assert (splits[0] != splits[1]).any()


def test_nothing_left_to_train_on_is_named():
    with pytest.raises(
        ConfigError, match=r"preprocess.zero_shot_users = 1.0, zero_shot_items = 0.0: every interaction"
    ):
        split_graph(0, zero_shot_users=1.0)
