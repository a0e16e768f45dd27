"""Scores tables against the metric functions called by hand, and the joins on made-up tables."""

import numpy as np
import pyarrow as pa
import pytest

from xrec import tables
from xrec.evaluation import scoring
from xrec.evaluation.bert_score import BertScorer, BertScoreScorer
from xrec.evaluation.feature_matching import FeatureMatcher, FeatureScorer
from xrec.evaluation.length import LengthScorer
from xrec.evaluation.likelihood import Likelihood

_PROVENANCE = {"model": "m", "prompt_hash": "p", "tokens_in": 0, "tokens_out": 0}


def prediction(user, item, text, signal="true", status="ok", finish_reason="sentence"):
    return {
        "user": user,
        "item": item,
        "signal": signal,
        "explanation": text,
        "finish_reason": finish_reason,
        "tokens": 1,
        "latency": 0.0,
        "adapter_hash": "",
        "status": status,
    }


def explanation(user, item, text, feature=None, status="ok"):
    return {
        "user": user,
        "item": item,
        "split": "test",
        "explanation": text,
        "feature": feature,
        "status": status,
        **_PROVENANCE,
    }


@pytest.fixture
def joined():
    predictions = tables.from_rows(
        "predictions",
        [
            prediction(1, 0, "live jazz and more"),
            prediction(0, 2, "cold beer"),
            prediction(0, 1, "never seen", status="failed"),
            prediction(0, 3, "", finish_reason="length"),
            prediction(0, 2, "live jazz", signal="shuffled"),
        ],
    )
    explanations = tables.from_rows(
        "explanations",
        [
            explanation(0, 2, "They like cold beer.", "cold beer"),
            explanation(1, 0, "For the live jazz.", "live jazz"),
            explanation(0, 3, "broken", status="failed"),
        ],
    )
    return scoring.join_references(predictions, explanations)


def test_join_keeps_successes_in_order_and_nulls_missing_references(joined):
    assert joined.select(["user", "item", "signal"]).to_pylist() == [
        {"user": 0, "item": 2, "signal": "shuffled"},
        {"user": 0, "item": 2, "signal": "true"},
        {"user": 0, "item": 3, "signal": "true"},
        {"user": 1, "item": 0, "signal": "true"},
    ]
    assert joined["reference"].to_pylist() == ["They like cold beer."] * 2 + [None, "For the live jazz."]


def test_join_without_explanations(joined):
    predictions = tables.from_rows("predictions", [prediction(0, 0, "a")])
    found = scoring.join_references(predictions, None)
    assert found["reference"].to_pylist() == [None]
    assert found.schema.names == joined.schema.names


def test_scores_equal_the_metrics_by_hand(joined, monkeypatch):
    expected = BertScorer().score(["live jazz", "cold beer"], ["They like cold beer."] * 2).f1
    features = FeatureScorer(["live jazz", "cold beer"])
    scorers = {"length": LengthScorer(), "bert_score": BertScoreScorer(), "feature": features}
    monkeypatch.setattr("xrec.evaluation.scoring._ROWS_AT_ONCE", 3)
    done = []
    scores, seconds = scoring.score_rows(joined, scorers, done.append)
    assert done == [3, 1]
    assert set(seconds) == set(scorers)
    assert scorers["bert_score"].facts()["empty"] == 0  # the empty prediction has no reference
    assert scores["words"].to_pylist() == [2, 2, 0, 4]
    assert scores["cut_off"].to_pylist() == [0, 0, 1, 0]
    assert scores["feature_accuracy"].to_pylist() == [0, 1, None, 1]
    assert scores["feature_matched"].to_pylist() == [0, 1, None, 1]
    np.testing.assert_allclose(scores["bert_score_f1"].to_pylist()[:2], expected, atol=1e-5)
    assert scores["bert_score_f1"].to_pylist()[2] is None
    assert tables.validate("scores", scores).num_rows == 4


def test_corpus_metrics_by_signal(joined):
    found = scoring.corpus_metrics(joined, FeatureMatcher(["live jazz", "cold beer", "big screens"]))
    ratios = dict.fromkeys(("usr", "usr_user", "usr_item", "distinct_1", "distinct_2"), 1.0)
    assert found["shuffled"].items() >= ratios.items()
    assert found["true"].items() >= ratios.items()
    assert found["true"]["feature/coverage"] == pytest.approx(2 / 3)
    assert found["true"]["feature/overlap"] == 0.0
    # One text alone has no couple.
    assert "feature/overlap" not in found["shuffled"]
    assert found["true"]["bleu"] > found["shuffled"]["bleu"]
    assert set(found) == {"true", "shuffled"}


def test_likelihood_joins_rows_and_adds_pairs_without_prediction(joined):
    scores, _ = scoring.score_rows(joined, {"length": LengthScorer()})
    likelihood = Likelihood({"true": np.array([3.0, 4.0]), "off": np.array([5.0, 6.0])}, np.array([2, 3]))
    rows = scoring.add_likelihood(scores, [(0, 2), (7, 7)], likelihood).to_pylist()
    found = {(r["user"], r["item"], r["signal"]): (r["words"], r["nll"], r["nll_tokens"]) for r in rows}
    assert found[0, 2, "true"] == (2, 3.0, 2)
    assert found[0, 2, "off"] == (None, 5.0, 2)
    assert found[7, 7, "true"] == (None, 4.0, 3)
    assert found[0, 2, "shuffled"] == (2, None, None)
    assert len(rows) == 4 + 3
    assert isinstance(tables.validate("scores", pa.Table.from_pylist(rows)), pa.Table)
