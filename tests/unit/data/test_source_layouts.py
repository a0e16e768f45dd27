"""Every layout fits its own records and no other's."""

import random

import pytest

from tests.dumps import REVIEW_KEYS, review
from xrec.config import IngestConfig
from xrec.data.source_layouts import LAYOUTS, SourceError, recognise

RECORDS = {
    "Yelp businesses": {"business_id", "name", "address", "city", "state", "stars", "categories", "hours"},
    "Yelp tips": {"user_id", "business_id", "text", "date", "compliment_count"},
    "Yelp users": {"user_id", "name", "review_count", "yelping_since", "friends"},
    "Yelp check-ins": {"business_id", "date"},
    "Yelp photos": {"photo_id", "business_id", "caption", "label"},
    "Amazon metadata (2018)": {"asin", "title", "description", "category", "brand", "price", "feature"},
    "Amazon metadata (2023)": {"parent_asin", "title", "features", "description", "categories", "store", "details"},
    "Google Local metadata": {"gmap_id", "name", "address", "description", "category", "avg_rating", "MISC", "state"},
}
REVIEWS = {
    "yelp": "Yelp reviews",
    "amazon-2018": "Amazon reviews (2018)",
    "amazon-2023": "Amazon reviews (2023)",
    "google": "Google Local reviews",
}


def settings(source: str) -> IngestConfig:
    return IngestConfig.model_validate({"source": source, "files": ["f"]})


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout_is_recognised_and_only_in_its_own_source(layout):
    records = RECORDS | {name: set(review(key, random.Random(3))) for key, name in REVIEWS.items()}
    keys = [records[layout.name]]
    assert recognise("f", keys, settings(layout.source)) is layout
    for other in {"yelp", "amazon", "google"} - {layout.source}:
        with pytest.raises(SourceError, match=f"ingest.source = {layout.source}"):
            recognise("f", keys, settings(other))


def test_one_record_that_fits_is_enough():
    full = set(REVIEW_KEYS["yelp"])
    assert recognise("f", [{"user_id"}, full - {"stars"}, full], settings("yelp")).name == "Yelp reviews"
