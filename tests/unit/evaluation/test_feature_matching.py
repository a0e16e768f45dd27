"""Feature matching on hand-made sentences, chance levels against simulation, diversity against a loop over couples."""

import itertools

import numpy as np
import pytest

from xrec.evaluation.feature_matching import FeatureMatcher, FeatureScorer, chance_levels, named_guess

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


def test_coverage_and_overlap_by_hand():
    matcher = FeatureMatcher(["jazz", "beer", "view", "sushi"])
    spread = matcher.spread(["jazz and beer", "Beer, jazz, view", "nothing", "beer"])
    assert spread.coverage == 3 / 4
    # Couples: {jazz, beer}, {}, {beer}, {}, {beer}, {}.
    assert spread.overlap == pytest.approx((2 + 0 + 1 + 0 + 1 + 0) / 6)


def test_overlap_against_the_loop_over_all_couples():
    generator = np.random.default_rng(0)
    vocabulary = [f"feature{n}" for n in range(12)]
    texts = [" and ".join(generator.choice(vocabulary, generator.integers(1, 5))) for _ in range(60)]
    sets = [{w for w in vocabulary if w in text.split()} for text in texts]
    couples = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    spread = FeatureMatcher(vocabulary).spread(texts)
    assert spread.overlap == pytest.approx(np.mean(couples))
    assert spread.coverage == len(set.union(*sets)) / 12


def test_one_text_has_no_overlap_and_none_is_refused():
    matcher = FeatureMatcher(["jazz"])
    assert np.isnan(matcher.spread(["jazz"]).overlap)
    with pytest.raises(ValueError, match="texts is empty"):
        matcher.spread([])


def test_columns_need_a_feature_and_no_reference():
    scorer = FeatureScorer(["jazz", "beer"])
    rows = {"explanation": ["jazz", "jazz and beer", "", "x"], "feature": ["Jazz", "beer", "beer", None]}
    found = scorer.score({**rows, "reference": [None] * 4})
    np.testing.assert_array_equal(found["feature_accuracy"], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(found["feature_matched"], [1, 1, 0, np.nan])
    assert tuple(found) == scorer.columns
    assert scorer.facts() == {"features": 2, "empty": 1}


def test_a_guess_among_the_features_that_texts_name():
    matcher = FeatureMatcher(["live jazz", "craft beer", "big screens", "free parking"])
    texts = [
        ["The Live Jazz Bar", "known for craft beer"],  # 2 named, the true one among them
        ["craft beer and big screens", "craft beer"],  # 2 named, the true one not
        ["nothing"],  # none named: any of the four
        ["free parking"],  # the pair has no feature
        ["live jazz"],
    ]
    features = ["live jazz", "live jazz", "Craft  beer", None, "live jazz"]
    found = named_guess(matcher, texts, features)
    assert found is not None
    assert found.accuracy == pytest.approx((1 / 2 + 0 + 1 / 4 + 1) / 4)
    assert found.named == pytest.approx((2 + 2 + 0 + 1) / 4)
    assert named_guess(matcher, [["live jazz"]], [None]) is None
    assert named_guess(matcher, [[]], ["live jazz"]).accuracy == 1 / 4  # pyright: ignore


def test_the_guess_is_what_guessers_reach():
    matcher = FeatureMatcher(["live jazz", "craft beer", "big screens"])
    texts = [["live jazz and craft beer"], ["live jazz, craft beer, big screens"], [""]]
    features, generator = ["craft beer", "big screens", "live jazz"], np.random.default_rng(0)
    hits = []
    for _ in range(3000):
        for own, feature in zip(texts, features, strict=True):
            named = sorted(f for f in matcher.vocabulary if f in own[0]) or matcher.vocabulary
            hits.append(generator.choice(named) == feature)
    assert named_guess(matcher, texts, features).accuracy == pytest.approx(np.mean(hits), abs=0.02)  # pyright: ignore
