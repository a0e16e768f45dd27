"""An item's record in a dump to a row of the table `items`: id, title, description, and a compact set of attributes.

Averages of ratings and counts of reviews are left out: they follow from the reviews, held-out ones included.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from xrec.data.review_columns import clean_text, id_text, plain_text
from xrec.data.source_layouts import Layout

_TAG = re.compile(r"<[^<>]{0,500}>")
_SPACE = re.compile(r"[ \t\r\f\v]+")
_FEATURES, _FEATURE_CHARACTERS = 8, 200
_SCRIPT = ("getTime", "var aPageStart")  # what some titles of the Amazon releases hold in place of a title

Record = dict[str, Any]
Attributes = dict[str, Any]
Row = dict[str, Any]


def item_row(record: Record, layout: Layout) -> Row:
    """item_id (None where it is missing), title (None where missing), description, attributes (a dictionary)."""
    builder = _generic if layout.items is not None else _BUILDERS[layout.source]
    item_id, title, description, attributes = builder(record, layout)
    kept = {name: value for name, value in attributes.items() if value not in (None, "", [], {})}
    return {
        "item_id": item_id.strip() or None if item_id is not None else None,
        "title": title,
        "description": description,
        "attributes": kept,
    }


def missing_field(row: Row, required: Iterable[str]) -> str | None:
    """The first of the required fields (title, description, an attribute) that the row lacks."""
    for name in required:
        if not (row[name] if name in ("title", "description") else row["attributes"].get(name)):
            return name
    return None


def stored(row: Row) -> Row:
    """The row as the table holds it: a title in any case, attributes as JSON."""
    attributes = json.dumps(row["attributes"], ensure_ascii=False) if row["attributes"] else None
    return {**row, "title": row["title"] or f"item {row['item_id']}", "attributes": attributes}


def _yelp(record: Record, layout: Layout) -> tuple[str | None, str | None, str | None, Attributes]:
    attributes = {
        "categories": _list(record.get("categories")),
        "city": _text(record.get("city")),
        "state": _text(record.get("state")),
    }
    return id_text(record.get("business_id")), _text(record.get("name")), None, attributes


def _amazon(record: Record, layout: Layout) -> tuple[str | None, str | None, str | None, Attributes]:
    title = _text(record.get("title"), html=True)
    if title and any(mark in title for mark in _SCRIPT):
        title = None
    categories = record.get("category") or record.get("categories")
    if isinstance(categories, list) and categories and isinstance(categories[0], list):
        categories = categories[0]
    author = record.get("author")
    price = _price(record.get("price"))
    attributes = {
        "categories": _list(categories, html=True) or _list(record.get("main_category"), html=True),
        "brand": _text(record.get("brand") or record.get("store"), html=True),
        "author": _text(author.get("name") if isinstance(author, dict) else author, html=True),
        "price": price,
        "features": [f[:_FEATURE_CHARACTERS] for f in _list(_features(record), html=True)[:_FEATURES]],
    }
    item_id = record.get("asin") if layout.release == "2018" else record.get("parent_asin")
    return id_text(item_id), title, _text(record.get("description"), html=True), attributes


def _google(record: Record, layout: Layout) -> tuple[str | None, str | None, str | None, Attributes]:
    more = record.get("MISC")
    tags = [tag for values in more.values() for tag in _list(values)] if isinstance(more, dict) else []
    attributes = {
        "categories": _list(record.get("category")),
        "address": _text(record.get("address")),
        "price": _text(record.get("price")),
        "features": list(dict.fromkeys(tags))[:_FEATURES],
    }
    return id_text(record.get("gmap_id")), _text(record.get("name")), _text(record.get("description")), attributes


def _generic(record: Record, layout: Layout) -> tuple[str | None, str | None, str | None, Attributes]:
    columns = layout.items
    assert columns is not None
    title, description = (record.get(c) if c else None for c in (columns.title, columns.description))
    attributes = {name: _attribute(record.get(name)) for name in columns.attributes}
    return id_text(record.get(columns.item_id)), _text(title), _text(description), attributes


_BUILDERS: dict[str, Callable[[Record, Layout], tuple[str | None, str | None, str | None, Attributes]]] = {
    "yelp": _yelp,
    "amazon": _amazon,
    "google": _google,
}


def _features(record: Record) -> Any:
    return record.get("feature") or record.get("features")


def _text(value: Any, html: bool = False) -> str | None:
    """One text of a string or a list of strings; None where nothing is in it."""
    if isinstance(value, list):
        value = "\n".join(v for v in (_text(v, html) for v in value) if v)
    elif isinstance(value, int | float):
        value = id_text(value) or str(value)
    if not isinstance(value, str):
        return None
    value = clean_text(plain_text(_TAG.sub(" ", value.replace("<br", "\n<br"))) if html else value)
    return _SPACE.sub(" ", value).strip() or None


def _list(value: Any, html: bool = False) -> list[str]:
    """Texts of a list, or of a string that separates them by commas; repeated ones once."""
    if isinstance(value, str):
        value = value.split(", ")
    texts = (_text(v, html) for v in value) if isinstance(value, list) else ()
    return list(dict.fromkeys(t for t in texts if t))


def _price(value: Any) -> str | None:
    """Prices only: in the 2018 release, the field also holds pieces of web pages."""
    text = _text(value, html=True)
    return text if text and len(text) <= 30 and any(c.isdigit() for c in text) else None


def _attribute(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [v for v in (_attribute(v) for v in value) if v is not None]
    if isinstance(value, dict):
        return {clean_text(str(k)): _attribute(v) for k, v in value.items()}
    return value if value is None or isinstance(value, int | bool) else clean_text(str(value))
