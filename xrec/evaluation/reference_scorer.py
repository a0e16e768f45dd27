"""What all metrics that compare a prediction with its reference have in common: rows without one, and empty texts.

The metrics themselves are in the files named after them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xrec.evaluation.scorers import Rows, on_referenced

# Predictions and references to name -> `[n]`.
PairScore = Callable[[list[str], list[str]], dict[str, np.ndarray]]


class ReferenceScorer:
    """A `Scorer` made of a function of predictions and references.

    A row without a reference gets NaN, one whose prediction or reference is empty gets `worst` and is counted; the
    function sees neither.

    Args:
        columns: what the function returns.
        score: the function.
        facts: what its figures depend on.
        worst: the value of an empty text; NaN for a metric that has no least value.
    """

    def __init__(
        self, columns: Sequence[str], score: PairScore, facts: dict[str, Any] | None = None, worst: float = 0.0
    ):
        self.columns, self._score, self._facts, self._worst = tuple(columns), score, facts or {}, worst
        self.empty = 0

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        return on_referenced(rows, self.columns, self._score_pairs)

    def facts(self) -> dict[str, Any]:
        return {**self._facts, "empty": self.empty}

    def _score_pairs(self, predictions: list[str], references: list[str]) -> dict[str, np.ndarray]:
        found = {name: np.full(len(predictions), self._worst) for name in self.columns}
        full = full_pairs(predictions, references)
        self.empty += int((~full).sum())
        if full.any():
            chosen = np.flatnonzero(full)
            scored = self._score([predictions[n] for n in chosen], [references[n] for n in chosen])
            for name in self.columns:
                found[name][full] = scored[name]
        return found


def full_pairs(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """`[n]` bool: both texts have something in them other than white space.

    Raises:
        ValueError: the lists differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references; give one a prediction")
    return np.array([bool(p.strip() and r.strip()) for p, r in zip(predictions, references, strict=True)], bool)
