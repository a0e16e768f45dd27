"""Lines of a byte range, in buffers of bounded size: every line of a file belongs to exactly one range.

A line belongs to the range that its first byte lies in. What the lines say is `source_reading.py`'s business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

BUFFER = 8 << 20
LONGEST_LINE = 32 << 20
_BEYOND = 64 << 10  # what is read at once to find the end of the range's last line
_NEWLINE, _RETURN = 10, 13
_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Lines:
    """Whole lines that are not blank.

    Attributes:
        data: bytes that hold them.
        offset: position of `data[0]` in the file.
        starts, ends: `[lines]` each line's first byte in `data`, and the one behind its last (line end excluded).
        too_long: positions in the file of lines longer than `LONGEST_LINE`, which are not read.
    """

    data: bytes
    offset: int
    starts: np.ndarray
    ends: np.ndarray
    too_long: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.starts)

    def line(self, n: int) -> bytes:
        return self.data[self.starts[n] : self.ends[n]]

    def positions(self) -> np.ndarray:
        """`[lines]` each line's position in the file."""
        return self.starts + self.offset


def read_lines(stream: BinaryIO, start: int = 0, end: int | None = None, buffer: int = BUFFER) -> Iterator[Lines]:
    """The lines whose first byte is in `[start, end)`.

    Args:
        stream: at position 0; it is sought only when `start` is above 0.
        start, end: the range, in bytes; `end` None: up to the file's end.
        buffer: bytes read at once. Memory is bounded by this and `LONGEST_LINE`.
    """
    position = 0
    skipping = start > 0
    if skipping:
        # From the byte before: if that ends a line, the range's first byte begins one.
        position = start - 1
        stream.seek(position)
    rest, too_long = b"", []
    while end is None or position - len(rest) < end:
        data = stream.read(buffer if end is None else min(buffer, max(end - position, _BEYOND)))
        if not data:
            break
        position += len(data)
        if skipping:
            cut = data.find(b"\n")
            if cut < 0:
                continue
            skipping, data = False, data[cut + 1 :]
        elif position == len(data):
            data = data.removeprefix(_MARK)
        data = rest + data
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if len(rest) > LONGEST_LINE:
            if end is None or position - len(rest) < end:  # else it is the next range's
                too_long.append(position - len(rest))
            rest, skipping = b"", True
        if cut or too_long:
            yield _lines(data[:cut], position - len(data) if cut else position, end, tuple(too_long))
            too_long = []
    if rest and (end is None or position - len(rest) < end):
        yield _lines(rest + b"\n", position - len(rest), end)


def _lines(data: bytes, offset: int, end: int | None, too_long: tuple[int, ...] = ()) -> Lines:
    content = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(content == _NEWLINE)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    ends = ends - (content[np.maximum(ends - 1, 0)] == _RETURN) if len(ends) else ends
    kept = ends > starts
    if end is not None:
        kept &= starts + offset < end
    # Also where the whole line happens to be in memory: what is dropped does not depend on the buffers.
    long = kept & (ends - starts > LONGEST_LINE)
    too_long += tuple(int(p) for p in starts[long] + offset)
    kept &= ~long
    return Lines(data, offset, starts[kept], ends[kept], too_long)
