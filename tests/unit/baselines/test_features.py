"""PETER+'s features: an item's commonest, never from the row itself, and content words where none are named."""

from collections import Counter

import pytest

from xrec.baselines.features import ItemFeatures, words

ITEMS = [0, 0, 0, 1, 1, 2]
NAMED = ["Live Jazz", "live jazz", "free parking", "free parking", "board games", "board games"]
TEXTS = [f"The user enjoys {feature}." for feature in NAMED]


def test_the_item_has_its_commonest_feature_and_ties_go_by_the_alphabet():
    finder = ItemFeatures(ITEMS, TEXTS, NAMED, {})
    for item in (0, 1, 2):
        counts = Counter(f.lower() for i, f in zip(ITEMS, NAMED, strict=True) if i == item)
        expected = sorted(counts, key=lambda f: (-counts[f], f))[0]
        assert finder.of_item(item) == expected


def test_a_training_row_does_not_tell_itself():
    finder = ItemFeatures(ITEMS, TEXTS, NAMED, {2: "Users who like live jazz and wine would enjoy it."})
    for row, item in enumerate(ITEMS):
        others = Counter(f.lower() for n, f in enumerate(NAMED) if ITEMS[n] == item and n != row)
        expected = sorted(others, key=lambda f: (-others[f], f))[0] if others else "live jazz"
        assert finder.of_training_row(row) == expected


def test_an_item_without_explanations_goes_by_its_profile_and_else_has_none():
    finder = ItemFeatures(ITEMS, TEXTS, NAMED, {7: "Known for board games.", 8: "Marvellous noodles."})
    assert finder.of_item(7) == "board games"
    assert finder.of_item(8) in ("marvellous", "noodles")
    assert finder.of_item(9) == ""


def test_without_named_features_the_commonest_particular_word_counts():
    texts = ["The user would enjoy the sushi and the sushi bar"] * 3 + ["The user would enjoy the garden view"] * 37
    finder = ItemFeatures([0] * 3 + [1] * 37, texts, [None] * 40, {})
    # 3 of 40 explanations name sushi, twice each; the words of the other 37 say nothing particular.
    assert finder.of_item(0) == "sushi"
    assert finder.of_item(1) == ""
    assert finder.of_explanation("They enjoy the sushi of this place", None) == "sushi"
    assert finder.of_explanation("whatever", "Old Jazz") == "old jazz"


@pytest.mark.parametrize(("text", "expected"), [("The cat's 3 hats, and THE hats", ["cat", "hats", "hats"]), ("", [])])
def test_words(text, expected):
    assert words(text) == expected
