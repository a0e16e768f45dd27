"""The feature that PETER+ is given of a pair: a word or phrase that its explanation is expected to be about.

The paper gives the model the feature of the very explanation that it is to write, at test as in training. Of a pair to
be explained nobody knows it, so by default the feature is the item's commonest among its other training explanations,
in training as at test: a model that was trained on true ones would repeat a wrong one as readily.

Where the data names no features, the content words of an explanation stand for them.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from xrec.evaluation.feature_matching import FeatureMatcher

_WORD = re.compile(r"[^\W\d_]{3,}")
# A word of more explanations than this share says nothing particular, one of fewer than so many can't be learned.
_MOST, _LEAST = 0.1, 3


class ItemFeatures:
    """Features of items, and of explanations.

    Args:
        items, explanations, features: of the n training pairs; a feature is None where the data names none.
        profiles: of items, for those without a training explanation.
    """

    def __init__(
        self,
        items: Sequence[int],
        explanations: Sequence[str],
        features: Sequence[str | None],
        profiles: dict[int, str],
    ):
        self.profiles = profiles
        named = {feature for feature in features if feature is not None}
        self.matcher = FeatureMatcher(named) if named else None
        self._frequency = Counter(word for text in explanations for word in set(words(text)))
        self._rows = len(explanations)
        self.of_row = [self._features(e, f) for e, f in zip(explanations, features, strict=True)]
        self._of_item: dict[int, Counter[str]] = {}
        for item, found in zip(items, self.of_row, strict=True):
            self._of_item.setdefault(item, Counter()).update(found)
        self._items = list(items)

    def of_item(self, item: int) -> str:
        """An item's commonest training feature, else the first of its profile's, else the empty text."""
        return self._commonest(self._of_item.get(item, Counter()), item)

    def of_training_row(self, row: int) -> str:
        """The same for the item of a training row, as if that row were not there."""
        item = self._items[row]
        return self._commonest(self._of_item[item] - self.of_row[row], item)

    def of_explanation(self, explanation: str, feature: str | None) -> str:
        """What an explanation is about: its named feature, else its most particular content word."""
        return self._best(self._features(explanation, feature))

    def _commonest(self, counts: Counter[str], item: int) -> str:
        if counts.total() == 0:
            profile = self.profiles.get(item, "")
            counts = Counter(self.matcher.named(profile)) if self.matcher else Counter()
            counts = counts or self._content(profile)
        return self._best(counts)

    def _features(self, explanation: str, feature: str | None) -> Counter[str]:
        return Counter([feature.lower()]) if feature is not None else self._content(explanation)

    def _content(self, text: str) -> Counter[str]:
        found = [w for w in words(text) if self._frequency[w] <= max(1, _MOST * self._rows)]
        return Counter([w for w in found if self._frequency[w] >= _LEAST] or found)

    def _best(self, counts: Counter[str]) -> str:
        """The highest count; of single words, the highest TF-IDF. Ties go to the first in the alphabet."""
        if not counts:
            return ""
        return min(counts, key=lambda f: (-counts[f] * self._weight(f), f))

    def _weight(self, feature: str) -> float:
        if self.matcher and feature in self.matcher.vocabulary:
            return 1.0
        return math.log((1 + self._rows) / (1 + self._frequency[feature]))


def words(text: str) -> list[str]:
    """The lower-cased words of a text that are no stop words, repeated as often as they occur."""
    return [w for w in _WORD.findall(text.lower()) if w not in ENGLISH_STOP_WORDS]
