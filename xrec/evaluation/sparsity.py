"""Users by how much is known of them: figures by training interactions, and for zero-shot users (Figure 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrec.evaluation.comparison import Scored, metric_figures


@dataclass(frozen=True)
class Group:
    """Users alike in frequency.

    Attributes:
        name: `1`, `2` …, from the least frequent on, or `zero-shot`.
        label: the bounds in words.
        users: their indices, sorted.
    """

    name: str
    label: str
    users: np.ndarray


def frequency_groups(users: np.ndarray, interactions: np.ndarray, zero_shot: np.ndarray, count: int) -> list[Group]:
    """Cut users into groups of about equal size by their training interactions, zero-shot users apart.

    Args:
        users: `[n]` distinct user indices, those that are evaluated.
        interactions: `[n]` int, each one's interactions in training.
        zero_shot: `[n]` bool, whether training has not seen the user at all.
        count: groups wanted; fewer where so many users have the same number that a bound falls within it.

    Returns:
        Groups that are not empty; users with the same number are in the same group.
    """
    known = ~zero_shot
    groups = []
    if known.any():
        bounds = np.unique(np.quantile(interactions[known], np.arange(1, count) / count, method="inverted_cdf"))
        places = np.searchsorted(bounds, interactions, side="left")
        for place in np.unique(places[known]):
            chosen = known & (places == place)
            low, high = int(interactions[chosen].min()), int(interactions[chosen].max())
            groups.append(Group(str(len(groups) + 1), _label(low, high), np.sort(users[chosen])))
    if zero_shot.any():
        groups.append(Group("zero-shot", "zero-shot", np.sort(users[zero_shot])))
    return groups


def group_figures(
    systems: Sequence[Scored], groups: Sequence[Group], pairs: np.ndarray, resamples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Every metric over single predictions of every system in every group.

    Args:
        systems: what `comparison.load_scores` returned.
        groups: what `frequency_groups` returned.
        pairs: `[p]` int64 (`comparison.shared_pairs`).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One dictionary a group that has pairs: name, label, users, pairs, systems -> metrics.
    """
    found = []
    for group in groups:
        own = pairs[np.isin(pairs >> 32, group.users)]
        if not len(own):
            continue
        figures = {s.name: metric_figures(s, own, resamples, seed) for s in systems}
        # Those of a whole set of texts are not the group's.
        single = {name: {k: v for k, v in of.items() if "low" in v} for name, of in figures.items()}
        users = len(np.unique(own >> 32))
        found.append({"name": group.name, "label": group.label, "users": users, "pairs": len(own), "systems": single})
    return found


def _label(low: int, high: int) -> str:
    if low == high:
        return f"{low} interaction{'s' * (low != 1)}"
    return f"{low} to {high} interactions"
