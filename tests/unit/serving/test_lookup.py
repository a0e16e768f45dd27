"""One dataset's lookups, against the adapter applied by hand, brute-force rankings and plain loops."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_world import ITEMS, USERS
from xrec.embeddings import Embeddings
from xrec.explainer.adapter import XRecAdapter
from xrec.serving.lookup import DatasetLookup
from xrec.serving.nodes import find_item, find_user
from xrec.serving.queries import ItemQuery, RequestError, UserQuery

NEW_USER = UserQuery(interactions=("i2", "i4"), profile="someone new")
NEW_ITEM = ItemQuery(title="a new place", interactions=("u1", "u3"), profile="something new")


@pytest.fixture(scope="module")
def lookup(snapshot) -> DatasetLookup:
    return DatasetLookup(snapshot)


@pytest.fixture(scope="module")
def reference(published):
    """The workspace's own adapter and averaged embeddings, and the known choices of each user."""
    adapter = XRecAdapter.from_pretrained(published.path("tune", "adapter"))
    embeddings = Embeddings.load(published.path("embed", "embeddings.safetensors"))
    pairs = published.read_table("preprocess", "interactions").to_pylist()
    known = [{p["item"] for p in pairs if p["user"] == u and p["split"] in ("train", "fold_in")} for u in range(USERS)]
    return adapter, embeddings.user.mean(0), embeddings.item.mean(0), known


@torch.no_grad()
def adapted(adapter, side, embedding) -> np.ndarray:
    return getattr(adapter, side)(torch.as_tensor(embedding)[None])[0].numpy()


def test_pairs_have_adapted_vectors_texts_and_prompt_settings(lookup, reference, published):
    adapter, user_mean, item_mean, _ = reference
    profiles = {s: published.read_table("preprocess", f"{s}_profiles")["profile"].to_pylist() for s in ("user", "item")}
    pairs = [(0, 3), (13, 9), (0, 9), (5, 3)]
    found = lookup.resolve([UserQuery(f"u{u}") for u, _ in pairs], [ItemQuery(f"i{i}") for _, i in pairs], "true")
    for (u, i), one in zip(pairs, found, strict=True):
        np.testing.assert_allclose(one.user_vector, adapted(adapter, "user", user_mean[u]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.item_vector, adapted(adapter, "item", item_mean[i]), rtol=1e-4, atol=1e-5)
        assert one.user_vector.dtype == np.float32 and one.user_vector.shape == (32,)
        assert (one.title, one.user_profile, one.item_profile) == (
            f"place {i}",
            profiles["user"][u],
            profiles["item"][i],
        )
        assert (one.prompt, one.prompt_hash, one.cold_start) == (adapter.spec.prompt, adapter.spec.prompt_hash, False)
        assert one.backbone == lookup.snapshot.backbone_key and one.adapter_hash == lookup.snapshot.adapter_hash


def test_new_nodes_bring_their_own_texts(lookup, reference, snapshot):
    adapter = reference[0]
    queries = [(NEW_USER, ItemQuery("i1")), (UserQuery("u1"), NEW_ITEM), (NEW_USER, NEW_ITEM)]
    found = lookup.resolve([u for u, _ in queries], [i for _, i in queries])
    assert [one.cold_start for one in found] == [True] * 3
    user, item = find_user(snapshot, NEW_USER), find_item(snapshot, NEW_ITEM)
    np.testing.assert_allclose(found[2].user_vector, adapted(adapter, "user", user.embedding), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2].item_vector, adapted(adapter, "item", item.embedding), rtol=1e-4, atol=1e-5)
    assert (found[2].title, found[2].user_profile, found[2].item_profile) == (
        "a new place",
        "someone new",
        "something new",
    )


def test_the_signal_is_switched_off_or_averaged(lookup, reference):
    adapter, user_mean, item_mean, _ = reference
    users, items = [UserQuery("u1"), NEW_USER, UserQuery("u13")], [ItemQuery("i1"), ItemQuery("i2"), NEW_ITEM]
    for one in lookup.resolve(users, items, "off"):
        assert one.user_vector is None and one.item_vector is None and one.user_profile
    average = adapted(adapter, "user", user_mean[: USERS - 2].mean(0))
    found, true = lookup.resolve(users, items, "average"), lookup.resolve(users, items, "true")
    for one, other in zip(found, true, strict=True):
        np.testing.assert_allclose(one.user_vector, average, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(one.item_vector, other.item_vector)
        assert not np.allclose(one.user_vector, other.user_vector)
    np.testing.assert_allclose(found[0].item_vector, adapted(adapter, "item", item_mean[1]), rtol=1e-4, atol=1e-5)


def test_a_repeated_query_is_looked_up_once(lookup, monkeypatch):
    seen = []

    def counted(snapshot, query):
        seen.append(query)
        return find_user(snapshot, query)

    monkeypatch.setattr("xrec.serving.lookup.find_user", counted)
    found = lookup.resolve([NEW_USER] * 8 + [UserQuery("u1")], [ItemQuery(f"i{k}") for k in range(9)])
    assert seen == [NEW_USER, UserQuery("u1")]
    assert all(np.array_equal(one.user_vector, found[0].user_vector) for one in found[:8])
    assert lookup.resolve([], []) == []


def test_what_is_unknown_says_in_which_pair(lookup):
    with pytest.raises(RequestError) as caught:
        lookup.resolve([UserQuery("u1"), UserQuery("u2")], [ItemQuery("i1"), ItemQuery("i99")])
    error = caught.value
    assert (error.status, error.code, error.field, error.index) == (404, "item_not_found", "item_id", 1)
    assert "'i99'" in str(error)
    with pytest.raises(RequestError) as caught:
        lookup.resolve([UserQuery("u1"), UserQuery(interactions=("i1", "?"))], [ItemQuery("i1")] * 2)
    assert (caught.value.field, caught.value.index) == ("interactions.1", 1)


def brute_force(user, items, known, k):
    scores = [float(user.double() @ item.double()) for item in items]
    left = sorted((i for i in range(len(items)) if i not in known), key=lambda i: -scores[i])[:k]
    return [(f"i{i}", f"place {i}") for i in left], [scores[i] for i in left]


@pytest.mark.parametrize("k", [1, 4, ITEMS, 1000])
def test_recommendations_are_a_brute_force_top_k(lookup, reference, snapshot, k):
    _, user_mean, item_mean, known = reference
    for u in range(USERS):
        rows, scores = brute_force(user_mean[u], item_mean, known[u], k)
        found = lookup.recommend(UserQuery(f"u{u}"), k)
        assert [(row.item_id, row.title) for row in found] == rows
        assert [row.score for row in found] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    rows, _ = brute_force(torch.from_numpy(find_user(snapshot, NEW_USER).embedding), item_mean, {2, 4}, k)
    assert [(row.item_id, row.title) for row in lookup.recommend(NEW_USER, k)] == rows


def test_nothing_is_left_for_a_user_of_everything(lookup):
    everything = UserQuery(interactions=tuple(f"i{k}" for k in range(ITEMS)))
    assert lookup.recommend(everything, 5) == []
    assert len(lookup.recommend(UserQuery(interactions=everything.interactions[1:]), 5)) == 1


def test_a_ranking_leaves_the_embeddings_as_they_are(lookup, reference):
    lookup.recommend(UserQuery("u0"), 3)
    np.testing.assert_allclose(lookup.snapshot.arrays.item_mean, reference[2], rtol=1e-4, atol=1e-6)


def test_a_users_details(lookup, reference, published):
    profiles = published.read_table("preprocess", "user_profiles")["profile"].to_pylist()
    for u in range(USERS):
        details = lookup.user(f"u{u}")
        assert [(row.item_id, row.title) for row in details.history] == [
            (f"i{i}", f"place {i}") for i in sorted(reference[3][u])
        ]
        assert (details.user_id, details.profile, details.zero_shot) == (f"u{u}", profiles[u], u >= USERS - 2)
    with pytest.raises(RequestError, match="the user 'x' is not in this dataset"):
        lookup.user("x")


def test_searches(lookup, reference):
    known = reference[3]
    assert lookup.search_users("u1") == [(f"u{k}", len(known[k])) for k in (1, 10, 11, 12, 13)]
    assert [name for name, _ in lookup.search_users(limit=3)] == ["u0", "u1", "u10"]
    assert lookup.search_users("nobody") == []
    found = lookup.search_items("PLACE 7")
    assert [(row.item_id, row.title) for row in found] == [("i7", "place 7")]
    assert found[0].interactions == sum(7 in items for items in known)
    assert [row.item_id for row in lookup.search_items("i3")] == ["i3"]
    assert len(lookup.search_items("")) == ITEMS and len(lookup.search_items("", 4)) == 4


def test_figures_below_one_are_refused(lookup):
    for call, field in (
        (lambda: lookup.recommend(UserQuery("u1"), 0), "k"),
        (lambda: lookup.search_items("", 0), "limit"),
    ):
        with pytest.raises(RequestError) as caught:
            call()
        assert (caught.value.status, caught.value.field) == (422, field)


def test_evidence_is_of_the_pair(lookup):
    found = lookup.evidence(UserQuery("u1"), ItemQuery("i1"))
    rows = {row.item_id: row.score for row in lookup.recommend(UserQuery(interactions=("i9",)), ITEMS)}
    assert lookup.evidence(UserQuery(interactions=("i9",)), ItemQuery("i1")).score == pytest.approx(
        rows["i1"], rel=1e-5
    )
    assert found.history and found.similar_users
    with pytest.raises(RequestError, match="the item 'x'"):
        lookup.evidence(UserQuery("u1"), ItemQuery("x"))


def test_looking_up_needs_no_graph_package_cluster_or_web_framework(published):
    root = Path(__file__).resolve().parents[3]
    program = (
        "import json, sys; from xrec.serving.catalog import Catalog; from xrec.serving.queries import *; "
        "import xrec.serving.publishing; "
        f"lookup = Catalog({{'a': {published.uri!r}}}).dataset(); new = UserQuery(interactions=('i1',)); "
        "lookup.recommend(new, 3); lookup.evidence(new, ItemQuery('i2')); lookup.resolve([new], [ItemQuery('i2')]); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torch_geometric", "xrec.graph", "ray", "fastapi", "vllm", "serve"} & set(json.loads(done.stdout))
