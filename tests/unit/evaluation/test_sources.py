"""Sources: everything that is known of a pair, and no held-out review, by loops over worlds whose texts have tokens."""

import re

import numpy as np
import pyarrow as pa
import pytest

from ray_jobs import preprocess, sample
from tests.review_world import make_workspace
from tests.tiny_world import make_workspace as make_tiny_workspace
from xrec import tables
from xrec.config import PreprocessConfig, SampleConfig
from xrec.data.sample import make_world, world_tables
from xrec.evaluation.sources import Sources, Texts
from xrec.workspace import Workspace

SPLITS = {
    "random": PreprocessConfig(seed=3),
    "zero-shot": PreprocessConfig(zero_shot_users=0.15, zero_shot_items=0.15, seed=4),
}


def world_with_tokens() -> dict[str, pa.Table]:
    """A sample world in which every review has a token of its own."""
    world = make_world(SampleConfig(users=30, items=24, interactions_per_user=7, features=6))
    source = {name: tables.validate(name, table) for name, table in world_tables(world).items()}
    reviews = [row | {"text": f"Came with token{n} once."} for n, row in enumerate(source["reviews"].to_pylist())]
    return source | {"reviews": tables.from_rows("reviews", reviews)}


def allowed_tokens(workspace: Workspace) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """Tokens of the reviews of each item, and by each user, that may be sources, by a loop."""
    users = {row["user_id"]: row for row in workspace.read_table("preprocess", "users").to_pylist()}
    items = {row["item_id"]: row for row in workspace.read_table("preprocess", "items_index").to_pylist()}
    split = {(r["user"], r["item"]): r["split"] for r in workspace.read_table("preprocess", "interactions").to_pylist()}
    of_item = {row["item"]: set() for row in items.values()}
    of_user = {row["user"]: set() for row in users.values()}
    for row in workspace.read_table("data", "reviews").to_pylist():
        user, item = users[row["user_id"]], items[row["item_id"]]
        token = re.search(r"token\d+", row["text"]).group()
        own = split[user["user"], item["item"]]
        if own == ("fold_in" if item["zero_shot"] else "train"):
            of_item[item["item"]].add(token)
        if own == ("fold_in" if user["zero_shot"] else "train"):
            of_user[user["user"]].add(token)
    return of_item, of_user


def tokens(texts: list[str]) -> set[str]:
    return set(re.findall(r"token\d+", " ".join(texts)))


@pytest.mark.parametrize("name", SPLITS)
def test_no_held_out_review_is_a_source_and_every_training_one_is(tmp_path, name):
    workspace = make_workspace(Workspace(tmp_path / "w"), world_with_tokens(), SPLITS[name])
    sources = Sources.load(workspace, 10**6)
    of_item, of_user = allowed_tokens(workspace)
    assert sources.kind == "reviews"
    held_out = 0
    for pair in workspace.read_table("preprocess", "interactions").to_pylist():
        user, item = pair["user"], pair["item"]
        assert tokens(sources.of(user, item)) == of_item[item] | of_user[user]
        held_out += pair["split"] in ("val", "test")
    assert held_out > 20


def test_no_held_out_review_is_a_source_under_a_split_that_contradicts_itself(tmp_path):
    """Explained test pairs that are edges of the training graph: their reviews are none of anybody's sources."""
    source = world_with_tokens()
    pairs = source["reviews"].select(["user_id", "item_id"])
    count = len(pairs)
    graph = pairs.append_column("split", pa.array(["train"] * (count - 20) + ["test"] * 20))
    explained = source["source_explanations"].slice(0, 25)
    explained = explained.set_column(
        explained.column_names.index("split"), "split", pa.array(["test"] * 25, pa.string())
    )
    config = PreprocessConfig(split="published")
    workspace = make_workspace(
        Workspace(tmp_path / "w"), source | {"source_split": graph, "source_explanations": explained}, config
    )
    sources = Sources.load(workspace, 10**6)
    seen = {
        token
        for pair in workspace.read_table("preprocess", "interactions").to_pylist()
        for token in tokens(sources.of(pair["user"], pair["item"]))
    }
    assert seen == {f"token{n}" for n in range(25, count - 20)}


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("sources") / "w")
    sample.run(workspace, SampleConfig(users=60, items=40, interactions_per_user=8, features=6))
    preprocess.run(workspace, PreprocessConfig())
    return workspace


def test_everything_known_of_the_pair_is_a_source(sampled):
    found = Sources.load(sampled, 2).of(3, 5)
    item = sampled.read_table("preprocess", "items_index").to_pylist()[5]
    facts = next(row for row in sampled.read_table("data", "items").to_pylist() if row["item_id"] == item["item_id"])
    city = re.search(r'"city": "(\w+)"', facts["attributes"]).group(1)
    profiles = [
        next(row["profile"] for row in sampled.read_text_table(f"{side}_profiles").to_pylist() if row[side] == node)
        for side, node in (("item", 5), ("user", 3))
    ]
    assert {item["title"], facts["description"], *profiles} <= set(found)
    assert any(text.startswith(f"city: {city}; neighbourhood: ") for text in found)
    assert len(found) == 5 + 2 + 2


def test_the_draw_is_always_the_same_and_has_so_many_reviews(sampled):
    pairs = [(user, item) for user in range(0, 60, 7) for item in range(0, 40, 5)]
    few, again, many = (Sources.load(sampled, count) for count in (3, 3, 10**6))
    for pair in pairs:
        assert few.of(*pair) == again.of(*pair)
        assert set(few.of(*pair)) <= set(many.of(*pair))
    assert any(len(few.of(*pair)) < len(many.of(*pair)) for pair in pairs)


def test_no_reviews_can_be_asked_for(sampled):
    sources = Sources.load(sampled, 0)
    assert len(sources.of(3, 5)) == 5
    assert sources.kind == "none"


def test_only_the_nodes_of_the_given_pairs_are_kept(sampled):
    pairs = pa.table({"user": pa.array([3, 4], pa.int32()), "item": pa.array([5, 5], pa.int32())})
    part, whole = Sources.load(sampled, 4, pairs), Sources.load(sampled, 4)
    assert part.of(3, 5) == whole.of(3, 5)
    assert part.of(4, 5) == whole.of(4, 5)
    assert part.of(8, 9) == []


def test_training_explanations_stand_in_where_there_are_no_reviews(tmp_path):
    workspace = make_tiny_workspace(tmp_path / "w")
    sources = Sources.load(workspace, 10**6)
    assert sources.kind == "explanations"
    explained = workspace.read_text_table("explanations").to_pylist()
    for pair in explained:
        expected = {
            row["explanation"]
            for row in explained
            if row["split"] == "train" and (row["item"] == pair["item"] or row["user"] == pair["user"])
        }
        expected.add(f"place {pair['item']}")
        for side in ("item", "user"):
            profiles = workspace.read_text_table(f"{side}_profiles").to_pylist()
            expected |= {row["profile"] for row in profiles if row[side] == pair[side]}
        assert set(sources.of(pair["user"], pair["item"])) == expected
    few = Sources.load(workspace, 1)
    assert max(len(few.of(pair["user"], pair["item"])) for pair in explained) == 3 + 1 + 1


def test_texts_are_collected_in_batches(monkeypatch):
    monkeypatch.setattr("xrec.evaluation.sources._ROWS", 2)
    texts = Texts.collect([(1, "a"), (1, "b"), (1, "c"), (4, "d"), (6, "e")])
    assert [texts.of(node) for node in (0, 1, 4, 5, 6)] == [[], ["a", "b", "c"], ["d"], [], ["e"]]
    assert Texts.collect([]).of(1) == []
    np.testing.assert_array_equal(texts.nodes, [1, 1, 1, 4, 6])
