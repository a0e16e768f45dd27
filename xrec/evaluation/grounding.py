"""Source-grounded hallucination rate: which statements of an explanation nothing supports that is known of its pair.

What may support them is `sources.py`'s business, what support is that of the checker (`support.py`, `entailment.py`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec.evaluation.scorers import Rows
from xrec.evaluation.sources import Sources
from xrec.evaluation.statements import statements
from xrec.evaluation.support import SupportChecker


class StatementSupport:
    """Takes texts apart, asks a checker, and counts.

    Args:
        checker: decides.
        threshold: support from which on a statement counts as supported.
    """

    def __init__(self, checker: SupportChecker, threshold: float = 0.5):
        self.checker, self.threshold = checker, threshold
        self.statements = self.unchecked = 0

    def share(self, texts: Sequence[str], sources: Sequence[Sequence[str]]) -> np.ndarray:
        """Share of each text's statements that its sources support.

        Args:
            texts: n texts.
            sources: n lists of texts.

        Returns:
            `[n]` float64, NaN where no statement of a text could be checked; such statements take no part elsewhere.
        """
        parts = [statements(text) for text in texts]
        owners = [n for n, part in enumerate(parts) for _ in part]
        owner = np.array(owners, np.int64)
        flat = [statement for part in parts for statement in part]
        support = self.checker.support(flat, [sources[n] for n in owners]) if flat else np.zeros(0)
        checked = ~np.isnan(support)
        self.statements += len(flat)
        self.unchecked += int((~checked).sum())
        counts = np.bincount(owner[checked], minlength=len(texts)).astype(np.float64)
        supported = np.bincount(owner[checked & (support >= self.threshold)], minlength=len(texts))
        return np.divide(supported, counts, out=np.full(len(texts), np.nan), where=counts > 0)

    def facts(self) -> dict[str, Any]:
        """The checker's, the threshold, and counts of statements, and of those with nothing to check or no answer."""
        counts = {"statements": self.statements, "unchecked": self.unchecked}
        return self.checker.facts() | {"threshold": self.threshold} | counts


class GroundingScorer:
    """Hallucination: the share of an explanation's statements that no source of its pair supports.

    An empty explanation says nothing and gets NaN; it is counted.

    Args:
        checker: decides whether a source supports a statement.
        sources: of the pairs.
        threshold: support from which on a statement counts as supported.
    """

    columns: tuple[str, ...] = ("hallucination",)

    def __init__(self, checker: SupportChecker, sources: Sources, threshold: float = 0.5):
        self.sources, self.empty = sources, 0
        self._support = StatementSupport(checker, threshold)

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        """See `Scorer`."""
        texts = rows["explanation"]
        self.empty += sum(not text.strip() for text in texts)
        # Pairs of an item share most of their sources, which a checker may keep prepared.
        order = sorted(range(len(texts)), key=lambda n: (rows["item"][n], rows["user"][n]))
        sources = [self.sources.of(rows["user"][n], rows["item"][n]) for n in order]
        found = np.empty(len(texts))
        found[order] = 1 - self._support.share([texts[n] for n in order], sources)
        return {"hallucination": found}

    def facts(self) -> dict[str, Any]:
        """The checker's, what stood for reviews (`sources`), and counts."""
        return self._support.facts() | {"sources": self.sources.kind, "empty": self.empty}
