"""Which charts are drawn from which figures."""

from xrec.evaluation import report_charts as charts

INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "rows": 9}


def test_curves_take_the_first_key_that_was_logged():
    log = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0, "val/loss": None}]
    chart = charts.curve(
        "Loss", log, {"training": ("train/loss", "loss"), "validation": ("val/loss",)}, "epoch", "loss"
    )
    assert chart.title == "Loss"
    assert "training from 2 to 1" in chart.svg
    assert "validation" not in chart.svg
    assert charts.curve("Loss", log, {"x": ("absent",)}, "epoch", "loss") is None


def test_training_charts_only_of_stages_with_a_log():
    logs = {"embed": [{"step": 0, "loss": 1.0, "val/recall@20": 0.1}], "tune": []}
    found = charts.training_charts(logs)
    assert [c.title for c in found["embed"]] == ["LightGCN: training loss", "LightGCN: validation Recall@20"]
    assert list(found) == ["embed"]


def test_signals_are_drawn_in_one_order_whatever_the_summarys():
    """`summary.json` has its keys sorted."""
    both = dict.fromkeys(("off", "other_user", "shuffled"), INTERVAL)
    for chart in charts.likelihood_charts({"signals": both | {"true": INTERVAL}, "difference": both}):
        places = [chart.svg.rindex(f">{label}<") for label in ("shuffled", "another user's", "none")]
        assert places == sorted(places)


def test_likelihood_has_levels_and_differences():
    both = {"signals": {"true": INTERVAL, "shuffled": INTERVAL}, "difference": {"shuffled": INTERVAL}}
    assert len(charts.likelihood_charts(both)) == 2
    assert len(charts.likelihood_charts({"signals": {"true": INTERVAL}, "difference": {}})) == 1


def test_feature_charts_need_features():
    summary = {"metrics": {"feature/accuracy": {"true": INTERVAL, "difference": {}}}, "feature": None}
    assert charts.feature_charts(summary) == []
    summary["feature"] = {"chance": 0.1, "majority": 0.2}
    (chart,) = charts.feature_charts(summary)
    assert "own vectors 0.5" in chart.svg and "most common" in chart.svg
    assert "given the prompt" not in chart.svg
    summary["feature"]["prompt_chance"] = 0.4
    assert "given the prompt" in charts.feature_charts(summary)[0].svg


def test_probe_charts_skip_a_side_without_words():
    probes = {"item": [{"word": "sushi", "auc": 0.9, "spread": 0.2, "share": 0.1}], "user": []}
    (chart,) = charts.probe_charts(probes)
    assert chart.title == "What item embeddings know"
    assert "sushi 0.90" in chart.svg
