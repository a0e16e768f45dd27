"""Unique sentence ratio (USR): how many of the explanations differ from each other.

The paper's measure of diversity (arXiv 2406.02377, section 4.1.2; Li et al. 2020). It says nothing about quality: see
`bert_score.py` and `feature_matching.py`.
"""

from collections.abc import Sequence


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
    return len({" ".join(text.split()) for text in texts}) / len(texts)
