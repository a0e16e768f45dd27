"""A comparison as `xrec compare` and `xrec sparsity` leave it: nine systems, three seeds, drawn figures."""

import copy
import math
from typing import Any

import numpy as np

from xrec.evaluation.metrics import METRICS

SYSTEMS = (
    ("xrec", "XRec", "xrec"),
    ("without_profiles", "w/o profiles", "ablation"),
    ("att2seq", "Att2Seq", "baseline"),
    ("nrt", "NRT", "baseline"),
    ("peter", "PETER", "baseline"),
    ("peter_plus", "PETER+", "baseline"),
    ("pepler", "PEPLER", "baseline"),
    ("item_profile", "Item profile", "floor"),
    ("published_a&b", "published_a&b", "predictions"),
)
# Of each metric: the reference's value, what a system loses by its place in the list, and the spread over examples.
LEVELS = {
    "feature/accuracy": (0.88, 0.05, 0.35),
    "gpt_score": (77.2, 2.4, 14.1),
    "bert_score_f1": (0.412, 0.021, 0.12),
    "bert_score_precision": (0.401, 0.02, 0.14),
    "bert_score_recall": (0.423, 0.019, 0.13),
    "bart_score": (-3.91, 0.06, 0.44),
    "bleurt": (-0.11, -0.01, 0.31),
    "rouge_l": (0.241, 0.012, 0.08),
    "bleu_4": (7.31, 0.4, 4.2),
    "hallucination": (0.21, -0.03, 0.3),
    "usr": (1.0, 0.03, None),
    "distinct_2": (0.41, 0.02, None),
    "words": (29.3, 0.4, 7.0),
    "cut_off": (0.01, -0.002, 0.1),
}
_LOWER = {m.key for m in METRICS if m.better == "lower"}


def comparison(groups: bool = False) -> dict[str, Any]:
    """XRec leads on most metrics; on BLEURT every other system is better; published predictions have fewer pairs."""
    generator = np.random.default_rng(0)
    systems = []
    for place, (name, label, kind) in enumerate(SYSTEMS):
        rows = 1311 if kind == "predictions" else 1452
        system: dict[str, Any] = {"name": name, "label": label, "kind": kind, "seeds": [0, 1, 2], "cost": None}
        system["metrics"] = {
            key: _figure(first - place * loss, spread, rows, generator) for key, (first, loss, spread) in LEVELS.items()
        }
        if place:
            system["difference"] = {
                key: _gap(key, place * loss, spread, rows) for key, (_, loss, spread) in LEVELS.items() if spread
            }
        if kind in ("floor", "predictions"):
            system["seeds"] = [0]
        systems.append(system)
    systems[0]["cost"], systems[1]["cost"] = 1.25, 0.5
    return {
        "stage": "sparsity" if groups else "compare",
        "reference": "xrec",
        "split": "test",
        "resamples": 2000,
        "pairs": 1452,
        "zero_shot": "keep" if groups else "leave out",
        "systems": systems,
        "examples": [_example(n) for n in range(3)],
        "groups": _groups(systems, generator) if groups else None,
    }


def _figure(value: float, spread: float | None, rows: int, generator: np.random.Generator) -> dict[str, Any]:
    figure: dict[str, Any] = {"value": value, "rows": rows}
    if spread is None:
        return figure
    half = 1.96 * spread / rows**0.5
    seed_std = float(generator.uniform(0.1, 0.4)) * half
    return figure | {"low": value - half, "high": value + half, "std": spread, "seed_std": seed_std}


def _gap(key: str, lost: float, spread: float, rows: int) -> dict[str, Any]:
    value, half = (-lost if key in _LOWER else lost), 1.96 * spread / rows**0.5
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "p": math.erfc(abs(value) / half * 1.96 / 2**0.5),
        "rows": rows,
    }


def _example(number: int) -> dict[str, Any]:
    texts = {
        name: f"The user would enjoy it for its {word}, as {label} has it."
        for (name, label, _), word in zip(
            SYSTEMS,
            ("patio", "tacos", "price", "tacos", "music", "staff", "brunch", "parking", "wine list"),
            strict=True,
        )
    }
    return {
        "user": number,
        "item": 10 + number,
        "user_id": f"user-{number}",
        "title": f"Café No. {number}",
        "reference": "The user would enjoy the café for its patio and its tacos.",
        "metric": "bert_score_f1",
        "texts": texts,
        "scores": {name: 0.8 - 0.07 * place for place, name in enumerate(texts)},
    }


def _groups(systems: list[dict], generator: np.random.Generator) -> list[dict]:
    labels = [
        "1 to 5 interactions",
        "6 to 9 interactions",
        "10 to 14 interactions",
        "15 to 31 interactions",
        "32 to 214 interactions",
    ]
    names = [*[(str(n + 1), label) for n, label in enumerate(labels)], ("zero-shot", "zero-shot")]
    groups = []
    for place, (name, label) in enumerate(names):
        figures = {}
        for system in systems:
            if name == "zero-shot" and system["kind"] == "predictions":
                continue
            metrics = {k: copy.deepcopy(v) for k, v in system["metrics"].items() if "low" in v}
            for key, found in metrics.items():
                shift = (place - 2) * 0.1 * LEVELS[key][1] + float(generator.normal(0, 0.05)) * found["std"]
                wide = 2.4 * (found["high"] - found["low"]) / 2
                found["value"] += shift
                found |= {"low": found["value"] - wide, "high": found["value"] + wide, "rows": 242}
            figures[system["name"]] = metrics
        groups.append({"name": name, "label": label, "users": 90 + place, "pairs": 242, "systems": figures})
    return groups
