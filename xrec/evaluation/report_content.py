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

from xrec.evaluation.metrics import METRICS, Metric
from xrec.evaluation.scoring import join_references
from xrec.workspace import METRICS as FIGURES
from xrec.workspace import Workspace

STAGE_ORDER = ("data", "preprocess", "profile", "embed", "backbone", "tune", "explain", "evaluate")


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


def figures(workspace: Workspace, stage: str) -> dict[str, float]:
    """The flat figures of a stage; empty where it has not run or reported none."""
    return workspace.read_json(stage, FIGURES) if workspace.exists(stage, FIGURES) else {}


def headline(workspace: Workspace, summary: dict | None) -> dict[str, Any]:
    """The data, the split and the few figures that a reader looks for first."""
    data, known = _settings(workspace, "data"), figures(workspace, "preprocess")
    written = figures(workspace, "profile")
    if "explanations/rows" in written:
        known |= {"explanations": written["explanations/rows"]}
        known |= {name: value for name, value in written.items() if name.startswith("leak/")}
    return {
        "dataset": _dataset(data),
        "workspace": workspace.uri.rpartition("/")[2],
        "date": time.strftime("%d %B %Y"),
        "counts": [
            (label, f"{int(known[key]):,}")
            for label, key in (
                ("users", "users"),
                ("items", "items"),
                ("interactions", "interactions"),
                ("explained pairs", "explanations"),
            )
            if key in known
        ],
        "split": _split_sentence(_settings(workspace, "preprocess"), known),
        "leak": _leak_sentence(known),
        "texts": _texts_sentence(_settings(workspace, "profile"), written),
        "results": _results(summary, figures(workspace, "embed")),
    }


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
                    "interval": _interval(metric, found),
                    "better": metric.better,
                    "meaning": metric.meaning,
                }
            )
    return rows


def causal_rows(summary: dict) -> list[dict[str, Any]]:
    """Every metric under every signal, with the paired gain over the shuffled control; empty without a control."""
    controls = [s for s in ("shuffled", "off") if s in summary["counts"]]
    if not controls:
        return []
    rows = []
    for metric in METRICS:
        found = summary["metrics"].get(metric.key)
        if not found:
            continue
        cells = [shown(metric, found[s]["value"]) if s in found else "" for s in ("true", *controls)]
        gains = [_gain(metric, found["difference"].get(s)) for s in controls]
        rows.append({"label": metric.label, "better": metric.better, "cells": cells, "gains": gains})
    return rows


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
    return f"{value:.1f}" if metric.key == "words" else f"{value:.4f}"


_ENDS = ("value", "low", "high")


def _gain(metric: Metric, difference: dict | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    signed = [f"{100 * v:+.1f}" if metric.percent else f"{v:+.4f}" for v in (difference[k] for k in _ENDS)]
    certain = difference["low"] > 0 or difference["high"] < 0
    kind = "" if not certain or metric.better == "none" else ("gain" if difference["value"] > 0 else "loss")
    return {"value": signed[0] + (" points" if metric.percent else ""), "interval": f"{signed[1]} to {signed[2]}"} | {
        "kind": kind
    }


def _interval(metric: Metric, found: dict) -> str:
    return f"{shown(metric, found['low'])} to {shown(metric, found['high'])}" if "low" in found else ""


def _results(summary: dict | None, embed: dict[str, float]) -> list[dict[str, str]]:
    """Figure, name and note of the tiles at the top."""
    tiles = []
    metrics = summary["metrics"] if summary else {}
    if summary and summary.get("feature") and "true" in metrics.get("feature/accuracy", {}):
        value, chance = metrics["feature/accuracy"]["true"]["value"], summary["feature"]["chance"]
        tiles.append((f"{100 * value:.1f} %", "feature accuracy", f"chance {100 * chance:.1f} %"))
    if "true" in metrics.get("bert_score_f1", {}):
        tiles.append((f"{metrics['bert_score_f1']['true']['value']:.3f}", "BERTScore F1", summary_model(summary)))
    if "true" in metrics.get("usr", {}):
        tiles.append((f"{metrics['usr']['true']['value']:.3f}", "unique sentence ratio", ""))
    if summary and summary.get("likelihood") and "shuffled" in summary["likelihood"]["difference"]:
        found = summary["likelihood"]["difference"]["shuffled"]
        note = f"nats a token, {found['low']:+.4f} to {found['high']:+.4f}"
        tiles.append((f"{found['value']:+.4f}", "cost of shuffling", note))
    recall = "test/recall@20" if "test/recall@20" in embed else "val/recall@20"
    if recall in embed:
        tiles.append((f"{embed[recall]:.4f}", "Recall@20", "LightGCN, " + recall.split("/")[0]))
    return [{"value": value, "label": label, "note": note} for value, label, note in tiles]


def summary_model(summary: dict | None) -> str:
    """The scoring model of BERTScore, in words."""
    found = (summary or {}).get("bert_score")
    return f"{found['model']}, layer {found['layers']}" if found else ""


def _dataset(data: dict) -> str:
    kinds = {"sample": f"synthetic sample world, seed {data.get('seed', 0)}", "import": "published XRec data"}
    return kinds.get(data.get("source", ""), "data")


def _split_sentence(config: dict, known: dict[str, float]) -> str:
    if not config:
        return ""
    kind = (
        "the source's own split" if config.get("split") == "published" else f"random split, seed {config.get('seed')}"
    )
    parts = [
        f"{int(known[f'interactions/{s}']):,} {name}"
        for s, name in (("train", "training"), ("val", "validation"), ("test", "test"))
        if f"interactions/{s}" in known
    ]
    return f"Split: {kind}" + (f" ({', '.join(parts)} interactions)." if parts else ".")


def _leak_sentence(known: dict[str, float]) -> str:
    leaked = known.get("leak/explained_test_pairs_in_train_graph")
    if leaked is None:
        return ""
    total = known.get("explanations/test")
    if not leaked:
        return "Leak check: no explained test pair is an edge of the training graph."
    of = f" of {int(total):,}" if total else ""
    return (
        f"Leak: {int(leaked):,}{of} explained test pairs are edges of the training graph, so the figures on the test "
        "split flatter the model."
    )


def _texts_sentence(settings: dict, written: dict[str, float]) -> str:
    """Who wrote the profiles and the ground truth, where this workspace's own stage did."""
    if not written:
        return ""
    rows = sum(value for name, value in written.items() if name.count("/") == 1 and name.endswith("/rows"))
    failed = sum(value for name, value in written.items() if name.count("/") == 1 and name.endswith("/failed"))
    how = "made of the reviews' key phrases, without a language model"
    if "writer" not in settings:
        how = f"written by {settings['model']} from the reviews"
    of = f"; {int(failed):,} of {int(rows):,} failed" if failed else ""
    return f"Profiles and ground-truth explanations were {how}{of}."


def _settings(workspace: Workspace, stage: str) -> dict:
    return workspace.manifest(stage)["fingerprint"]["config"] if workspace.is_finished(stage) else {}


def _predictions(joined: pa.Table, user: int, item: int) -> list[dict[str, Any]]:
    pair = pc.and_(pc.equal(joined["user"], user), pc.equal(joined["item"], item))
    rows = {row["signal"]: row for row in joined.filter(pair).to_pylist()}
    return [
        {"signal": s, "text": rows[s]["explanation"], "finish_reason": rows[s]["finish_reason"]}
        for s in ("true", "shuffled", "off")
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
