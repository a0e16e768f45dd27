"""The leakage report: worlds with each leak planted and with none, and loops in place of hashes."""

import numpy as np
import pytest

from tests.review_world import PROVENANCE
from xrec import tables
from xrec.config import PreprocessConfig
from xrec.data.preprocess import preprocess
from xrec.data.release import read_release
from xrec.evaluation.distinct import words
from xrec.evaluation.leakage import RUN, Runs, leakage, run_hashes
from xrec.workspace import Workspace

RANDOM = np.random.default_rng(0)
LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def text(length: int = 12) -> str:
    """Words that no other text has."""
    return " ".join("".join(RANDOM.choice(LETTERS, 9)) for _ in range(length))


class World:
    """Users 0 to 3 and items 0 to 5: a training pair for each user and item; (0, 1), (1, 2), (2, 3) are test pairs."""

    def __init__(self):
        self.pairs = {(u, i): "train" for u in range(4) for i in (u, 4, 5)}
        self.explained = {pair: ("train", text()) for pair in self.pairs}
        for pair in ((0, 1), (1, 2), (2, 3)):
            self.pairs[pair] = "test"
            self.explained[pair] = ("test", text())
        self.profiles = {side: [text() for _ in range(6)] for side in ("user", "item")}
        self.reviews = {pair: text() for pair in self.pairs}

    def save(self, folder, reviews: bool = True) -> Workspace:
        workspace = Workspace(folder)
        rows = {
            "users": [{"user": u, "user_id": f"u{u}", "zero_shot": False} for u in range(6)],
            "items_index": [{"item": i, "item_id": f"i{i}", "title": "t", "zero_shot": False} for i in range(6)],
            "interactions": [{"user": u, "item": i, "split": s} for (u, i), s in self.pairs.items()],
            "explanations": [
                {"user": u, "item": i, "split": s, "explanation": t, "feature": None, "status": "ok", **PROVENANCE}
                for (u, i), (s, t) in self.explained.items()
            ],
        }
        for side, profiles in self.profiles.items():
            rows[f"{side}_profiles"] = [
                {side: n, "profile": t, "status": "ok", **PROVENANCE} for n, t in enumerate(profiles)
            ]
        for name, content in rows.items():
            workspace.write_table(tables.from_rows(name, content), "preprocess", name)
        if reviews:
            content = [{"user_id": f"u{u}", "item_id": f"i{i}", "text": t} for (u, i), t in self.reviews.items()]
            workspace.write_table(tables.from_rows("reviews", content), "data", "reviews")
        return workspace


def counts(workspace: Workspace) -> dict[str, int]:
    return {name: leak["count"] for name, leak in leakage(workspace)["leaks"].items() if leak["count"] != 0}


def part(whole: str, length: int = RUN) -> str:
    """A text with so many words in a row of another one, in other case and punctuation."""
    return f"{text(3)} {', '.join(whole.upper().split()[2 : 2 + length])}! {text(2)}"


def test_a_clean_split_has_no_leak(tmp_path):
    found = leakage(World().save(tmp_path))
    assert (found["split"], found["pairs"], found["training_pairs"]) == ("test", 3, 12)
    assert {name for name, leak in found["leaks"].items() if leak["count"]} == set()
    assert all(leak["share"] == 0 and leak["meaning"] for leak in found["leaks"].values())


def plant_edge(world):
    world.pairs[0, 1] = "train"


def plant_other_split(world):
    world.pairs[0, 1] = "val"


def plant_unseen_user(world):
    world.explained[5, 4] = ("test", text())
    world.pairs[5, 4] = "test"


def plant_unseen_item(world):
    for user in range(4):
        del world.pairs[user, 5]
    world.explained[0, 5] = ("test", text())
    world.pairs[0, 5] = "test"


def plant_verbatim(world):
    world.explained[0, 1] = ("test", "Warm bread, live jazz.")
    world.explained[3, 3] = ("train", "warm  bread live JAZZ")


def plant_run(world):
    world.explained[0, 1] = ("test", part(world.explained[3, 3][1]))


def plant_item_profile(world):
    world.explained[0, 1] = ("test", part(world.profiles["item"][1]))


def plant_user_profile(world):
    world.explained[2, 3] = ("test", part(world.profiles["user"][2]))


def plant_review(world):
    world.explained[0, 1] = ("test", part(world.reviews[3, 3]))


@pytest.mark.parametrize(
    ("plant", "name"),
    [
        (plant_edge, "pairs_in_training_graph"),
        (plant_other_split, "pairs_in_another_split"),
        (plant_unseen_user, "unseen_users"),
        (plant_unseen_item, "unseen_items"),
        (plant_verbatim, "references_among_training"),
        (plant_run, "run_with_training"),
        (plant_item_profile, "run_with_own_profiles"),
        (plant_user_profile, "run_with_own_profiles"),
        (plant_review, "run_with_training_reviews"),
    ],
)
def test_each_leak_is_found_and_nothing_else(tmp_path, plant, name):
    world = World()
    plant(world)
    assert counts(world.save(tmp_path)) == {name: 1}


def test_what_is_no_leak(tmp_path):
    """A run that is too short, another pair's profile, and the held-out pair's own review."""
    world = World()
    short, other, own = part(world.explained[3, 3][1], RUN - 1), world.profiles["item"][4], world.reviews[2, 3]
    for pair, content in (((0, 1), short), ((1, 2), part(other)), ((2, 3), part(own))):
        world.explained[pair] = ("test", content)
    assert counts(world.save(tmp_path)) == {}
    # Nor if the published split has the pair in its training graph: no stage reads that review.
    world.pairs[2, 3] = "train"
    assert counts(world.save(tmp_path)) == {"pairs_in_training_graph": 1}


def test_data_without_reviews(tmp_path):
    found = leakage(World().save(tmp_path, reviews=False))["leaks"]["run_with_training_reviews"]
    assert (found["count"], found["share"]) == (None, None)


def test_a_split_without_explained_pairs(tmp_path):
    found = leakage(World().save(tmp_path), split="val")
    assert found["pairs"] == 0
    assert all(leak["count"] in (0, None) and leak["share"] is None for leak in found["leaks"].values())


def test_shared_runs_against_sets_of_tuples(monkeypatch):
    monkeypatch.setattr("xrec.evaluation.leakage._TEXTS_AT_ONCE", 7)
    generator = np.random.default_rng(1)
    some, others = (
        [" ".join(generator.choice(["a", "b"], generator.integers(0, 14))) for _ in range(60)] for _ in range(2)
    )

    def runs(content):
        found = words(content)
        return {tuple(found[n : n + RUN]) for n in range(len(found) - RUN + 1)}

    known = set().union(*map(runs, others))
    expected = [bool(runs(content) & known) for content in some]
    assert Runs(some).shared(iter(others)).tolist() == expected
    assert 0 < sum(expected) < 60
    hashes, owners = run_hashes(some)
    assert len(hashes) == sum(max(0, len(words(content)) - RUN + 1) for content in some)
    assert [len(set(hashes[owners == n])) for n in range(60)] == [len(runs(content)) for content in some]


@pytest.mark.parametrize(("dataset", "share"), [("yelp", 0.811), ("amazon", 0.792)])
def test_the_published_splits_leak(release_data, tmp_path, dataset, share):
    """Four in five of the published test pairs are edges of the published training graph."""
    source, _ = read_release(release_data / "xrec-release" / dataset)
    found, _ = preprocess(source, PreprocessConfig(split="published", k_core=0))
    workspace = Workspace(tmp_path)
    for name, table in found.items():
        workspace.write_table(table, "preprocess", name)
    leaks = leakage(workspace)["leaks"]
    assert leaks["pairs_in_training_graph"]["share"] == pytest.approx(share, abs=5e-4)
    assert leaks["run_with_training_reviews"]["count"] is None
    assert 0 < leaks["run_with_own_profiles"]["share"] < 0.1
