"""Statement-level factuality against the reference: precision, recall and F1.

Precision is the share of the explanation's statements that the reference supports, recall that of the reference's
statements that the explanation supports (as the precision of FActScore, Min et al. 2023, arXiv 2305.14251, with the
reference for a knowledge source, and its converse). What support is, is the checker's business.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec.evaluation.grounding import StatementSupport
from xrec.evaluation.scorers import Rows, on_referenced
from xrec.evaluation.support import SupportChecker

COLUMNS = ("factuality_precision", "factuality_recall", "factuality_f1")


class FactualityScorer:
    """Scores explanations against references, statement by statement.

    A statement that could not be checked (mere framing, or no answer) is left out and counted. A text of which no
    statement could be checked has no precision or recall (NaN), and F1 needs both. An empty explanation or reference
    scores 0 and is counted.

    Args:
        checker: decides whether a text supports a statement.
        threshold: support from which on a statement counts as supported.
        titles: names of items by index. The title supports as well as the text: to name the place that an explanation
            is about is no invention, even where the reference says "this place".
    """

    columns: tuple[str, ...] = COLUMNS

    def __init__(self, checker: SupportChecker, threshold: float = 0.5, titles: Sequence[str] | None = None):
        self.titles, self.empty = titles, 0
        self._support = StatementSupport(checker, threshold)

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        """See `Scorer`."""
        titles: list[str] | None = None
        if self.titles is not None:
            of_rows = zip(rows["item"], rows["reference"], strict=True)
            titles = [self.titles[int(item)] for item, reference in of_rows if reference is not None]
        return on_referenced(rows, COLUMNS, lambda texts, references: self.score_texts(texts, references, titles))

    def score_texts(
        self, texts: Sequence[str], references: Sequence[str], titles: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The columns of n explanations, each `[n]` float64, against their references; `titles` of their items."""
        known = [[]] * len(texts) if titles is None else [[title] for title in titles]
        precision = self._support.share(texts, [[r, *k] for r, k in zip(references, known, strict=True)])
        recall = self._support.share(references, [[t, *k] for t, k in zip(texts, known, strict=True)])
        empty = np.array([not (t.strip() and r.strip()) for t, r in zip(texts, references, strict=True)], bool)
        self.empty += int(empty.sum())
        precision[empty] = recall[empty] = 0.0
        total = precision + recall
        f1 = np.divide(2 * precision * recall, total, out=np.zeros(len(texts)), where=total > 0)
        f1[np.isnan(total)] = np.nan
        return dict(zip(COLUMNS, (precision, recall, f1), strict=True))

    def facts(self) -> dict[str, Any]:
        """The checker's, the threshold, and counts."""
        return self._support.facts() | {"empty": self.empty}
