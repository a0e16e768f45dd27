"""No held-out pair's review is in any profile's record: every review has a token of its own, and a loop looks for it.

The records of these tests quote everything that may be quoted, so they hold exactly the allowed tokens.
"""

import re

import pytest

from tests.review_world import make_workspace
from xrec import tables
from xrec.config import PreprocessConfig, SampleConfig
from xrec.config.profile import ProfileConfig
from xrec.data.release import read_release
from xrec.data.sample import make_world, world_tables
from xrec.profiles.records import record_batches
from xrec.workspace import Workspace

EVERYTHING = ProfileConfig(reviews_per_item=10**6, items_per_user=10**6)
SPLITS = {
    "random": PreprocessConfig(seed=3),
    "zero-shot": PreprocessConfig(zero_shot_users=0.15, zero_shot_items=0.15, seed=4),
    "published": PreprocessConfig(split="published"),
}


def with_tokens(reviews: list[dict]) -> list[dict]:
    """The reviews, each with a token for its text, and for every tenth pair an earlier review with another one."""
    latest = [row | {"text": f"Came with token{n}now and liked it.", "timestamp": 2} for n, row in enumerate(reviews)]
    earlier = [
        row | {"text": f"Came with token{n}before and liked it.", "timestamp": 1} for n, row in enumerate(reviews[::10])
    ]
    return earlier + latest


def quoted(workspace, kind) -> dict[int, set[str]]:
    """Every token of every record, by item or user."""
    key = kind.removesuffix("_profile")
    found = {}
    for batch in record_batches(workspace, EVERYTHING, kind, 4096, memory_limit="1GB"):
        for node, record in zip(batch[key].to_pylist(), batch["record"].to_pylist(), strict=True):
            found[node] = set(re.findall(r"token\w+", record))
    return found


def allowed(workspace) -> tuple[dict[int, set[str]], dict[int, set[str]], int]:
    """The tokens that may be quoted of each item and user, and how many training pairs an explanation holds out."""
    users = {row["user_id"]: row for row in workspace.read_table("preprocess", "users").to_pylist()}
    items = {row["item_id"]: row for row in workspace.read_table("preprocess", "items_index").to_pylist()}
    held_out = set()
    if workspace.has_table("preprocess", "explanations"):
        for row in workspace.read_table("preprocess", "explanations", ["user", "item", "split"]).to_pylist():
            if row["split"] in ("val", "test"):
                held_out.add((row["user"], row["item"]))
    split, contradicted = {}, 0
    for row in workspace.read_table("preprocess", "interactions").to_pylist():
        pair = row["user"], row["item"]
        contradicted += pair in held_out and row["split"] == "train"
        split[pair] = "held out" if pair in held_out else row["split"]
    of_item, of_user = {}, {}
    for row in workspace.read_table("data", "reviews").to_pylist():
        user, item = users.get(row["user_id"]), items.get(row["item_id"])
        token = re.search(r"token\w+", row["text"])[0]
        if user is None or item is None or token.endswith("before"):
            continue
        own = split.get((user["user"], item["item"]))
        if own == ("fold_in" if item["zero_shot"] else "train"):
            of_item.setdefault(item["item"], set()).add(token)
        if own == ("fold_in" if user["zero_shot"] else "train"):
            of_user.setdefault(user["user"], set()).add(token)
    return of_item, of_user, contradicted


def check(workspace) -> int:
    """Compare both kinds' records with what the loop allows; returns the number of contradicting pairs."""
    of_item, of_user, contradicted = allowed(workspace)
    for kind, expected in (("item_profile", of_item), ("user_profile", of_user)):
        found = {node: tokens for node, tokens in quoted(workspace, kind).items() if tokens}
        leaked = {node: tokens - expected.get(node, set()) for node, tokens in found.items()}
        assert not any(leaked.values()), (kind, [entry for entry in leaked.items() if entry[1]][:3])
        assert found == expected
        assert sum(map(len, found.values())) > 100
    return contradicted


@pytest.mark.parametrize("split", ["random", "zero-shot"])
def test_no_held_out_review_of_the_sample_world_is_quoted(tmp_path, split):
    source = world_tables(make_world(SampleConfig(users=150, items=80, interactions_per_user=12)))
    source = {name: tables.validate(name, table) for name, table in source.items()}
    source["reviews"] = tables.from_rows("reviews", with_tokens(source["reviews"].to_pylist()))
    workspace = make_workspace(Workspace(tmp_path), source, SPLITS[split])
    assert check(workspace) == 0


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["yelp", "amazon"])
def test_no_held_out_review_of_real_interactions_is_quoted(release_data, tmp_path, name, split):
    source, _ = read_release(release_data / "xrec-release" / name)
    # Some of the users keep the test short.
    reviews = [row for row in source["reviews"].to_pylist() if int(row["user_id"]) % 6 == 0]
    if split != "published":
        del source["source_split"]
    source["reviews"] = tables.from_rows("reviews", with_tokens(reviews))
    workspace = make_workspace(Workspace(tmp_path), source, SPLITS[split])
    contradicted = check(workspace)
    assert (contradicted > 0) == (split == "published")


def test_the_stricter_reading_holds_where_two_published_splits_contradict_each_other(tmp_path):
    pairs = [("a", "x", "train", "test"), ("a", "y", "train", "train"), ("b", "x", "train", "val")]
    pairs += [("b", "y", "test", "train"), ("c", "x", "val", "test"), ("c", "y", "train", None)]
    facts = {"model": "m", "prompt_hash": "", "tokens_in": 0, "tokens_out": 0, "status": "ok", "error": None}
    ids = [{"user_id": u, "item_id": i} for u, i, _, _ in pairs]
    explained = [
        pair | {"split": own, "explanation": "e", **facts}
        for pair, (_, _, _, own) in zip(ids, pairs, strict=True)
        if own
    ]
    source = {
        "reviews": tables.from_rows("reviews", with_tokens(ids)),
        "items": tables.from_rows("items", [{"item_id": i, "title": i.upper()} for i in "xy"]),
        "source_split": tables.from_rows(
            "source_split", [pair | {"split": s} for pair, (_, _, s, _) in zip(ids, pairs, strict=True)]
        ),
        "source_explanations": tables.from_rows("source_explanations", explained),
    }
    workspace = make_workspace(Workspace(tmp_path), source, SPLITS["published"])
    # Users a, b, c and items x, y are 0, 1, 2 and 0, 1.
    assert quoted(workspace, "item_profile") == {0: set(), 1: {"token1now", "token5now"}}
    assert quoted(workspace, "user_profile") == {0: {"token1now"}, 2: {"token5now"}}
    splits = {}
    for batch in record_batches(workspace, EVERYTHING, "explanation", 10):
        splits |= {(row["user"], row["item"]): row["split"] for row in batch.to_pylist()}
    assert splits == {(0, 0): "test", (0, 1): "train", (1, 0): "val", (1, 1): "test", (2, 0): "test", (2, 1): "train"}
