"""Which reviews stay, and the reasons of the others."""

import pyarrow as pa
import pytest

from xrec.config import IngestConfig
from xrec.data.dropped import EXAMPLES, Tally
from xrec.data.review_filters import ReviewRules, filter_reviews, words

WHERE = ("review.json", "byte")


def table(rows: list[dict]) -> pa.Table:
    row = {"user_id": "u", "item_id": "i", "rating": 4.0, "timestamp": 1_000_000, "text": "a fine place"}
    types = {"rating": pa.float32(), "timestamp": pa.int64(), "position": pa.int64()}
    fields = [pa.field(n, types.get(n, pa.string())) for n in (*row, "position")]
    return pa.Table.from_pylist([{**row, **r, "position": 10 * n} for n, r in enumerate(rows)], pa.schema(fields))


def kept(rows: list[dict], listed=None, stars=True, **settings) -> tuple[list[int], Tally]:
    """Numbers of the rows that stay (their user is their number), and the counts."""
    rows = [{"user_id": str(n), **row} for n, row in enumerate(rows)]
    config = IngestConfig.model_validate({"source": "yelp", "files": ["f"], **settings})
    tally = Tally()
    found = filter_reviews(table(rows), ReviewRules.of(config, stars), listed, tally, WHERE)
    assert tally.kept == found.num_rows
    return [int(user) for user in found["user_id"].to_pylist()], tally


def test_what_no_setting_is_needed_for():
    rows = [{}, {"user_id": " "}, {"item_id": None}, {"rating": float("nan")}, {"rating": 5.5}, {"rating": None}]
    rows += [{"timestamp": -(2**63)}, {"timestamp": None}, {"text": " \n"}, {"text": None}]
    numbers, tally = kept(rows)
    assert numbers == [0, 5, 7]
    assert tally.dropped == {
        "missing_user_id": 1, "missing_item_id": 1, "bad_rating": 2, "bad_timestamp": 1, "empty_text": 2,
    }  # fmt: skip
    assert tally.examples["bad_rating"][1] == {"file": "review.json", "byte": 40, "detail": "5.5"}


def test_other_ratings_than_stars():
    assert kept([{"rating": 97.0}, {"rating": -3.0}, {"rating": float("inf")}], stars=False)[0] == [0, 1]


@pytest.mark.parametrize(
    ("settings", "rows", "expected", "reason"),
    [
        ({"min_rating": 3.5}, [{"rating": 3.0}, {"rating": 3.5}, {"rating": None}], [1, 2], "low_rating"),
        ({"min_words": 3}, [{"text": "two words"}, {"text": " now\n three\twords "}], [1], "short_text"),
        ({"min_words": 2, "empty_text": "keep"}, [{"text": None}, {"text": "one"}], [0], "short_text"),
        ({"since": "1970-01-12"}, [{"timestamp": 950_399}, {"timestamp": 950_400}], [1], "before_since"),
        ({"until": "1970-01-11"}, [{"timestamp": 950_399}, {"timestamp": 950_400}], [0], "after_until"),
    ],
)
def test_settings(settings, rows, expected, reason):
    numbers, tally = kept(rows, **settings)
    assert numbers == expected
    assert tally.dropped == {reason: len(rows) - len(expected)}


def test_reviews_of_unlisted_items():
    numbers, tally = kept([{"item_id": "a "}, {"item_id": "b"}], listed=pa.array(["a"]))
    assert numbers == [0] and tally.dropped == {"unlisted_item": 1}


def test_a_share_of_the_users_is_theirs_wherever_they_occur():
    rows = [{"user_id": f"user-{n % 400}"} for n in range(1200)]
    config = IngestConfig(source="yelp", files=("f",), user_share=0.3)
    once = filter_reviews(table(rows), ReviewRules.of(config, True), None, Tally(), WHERE)["user_id"].to_pylist()
    parts = [
        filter_reviews(table(rows[s : s + 100]), ReviewRules.of(config, True), None, Tally(), WHERE)["user_id"]
        for s in range(0, 1200, 100)
    ]
    assert once == [user for part in parts for user in part.to_pylist()]
    assert all(once.count(user) == 3 for user in set(once))
    assert 0.22 < len(set(once)) / 400 < 0.38
    other = IngestConfig(source="yelp", files=("f",), user_share=0.3, seed=1)
    assert set(once) != set(
        filter_reviews(table(rows), ReviewRules.of(other, True), None, Tally(), WHERE)["user_id"].to_pylist()
    )


def test_texts_come_out_trimmed_and_words_are_counted_as_python_does():
    texts = ["one", "two  words", "a\nb\tc d", "caf\u00e9 \u00a0 x"]
    assert words(pa.array(texts)).to_pylist() == [len(t.split()) for t in texts]
    config = IngestConfig(source="yelp", files=("f",))
    out = filter_reviews(
        table([{"text": "  a b\n", "user_id": " u "}]), ReviewRules.of(config, True), None, Tally(), WHERE
    )
    assert out.to_pylist() == [{"user_id": "u", "item_id": "i", "rating": 4.0, "timestamp": 1_000_000, "text": "a b"}]


def test_examples_are_few():
    _, tally = kept([{"text": None}] * 50)
    assert len(tally.examples["empty_text"]) == EXAMPLES
    more = Tally()
    more.add(tally)
    more.add(Tally.from_json(tally.as_json()))
    assert more.dropped["empty_text"] == 100 and len(more.examples["empty_text"]) == EXAMPLES
    assert more.report()["dropped"]["empty_text"]["count"] == 100
