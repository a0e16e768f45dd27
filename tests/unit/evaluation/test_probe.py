"""Probes on embeddings that are known to hold one word and to know nothing of another."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from xrec.evaluation.probe import common_words, probe_words


@pytest.fixture
def world():
    """300 nodes; `philadelphia` is a direction of the embedding, `coffee` is noise, `rare` is in two texts."""
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(310, 8))
    embeddings[:, 3] *= 40
    city, drink = (embeddings[:, 0] > 0.3).tolist(), (generator.random(310) < 0.3).tolist()
    texts = {
        n: f"The place{' in Philadelphia' * city[n]}{' with coffee' * drink[n]}{' rare' * (n < 2)}" for n in range(300)
    }
    return embeddings, texts


def test_finds_what_the_embeddings_know(world):
    probes = {p.word: p for p in probe_words(*world)}
    assert set(probes) == {"philadelphia", "coffee"}
    assert probes["philadelphia"].auc > 0.97
    assert 0.35 < probes["coffee"].auc < 0.65


def test_equals_the_folds_written_out(world):
    embeddings, texts = world
    (probe,) = (p for p in probe_words(embeddings, texts, seed=4) if p.word == "coffee")
    x, y = embeddings[:300], np.array(["coffee" in texts[n] for n in range(300)])
    areas = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=4).split(x, y):
        mean, deviation = x[train].mean(0), x[train].std(0)
        model = LogisticRegression(max_iter=1000).fit((x[train] - mean) / deviation, y[train])
        areas.append(roc_auc_score(y[test], (x[test] - mean) / deviation @ model.coef_[0]))
    assert probe.auc == pytest.approx(np.mean(areas), abs=1e-6)
    assert probe.spread == pytest.approx(np.std(areas), abs=1e-6)
    assert probe.share == y.mean()


def test_common_words_by_hand():
    texts = ["The sushi bar", "sushi and ramen", "a sushi 24 xy", "ramen", "sushi"]
    names, present = common_words(texts, count=5, low=0.3, high=0.8)
    assert names == ["sushi", "ramen"]
    assert present.T.tolist() == [[True, True, True, False, True], [False, True, False, True, False]]
    assert common_words(texts, count=1, low=0.3, high=0.8)[0] == ["sushi"]
    assert common_words(texts, count=5, low=0.3, high=0.5)[0] == ["ramen"]


def test_too_little_text_gives_no_probe():
    embeddings = np.random.default_rng(0).normal(size=(4, 3))
    assert probe_words(embeddings, {}) == []
    assert probe_words(embeddings, {0: "sushi", 1: "ramen"}) == []
    assert probe_words(embeddings, {0: "12 3", 1: "a"}) == []


def test_a_large_set_is_sampled(world):
    embeddings, texts = world
    few = probe_words(embeddings, texts, max_nodes=100)
    assert few and few != probe_words(embeddings, texts)
    assert few == probe_words(embeddings, texts, max_nodes=100)


def test_a_text_without_embedding_is_refused(world):
    with pytest.raises(ValueError, match="node 400"):
        probe_words(world[0], {400: "sushi"})
