"""The profile floor: rephrasing, what it falls back to, and that it says which."""

import pytest

from xrec.baselines.item_profile import SOURCES, ItemFacts, details, explain_item, rephrased


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (
            "Users who look for craft beer would enjoy The Fox. A tavern.",
            "The user would enjoy The Fox because they look for craft beer. A tavern.",
        ),
        (
            "Readers looking for  suspense would love Night!",
            "The user would love Night because they look for suspense.",
        ),
        (
            "Fans of Dickens, and students, would enjoy this book.",
            "The user would enjoy this book, as would fans of Dickens, and students.",
        ),
        ("A quiet bar.\nIt has jazz.", "The user would enjoy this item. A quiet bar. It has jazz."),
    ],
)
def test_a_profile_is_turned_to_one_user(profile, expected):
    assert rephrased(profile) == expected


def test_what_is_missing_is_made_up_for_in_order():
    facts = ItemFacts(["item 0", "The Fox", "item 2", "item 3", "The Owl"])
    facts.profiles = {0: "Users who like jazz would enjoy it."}
    facts.details = {0: "A bar.", 1: "A tavern."}
    facts.explanations = {0: "First.", 1: "Second.", 2: "The user likes its tea."}
    found = [explain_item(item, facts) for item in range(5)]
    assert found == [
        ("The user would enjoy it because they like jazz.", "profile"),
        ("The user would enjoy The Fox: A tavern.", "facts"),
        ("The user likes its tea.", "explanation"),
        ("The user would enjoy this item.", "title"),
        ("The user would enjoy The Owl.", "title"),
    ]
    assert {source for _, source in found} == set(SOURCES)


def test_attributes_and_description_in_words():
    assert details('{"city": "Rome", "price": 2, "tags": ["a"]}', " A  bar. ") == (
        "A bar. It is listed with city Rome, price 2."
    )
    assert details("wood, steel", None) == "It is listed with wood, steel."
    assert details('"oak"', "") == "It is listed with oak."
    assert details(None, None) == ""
