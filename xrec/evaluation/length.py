"""How long explanations are: the share over the word limit, and the share cut off before a sentence ended."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec.evaluation.scorers import Rows

WORD_LIMIT = 50
"""Words an explanation may have (the paper's instruction to the model, arXiv 2406.02377, Figure 2)."""


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """`[n]` int64: words of each text, separated by white space."""
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def over_limit(texts: Sequence[str], limit: int = WORD_LIMIT) -> np.ndarray:
    """`[n]` float64: 1 where a text has more than `limit` words, else 0; the mean is the share over the limit."""
    return (word_counts(texts) > limit).astype(np.float64)


def cut_off(finish_reasons: Sequence[str | None]) -> np.ndarray:
    """`[n]` float64: 1 where generation hit its token limit inside a sentence (`length`), else 0; NaN where unknown."""
    return np.array([np.nan if r is None else float(r == "length") for r in finish_reasons], dtype=np.float64)


class LengthScorer:
    """Length and limits as columns of `scores`."""

    columns: tuple[str, ...] = ("words", "over_50_words", "cut_off")

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        texts = rows["explanation"]
        return {
            "words": word_counts(texts).astype(np.float64),
            "over_50_words": over_limit(texts),
            "cut_off": cut_off(rows["finish_reason"]),
        }

    def facts(self) -> dict[str, Any]:
        return {"limit": WORD_LIMIT}
