"""Feature matching on hand-made sentences, and chance levels against simulation."""

import numpy as np
import pytest

from xrec.evaluation.feature_matching import FeatureMatcher, chance_levels

VOCABULARY = ["live music", "music", "late-night hours", "c++"]


def test_accuracy_asks_for_the_feature_alone_and_matched_for_its_presence():
    matcher = FeatureMatcher(["live jazz", "craft beer"])
    texts = ["Live  Jazz every night", "craft beer and live jazz", "craft beer", "nothing here", "anything"]
    accuracy, matched = matcher.score(texts, ["live jazz"] * 4 + [None])
    assert accuracy[:4].tolist() == [1, 0, 0, 0]
    assert matched[:4].tolist() == [1, 1, 0, 0]
    assert np.isnan(accuracy[4]) and np.isnan(matched[4])


def test_longest_phrase_wins_and_words_are_whole():
    matcher = FeatureMatcher(VOCABULARY)
    assert matcher.named("their live music is loud") == {"live music"}
    assert matcher.named("music, and live music") == {"music", "live music"}
    assert matcher.named("musical evenings") == set()
    assert matcher.named("Late-night hours for C++ lovers") == {"late-night hours", "c++"}
    assert matcher.named("late.night hours") == set()


@pytest.mark.parametrize("vocabulary", [[], [" "], ["a", ""]])
def test_an_empty_vocabulary_is_refused(vocabulary):
    with pytest.raises(ValueError, match="vocabulary"):
        FeatureMatcher(vocabulary)


def test_chance_levels_in_closed_form():
    levels = chance_levels(["a", "a", "a", "b", None])
    assert levels.majority == 0.75
    assert levels.independent == pytest.approx(0.75**2 + 0.25**2)


def test_chance_levels_against_simulated_guessers():
    generator = np.random.default_rng(0)
    features = generator.choice(["jazz", "beer", "view", "sushi"], p=[0.4, 0.3, 0.2, 0.1], size=4000).tolist()
    matcher = FeatureMatcher(["jazz", "beer", "view", "sushi"])
    levels = chance_levels(features)
    drawn = [f"for its {f}" for f in generator.permutation(features)]
    assert matcher.score(drawn, features)[0].mean() == pytest.approx(levels.independent, abs=0.03)
    assert matcher.score(["for its jazz"] * 4000, features)[0].mean() == pytest.approx(levels.majority)


def test_chance_levels_need_a_feature():
    with pytest.raises(ValueError, match="no pair has a feature"):
        chance_levels([None, None])
