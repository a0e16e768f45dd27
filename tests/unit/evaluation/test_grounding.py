"""The hallucination rate, against counts by hand."""

import numpy as np
import pyarrow as pa

from xrec.evaluation.grounding import GroundingScorer
from xrec.evaluation.sources import Sources, Texts
from xrec.evaluation.support import LexicalChecker


def sources() -> Sources:
    def texts(rows):
        return Texts(np.array([node for node, _ in rows]), pa.array([text for _, text in rows], pa.string()))

    item = texts([(0, "Ella's"), (0, "They sell warm bread. They play live jazz."), (1, "They sell black tea.")])
    return Sources([item], [texts([(4, "The user cares about a sunny terrace.")])], "reviews")


def test_the_share_of_statements_that_no_source_supports():
    scorer = GroundingScorer(LexicalChecker(), sources())
    rows = {
        "user": [4, 5, 5, 4, 4, 9],
        "item": [0, 0, 1, 0, 0, 7],
        "explanation": [
            "The user would enjoy Ella's for its warm bread, sunny terrace, live jazz, and black tea.",
            "The user would enjoy the warm bread. They like the sunny terrace.",
            "They never sell black tea.",
            "The user would enjoy this place.",
            " ",
            "The user would enjoy the warm bread.",
        ],
    }
    found = scorer.score(rows)["hallucination"]
    np.testing.assert_allclose(found, [1 / 4, 1 / 2, 1, np.nan, np.nan, 1])
    facts = scorer.facts()
    assert facts == {
        "checker": "lexical",
        "threshold": 0.5,
        "statements": 4 + 2 + 1 + 1 + 0 + 1,
        "unchecked": 1,
        "sources": "reviews",
        "empty": 1,
    }
