"""Every line belongs to exactly one byte range, whatever the ranges, buffers and line ends."""

import io
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xrec.data import line_ranges
from xrec.data.line_ranges import read_lines

LINE = st.one_of(st.sampled_from([b"", b"\r", b"x", b"{}"]), st.binary(max_size=40).filter(lambda b: b"\n" not in b))


def expected(data: bytes) -> dict[int, bytes]:
    """Position -> line, by splitting the whole."""
    lines, position = {}, 0
    for line in data.split(b"\n"):
        bare = line[:-1] if line.endswith(b"\r") else line
        if bare:
            lines[position] = bare
        position += len(line) + 1
    return lines


def collected(data: bytes, borders: list[int], buffer: int) -> tuple[dict[int, bytes], list[int]]:
    found, too_long = {}, []
    for n, (start, end) in enumerate(pairwise(borders)):
        last = None if n % 2 and end == borders[-1] else end
        for lines in read_lines(io.BytesIO(data), start, last, buffer):
            too_long += lines.too_long
            for n_line, position in enumerate(lines.positions().tolist()):
                assert position not in found, "a line in two ranges"
                found[position] = lines.line(n_line)
    return found, too_long


@settings(max_examples=150, deadline=None)
@given(st.lists(LINE, max_size=12), st.booleans(), st.lists(st.integers(0, 300), max_size=5), st.integers(1, 60))
def test_every_line_once(parts, ended, cuts, buffer):
    data = b"\n".join(parts) + (b"\n" if ended else b"")
    if data.startswith(b"\xef\xbb\xbf"):
        data = b"." + data
    borders = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    found, too_long = collected(data, borders, buffer)
    assert found == expected(data)
    assert not too_long


@settings(max_examples=100, deadline=None)
@example(lengths=[0, 0, 18, 90, 50, 51], cuts=[113], buffer=54)
@given(st.lists(st.integers(0, 90), max_size=10), st.lists(st.integers(0, 500), max_size=4), st.integers(1, 64))
def test_lines_too_long_for_memory_are_named_not_read(lengths, cuts, buffer):
    data = b"\n".join(b"x" * length for length in lengths)
    borders = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_ranges, "LONGEST_LINE", 50)
        found, too_long = collected(data, borders, buffer)
    lines = expected(data)
    assert found == {p: line for p, line in lines.items() if len(line) <= 50}
    assert sorted(too_long) == [p for p, line in lines.items() if len(line) > 50]


def test_a_byte_order_mark_is_no_part_of_the_first_line():
    (lines,) = read_lines(io.BytesIO(b"\xef\xbb\xbf{}\n{}\n"))
    assert [lines.line(0), lines.positions().tolist()] == [b"{}", [3, 6]]
