"""How many planted hallucinations the offline checker finds, and how many true statements it takes for one.

The bounds hold with a margin; `benchmarks/factuality.py` prints the rates themselves.
"""

import random

import numpy as np
import pytest

from tests.planted_hallucinations import (
    KINDS,
    TRUE_KINDS,
    Planted,
    plant,
    rates,
    release_sources,
    replaced,
    sample_sources,
    things,
)
from xrec.config import SampleConfig
from xrec.evaluation.support import LexicalChecker


def check(sources: list[list[str]], least: dict[str, float], most: dict[str, float]) -> None:
    found = rates(LexicalChecker(), plant(sources))
    for kind, bound in least.items():
        assert found[kind].unsupported >= bound, (kind, found[kind])
        assert found[kind].auc >= 0.9, (kind, found[kind])
    for kind, bound in most.items():
        assert found[kind].unsupported <= bound, (kind, found[kind])


def test_planted_in_the_sample_world(tmp_path):
    config = SampleConfig(users=60, items=40, interactions_per_user=8, features=12)
    sources = sample_sources(tmp_path, 5, config)
    assert len(sources) > 60
    # Opposites are found where the checker knows the two words; reworded things keep half of their words.
    least = {"denied": 0.97, "invented": 0.95, "altered": 0.97, "opposite": 0.4}
    check(sources, least, {"true": 0.03, "reworded": 0.05})


@pytest.mark.parametrize("dataset", ["yelp", "amazon"])
def test_planted_in_real_rows(release_data, dataset):
    worlds = release_sources(release_data, dataset, 800)
    opposite = {"yelp": 0.6, "amazon": 0.15}[dataset]
    least = {"denied": 0.97, "altered": 0.97, "opposite": opposite}
    check(worlds["reference"], least | {"invented": 0.87}, {"true": 0.02, "reworded": 0.06})
    check(worlds["profiles"], least | {"invented": 0.72}, {"true": 0.02, "reworded": 0.07})


def test_rates_by_hand():
    class Known:
        def support(self, statements, sources):
            return np.array([float(text) for text in statements])

        def facts(self):
            return {}

    planted = [Planted(str(n), kind, ()) for n, kind in ((0.9, "true"), (0.4, "true"), ("nan", "reworded"))]
    planted += [Planted(str(n), kind, ()) for kind in KINDS for n in (0.4, 0.8)]
    found = rates(Known(), planted)
    assert (found["true"].unsupported, found["reworded"].unsupported) == (1 / 2, 0)
    for kind in KINDS:
        assert found[kind].unsupported == 1 / 2
        # 0.4 against 0.9, 0.4, 1: two wins and a tie; 0.8: two wins.
        assert found[kind].auc == pytest.approx((2.5 + 2) / 6)


def test_what_is_planted():
    """Every kind, each about the pair's own sources, and inventions that these do not have."""
    sources = [
        ["The user would enjoy this place for its live jazz, cozy atmosphere, and warm bread."],
        ["They appreciate the spicy noodles."],
        ["Nobody is named."],
    ]
    planted = plant(sources)
    assert {p.kind for p in planted} == {*TRUE_KINDS, *KINDS}
    assert {p.sources[0] for p in planted} == {text for [text] in sources[:2]}
    invented = [p for p in planted if p.kind == "invented"]
    assert "spicy noodles" in invented[0].text
    assert "not enjoy" not in " ".join(things("The user would not enjoy this place for its live jazz."))
    assert replaced("the live jazz", {"live": "taped"}, random.Random(0)) == ("the taped jazz", ("live", "taped"))
    assert replaced("the olive jazz", {"live": "taped"}, random.Random(0)) is None
