"""BLEU (Papineni et al. 2002): n-grams of the prediction that the reference has, with a penalty for short ones.

By the library sacrebleu, with its default tokenization (13a), case kept. BLEU is defined on a corpus; what a single
sentence has is smoothed, and its mean is not the corpus' BLEU.
"""

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from xrec.evaluation.reference_scorer import ReferenceScorer, full_pairs


def sentence_bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """BLEU of each prediction against the reference at the same place.

    Args:
        predictions: n texts.
        references: n texts.

    Returns:
        Each `[n]` float64 in [0, 100], 0 where no word is shared. `bleu_1`: precision of words times the brevity
        penalty. `bleu_4`: up to 4-grams, or as long ones as a shorter prediction has; orders without a match are
        smoothed exponentially (Chen and Cherry 2014, method 3).

    Raises:
        ValueError: the lists differ in length.
    """
    full_pairs(predictions, references)
    libraries = {
        "bleu_1": BLEU(max_ngram_order=1, effective_order=True, smooth_method="none"),
        "bleu_4": BLEU(effective_order=True),
    }
    return {
        name: np.array([library.sentence_score(p, [r]).score for p, r in zip(predictions, references, strict=True)])
        for name, library in libraries.items()
    }


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 of all predictions together, in [0, 100], as papers report it.

    Raises:
        ValueError: the lists are empty or differ in length.
    """
    if not len(full_pairs(predictions, references)):
        raise ValueError("corpus BLEU: predictions is empty; give at least one prediction with a reference")
    return float(BLEU().corpus_score(list(predictions), [list(references)]).score)


class BleuScorer(ReferenceScorer):
    """Sentence BLEU as columns of `scores`."""

    def __init__(self) -> None:
        super().__init__(("bleu_1", "bleu_4"), sentence_bleu, {"tokenization": "13a"})
