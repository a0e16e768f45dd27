"""The first table: which figures stand in which cell."""

import pytest

from xrec.evaluation.report_signals import shown_signals, signal_rows


def _interval(value: float, **ends: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "rows": 9} | ends


@pytest.fixture
def summary():
    return {
        "counts": {"true": {}, "off": {}},
        "metrics": {
            "feature/accuracy": {
                "true": _interval(0.5),
                "off": _interval(0.25),
                "difference": {"off": _interval(0.25)},
            },
            "usr": {"true": {"value": 0.75, "rows": 9}, "off": {"value": 0.5, "rows": 9}, "difference": {}},
            "prompt_copy": {
                "true": _interval(0.125),
                "off": _interval(0.5),
                "difference": {"off": _interval(0.375, low=-0.1)},
            },
        },
        "feature": {
            "vocabulary": ["a", "b"],
            "majority": 0.6,
            "chance": 0.52,
            "prompt_chance": 0.4,
            "prompt_named": 2.5,
            "prompt_fields": ["title", "item_profile"],
        },
        "likelihood": {
            "rows": 1234,
            "signals": {"true": _interval(2.0), "shuffled": _interval(2.5), "off": _interval(1.5)},
            "difference": {"shuffled": _interval(0.5), "off": _interval(-0.5)},
        },
    }


def test_every_cell(summary):
    assert shown_signals(summary) == ["true", "shuffled", "off"]
    rows = signal_rows(summary)
    found = [
        (row["label"], [c and (c["value"], c["kind"]) for c in row["cells"]] if "cells" in row else row["level"])
        for row in rows
    ]
    assert found == [
        ("Feature accuracy", [("50.0 %", ""), None, ("25.0 %", "")]),
        ("– own ahead by", [None, None, ("+25.0 points", "gain")]),
        ("Chance", "52.0 %"),
        ("Chance, given the prompt's texts", "40.0 %"),
        ("Negative log-likelihood", [("2.0000", ""), ("2.5000", ""), ("1.5000", "")]),
        ("– own ahead by", [None, ("+0.5000", "gain"), ("-0.5000", "loss")]),
        ("Unique sentence ratio", [("0.7500", ""), None, ("0.5000", "")]),
        ("Copies of the prompt", [("12.5 %", ""), None, ("50.0 %", "")]),
        ("– own ahead by", [None, None, ("+37.5 points", "")]),
    ]
    assert rows[3]["note"].endswith("found in the item's name and the item's profile (2.5 on average)")
    assert "nats per token of 1,234 reference explanations" in rows[4]["note"]
    assert rows[4]["cells"][1]["interval"] == "2.4900 to 2.5100"


def test_figures_that_are_not_there_have_no_row(summary):
    """Predictions made elsewhere, for data without features; and a summary from before the prompt was looked at."""
    elsewhere = summary | {"feature": None, "likelihood": None, "counts": {"true": {}}}
    elsewhere["metrics"] = {"usr": {"true": {"value": 0.75, "rows": 9}, "difference": {}}}
    assert [row["label"] for row in signal_rows(elsewhere)] == ["Unique sentence ratio"]
    earlier = summary | {"feature": {name: summary["feature"][name] for name in ("vocabulary", "majority", "chance")}}
    assert "Chance, given the prompt's texts" not in [row["label"] for row in signal_rows(earlier)]
