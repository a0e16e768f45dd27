"""A synthetic world of restaurants, of any size, from a seed, in which the true reason of every visit is known.

Latent tastes. Every item has two features, in order. Every user likes two features, one more (taste 1) than the other
(taste 0.6); their taste for the rest is 0. A user visits items at a rate proportional to their greatest taste among
the item's features; a small share of visits (`noise`) goes to any item instead.

The truth. An explanation names exactly one feature: the item's feature that the user likes most, and the item's first
one where the user likes neither, `argmax over the item's features of the user's taste`. It is a function of user and
item together: a predictor that sees the user alone or the item alone is right in about half to two thirds of the
cases, chance is 1 / features. Titles, attributes and descriptions are drawn independently of the features, so without
profiles and reviews only the interactions reveal them.

Left out: items that become popular, tastes that change, and language beyond a list of sentences (`sample_text.py`).
"""

from dataclasses import dataclass

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.config import ConfigError, SampleConfig
from xrec.data import sample_text as text

STRONG, WEAK = 1.0, 0.6
# Drawing distinct items gets slow when a user is to visit nearly everything they like.
_MOST_OF_THE_CHOICE = 0.9
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
    features = world.config.features
    user_ids = _ids("user", world.config.users)
    item_ids = _ids("item", world.config.items)
    users, items = user_ids.take(pa.array(world.user)), item_ids.take(pa.array(world.item))
    return {
        "reviews": pa.table({"user_id": users, "item_id": items, **_reviews(world, random)}),
        "items": pa.table({"item_id": item_ids, **_item_facts(world.config.items, random)}),
        "source_item_profiles": pa.table(
            {"item_id": item_ids, **_profiles(text.ITEM_PROFILES, world.item_features, features, random)}
        ),
        "source_user_profiles": pa.table(
            {"user_id": user_ids, **_profiles(text.USER_PROFILES, world.user_features, features, random)}
        ),
        "source_explanations": pa.table({"user_id": users, "item_id": items, **_explanations(world, random)}),
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


def _item_facts(items: int, random: np.random.Generator) -> dict[str, pa.Array]:
    city, kind = text.choose(text.CITIES, items, random), text.choose(text.KINDS, items, random)
    price = text.choose(text.PRICES, items, random)
    attributes = pc.binary_join_element_wise('{"city": "', city, '", "price": "', price, '"}', "")
    description = pc.binary_join_element_wise("A ", kind, " in ", city, ".", "")
    return {"title": text.draw_titles(items, random), "attributes": attributes, "description": description}


def _profiles(templates: tuple[str, ...], features: np.ndarray, count: int, random) -> dict[str, pa.Array]:
    template = random.integers(len(templates), size=len(features))
    profile = text.pick(text.book(templates, count), template, features[:, 0], features[:, 1])
    return {"profile": profile, **_provenance(len(features))}


def _explanations(world: World, random: np.random.Generator) -> dict[str, pa.Array]:
    rows, features = len(world.user), world.config.features
    openings = text.book(text.EXPLANATION_OPENINGS, features)
    opening = text.pick(openings, random.integers(len(openings), size=rows), world.truth)
    closing = text.choose(text.EXPLANATION_CLOSINGS, rows, random)
    return {
        "split": pa.nulls(rows, pa.string()),
        "explanation": pc.binary_join_element_wise(opening, closing, ""),
        "feature": pa.array(text.FEATURES, pa.string()).take(pa.array(world.truth)),
        **_provenance(rows),
    }


def _reviews(world: World, random: np.random.Generator) -> dict[str, pa.Array]:
    """Rating, timestamp and text: what the visit was for, sometimes the item's other feature, and a last sentence."""
    rows, features = len(world.user), world.config.features
    taste = world.taste(world.user, world.truth)
    pleased = text.book(text.REVIEW_OPENINGS, features)
    unmoved = text.book(text.REVIEW_OPENINGS_UNMOVED, features)
    opening = pc.if_else(
        pa.array(taste > 0),
        text.pick(pleased, random.integers(len(pleased), size=rows), world.truth),
        text.pick(unmoved, random.integers(len(unmoved), size=rows), world.truth),
    )
    other = world.item_features[world.item].sum(axis=1) - world.truth
    more = text.book(text.REVIEW_MORE, features)
    last = pc.if_else(
        pa.array(random.random(rows) < 0.3),
        text.pick(more, random.integers(len(more), size=rows), other),
        text.choose(text.REVIEW_CLOSINGS, rows, random),
    )
    # Means 4.6, 4.3 and 3 stars for the best-liked feature, the second, and none.
    mean = np.where(taste == STRONG, 4.6, np.where(taste == WEAK, 4.3, 3.0))
    rating = np.clip(np.rint(random.normal(mean, 0.6)), 1, 5)
    return {
        "rating": pa.array(rating, pa.float32()),
        "timestamp": pa.array(_FIRST_SECOND + random.integers(_SECONDS, size=rows)),
        "text": pc.binary_join_element_wise(opening, last, " "),
    }
