"""A user's own engine: named in the settings, refused with a remedy, used without the backbone's weights."""

import asyncio
import shutil

import pytest
import torch
import yaml
from typer.testing import CliRunner

from xrec.cli import app
from xrec.config import ConfigError, ExplainCompute, ExplainConfig
from xrec.explainer.adapter import AdapterSpec
from xrec.explainer.custom_engine import EngineSetup
from xrec.explainer.engine import Result
from xrec.explainer.engine_choice import check_engine, choose_engine, open_engine
from xrec.explainer.explain import Explainer
from xrec.workspace import Workspace, WorkspaceError

NAME = f"{__name__}:CountingEngine"
SPEC = AdapterSpec(embedding_dim=8, hidden_size=32, experts=2)
A_NUMBER = 5


class CountingEngine:
    """Says how many tokens a prompt has, and what it was set up with."""

    def __init__(self, setup: EngineSetup):
        self.tokenizer, self.setup = setup.tokenizer, setup

    def generate(self, requests):
        greeting = self.setup.config.compute.engine_arguments.get("greeting", "It has")
        return [Result(f"{greeting} {len(r.token_ids)}.", r.token_ids[:3], "stop") for r in requests]

    async def stream(self, request):
        yield self.generate([request])[0].text

    def logprobs(self, requests, targets):
        return [torch.zeros(len(target)) for target in targets]

    def close(self):
        self.tokenizer = None


class Mute:
    def __init__(self, setup):
        self.tokenizer = setup.tokenizer

    def generate(self, requests): ...

    def close(self): ...


def mute(setup):
    return Mute(setup)


def without_tokenizer(setup):
    engine = CountingEngine(setup)
    del engine.tokenizer
    return engine


@pytest.fixture
def workspace(tuned_workspace, tmp_path):
    """One whose backbone has no weights: whoever loads them fails."""
    copy = Workspace(shutil.copytree(tuned_workspace, tmp_path / "w"))
    copy.remove("backbone", "model", "model.safetensors")
    return copy


@pytest.mark.parametrize("name", ["transformers", "vllm:", ":Engine", "my-package:Engine", "a:b:c", "a/b.py:E", ""])
def test_a_name_of_no_engine_is_refused(name):
    with pytest.raises(ValueError, match=r"is none; choose auto, vllm or hf, or name your own as module:callable"):
        ExplainConfig(engine=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.engines:Engine", r"'no_such_package.engines' cannot be imported \(No module.*PYTHONPATH"),
        (f"{__name__}:NoSuchEngine", r"has no 'NoSuchEngine'; name a class or function"),
        (f"{__name__}:A_NUMBER", r"of type int, which cannot be called"),
        (f"{__name__}:Mute", r"lacks the method stream and logprobs; an engine has generate, stream"),
    ],
)
def test_what_is_no_engine_is_refused_before_anything_starts(workspace, name, message):
    with pytest.raises(ConfigError, match=message):
        check_engine(workspace, ExplainConfig(engine=name), SPEC)


def test_what_a_function_returns_is_looked_at_when_it_has(workspace):
    config = ExplainConfig(engine=f"{__name__}:mute")
    check_engine(workspace, config, SPEC)
    with pytest.raises(ConfigError, match="lacks the method stream and logprobs"):
        open_engine(workspace, config, SPEC, "cpu")
    with pytest.raises(ConfigError, match="has no attribute tokenizer"):
        open_engine(workspace, ExplainConfig(engine=f"{__name__}:without_tokenizer"), SPEC, "cpu")


def test_it_runs_in_one_process(workspace):
    config = ExplainConfig(engine=NAME, compute=ExplainCompute(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match=r"tensor_parallel_size = 2 .* the engine is .*CountingEngine"):
        check_engine(workspace, config, SPEC)


def test_another_backbone_than_the_adapters_is_refused(workspace):
    spec = AdapterSpec(embedding_dim=8, hidden_size=32, experts=2, backbone_hash="f" * 64)
    with pytest.raises(WorkspaceError, match="tuned for the backbone"):
        open_engine(workspace, ExplainConfig(engine=NAME), spec, "cpu")


def test_explanations_come_from_it_and_need_no_weights(workspace):
    arguments = ExplainCompute(engine_arguments={"greeting": "Counted:"})
    config = ExplainConfig(engine=NAME, compute=arguments)
    assert choose_engine(workspace, config, SPEC) == NAME
    check_engine(workspace, config, SPEC)
    explainer = Explainer.from_workspace(workspace, config, "cpu")
    rows = explainer.explain([(0, 1), (2, 3)])
    requests = explainer.requests([(0, 1), (2, 3)])
    assert [row["explanation"] for row in rows] == [f"Counted: {len(r.token_ids)}." for r in requests]
    assert [row["status"] for row in rows] == ["ok", "ok"] and rows[0]["tokens"] == 3
    values, counts = explainer.negative_log_likelihood([(0, 1)], ["fresh bread"])
    assert values.tolist() == [0.0] and counts[0] > 1

    async def streamed():
        return [piece async for piece in explainer.engine.stream(requests[0])]

    assert asyncio.run(streamed()) == [rows[0]["explanation"]]
    explainer.close()
    assert explainer.engine.tokenizer is None


def test_xrec_explain_of_one_pair_uses_it(workspace, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"explain": {"engine": NAME}}))
    arguments = ["explain", "-w", workspace.uri, "--config", str(config), "--user", "u0", "--item", "i1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("It has ")


def test_its_name_is_part_of_the_stages_identity():
    assert ExplainConfig(engine=NAME).identity()["engine"] == NAME
    changed = ExplainConfig(engine=NAME, compute=ExplainCompute(engine_arguments={"url": "http://localhost:8000"}))
    assert changed.identity() == ExplainConfig(engine=NAME).identity()
