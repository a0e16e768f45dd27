"""New nodes against `xrec.graph`'s fold-in, cosines and rankings against loops."""

import numpy as np
import pytest
import torch

from tests.tiny_world import ITEMS, USERS
from xrec.embeddings import Embeddings
from xrec.graph.fold_in import FoldIn
from xrec.serving.nodes import averaged, best, cosine, find_item, find_user, fold_in
from xrec.serving.queries import ItemQuery, RequestError, UserQuery

TRAINED_USERS, TRAINED_ITEMS = USERS - 2, ITEMS - 2


@pytest.fixture(scope="module")
def reference(published, snapshot) -> FoldIn:
    """The fold-in of the stage embed, from the workspace's own tables."""
    pairs = [p for p in published.read_table("preprocess", "interactions").to_pylist() if p["split"] == "train"]
    train = torch.tensor([[p["user"] for p in pairs], [p["item"] for p in pairs]])
    embeddings = Embeddings.load(published.path("embed", "embeddings.safetensors"))
    return FoldIn(Embeddings(embeddings.user[:, :TRAINED_USERS], embeddings.item[:, :TRAINED_ITEMS]), train)


@pytest.mark.parametrize("neighbours", [[0], [1, 5, 7], list(range(TRAINED_ITEMS))])
def test_new_nodes_are_folded_in_as_the_graph_package_does(snapshot, reference, neighbours):
    others = torch.tensor(neighbours)
    expected = reference.users(torch.stack([torch.zeros_like(others), others]), 1)[:, 0]
    np.testing.assert_allclose(fold_in(snapshot, "user", np.array(neighbours)), expected, rtol=2e-5, atol=1e-6)
    expected = reference.items(torch.stack([others, torch.zeros_like(others)]), 1)[:, 0]
    np.testing.assert_allclose(fold_in(snapshot, "item", np.array(neighbours)), expected, rtol=2e-5, atol=1e-6)


def test_a_zero_shot_neighbour_counts_as_one_of_degree_one(snapshot, published):
    """Eq. 7 by hand: neighbours 0 and the zero-shot item, whose training degree of 0 counts as 1."""
    item = Embeddings.load(published.path("embed", "embeddings.safetensors")).item.numpy()
    degree = int(snapshot.arrays.item_degree[0])
    assert degree > 1 and snapshot.arrays.item_degree[ITEMS - 1] == 0
    upper = [item[k, 0] / np.sqrt(2 * degree) + item[k, ITEMS - 1] / np.sqrt(2) for k in (0, 1)]
    np.testing.assert_allclose(fold_in(snapshot, "user", np.array([0, ITEMS - 1]))[1:], upper, rtol=1e-5, atol=1e-6)


def test_a_new_user_is_what_the_interactions_say_whatever_their_order(snapshot, reference):
    user = find_user(snapshot, UserQuery(interactions=("i7", "i1", "i5", "i1"), profile="new"))
    others = torch.tensor([1, 5, 7])
    expected = reference.users(torch.stack([torch.zeros_like(others), others]), 1)[:, 0].mean(0)
    np.testing.assert_allclose(user.embedding, expected, rtol=1e-4, atol=1e-6)
    assert user.others.tolist() == [1, 5, 7] and user.row is None and user.profile == "new"


def test_known_nodes_are_what_the_tables_say(snapshot, published):
    embeddings = Embeddings.load(published.path("embed", "embeddings.safetensors"))
    profiles = {p["item"]: p["profile"] for p in published.read_table("preprocess", "item_profiles").to_pylist()}
    pairs = published.read_table("preprocess", "interactions").to_pylist()
    for row in range(USERS):
        user = find_user(snapshot, UserQuery(f"u{row}"))
        np.testing.assert_allclose(user.embedding, embeddings.user[:, row].mean(0), rtol=1e-5, atol=1e-7)
        known = [p["item"] for p in pairs if p["user"] == row and p["split"] in ("train", "fold_in")]
        assert user.row == row and user.others.tolist() == sorted(known)
    for row in range(ITEMS):
        item = find_item(snapshot, ItemQuery(f"i{row}"))
        np.testing.assert_allclose(item.embedding, embeddings.item[:, row].mean(0), rtol=1e-5, atol=1e-7)
        known = [p["user"] for p in pairs if p["item"] == row and p["split"] in ("train", "fold_in")]
        assert (item.row, item.title, item.profile) == (row, f"place {row}", profiles[row])
        assert item.others.tolist() == sorted(known)
    rows = np.array([3, 0, 3])
    np.testing.assert_allclose(averaged(snapshot, "user", rows), embeddings.user[:, rows].mean(0), rtol=1e-5)
    np.testing.assert_allclose(averaged(snapshot, "item", rows), embeddings.item[:, rows].mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("find", "query", "status", "code", "field"),
    [
        (find_user, UserQuery("nobody"), 404, "user_not_found", "user_id"),
        (find_user, UserQuery(""), 404, "user_not_found", "user_id"),
        (find_user, UserQuery("\ud800"), 404, "user_not_found", "user_id"),
        (find_user, UserQuery(interactions=("i1", "i2", "u1")), 404, "item_not_found", "interactions.2"),
        (find_user, UserQuery(), 422, "interactions_empty", "interactions"),
        (find_user, UserQuery("u1", ("i1",)), 422, "interactions_not_allowed", "user_id"),
        (find_item, ItemQuery("u1"), 404, "item_not_found", "item_id"),
        (find_item, ItemQuery(title="new", interactions=("i1",)), 404, "user_not_found", "item.interactions.0"),
        (find_item, ItemQuery(title="new"), 422, "interactions_empty", "item.interactions"),
        (find_item, ItemQuery("i1", interactions=("u1",)), 422, "interactions_not_allowed", "item_id"),
    ],
)
def test_what_is_unknown_is_named(snapshot, find, query, status, code, field):
    with pytest.raises(RequestError) as caught:
        find(snapshot, query)
    assert (caught.value.status, caught.value.code, caught.value.field) == (status, code, field)


def test_cosine_is_the_definition_and_zero_for_zero():
    draws = np.random.default_rng(0)
    many, one = draws.normal(size=(20, 5)).astype(np.float32), draws.normal(size=5).astype(np.float32)
    many[3] = 0
    expected = [
        0 if k == 3 else float(np.dot(v, one) / np.sqrt(np.dot(v, v) * np.dot(one, one))) for k, v in enumerate(many)
    ]
    np.testing.assert_allclose(cosine(many, one), expected, rtol=1e-5, atol=1e-7)
    assert (cosine(many, np.zeros(5, np.float32)) == 0).all()
    assert cosine(many[:0], one).shape == (0,)


@pytest.mark.parametrize("count", [0, 1, 3, 50, 99, 100, 1000])
def test_the_best_are_a_full_sorts_with_ties_in_order(count):
    scores = np.random.default_rng(count).integers(0, 12, 100).astype(np.float32)
    scores[::7] = -np.inf
    expected = sorted(range(100), key=lambda k: (-scores[k], k))[:count]
    assert best(scores, count).tolist() == expected
