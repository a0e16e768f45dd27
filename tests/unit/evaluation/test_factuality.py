"""Statement-level precision, recall and F1, against counts by hand."""

import numpy as np
import pytest

from xrec.evaluation.factuality import FactualityScorer
from xrec.evaluation.support import LexicalChecker


class WordChecker:
    """Supports a statement whose last word is in a source; cannot answer about jazz."""

    def support(self, statements, sources):
        found = []
        for statement, texts in zip(statements, sources, strict=True):
            last = statement.split()[-1].strip(".")
            found.append(np.nan if last == "jazz" else float(any(last in text for text in texts)))
        return np.array(found)

    def facts(self):
        return {"checker": "word"}


def scorer(**settings) -> FactualityScorer:
    return FactualityScorer(WordChecker(), **settings)


def test_precision_recall_and_f1_by_hand():
    found = scorer().score_texts(
        ["They sell bread. They sell tea. They sell soup.", "They play jazz. They sell tea.", "They play jazz."],
        ["They sell bread. They sell wine.", "They sell tea. They sell soup.", "They play jazz."],
    )
    np.testing.assert_allclose(found["factuality_precision"], [1 / 3, 1, np.nan])
    np.testing.assert_allclose(found["factuality_recall"], [1 / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(found["factuality_f1"], [2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2), 2 / 3, np.nan])


def test_nothing_in_common_scores_zero():
    found = scorer().score_texts(["They sell bread."], ["They sell tea."])
    assert [float(values[0]) for values in found.values()] == [0, 0, 0]


def test_rows_without_reference_have_no_score_and_empty_texts_score_zero():
    own = scorer()
    rows = {
        "item": [0, 0, 0, 0],
        "explanation": ["They sell bread.", "", "They sell tea.", "They sell tea."],
        "reference": ["They sell bread.", "They sell bread.", None, " "],
    }
    found = own.score(rows)
    assert tuple(found) == own.columns
    for values in found.values():
        np.testing.assert_array_equal(values, [1, 0, np.nan, 0])
    assert own.facts() == {"checker": "word", "threshold": 0.5, "statements": 4, "unchecked": 0, "empty": 2}


def test_unchecked_statements_are_counted():
    own = scorer()
    own.score_texts(["They play jazz. They sell tea."], ["They sell tea."])
    assert (own.facts()["statements"], own.facts()["unchecked"]) == (3, 1)


def test_a_title_supports_too():
    rows = {"item": [1, 0, 1], "explanation": ["They like Bread."] * 3, "reference": ["They sell tea.", None, "Tea."]}
    titles = ["Soup", "House of Bread"]
    found = FactualityScorer(WordChecker(), titles=titles).score(rows)["factuality_precision"]
    np.testing.assert_array_equal(found, [1, np.nan, 1])
    assert scorer().score(rows)["factuality_precision"][0] == 0


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 1.0), (0.6, 0.0)])
def test_support_from_the_threshold_on_counts(threshold, expected):
    # One of two content words.
    found = FactualityScorer(LexicalChecker(), threshold).score_texts(["The live jazz."], ["The live bread."])
    assert found["factuality_precision"][0] == expected


def test_no_rows():
    assert [len(values) for values in scorer().score_texts([], []).values()] == [0, 0, 0]
