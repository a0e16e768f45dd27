"""What do the embeddings know? Linear probes from graph embeddings to the words of the nodes' own texts.

For each common content word, a logistic regression reads the standardised embedding of an item (or user) and predicts
whether the word occurs in its text. The cross-validated AUC says how much of that word the interaction graph reveals:
0.5 is nothing. A word with a low AUC is one that no adapter can put into an explanation from the embedding alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_LETTERS = r"(?u)\b[^\W\d_]{3,}\b"


@dataclass(frozen=True)
class WordProbe:
    """One word's probe.

    Attributes:
        word: lower-cased.
        share: share of the texts that hold it.
        auc: area under the ROC curve, the mean over the folds; 0.5 is chance.
        spread: standard deviation of the folds' areas.
    """

    word: str
    share: float
    auc: float
    spread: float


def common_words(
    texts: Sequence[str], count: int, low: float = 0.05, high: float = 0.5
) -> tuple[list[str], np.ndarray]:
    """The most common content words of the texts, and where they occur.

    Args:
        texts: n texts.
        count: words wanted.
        low: a word is in at least this share of the texts.
        high: and in at most this share.

    Returns:
        Up to `count` words, most common first (ties in alphabetical order), and their presence `[n, words]` bool.
        English stop words, numbers and words under three letters are left out.
    """
    vectorizer = CountVectorizer(binary=True, stop_words="english", token_pattern=_LETTERS)
    try:
        counts: Any = vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's answer to texts without any word
        return [], np.zeros((len(texts), 0), dtype=bool)
    names = vectorizer.get_feature_names_out()
    shares = np.asarray(counts.mean(axis=0)).ravel()
    order = np.argsort(-shares, kind="stable")
    chosen = [i for i in order if low <= shares[i] <= high][:count]
    return [str(names[i]) for i in chosen], counts[:, chosen].toarray().astype(bool)


def probe_words(
    embeddings: np.ndarray,
    texts: Mapping[int, str],
    count: int = 20,
    folds: int = 5,
    max_nodes: int = 20_000,
    seed: int = 0,
) -> list[WordProbe]:
    """Probe the embeddings of the nodes that have a text.

    Args:
        embeddings: `[N, D]`, all nodes of one side.
        texts: node index -> text; nodes outside training should be left out by the caller.
        count: words probed.
        folds: cross-validation folds, over nodes.
        max_nodes: a larger set is sampled down to this, for time.
        seed: of the sample and the folds.

    Returns:
        One entry a word, best known first. Empty where texts are too few for the folds, or share no word.

    Raises:
        ValueError: a text belongs to a node that has no embedding.
    """
    nodes = np.array(sorted(texts), dtype=np.int64)
    if len(nodes) and not 0 <= nodes[0] <= nodes[-1] < len(embeddings):
        raise ValueError(f"probe: a text belongs to node {nodes[-1]}, but there are {len(embeddings)} embeddings")
    if len(nodes) > max_nodes:
        nodes = np.sort(np.random.default_rng(seed).choice(nodes, max_nodes, replace=False))
    words, present = common_words([texts[n] for n in nodes.tolist()], count)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    probes = []
    for word, labels in zip(words, present.T, strict=True):
        if min(labels.sum(), (~labels).sum()) < folds:
            continue
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        areas = cross_val_score(model, embeddings[nodes], labels, cv=splitter, scoring="roc_auc")
        probes.append(WordProbe(word, float(labels.mean()), float(areas.mean()), float(areas.std())))
    return sorted(probes, key=_auc, reverse=True)


def _auc(probe: WordProbe) -> float:
    return probe.auc
