"""What the training pairs say about each user and item, and the words that set one node's texts apart from the others'.

Only training pairs' explanations and their nodes' titles and profiles are among it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from xrec.explainer.pairs import PairTexts

TYPICAL_WORDS = 8


def typical_words(texts: dict[int, list[str]], tokenizer: Any) -> dict[int, list[list[int]]]:
    """The words that set each node's texts apart from the others' (highest TF-IDF), as token ids.

    Args:
        texts: each node's training texts.
        tokenizer: words are encoded as they stand inside a sentence.
    """
    vectorizer = TfidfVectorizer(
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{3,}\b",
        sublinear_tf=True,
        # A word that few nodes share can be learned neither by a small model nor from a graph.
        min_df=min(5, 1 + len(texts) // 100),
    )
    joined = [" ".join(parts) for parts in texts.values()]
    try:
        matrix = vectorizer.fit_transform(joined).tocsr()  # pyright: ignore
    except ValueError:
        # What scikit-learn raises where no word is left: none but stop words, or none that enough nodes share.
        return {node: [] for node in texts}
    words = vectorizer.get_feature_names_out()
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    # The mean over the pieces of several words says less than the mean over whole words.
    whole = np.array([len(pieces) == 1 for pieces in ids])
    chosen = {}
    for row, node in enumerate(texts):
        span = slice(matrix.indptr[row], matrix.indptr[row + 1])
        columns, weights = matrix.indices[span], matrix.data[span]
        best = np.lexsort((-weights, ~whole[columns]))[:TYPICAL_WORDS]
        chosen[node] = [ids[column] for column in columns[best]]
    return chosen


def node_texts(
    pairs: Sequence[tuple[int, int, str]], texts: PairTexts, profiles: bool
) -> dict[str, dict[int, list[str]]]:
    """What training says about each user and item of the pairs: its explanations and, if asked, its description."""
    found: dict[str, dict[int, list[str]]] = {"user": {}, "item": {}}
    for user, item, explanation in pairs:
        found["user"].setdefault(user, []).append(explanation)
        found["item"].setdefault(item, []).append(explanation)
    if profiles:
        for side, nodes in found.items():
            for node, parts in nodes.items():
                parts.append(description(side, node, texts))
    return found


def description(side: str, node: int, texts: PairTexts) -> str:
    """An embedding put into words: a user's profile; an item's name and profile."""
    if side == "user":
        return texts.user_profiles.get(node, "")
    return f"{texts.titles[node]}. {texts.item_profiles.get(node, '')}".strip()
