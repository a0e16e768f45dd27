"""A synthetic world of restaurants, of any size, from a seed, in which the true reason of every visit is known.

Latent tastes. Every item has two features, in order. Every user likes two features, one more (taste 1) than the other
(taste 0.6); their taste for the rest is 0. A user visits items at a rate proportional to their greatest taste among
the item's features; a small share of visits (`noise`) goes to any item instead.

The truth. An explanation names exactly one feature: the item's feature that the user likes most, and the item's first
one where the user likes neither, `argmax over the item's features of the user's taste`. It is a function of user and
item together: a predictor that sees the user alone or the item alone is right in about half to two thirds of the
cases, chance is 1 / features.

The texts. Every item has a title and facts, drawn independently of its features: what kind of place it is, where it is,
who runs it, an occasion that it suits, a detail. An item profile tells all of them and both features, in random order;
attributes and description tell the facts alone, so without profiles and reviews only the interactions reveal the
features. An explanation says in one or two sentences what draws this user (the truth, and no other feature), and adds a
few of the item's facts. A user profile names the two features that the user likes, the one liked more first, and a home
and an occasion that are drawn independently of everything else. A review is about the truth and mentions facts.

Left out: items that become popular, tastes that change, and language beyond a list of sentences (`sample_text.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from xrec.config import ConfigError, SampleConfig
from xrec.data import sample_text as text

STRONG, WEAK = 1.0, 0.6
# Drawing distinct items gets slow when a user is to visit nearly everything they like.
_MOST_OF_THE_CHOICE = 0.9
# How often a review names the item's other feature as well.
_OTHER_FEATURE_TOO = 0.3
_NEIGHBOURHOODS = [(name, city) for city, names in text.NEIGHBOURHOODS.items() for name in names]
_FIRST_SECOND, _SECONDS = 1_577_836_800, 3 * 365 * 86_400  # 2020-01-01 UTC, three years


@dataclass(frozen=True)
class World:
    """The latent arrays behind the tables; U users, I items, K features, R interactions.

    Attributes:
        config: what it was made from.
        user_features: `[U, 2]`, the feature a user likes most and the one they like second.
        item_features: `[I, 2]`, an item's first and second feature.
        user: `[R]`, the user of each interaction, ascending.
        item: `[R]`, its item; no (user, item) twice.
        truth: `[R]`, the feature that its explanation names.
        noise: `[R]` bool, whether it was drawn without regard to taste.
    """

    config: SampleConfig
    user_features: np.ndarray
    item_features: np.ndarray
    user: np.ndarray
    item: np.ndarray
    truth: np.ndarray
    noise: np.ndarray

    def taste(self, user: np.ndarray, feature: np.ndarray) -> np.ndarray:
        """The taste of users `[R]` for features `[R]`: `STRONG`, `WEAK` or 0."""
        return _taste(self.user_features, user, feature)


def make_world(config: SampleConfig) -> World:
    """Draw a world; the same config gives the same world.

    Raises:
        ConfigError: more features than there are phrases for, or more interactions than a user has items to like.
    """
    if config.features > len(text.FEATURES):
        raise ConfigError(
            f"sample.features = {config.features}: the sample world knows {len(text.FEATURES)} features; use at most "
            "that many"
        )
    random = np.random.default_rng([config.seed, 0])
    user_features = _deal_users(config, random)
    item_features = _deal_items(config, random)
    user = np.repeat(np.arange(config.users), _visits(config, user_features, item_features, random))
    noise = random.random(len(user)) < config.noise
    item = _draw_items(config, user_features, item_features, user, noise, random)
    taste = np.stack([_taste(user_features, user, item_features[item, side]) for side in (0, 1)], axis=1)
    truth = np.take_along_axis(item_features[item], taste.argmax(axis=1)[:, None], axis=1)[:, 0]
    return World(config, user_features, item_features, user, item, truth, noise)


def world_tables(world: World) -> dict[str, pa.Table]:
    """The tables that a source of data provides: `reviews`, `items`, and the `source_*` texts, for `tables.validate`.

    Timestamps are Unix seconds. Every interaction has a review and an explanation; `feature` is the phrase it names.
    """
    random = np.random.default_rng([world.config.seed, 1])
    places = _Places(world.config.items, random)
    user_ids, item_ids = _ids("user", world.config.users), _ids("item", world.config.items)
    users, items = user_ids.take(pa.array(world.user)), item_ids.take(pa.array(world.item))
    return {
        "reviews": pa.table({"user_id": users, "item_id": items, **_reviews(world, places, random)}),
        "items": pa.table({"item_id": item_ids, **_item_facts(places)}),
        "source_item_profiles": pa.table({"item_id": item_ids, **_item_profiles(world, places, random)}),
        "source_user_profiles": pa.table({"user_id": user_ids, **_user_profiles(world, random)}),
        "source_explanations": pa.table({"user_id": users, "item_id": items, **_explanations(world, places, random)}),
    }


def _deal_users(config: SampleConfig, random: np.random.Generator) -> np.ndarray:
    """What each user likes most and second `[U, 2]`: every ordered pair equally often (to within one)."""
    pairs = np.argwhere(~np.eye(config.features, dtype=bool))
    rounds = -(-config.users // len(pairs))
    dealt = np.concatenate([random.permutation(pairs) for _ in range(rounds)])[: config.users]
    return random.permutation(dealt)


def _deal_items(config: SampleConfig, random: np.random.Generator) -> np.ndarray:
    """What each item has `[I, 2]`: every pair equally often or, with fewer items than pairs, every feature.

    The pairs come in the order of a round-robin tournament (the circle method), in which each round has every feature
    once, so that any number of items offers every user about as much choice.
    """
    players = config.features + config.features % 2  # an odd number gets a bye, which is no feature
    circle = players - 1
    meetings = [
        (turn, circle) if step == 0 else ((turn + step) % circle, (turn - step) % circle)
        for turn in range(circle)
        for step in range(players // 2)
    ]
    pairs = np.array([pair for pair in meetings if max(pair) < config.features])
    dealt = random.permutation(config.features)[np.resize(pairs, (config.items, 2))]
    return random.permuted(random.permutation(dealt), axis=1)


def _taste(user_features: np.ndarray, user: np.ndarray, feature: np.ndarray) -> np.ndarray:
    strong, weak = user_features[user, 0] == feature, user_features[user, 1] == feature
    return np.where(strong, STRONG, np.where(weak, WEAK, 0.0))


def _visits(config: SampleConfig, user_features, item_features, random: np.random.Generator) -> np.ndarray:
    """How many items each user visits `[U]`: uniform around the configured mean, within what the items allow."""
    having = np.zeros((config.features, config.features), dtype=np.int64)
    np.add.at(having, (item_features[:, 0], item_features[:, 1]), 1)
    either = having + having.T
    single = either.sum(axis=1)
    strong, weak = user_features.T
    liked = single[strong] + single[weak] - either[strong, weak]
    mean, most = config.interactions_per_user, int(_MOST_OF_THE_CHOICE * liked.min())
    if mean > most:
        raise ConfigError(
            f"sample.interactions_per_user = {mean}: with items = {config.items} and features = {config.features}, "
            f"some users like only {liked.min()} items; use at most {most}, or more items"
        )
    spread = min(mean // 2, most - mean)
    return random.integers(mean - spread, mean + spread, size=config.users, endpoint=True)


def _draw_items(
    config: SampleConfig, user_features, item_features, user: np.ndarray, noise: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """An item for each interaction `[R]`, no user the same one twice: propose for all, redraw those that fail."""
    item = np.full(len(user), -1, dtype=np.int64)
    taken = np.empty(0, dtype=np.int64)
    propose = _Proposals(config, user_features, item_features, random)
    pending = np.arange(len(user))
    while len(pending):
        proposed = propose(user[pending], noise[pending])
        valid = np.flatnonzero(proposed >= 0)
        key = user[pending[valid]] * config.items + proposed[valid]
        _, first = np.unique(key, return_index=True)
        new = first[~np.isin(key[first], taken, assume_unique=True, kind="sort")]
        accepted = valid[new]
        item[pending[accepted]] = proposed[accepted]
        taken = np.concatenate([taken, key[new]])
        pending = np.delete(pending, accepted)
    return item


class _Proposals:
    """Items drawn in proportion to taste, by rejection: a refused draw is -1 and has to be repeated."""

    def __init__(self, config: SampleConfig, user_features, item_features, random: np.random.Generator):
        self.config, self.random = config, random
        self.user_features, self.item_features = user_features, item_features
        # Items listed by feature: those with feature k are by_feature[start[k]:start[k + 1]].
        order = np.argsort(item_features.ravel(), kind="stable")
        self.by_feature = order // 2
        self.size = np.bincount(item_features.ravel(), minlength=config.features)
        self.start = np.concatenate([[0], np.cumsum(self.size)])

    def __call__(self, user: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """One draw for each of the users `[R]`; `noise` ones from all items alike."""
        strong, weak = self.user_features[user].T
        mass = STRONG * self.size[strong]
        by_strong = self.random.random(len(user)) * (mass + WEAK * self.size[weak]) < mass
        feature = np.where(by_strong, strong, weak)
        place = np.floor(self.random.random(len(user)) * self.size[feature]).astype(np.int64)
        drawn = self.by_feature[np.minimum(self.start[feature] + place, len(self.by_feature) - 1)]
        # An item with both liked features is in both lists; counting it in the first alone gives it the strong rate.
        counted_twice = ~by_strong & (self.item_features[drawn] == strong[:, None]).any(axis=1)
        drawn = np.where(counted_twice | (self.size[feature] == 0), -1, drawn)
        return np.where(noise, self.random.integers(self.config.items, size=len(user)), drawn)


def _ids(kind: str, count: int) -> pa.Array:
    width = len(str(count - 1))
    return pa.array([f"{kind}-{i:0{width}}" for i in range(count)], pa.string())


def _provenance(rows: int) -> dict[str, pa.Array]:
    zeros = pa.array(np.zeros(rows, dtype=np.int64))
    return {
        "model": pa.repeat("sample-world", rows),
        "prompt_hash": pa.repeat("", rows),
        "tokens_in": zeros,
        "tokens_out": zeros,
        "status": pa.repeat("ok", rows),
        "error": pa.nulls(rows, pa.string()),
    }


class _Places:
    """The titles and facts of I items, drawn uniformly and independently of each other and of the features."""

    def __init__(self, items: int, random: np.random.Generator):
        self.count = items
        self._title = text.draw_titles(items, random)
        self._neighbourhood = random.integers(len(_NEIGHBOURHOODS), size=items)
        self._facts = {
            name: (values, random.integers(len(values), size=items))
            for name, values in (
                ("kind", text.KINDS),
                ("host", text.HOSTS),
                ("occasion", text.OCCASIONS),
                ("detail", text.DETAILS),
            )
        }

    def of(self, item: np.ndarray) -> dict[str, text.Blank]:
        """What there is to tell of the items `[R]`, as blanks for `text.fill`."""
        facts = {name: (values, index[item]) for name, (values, index) in self._facts.items()}
        return {"title": (self._title, item), **_location(self._neighbourhood[item]), **facts}


def _location(neighbourhood: np.ndarray) -> dict[str, text.Blank]:
    names, cities = [name for name, _ in _NEIGHBOURHOODS], [city for _, city in _NEIGHBOURHOODS]
    return {"neighbourhood": (names, neighbourhood), "city": (cities, neighbourhood)}


def _write(sentences: Sequence[str], rows: int, blanks: dict[str, text.Blank], random) -> pa.ChunkedArray:
    """One of the sentences for each row `[rows]`, drawn uniformly."""
    return text.fill(sentences, random.integers(len(sentences), size=rows), blanks)


def _item_facts(places: _Places) -> dict[str, pa.Array | pa.ChunkedArray]:
    told, first = places.of(np.arange(places.count)), np.zeros(places.count, dtype=np.int64)
    return {
        "title": text.fill(("{title}",), first, told),
        "attributes": text.fill((text.ATTRIBUTES,), first, told),
        "description": text.fill((text.DESCRIPTION,), first, told),
    }


def _item_profiles(world: World, places: _Places, random: np.random.Generator) -> dict[str, Any]:
    rows = places.count
    blanks = places.of(np.arange(rows)) | _two_features(random.permuted(world.item_features, axis=1))
    parts = (text.ITEM_PROFILE_PLACES, text.ITEM_PROFILE_FEATURES, text.ITEM_PROFILE_FACTS)
    return {"profile": text.join(*(_write(part, rows, blanks, random) for part in parts)), **_provenance(rows)}


def _user_profiles(world: World, random: np.random.Generator) -> dict[str, Any]:
    rows = world.config.users
    blanks = _two_features(world.user_features) | _location(random.integers(len(_NEIGHBOURHOODS), size=rows))
    blanks["occasion"] = text.OCCASIONS, random.integers(len(text.OCCASIONS), size=rows)
    parts = (text.USER_PROFILE_TASTES, text.USER_PROFILE_HABITS)
    return {"profile": text.join(*(_write(part, rows, blanks, random) for part in parts)), **_provenance(rows)}


def _feature(feature: np.ndarray) -> dict[str, text.Blank]:
    return {"feature": (text.FEATURES, feature), "any": (text.INDEFINITE, feature)}


def _two_features(features: np.ndarray) -> dict[str, text.Blank]:
    a, b = features.T
    return {
        "a": (text.FEATURES, a),
        "b": (text.FEATURES, b),
        "any_a": (text.INDEFINITE, a),
        "any_b": (text.INDEFINITE, b),
    }


def _explanations(world: World, places: _Places, random: np.random.Generator) -> dict[str, Any]:
    rows = len(world.user)
    blanks = places.of(world.item) | _feature(world.truth)
    parts = (part[: world.config.wordings] for part in (text.EXPLANATION_REASONS, text.EXPLANATION_EXTRAS))
    return {
        "split": pa.nulls(rows, pa.string()),
        "explanation": text.join(*(_write(part, rows, blanks, random) for part in parts)),
        "feature": pa.array(text.FEATURES, pa.string()).take(pa.array(world.truth)),
        **_provenance(rows),
    }


def _reviews(world: World, places: _Places, random: np.random.Generator) -> dict[str, Any]:
    """Rating, timestamp and text: the truth, the place, the other feature or a thought, a last word."""
    rows = len(world.user)
    taste = world.taste(world.user, world.truth)
    told = places.of(world.item)
    truth = told | _feature(world.truth)
    other = told | _feature(world.item_features[world.item].sum(axis=1) - world.truth)
    names_other = random.random(rows) < _OTHER_FEATURE_TOO
    last = np.where(names_other | (taste == 0), 0, random.integers(len(text.REVIEW_LAST), size=rows))
    # Means 4.6, 4.3 and 3 stars for the best-liked feature, the second, and none.
    mean = np.where(taste == STRONG, 4.6, np.where(taste == WEAK, 4.3, 3.0))
    rating = np.clip(np.rint(random.normal(mean, 0.6)), 1, 5)
    return {
        "rating": pa.array(rating, pa.float32()),
        "timestamp": pa.array(_FIRST_SECOND + random.integers(_SECONDS, size=rows)),
        "text": text.join(
            _either(taste > 0, text.REVIEW_PLEASED, text.REVIEW_UNMOVED, truth, random),
            _write(text.REVIEW_PLACE, rows, told, random),
            _either(names_other, text.REVIEW_OTHERS, text.REVIEW_THOUGHTS, other, random),
            text.fill(text.REVIEW_LAST, last, {}),
        ),
    }


def _either(condition: np.ndarray, true: tuple[str, ...], false: tuple[str, ...], blanks, random) -> pa.ChunkedArray:
    """A sentence of `true` where the condition `[rows]` holds, else one of `false`, drawn uniformly."""
    of_true = random.integers(len(true), size=len(condition))
    of_false = len(true) + random.integers(len(false), size=len(condition))
    return text.fill(true + false, np.where(condition, of_true, of_false), blanks)
