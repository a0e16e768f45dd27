"""Statements: sentences, clauses, members of lists; nothing is lost."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrec.data.unpickling import load_plain
from xrec.evaluation.statements import sentences, statements


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Lee runs it. It has 4.5 stars, e.g. on No. 5 St. Mary's Rd.", 2),
        ("They charge $3.50! Worth it? Yes.", 3),
        ("One line\nand another\n\n", 2),
        (" \n … !", 0),
        ("", 0),
    ],
)
def test_sentences(text, expected):
    assert len(sentences(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The bread is warm; the tea is cold.", ["The bread is warm.", "The tea is cold."]),
        (
            "The user enjoys live jazz and they would like the terrace.",
            ["The user enjoys live jazz.", "They would like the terrace."],
        ),
        # The second side has no verb, so it is no clause.
        ("The place has live jazz and a terrace.", ["The place has live jazz and a terrace."]),
        ("It offers bread and the tea of the house.", ["It offers bread and the tea of the house."]),
        (
            "You would enjoy Ella's for its bread, a warm welcome, and live jazz, making it a place to return to.",
            [
                "You would enjoy Ella's for its bread.",
                "You would enjoy Ella's for its warm welcome.",
                "You would enjoy Ella's for its live jazz.",
                "Making it a place to return to.",
            ],
        ),
        (
            "The book offers a slow plot, dry humor and wit, despite its length.",
            ["The book offers a slow plot.", "The book offers dry humor and wit.", "Despite its length."],
        ),
        # Two adjectives of one noun are no list, and neither is an insertion before the verb.
        ("They enjoy fast-paced, tense thrillers.", ["They enjoy fast-paced, tense thrillers."]),
        (
            "The menu, with soups, teas, makes it a choice.",
            ["The menu, with soups, teas, makes it a choice."],
        ),
        (
            "With its live jazz, this place should suit them.",
            ["With its live jazz, this place should suit them."],
        ),
    ],
)
def test_statements(text, expected):
    assert statements(text) == expected


# What joins clauses and members of lists goes, and so may an article.
JOINTS = "a an the and or but along with as well while whereas although though yet"


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - set(JOINTS.split())


@given(st.text(alphabet="ab ,;.!?\n'and for its 3.", max_size=80))
def test_any_text_gives_statements_with_its_words(text):
    found = statements(text)
    assert all(statement.strip() and any(c.isalnum() for c in statement) for statement in found)
    assert words_of(text) == {word for statement in found for word in words_of(statement)}


@pytest.mark.parametrize("dataset", ["yelp", "amazon"])
def test_no_word_of_the_published_predictions_is_lost(release_data, dataset):
    texts = load_plain(release_data / "xrec-release" / dataset / "tst_pred.pkl")[:400]
    for text in texts:
        assert words_of(text) == {word for statement in statements(text) for word in words_of(statement)}, text
