"""Distinct-n: the lexical diversity of a set of explanations (Li et al. 2016, arXiv 1510.03055)."""

import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def words(text: str) -> list[str]:
    """The lower-cased words of a text, punctuation left out; an apostrophe inside a word belongs to it."""
    return _WORD.findall(text.lower())


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Number of distinct word n-grams over the number of word n-grams, over all texts together.

    Args:
        texts: the explanations; no n-gram spans two of them.
        n: words in an n-gram.

    Returns:
        A value in [0, 1]; 0 where no text has n words. It falls as the number of texts grows, so compare only sets
        of about the same size.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"distinct_n: n = {n}; an n-gram has at least one word")
    total, seen = 0, set()
    for text in texts:
        for gram in _ngrams(words(text), n):
            total += 1
            seen.add(gram)
    return len(seen) / total if total else 0.0


def _ngrams(tokens: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)
