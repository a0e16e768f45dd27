"""Workspaces for the evaluation: a small sample world, explained by a writer of known accuracy."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_jobs import preprocess, sample
from xrec import tables
from xrec.config import PreprocessConfig, PromptConfig, SampleConfig
from xrec.embeddings import Embeddings
from xrec.evaluation import scoring, summary
from xrec.evaluation.feature_matching import FeatureMatcher, FeatureScorer
from xrec.evaluation.length import LengthScorer
from xrec.evaluation.likelihood import Likelihood
from xrec.evaluation.probe import WordProbe
from xrec.evaluation.prompt_copies import PromptCopyScorer
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.metric_logging import MetricLogger
from xrec.workspace import Workspace

ACCURACY = {"true": 0.9, "shuffled": 0.2}


def explained_workspace(folder) -> Workspace:
    """The stages data to explain, finished. Under `true` nine in ten predictions name the right feature."""
    workspace = Workspace(folder)
    sample.run(workspace, SampleConfig(users=60, items=40, interactions_per_user=8, features=6))
    preprocess.run(workspace, PreprocessConfig())
    _finish_embed(workspace)
    workspace.stage("backbone", {"pretrained": "smollm2"}).finish({"parameters": 134_515_008, "layers": 30})
    _finish_tune(workspace)
    stage = workspace.stage("explain", {"split": "test", "seed": 0}, inputs=["preprocess", "embed", "tune"])
    stage.write_table("predictions", predictions_of(workspace.read_text_table("explanations")))
    stage.finish({})
    return workspace


def predictions_of(explanations: pa.Table) -> pa.Table:
    """Predictions of the test pairs under `true` and `shuffled`, one of them failed, one empty, one cut off."""
    generator = np.random.default_rng(0)
    features = sorted(set(explanations["feature"].to_pylist()))
    test = [row for row in explanations.to_pylist() if row["split"] == "test"]
    rows = []
    for signal, accuracy in ACCURACY.items():
        for number, pair in enumerate(test):
            right = number < round(accuracy * len(test))
            feature = pair["feature"] if right else generator.choice([f for f in features if f != pair["feature"]])
            rows.append(
                {
                    "user": pair["user"],
                    "item": pair["item"],
                    "signal": signal,
                    "explanation": f"The user would enjoy this place for its {feature}.",
                    "finish_reason": "sentence",
                    "tokens": 12,
                    "latency": 0.1,
                    "adapter_hash": "0",
                    "status": "ok",
                }
            )
    rows[-1] |= {"status": "failed", "error": "engine lost", "explanation": ""}
    rows[-2] |= {"explanation": ""}
    rows[-3] |= {"finish_reason": "length"}
    return tables.from_rows("predictions", rows)


def summary_of(workspace: Workspace) -> dict:
    """A summary whose likelihoods are drawn and whose BERTScore is left out; the other figures are the predictions'."""
    explanations = workspace.read_text_table("explanations")
    predictions = workspace.read_table("explain", "predictions")
    joined = scoring.join_references(predictions, explanations)
    matcher = FeatureMatcher(set(explanations["feature"].to_pylist()))
    prompts = PromptTexts.load(workspace)
    assert prompts is not None
    scorers = {"length": LengthScorer(), "copies": PromptCopyScorer(prompts)}
    scores, _ = scoring.score_rows(joined, scorers | {"feature": FeatureScorer(matcher.vocabulary)})
    generator = np.random.default_rng(1)
    tokens = generator.integers(8, 30, 48)
    own = generator.normal(2.0, 0.3, 48) * tokens
    shifts = {"true": 0.0, "shuffled": 0.2, "other_user": 0.05, "off": 0.3}
    nll = {signal: own + shift * (tokens + generator.normal(0, 10, 48)) for signal, shift in shifts.items()}
    likelihood = Likelihood(nll, tokens)
    probe = [{"word": w, "share": 0.2, "auc": a, "spread": 0.03} for w, a in (("sushi", 0.91), ("jazz", 0.62))]
    return {
        "split": "test",
        "counts": {
            "true": {"ok": 48, "failed": 0, "without_reference": 0, "empty": 0},
            "shuffled": {"ok": 47, "failed": 1, "without_reference": 0, "empty": 1},
        },
        "resamples": 200,
        "scorers": {},
        "counterfactual": None,
        "leakage": None,
        "metrics": summary.metric_summary(scores, scoring.corpus_metrics(joined, matcher), 200, 0),
        "feature": summary.feature_summary(joined, matcher.vocabulary, prompts),
        "likelihood": summary.likelihood_summary(likelihood, 200, 0),
        "probe": {"item": [WordProbe(**p).__dict__ for p in probe], "user": []},
    }


@pytest.fixture(scope="session")
def explained(tmp_path_factory) -> Workspace:
    """Shared: tests only read it."""
    return explained_workspace(tmp_path_factory.mktemp("explained") / "world")


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory) -> Workspace:
    """Shared: tests only read it."""
    workspace = explained_workspace(tmp_path_factory.mktemp("evaluated") / "world")
    stage = workspace.stage("evaluate", {}, inputs=["explain"])
    found = summary_of(workspace)
    stage.write_json("summary.json", found)
    stage.finish(summary.flat_metrics(found))
    return workspace


def _finish_embed(workspace: Workspace) -> None:
    stage = workspace.stage("embed", {"layers": 2}, inputs=["preprocess"])
    with MetricLogger(workspace, "embed") as log:
        for epoch in range(20):
            log.log(epoch, loss=0.7 * 0.9**epoch, **{"val/recall@20": 0.3 - 0.2 * 0.8**epoch})
    generator = torch.Generator().manual_seed(0)
    embeddings = Embeddings(torch.randn(3, 60, 8, generator=generator), torch.randn(3, 40, 8, generator=generator))
    embeddings.save(workspace.path("embed", "embeddings.safetensors"))
    stage.finish({"val/recall@20": 0.29, "test/recall@20": 0.27})


def _finish_tune(workspace: Workspace) -> None:
    stage = workspace.stage("tune", {"backbone": None}, inputs=["preprocess", "backbone"])
    with MetricLogger(workspace, "tune") as log:
        for step in range(10):
            log.log(step, **dict.fromkeys(("train/loss", "val/nll_per_token", "learning_rate"), 3.0 - 0.1 * step))
    stage.write_json("adapter/config.json", {"prompt": PromptConfig(profiles="item").model_dump(mode="json")})
    stage.finish({})
