"""What the tables of a comparison say, cell by cell, before any of Markdown, LaTeX or HTML.

Scores of systems by metrics as in the paper's Table 1 (arXiv 2406.02377), with what it lacks: intervals, and tests
against the reference. How the cells are written is the business of `comparison_tables.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xrec.evaluation.metrics import METRICS, Metric
from xrec.evaluation.report_content import shown, signed

SIGNIFICANT = 0.05
WORSE, BETTER = "*", "†"
_STAGES = {
    "compare": "Beside other systems",
    "ablate": "Without its parts",
    "sparsity": "By how much is known of the user",
}
# Behind a space that does not break.
_ARROWS = {"higher": "\u00a0↑", "lower": "\u00a0↓", "none": ""}
# What a reader looks at first, as far as it is there: the task's own metric, then the paper's.
_MAIN = (
    "feature/accuracy",
    "gpt_score",
    "bert_score_f1",
    "bart_score",
    "bleurt",
    "factuality_f1",
    "hallucination",
    "rouge_l",
)


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        value: the figure, as written.
        rank: 1 best, 2 second best, 0 otherwise.
        mark: `*` significantly worse than the reference, `†` significantly better, or nothing.
        spread: standard deviation over examples, as written; empty for none.
        lines: what stands below the figure.
        kind: `gain` or `loss` of the reference, where a difference is significant.
    """

    value: str
    rank: int = 0
    mark: str = ""
    spread: str = ""
    lines: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        caption: what the table shows.
        columns: the headers, in plain text.
        rows: name (unique), label and cells of each row; None for a figure that does not exist.
        notes: how to read it.
    """

    caption: str
    columns: list[str]
    rows: list[tuple[str, str, list[Cell | None]]]
    notes: tuple[str, ...] = ()


def metrics_of(comparison: dict[str, Any], columns: Sequence[str] | None = None) -> list[Metric]:
    """The metrics that at least one system has, in the order of `METRICS`, or those named, in that order.

    Raises:
        ValueError: a named metric is in no system.
    """
    present = {key for system in comparison["systems"] for key in system["metrics"]}
    known = {m.key: m for m in METRICS if m.key in present}
    if columns is None:
        return list(known.values())
    absent = [key for key in columns if key not in known]
    if absent:
        raise ValueError(f"columns: the comparison has no metric {absent[0]!r}; it has {', '.join(known)}")
    return [known[key] for key in columns]


def main_metrics(comparison: dict[str, Any], count: int = 4) -> list[Metric]:
    """Up to `count` metrics with intervals that say most, the first the most."""
    with_interval = {
        key for system in comparison["systems"] for key, found in system["metrics"].items() if "low" in found
    }
    known = {m.key: m for m in METRICS if m.key in with_interval and m.better != "none"}
    chosen = [known.pop(key) for key in _MAIN if key in known]
    return [*chosen, *known.values()][:count]


def reference_of(comparison: dict[str, Any]) -> dict[str, Any]:
    """The system that the others are compared with."""
    return next(s for s in comparison["systems"] if s["name"] == comparison["reference"])


def heading_of(comparison: dict[str, Any]) -> str:
    """What a comparison is about."""
    stage: str = comparison["stage"]
    return _STAGES.get(stage, stage)


def is_significant(difference: dict[str, Any]) -> bool:
    """Whether the paired bootstrap tells a difference from none; by its interval where it has no p-value."""
    if difference.get("p") is not None:
        return difference["p"] < SIGNIFICANT
    return difference["low"] > 0 or difference["high"] < 0


def score_table(comparison: dict[str, Any], columns: Sequence[str] | None = None) -> Table:
    """Systems by metrics."""
    metrics = metrics_of(comparison, columns)
    ranks = {m.key: _ranks(m, [s["metrics"].get(m.key) for s in comparison["systems"]]) for m in metrics}
    rows = [
        (s["name"], s["label"], [_score(m, s, comparison["pairs"], ranks[m.key]) for m in metrics])
        for s in comparison["systems"]
    ]
    return Table(_caption(comparison), [headed(m) for m in metrics], rows, _score_notes(comparison))


def difference_table(comparison: dict[str, Any], columns: Sequence[str] | None = None) -> Table | None:
    """By how much the reference is better than each other system; None where nothing is paired."""
    others = [s for s in comparison["systems"] if s.get("difference")]
    metrics = [m for m in metrics_of(comparison, columns) if any(m.key in s["difference"] for s in others)]
    if not metrics:
        return None
    label = reference_of(comparison)["label"]
    rows = [(s["name"], s["label"], [_difference(m, s["difference"].get(m.key)) for m in metrics]) for s in others]
    notes = (
        f"Positive: {label} is better, whichever way the metric counts. Each figure is the mean over the same pairs, "
        f"with its paired 95 % bootstrap interval; {WORSE} p < {SIGNIFICANT}, two-sided, not corrected for the number "
        "of comparisons.",
    )
    return Table(f"{label} minus each other system", [m.label for m in metrics], rows, notes)


def group_tables(comparison: dict[str, Any], columns: Sequence[str] | None = None) -> list[Table]:
    """Systems by groups of users, one table a metric; empty without groups."""
    groups = comparison.get("groups") or []
    metrics = metrics_of(comparison, columns) if columns is not None else main_metrics(comparison)
    tables = []
    for metric in metrics if groups else []:
        found = {g["name"]: {n: m[metric.key] for n, m in g["systems"].items() if metric.key in m} for g in groups}
        if not any(found.values()):
            continue
        ranks = {g: _ranks(metric, list(of.values())) for g, of in found.items()}
        rows = [
            (s["name"], s["label"], [_group_cell(metric, of.get(s["name"]), ranks[g]) for g, of in found.items()])
            for s in comparison["systems"]
        ]
        headers = [f"{g['label']} ({g['users']:,} users, {g['pairs']:,} pairs)" for g in groups]
        tables.append(Table(f"{headed(metric)} by the users' training interactions", headers, rows))
    return tables


def headed(metric: Metric) -> str:
    """A metric's name with an arrow to its better end."""
    return metric.label + _ARROWS[metric.better]


def p_shown(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def interval_shown(metric: Metric, found: dict[str, Any]) -> str:
    return f"{shown(metric, found['low'])} to {shown(metric, found['high'])}"


def _ranks(metric: Metric, found: list[dict | None]) -> dict[str, int]:
    """Written figure -> 1 or 2. Figures that are written alike rank alike, and where all are, none is the best."""
    values = sorted((f["value"] for f in found if f), reverse=metric.better != "lower")
    written = list(dict.fromkeys(shown(metric, v) for v in values))
    return dict(zip(written[:2], (1, 2), strict=False)) if len(written) > 1 and metric.better != "none" else {}


def _score(metric: Metric, system: dict, pairs: int, ranks: dict[str, int]) -> Cell | None:
    found = system["metrics"].get(metric.key)
    if found is None:
        return None
    value, difference = shown(metric, found["value"]), system.get("difference", {}).get(metric.key)
    mark = ""
    if difference and metric.better != "none" and is_significant(difference):
        mark = WORSE if difference["value"] > 0 else BETTER
    lines = [interval_shown(metric, found)] if "low" in found else []
    lines += [f"seeds ± {shown(metric, found['seed_std'])}"] if "seed_std" in found else []
    lines += [f"{found['rows']:,} pairs"] if found.get("rows", pairs) != pairs else []
    spread = shown(metric, found["std"]) if "std" in found else ""
    return Cell(value, ranks.get(value, 0), mark, spread, tuple(lines))


def _difference(metric: Metric, found: dict | None) -> Cell | None:
    if found is None:
        return None
    certain = is_significant(found)
    kind = "" if not certain or metric.better == "none" else ("gain" if found["value"] > 0 else "loss")
    unit = " points" if metric.percent else ""
    lines = [f"{signed(metric, found['low'])} to {signed(metric, found['high'])}"]
    lines += [p_shown(found["p"])] if found.get("p") is not None else []
    value = signed(metric, found["value"]) + unit
    return Cell(value, mark=WORSE if certain else "", lines=tuple(lines), kind=kind)


def _group_cell(metric: Metric, found: dict | None, ranks: dict[str, int]) -> Cell | None:
    if found is None:
        return None
    value = shown(metric, found["value"])
    return Cell(value, ranks.get(value, 0), lines=(interval_shown(metric, found),) if "low" in found else ())


def _caption(comparison: dict[str, Any]) -> str:
    return f"{len(comparison['systems'])} systems on {comparison['pairs']:,} pairs of the {comparison['split']} split"


def _score_notes(comparison: dict[str, Any]) -> tuple[str, ...]:
    figures = [f for s in comparison["systems"] for f in s["metrics"].values()]
    parts = ["Bold: the best figure; underlined: the second best."]
    if any("std" in f for f in figures):
        parts.append("± behind a figure: standard deviation over examples.")
    if any("low" in f for f in figures):
        parts.append(
            f"Below a figure: its 95 % interval, {comparison['resamples']:,} bootstrap resamples of the pairs; metrics "
            "of the whole set of texts have none."
        )
    if any("seed_std" in f for f in figures):
        parts.append("Seeds ±: standard deviation of the seeds' means.")
    if any(s.get("difference") for s in comparison["systems"]):
        label = reference_of(comparison)["label"]
        parts.append(
            f"{WORSE} significantly worse than {label}, {BETTER} significantly better: p < {SIGNIFICANT} in the paired "
            "bootstrap, two-sided, not corrected for the number of comparisons."
        )
    return (" ".join(parts),)
