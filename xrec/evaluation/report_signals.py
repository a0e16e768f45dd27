"""The report's first table: how explanations and likelihoods fare under each signal, against chance.

One column a signal: the pair's own vectors, shuffled ones, another user's, none. Plain data, as in `report_content.py`.
"""

from collections.abc import Callable
from typing import Any

from xrec.evaluation.metrics import METRICS
from xrec.evaluation.report_content import gain, interval_shown, shown
from xrec.tables import SIGNALS

_BY_KEY = {metric.key: metric for metric in METRICS}
_FIELDS = {"title": "the item's name", "user_profile": "the user's profile", "item_profile": "the item's profile"}
# Differences are signed so that positive is better, whichever way the figure counts.
_AHEAD = ("– own ahead by", "paired difference")


def shown_signals(summary: dict) -> list[str]:
    """The signals that predictions or likelihoods are there for, in order."""
    scored = (summary.get("likelihood") or {}).get("signals", {})
    return [s for s in SIGNALS if s in summary["counts"] or s in scored]


def signal_rows(summary: dict) -> list[dict[str, Any]]:
    """The rows of the table.

    Returns:
        `label` and `note`, and either `cells`, one a signal of `shown_signals` (`value`, `interval` and `kind`, which
        is `gain` or `loss` where a difference is certain; None where there is no such figure), or `level`, a value
        to compare the row above with.
    """
    signals = shown_signals(summary)
    rows = [
        *_metric_rows(summary, "feature/accuracy", signals),
        *_chance_rows(summary),
        *_likelihood_rows(summary, signals),
        *_metric_rows(summary, "usr", signals),
        *_metric_rows(summary, "prompt_copy", signals),
    ]
    return [row for row in rows if "level" in row or any(row["cells"])]


def _chance_rows(summary: dict) -> list[dict[str, Any]]:
    """The feature accuracy of guessers; empty where the data has no features."""
    levels = summary.get("feature")
    if not levels:
        return []
    rows = [
        {
            "label": "Chance",
            "note": f"features drawn as often as they occur; always the most common of {len(levels['vocabulary'])}: "
            f"{_percent(levels['majority'])}",
            "level": _percent(levels["chance"]),
        }
    ]
    if levels.get("prompt_chance") is not None:
        found = f"drawn evenly from the features found in {_prompt_fields(levels)}"
        rows.append(
            {
                "label": "Chance, given the prompt's texts",
                "note": f"{found} ({levels['prompt_named']:.1f} on average)",
                "level": _percent(levels["prompt_chance"]),
            }
        )
    return rows


def _prompt_fields(levels: dict) -> str:
    """The texts that the prompt quotes, in words."""
    *others, last = [_FIELDS[name] for name in levels["prompt_fields"]]
    return f"{', '.join(others)} and {last}" if others else last


def _metric_rows(summary: dict, key: str, signals: list[str]) -> list[dict[str, Any]]:
    metric, found = _BY_KEY[key], summary["metrics"].get(key, {})

    def value(signal: str) -> dict[str, Any] | None:
        own = found.get(signal)
        if own is None:
            return None
        return {"value": shown(metric, own["value"]), "interval": interval_shown(metric, own), "kind": ""}

    rows = [_row(metric.label, f"{metric.better} is better", signals, value)]
    if found.get("difference"):
        rows.append(_row(*_AHEAD, signals, lambda s: gain(metric, found["difference"].get(s))))
    return rows


def _likelihood_rows(summary: dict, signals: list[str]) -> list[dict[str, Any]]:
    likelihood = summary.get("likelihood")
    if not likelihood:
        return []

    def value(signal: str) -> dict[str, Any] | None:
        own = likelihood["signals"].get(signal)
        return own and {"value": f"{own['value']:.4f}", "interval": _ends(own, "{:.4f}"), "kind": ""}

    def difference(signal: str) -> dict[str, Any] | None:
        own = likelihood["difference"].get(signal)
        if not own:
            return None
        kind = "gain" if own["low"] > 0 else "loss" if own["high"] < 0 else ""
        return {"value": f"{own['value']:+.4f}", "interval": _ends(own, "{:+.4f}"), "kind": kind}

    note = f"nats per token of {likelihood['rows']:,} reference explanations; lower is better"
    return [
        _row("Negative log-likelihood", note, signals, value),
        _row(*_AHEAD, signals, difference),
    ]


def _row(label: str, note: str, signals: list[str], cell: Callable[[str], dict[str, Any] | None]) -> dict[str, Any]:
    return {"label": label, "note": note, "cells": [cell(signal) for signal in signals]}


def _ends(interval: dict, form: str) -> str:
    return f"{form.format(interval['low'])} to {form.format(interval['high'])}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
