"""From a source's tables to indices and the one split, which graph, profiles and explanations all share.

In order: the filters (`filters.py`), ids to indices, the split (`splitting.py`), texts to indices. An explanation has
the split of its pair. With `split: published` the pairs and the explanations keep the splits that their source gave
them, which may contradict each other; `leak_metrics` counts how often.

Left out: reading a source (`release.py`, `sample.py`) and writing texts.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.config import PreprocessConfig
from xrec.data.filters import Counts, add_published_split, interaction_pairs, k_core
from xrec.data.splitting import choose_zero_shot, split_pairs

REQUIRED_TABLES = ("reviews", "items")
# What is read of the tables that may be large; of the others, everything.
COLUMNS = {"reviews": ["user_id", "item_id", "rating"], "items": ["item_id", "title"]}
OPTIONAL_TABLES = ("source_item_profiles", "source_user_profiles", "source_explanations", "source_split")


def preprocess(source: dict[str, pa.Table], config: PreprocessConfig) -> tuple[dict[str, pa.Table], Counts]:
    """Filter, index and split the tables of a source.

    Args:
        source: the `REQUIRED_TABLES` and any of the `OPTIONAL_TABLES`, valid by `tables.validate`; of those in
            `COLUMNS`, these columns are enough.
        config: the filters and the split.

    Returns:
        tables: `users`, `items_index`, `interactions` and, where the source has their texts, `item_profiles`,
            `user_profiles`, `explanations`. Indices follow the ids, shorter ids first (`9` before `10`), zero-shot
            nodes last; every table is ordered by index, so the same source and config give the same tables.
        counts: sizes, and dropped rows by reason (`dropped/<table>/<reason>`).

    Raises:
        ConfigError: a setting leaves nothing, or asks for a split that the source does not have.
    """
    dropped: Counts = {}
    explanations = _usable(source.get("source_explanations"), dropped)
    pairs = interaction_pairs(source["reviews"], explanations, config.min_rating, dropped)
    if config.split == "published":
        pairs = add_published_split(pairs, source.get("source_split"), explanations, dropped)
    pairs = k_core(pairs, config.k_core, dropped)
    random = np.random.default_rng(config.seed)
    users = _nodes(pairs["user_id"], config.zero_shot_users, random)
    items = _nodes(pairs["item_id"], config.zero_shot_items, random)
    interactions = _interactions(pairs, users, items, config, random)
    tables = {
        "users": pa.table({"user": _indices(users), "user_id": users["id"], "zero_shot": users["zero_shot"]}),
        "items_index": _items_index(items, source["items"]),
        "interactions": interactions,
    }
    for name, key, nodes in (("item_profiles", "item", items), ("user_profiles", "user", users)):
        profiles = source.get(f"source_{name}")
        if profiles is not None:
            tables[name] = _by_index(profiles, key, nodes).sort_by(key)
            dropped[f"dropped/{name}/without_interactions"] = profiles.num_rows - tables[name].num_rows
    if explanations is not None:
        tables["explanations"] = _explanations(explanations, users, items, interactions, config)
        lost = explanations.num_rows - tables["explanations"].num_rows
        dropped["dropped/explanations/pair_dropped"] = lost
    return tables, _counts(tables) | dropped


def leak_metrics(interactions: pa.Table, explanations: pa.Table) -> Counts:
    """How many explained validation and test pairs are edges of the training graph: none unless the split is published.

    Args:
        interactions, explanations: the tables of these names.
    """
    edges = interactions.filter(pc.equal(interactions["split"], "train")).select(["user", "item"])
    metrics: Counts = {}
    for split in ("val", "test"):
        held_out = explanations.filter(pc.equal(explanations["split"], split)).select(["user", "item"])
        leaked = held_out.join(edges, keys=["user", "item"], join_type="left semi")
        metrics[f"leak/explained_{split}_pairs_in_train_graph"] = leaked.num_rows
    return metrics


def _usable(explanations: pa.Table | None, dropped: Counts) -> pa.Table | None:
    if explanations is None:
        return None
    usable = explanations.filter(pc.equal(explanations["status"], "ok"))
    dropped["dropped/explanations/failed"] = explanations.num_rows - usable.num_rows
    return usable


def _nodes(ids: pa.ChunkedArray, share: float, random: np.random.Generator) -> pa.Table:
    """`id` and `zero_shot` of the distinct ids, in the order of their indices."""
    distinct = pa.table({"id": pc.unique(ids)})
    distinct = distinct.append_column("length", pc.utf8_length(distinct["id"]))
    ordered = distinct.sort_by([("length", "ascending"), ("id", "ascending")])["id"]
    zero_shot = choose_zero_shot(len(ordered), share, random)
    order = np.argsort(zero_shot, kind="stable")
    return pa.table({"id": ordered.take(pa.array(order)), "zero_shot": zero_shot[order]})


def _indices(nodes: pa.Table) -> pa.Array:
    return pa.array(np.arange(nodes.num_rows, dtype=np.int32))


def _interactions(
    pairs: pa.Table, users: pa.Table, items: pa.Table, config: PreprocessConfig, random: np.random.Generator
) -> pa.Table:
    indexed = _by_index(_by_index(pairs, "user", users), "item", items)
    indexed = indexed.sort_by([("user", "ascending"), ("item", "ascending")])
    if config.split == "random":
        split = split_pairs(
            indexed["user"].to_numpy(),
            indexed["item"].to_numpy(),
            indexed["explained"].to_numpy(),
            users["zero_shot"].to_numpy(),
            items["zero_shot"].to_numpy(),
            config,
            random,
        )
        indexed = indexed.append_column("split", pa.array(split, pa.string()))
    return indexed.select(["user", "item", "split"])


def _items_index(nodes: pa.Table, items: pa.Table) -> pa.Table:
    """Titles by index; an item that the source's `items` does not list is titled `item <id>`."""
    ids = nodes["id"]
    found = items["title"].take(pc.index_in(ids, value_set=items["item_id"]))
    title = pc.coalesce(found, pc.binary_join_element_wise("item ", ids, ""))
    return pa.table({"item": _indices(nodes), "item_id": ids, "title": title, "zero_shot": nodes["zero_shot"]})


def _explanations(
    table: pa.Table, users: pa.Table, items: pa.Table, interactions: pa.Table, config: PreprocessConfig
) -> pa.Table:
    indexed = _by_index(_by_index(table, "user", users), "item", items)
    indexed = indexed.rename_columns(["own" if c == "split" else c for c in indexed.column_names])
    joined = indexed.join(interactions, keys=["user", "item"], join_type="inner")
    if config.split == "published":
        split = pc.coalesce(joined["own"], joined["split"])
        joined = joined.set_column(joined.column_names.index("split"), "split", split)
    return joined.drop_columns(["own"]).sort_by([("user", "ascending"), ("item", "ascending")])


def _by_index(table: pa.Table, key: str, nodes: pa.Table) -> pa.Table:
    """Replace the column `<key>_id` by the index `<key>`; rows of unknown nodes go."""
    index = pc.index_in(table[f"{key}_id"], value_set=nodes["id"])
    table = table.set_column(table.column_names.index(f"{key}_id"), key, index)
    return table.filter(pc.is_valid(index))


def _counts(tables: dict[str, pa.Table]) -> Counts:
    counts: Counts = {}
    for name, table in (("users", tables["users"]), ("items", tables["items_index"])):
        counts[name] = table.num_rows
        counts[f"{name}/zero_shot"] = int(np.count_nonzero(table["zero_shot"]))
    for name in ("interactions", "explanations"):
        if name in tables:
            counts[name] = tables[name].num_rows
            for row in tables[name].group_by("split").aggregate([("split", "count")]).to_pylist():
                counts[f"{name}/{row['split']}"] = row["split_count"]
    return counts
