"""Feature matching: does the explanation name the feature that the pair's true explanation is about?

For worlds whose explanations carry a known `feature` phrase (the synthetic sample, data sets with extracted features),
as in Li et al. 2020 (Generate Neural Template Explanations for Recommendation, CIKM): feature matching ratio (FMR) of
single texts, feature coverage ratio (FCR) and feature diversity (DIV) of a set of them. It compares words, not
meanings: a paraphrase does not count.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from xrec.evaluation.scorers import Rows


@dataclass(frozen=True)
class FeatureSpread:
    """How the features of a vocabulary are spread over a set of texts.

    Attributes:
        coverage: distinct features that the texts name together, over the vocabulary's size; in [0, 1] (FCR).
        overlap: features that two texts both name, the mean over all couples of texts; the fewer, the more diverse
            (DIV). NaN for a single text.
    """

    coverage: float
    overlap: float


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

    def spread(self, texts: Sequence[str]) -> FeatureSpread:
        """Coverage and overlap of the features that the texts name.

        Args:
            texts: n explanations, in any order.

        Raises:
            ValueError: there is no text.
        """
        if not texts:
            raise ValueError("feature coverage: texts is empty; give at least one explanation")
        counts = Counter(feature for text in texts for feature in self.named(text))
        # A feature that c texts name is in the intersection of c (c - 1) / 2 couples: no couple need be looked at.
        shared, couples = sum(comb(count, 2) for count in counts.values()), comb(len(texts), 2)
        return FeatureSpread(len(counts) / len(self.vocabulary), shared / couples if couples else float("nan"))


class FeatureScorer:
    """Feature matching as columns of `scores`: a `Scorer`, whose rows need a feature and no reference.

    Args:
        vocabulary: the distinct feature phrases.
    """

    columns: tuple[str, ...] = ("feature_accuracy", "feature_matched")

    def __init__(self, vocabulary: Iterable[str]):
        self.matcher = FeatureMatcher(vocabulary)
        self.empty = 0

    def score(self, rows: Rows) -> dict[str, np.ndarray]:
        texts, features = rows["explanation"], rows["feature"]
        self.empty += sum(
            feature is not None and not text.strip() for text, feature in zip(texts, features, strict=True)
        )
        return dict(zip(self.columns, self.matcher.score(texts, features), strict=True))

    def facts(self) -> dict[str, Any]:
        return {"features": len(self.matcher.vocabulary), "empty": self.empty}


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


@dataclass(frozen=True)
class NamedGuess:
    """What a guesser that reads a pair's texts, and nothing else of the pair, reaches in accuracy.

    Attributes:
        accuracy: expected accuracy of picking at random among the features that the texts name; among all features
            where they name none.
        named: features that a pair's texts name, on average.
    """

    accuracy: float
    named: float


def named_guess(
    matcher: FeatureMatcher, texts: Sequence[Sequence[str]], features: Sequence[str | None]
) -> NamedGuess | None:
    """The chance level of a model that has texts in front of it.

    Args:
        matcher: finds the features.
        texts: the texts of n pairs, such as what their prompts quote.
        features: the n pairs' true features; None where a pair has none, which is then left out.

    Returns:
        The mean over the pairs; None where none of them has a feature.
    """
    hits, named = [], []
    for own, feature in zip(texts, features, strict=True):
        if feature is None:
            continue
        found = set().union(*(matcher.named(text) for text in own))
        named.append(len(found))
        open_to_guess = found or set(matcher.vocabulary)
        hits.append((_normal(feature) in open_to_guess) / len(open_to_guess))
    return NamedGuess(float(np.mean(hits)), float(np.mean(named))) if hits else None


def _normal(phrase: str) -> str:
    return " ".join(phrase.lower().split())
