"""Records against plain loops over the same tables, on three kinds of storage; draws, cuts, limits and counts."""

import json
import math
import random
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.review_world import Loops, make_workspace, raw_tables, write_profiles
from xrec import tables
from xrec.config import PreprocessConfig, SampleConfig
from xrec.config.profile import TEXT_KINDS, ProfileConfig
from xrec.data.sample import make_world, world_tables
from xrec.profiles.records import SCHEMAS, check_sources, count_records, cut, record_batches
from xrec.workspace import Workspace, WorkspaceError

KEYS = {"item_profile": ["item"], "user_profile": ["user"], "explanation": ["user", "item"]}
CONFIG = ProfileConfig(reviews_per_item=3, items_per_user=4, review_characters=60, seed=7)


def read(workspace, kind, config=CONFIG, rows=17, **options):
    """The rows of a kind, and the sizes of the tables they came in."""
    batches = list(record_batches(workspace, config, kind, rows, **options))
    assert all(batch.schema == SCHEMAS[kind] for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()], [len(batch) for batch in batches]


def by_key(rows, kind):
    keys = [row[KEYS[kind][0]] if len(KEYS[kind]) == 1 else (row["user"], row["item"]) for row in rows]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    return {key: json.loads(row["record"]) for key, row in zip(keys, rows, strict=True)}


@pytest.fixture(scope="module")
def records_bucket(s3_options):
    Workspace("s3://records", s3_options).fs.mkdir("records")
    return s3_options


def empty_workspace(kind, request):
    if kind == "local":
        return Workspace(request.getfixturevalue("tmp_path") / "it's [odd] *")
    if kind == "memory":
        return Workspace(f"memory://{uuid.uuid4().hex}/w")
    return Workspace(f"s3://records/{uuid.uuid4().hex}", request.getfixturevalue("records_bucket"))


@pytest.mark.parametrize(("kind", "parts"), [("local", 1), ("local", 3), ("memory", 3), ("s3", 2)])
def test_records_are_what_plain_loops_make_of_the_tables(kind, parts, request):
    split = PreprocessConfig(ratios=(0.6, 0.2, 0.2), zero_shot_users=0.2, zero_shot_items=0.2, min_rating=4.1)
    workspace = make_workspace(empty_workspace(kind, request), raw_tables(), split, parts)
    loops = Loops(workspace, CONFIG, min_rating=4.1)
    profiles = {item: None if item % 5 == 0 else f"Users who like {item}." for item in range(0, len(loops.index), 2)}
    expected = loops.item_profile()
    assert by_key(read(workspace, "item_profile")[0], "item_profile") == expected
    assert {len(r) for r in expected.values()} >= {2, 3, 4} and any("reviews" not in r for r in expected.values())
    write_profiles(workspace, profiles)
    assert by_key(read(workspace, "user_profile")[0], "user_profile") == loops.user_profile(profiles)
    rows, sizes = read(workspace, "explanation")
    assert by_key(rows, "explanation") == loops.explanation()
    assert {(r["user"], r["item"]): r["split"] for r in rows} == {
        pair: loops.split[pair] for pair in loops.explanation()
    }
    assert sizes[:-1] == [17] * (len(rows) // 17) and sum(sizes) == len(rows) > 100


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    split = PreprocessConfig(ratios=(0.6, 0.2, 0.2), zero_shot_users=0.1, zero_shot_items=0.1)
    return make_workspace(Workspace(tmp_path_factory.mktemp("w")), raw_tables(1, 60, 120, 700), split)


@pytest.mark.parametrize("seed", range(5))
def test_other_worlds_agree_with_the_loops_as_well(tmp_path, seed):
    split = PreprocessConfig(ratios=(0.7, 0.1, 0.2), zero_shot_users=0.1 * (seed % 2), zero_shot_items=0.1, seed=seed)
    config = CONFIG.model_copy(update={"reviews_per_item": seed, "items_per_user": seed + 1, "seed": seed})
    found = make_workspace(Workspace(tmp_path), raw_tables(seed, 15 + seed, 30, 300), split)
    loops = Loops(found, config)
    assert by_key(read(found, "item_profile", config)[0], "item_profile") == loops.item_profile()
    assert by_key(read(found, "user_profile", config)[0], "user_profile") == loops.user_profile({})
    assert by_key(read(found, "explanation", config)[0], "explanation") == loops.explanation()


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_neither_threads_nor_memory_nor_the_order_of_rows_changes_anything(workspace, tmp_path, kind):
    expected, _ = read(workspace, kind)
    assert read(workspace, kind, threads=1, memory_limit="100MB", temporary=str(tmp_path))[0] == expected
    assert not list(tmp_path.iterdir())  # what it put there is gone
    source = raw_tables(1, 60, 120, 700)
    order = random.Random(0).sample(range(700), 700)
    source["reviews"] = source["reviews"].take(pa.array(order))
    shuffled = Workspace(tmp_path / "shuffled")
    for name in ("users", "items_index", "interactions"):
        shuffled.write_table(workspace.read_table("preprocess", name), "preprocess", name)
    shuffled.write_json(workspace.manifest("preprocess"), "preprocess", "manifest.json")
    for name, table in source.items():
        shuffled.write_table(table, "data", name)
    assert read(shuffled, kind, threads=2)[0] == expected
    assert read(workspace, kind, CONFIG.model_copy(update={"seed": 8}))[0] != expected or kind == "explanation"


def test_the_draw_of_pairs_is_proportional_and_grows_by_adding(workspace):
    every = {(r["user"], r["item"]): r["split"] for r in read(workspace, "explanation")[0]}
    earlier: set = set()
    for limit in (1, 50, 51, 200, len(every), len(every) + 9):
        rows, _ = read(workspace, "explanation", CONFIG.model_copy(update={"explained_pairs": limit}))
        assert len(rows) == min(limit, len(every))
        drawn = {(r["user"], r["item"]) for r in rows}
        assert drawn <= set(every)
        for split in ("train", "val", "test"):
            exact = len(rows) * sum(s == split for s in every.values()) / len(every)
            assert math.floor(exact) <= sum(every[p] == split for p in drawn) <= math.ceil(exact)
        if limit >= 50:
            assert len(earlier - drawn) <= 1  # rounding may move one between splits
            earlier = drawn


def test_true_features_are_carried_and_texts_are_not(tmp_path):
    world = make_world(SampleConfig(users=80, items=60, interactions_per_user=8))
    workspace = make_workspace(
        Workspace(tmp_path), {k: tables.validate(k, v) for k, v in world_tables(world).items()}, PreprocessConfig()
    )
    truth = {
        (r["user"], r["item"]): r["feature"] for r in workspace.read_table("preprocess", "explanations").to_pylist()
    }
    rows, _ = read(workspace, "explanation", ProfileConfig())
    assert {(r["user"], r["item"]): r["feature"] for r in rows} == truth
    assert all(row["feature"] in json.loads(row["record"])["review"] for row in rows)
    without = [r | {"feature": None} for r in workspace.read_table("preprocess", "explanations").to_pylist()]
    workspace.write_table(tables.from_rows("explanations", without[:5]), "preprocess", "explanations")
    assert {r["feature"] for r in read(workspace, "explanation", ProfileConfig())[0]} == {None}


def test_counts_are_those_of_the_records(workspace):
    config = CONFIG.model_copy(update={"explained_pairs": 100})
    counts = count_records(workspace, config)
    loops = Loops(workspace, config)
    items = loops.item_profile()
    imagined = dict.fromkeys(items, "x" * 300)
    rows, _ = read(workspace, "item_profile", config)
    assert counts["item_profile"].rows == len(rows) == len(items)
    assert counts["item_profile"].characters == sum(len(r["record"]) for r in rows)
    assert counts["item_profile"].without_record == len(loops.index) - len(items) > 0
    users = loops.user_profile(imagined)
    assert counts["user_profile"].rows == len(users)
    assert counts["user_profile"].without_record == len(loops.users) - len(users)
    sizes = (len(json.dumps(r, ensure_ascii=False, separators=(",", ":"))) for r in users.values())
    assert counts["user_profile"].characters == sum(sizes)
    pairs = [p for p, split in loops.split.items() if split != "fold_in"]
    assert (counts["explanation"].rows, counts["explanation"].without_record) == (100, len(pairs) - 100)


def test_an_items_attributes_are_cut_between_fields_and_halves_of_surrogates_are_mended(tmp_path):
    source = raw_tables()
    facts = source["items"].to_pylist()[:1]
    facts[0] |= {"title": "A", "attributes": json.dumps({"a": "x" * 20, "b": "y" * 20, "c": "z" * 40, "d": 1})}
    facts.append(facts[0] | {"item_id": 'i"1', "title": "B", "attributes": '{"a": "half \\ud83c of it"}'})
    workspace = make_workspace(
        Workspace(tmp_path), source | {"items": tables.from_rows("items", facts)}, PreprocessConfig()
    )
    records = {r["title"]: r for r in by_key(read(workspace, "item_profile")[0], "item_profile").values()}
    assert records["A"]["attributes"] == {"a": "x" * 20, "b": "y" * 20}
    assert records["B"]["attributes"] == {"a": "half ? of it"}


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("  a short one \n", 20, "a short one"),
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 8, "one two"),
        ("a verylongwordwithoutend", 10, "a verylong"),
        ("寿司寿司寿司", 4, "寿司寿司"),
    ],
)
def test_a_text_is_cut_at_the_end_of_a_word_where_one_is_near(text, limit, expected):
    assert cut(text, limit) == expected


def test_workspaces_without_review_texts_are_refused(tmp_path):
    source = raw_tables()
    nothing = [row | {"text": " " if n % 2 else None} for n, row in enumerate(source["reviews"].to_pylist())]
    bare = source | {"reviews": tables.from_rows("reviews", nothing)}
    with pytest.raises(WorkspaceError, match="no review has a text.*xrec ingest"):
        check_sources(make_workspace(Workspace(tmp_path / "bare"), bare, PreprocessConfig()))
    check_sources(make_workspace(Workspace(tmp_path / "full"), source, PreprocessConfig()))
    with pytest.raises(WorkspaceError, match="'data' has not finished"):
        check_sources(Workspace(tmp_path / "none"))


def test_a_missing_table_is_named_and_absent_optional_columns_are_null(tmp_path):
    workspace = make_workspace(Workspace(tmp_path), raw_tables(), PreprocessConfig())
    narrow = workspace.read_table("data", "reviews").select(["user_id", "item_id", "text"])
    pq.write_table(narrow, workspace.path("data", "reviews.parquet"))
    pq.write_table(
        workspace.read_table("data", "items").select(["item_id", "title"]), workspace.path("data", "items.parquet")
    )
    loops = Loops(workspace, CONFIG)
    assert by_key(read(workspace, "explanation")[0], "explanation") == loops.explanation()
    assert by_key(read(workspace, "item_profile")[0], "item_profile") == loops.item_profile()
    workspace.remove("data", "items.parquet")
    with pytest.raises(WorkspaceError, match="'data' has no table 'items'"):
        list(record_batches(workspace, CONFIG, "item_profile", 10))
