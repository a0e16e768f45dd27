"""Which (user, item) pairs of a source become interactions: rating filter, one row a pair, explained pairs, k-core.

Every function counts the rows that it drops into `counts`, by reason. What split a pair is in is `splitting.py`'s
business.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.config import ConfigError

PAIR = ["user_id", "item_id"]
Counts = dict[str, float]


def interaction_pairs(
    reviews: pa.Table, explanations: pa.Table | None, min_rating: float | None, counts: Counts
) -> pa.Table:
    """The distinct pairs, as `user_id`, `item_id`, `explained`, in no particular order.

    Reviews rated below `min_rating` go (unrated ones stay), then the latest review of each pair is kept. A pair that
    has an explanation but no review comes in; one whose reviews were all rated too low stays out.

    Raises:
        ConfigError: nothing is left.
    """
    kept = reviews
    if min_rating is not None:
        kept = reviews.filter(pc.invert(pc.fill_null(pc.less(reviews["rating"], min_rating), False)))
    counts["dropped/reviews/low_rating"] = reviews.num_rows - kept.num_rows
    # Nothing of a review but its pair is read from here on, so keeping the latest is keeping the pair once.
    pairs = kept.select(PAIR).group_by(PAIR).aggregate([])
    counts["dropped/reviews/earlier_of_the_pair"] = kept.num_rows - pairs.num_rows
    explained = pa.repeat(False, pairs.num_rows)
    if explanations is not None:
        marks = explanations.select(PAIR).append_column("explained", pa.repeat(True, explanations.num_rows))
        added = explanations.select(PAIR).join(reviews.select(PAIR), keys=PAIR, join_type="left anti")
        counts["added/explained_pairs_without_review"] = added.num_rows
        pairs = pa.concat_tables([pairs, added], promote_options="permissive").join(
            marks, keys=PAIR, join_type="left outer"
        )
        explained = pc.fill_null(pairs["explained"], False)
    if pairs.num_rows == 0:
        if reviews.num_rows:
            raise ConfigError(
                f"preprocess.min_rating = {min_rating}: none of {reviews.num_rows:,} reviews is left; lower it"
            )
        raise ConfigError("preprocess: the table 'reviews' has no rows; make or import the data again")
    return pairs.select(PAIR).append_column("explained", explained)


def add_published_split(
    pairs: pa.Table, published: pa.Table | None, explanations: pa.Table | None, counts: Counts
) -> pa.Table:
    """Append `split`: the source's own, else that of the pair's explanation; pairs with neither are dropped.

    Raises:
        ConfigError: the source has no split, or not for any of the pairs.
    """
    if published is None:
        raise ConfigError(
            "preprocess.split = published: the source has no split of its own (the folder data has no table "
            "'source_split'); use split = random"
        )
    pairs = pairs.join(published.select([*PAIR, "split"]), keys=PAIR, join_type="left outer")
    split = pairs["split"]
    if explanations is not None:
        own = explanations.select([*PAIR, "split"]).rename_columns([*PAIR, "own"])
        pairs = pairs.join(own, keys=PAIR, join_type="left outer")
        split = pc.coalesce(pairs["split"], pairs["own"])
    known = pairs.select([*PAIR, "explained"]).append_column("split", split).filter(pc.is_valid(split))
    counts["dropped/interactions/not_in_published_split"] = pairs.num_rows - known.num_rows
    if known.num_rows == 0:
        raise ConfigError(
            f"preprocess.split = published: none of {pairs.num_rows:,} interactions is in the source's split "
            "(table 'source_split'); use split = random"
        )
    return known


def k_core(pairs: pa.Table, k: int, counts: Counts) -> pa.Table:
    """The largest part in which every user and every item has at least `k` interactions.

    Raises:
        ConfigError: that part is empty.
    """
    codes = [pc.dictionary_encode(pairs[c]).combine_chunks().indices.to_numpy() for c in PAIR]
    kept, before = np.ones(pairs.num_rows, dtype=bool), -1
    while before != kept.sum():
        before = kept.sum()
        for code in codes:
            kept &= np.bincount(code[kept], minlength=int(code.max()) + 1)[code] >= k
    counts["dropped/interactions/k_core"] = int((~kept).sum())
    if not kept.any():
        raise ConfigError(
            f"preprocess.k_core = {k}: none of {pairs.num_rows:,} interactions is left; lower it (0 switches it off)"
        )
    return pairs.filter(pa.array(kept))
