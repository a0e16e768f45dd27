"""Ids, texts, ratings and times of many types, against Python's own conversions."""

from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from xrec.data.review_columns import BAD_TIME, plain_text, to_plain_text, to_rating, to_seconds, to_text


def test_texts_of_bytes_numbers_and_other_strings():
    assert to_text(pa.array([b"ok", b"br\xffken", b"nul\0", None])).to_pylist() == ["ok", "br�ken", "nul", None]
    assert to_text(pa.array([7, None])).to_pylist() == ["7", None]
    assert to_text(pa.array([7.0, 7.5])).to_pylist() == ["7", None], "an id is no fraction"
    assert to_text(pa.array([["a"]])).to_pylist() == [None]
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        column = to_text(pa.array(["a", None], pa.string()).cast(kind))
        assert column.type == pa.string() and column.to_pylist() == ["a", None]


def test_references_and_breaks_of_html():
    assert plain_text("a &amp; b &#39;c&#39; <br />d<BR>e") == "a & b 'c'\nd\ne"
    untouched = pa.chunked_array([["AT&T", "x < y"], [None]])
    assert to_plain_text(untouched) is untouched
    assert to_plain_text(pa.array(["&lt;", None, "&eacute;"])).to_pylist() == ["<", None, "é"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([4, 5, None], pa.int64()), ([4.0, 5.0, None], pa.float64()), (["4", "5.0", None], pa.string())],
)
def test_ratings_of_any_type(values, kind):
    column = to_rating(pa.array(values, kind))
    assert column.type == pa.float32() and column.to_pylist() == [4.0, 5.0, None]


def test_unreadable_ratings_are_marked_and_empty_ones_missing():
    assert [str(v) for v in to_rating(pa.array(["x", "", " ", "3"])).to_pylist()] == ["nan", "None", "None", "3.0"]


MOMENT = datetime(2020, 1, 31, 13, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-31 13:05:00",
        "2020-01-31T13:05:00Z",
        "2020-01-31T14:05:00+01:00",
        "2020-01-31 13:05:00.250",
        str(int(MOMENT.timestamp())),
        str(int(MOMENT.timestamp() * 1000)),
    ],
)
def test_spellings_of_one_moment(text):
    assert to_seconds(pa.array([text])).to_pylist() == [MOMENT.timestamp()]
    mixed = to_seconds(pa.array([text, "never", "", None, text]))
    assert mixed.to_pylist() == [MOMENT.timestamp(), BAD_TIME, None, None, MOMENT.timestamp()]


def test_times_of_typed_columns():
    seconds = int(MOMENT.timestamp())
    assert to_seconds(pa.array([MOMENT])).to_pylist() == [seconds]
    assert to_seconds(pa.array([MOMENT.replace(tzinfo=None)])).to_pylist() == [seconds]
    midnight = int(datetime(2020, 1, 31, tzinfo=UTC).timestamp())
    assert to_seconds(pa.array([date(2020, 1, 31)])).to_pylist() == [midnight]
    assert to_seconds(pa.array([seconds, None])).to_pylist() == [seconds, None]
    assert to_seconds(pa.array([seconds + 0.9, float("nan")])).to_pylist() == [seconds, None]
    assert to_seconds(pa.array([True])).to_pylist() == [BAD_TIME]


def test_units_of_numbers():
    small, large = 1_000_000, 1_580_000_000_123
    assert to_seconds(pa.array([small, large])).to_pylist() == [small, large // 1000], "auto goes by size"
    assert to_seconds(pa.array([small]), "milliseconds").to_pylist() == [small // 1000]
    assert to_seconds(pa.array([large]), "seconds").to_pylist() == [BAD_TIME], "the year 52,038"
