"""Items of each layout to rows: titles, descriptions, attributes, and what they say when something is missing."""

import json

import pytest

from xrec.config import IngestConfig
from xrec.config.ingest import ItemColumns
from xrec.data.item_records import item_row, missing_field, stored
from xrec.data.source_layouts import LAYOUTS, Layout, generic_layout

BY_NAME = {layout.name: layout for layout in LAYOUTS}


def row(record: dict, name: str) -> dict:
    return item_row(record, BY_NAME[name])


def test_yelp():
    record = {"business_id": "b", "name": " Café ", "city": "Philadelphia", "state": "PA", "stars": 4.5}
    found = row(
        {**record, "categories": "Coffee & Tea, Food, Food", "hours": None, "review_count": 9}, "Yelp businesses"
    )
    assert (found["item_id"], found["title"], found["description"]) == ("b", "Café", None)
    assert found["attributes"] == {"categories": ["Coffee & Tea", "Food"], "city": "Philadelphia", "state": "PA"}
    assert row({**record, "categories": None}, "Yelp businesses")["attributes"] == {
        "city": "Philadelphia",
        "state": "PA",
    }


def test_amazon_2018():
    record = {
        "asin": "0001",
        "title": "Pride &amp; Prejudice",
        "description": ["A <b>novel</b>.", "", "By J. Austen.<br />Bound."],
        "category": ["Books", "Fiction"],
        "brand": "Penguin",
        "price": "$7.99",
        "feature": ["x" * 300, "paper"],
        "also_buy": ["0002"],
        "imageURL": [],
    }
    found = row(record, "Amazon metadata (2018)")
    assert found["title"] == "Pride & Prejudice"
    assert found["description"].split() == ["A", "novel", ".", "By", "J.", "Austen.", "Bound."]
    assert found["attributes"] == {
        "categories": ["Books", "Fiction"],
        "brand": "Penguin",
        "price": "$7.99",
        "features": ["x" * 200, "paper"],
    }
    broken = {"asin": "1", "title": "function(){ new Date().getTime() }", "price": ".a-box-inner{background:#fff" * 9}
    found = row(broken, "Amazon metadata (2018)")
    assert (found["title"], found["attributes"]) == (None, {})
    assert stored(found) == {"item_id": "1", "title": "item 1", "description": None, "attributes": None}
    nested = {"asin": "1", "categories": [["Books", "Art"], ["Other"]]}
    assert row(nested, "Amazon metadata (2018)")["attributes"] == {"categories": ["Books", "Art"]}


def test_amazon_2023():
    record = {
        "parent_asin": "P",
        "title": "Lamp",
        "main_category": "Home",
        "categories": [],
        "features": ["Bright"],
        "description": [],
        "store": "Acme",
        "price": 12.5,
        "details": {"Brand": "Acme"},
        "author": {"name": "Ann"},
        "average_rating": 4.4,
    }
    found = row(record, "Amazon metadata (2023)")
    assert (found["item_id"], found["description"]) == ("P", None)
    assert found["attributes"] == {
        "categories": ["Home"], "brand": "Acme", "author": "Ann", "price": "12.5", "features": ["Bright"],
    }  # fmt: skip


def test_google():
    record = {
        "gmap_id": "0x1",
        "name": "Diner",
        "address": "Diner, 1 Main St",
        "description": None,
        "category": ["Restaurant"],
        "avg_rating": 4.1,
        "price": "$$",
        "MISC": {"Atmosphere": ["Casual"], "Highlights": ["Casual", "Great coffee"]},
    }
    found = row(record, "Google Local metadata")
    assert found["attributes"] == {
        "categories": ["Restaurant"],
        "address": "Diner, 1 Main St",
        "price": "$$",
        "features": ["Casual", "Great coffee"],
    }
    assert "4.1" not in str(found), "an average over reviews, held-out ones among them"


def test_generic():
    columns = ItemColumns(item_id="id", title="name", description=None, attributes=("year", "tags"))
    config = IngestConfig(source="generic", files=("r.csv",), items_files=("i.csv",), item_columns=columns)
    layout = generic_layout("i.csv", "items", [{"id", "name", "year", "tags"}], config)
    found = item_row({"id": 3, "name": "N", "year": 1999, "tags": ["a", None, 1.5, float("nan")]}, layout)
    assert found == {
        "item_id": "3",
        "title": "N",
        "description": None,
        "attributes": {"year": 1999, "tags": ["a", 1.5]},
    }
    assert json.loads(stored(found)["attributes"]) == {"year": 1999, "tags": ["a", 1.5]}


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.kind == "items"], ids=lambda x: x.name)
def test_anything_may_be_missing_or_odd(layout: Layout):
    assert item_row({}, layout)["item_id"] is None
    keys = """business_id asin parent_asin gmap_id name title description category categories feature features price
    brand store author MISC city state address main_category details"""
    for value in (None, "", " ", 7, 1.5, True, [], [None], [[]], {}, {"a": [1]}, "\ud800", "nul\0"):
        found = stored(item_row(dict.fromkeys(keys.split(), value), layout))
        assert found["title"]
        "".join(v for v in found.values() if v).encode()


def test_required_fields():
    found = {"title": "t", "description": None, "attributes": {"city": "c"}}
    assert missing_field(found, ("title", "city")) is None
    assert missing_field(found, ("title", "description")) == "description"
    assert missing_field(found, ("categories",)) == "categories"
