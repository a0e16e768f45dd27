"""Feature matching: does the explanation name the feature that the pair's true explanation is about?

For worlds whose explanations carry a known `feature` phrase (the synthetic sample, data sets with extracted features),
as in Li et al. 2020 (feature matching ratio). It compares words, not meanings: a paraphrase does not count.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


class FeatureMatcher:
    """Finds the phrases of a vocabulary in texts.

    A phrase matches whole words, whatever the case and the white space between them. Where phrases overlap, the longest
    one counts: `live music` does not name `music`.

    Args:
        vocabulary: the distinct feature phrases.

    Raises:
        ValueError: the vocabulary is empty or holds an empty phrase.
    """

    def __init__(self, vocabulary: Iterable[str]):
        self.vocabulary = sorted({_normal(phrase) for phrase in vocabulary})
        if not self.vocabulary or not self.vocabulary[0]:
            raise ValueError(
                f"feature vocabulary {self.vocabulary[:3]!r}: it is empty or holds an empty phrase; "
                "give the features of the explanations table, nulls left out"
            )
        longest_first = sorted(self.vocabulary, key=len, reverse=True)
        alternatives = "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)

    def named(self, text: str) -> set[str]:
        """The features that a text names, lower-cased."""
        return {_normal(phrase) for phrase in self._pattern.findall(text)}

    def score(self, texts: Sequence[str], features: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Per text: whether it names its pair's feature and no other, and whether it names it at all.

        Args:
            texts: n explanations.
            features: the n pairs' true features; None where a pair has none.

        Returns:
            `accuracy` and `matched`, each `[n]` float64 of 0 and 1, NaN where the feature is None.
        """
        accuracy, matched = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
        for row, (text, feature) in enumerate(zip(texts, features, strict=True)):
            if feature is None:
                continue
            found, true = self.named(text), _normal(feature)
            accuracy[row], matched[row] = float(found == {true}), float(true in found)
        return accuracy, matched


@dataclass(frozen=True)
class ChanceLevels:
    """What a guesser that knows nothing of the pair reaches in accuracy.

    Attributes:
        majority: it always names the most common feature.
        independent: it draws a feature from their distribution (the sum of squared shares).
    """

    majority: float
    independent: float


def chance_levels(features: Sequence[str | None]) -> ChanceLevels:
    """Chance levels under the distribution of the given pairs' features (None left out).

    Raises:
        ValueError: no pair has a feature.
    """
    counts = Counter(_normal(feature) for feature in features if feature is not None)
    if not counts:
        raise ValueError("chance levels: no pair has a feature; leave feature matching out for this data")
    shares = np.array(list(counts.values())) / counts.total()
    return ChanceLevels(majority=float(shares.max()), independent=float((shares**2).sum()))


def _normal(phrase: str) -> str:
    return " ".join(phrase.lower().split())
