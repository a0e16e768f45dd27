"""A comparison as a page, and as a section of the report: who leads, by how much, where not, and on which pairs.

What the tables say is in `comparison_cells.py`, what is drawn in `comparison_charts.py`.
"""

import time
from typing import Any

from markupsafe import Markup

from xrec.evaluation.comparison_cells import (
    heading_of,
    interval_shown,
    is_significant,
    main_metrics,
    metrics_of,
    p_shown,
    reference_of,
)
from xrec.evaluation.comparison_charts import difference_charts, group_charts, system_charts
from xrec.evaluation.comparison_tables import html
from xrec.evaluation.metrics import METRICS, Metric
from xrec.evaluation.page import render_page
from xrec.evaluation.report_content import shown, signed

_NAMED = 3


def render_comparison(comparison: dict[str, Any], title: str) -> str:
    """One self-contained page, for a wide screen or a phone, light or dark.

    Args:
        comparison: the content of `comparison.json`.
        title: of the page.
    """
    return render_page(
        "comparison.html.j2", title=title, date=time.strftime("%d %B %Y"), view=comparison_content(comparison)
    )


def comparison_content(comparison: dict[str, Any]) -> dict[str, Any]:
    """What the page, and the report's section, show of a comparison."""
    seeds = max(len(s["seeds"]) for s in comparison["systems"])
    return {
        "stage": comparison["stage"],
        "heading": heading_of(comparison),
        "subtitle": f"{len(comparison['systems'])} systems · {comparison['pairs']:,} pairs of the "
        f"{comparison['split']} split · {'1 seed' if seeds == 1 else f'up to {seeds} seeds'}"
        + (" · without zero-shot users and items" if comparison.get("zero_shot") == "leave out" else ""),
        "reference": reference_of(comparison)["label"],
        "sentences": [s for s in (_lead(comparison), _count(comparison)) if s],
        "behind": behind(comparison),
        "scores": Markup(html(comparison, parts=("scores",))),
        "differences": Markup(html(comparison, parts=("differences",))),
        "groups": Markup(html(comparison, parts=("groups",))),
        "system_charts": system_charts(comparison),
        "difference_charts": difference_charts(comparison),
        "group_charts": group_charts(comparison),
        "examples": _examples(comparison),
        "cost": _cost(comparison),
        "metrics": metrics_of(comparison),
    }


def standing(comparison: dict[str, Any]) -> dict[str, str]:
    """Metric key -> how the reference stands by the paired tests.

    `first`: every other system is significantly worse; `behind`: at least one is significantly better;
    `level`: neither.
    """
    found = {}
    for metric in (m for m in metrics_of(comparison) if m.better != "none"):
        gaps = [s["difference"][metric.key] for s in comparison["systems"] if metric.key in s.get("difference", {})]
        if not gaps:
            continue
        certain = [is_significant(gap) for gap in gaps]
        better = any(c and gap["value"] < 0 for c, gap in zip(certain, gaps, strict=True))
        worse = all(c and gap["value"] > 0 for c, gap in zip(certain, gaps, strict=True))
        found[metric.key] = "behind" if better else "first" if worse else "level"
    return found


def behind(comparison: dict[str, Any]) -> list[str]:
    """One sentence a metric on which another system is significantly better than the reference."""
    sentences = []
    stands = standing(comparison)
    for metric in (m for m in metrics_of(comparison) if stands.get(m.key) == "behind"):
        ahead = [
            (s["label"], s["difference"][metric.key])
            for s in comparison["systems"]
            if metric.key in s.get("difference", {})
        ]
        ahead = sorted((a for a in ahead if a[1]["value"] < 0 and is_significant(a[1])), key=lambda a: a[1]["value"])
        named = "; ".join(f"{label} ({_gap_shown(metric, gap)})" for label, gap in ahead[:_NAMED])
        more = f"; and {len(ahead) - _NAMED} more" if len(ahead) > _NAMED else ""
        sentences.append(f"{metric.label}: behind {named}{more}.")
    return sentences


def _lead(comparison: dict[str, Any]) -> str:
    """Who is best on the main metric, and how the reference stands to the best of the others."""
    for metric in main_metrics(comparison):
        others = [s for s in comparison["systems"] if metric.key in s.get("difference", {})]
        own = reference_of(comparison)
        if others and metric.key in own["metrics"]:
            break
    else:
        return ""
    # The smallest lead is over the strongest of the others.
    best = min(others, key=lambda s: s["difference"][metric.key]["value"])
    gap, name = best["difference"][metric.key], metric.label
    figure = f"{shown(metric, own['metrics'][metric.key]['value'])}"
    figure += f" (95 % interval {interval_shown(metric, own['metrics'][metric.key])})"
    other = f"{best['label']} with {shown(metric, best['metrics'][metric.key]['value'])}"
    certain = is_significant(gap)
    if gap["value"] > 0 and certain:
        return f"{own['label']} leads on {name} with {figure}, ahead of {other}: {_gap_shown(metric, gap)}."
    if gap["value"] < 0 and certain:
        return f"{own['label']} does not lead on {name}: it has {figure}, behind {other}: {_gap_shown(metric, gap)}."
    return (
        f"On {name}, {own['label']} with {figure} is level with {other}: the paired difference is "
        f"{_gap_shown(metric, gap)}, which chance explains."
    )


def _count(comparison: dict[str, Any]) -> str:
    stands = list(standing(comparison).values())
    if not stands:
        return ""
    label = reference_of(comparison)["label"]
    first, level, worse = (stands.count(kind) for kind in ("first", "level", "behind"))
    return (
        f"Of {len(stands)} metrics with a paired test, {label} is significantly ahead of every other system on "
        f"{first}, significantly behind at least one on {worse}, and neither on {level}."
    )


def _gap_shown(metric: Metric, gap: dict) -> str:
    unit = " points" if metric.percent else ""
    p = f", {p_shown(gap['p'])}" if gap.get("p") is not None else ""
    ends = f"{signed(metric, gap['low'])} to {signed(metric, gap['high'])}"
    return f"{signed(metric, gap['value'])}{unit}, interval {ends}{p}"


def _examples(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs on which systems differ most: the reference's text, then the others', best score first."""
    by_name = {m.key: m for m in METRICS} | {m.column: m for m in METRICS if m.column}
    labels = {s["name"]: s["label"] for s in comparison["systems"]}
    found = []
    for example in comparison.get("examples") or []:
        metric, scores = by_name.get(example["metric"]), example["scores"]
        sign = 1 if metric is not None and metric.better == "lower" else -1
        names = sorted(
            (n for n in labels if n in example["texts"]),
            key=lambda n: (n != comparison["reference"], sign * scores[n] if n in scores else float("inf")),
        )
        texts = [
            {
                "label": labels[n],
                "score": _score_shown(metric, scores.get(n)),
                "text": example["texts"][n],
                "kind": "true" if n == comparison["reference"] else "",
            }
            for n in names
        ]
        found.append(example | {"texts": texts, "metric": metric.label if metric else example["metric"]})
    return found


def _score_shown(metric: Metric | None, score: float | None) -> str:
    if score is None:
        return ""
    return shown(metric, score) if metric is not None else f"{score:.4f}"


def _cost(comparison: dict[str, Any]) -> str:
    paid = [(s["label"], s["cost"]) for s in comparison["systems"] if s.get("cost") is not None]
    if not paid:
        return ""
    named = ", ".join(f"{label} {cost:,.2f}" for label, cost in paid)
    total = sum(cost for _, cost in paid)
    return f"The judges cost {total:,.2f} in the currency of the prices that were given: {named}."
