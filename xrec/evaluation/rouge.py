"""ROUGE (Lin 2004): overlap of words, of word pairs, and of the longest common subsequence of words.

By the library rouge-score, without stemming, which is its default. Its words are runs of the letters a to z and of
digits, lower-cased: other scripts score 0, and accents split a word.
"""

from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer as LibraryScorer

from xrec.evaluation.reference_scorer import ReferenceScorer, full_pairs

_NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """F1 of each prediction against the reference at the same place.

    Args:
        predictions: n texts.
        references: n texts.

    Returns:
        `rouge_1`, `rouge_2` and `rouge_l`, each `[n]` float64 in [0, 1]; 0 where either text is empty.

    Raises:
        ValueError: the lists differ in length.
    """
    full_pairs(predictions, references)
    library = LibraryScorer(list(_NAMES.values()), use_stemmer=False)
    scored = [library.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {name: np.array([s[key].fmeasure for s in scored], np.float64) for name, key in _NAMES.items()}


class RougeScorer(ReferenceScorer):
    """ROUGE as columns of `scores`."""

    def __init__(self) -> None:
        super().__init__(tuple(_NAMES), rouge, {"stemmed": False})
