"""Which rows of raw reviews are kept, and for what reason the others are not: the first that applies, in this order.

The columns have been read by `review_columns.py`. Filters over the whole graph (k-core) and the latest review of a
pair are `filters.py`'s business.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.config import IngestConfig
from xrec.data.dropped import EXAMPLES, Tally
from xrec.data.review_columns import BAD_TIME

_STARS = (0.0, 5.0)
_DAY = 86_400


@dataclass(frozen=True)
class ReviewRules:
    """What a review must have; see `IngestConfig`.

    Attributes:
        stars: ratings lie between 0 and 5.
        start, end: Unix seconds; reviews before the one, or at or after the other, go.
    """

    stars: bool
    keep_empty_text: bool
    min_words: int
    min_rating: float | None
    start: int | None
    end: int | None
    user_share: float
    seed: int

    @staticmethod
    def of(config: IngestConfig, stars: bool) -> "ReviewRules":
        return ReviewRules(
            stars,
            config.empty_text == "keep",
            config.min_words,
            config.min_rating,
            None if config.since is None else _midnight(config.since),
            None if config.until is None else _midnight(config.until) + _DAY,
            config.user_share,
            config.seed,
        )


def filter_reviews(table: pa.Table, rules: ReviewRules, listed: pa.Array | None, tally: Tally, where: Any) -> pa.Table:
    """The rows that are kept, as `reviews`' columns, ids and texts trimmed, empty texts null.

    Args:
        table: `source_reading.read_reviews`' columns.
        rules: what is kept.
        listed: the items' ids, where others' reviews go.
        tally: counts kept and dropped rows.
        where: `(file name, position unit)`, for examples.
    """
    columns = {name: table[name] for name in ("user_id", "item_id", "rating", "timestamp", "text")}
    for name in ("user_id", "item_id", "text"):
        columns[name] = pc.utf8_trim_whitespace(columns[name])
        empty = pc.equal(columns[name], "")
        if pc.any(empty).as_py():
            columns[name] = pc.if_else(empty, None, columns[name])
    reason = np.zeros(table.num_rows, dtype=np.int64)
    names: list[str] = []
    details: list[pa.ChunkedArray | None] = []
    for name, shown, test in _tests(columns, rules, listed):
        left = reason == 0
        if not left.any():
            break
        bad = np.asarray(pc.fill_null(test(), False)) & left
        names.append(name)
        details.append(columns.get(shown) if shown else None)
        reason[bad] = len(names)
    for n, name in enumerate(names, start=1):
        rows = np.flatnonzero(reason == n)
        if len(rows):
            tally.drop(name, len(rows), _examples(rows[:EXAMPLES], table, details[n - 1], where))
    kept = pa.table(columns)
    if reason.any():
        kept = kept.filter(pa.array(reason == 0))
    tally.kept += kept.num_rows
    return kept


def _tests(
    columns: dict[str, Any], rules: ReviewRules, listed: pa.Array | None
) -> Iterator[tuple[str, str | None, Callable[[], Any]]]:
    """Reason, the column that an example shows, and what tells the rows; costly ones last."""
    user, item, rating, timestamp, text = columns.values()
    yield "missing_user_id", None, lambda: pc.is_null(user)
    yield "missing_item_id", None, lambda: pc.is_null(item)
    yield "bad_rating", "rating", lambda: _bad_rating(rating, rules.stars)
    yield "bad_timestamp", None, lambda: pc.equal(timestamp, BAD_TIME)
    if not rules.keep_empty_text:
        yield "empty_text", None, lambda: pc.is_null(text)
    if rules.min_rating is not None:
        yield "low_rating", "rating", lambda: pc.less(rating, rules.min_rating)
    if rules.start is not None:
        yield "before_since", "timestamp", lambda: pc.less(timestamp, rules.start)
    if rules.end is not None:
        yield "after_until", "timestamp", lambda: pc.greater_equal(timestamp, rules.end)
    if rules.user_share < 1:
        yield "user_not_drawn", "user_id", lambda: _not_drawn(user, rules.user_share, rules.seed)
    if listed is not None:
        yield "unlisted_item", "item_id", lambda: pc.invert(pc.is_in(item, value_set=listed))
    if rules.min_words > 1:
        yield "short_text", "text", lambda: pc.less(words(text), rules.min_words)


def words(text: Any) -> Any:
    """Number of words, separated by white space, of trimmed texts; null stays null."""
    return pc.list_value_length(pc.utf8_split_whitespace(text))


def _bad_rating(rating: Any, stars: bool) -> Any:
    bad = pc.invert(pc.is_finite(rating))
    return pc.or_(bad, pc.or_(pc.less(rating, _STARS[0]), pc.greater(rating, _STARS[1]))) if stars else bad


def _not_drawn(user: Any, share: float, seed: int) -> Any:
    """By a hash of seed and id, so that a user's reviews go together, whatever file and chunk they are in."""
    encoded = user.combine_chunks().dictionary_encode()
    limit = int(share * 2**64)
    key = str(seed).encode()
    drawn = [
        int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8, key=key).digest()) < limit
        for value in encoded.dictionary.to_pylist()
    ]
    return pc.invert(pa.array(drawn, pa.bool_()).take(encoded.indices))


def _examples(rows: np.ndarray, table: pa.Table, shown: Any, where: tuple[str, str]) -> list[dict[str, Any]]:
    file, unit = where
    examples = []
    for row in rows.tolist():
        example: dict[str, Any] = {"file": file, unit: table["position"][row].as_py()}
        if shown is not None:
            detail = shown[row].as_py()
            example["detail"] = detail[:200] if isinstance(detail, str) else str(detail)
        examples.append(example)
    return examples


def _midnight(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
