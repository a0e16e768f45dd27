"""Indices, the one split and the leak rule, on a hand-made source, the sample world and the published data."""

from collections import Counter

import pyarrow as pa
import pytest

from xrec.config import ConfigError, PreprocessConfig, SampleConfig
from xrec.data.preprocess import leak_metrics, preprocess
from xrec.data.release import read_release
from xrec.data.sample import make_world, world_tables
from xrec.tables import from_rows, validate

PROVENANCE = {"model": "m", "prompt_hash": "h", "tokens_in": 1, "tokens_out": 2, "status": "ok"}


@pytest.fixture(scope="module")
def sample():
    tables = world_tables(make_world(SampleConfig(users=200, items=90, interactions_per_user=12)))
    return {name: validate(name, table) for name, table in tables.items()}


@pytest.fixture(scope="module", params=["yelp", "amazon"])
def published(request, release_data):
    tables, _ = read_release(release_data / "xrec-release" / request.param)
    return {name: validate(name, table) for name, table in tables.items()}


def small_source():
    """Three users, ten items, and texts for nodes and pairs that do and do not occur in the reviews."""
    reviews = [{"user_id": f"u{n % 3}", "item_id": str(n)} for n in range(1, 11)]
    return {
        "reviews": from_rows("reviews", [*reviews, {"user_id": "u1", "item_id": "2", "timestamp": 5}]),
        "items": from_rows("items", [{"item_id": str(n), "title": f"Place {n}"} for n in range(1, 10)]),
        "source_item_profiles": from_rows(
            "source_item_profiles", [{"item_id": i, "profile": f"p{i}", **PROVENANCE} for i in ("3", "99")]
        ),
        "source_user_profiles": from_rows("source_user_profiles", [{"user_id": "u2", "profile": "pu2", **PROVENANCE}]),
        "source_explanations": from_rows(
            "source_explanations",
            [
                {"user_id": "u1", "item_id": "1", "explanation": "e11", "feature": "f", **PROVENANCE},
                {"user_id": "new", "item_id": "1", "explanation": "added", **PROVENANCE},
                {"user_id": "u2", "item_id": "2", "explanation": "bad", **PROVENANCE | {"status": "failed"}},
            ],
        ),
    }


def by_id(tables):
    """(user_id, item_id) -> split, from the written tables."""
    users = tables["users"]["user_id"].to_pylist()
    items = tables["items_index"]["item_id"].to_pylist()
    return {(users[r["user"]], items[r["item"]]): r["split"] for r in tables["interactions"].to_pylist()}


def run(source, **settings):
    tables, counts = preprocess(source, PreprocessConfig.model_validate(settings))
    return {name: validate(name, table) for name, table in tables.items()}, counts


# A hand-made source --------------------------------------------------------------------------------------------------


def test_ids_titles_and_texts_of_a_small_source():
    tables, counts = run(small_source())
    assert tables["users"]["user_id"].to_pylist() == ["u0", "u1", "u2", "new"], "shorter ids first, then by character"
    assert tables["items_index"]["item_id"].to_pylist() == [str(n) for n in range(1, 11)], "9 before 10"
    assert tables["items_index"]["title"].to_pylist() == [*(f"Place {n}" for n in range(1, 10)), "item 10"]
    assert tables["users"]["user"].to_pylist() == [0, 1, 2, 3]
    expected = {(f"u{n % 3}", str(n)) for n in range(1, 11)} | {("u1", "2"), ("new", "1")}
    assert set(by_id(tables)) == expected
    (item_profile,) = tables["item_profiles"].to_pylist()
    assert (item_profile["item"], item_profile["profile"], item_profile["model"]) == (2, "p3", "m")
    assert tables["user_profiles"].to_pylist()[0]["user"] == 2
    told = {(r["user"], r["item"]): (r["explanation"], r["feature"]) for r in tables["explanations"].to_pylist()}
    assert told == {(1, 0): ("e11", "f"), (3, 0): ("added", None)}
    assert counts["dropped/explanations/failed"] == 1
    assert counts["dropped/item_profiles/without_interactions"] == 1
    assert counts["added/explained_pairs_without_review"] == 1
    assert (counts["users"], counts["items"], counts["interactions"], counts["explanations"]) == (4, 10, 12, 2)


def test_of_two_reviews_of_a_pair_one_interaction_remains():
    source = small_source()
    twice = pa.concat_tables([source["reviews"], source["reviews"].slice(0, 4)])
    tables, counts = run(source | {"reviews": twice})
    assert counts["dropped/reviews/earlier_of_the_pair"] == 4
    assert by_id(tables).keys() == by_id(run(source)[0]).keys()


def test_a_source_without_texts_gives_no_text_tables():
    source = {name: table for name, table in small_source().items() if not name.startswith("source_")}
    tables, counts = run(source)
    assert set(tables) == {"users", "items_index", "interactions"}
    assert "explanations" not in counts


def test_settings_that_leave_nothing_or_ask_for_what_is_not_there_are_named(sample):
    with pytest.raises(ConfigError, match=r"preprocess.k_core = 500: none of [\d,]+ interactions is left; lower it"):
        run(sample, k_core=500)
    with pytest.raises(ConfigError, match=r"preprocess.min_rating = 9.0: none of [\d,]+ reviews is left"):
        run(sample, min_rating=9)
    with pytest.raises(ConfigError, match=r"preprocess.split = published: .*'source_split'"):
        run(sample, split="published")
    with pytest.raises(ConfigError, match=r"preprocess.zero_shot_users = 0.0, zero_shot_items = 1.0"):
        run(sample, zero_shot_items=1.0)


# The leak rule and the counts -----------------------------------------------------------------------------------------


def assert_leak_free(tables):
    """No held-out pair is a training edge, and every explanation has the split of its pair."""
    splits = {}
    for row in tables["interactions"].to_pylist():
        assert (row["user"], row["item"]) not in splits
        splits[row["user"], row["item"]] = row["split"]
    told = {(r["user"], r["item"]): r["split"] for r in tables["explanations"].to_pylist()}
    assert told.items() <= splits.items()
    edges = {pair for pair, split in splits.items() if split == "train"}
    assert not {pair for pair, split in told.items() if split in ("val", "test")} & edges
    assert set(leak_metrics(tables["interactions"], tables["explanations"]).values()) == {0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_rating": 4, "k_core": 3},
        {"zero_shot_users": 0.1, "zero_shot_items": 0.1, "seed": 4},
        {"explained_ratios": [0.2, 0.3, 0.5]},
    ],
)
def test_the_sample_is_free_of_leaks_and_its_counts_are_those_of_its_tables(sample, settings):
    tables, counts = run(sample, **settings)
    assert_leak_free(tables)
    for name in ("interactions", "explanations"):
        counted = Counter(tables[name]["split"].to_pylist())
        assert {k.removeprefix(f"{name}/"): v for k, v in counts.items() if k.startswith(f"{name}/")} == counted
    reviews = sample["reviews"].num_rows
    kept = reviews - counts["dropped/reviews/low_rating"] - counts["dropped/interactions/k_core"]
    assert kept == counts["interactions"] == tables["interactions"].num_rows
    assert counts["dropped/explanations/pair_dropped"] == reviews - counts["explanations"]


def test_zero_shot_nodes_come_last_and_their_flags_agree_with_the_splits(sample):
    tables, counts = run(sample, zero_shot_users=0.1, zero_shot_items=0.2)
    assert (counts["users/zero_shot"], counts["items/zero_shot"]) == (20, 18)
    for table, key, name in (("users", "user", "user_id"), ("items_index", "item", "item_id")):
        flags = tables[table]["zero_shot"].to_pylist()
        first = flags.index(True)
        assert not any(flags[:first]) and all(flags[first:])
        ids = tables[table][name].to_pylist()
        assert ids[:first] == sorted(ids[:first]) and ids[first:] == sorted(ids[first:])
        trained = {r[key] for r in tables["interactions"].to_pylist() if r["split"] in ("train", "val")}
        assert trained and max(trained) < first


def test_the_texts_of_the_sample_still_belong_to_their_ids(sample):
    """Followed back from the index to the source's id, for every row."""
    tables, _ = run(sample, zero_shot_users=0.1, zero_shot_items=0.2)
    users, items = tables["users"]["user_id"].to_pylist(), tables["items_index"]["item_id"].to_pylist()
    for name, key, ids in (("item_profiles", "item", items), ("user_profiles", "user", users)):
        source = {r[f"{key}_id"]: r["profile"] for r in sample[f"source_{name}"].to_pylist()}
        assert {ids[r[key]]: r["profile"] for r in tables[name].to_pylist()} == source
    source = {(r["user_id"], r["item_id"]): r["explanation"] for r in sample["source_explanations"].to_pylist()}
    told = {(users[r["user"]], items[r["item"]]): r["explanation"] for r in tables["explanations"].to_pylist()}
    assert told == source
    titles = dict(zip(sample["items"]["item_id"].to_pylist(), sample["items"]["title"].to_pylist(), strict=True))
    assert {r["item_id"]: r["title"] for r in tables["items_index"].to_pylist()} == titles


def test_the_same_seed_gives_the_same_tables_and_another_seed_another_split(sample):
    first, again, other = (run(sample, zero_shot_users=0.1, seed=seed)[0] for seed in (0, 0, 1))
    assert all(first[name].equals(again[name]) for name in first)
    assert by_id(first) != by_id(other)


def test_the_order_of_the_source_s_rows_does_not_matter(sample):
    turned = {name: table.take(pa.array(range(table.num_rows - 1, -1, -1))) for name, table in sample.items()}
    tables, again = run(sample, zero_shot_items=0.1)[0], run(turned, zero_shot_items=0.1)[0]
    assert all(tables[name].equals(again[name]) for name in tables)


# The published data --------------------------------------------------------------------------------------------------


def test_published_data_split_by_the_rule_is_free_of_leaks(published):
    tables, counts = run(published, explained_ratios=[0.6, 0.1, 0.3])
    assert_leak_free(tables)
    assert counts["explanations"] == 3000
    assert [counts[f"explanations/{s}"] for s in ("train", "val", "test")] == [1800, 300, 900]
    assert tables["users"]["user_id"].to_pylist() == [str(n) for n in range(tables["users"].num_rows)]


def test_the_published_split_is_kept_and_its_leak_counted(published):
    tables, _ = run(published, split="published")
    source = published["source_split"]
    expected = zip(
        source["user_id"].to_pylist(), source["item_id"].to_pylist(), source["split"].to_pylist(), strict=True
    )
    assert by_id(tables) == {(user, item): split for user, item, split in expected}
    assert set(tables["explanations"]["split"].to_pylist()) == {"test"}
    train = {pair for pair, split in by_id(tables).items() if split == "train"}
    told = published["source_explanations"]
    leaked = sum(p in train for p in zip(told["user_id"].to_pylist(), told["item_id"].to_pylist(), strict=True))
    metrics = leak_metrics(tables["interactions"], tables["explanations"])
    assert metrics["leak/explained_test_pairs_in_train_graph"] == leaked
    assert leaked / 3000 == pytest.approx(0.80, abs=0.02)
