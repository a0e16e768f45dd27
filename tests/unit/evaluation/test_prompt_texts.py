"""What prompts say, against the prompts that the explainer builds."""

import pytest

from tests.random_models import train_tokenizer
from tests.unit.evaluation.conftest import explained_workspace
from xrec.config import PromptConfig
from xrec.evaluation.prompt_texts import PromptTexts
from xrec.explainer.pairs import PairTexts
from xrec.explainer.prompt import PromptBuilder

TEXTS = PairTexts(["Red Door"], {0: "likes jazz"}, {0: "sells tea"})


@pytest.mark.parametrize("profiles", [True, False, "item", "user"])
@pytest.mark.parametrize("titles", [True, False])
@pytest.mark.parametrize("order", ["paper", "user_first"])
def test_quoted_and_fixed_texts_are_those_of_the_prompt(profiles, titles, order):
    config = PromptConfig(profiles=profiles, titles=titles, order=order)
    tokenizer = train_tokenizer(["likes jazz sells tea Red Door explain why"] * 3, 320)
    prompt = PromptBuilder(tokenizer, config).explain("Red Door", "likes jazz", "sells tea")
    text = tokenizer.decode(prompt.token_ids)
    found = PromptTexts(config, TEXTS)
    assert found.quoted(0, 0) == [t for t in ("Red Door", "likes jazz", "sells tea") if t in text]
    assert len(found.fields) == len(found.quoted(0, 0))
    assert config.system in found.fixed
    # Labels stand in every prompt whose field is there.
    labels = {"item name:": titles, "user profile:": profiles in (True, "user"), "user record:": True}
    assert all(label in found.fixed and (label in text) == there for label, there in labels.items())


def test_absent_texts_are_not_quoted():
    assert PromptTexts(PromptConfig(), PairTexts(["", "B"], {}, {1: "p"})).quoted(7, 0) == []
    assert PromptTexts(PromptConfig(), PairTexts(["", "B"], {}, {1: "p"})).quoted(7, 1) == ["B", "p"]


def test_settings_are_the_adapters(explained):
    found = PromptTexts.load(explained)
    assert found is not None and found.config == PromptConfig(profiles="item")
    assert found.fields == ["title", "item_profile"]
    assert len(found.texts.item_profiles) == 40


def test_another_systems_prompt_is_unknown(tmp_path):
    workspace = explained_workspace(tmp_path / "w")
    variant = workspace.variant("elsewhere", 0, ("explain", "evaluate"))
    stage = variant.stage("explain", {}, inputs=["preprocess"])
    stage.write_table("predictions", workspace.read_table("explain", "predictions"))
    stage.finish({})
    assert PromptTexts.load(variant) is None
