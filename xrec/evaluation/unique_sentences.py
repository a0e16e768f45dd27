"""Unique sentence ratio (USR): how many of the explanations differ from each other.

The paper's measure of diversity (arXiv 2406.02377, section 4.1.2; Li et al. 2020). It says nothing about quality: see
`bert_score.py` and `feature_matching.py`.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence


def unique_sentence_ratio(texts: Sequence[str]) -> float:
    """Number of distinct explanations over the number of explanations, each taken as one sentence.

    Args:
        texts: the explanations; two that differ only in white space count as the same.

    Returns:
        A value in (0, 1]; 1 when no two explanations are the same.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("unique sentence ratio: texts is empty; give at least one explanation")
    return len({_normal(text) for text in texts}) / len(texts)


def grouped_unique_sentence_ratio(texts: Sequence[str], groups: Sequence[Hashable]) -> float:
    """The ratio within each group's explanations, averaged over the groups, each with the same weight.

    Within a user's explanations it says whether items are told apart; within an item's, whether users are. A group of
    one explanation has ratio 1, so the figure is near 1 for any model where most groups are that small.

    Args:
        texts: n explanations.
        groups: the n users (or items) that they are for.

    Returns:
        A value in (0, 1].

    Raises:
        ValueError: there is no text, or the lists differ in length.
    """
    if not texts or len(texts) != len(groups):
        raise ValueError(f"unique sentence ratio: {len(texts)} texts and {len(groups)} groups; give one group a text")
    sizes: dict[Hashable, int] = defaultdict(int)
    distinct: dict[Hashable, set[str]] = defaultdict(set)
    for text, group in zip(texts, groups, strict=True):
        sizes[group] += 1
        distinct[group].add(_normal(text))
    return sum(len(distinct[group]) / size for group, size in sizes.items()) / len(sizes)


def _normal(text: str) -> str:
    return " ".join(text.split())
