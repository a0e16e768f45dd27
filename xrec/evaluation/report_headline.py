"""The top of the report: the data, the split, who wrote the texts, and the few figures looked for first."""

import os
import time
from typing import Any

from xrec.evaluation.report_trust import bert_score_model
from xrec.workspace import METRICS as FIGURES
from xrec.workspace import Workspace


def headline(workspace: Workspace, summary: dict | None) -> dict[str, Any]:
    """The data, the split and the few figures that a reader looks for first."""
    data, known = _settings(workspace, "data"), _figures(workspace, "preprocess")
    written = _figures(workspace, "profile")
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
        "backbone": _backbone_sentence(
            _settings(workspace, "tune"), _settings(workspace, "backbone"), _figures(workspace, "backbone")
        ),
        "results": _results(summary, _figures(workspace, "embed")),
    }


def _figures(workspace: Workspace, stage: str) -> dict[str, float]:
    """The flat figures of a stage; empty where it has not run or reported none."""
    return workspace.read_json(stage, FIGURES) if workspace.exists(stage, FIGURES) else {}


def _results(summary: dict | None, embed: dict[str, float]) -> list[dict[str, str]]:
    """Figure, name and note of the tiles at the top."""
    tiles = []
    metrics = summary["metrics"] if summary else {}
    if summary and summary.get("feature") and "true" in metrics.get("feature/accuracy", {}):
        value, levels = metrics["feature/accuracy"]["true"]["value"], summary["feature"]
        note = f"chance {100 * levels['chance']:.1f} %"
        if levels.get("prompt_chance") is not None:
            note += f", {100 * levels['prompt_chance']:.1f} % given the prompt's texts"
        tiles.append((f"{100 * value:.1f} %", "feature accuracy", note))
    if "true" in metrics.get("bert_score_f1", {}):
        tiles.append((f"{metrics['bert_score_f1']['true']['value']:.3f}", "BERTScore F1", bert_score_model(summary)))
    if "true" in metrics.get("usr", {}):
        tiles.append((f"{metrics['usr']['true']['value']:.3f}", "unique sentence ratio", ""))
    if "true" in metrics.get("prompt_copy", {}):
        tiles.append((f"{100 * metrics['prompt_copy']['true']['value']:.1f} %", "copies of the prompt", ""))
    if summary and summary.get("likelihood") and "shuffled" in summary["likelihood"]["difference"]:
        found = summary["likelihood"]["difference"]["shuffled"]
        note = f"nats per token, {found['low']:+.4f} to {found['high']:+.4f}"
        tiles.append((f"{found['value']:+.4f}", "cost of shuffling", note))
    recall = "test/recall@20" if "test/recall@20" in embed else "val/recall@20"
    if recall in embed:
        tiles.append((f"{embed[recall]:.4f}", "Recall@20", "LightGCN, " + recall.split("/")[0]))
    return [{"value": value, "label": label, "note": note} for value, label, note in tiles]


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


def _backbone_sentence(tune: dict, backbone: dict, figures: dict[str, float]) -> str:
    """The language model that the adapter was tuned for, or will be; empty where neither stage has run."""
    if tune.get("backbone"):
        return f"Language model: {_model_name(tune['backbone'])}, frozen."
    if not backbone:
        return ""
    parts = [_model_name(backbone.get("pretrained", "smollm2"))]
    parts += [
        f"{int(figures[key]):,} {label}"
        for key, label in (("parameters", "parameters"), ("layers", "layers"))
        if key in figures
    ]
    return f"Language model: {', '.join(parts)}, frozen."


def _model_name(name: str) -> str:
    """A model's name; of a folder or file, the last part of the path."""
    named = {"smollm2": "SmolLM2-135M-Instruct"}
    return named.get(name) or (os.path.basename(name.rstrip("/")) if os.path.isabs(name) else name)


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
