"""The layouts of the published dumps: which keys tell a file of reviews from one of items, and what the keys mean.

How a record of an item becomes a row is `item_records.py`'s business; how files are read, `source_reading.py`'s.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from xrec.config import IngestConfig
from xrec.config.ingest import ItemColumns, ReviewColumns

Kind = Literal["reviews", "items"]
Keys = frozenset[str]


class SourceError(ValueError):
    """A file of a dump cannot be used; the message names the file, what was found in it, and the remedy."""


@dataclass(frozen=True)
class Layout:
    """One kind of file.

    Attributes:
        source: whose dump it belongs to.
        name: what the file is, for messages.
        kind: the table it fills; None: it is known, but not used.
        needs: keys that at least one record has, all at once.
        lacks: keys that such a record does not have.
        reviews: source column of each column of `reviews`.
        items: source columns of a generic file of items.
        raw: types in which JSON holds the columns of reviews: what the fast parser expects.
        unit: unit of numeric times.
        stars: ratings lie between 0 and 5.
        html: texts contain HTML's character references.
        release: the layout's name in `ingest.layout`.
    """

    source: str
    name: str
    kind: Kind | None
    needs: Keys
    lacks: Keys = frozenset()
    reviews: ReviewColumns | None = None
    items: ItemColumns | None = None
    raw: tuple[tuple[str, pa.DataType], ...] = ()
    unit: str = "auto"
    stars: bool = True
    html: bool = False
    release: str = ""

    def fits(self, keys: set[str]) -> bool:
        return keys >= self.needs and not keys & self.lacks


def _keys(text: str) -> Keys:
    return frozenset(text.split())


def _reviews(
    source: str, name: str, user: str, item: str, rating: str, timestamp: str, text: str, time: pa.DataType, **more
) -> Layout:
    columns = ReviewColumns(user_id=user, item_id=item, rating=rating, timestamp=timestamp, text=text)
    types = (pa.string(), pa.string(), pa.float64(), time, pa.string())
    raw = tuple(zip((user, item, rating, timestamp, text), types, strict=True))
    return Layout(source, name, "reviews", frozenset((user, item, rating)), reviews=columns, raw=raw, **more)


def _items(source: str, name: str, needs: str, lacks: str, **more) -> Layout:
    return Layout(source, name, "items", _keys(needs), _keys(lacks), **more)


def _unused(source: str, name: str, needs: str, lacks: str = "") -> Layout:
    return Layout(source, name, None, _keys(needs), _keys(lacks))


_INT = pa.int64()
LAYOUTS = (
    _reviews("yelp", "Yelp reviews", "user_id", "business_id", "stars", "date", "text", time=pa.string()),
    _items("yelp", "Yelp businesses", "business_id name", "user_id"),
    _unused("yelp", "Yelp tips", "user_id business_id text compliment_count"),
    _unused("yelp", "Yelp users", "user_id yelping_since"),
    _unused("yelp", "Yelp check-ins", "business_id date", "user_id name"),
    _unused("yelp", "Yelp photos", "photo_id business_id"),
    _reviews(
        "amazon",
        "Amazon reviews (2018)",
        "reviewerID",
        "asin",
        "overall",
        "unixReviewTime",
        "reviewText",
        time=_INT,
        unit="seconds",
        html=True,
        release="2018",
    ),
    _items("amazon", "Amazon metadata (2018)", "asin", "reviewerID user_id parent_asin", release="2018", html=True),
    _reviews(
        "amazon",
        "Amazon reviews (2023)",
        "user_id",
        "parent_asin",
        "rating",
        "timestamp",
        "text",
        time=_INT,
        unit="milliseconds",
        html=True,
        release="2023",
    ),
    _items("amazon", "Amazon metadata (2023)", "parent_asin title", "user_id", release="2023", html=True),
    _reviews(
        "google",
        "Google Local reviews",
        "user_id",
        "gmap_id",
        "rating",
        "time",
        "text",
        time=_INT,
        unit="milliseconds",
    ),
    _items("google", "Google Local metadata", "gmap_id name", "user_id"),
)


def recognise(file: str, keys: list[set[str]], config: IngestConfig) -> Layout:
    """The layout of a file, by the keys of its first records.

    Raises:
        SourceError: none fits; the message names the keys found and, where another source's layout fits, that.
    """
    fitting = [layout for layout in LAYOUTS if any(layout.fits(record) for record in keys)]
    own = [
        layout
        for layout in fitting
        if layout.source == config.source and config.layout in ("auto", layout.release or "auto")
    ]
    if own:
        return own[0]
    found = ", ".join(sorted(set().union(*keys))) or "none"
    known = [
        f"{layout.name}: {' '.join(sorted(layout.needs))}"
        for layout in LAYOUTS
        if layout.source == config.source and layout.kind and config.layout in ("auto", layout.release or "auto")
    ]
    remedy = "name other files, or use source = generic with ingest.review_columns and ingest.item_columns"
    if fitting:
        layout = f", ingest.layout = {fitting[0].release}" if fitting[0].release else ""
        remedy = f"it looks like {fitting[0].name}: set ingest.source = {fitting[0].source}{layout}"
    raise SourceError(
        f"{file}: its records are not recognised as those of source = {config.source}. Keys found: {found}. Keys that "
        f"tell: {'; '.join(known)}. Remedy: {remedy}"
    )


def generic_layout(file: str, kind: Kind, keys: list[set[str]], config: IngestConfig) -> Layout:
    """The layout that the column mappings describe.

    Raises:
        SourceError: a column that the mapping names is in none of the first records; optional columns may be absent
            as long as the mapping does not rename them.
    """
    columns = config.review_columns if kind == "reviews" else config.item_columns
    found = set().union(*keys)
    named = {field: value for field, value in columns if isinstance(value, str)}
    attributes = getattr(columns, "attributes", ())
    required = {f: c for f, c in named.items() if f in ("user_id", "item_id") or c != f}
    required |= {f"attributes.{n}": column for n, column in enumerate(attributes)}
    for field, column in required.items():
        if column not in found:
            section = "review_columns" if kind == "reviews" else "item_columns"
            raise SourceError(
                f"{file}: ingest.{section}.{field} = {column!r}, but its first records have no such column "
                f"(found: {', '.join(sorted(found)) or 'none'}); name the column that holds it"
            )
    if isinstance(columns, ItemColumns):
        return Layout("generic", "items", "items", frozenset(), items=columns)
    return Layout(
        "generic", "reviews", "reviews", frozenset(), reviews=columns, unit=config.timestamp, stars=False, raw=()
    )
