"""The sample world: the same from the same seed, its truth as documented, and hidden where it must be."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from xrec.config import ConfigError, SampleConfig
from xrec.data import sample_text
from xrec.data.sample import make_world, world_tables
from xrec.data.sample_text import FEATURES
from xrec.tables import validate


@pytest.fixture(scope="module")
def world():
    return make_world(SampleConfig())


@pytest.fixture(scope="module")
def tables(world):
    return {name: validate(name, table) for name, table in world_tables(world).items()}


def mentions(text):
    """The features that a text names, in the order of their places in it."""
    return sorted((f for f in FEATURES if f in text), key=text.index)


def best_accuracy(keys, truth):
    """The share that the best guess from `keys` gets right: the majority of each key."""
    counts = defaultdict(Counter)
    for key, value in zip(keys, truth, strict=True):
        counts[key][value] += 1
    return sum(max(c.values()) for c in counts.values()) / len(truth)


def test_the_same_seed_gives_the_same_tables_and_another_seed_others(tables):
    again = world_tables(make_world(SampleConfig()))
    other = world_tables(make_world(SampleConfig(seed=1)))
    for name, table in tables.items():
        assert validate(name, again[name]).equals(table)
        assert not validate(name, other[name]).equals(table)


def test_the_truth_follows_from_the_two_profiles_and_the_order_in_which_they_name_features(tables):
    """Recomputed row by row from the texts alone: what the user likes most among what the item has."""
    likes = {r["user_id"]: mentions(r["profile"]) for r in tables["source_user_profiles"].to_pylist()}
    has = {r["item_id"]: mentions(r["profile"]) for r in tables["source_item_profiles"].to_pylist()}
    assert all(len(features) == 2 for features in [*likes.values(), *has.values()])
    kinds = Counter()
    for row in tables["source_explanations"].to_pylist():
        liked, offered = likes[row["user_id"]], has[row["item_id"]]
        expected = next((f for f in liked if f in offered), offered[0])
        assert row["feature"] == expected
        kinds[sum(f in offered for f in liked)] += 1
    assert min(kinds[0], kinds[1], kinds[2]) > 100, "each case has to occur"


def test_explanations_name_their_feature_and_nothing_else_in_12_to_25_words(tables):
    texts = Counter()
    for row in tables["source_explanations"].to_pylist():
        assert mentions(row["explanation"]) == [row["feature"]]
        assert 12 <= len(row["explanation"].split()) <= 25
        texts[row["explanation"].replace(row["feature"], "*")] += 1
    wordings = len(sample_text.EXPLANATION_OPENINGS) * len(sample_text.EXPLANATION_CLOSINGS)
    assert len(texts) == wordings >= 40
    assert max(texts.values()) < 2 * sum(texts.values()) / wordings


def test_the_wording_of_an_explanation_tells_nothing_of_its_feature(tables):
    rows = tables["source_explanations"].to_pylist()
    wording, feature = zip(*((r["explanation"].replace(r["feature"], "*"), r["feature"]) for r in rows), strict=True)
    counts = np.zeros((len(set(wording)), len(set(feature))))
    np.add.at(counts, (np.unique(wording, return_inverse=True)[1], np.unique(feature, return_inverse=True)[1]), 1)
    assert chi2_contingency(counts).pvalue > 1e-3


def test_only_user_and_item_together_determine_the_feature(world):
    """Neither the user nor the item does, even to one who has seen all the answers; guessing gets 1 / features."""
    assert 0.45 < best_accuracy(world.user, world.truth) < 0.75
    assert 0.45 < best_accuracy(world.item, world.truth) < 0.65
    assert best_accuracy(np.zeros(len(world.truth)), world.truth) == pytest.approx(1 / 8, abs=0.02)
    both = zip(map(tuple, world.user_features[world.user]), map(tuple, world.item_features[world.item]), strict=True)
    assert best_accuracy(both, world.truth) == 1


def test_names_attributes_and_descriptions_tell_nothing_of_the_features():
    """A classifier that reads them does no better than chance on items that it has not seen."""
    world = make_world(SampleConfig(items=1500, users=20))
    items = world_tables(world)["items"].to_pylist()
    texts = [f"{r['title']} {r['attributes']} {r['description']}" for r in items]
    assert not any(mentions(text) for text in texts)
    words = CountVectorizer(token_pattern=r"\S+").fit_transform(texts)
    predicted = cross_val_predict(LogisticRegression(max_iter=300), words, world.item_features[:, 0], cv=3)
    chance = 1 / 8
    error = np.sqrt(chance * (1 - chance) / len(items))
    assert np.mean(predicted == world.item_features[:, 0]) < chance + 4 * error


def test_phrases_share_no_word_with_each_other_or_with_the_sentences():
    words = [set(re.findall(r"\w+", feature)) for feature in FEATURES]
    assert sum(map(len, words)) == len(set.union(*words)), "two phrases share a word"
    books = [value for name, value in vars(sample_text).items() if name.isupper() and name != "FEATURES"]
    sentences = " ".join(s for book in books for s in ([book] if isinstance(book, str) else book)).lower()
    assert len(FEATURES) == len(set(FEATURES)) == 24
    assert not set.union(*words) & set(re.findall(r"\w+", re.sub(r"\{.\}", " ", sentences)))


@pytest.mark.parametrize(
    "config",
    [
        SampleConfig(users=700, items=90, interactions_per_user=10, noise=0.1),
        SampleConfig(users=300, items=2000, interactions_per_user=30, features=24, seed=3),
        SampleConfig(users=40, items=20, interactions_per_user=6),
    ],
)
def test_sizes_are_honoured(config):
    world = make_world(config)
    tables = world_tables(world)
    assert (tables["source_user_profiles"].num_rows, tables["items"].num_rows) == (config.users, config.items)
    assert set(world.user) == set(range(config.users))
    assert len(world.user) / config.users == pytest.approx(config.interactions_per_user, rel=0.05)
    assert len(set(zip(world.user, world.item, strict=True))) == len(world.user), "a user reviews an item once"
    assert world.noise.mean() == pytest.approx(config.noise, abs=4 * np.sqrt(0.25 / len(world.user)))
    assert world.item.min() >= 0 and world.item.max() < config.items
    assert tables["reviews"].num_rows == tables["source_explanations"].num_rows == len(world.user)


def test_every_pair_of_features_occurs_equally_often(world):
    items = Counter(frozenset(pair) for pair in world.item_features.tolist())
    users = Counter(map(tuple, world.user_features.tolist()))
    assert len(items) == 28 and max(items.values()) - min(items.values()) <= 1
    assert len(users) == 56 and max(users.values()) - min(users.values()) <= 1


@pytest.mark.parametrize("features", range(3, 25))
def test_a_few_items_offer_every_feature_equally_often(features):
    """An odd number of features cannot be paired up whole, so one of them may lag by another item."""
    pairs = features * (features - 1) // 2
    for items in (features, 2 * features + 1, pairs, pairs + 3):
        config = SampleConfig(users=5, items=items, features=features, interactions_per_user=1)
        dealt = make_world(config).item_features
        counts = np.bincount(dealt.ravel(), minlength=features)
        assert counts.max() - counts.min() <= 1 + features % 2
        kinds = Counter(map(frozenset, dealt.tolist()))
        assert all(len(kind) == 2 for kind in kinds)
        assert max(kinds.values()) <= -(-items // pairs)
    assert len(kinds) == pairs


@pytest.mark.parametrize("seed", range(10))
def test_whether_a_small_world_is_possible_does_not_depend_on_the_seed(seed):
    assert len(make_world(SampleConfig(users=40, items=20, interactions_per_user=8, seed=seed)).user) > 0


def test_visits_follow_taste():
    """With many items, of a user's visits to 13 of 28 kinds of item 7 are at rate 1 and 6 at rate 0.6."""
    world = make_world(SampleConfig(users=800, items=2800))
    chosen = ~world.noise
    taste = world.taste(world.user, world.truth)
    assert (taste[chosen] > 0).all()
    assert np.mean(taste[chosen] == 1) == pytest.approx(7 / (7 + 0.6 * 6), abs=0.02)
    assert np.mean(taste[world.noise] == 0) == pytest.approx(15 / 28, abs=0.06)


def test_reviews_are_about_the_truth_and_rated_by_taste(world, tables):
    rows = tables["reviews"].to_pylist()
    taste = world.taste(world.user, world.truth)
    ratings = np.array([r["rating"] for r in rows])
    also = 0
    for row, truth, item in zip(rows, world.truth, world.item, strict=True):
        named = mentions(row["text"])
        assert named[0] == FEATURES[truth]
        assert set(named) <= {FEATURES[f] for f in world.item_features[item]}
        also += len(named) == 2
    assert also / len(rows) == pytest.approx(0.3, abs=0.02)
    assert set(ratings) == {1, 2, 3, 4, 5}
    assert np.mean(ratings >= 4) > 0.9
    assert ratings[taste == 1].mean() > ratings[(taste > 0) & (taste < 1)].mean() > ratings[taste == 0].mean() + 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SampleConfig(features=25), r"sample.features = 25: the sample world knows 24 features"),
        (
            SampleConfig(items=30),
            r"sample.interactions_per_user = 24: with items = 30 .*use at most \d+, or more items",
        ),
        (SampleConfig(items=1), r"sample.interactions_per_user = 24: with items = 1 "),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_world(config)


def test_the_most_interactions_that_the_error_names_are_possible():
    with pytest.raises(ConfigError) as caught:
        make_world(SampleConfig(items=40, users=50))
    most = int(re.search(r"use at most (\d+)", str(caught.value))[1])
    world = make_world(SampleConfig(items=40, users=50, interactions_per_user=most))
    assert len(world.user) == 50 * most
