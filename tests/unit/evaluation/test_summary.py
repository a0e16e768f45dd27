"""Summaries against sums over rows written out here."""

import numpy as np
import pyarrow as pa
import pytest

from xrec.config import PromptConfig
from xrec.evaluation import scoring, summary
from xrec.evaluation.feature_matching import FeatureScorer
from xrec.evaluation.likelihood import Likelihood
from xrec.evaluation.metrics import METRICS
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.explainer.pairs import PairTexts


@pytest.fixture
def scores():
    rows = [
        # user, item, signal, feature_accuracy, cut_off
        (0, 0, "true", 1.0, 0.0),
        (0, 1, "true", 1.0, 0.0),
        (1, 0, "true", 0.0, 1.0),
        (2, 2, "true", None, 0.0),
        (1, 0, "shuffled", 0.0, 1.0),
        (0, 0, "shuffled", 0.0, 1.0),
        (5, 5, "shuffled", 1.0, 1.0),
    ]
    names = ["user", "item", "signal", "feature_accuracy", "cut_off"]
    return pa.table({n: [row[k] for row in rows] for k, n in enumerate(names)})


CORPUS = {"true": {"usr": 1.0}, "shuffled": {"usr": 0.5}}


def test_means_and_paired_differences_by_hand(scores):
    found = summary.metric_summary(scores, CORPUS, 100, 0)
    accuracy = found["feature/accuracy"]
    assert (accuracy["true"]["value"], accuracy["true"]["rows"]) == (2 / 3, 3)
    assert (accuracy["shuffled"]["value"], accuracy["shuffled"]["rows"]) == (1 / 3, 3)
    # Pairs (0, 0) and (1, 0) are under both signals: gains 1 and 0.
    assert (accuracy["difference"]["shuffled"]["value"], accuracy["difference"]["shuffled"]["rows"]) == (0.5, 2)
    # Fewer cut-offs are better, so the gain is the control's share minus the own one: 1 - 1 and 1 - 0.
    assert found["cut_off"]["difference"]["shuffled"]["value"] == 0.5
    assert found["usr"]["shuffled"] == {"value": 0.5, "rows": 3}
    assert set(found) == {"feature/accuracy", "cut_off", "usr"}


def test_one_signal_alone_has_no_difference(scores):
    own = scores.filter(pa.compute.equal(scores["signal"], "true"))
    assert summary.metric_summary(own, {"true": {"usr": 1.0}}, 50, 0)["feature/accuracy"]["difference"] == {}


def test_likelihood_figures_and_flat_names():
    likelihood = Likelihood({"true": np.array([2.0, 4.0]), "shuffled": np.array([3.0, 6.0])}, np.array([2, 4]))
    found = summary.likelihood_summary(likelihood, 100, 0)
    assert found["signals"]["true"]["value"] == 1.0
    assert found["signals"]["true"]["perplexity"] == pytest.approx(np.e)
    assert found["difference"]["shuffled"]["value"] == 0.5
    flat = summary.flat_metrics(
        {
            "split": "val",
            "counts": {"true": {"ok": 2, "failed": 1}},
            "metrics": {},
            "likelihood": found,
            "probe": {"item": [{"auc": 0.5}, {"auc": 1.0}], "user": []},
        }
    )
    assert flat["val/nll_per_token"] == 1.0
    assert flat["val/nll_per_token/shuffled"] == 1.5
    assert flat["val/nll_difference"] == 0.5
    assert flat["val/nll_difference/low"] <= 0.5 <= flat["val/nll_difference/high"]
    assert (flat["val/predictions"], flat["val/failed"], flat["probe/item/mean_auc"]) == (2, 1, 0.75)


def test_a_run_with_known_accuracy(explained):
    """The fixture's writer names the right feature in nine of ten pairs, and in two of ten when shuffled."""
    joined = scoring.join_references(
        explained.read_table("explain", "predictions"), explained.read_text_table("explanations")
    )
    vocabulary = sorted({f for f in joined["feature"].to_pylist() if f})
    scores, _ = scoring.score_rows(joined, {"feature": FeatureScorer(vocabulary)})
    found = summary.metric_summary(scores, scoring.corpus_metrics(joined), 500, 0)["feature/accuracy"]
    assert found["true"]["value"] == pytest.approx(0.9, abs=0.02)
    assert found["shuffled"]["value"] == pytest.approx(0.2, abs=0.02)
    assert found["difference"]["shuffled"]["low"] > 0.5
    levels = summary.feature_summary(joined, vocabulary)
    assert 1 / 6 <= levels["chance"] <= levels["majority"] < 0.5


def test_chance_given_the_prompts_texts(explained):
    """Item profiles of the sample world name two features each, of which the pair's is one or not."""
    explanations = explained.read_text_table("explanations")
    joined = scoring.join_references(explained.read_table("explain", "predictions"), explanations)
    vocabulary = sorted(set(explanations["feature"].to_pylist()))
    prompts = PromptTexts.load(explained)
    found = summary.feature_summary(joined, vocabulary, prompts)
    profiles = {row["item"]: row["profile"] for row in explained.read_text_table("item_profiles").to_pylist()}
    expected = []
    for row in joined.filter(pa.compute.equal(joined["signal"], "true")).to_pylist():
        named = [f for f in vocabulary if f in profiles[row["item"]].lower()]
        expected.append((row["feature"] in named) / len(named))
    assert found["prompt_chance"] == pytest.approx(np.mean(expected))
    assert found["prompt_chance"] > found["chance"]
    assert found["prompt_fields"] == ["title", "item_profile"]
    flat = summary.flat_metrics({"split": "test", "counts": {}, "metrics": {}, "feature": found})
    assert flat["test/feature/prompt_chance"] == found["prompt_chance"]


def test_without_a_known_prompt_there_is_no_chance_given_it(explained):
    joined = scoring.join_references(
        explained.read_table("explain", "predictions"), explained.read_text_table("explanations")
    )
    bare = PromptTexts(PromptConfig(profiles=False, titles=False), PairTexts([]))
    for prompts in (None, bare):
        found = summary.feature_summary(joined, ["a feature"], prompts)
        assert found["prompt_chance"] is None and found["prompt_fields"] == []
        flat = summary.flat_metrics({"split": "test", "counts": {}, "metrics": {}, "feature": found})
        assert set(flat) == {"test/feature/majority", "test/feature/chance"}


def test_metric_keys_are_unique():
    assert len({m.key for m in METRICS}) == len(METRICS)
    assert {m.better for m in METRICS} == {"higher", "lower", "none"}
