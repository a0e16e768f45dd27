"""Small dumps in the layouts of the published ones, and a plain loop that reads them: the reference of ingestion tests.

The loop shares no code with `xrec.data`: it reads whole files, parses every line with Python's parser, and goes rule
by rule.
"""

import gzip
import html
import json
import random
import re
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

BAD_LINES = (
    b'{"cut": "off',
    b"[1, 2]",
    b"null",
    b'"text"',
    b"garbage",
    b'{"a": 1} {"b": 2}',
    b"{'single': 'quotes'}",
    b'{"a": 1}}',
)

# source column of user, item, rating, time, text; unit of time
REVIEW_KEYS = {
    "yelp": ("user_id", "business_id", "stars", "date", "text"),
    "amazon-2018": ("reviewerID", "asin", "overall", "unixReviewTime", "reviewText"),
    "amazon-2023": ("user_id", "parent_asin", "rating", "timestamp", "text"),
    "google": ("user_id", "gmap_id", "rating", "time", "text"),
}
TEXTS = (
    "Great place",
    "Crème brûlée — 10/10 \N{PILE OF POO}",
    'She said "yes" \\ no\ttabs\nand lines',
    "  padded  ",
    "one",
    "a & b &amp; c<br />d &#39;e&#39; &lt;b&gt;",
    "nul \0 inside",
    "half \ud83d pair",
    "x" * 300,
    '{}[]{}, "}\n{',
)


def review(layout: str, draw: random.Random) -> dict:
    """A record with, now and then, something missing or odd."""
    user, item, rating, time, text = REVIEW_KEYS[layout]
    seconds = draw.randint(1_200_000_000, 1_600_000_000)
    times = {
        "yelp": datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "amazon-2018": seconds,
        "amazon-2023": seconds * 1000 + draw.randint(0, 999),
        "google": seconds * 1000,
    }
    record = {"extra": {"deep": [1, {"x": None}]}, user: f"u{draw.randint(0, 30)}", item: f"i{draw.randint(0, 20)}"}
    record |= {rating: float(draw.randint(1, 5)), time: times[layout], text: draw.choice(TEXTS), "useful": 3}
    odd = draw.random()
    if odd < 0.25:
        key, values = draw.choice(
            (
                (user, ("", None, "   ", 17, 3.5, ["u"])),
                (item, ("", None, 5, True)),
                (rating, ("4", "many", None, 7.5, -1, True, 4)),
                (time, ("someday", None, "", 10**30, {})),
                (text, ("", None, "  \n ", 12, [])),
            )
        )
        value = draw.choice(values)
        record[key] = value
        if draw.random() < 0.2:
            del record[key]
    return record


def write_dump(path: Path, layout: str, lines: int = 400, seed: int = 0, bad: float = 0.05) -> Path:
    """Records, bad lines, blank lines, broken UTF-8 and line ends of two kinds; gzip where the name says so."""
    draw, parts = random.Random(seed), []
    for _ in range(lines):
        if draw.random() < bad:
            line = draw.choice(BAD_LINES)
        else:
            line = json.dumps(review(layout, draw), ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
            if draw.random() < 0.02:
                line = line.replace(b"Great place", b"Gre\xffat place")
        parts.append(line + draw.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\n \n")))
    data = b"".join(parts).rstrip()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_plainly(path: Path, layout: str, *, keep_empty: bool = False, min_rating: float | None = None) -> tuple:
    """Rows as `reviews` has them, and dropped lines by reason."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows, dropped = [], Counter()
    for line in data.split(b"\n"):
        if line in (b"", b"\r"):
            continue
        row = _row(line.removesuffix(b"\r"), layout)
        if isinstance(row, dict) and row["text"] is None and not keep_empty:
            row = "empty_text"
        elif isinstance(row, dict) and min_rating is not None and (row["rating"] or min_rating) < min_rating:
            row = "low_rating"
        if isinstance(row, str):
            dropped[row] += 1
        else:
            rows.append(row)
    return rows, dropped


def _row(line: bytes, layout: str) -> dict | str:
    try:
        record = json.loads(line.decode(errors="replace"))
    except ValueError:
        return "bad_json"
    if not isinstance(record, dict):
        return "bad_json"
    user, item, rating, time, text = (record.get(key) for key in REVIEW_KEYS[layout])
    ids = [_name(user), _name(item)]
    for name, value in zip(("user", "item"), ids, strict=True):
        if not value:
            return f"missing_{name}_id"
    stars = None
    if rating not in (None, ""):
        with suppress(ValueError):
            stars = None if isinstance(rating, bool) else float(rating)
        if stars is None or not 0 <= stars <= 5:
            return "bad_rating"
    seconds = _seconds(time, layout)
    if seconds == "bad":
        return "bad_timestamp"
    words = _name(text)
    if words and layout.startswith("amazon"):
        words = html.unescape(re.sub(r"\s*<br\s*/?>\s*", "\n", words)).strip()
    row = {"user_id": ids[0], "item_id": ids[1], "rating": stars, "timestamp": seconds, "text": words or None}
    return row


def _name(value) -> str | None:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "�", value).replace("\0", "").strip()
    return str(value) if type(value) is int else None


def _seconds(value, layout: str):
    if value is None or value == "":
        return None
    if layout == "yelp":
        try:
            return int(datetime.strptime(value, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
        except (TypeError, ValueError):
            return "bad"
    if type(value) is not int or abs(value) > 10**15:
        return "bad"
    return value if layout == "amazon-2018" else value // 1000
