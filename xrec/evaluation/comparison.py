"""Several systems on the same pairs: means over seeds, their spread, intervals, and paired differences (Table 1).

The unit is the pair. A system's score of a pair is its mean over the seeds, and the bootstrap resamples pairs, so an
interval says how sure the figure is for these seeds; how much a seed changes is the standard deviation beside it. What
is shown of a comparison is the business of `comparison_tables.py` and `comparison_report.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xrec.evaluation.bootstrap import mean_intervals
from xrec.evaluation.metrics import METRICS, Metric
from xrec.workspace import Workspace

_LABELS = {
    "xrec": "XRec",
    "without_profiles": "w/o profiles",
    "without_injection": "w/o injection",
    "without_both": "w/o both",
    "att2seq": "Att2Seq",
    "nrt": "NRT",
    "peter": "PETER",
    "peter_plus": "PETER+",
    "pepler": "PEPLER",
    "item_profile": "Item profile",
    "similar_user": "Similar user",
}


@dataclass(frozen=True)
class System:
    """One system at one seed, evaluated.

    Attributes:
        name: of the system.
        kind: `xrec`, `ablation`, `baseline`, `floor` or `predictions` (made elsewhere).
        seed: of its training.
        workspace: with the stage `evaluate` finished.
    """

    name: str
    kind: str
    seed: int
    workspace: Workspace


@dataclass
class Scored:
    """The scores of one system over all its seeds.

    Attributes:
        name: of the system.
        kind: see `System`.
        seeds: in order.
        pairs: `[n]` int64, user and item in one number, sorted: the pairs that every seed has.
        scores: column -> `[seeds, n]` float64, NaN where a pair lacks the score.
        corpus: key of a metric of the whole set -> one value a seed.
        cost: of the judges, over all seeds; None where nothing was paid or no price is known.
        workspaces: one a seed.
    """

    name: str
    kind: str
    seeds: list[int]
    pairs: np.ndarray
    scores: dict[str, np.ndarray]
    corpus: dict[str, list[float]]
    cost: float | None
    workspaces: list[Workspace] = field(default_factory=list)

    def on(self, pairs: np.ndarray, column: str) -> np.ndarray:
        """`[seeds, p]` its scores of given pairs, NaN where it lacks them."""
        found = np.full((len(self.seeds), len(pairs)), np.nan)
        if column in self.scores:
            places = np.searchsorted(self.pairs, pairs).clip(max=max(0, len(self.pairs) - 1))
            there = self.pairs[places] == pairs if len(self.pairs) else np.zeros(len(pairs), bool)
            found[:, there] = self.scores[column][:, places[there]]
        return found


def load_scores(systems: Sequence[System]) -> list[Scored]:
    """Read what `evaluate` left, one entry a system, in order of first appearance.

    Raises:
        WorkspaceError: a system's evaluation has not finished.
    """
    by_name: dict[str, list[System]] = {}
    for system in systems:
        by_name.setdefault(system.name, []).append(system)
    return [_load(group) for group in by_name.values()]


def compare(
    systems: Sequence[Scored], reference: str, pairs: np.ndarray, resamples: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Figures of each system on given pairs, and by how much the reference is better.

    Args:
        systems: what `load_scores` returned.
        reference: name of the one that the others are compared with.
        pairs: `[p]` int64, sorted (`shared_pairs`). A system from elsewhere may lack some of them.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        One dictionary a system: name, label, kind, seeds, cost, metrics, difference (see docs/file-formats.md). A
        difference is positive where the reference is better, and its p-value is that of the paired bootstrap.
    """
    [own] = [s for s in systems if s.name == reference]
    rows = []
    for system in systems:
        row = {
            "name": system.name,
            "label": _LABELS.get(system.name, system.name),
            "kind": system.kind,
            "seeds": system.seeds,
            "cost": system.cost,
            "metrics": metric_figures(system, pairs, resamples, seed),
        }
        if system is not own:
            row["difference"] = _differences(own, system, pairs, resamples, seed)
        rows.append(row)
    return rows


def metric_figures(system: Scored, pairs: np.ndarray, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Every metric of a system on given pairs: value, interval, spread over examples and over seeds."""
    figures = {}
    for metric in METRICS:
        if metric.column is None:
            values = system.corpus.get(metric.key)
            if values:
                rows = {"rows": len(system.pairs)}  # of all its texts: they cannot be had for some of them
                figures[metric.key] = {"value": float(np.mean(values))} | rows | _seed_spread(values)
            continue
        scores = system.on(pairs, metric.column)
        known = ~np.isnan(scores).all(0)
        if not known.any():
            continue
        [interval] = mean_intervals(_over_seeds(scores)[:, None], resamples, seed)
        shown = {name: value for name, value in asdict(interval).items() if name != "p"}
        means = [float(np.nanmean(row)) for row in scores if not np.isnan(row).all()]
        figures[metric.key] = shown | {"std": float(np.nanstd(scores))} | _seed_spread(means)
    return figures


def shared_pairs(systems: Sequence[Scored], left_out: np.ndarray | None = None) -> np.ndarray:
    """`[p]` int64: the pairs that every system of ours has.

    Args:
        systems: those from elsewhere (`predictions`) do not narrow the pairs.
        left_out: pairs to leave out, in the same form.
    """
    own = [s.pairs for s in systems if s.kind != "predictions"] or [s.pairs for s in systems]
    shared = reduce(np.intersect1d, own)
    return shared if left_out is None else np.setdiff1d(shared, left_out)


def most_different(systems: Sequence[Scored], reference: str, pairs: np.ndarray, column: str, count: int) -> np.ndarray:
    """Up to `count` of the pairs on which the systems' scores lie furthest from the reference's.

    Of each couple that ties, the first pair is taken. Half are pairs on which the reference is better than the average
    of the others, half such on which it is worse, as far as there are any.
    """
    [own] = [s for s in systems if s.name == reference]
    others = [_over_seeds(s.on(pairs, column)) for s in systems if s is not own]
    if not others or not count:
        return pairs[:0]
    stacked = np.stack(others)
    known = ~np.isnan(stacked).all(0)
    gap = np.full(len(pairs), np.nan)
    gap[known] = _over_seeds(own.on(pairs, column))[known] - np.nanmean(stacked[:, known], axis=0)
    order = np.argsort(-np.nan_to_num(np.abs(gap), nan=-1.0), kind="stable")
    better = [n for n in order if gap[n] > 0][: count - count // 2]
    worse = [n for n in order if gap[n] < 0][: count // 2]
    return pairs[np.array([*better, *worse], dtype=np.int64)]


def pair_numbers(user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """`[n]` int64: user and item indices in one number; `divmod(number, 2**32)` gives them back."""
    return user.astype(np.int64) << 32 | item.astype(np.int64)


def _load(group: list[System]) -> Scored:
    tables = [_own_signal(s.workspace.read_table("evaluate", "scores")) for s in group]
    keys = [pair_numbers(t["user"].to_numpy(), t["item"].to_numpy()) for t in tables]
    pairs = reduce(np.intersect1d, keys)
    columns = [m.column for m in METRICS if m.column and all(m.column in t.column_names for t in tables)]
    scores = {}
    for column in columns:
        values = [t[column].to_numpy(zero_copy_only=False).astype(np.float64) for t in tables]
        scores[column] = np.stack(
            [v[np.argsort(k)][np.searchsorted(np.sort(k), pairs)] for v, k in zip(values, keys, strict=True)]
        )
    summaries = [s.workspace.read_json("evaluate", "summary.json") for s in group]
    costs = [c for c in map(_cost, summaries) if c is not None]
    return Scored(
        group[0].name,
        group[0].kind,
        [s.seed for s in group],
        pairs,
        scores,
        _corpus(summaries),
        sum(costs) if costs else None,
        [s.workspace for s in group],
    )


def _own_signal(scores: pa.Table) -> pa.Table:
    # Rows that only the likelihood has are about pairs without a prediction.
    own = scores.filter(pc.equal(scores["signal"], "true"))
    return own.filter(pc.is_valid(own["words"])) if "words" in own.column_names else own


def _corpus(summaries: list[dict]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for metric in (m for m in METRICS if m.column is None):
        values = [s["metrics"].get(metric.key, {}).get("true", {}).get("value") for s in summaries]
        if all(v is not None for v in values):
            found[metric.key] = values
    return found


def _cost(summary: dict) -> float | None:
    """What the judges of one evaluation cost, those of GPTScore and the one that checks statements."""
    found = []
    for facts in (summary.get("scorers") or {}).values():
        found += [facts, *facts.get("judges", {}).values()]
    costs = [judge["cost"] for judge in found if judge.get("cost") is not None]
    return sum(costs) if costs else None


def _differences(own: Scored, other: Scored, pairs: np.ndarray, resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    columns: list[Metric] = [m for m in METRICS if m.column and m.column in own.scores and m.column in other.scores]
    gains = [_gain(m, own, other, pairs) for m in columns]
    present = [(m, g) for m, g in zip(columns, gains, strict=True) if not np.isnan(g).all()]
    if not present:
        return {}
    intervals = mean_intervals(np.stack([g for _, g in present], axis=1), resamples, seed)
    return {m.key: asdict(interval) for (m, _), interval in zip(present, intervals, strict=True)}


def _gain(metric: Metric, own: Scored, other: Scored, pairs: np.ndarray) -> np.ndarray:
    """`[p]`, positive where `own` is better; NaN where one of the two lacks the score."""
    gain = _over_seeds(own.on(pairs, metric.column or "")) - _over_seeds(other.on(pairs, metric.column or ""))
    return -gain if metric.better == "lower" else gain


def _over_seeds(scores: np.ndarray) -> np.ndarray:
    """`[p]` means over the seeds `[seeds, p]`, NaN where no seed has the score."""
    known = (~np.isnan(scores)).sum(0)
    return np.divide(np.nansum(scores, axis=0), known, out=np.full(scores.shape[1], np.nan), where=known > 0)


def _seed_spread(values: Sequence[float]) -> dict[str, float]:
    return {"seed_std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
