"""Evidence against loops over plain Python lists."""

from dataclasses import replace

import numpy as np
import pytest

from tests.tiny_world import ITEMS, USERS
from xrec.embeddings import Embeddings
from xrec.serving import evidence as module
from xrec.serving.evidence import evidence
from xrec.serving.nodes import find_item, find_user
from xrec.serving.queries import ItemQuery, UserQuery


@pytest.fixture(scope="module")
def world(published):
    """Averaged embeddings, and who is known to have chosen what, as dictionaries."""
    embeddings = Embeddings.load(published.path("embed", "embeddings.safetensors"))
    pairs = [
        p for p in published.read_table("preprocess", "interactions").to_pylist() if p["split"] in ("train", "fold_in")
    ]
    chosen = {u: {p["item"] for p in pairs if p["user"] == u} for u in range(USERS)}
    return embeddings.user.mean(0).double().numpy(), embeddings.item.mean(0).double().numpy(), chosen


def cosine(a, b):
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def expected_evidence(world, user, item, user_vector=None, item_vector=None, own=None, choosers=None):
    users, items, chosen = world
    a, b = users[user] if user_vector is None else user_vector, items[item] if item_vector is None else item_vector
    own = chosen[user] if own is None else own
    choosers = {u for u in chosen if item in chosen[u]} if choosers is None else choosers
    ranked = sorted(((cosine(a, users[u]), u) for u in choosers if u != user), reverse=True)[:5]
    similar = []
    for similarity, other in ranked:
        shared = sorted(own & chosen[other], key=lambda i: -cosine(items[i], b))[:3]
        similar.append((f"u{other}", similarity, [f"i{i}" for i in shared]))
    history = sorted(((cosine(items[i], b), i) for i in own if i != item), reverse=True)[:5]
    return float(a @ b), similar, [(f"i{i}", s) for s, i in history]


def check(found, expected):
    score, similar, history = expected
    assert found.score == pytest.approx(score, rel=1e-4, abs=1e-5)
    assert [u.user_id for u in found.similar_users] == [name for name, _, _ in similar]
    assert [u.similarity for u in found.similar_users] == pytest.approx([s for _, s, _ in similar], abs=1e-5)
    assert [[r.item_id for r in u.shared_items] for u in found.similar_users] == [shared for _, _, shared in similar]
    assert [row.item_id for row in found.history] == [name for name, _ in history]
    assert [row.score for row in found.history] == pytest.approx([s for _, s in history], abs=1e-5)
    assert all(row.title == f"place {row.item_id[1:]}" for row in found.history)


def test_every_known_pair(snapshot, world):
    most_similar, most_history = 0, 0
    for user in range(USERS):
        for item in range(ITEMS):
            found = evidence(
                snapshot, find_user(snapshot, UserQuery(f"u{user}")), find_item(snapshot, ItemQuery(f"i{item}"))
            )
            check(found, expected_evidence(world, user, item))
            most_similar = max(most_similar, len(found.similar_users))
            most_history = max(most_history, len(found.history))
    assert (most_similar, most_history) == (5, 5)


def test_new_users_and_items(snapshot, world):
    user = find_user(snapshot, UserQuery(interactions=("i0", "i3", "i6")))
    check(
        evidence(snapshot, user, find_item(snapshot, ItemQuery("i3"))),
        expected_evidence(world, None, 3, user_vector=user.embedding.astype(float), own={0, 3, 6}),
    )
    item = find_item(snapshot, ItemQuery(title="new", interactions=("u2", "u5", "u9")))
    check(
        evidence(snapshot, find_user(snapshot, UserQuery("u5")), item),
        expected_evidence(world, 5, None, item_vector=item.embedding.astype(float), choosers={2, 5, 9}),
    )
    both = evidence(snapshot, user, item)
    assert both.score == pytest.approx(float(user.embedding @ item.embedding))
    assert {u.user_id for u in both.similar_users} == {"u2", "u5", "u9"} and len(both.history) == 3


def test_of_very_many_choosers_evenly_spaced_ones_are_compared(snapshot, world, monkeypatch):
    monkeypatch.setattr(module, "_COMPARED", 3)
    user, item = find_user(snapshot, UserQuery("u0")), find_item(snapshot, ItemQuery("i0"))
    item = replace(item, others=np.array([1, 2, 3, 4, 5, 6, 7], np.int32))
    assert {u.user_id for u in evidence(snapshot, user, item).similar_users} == {"u1", "u4", "u7"}
