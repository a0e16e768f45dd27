"""Which scorers the settings open, and on what."""

import pytest

from tests.unit.evaluation.conftest import explained_workspace
from xrec.config import EvaluateConfig
from xrec.evaluation.scorer_choice import REFERENCED, feature_matcher, open_scorers
from xrec.evaluation.scorers import Scorer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return explained_workspace(tmp_path_factory.mktemp("choice") / "w")


def test_the_default_opens_every_offline_family_and_each_fills_its_columns(workspace):
    scorers: dict[str, Scorer] = open_scorers(workspace, EvaluateConfig(), "cpu", referenced=True)
    assert list(scorers) == list(EvaluateConfig().metrics)
    predictions = workspace.read_table("explain", "predictions").slice(0, 3).to_pylist()
    rows = {name: [row[name] for row in predictions] for name in ("user", "item", "signal", "explanation")}
    rows |= {"finish_reason": ["stop"] * 3, "reference": ["A fine place.", None, "Good."], "feature": [None] * 3}
    for family, scorer in scorers.items():
        found = scorer.score(rows)
        assert set(found) == set(scorer.columns), family
        assert all(len(values) == 3 for values in found.values()), family


def test_without_references_only_those_that_need_none_are_opened(workspace):
    scorers = open_scorers(workspace, EvaluateConfig(), "cpu", referenced=False)
    assert set(scorers) == set(EvaluateConfig().metrics) - set(REFERENCED)


def test_copies_of_an_unknown_prompt_are_not_looked_for(workspace):
    variant = workspace.variant("elsewhere", 0, ("explain", "evaluate"))
    stage = variant.stage("explain", {}, inputs=["preprocess"])
    stage.write_table("predictions", workspace.read_table("explain", "predictions"))
    stage.finish({})
    scorers = open_scorers(variant, EvaluateConfig(metrics=("length", "prompt_copies")), "cpu", referenced=True)
    assert list(scorers) == ["length"]


def test_a_model_that_cannot_be_loaded_is_named_by_its_setting(workspace):
    config = EvaluateConfig.model_validate({"metrics": ["bleurt"], "bleurt": {"model": "/no/such/model"}})
    with pytest.raises(ValueError, match=r"evaluate\.bleurt\.model = '/no/such/model'"):
        open_scorers(workspace, config, "cpu", referenced=True)


def test_a_variants_judges_share_their_answers_with_the_run(workspace, monkeypatch):
    given = []
    monkeypatch.setattr("xrec.evaluation.gpt_score.GptScorer", lambda config, cache: given.append(cache))
    variant = workspace.variant("other", 0, ("explain", "evaluate"))
    config = EvaluateConfig.model_validate({"metrics": ["gpt_score"]})
    open_scorers(variant, config, "cpu", referenced=True)
    assert [cache.uri for cache in given] == [workspace.uri]


def test_features_are_those_of_the_explanations(workspace):
    matcher = feature_matcher(workspace)
    features = set(workspace.read_text_table("explanations")["feature"].to_pylist())
    assert matcher is not None and set(matcher.vocabulary) == features
