"""One pair, one prompt: what tuning reads, both kinds of explainers ask for, and likelihoods are taken after."""

import asyncio

import numpy as np
import pytest

from serve.explainer import open_live_explainer
from tests.tiny_world import finish_tune, make_workspace, save_backbone, tune_config
from tests.unit.explainer import chat_templates
from xrec.config import PromptConfig
from xrec.config.serve import ExplainerReplicas
from xrec.explainer.batching import RowEncoder
from xrec.explainer.engine import Sampling
from xrec.explainer.explain import Explainer
from xrec.explainer.model import load_backbone
from xrec.explainer.pairs import explained_pairs
from xrec.explainer.prompt import PromptBuilder
from xrec.explainer.tuning_data import load_tuning_data
from xrec.serving.live import ExplanationTask
from xrec.serving.lookup import DatasetLookup
from xrec.serving.publishing import publish
from xrec.serving.queries import ItemQuery, UserQuery
from xrec.serving.snapshot import Snapshot


@pytest.fixture(scope="module", params=[None, "EMPTY_BLOCK", "DATED"])
def world(request, tmp_path_factory):
    """A published workspace whose profiles do not fit into the prompt, and its settings of tuning."""
    workspace, folder = make_workspace(tmp_path_factory.mktemp("same") / "w"), str(tmp_path_factory.mktemp("backbone"))
    save_backbone(folder)
    tokenizer = load_backbone(folder)[1]
    tokenizer.chat_template = getattr(chat_templates, request.param) if request.param else None
    tokenizer.save_pretrained(folder)
    prompt = {"system": "Be brief.", "max_profile_tokens": 60}
    # Room for some tokens of the profiles beside the chat format, and for all of none.
    bare = PromptBuilder(tokenizer, PromptConfig(**prompt)).explain("place 0", "w", "w")
    prompt["max_tokens"] = len(bare.token_ids) + 20
    config = tune_config(backbone=folder, prompt=prompt, max_length=250)
    settings = config.prompt.model_dump(mode="json")
    finish_tune(workspace, backbone=folder, prompt=settings, prompt_hash=PromptBuilder(tokenizer, config.prompt).hash)
    publish(workspace)
    return workspace, config


@pytest.fixture(scope="module")
def prompts(world) -> dict[tuple[int, int], list[int]]:
    """The prompt of each training pair, as tuning reads it."""
    workspace, config = world
    data = load_tuning_data(workspace, config, load_backbone(config.backbone)[1])
    assert data.dropped == {"train": 0, "val": 0, "warmup": 0}
    return {(row.user, row.item): row.token_ids[: -row.target_length].tolist() for row in data.train}


@pytest.fixture(scope="module")
def explainer(world):
    return Explainer.from_workspace(world[0], device="cpu")


def test_the_prompts_are_cut(world, prompts, explainer):
    whole = PromptBuilder(explainer.engine.tokenizer, world[1].prompt.model_copy(update={"max_tokens": 0}))
    texts, most = explainer.texts, world[1].prompt.max_tokens
    for user, item in prompts:
        profiles = texts.user_profiles[user], texts.item_profiles[item]
        assert len(whole.explain(texts.titles[item], *profiles).token_ids) > most
    # Two profiles of the same length may leave a token over.
    assert {len(ids) for ids in prompts.values()} <= {most - 1, most}


def test_the_batch_explainer_asks_for_what_was_tuned_on(prompts, explainer):
    for signal in ("true", "off"):
        requests = explainer.requests(list(prompts), signal)
        assert [request.token_ids for request in requests] == list(prompts.values())


def test_likelihoods_are_taken_after_the_same_prompts(prompts, explainer, monkeypatch):
    asked, own = [], explainer.engine.logprobs

    def watched(requests, targets):
        asked.extend(request.token_ids for request in requests)
        return own(requests, targets)

    monkeypatch.setattr(explainer.engine, "logprobs", watched)
    pairs = list(prompts)[:6]
    # Texts of very different lengths.
    texts = ["warm bread " * (1 + 3 * n) for n in range(6)]
    explainer.negative_log_likelihood(pairs, texts)
    assert asked == [prompts[pair] for pair in pairs]


def test_the_server_asks_for_what_was_tuned_on(world, prompts):
    workspace, _ = world
    live = open_live_explainer(workspace.uri, ExplainerReplicas(threads=1, batch_size=3))
    users = [UserQuery(user_id=f"u{user}") for user, _ in prompts]
    items = [ItemQuery(item_id=f"i{item}") for _, item in prompts]
    inputs = DatasetLookup(Snapshot.open(workspace)).resolve(users, items, "true")
    tasks = [ExplanationTask(one, Sampling(max_new_tokens=2)) for one in inputs]
    try:
        assert [live._request(task).token_ids for task in tasks] == list(prompts.values())
        answers = asyncio.run(live.explain(tasks[:3]))
        assert [answer.prompt_tokens for answer in answers] == [len(ids) for ids in list(prompts.values())[:3]]
    finally:
        live.engine.close()


def test_the_target_changes_no_prompt(world, prompts, explainer):
    encoder, texts = RowEncoder(explainer.prompts, 10_000), explainer.texts
    generator = np.random.default_rng(0)
    for pair in explained_pairs(world[0], "train").to_pylist():
        user, item = pair["user"], pair["item"]
        target = "warm bread " * int(generator.integers(1, 60))
        profiles = texts.user_profiles[user], texts.item_profiles[item]
        row = encoder.explanation(user, item, texts.titles[item], *profiles, target)
        assert row is not None and row.token_ids[: -row.target_length].tolist() == prompts[user, item]
