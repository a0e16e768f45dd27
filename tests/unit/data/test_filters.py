"""The filters against plain loops and networkx."""

import networkx
import numpy as np
import pyarrow as pa
import pytest

from xrec.config import ConfigError
from xrec.data.filters import add_published_split, interaction_pairs, k_core


def reviews(rows):
    """(user, item, rating, timestamp) tuples as a table of reviews."""
    columns = list(zip(*rows, strict=True))
    return pa.table(
        {
            "user_id": pa.array(columns[0]),
            "item_id": pa.array(columns[1]),
            "rating": pa.array(columns[2], pa.float32()),
            "timestamp": pa.array(columns[3], pa.int64()),
        }
    )


def explanations(*rows):
    return pa.table({name: pa.array([r[i] for r in rows]) for i, name in enumerate(("user_id", "item_id", "split"))})


def pairs_of(table):
    return {(r["user_id"], r["item_id"]): r for r in table.to_pylist()}


def test_low_ratings_go_unrated_reviews_stay_and_a_pair_is_kept_once():
    table = reviews([("u", "a", 5, 1), ("u", "a", 4, 2), ("u", "b", 2, 1), ("v", "a", None, 1), ("v", "b", 3, 1)])
    counts = {}
    found = pairs_of(interaction_pairs(table, None, 3.0, counts))
    assert set(found) == {("u", "a"), ("v", "a"), ("v", "b")}
    assert not any(row["explained"] for row in found.values())
    assert counts == {"dropped/reviews/low_rating": 1, "dropped/reviews/earlier_of_the_pair": 1}


def test_an_explained_pair_without_a_review_comes_in_and_a_low_rated_one_stays_out():
    table = reviews([("u", "a", 5, 1), ("u", "b", 1, 1)])
    counts = {}
    found = pairs_of(interaction_pairs(table, explanations(("u", "b", "test"), ("w", "c", "test")), 3.0, counts))
    assert {pair: row["explained"] for pair, row in found.items()} == {("u", "a"): False, ("w", "c"): True}
    assert counts["added/explained_pairs_without_review"] == 1


def test_a_rating_filter_that_leaves_nothing_is_named():
    table = reviews([("u", "a", 5, 1), ("u", "b", 1, 1)])
    with pytest.raises(ConfigError, match=r"preprocess.min_rating = 6.0: none of 2 reviews is left; lower it"):
        interaction_pairs(table, None, 6.0, {})
    with pytest.raises(ConfigError, match="'reviews' has no rows"):
        interaction_pairs(table.slice(0, 0), None, None, {})


@pytest.mark.parametrize("seed", range(12))
def test_the_k_core_is_that_of_networkx(seed):
    random = np.random.default_rng(seed)
    pairs = sorted({(f"u{u}", f"i{i}") for u, i in random.integers(0, 25, size=(110, 2))})
    table = pa.table({"user_id": [u for u, _ in pairs], "item_id": [i for _, i in pairs]})
    k = int(random.integers(1, 5))
    expected = {tuple(sorted(edge, reverse=True)) for edge in networkx.k_core(networkx.Graph(pairs), k).edges}
    counts = {}
    if not expected:
        with pytest.raises(ConfigError, match=rf"preprocess.k_core = {k}: none of {len(pairs)} interactions is left"):
            k_core(table, k, counts)
        return
    assert set(pairs_of(k_core(table, k, counts))) == expected
    assert counts == {"dropped/interactions/k_core": len(pairs) - len(expected)}


def test_the_published_split_falls_back_on_the_explanation_s_and_drops_what_has_none():
    pairs = pa.table({"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "explained": [True, True, False]})
    published = pa.table({"user_id": ["u", "x"], "item_id": ["a", "y"], "split": ["train", "val"]})
    counts = {}
    told = explanations(("u", "a", "test"), ("u", "b", "test"))
    found = pairs_of(add_published_split(pairs, published, told, counts))
    assert {pair: row["split"] for pair, row in found.items()} == {("u", "a"): "train", ("u", "b"): "test"}
    assert counts == {"dropped/interactions/not_in_published_split": 1}


def test_a_published_split_that_is_absent_or_of_other_pairs_is_named():
    pairs = pa.table({"user_id": ["u"], "item_id": ["a"], "explained": [False]})
    with pytest.raises(ConfigError, match=r"preprocess.split = published: the source has no split .*'source_split'"):
        add_published_split(pairs, None, None, {})
    elsewhere = pa.table({"user_id": ["x"], "item_id": ["y"], "split": ["val"]})
    with pytest.raises(ConfigError, match=r"preprocess.split = published: none of 1 interactions"):
        add_published_split(pairs, elsewhere, None, {})
