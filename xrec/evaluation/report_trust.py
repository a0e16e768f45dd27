"""What the report says about whether its figures can be trusted: who scored, how far signals change texts, leaks.

Plain data, as in `report_content.py`; parts that a summary lacks are empty.
"""

from typing import Any

_FAMILIES = {
    "bert_score": "BERTScore",
    "bart_score": "BARTScore",
    "bleurt": "BLEURT",
    "gpt_score": "GPTScore",
    "factuality": "Statement precision, recall and F1",
    "grounding": "Hallucination rate",
}
_CHECKERS = {
    "lexical": "words, names and negations compared, without a model's judgement",
    "nli": "entailment by {model}",
    "judge": "asked of {model}",
}
# Measure -> name, and how it is written.
_CHANGES = {
    "unchanged": ("Unchanged", "{:.1%}"),
    "rouge_change": ("1 - ROUGE-L", "{:.4f}"),
    "feature_changed": ("Other features", "{:.1%}"),
    "feature_lost": ("True feature lost", "{:.1%}"),
    "words": ("Words", "{:+.1f}"),
}


def scorer_rows(summary: dict) -> list[dict[str, str]]:
    """Family, who or what scored, and counts, of each scorer that rests on a model or a judgement."""
    rows = []
    for family, label in _FAMILIES.items():
        facts = (summary.get("scorers") or {}).get(family)
        if facts is not None:
            rows.append({"label": label, "by": _scored_by(facts), "notes": "; ".join(_notes(facts))})
    return rows


def change_rows(summary: dict, controls: list[str]) -> list[dict[str, Any]]:
    """How far the texts of the same pairs change under each control; empty without a control."""
    found = summary.get("counterfactual") or {}
    rows = []
    for measure, (label, form) in _CHANGES.items():
        own = [found.get(s, {}).get(measure) for s in controls]
        meaning = next((f["meaning"] for f in own if f), None)
        if meaning is not None:
            rows.append({"label": label, "meaning": meaning, "cells": [_change(f, form) for f in own]})
    return rows


def leak_rows(summary: dict) -> list[dict[str, str]]:
    """What of the held-out pairs training has seen; empty where it was not looked at."""
    rows = []
    for leak in summary.get("leakage") or []:
        if leak.get("count") is None:
            shares = {"count": "no such texts", "share": ""}
        else:
            share = f"{100 * leak['count'] / leak['of']:.1f} %" if leak["of"] else ""
            shares = {"count": f"{leak['count']:,} of {leak['of']:,}", "share": share}
        rows.append({"meaning": leak["meaning"].rstrip("."), **shares})
    return rows


def bert_score_model(summary: dict | None) -> str:
    """The scoring model of BERTScore, in words; empty without BERTScore."""
    facts = ((summary or {}).get("scorers") or {}).get("bert_score")
    return _scored_by(facts) if facts else ""


def _scored_by(facts: dict) -> str:
    judges = facts.get("judges") or {}
    model = " and ".join(judges) or str(facts.get("model") or "")
    if facts.get("checker") in _CHECKERS:
        return _CHECKERS[facts["checker"]].format(model=model or "a language model")
    parts = [model] if model else []
    parts += [f"weights {facts['checkpoint']}"] if facts.get("checkpoint") else []
    parts += [f"layer {facts['layers']}"] if facts.get("layers") is not None else []
    parts += ["rescaled by the model's baseline"] if facts.get("rescaled") else []
    return ", ".join(parts)


def _notes(facts: dict) -> list[str]:
    asked = list((facts.get("judges") or {}).values()) or [facts]
    total = {name: sum(f.get(name) or 0 for f in asked) for name in ("calls", "cached")}
    costs = [f["cost"] for f in asked if f.get("cost") is not None]
    notes = [f"support from {facts['threshold']} on counts"] if "threshold" in facts else []
    notes += [_counted(total["calls"], "request")] if total["calls"] else []
    notes += [f"{_counted(total['cached'], 'answer')} taken from an earlier run"] if total["cached"] else []
    notes += [f"{facts['unscored']:,} without an answer"] if facts.get("unscored") else []
    notes += [f"{sum(costs):,.2f} in the currency of the prices"] if costs else []
    unchecked, statements = facts.get("unchecked"), facts.get("statements")
    notes += [f"{unchecked:,} of {statements:,} statements say nothing to check"] if unchecked and statements else []
    notes += [f"{_counted(facts['empty'], 'empty text')}"] if facts.get("empty") else []
    return notes


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}" + ("" if count == 1 else "s")


def _change(found: dict | None, form: str) -> dict[str, str] | None:
    if found is None:
        return None
    value, low, high = (form.format(found[end]).replace("%", " %") for end in ("value", "low", "high"))
    return {"value": value, "interval": f"{low} to {high}"}
