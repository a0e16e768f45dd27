"""The one split of the interactions: train, val, test, and zero-shot users and items held out of every training.

A pair's split decides for everything derived from it: its edge, its review, its explanation. Pairs of a zero-shot node
never train. Of those it has with trained nodes, `FOLD_IN_SHARE` are `fold_in` (known, for folding the node in) and the
rest `test`; pairs of a zero-shot user with a zero-shot item are `test`, since neither side can fold the other in.
"""

import numpy as np

from xrec.config import ConfigError, PreprocessConfig

FOLD_IN_SHARE = 0.7


def choose_zero_shot(nodes: int, share: float, random: np.random.Generator) -> np.ndarray:
    """Flags `[nodes]`, a share of them true, at least one if the share is not 0."""
    flags = np.zeros(nodes, dtype=bool)
    if share > 0:
        flags[random.permutation(nodes)[: max(1, round(share * nodes))]] = True
    return flags


def split_pairs(
    user: np.ndarray,
    item: np.ndarray,
    explained: np.ndarray,
    zero_shot_user: np.ndarray,
    zero_shot_item: np.ndarray,
    config: PreprocessConfig,
    random: np.random.Generator,
) -> np.ndarray:
    """Assign every pair its split.

    Pairs with and without an explanation are cut by the shares apart. Then each trained user, and after that each
    trained item, that has no training pair gets one back (a random one, one without an explanation if there is one);
    only a node that has interactions with zero-shot nodes alone stays without. Fold-in prefers pairs without an
    explanation in the same way, so that explained ones remain to be tested on.

    Args:
        user, item: indices `[R]`, each pair once.
        explained: bool `[R]`, whether the pair has an explanation.
        zero_shot_user, zero_shot_item: flags by index `[N]`, `[M]`.
        config: `ratios`, `explained_ratios`.

    Returns:
        Strings `[R]`: train, val, test or fold_in.

    Raises:
        ConfigError: no pair is left to train on.
    """
    by_user, by_item = zero_shot_user[user], zero_shot_item[item]
    trained = ~by_user & ~by_item
    if not trained.any():
        raise ConfigError(
            f"preprocess.zero_shot_users = {config.zero_shot_users}, zero_shot_items = {config.zero_shot_items}: every "
            "interaction has a zero-shot side and none is left to train on; lower them"
        )
    # The order in which pairs are picked for training and folding in, within a node.
    preference = np.lexsort((random.permutation(len(user)), explained))
    split = np.full(len(user), "test", dtype="<U7")
    shuffled = random.permutation(len(user))
    for group, shares in ((~explained, config.ratios), (explained, config.explained_ratios or config.ratios)):
        rows = shuffled[(trained & group)[shuffled]]
        train, val = np.rint(np.cumsum(shares)[:2] * len(rows)).astype(int)
        split[rows[:train]] = "train"
        split[rows[train:val]] = "val"
    for node in (user, item):
        split[_first_of_each(node, trained & ~_has_train(node, split)[node], preference)] = "train"
    for node, rows in ((user, by_user & ~by_item), (item, by_item & ~by_user)):
        split[_fold_in(node, rows, preference)] = "fold_in"
    return split


def _has_train(node: np.ndarray, split: np.ndarray) -> np.ndarray:
    return np.bincount(node[split == "train"], minlength=node.max() + 1) > 0


def _first_of_each(node: np.ndarray, eligible: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """For each node among the eligible rows, its row that comes first in `preference`."""
    rows = preference[eligible[preference]]
    _, first = np.unique(node[rows], return_index=True)
    return rows[first]


def _fold_in(node: np.ndarray, eligible: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """The rows to fold each node in from: its share in the order of `preference`, one at least, not all of several."""
    rows = preference[eligible[preference]]
    rows = rows[np.argsort(node[rows], kind="stable")]
    count = np.bincount(node[rows], minlength=node.max() + 1)
    place = np.arange(len(rows)) - (np.cumsum(count) - count)[node[rows]]
    known = np.clip(np.rint(FOLD_IN_SHARE * count), 1, np.maximum(count - 1, 1))
    return rows[place < known[node[rows]]]
