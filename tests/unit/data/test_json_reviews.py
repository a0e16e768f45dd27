"""Lines give the same values whether they are parsed together or one by one."""

import io
import json

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xrec.data import json_reviews
from xrec.data.json_reviews import parse_lines, parse_object
from xrec.data.line_ranges import read_lines

SCHEMA = pa.schema([("user", pa.string()), ("stars", pa.float64()), ("time", pa.int64())])


def parse(data: bytes):
    whole = data if data.endswith(b"\n") else data + b"\n"
    (lines,) = read_lines(io.BytesIO(whole))
    return parse_lines(lines, SCHEMA)


def test_good_lines_take_the_fast_way(monkeypatch):
    monkeypatch.setattr(json_reviews, "_parse_each", None)
    lines = [{"user": f"u{n}", "stars": n / 2, "time": n, "other": [{"x": n}]} for n in range(500)]
    table, bad = parse("".join(json.dumps(line) + "\r\n" for line in lines).encode())
    assert table.select(["user", "stars", "time"]).to_pylist() == [
        {k: v for k, v in line.items() if k != "other"} for line in lines
    ]
    assert not bad
    assert table["position"][1].as_py() == len(json.dumps(lines[0])) + 2


@pytest.mark.parametrize(
    "line",
    [
        b'{"user":"a"}{"user":"b"}',
        b'{"user":"a"',
        b'"user":"a"}',
        b"[]",
        b"7",
        b"{'user':'a'}",
        b'{"user":"a"} x',
        b'{"user": "tab\there"}',
    ],
)
def test_one_bad_line_costs_itself_only(line):
    good = b'{"user":"g","stars":3}\n'
    table, bad = parse(good * 40 + line + b"\n" + good * 40)
    assert table["user"].to_pylist() == ["g"] * 80
    assert [position for position, _ in bad] == [40 * len(good)]


def test_an_object_over_two_lines_beside_two_objects_on_one_is_not_taken_for_two_lines():
    """White space between objects means nothing to the fast parser: rows and lines would agree in number."""
    table, bad = parse(b'{"user":"a"}{"user":"b"}\n{"user":"c",\n"stars":1}\n{"user":"d"}\n')
    assert table["user"].to_pylist() == ["d"]
    assert len(bad) == 3


def test_odd_types_are_read_leniently():
    lines = [
        b'{"user":5,"stars":"4","time":"17"}',
        b'{"user":5.0,"stars":"x","time":1.9}',
        b'{"user":true,"stars":null,"time":[]}',
        b'{"user":"a","user":"b","stars":NaN,"time":' + b"9" * 40 + b"}",
        b'{"user":"\\ud800\\u0000","stars":true}',
        b'{"user":"\xff"}',
    ]
    table, bad = parse(b"\n".join(lines))
    assert not bad
    assert table["user"].to_pylist() == ["5", "5", None, "b", "�", "�"]
    assert [str(v) for v in table["stars"].to_pylist()] == ["4.0", "nan", "None", "nan", "nan", "None"]
    assert table["time"].to_pylist() == [17, 1, -(2**63), -(2**63), None, None]


def test_deep_nesting_is_a_bad_line_not_a_crash():
    with pytest.raises(ValueError, match="deep"):
        parse_object(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)
RECORD = st.dictionaries(st.sampled_from(["user", "stars", "time", "other"]), VALUE)


@settings(max_examples=60, deadline=None)
@example(['{"user": "\\u0000"}', "{"])
@given(st.lists(st.one_of(RECORD.map(json.dumps), st.sampled_from(["{", "}", "{}}", "[{}]", "x"])), max_size=30))
def test_together_as_alone(lines):
    data = [line.encode("utf-8", "surrogatepass") + b"\n" for line in lines]
    if not data:
        return
    table, bad = parse(b"".join(data))
    alone = [parse(line) for line in data]
    assert str(table.drop_columns("position").to_pylist()) == str(
        [row for t, _ in alone for row in t.drop_columns("position").to_pylist()]
    )
    assert len(bad) == sum(len(b) for _, b in alone)
