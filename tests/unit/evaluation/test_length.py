"""Word counts, the share over the limit and the share cut off."""

import numpy as np

from xrec.data.unpickling import load_plain
from xrec.evaluation.length import cut_off, over_limit, word_counts


def test_word_counts():
    assert word_counts(["one two  three", "", "  x "]).tolist() == [3, 0, 1]


def test_limit_is_inclusive():
    assert over_limit(["w " * 50, "w " * 51]).tolist() == [0.0, 1.0]


def test_cut_off_only_at_the_token_limit():
    found = cut_off(["stop", "sentence", "length", None])
    assert found[:3].tolist() == [0.0, 0.0, 1.0]
    assert np.isnan(found[3])


def test_published_share_over_fifty_words(release_data):
    """16.0 % of the published Yelp predictions and 54.2 % of the Amazon ones are too long."""
    shares = {
        d: over_limit(load_plain(release_data / "xrec-release" / d / "tst_pred.pkl")).mean() for d in ("yelp", "amazon")
    }
    assert {d: round(float(s), 3) for d, s in shares.items()} == {"yelp": 0.160, "amazon": 0.542}
