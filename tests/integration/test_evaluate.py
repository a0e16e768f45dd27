"""The stages evaluate and report on a tiny tuned model: files, figures, and refusal to repeat or mix."""

import json
import math
import shutil

import numpy as np
import pytest

from ray_jobs import evaluate, report
from xrec import tables
from xrec.config import EvaluateConfig, ExplainConfig, ReportConfig
from xrec.explainer.explain import Explainer
from xrec.explainer.pairs import explained_pairs
from xrec.workspace import Workspace, WorkspaceError

CONFIG = EvaluateConfig(bootstrap=200, probe_words=3, batch_size=4)
SETTINGS = ExplainConfig(controls=("shuffled", "other_user", "off"), max_new_tokens=12)


@pytest.fixture(scope="module")
def explained(tuned_workspace, tmp_path_factory) -> Workspace:
    """The tiny model's own predictions for the test pairs under every signal, and one row that failed."""
    folder = tmp_path_factory.mktemp("evaluate") / "w"
    shutil.copytree(tuned_workspace, folder)
    workspace = Workspace(folder)
    if not workspace.has_table("preprocess", "interactions"):
        rows = workspace.read_text_table("explanations").select(["user", "item", "split"])
        workspace.write_table(rows, "preprocess", "interactions")
    stage = workspace.stage("explain", SETTINGS.identity(), inputs=["preprocess", "embed", "tune"])
    explainer = Explainer.from_workspace(workspace, SETTINGS, device="cpu")
    test = explained_pairs(workspace, "test")
    pairs = list(zip(test["user"].to_pylist(), test["item"].to_pylist(), strict=True))
    rows = [row for signal in tables.SIGNALS for row in explainer.explain(pairs, signal)]
    rows += explainer.explain([(10_000, 0)])
    stage.write_table("predictions", tables.from_rows("predictions", rows))
    stage.finish({})
    return workspace


@pytest.fixture(scope="module")
def evaluated(explained) -> Workspace:
    line = evaluate.run(explained, CONFIG)
    assert "1 failed" in line and "summary.json" in line
    return explained


def test_dry_run_writes_nothing(explained, tmp_path):
    workspace = Workspace(shutil.copytree(explained.path(), tmp_path / "w", ignore=shutil.ignore_patterns("evaluate")))
    assert "would score" in evaluate.run(workspace, CONFIG, dry_run=True)
    assert not workspace.exists("evaluate")


def test_scores_hold_a_row_a_prediction_with_every_metric(evaluated):
    scores = evaluated.read_table("evaluate", "scores")
    predictions = evaluated.read_table("explain", "predictions")
    assert len(scores) == sum(s == "ok" for s in predictions["status"].to_pylist())
    assert {"bert_score_f1", "words", "over_50_words", "cut_off", "nll", "nll_tokens"} <= set(scores.column_names)
    assert scores["nll"].null_count == 0


def test_likelihood_equals_the_explainers_own(evaluated):
    """`nll_per_token` is the sum of the pairs' negative log-likelihoods over the sum of their tokens."""
    explainer = Explainer.from_workspace(evaluated, SETTINGS, device="cpu")
    test = explained_pairs(evaluated, "test")
    pairs = list(zip(test["user"].to_pylist(), test["item"].to_pylist(), strict=True))
    figures = evaluated.read_json("evaluate", "metrics.json")
    totals = {}
    for signal in tables.SIGNALS:
        parts = [
            explainer.negative_log_likelihood([pair], [text], signal)
            for pair, text in zip(pairs, test["explanation"].to_pylist(), strict=True)
        ]
        totals[signal] = sum(float(n[0]) for n, _ in parts), sum(int(t[0]) for _, t in parts)
        suffix = "" if signal == "true" else f"/{signal}"
        nats, tokens = totals[signal]
        assert figures[f"test/nll_per_token{suffix}"] == pytest.approx(nats / tokens, rel=1e-4)
        assert figures[f"test/perplexity{suffix}"] == pytest.approx(math.exp(nats / tokens), rel=1e-3)
    difference = (totals["shuffled"][0] - totals["true"][0]) / totals["true"][1]
    assert figures["test/nll_difference"] == pytest.approx(difference, abs=1e-4)
    assert figures["test/nll_difference/low"] <= difference <= figures["test/nll_difference/high"]


def test_figures_are_flat_finite_numbers(evaluated):
    figures = evaluated.read_json("evaluate", "metrics.json")
    assert all(isinstance(v, int | float) and math.isfinite(v) for v in figures.values())
    assert figures["test/failed"] == 1
    expected = {"test/usr", "test/distinct_1", "test/bert_score_f1", "test/bert_score_f1/shuffled", "test/usr/off"}
    assert expected | {"test/bert_score_f1_difference/low", "test/cut_off"} <= set(figures)


def test_probe_is_written_for_both_sides(evaluated):
    probe = json.loads(evaluated.read_bytes("evaluate", "probe.json"))
    assert set(probe) == {"item", "user"}
    assert all(0 <= p["auc"] <= 1 for side in probe.values() for p in side)


def test_the_report_shows_it(evaluated):
    assert "evaluate" in report.run(evaluated, ReportConfig())
    page = evaluated.read_bytes("report", "report.html").decode()
    shown = evaluated.read_json("evaluate", "metrics.json")["test/nll_per_token"]
    assert f"{shown:.4f}" in page and "1 failed" in page


def test_a_finished_evaluation_is_kept_and_another_one_refused(evaluated):
    assert "already finished" in evaluate.run(evaluated, CONFIG)
    other = CONFIG.model_copy(update={"bootstrap": 100})
    with pytest.raises(WorkspaceError, match=r"config\.bootstrap"):
        evaluate.run(evaluated, other)


def test_likelihood_rows_limits_the_pairs(explained, tmp_path):
    workspace = Workspace(shutil.copytree(explained.path(), tmp_path / "w", ignore=shutil.ignore_patterns("evaluate")))
    evaluate.run(workspace, CONFIG.model_copy(update={"likelihood_rows": 2, "probe": False}))
    scores = workspace.read_table("evaluate", "scores")
    assert len(scores) - scores["nll"].null_count == 2 * len(tables.SIGNALS)
    assert not workspace.exists("evaluate", "probe.json")


def test_without_a_successful_prediction_it_says_so(explained, tmp_path):
    ignored = shutil.ignore_patterns("evaluate", "explain")
    workspace = Workspace(shutil.copytree(explained.path(), tmp_path / "w", ignore=ignored))
    stage = workspace.stage("explain", SETTINGS.identity(), inputs=["preprocess", "embed", "tune"])
    failed = explained.read_table("explain", "predictions")
    stage.write_table("predictions", failed.filter(np.array(failed["status"].to_pylist()) == "failed"))
    stage.finish({})
    with pytest.raises(ValueError, match="none of the 1 predictions succeeded"):
        evaluate.run(workspace, CONFIG)
