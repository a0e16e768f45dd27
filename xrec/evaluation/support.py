"""How far sources support a statement: what a checker is, and the one that compares words and needs no model.

`LexicalChecker` is the offline default. It finds the contradictions and inventions that show in the words, and none
that take understanding; the checkers of `entailment.py` judge meaning. What it knows of words is `support_words.py`'s.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from nltk.stem.snowball import SnowballStemmer
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from xrec.evaluation import support_words as english

AFFIRMED, DENIED = 1, 2
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[.!?,;:()]")
# Where a denial stops: a reason that follows is meant.
_SCOPE_END = frozenset(",;:().!?") | frozenset(english.SCOPE_END.split())
_DENIALS, _FRAMING = frozenset(english.DENIALS.split()), frozenset(english.FRAMING.split())
_LIKING, _DISLIKING = frozenset(english.LIKING.split()), frozenset(english.DISLIKING.split())
# Coarser than `statements.sentences` and many times as fast: there are a hundred sources for each statement.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\s*\n+\s*")
# "One" is seldom a number.
_NUMBERS = {word: str(value) for value, word in enumerate(english.NUMBERS.split()) if word != "one"}
_STEMMER = SnowballStemmer("english")
_STOP = (ENGLISH_STOP_WORDS - frozenset(english.NO_STOP_WORDS.split())) - _DENIALS
_CACHED_WORDS, _CACHED_SOURCES = 200_000, 20_000


class SupportChecker(Protocol):
    """Says how far sources support statements."""

    def support(self, statements: Sequence[str], sources: Sequence[Sequence[str]]) -> np.ndarray:
        """Support of each statement by its own sources.

        Args:
            statements: n sentences.
            sources: n lists of texts; a statement without any is supported by nothing.

        Returns:
            `[n]` float64 in [0, 1], NaN where there is nothing to check or no answer came.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What the figures depend on, and counts of this process."""
        ...


@dataclass(frozen=True)
class Claim:
    """What of a sentence is compared.

    Attributes:
        words: content word -> whether it is affirmed (1), denied (2) or both (3). It is a stem, or the concept that the
            word or its opposite belongs to; an opposite that is affirmed denies its concept.
        names: its numbers, and its capitalised words but the first; none of `words`.
        verdict: 1 where the sentence says that something is liked, -1 disliked, 0 neither.
    """

    words: dict[str, int]
    names: frozenset[str]
    verdict: int


class LexicalChecker:
    """Coverage of a statement's content words by the best sentence of its sources, halved by each contradiction.

    Content words are stems of the words that are neither stop words nor framing ("the user would enjoy this place for")
    nor mere praise ("great"); words of one meaning in `support_words.CONCEPTS` count as the same. Of all sentences of
    the sources the one with most of them is taken, of equals the one with fewest contradictions. Then

        support = agreeing / (content words + absent) * 0.5 ** (opposed + absent)

    where `agreeing` of the statement's content words are in that sentence in the same sense, `opposed` are in it in the
    opposite one (denied, or by a word of opposite meaning), one more if one of the two says that it is liked and the
    other that it is not, and `absent` of the statement's names and numbers are nowhere in the sources. Names and
    numbers that are there count as content words only where there are no others. A statement of nothing but framing and
    praise has no support (NaN) unless it says that something is not liked.

    Args:
        cached_sources: source texts that stay prepared, the last used; about 10 kB each.
    """

    def __init__(self, cached_sources: int = _CACHED_SOURCES):
        self.cached_sources = cached_sources
        self._source = lru_cache(cached_sources)(_Source)

    def __reduce__(self):
        return LexicalChecker, (self.cached_sources,)

    def support(self, statements: Sequence[str], sources: Sequence[Sequence[str]]) -> np.ndarray:
        """See `SupportChecker`."""
        found = [self._support(claim_of(text), texts) for text, texts in zip(statements, sources, strict=True)]
        return np.array(found, dtype=np.float64)

    def facts(self) -> dict[str, Any]:
        return {"checker": "lexical"}

    def _support(self, claim: Claim, texts: Sequence[str]) -> float:
        counted = sum(_counts(word, polarity) for word, polarity in claim.words.items())
        if not counted and not claim.names:
            return self._verdict_alone(claim, texts)
        sources = [self._source(text) for text in texts]
        absent = sum(not any(name in source.places for source in sources) for name in claim.names)
        best = (0, 0, 0)
        for source in sources:
            # A sentence has at most the words that the whole text has: most texts need no closer look.
            if len(claim.words.keys() & source.places.keys()) >= max(1, best[2]):
                best = max(best, source.best(claim), key=_rank)
        agreeing, opposed, _ = best
        if not counted:
            agreeing = counted = len(claim.names) - absent
        return agreeing / (counted + absent) * 0.5 ** (opposed + absent)

    def _verdict_alone(self, claim: Claim, texts: Sequence[str]) -> float:
        if claim.verdict >= 0:
            return np.nan
        verdicts = {verdict for text in texts for verdict in self._source(text).verdicts}
        return 1.0 if -1 in verdicts else 0.0


class _Source:
    """A text, ready to be compared with claims.

    Attributes:
        places: content word or name -> for each of its sentences, 4 * its number + (1 affirmed, 2 denied, 3 both).
        verdicts: of its sentences.
    """

    def __init__(self, text: str):
        claims = [claim_of(sentence) for sentence in _SENTENCE_END.split(text)]
        self.verdicts = [claim.verdict for claim in claims]
        places: dict[str, list[int]] = {}
        for sentence, claim in enumerate(claims):
            for word, polarity in [*claim.words.items(), *((name, AFFIRMED) for name in claim.names)]:
                places.setdefault(word, []).append(4 * sentence + polarity)
        # Tuples of small numbers: tens of thousands of texts stay prepared.
        self.places = {word: tuple(found) for word, found in places.items()}

    def best(self, claim: Claim) -> tuple[int, int, int]:
        """Agreeing and opposed words of the best sentence, and how many of them are in it in whichever sense."""
        agreeing, opposed = [0] * len(self.verdicts), [0] * len(self.verdicts)
        for word, polarity in claim.words.items():
            for place in self.places.get(word, ()):
                if not polarity & place & 3:
                    opposed[place >> 2] += 1
                elif _counts(word, polarity):
                    agreeing[place >> 2] += 1
        found = []
        for agree, oppose, verdict in zip(agreeing, opposed, self.verdicts, strict=True):
            if agree or oppose:
                found.append((agree, oppose + (verdict * claim.verdict < 0), agree + oppose))
        return max(found, key=_rank, default=(0, 0, 0))


def claim_of(sentence: str) -> Claim:
    """What a sentence claims, in words that can be compared."""
    tokens = _TOKEN.findall(sentence.replace("’", "'"))
    lower = [token.lower() for token in tokens]
    denied, shouted = _denied(lower), sentence.isupper()
    words: dict[str, int] = {}
    names, verdict = set(), 0
    for place, (token, normal) in enumerate(zip(tokens, lower, strict=True)):
        if not verdict and (normal in _LIKING or normal in _DISLIKING):
            verdict = 1 if (normal in _LIKING) != denied[place] else -1
        concept, same = _concept(normal)
        if concept is None:
            continue
        if token[0].isdigit() or normal in _NUMBERS or (place and token[0].isupper() and not shouted):
            names.add(concept)
        else:
            words[concept] = words.get(concept, 0) | (AFFIRMED if same != denied[place] else DENIED)
    return Claim(words, frozenset(names - words.keys()), verdict)


def _rank(found: tuple[int, int, int]) -> tuple[int, int]:
    _, opposed, together = found
    return together, -opposed


def _counts(word: str, polarity: int) -> bool:
    """Whether a content word has to be covered: mere praise has not, blame has."""
    return word != _PRAISE or polarity == DENIED


def _denied(tokens: list[str]) -> list[bool]:
    """For each token, whether a denial in its clause reaches it: what follows, or what precedes if nothing does."""
    denied, start = [False] * len(tokens), 0
    while start < len(tokens):
        end = next((n for n in range(start, len(tokens)) if tokens[n] in _SCOPE_END), len(tokens))
        cue = next((n for n in range(start, end) if _denies(tokens, n)), None)
        if cue is not None:
            follows = any(_concept(tokens[n])[0] or tokens[n] in _LIKING | _DISLIKING for n in range(cue + 1, end))
            for n in range(cue + 1, end) if follows else range(start, cue):
                denied[n] = True
        start = end + 1
    return denied


def _denies(tokens: list[str], place: int) -> bool:
    token = tokens[place]
    if token == "not" and tokens[place + 1 : place + 2] in (["only"], ["just"]):
        return False
    return token in _DENIALS or token.endswith("n't")


@lru_cache(_CACHED_WORDS)
def _concept(token: str) -> tuple[str | None, bool]:
    """The content word that a token stands for, None for none; and whether it means that or the opposite."""
    if token[0].isdigit() or token in _NUMBERS:
        return _NUMBERS.get(token) or token.replace(",", "").rstrip("."), True
    token = token.removesuffix("'s")
    if len(token) < 2 or "'" in token or token in _FRAMING or token in _DENIALS or token in _STOP:
        return None, True
    known = _CONCEPTS.get(_stem(token))
    return known or (None if token in _DISLIKING else _stem(token), True)


@lru_cache(_CACHED_WORDS)
def _stem(token: str) -> str:
    return _STEMMER.stem(token)


def _concepts() -> dict[str, tuple[str, bool]]:
    found: dict[str, tuple[str, bool]] = {}
    for line in english.CONCEPTS.strip().splitlines():
        same, _, opposite = line.partition("|")
        name = _stem(same.split()[0])
        for words, means in ((same, True), (opposite, False)):
            for word in words.split():
                found.setdefault(_stem(word), (name, means))
    return found


_CONCEPTS, _PRAISE = _concepts(), _STEMMER.stem("excellent")
