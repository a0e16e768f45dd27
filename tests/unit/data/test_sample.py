"""The sample world: the same from the same seed, its truth as documented, and hidden where it must be."""

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from nltk.stem.snowball import SnowballStemmer
from scipy.stats import chi2_contingency
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from xrec.config import ConfigError, SampleConfig
from xrec.data import sample_text
from xrec.data.sample import make_world, world_tables
from xrec.data.sample_text import FEATURES
from xrec.evaluation.feature_matching import FeatureMatcher
from xrec.tables import validate


@pytest.fixture(scope="module")
def world():
    return make_world(SampleConfig())


@pytest.fixture(scope="module")
def tables(world):
    return {name: validate(name, table) for name, table in world_tables(world).items()}


@pytest.fixture(scope="module")
def every_feature():
    """The tables of a world with all of the phrases."""
    return world_tables(make_world(SampleConfig(features=24, users=300, interactions_per_user=12, seed=2)))


@pytest.fixture(scope="module")
def items(tables):
    return facts_of(tables["items"])


FACTS = ("kind", "neighbourhood", "city", "host", "detail", "occasion")
DESCRIPTION = re.compile(
    r"A (?P<kind>.+?) in (?P<neighbourhood>.+?), (?P<city>.+?), run by (?P<host>.+?), with (?P<detail>.+)\."
)


def facts_of(items):
    """Each item's title and facts, read from its row in the table `items`."""
    return {
        row["item_id"]: DESCRIPTION.fullmatch(row["description"]).groupdict()
        | {"title": row["title"], "occasion": json.loads(row["attributes"])["good_for"]}
        for row in items.to_pylist()
    }


def wording(row, facts):
    """An explanation without what it says of its own pair; the features' articles are part of the phrases."""
    text = re.sub(rf"(?:\ba )?{row['feature']}", "*", row["explanation"])
    for fact in ("title", "detail", "occasion", "neighbourhood", "host", "kind"):
        text = re.sub(rf"(?<!\w){re.escape(facts[fact])}(?!\w)", fact, text)
    return text


def independent(values, features):
    """Whether a chi-square test finds no sign of dependence."""
    counts = np.zeros((len(set(values)), len(set(features))))
    np.add.at(counts, (np.unique(values, return_inverse=True)[1], np.unique(features, return_inverse=True)[1]), 1)
    return chi2_contingency(counts).pvalue > 1e-3


def flat(value):
    """All strings in nested lists, tuples and dicts; none of another value."""
    if isinstance(value, str):
        return [value]
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in flat(part)]


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


def test_the_truth_follows_from_the_two_profiles(world, tables):
    """Recomputed row by row: of what the item has, the feature that the user likes most, else its first one."""
    likes = {r["user_id"]: mentions(r["profile"]) for r in tables["source_user_profiles"].to_pylist()}
    has = {r["item_id"]: mentions(r["profile"]) for r in tables["source_item_profiles"].to_pylist()}
    assert all(len(features) == 2 for features in [*likes.values(), *has.values()])
    first = dict(zip(has, (FEATURES[f] for f in world.item_features[:, 0]), strict=True))
    kinds = Counter()
    for row in tables["source_explanations"].to_pylist():
        liked, offered = likes[row["user_id"]], has[row["item_id"]]
        expected = next((f for f in liked if f in offered), first[row["item_id"]])
        assert row["feature"] == expected
        kinds[sum(f in offered for f in liked)] += 1
    assert min(kinds[0], kinds[1], kinds[2]) > 100, "each case has to occur"


def test_an_item_profile_names_its_features_in_random_order(world, tables):
    named = [mentions(r["profile"]) for r in tables["source_item_profiles"].to_pylist()]
    in_order = [n == [FEATURES[f] for f in own] for n, own in zip(named, world.item_features, strict=True)]
    assert np.mean(in_order) == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / len(named)))


def test_explanations_name_their_feature_once_and_no_other(world, tables):
    matcher = FeatureMatcher(FEATURES)
    for row, truth in zip(tables["source_explanations"].to_pylist(), world.truth, strict=True):
        text = row["explanation"].lower()
        counts = {feature: text.count(feature) for feature in FEATURES if feature in text}
        assert counts == {row["feature"]: 1} and row["feature"] == FEATURES[truth]
        assert matcher.named(row["explanation"]) == {row["feature"]}


def test_item_profiles_name_both_features_and_user_profiles_the_liked_ones(world, tables):
    matcher = FeatureMatcher(FEATURES)
    for side, features in (("item", world.item_features), ("user", world.user_features)):
        profiles = tables[f"source_{side}_profiles"]["profile"].to_pylist()
        for profile, own in zip(profiles, features, strict=True):
            assert matcher.named(profile) == {FEATURES[f] for f in own}
            assert all(profile.lower().count(FEATURES[f]) == 1 for f in own)
    liked = [mentions(profile) for profile in tables["source_user_profiles"]["profile"].to_pylist()]
    assert liked == [[FEATURES[f] for f in own] for own in world.user_features]


@pytest.mark.parametrize(
    ("table", "column", "least", "most"),
    [
        ("source_explanations", "explanation", 8, 30),
        ("source_item_profiles", "profile", 35, 55),
        ("source_user_profiles", "profile", 20, 40),
        ("reviews", "text", 12, 50),
    ],
)
def test_texts_are_short_and_well_formed(tables, every_feature, table, column, least, most):
    for text in tables[table][column].to_pylist() + every_feature[table][column].to_pylist():
        assert least <= len(text.split()) <= most, text
        sentences = re.split(r"(?<=[.!?]) ", text)
        assert len(sentences) <= (2 if column == "explanation" else 4)
        assert all(re.fullmatch(r"[A-Z].*[^,;. ]\.", sentence) for sentence in sentences), text
        assert not re.search(r"[{}]|  | [.,;]|[.,;]{2}", text), text


def test_explanations_are_many_and_differ(tables, items):
    rows = tables["source_explanations"].to_pylist()
    assert len({r["explanation"] for r in rows}) > 0.95 * len(rows)
    of_user = defaultdict(list)
    for row in rows:
        of_user[row["user_id"]].append(row["explanation"])
    assert all(len(set(texts[:8])) == len(texts[:8]) for texts in of_user.values())
    assert np.mean([len(texts) >= 8 for texts in of_user.values()]) > 0.95
    wordings = Counter(wording(row, items[row["item_id"]]) for row in rows)
    expected = len(sample_text.EXPLANATION_REASONS) * len(sample_text.EXPLANATION_EXTRAS)
    assert len(wordings) == expected >= 300
    assert max(wordings.values()) < 2 * len(rows) / expected


def test_what_an_explanation_tells_of_the_place_is_in_the_items_profile(tables, items):
    """So that a model which reads the profile need invent nothing."""
    profiles = {r["item_id"]: r["profile"] for r in tables["source_item_profiles"].to_pylist()}
    for item_id, facts in items.items():
        assert all(value in profiles[item_id] for value in facts.values())
    kind_of = {facts[fact]: fact for facts in items.values() for fact in FACTS}
    known = re.compile(rf"\b(?:{'|'.join(sorted(kind_of, key=len, reverse=True))})\b")
    told = Counter()
    for row in tables["source_explanations"].to_pylist():
        title = items[row["item_id"]]["title"]
        assert title in row["explanation"]
        found = known.findall(row["explanation"].replace(title, "*"))
        assert all(value in profiles[row["item_id"]] for value in found), row["explanation"]
        assert len(found) <= 3
        told.update(kind_of[value] for value in found)
    assert {fact for fact in FACTS if told[fact] > 500} == set(FACTS) - {"city"}


def test_an_item_has_the_same_facts_in_all_columns(items, tables):
    for row in tables["items"].to_pylist():
        attributes = json.loads(row["attributes"])
        assert attributes["good_for"] in sample_text.OCCASIONS
        assert {name: items[row["item_id"]][name] for name in ("city", "neighbourhood", "kind")} == {
            name: attributes[name] for name in ("city", "neighbourhood", "kind")
        }
        assert attributes["neighbourhood"] in sample_text.NEIGHBOURHOODS[attributes["city"]]


def test_facts_are_independent_of_the_features():
    world = make_world(SampleConfig(items=2000, users=1500, interactions_per_user=8))
    tables = world_tables(world)
    items = list(facts_of(tables["items"]).values())
    for fact in FACTS:
        for side in (0, 1):
            assert independent([facts[fact] for facts in items], world.item_features[:, side]), fact
    profiles = tables["source_user_profiles"]["profile"].to_pylist()
    homes = [home for names in sample_text.NEIGHBOURHOODS.values() for home in names]
    for values in (homes, sample_text.OCCASIONS):
        named = [next(value for value in values if value in profile) for profile in profiles]
        assert all(independent(named, world.user_features[:, side]) for side in (0, 1))


def test_the_test_of_independence_finds_a_fact_that_depends_a_little():
    random = np.random.default_rng(0)
    feature = random.integers(8, size=2000)
    fact = np.where(random.random(2000) < 0.15, feature, random.integers(8, size=2000))
    assert not independent(fact, feature)
    assert independent(random.integers(8, size=2000), feature)


def test_the_wording_of_an_explanation_tells_nothing_of_its_feature(tables, items):
    rows = tables["source_explanations"].to_pylist()
    assert independent([wording(r, items[r["item_id"]]) for r in rows], [r["feature"] for r in rows])


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
    assert len(FEATURES) == len(set(FEATURES)) == 24
    assert sum(map(len, words)) == len(set.union(*words)), "two phrases share a word"
    assert all(text in (f, f"a {f}") for text, f in zip(sample_text.INDEFINITE, FEATURES, strict=True))
    books = [v for n, v in vars(sample_text).items() if n.isupper() and n not in ("FEATURES", "INDEFINITE")]
    assert len(books) > 15
    sentences = re.sub(r"{\w+}", " ", " ".join(flat(books))).lower()
    stem = SnowballStemmer("english").stem
    shared = {stem(word) for word in set.union(*words)} & {stem(word) for word in re.findall(r"\w+", sentences)}
    assert not shared
    assert {"weavers", "whitlock", "candles", "grandparents", "noticed"} <= set(re.findall(r"\w+", sentences))


def test_outside_the_phrases_no_text_has_a_word_of_theirs(every_feature):
    words = set(re.findall(r"\w+", " ".join(FEATURES)))
    for table, columns in {
        "reviews": ["text"],
        "items": ["title", "attributes", "description"],
        "source_item_profiles": ["profile"],
        "source_user_profiles": ["profile"],
        "source_explanations": ["explanation"],
    }.items():
        texts = " ".join(text for column in columns for text in every_feature[table][column].to_pylist()).lower()
        without = re.sub("|".join(FEATURES), " ", texts)
        assert without != texts or table == "items"
        assert not words & set(re.findall(r"\w+", without))


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_blanks_are_filled_in_as_a_loop_over_the_rows_would(monkeypatch, rows):
    monkeypatch.setattr(sample_text, "_ROWS_AT_ONCE", 7)
    random = np.random.default_rng(rows)
    sentences = ("{a} and {b}.", "Nothing.", "never drawn {a}", "{b}{b}", "At {a}")
    which = random.choice([0, 1, 3, 4], size=rows)
    values = {"a": ["x", "y", "z"], "b": pa.array(["é", ""])}
    index = {name: random.integers(len(found), size=rows) for name, found in values.items()}
    filled = sample_text.fill(sentences, which, {name: (values[name], index[name]) for name in values})
    plain = {"a": ["x", "y", "z"], "b": ["é", ""]}
    assert filled.to_pylist() == [
        sentences[which[r]].format(**{name: plain[name][index[name][r]] for name in plain}) for r in range(rows)
    ]


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


def test_reviews_are_about_the_truth_and_rated_by_taste(world, tables, items):
    rows = tables["reviews"].to_pylist()
    taste = world.taste(world.user, world.truth)
    ratings = np.array([r["rating"] for r in rows])
    also = 0
    told = Counter()
    for row, truth, item in zip(rows, world.truth, world.item, strict=True):
        named = mentions(row["text"])
        assert named[0] == FEATURES[truth]
        assert set(named) <= {FEATURES[f] for f in world.item_features[item]}
        also += len(named) == 2
        assert 2 <= len(re.split(r"(?<=[.!?]) ", row["text"])) <= 4
        told.update(fact for fact in FACTS if items[row["item_id"]][fact] in row["text"])
    assert also / len(rows) == pytest.approx(0.3, abs=0.02)
    assert all(0.05 < told[fact] / len(rows) < 0.5 for fact in ("neighbourhood", "host", "detail", "occasion", "kind"))
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


def test_wordings_limits_both_clauses_to_the_first_ones():
    config = SampleConfig(users=60, items=40, interactions_per_user=10, wordings=2)
    few = world_tables(make_world(config))["source_explanations"]["explanation"].to_pylist()
    opening, host = ("The user enjoys ", "The user likes "), re.compile(r"\. [A-Z]\w+ runs the ")
    assert all(text.startswith(opening) for text in few)
    assert {(text.startswith(opening[0]), bool(host.search(text))) for text in few} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    everything = world_tables(make_world(config.model_copy(update={"wordings": None})))["source_explanations"]
    assert not all(text.startswith(opening) for text in everything["explanation"].to_pylist())
