"""The tables' contract: what passes, what is cast, and that a breach is named with table, column, row and remedy."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from xrec.tables import TABLES, TableError, from_rows, spec_of, validate

PREDICTION = {
    "user": 1,
    "item": 2,
    "signal": "true",
    "explanation": "Good pizza.",
    "finish_reason": "stop",
    "tokens": 4,
    "latency": 0.1,
    "adapter_hash": "h",
    "status": "ok",
}


def interactions(user=(0, 0, 1), item=(0, 1, 0), split=("train", "val", "test")):
    return pa.table({"user": pa.array(user), "item": pa.array(item), "split": pa.array(split)})


def test_a_valid_table_comes_back_in_the_schema_s_order_and_types():
    shuffled = interactions().select(["split", "item", "user"])
    checked = validate("interactions", shuffled)
    assert checked.schema == spec_of("interactions").schema
    assert checked.to_pydict() == interactions().to_pydict()


@pytest.mark.parametrize("name", TABLES)
def test_every_empty_table_is_valid(name):
    empty = spec_of(name).schema.empty_table()
    assert validate(name, empty).num_rows == 0


def test_lossless_types_are_cast():
    table = pa.table(
        {
            "item_id": pa.array(["a", "b"], pa.large_string()),
            "title": pa.array(["x", "y"]).dictionary_encode(),
            "attributes": pa.nulls(2),
            "description": pa.array(["d", None]),
        }
    )
    assert validate("items", table).schema == spec_of("items").schema


def test_an_index_that_int32_cannot_hold_is_refused():
    with pytest.raises(TableError, match=r"'interactions', column 'user': type int64 does not convert to int32"):
        validate("interactions", interactions(user=(0, 0, 2**31)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (interactions().drop_columns(["split"]), r"'interactions': column 'split' is missing .*add it, of type string"),
        (interactions().append_column("x", pa.array([1, 2, 3])), r"column 'x' is not part of the schema; drop it"),
        (interactions(user=(0, None, 1)), r"'interactions', column 'user', row 1: value None is null; fill it in"),
        (interactions(item=(0, 1, -4)), r"'interactions', column 'item', row 2: value -4 is negative"),
        (
            interactions(split=("train", "dev", "test")),
            r"column 'split', row 1: value 'dev' .*use one of train, val, t",
        ),
        (
            interactions(user=(0, 1, 0), item=(5, 5, 5)),
            r"column user \+ item, row 2: the key user=0, item=5 occurs 2 times; keep one row a key",
        ),
        (interactions(user=("a", "b", "c")), r"column 'user': type string does not convert to int32"),
    ],
)
def test_a_breach_is_named(table, message):
    with pytest.raises(TableError, match=message):
        validate("interactions", table)


def test_an_empty_id_is_refused_and_an_unknown_table_is_named():
    items = pa.table({"item_id": ["a", ""], "title": ["x", "y"], "attributes": ["", ""], "description": ["", ""]})
    with pytest.raises(TableError, match=r"'items', column 'item_id', row 1: value '' is empty"):
        validate("items", items)
    with pytest.raises(ValueError, match=r"unknown table 'item'; the tables are reviews, items"):
        validate("item", items)


def test_rows_become_a_table_and_absent_keys_null():
    table = from_rows("predictions", [PREDICTION, PREDICTION | {"signal": "off", "finish_reason": None}])
    assert table["error"].null_count == 2
    assert table["finish_reason"].to_pylist() == ["stop", None]
    with pytest.raises(TableError, match=r"'predictions', column 'explanation', row 1: value None is null"):
        from_rows("predictions", [PREDICTION, PREDICTION | {"signal": "off", "explanation": None}])
    with pytest.raises(TableError, match=r"'predictions'.*give values of the schema's types"):
        from_rows("predictions", [PREDICTION | {"tokens": "four"}])


def test_null_is_allowed_where_the_column_is_optional_but_not_another_word():
    with pytest.raises(TableError, match=r"column 'finish_reason', row 0: value 'done' .*use one of stop, sentence"):
        from_rows("predictions", [PREDICTION | {"finish_reason": "done"}])


def test_an_open_table_keeps_further_columns_last():
    scores = pa.table({"usr": [0.5], "user": [1], "signal": ["true"], "item": [2]})
    assert validate("scores", scores).column_names == ["user", "item", "signal", "usr"]


def test_reviews_may_repeat_a_pair():
    review = {"user_id": "u", "item_id": "i"}
    assert from_rows("reviews", [review, review]).num_rows == 2


@pytest.mark.parametrize("seed", range(20))
def test_repeated_keys_are_found_as_a_loop_finds_them(seed):
    random = np.random.default_rng(seed)
    rows = int(random.integers(1, 12))
    pairs = [tuple(map(int, p)) for p in random.integers(0, 5, size=(rows, 2))]
    table = interactions(*zip(*pairs, strict=True), split=["train"] * rows)
    repeated = {pair for pair, count in Counter(pairs).items() if count > 1}
    if not repeated:
        assert validate("interactions", table).num_rows == rows
        return
    with pytest.raises(TableError) as caught:
        validate("interactions", table)
    last = min(max(i for i, p in enumerate(pairs) if p == pair) for pair in repeated)
    user, item = pairs[last]
    assert f"row {last}: the key user={user}, item={item} occurs {pairs.count(pairs[last])} times" in str(caught.value)


def test_a_part_of_the_columns_is_checked_by_itself():
    table = pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "unknown": [1, 2]})
    assert validate("items", table.drop_columns("unknown"), ["title"]).column_names == ["title"]
    found = validate("items", table.select(["title", "item_id"]), ["item_id", "title", "description"])
    assert found.column_names == ["item_id", "title", "description"] and found["description"].null_count == 2
    twice = pa.table({"item_id": ["a", "a"], "title": ["A", None]})
    with pytest.raises(TableError, match="occurs 2 times"):
        validate("items", twice, ["item_id"])
    with pytest.raises(TableError, match="column 'title', row 1: value None is null"):
        validate("items", twice, ["title"])
    with pytest.raises(TableError, match="'item_id' is missing"):
        validate("items", table.select(["title"]), ["item_id"])
    with pytest.raises(ValueError, match="no column 'name'"):
        validate("items", table, ["name"])
