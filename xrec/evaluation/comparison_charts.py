"""A comparison's charts: systems side by side (the paper's Figure 3) and groups of users (Figure 4), with intervals."""

from math import nan
from typing import Any

from xrec.evaluation.comparison_cells import headed, heading_of, main_metrics, reference_of
from xrec.evaluation.metrics import Metric
from xrec.evaluation.plots import SERIES, Estimate, Points, category_chart, interval_chart
from xrec.evaluation.report_charts import Chart
from xrec.evaluation.report_content import shown, signed

_KIND_SERIES = {"xrec": 0, "ablation": 4, "baseline": 2, "floor": 5, "predictions": 1}
_HOW_TO_READ = "The dot is the mean over pairs, the bar its 95 % bootstrap interval."


def system_charts(comparison: dict[str, Any], count: int = 4) -> list[Chart]:
    """One chart a main metric: a row a system, with its interval, coloured by kind."""
    return [_system_chart(comparison, metric) for metric in main_metrics(comparison, count)]


def difference_charts(comparison: dict[str, Any], count: int = 4) -> list[Chart]:
    """One chart a main metric: by how much the reference is better than each other system."""
    charts = []
    label = reference_of(comparison)["label"]
    for metric in main_metrics(comparison, count):
        others = [s for s in comparison["systems"] if metric.key in s.get("difference", {})]
        if not others:
            continue
        found = [s["difference"][metric.key] for s in others]
        title = f"{metric.label}: {label} minus each other system"
        spoken = "; ".join(
            f"{s['label']} {signed(metric, d['value'])}, interval {signed(metric, d['low'])} to "
            f"{signed(metric, d['high'])}"
            for s, d in zip(others, found, strict=True)
        )
        rows = [_estimate(s, d, metric) for s, d in zip(others, found, strict=True)]
        svg = interval_chart(
            rows, _difference_axis(metric, label), _alternative(comparison, title, spoken), [("no difference", 0.0)]
        )
        charts.append(Chart(title, svg))
    return charts


def group_charts(comparison: dict[str, Any], count: int = 4) -> list[Chart]:
    """One chart a main metric: a line a system over the groups of users; empty without groups."""
    groups, systems = comparison.get("groups") or [], _drawn(comparison)
    charts = []
    for metric in main_metrics(comparison, count) if groups else []:
        found = {s["name"]: [g["systems"].get(s["name"], {}).get(metric.key) for g in groups] for s in systems}
        drawn = [s for s in systems if any(found[s["name"]])]
        if not drawn:
            continue
        lines = [_points(s["label"], found[s["name"]], metric) for s in drawn]
        title = f"{metric.label} by how much is known of the user"
        spoken = "; ".join(f"{s['label']} {_spoken_groups(metric, groups, found[s['name']])}" for s in drawn)
        categories = [_short(g["label"]) for g in groups]
        svg = category_chart(
            categories,
            lines,
            "training interactions of the user",
            _axis(metric),
            _alternative(comparison, title, spoken),
        )
        charts.append(Chart(title, svg, _group_caption(comparison, systems)))
    return charts


def _system_chart(comparison: dict[str, Any], metric: Metric) -> Chart:
    systems = [s for s in comparison["systems"] if "low" in s["metrics"].get(metric.key, {})]
    found = [s["metrics"][metric.key] for s in systems]
    spoken = "; ".join(
        f"{s['label']} {shown(metric, f['value'])}, interval {shown(metric, f['low'])} to {shown(metric, f['high'])}"
        for s, f in zip(systems, found, strict=True)
    )
    rows = [_estimate(s, f, metric) for s, f in zip(systems, found, strict=True)]
    return Chart(
        headed(metric),
        interval_chart(rows, _axis(metric), _alternative(comparison, metric.label, spoken)),
        _HOW_TO_READ,
    )


def _alternative(comparison: dict[str, Any], title: str, spoken: str) -> str:
    # With the heading, which tells charts of one page apart that draw the same figures.
    return f"{heading_of(comparison)}, {title}: {spoken}"


def _drawn(comparison: dict[str, Any]) -> list[dict]:
    """As many systems as there are colours: the reference, then those with the best first main metric."""
    systems = comparison["systems"]
    metrics = main_metrics(comparison, 1)
    if len(systems) <= SERIES or not metrics:
        return systems[:SERIES]
    sign = -1 if metrics[0].better == "lower" else 1

    def order(system: dict) -> tuple[bool, float]:
        value = system["metrics"].get(metrics[0].key, {}).get("value", -sign * float("inf"))
        return system["name"] != comparison["reference"], -sign * value

    kept = {s["name"] for s in sorted(systems, key=order)[:SERIES]}
    return [s for s in systems if s["name"] in kept]


def _group_caption(comparison: dict[str, Any], drawn: list[dict]) -> str:
    names = {s["name"] for s in drawn}
    absent = [s["label"] for s in comparison["systems"] if s["name"] not in names]
    return _HOW_TO_READ + (f" Only in the table: {', '.join(absent)}." if absent else "")


def _estimate(system: dict, found: dict, metric: Metric) -> Estimate:
    scale = 100 if metric.percent else 1
    ends = (scale * found["value"], scale * found["low"], scale * found["high"])
    return Estimate(system["label"], *ends, _KIND_SERIES.get(system["kind"], 2))


def _points(label: str, found: list[dict | None], metric: Metric) -> Points:
    scale = 100 if metric.percent else 1
    value, low, high = (
        [scale * f.get(end, f["value"]) if f else nan for f in found] for end in ("value", "low", "high")
    )
    return Points(label, value, low, high)


def _spoken_groups(metric: Metric, groups: list[dict], found: list[dict | None]) -> str:
    return ", ".join(f"{g['label']} {shown(metric, f['value'])}" for g, f in zip(groups, found, strict=True) if f)


def _short(label: str) -> str:
    return label.removesuffix(" interactions").removesuffix(" interaction").replace(" to ", "–")


def _axis(metric: Metric) -> str:
    better = f" ({metric.better} is better)" if metric.better != "none" else ""
    return metric.label + (", %" if metric.percent else "") + better


def _difference_axis(metric: Metric, label: str) -> str:
    return ("percentage points" if metric.percent else metric.label) + f" by which {label} is better"
