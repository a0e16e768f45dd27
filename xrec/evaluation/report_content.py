"""What the report says: figures, examples and stages of a workspace, read from its files and put into words.

Everything here is plain data; `report.py` and its template turn it into a page. Texts stay as they are: the template
escapes them.
"""

import time
from dataclasses import dataclass
from typing import Any

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions at import, where pyright cannot see them)
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from xrec.config import STUDIES
from xrec.evaluation.metrics import METRICS, Metric
from xrec.evaluation.scoring import join_references
from xrec.tables import SIGNALS
from xrec.workspace import FOLDERS, Workspace

# Decimals of metrics that do not lie between 0 and 1.
_DECIMALS = {"words": 1, "gpt_score": 2, "bleu": 2, "bleu_1": 2, "bleu_4": 2}
# The stages that a report can show, in running order.
STAGE_ORDER = (*(folder for folder in FOLDERS if folder != "report"), *STUDIES)


@dataclass(frozen=True)
class Example:
    """One pair side by side; a text is None where the data has none."""

    user_id: str
    title: str
    user_profile: str | None
    item_profile: str | None
    reference: str | None
    feature: str | None
    predictions: list[dict[str, Any]]


def finished_stages(workspace: Workspace) -> list[str]:
    """The stages, in running order, whose results a report can show."""
    return [stage for stage in STAGE_ORDER if workspace.is_finished(stage)]


def metric_rows(summary: dict) -> list[dict[str, Any]]:
    """Every metric with the pair's own embeddings."""
    rows = []
    for metric in METRICS:
        found = summary["metrics"].get(metric.key, {}).get("true")
        if found:
            rows.append(
                {
                    "label": metric.label,
                    "value": shown(metric, found["value"]),
                    "spread": shown(metric, found["std"]) if "std" in found else "",
                    "interval": interval_shown(metric, found),
                    "better": metric.better,
                    "meaning": metric.meaning,
                }
            )
    return rows


def causal_rows(summary: dict) -> list[dict[str, Any]]:
    """Every metric under every signal, with the paired gain over the shuffled control; empty without a control."""
    controls = controls_of(summary)
    if not controls:
        return []
    rows = []
    for metric in METRICS:
        found = summary["metrics"].get(metric.key)
        if not found:
            continue
        cells = [shown(metric, found[s]["value"]) if s in found else "" for s in ("true", *controls)]
        gains = [gain(metric, found["difference"].get(s)) for s in controls]
        rows.append({"label": metric.label, "better": metric.better, "cells": cells, "gains": gains})
    return rows


def controls_of(summary: dict) -> list[str]:
    """The signals beside the pair's own that were predicted under."""
    return [s for s in SIGNALS if s != "true" and s in summary["counts"]]


def examples(workspace: Workspace, count: int) -> list[Example]:
    """Pairs with their texts, spread evenly over the predictions, those with a reference first."""
    explanations = None
    if workspace.has_table(workspace.text_stage("explanations"), "explanations"):
        explanations = workspace.read_text_table("explanations")
    joined = join_references(workspace.read_table("explain", "predictions"), explanations)
    own = joined.filter(pc.equal(joined["signal"], "true"))
    referenced = own.filter(pc.is_valid(own["reference"]))
    own = referenced if len(referenced) else own
    if not count or not len(own):
        return []
    rows = np.unique(np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int))
    chosen = own.take(pa.array(rows)).to_pylist()
    users, items = [row["user"] for row in chosen], [row["item"] for row in chosen]
    user_ids = _lookup(workspace.read_table("preprocess", "users"), "user", "user_id", users)
    titles = _lookup(workspace.read_table("preprocess", "items_index"), "item", "title", items)
    user_profiles, item_profiles = _profiles(workspace, "user", users), _profiles(workspace, "item", items)
    return [
        Example(
            user_ids[row["user"]],
            titles[row["item"]],
            user_profiles.get(row["user"]),
            item_profiles.get(row["item"]),
            row["reference"],
            row["feature"],
            _predictions(joined, row["user"], row["item"]),
        )
        for row in chosen
    ]


def stage_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """When each stage ran, how long it took, and what it left."""
    rows = []
    for stage in finished_stages(workspace):
        manifest = workspace.manifest(stage)
        rows.append(
            {
                "stage": stage,
                "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest["started"])),
                "seconds": f"{manifest['seconds']:,.1f}",
                "files": len(manifest["outputs"]),
                "size": _size(sum(file["bytes"] for file in manifest["outputs"].values())),
                "versions": ", ".join(f"{p} {v}" for p, v in sorted(manifest["versions"].items())),
                "settings": yaml.safe_dump(manifest["fingerprint"]["config"], sort_keys=False, allow_unicode=True),
            }
        )
    return rows


def shown(metric: Metric, value: float) -> str:
    """A value as the report writes it."""
    if metric.percent:
        return f"{100 * value:.1f} %"
    return f"{value:.{_DECIMALS.get(metric.key, 4)}f}"


def signed(metric: Metric, value: float) -> str:
    """A difference as the report writes it; of percentages, in points."""
    return f"{100 * value:+.1f}" if metric.percent else f"{value:+.{_DECIMALS.get(metric.key, 4)}f}"


_ENDS = ("value", "low", "high")


def gain(metric: Metric, difference: dict | None) -> dict[str, Any] | None:
    """A paired difference as the report writes it: `value`, `interval`, and `kind` (`gain` or `loss`) if certain."""
    if difference is None:
        return None
    ends = [signed(metric, difference[k]) for k in _ENDS]
    certain = difference["low"] > 0 or difference["high"] < 0
    kind = "" if not certain or metric.better == "none" else ("gain" if difference["value"] > 0 else "loss")
    return {"value": ends[0] + (" points" if metric.percent else ""), "interval": f"{ends[1]} to {ends[2]}"} | {
        "kind": kind
    }


def interval_shown(metric: Metric, found: dict) -> str:
    """A figure's interval as the report writes it; empty for a metric of the whole set of texts."""
    return f"{shown(metric, found['low'])} to {shown(metric, found['high'])}" if "low" in found else ""


def _predictions(joined: pa.Table, user: int, item: int) -> list[dict[str, Any]]:
    pair = pc.and_(pc.equal(joined["user"], user), pc.equal(joined["item"], item))
    rows = {row["signal"]: row for row in joined.filter(pair).to_pylist()}
    return [
        {"signal": s, "text": rows[s]["explanation"], "finish_reason": rows[s]["finish_reason"]}
        for s in SIGNALS
        if s in rows
    ]


def _profiles(workspace: Workspace, side: str, nodes: list[int]) -> dict[int, str]:
    table = f"{side}_profiles"
    if not workspace.has_table(workspace.text_stage(table), table):
        return {}
    rows = workspace.read_text_table(table)
    return _lookup(rows.filter(pc.equal(rows["status"], "ok")), side, "profile", nodes)


def _lookup(table: pa.Table, key: str, value: str, nodes: list[int]) -> dict[int, str]:
    rows = table.filter(pc.is_in(table[key], value_set=pa.array(nodes, pa.int32())))
    return dict(zip(rows[key].to_pylist(), rows[value].to_pylist(), strict=True))


def _size(count: int) -> str:
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
