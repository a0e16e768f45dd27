"""What `evaluate` says of trust in its figures, drawn rather than computed: parts of `summary.json`."""

from typing import Any


def _interval(value: float, meaning: str) -> dict[str, Any]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "rows": 48, "meaning": meaning}


def trust() -> dict[str, Any]:
    """Scorers with a model, a judge and a checker; text changes under one control; leaks, one of them not known."""
    judge = {"calls": 47, "cached": 1, "unscored": 2, "reasons": {}, "tokens_in": 9, "tokens_out": 9, "cost": 0.75}
    change = {
        "pairs": 48,
        "unchanged": _interval(0.25, "Share of explanations that stay the same."),
        "rouge_change": _interval(0.31, "1 - ROUGE-L F1 of the two texts."),
        "words": _interval(-1.5, "Mean number of words more."),
    }
    return {
        "scorers": {
            "length": {"seconds": 0.1, "rows": 96},
            "bert_score": {"model": "roberta-large", "layers": 17, "rescaled": True, "empty": 1},
            "gpt_score": {"empty": 0, "unscored": 2, "judges": {"judge-a": judge, "judge-b": judge}},
            "grounding": {"checker": "lexical", "threshold": 0.5, "statements": 140, "unchecked": 3, "empty": 0},
        },
        "counterfactual": {"shuffled": change},
        "leakage": [
            {"name": "pairs", "meaning": "Explained test pairs that are edges.", "count": 12, "of": 48, "share": 0.25},
            {"name": "reviews", "meaning": "References in a review.", "count": None, "of": 48, "share": None},
        ],
    }
