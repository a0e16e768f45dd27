"""The injecting vLLM engine against the Hugging Face engine: families, features of vLLM, injection modes."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vllm.tiny_backbones import GREEDY, PromptMaker, distinct, quantise
from xrec.explainer.engine import Request
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.model import load_backbone
from xrec.explainer.vllm_plugin import FAMILIES

pytestmark = pytest.mark.timeout(600)
CLOSE = 1e-4
# In the mean: rounded to int8, an input that lies between two levels may fall to either, and these layers amplify it.
CLOSE_QUANTISED = 0.1
CHUNK = 64
# A family, how vectors enter, and vLLM's own arguments.
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "split-prompts": ("llama-multi-head", {}, {"max_num_batched_tokens": CHUNK, "enable_prefix_caching": False}),
    "tensor-parallel": ("mistral", {}, {"tensor_parallel_size": 2}),
    "compiled": ("qwen2", {}, {"enforce_eager": False}),
    # Eager, vLLM's own models fail on a CPU, too: later stages need buffers that only the compiler's warm-up makes.
    "pipeline-parallel": ("llama-grouped-query", {}, {"pipeline_parallel_size": 2, "enforce_eager": False}),
    "without-replacement": ("qwen3", {"input_replacement": False}, {}),
    "without-injection": ("llama-grouped-query", {"injection": "none"}, {}),
}
# Each takes half a minute or more to start, and `.ci/run` has its limit.
SLOW = ("pipeline-parallel", "without-injection")


@dataclass
class Pair:
    name: str
    vllm: Any
    reference: HuggingFaceEngine
    maker: PromptMaker


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CONFIGURATIONS],
)
def pair(request, tiny_backbone, start_engine):
    family, mode, arguments = CONFIGURATIONS[request.param]
    folder = tiny_backbone(family)
    reference = HuggingFaceEngine(*load_backbone(folder), **mode)
    engine = start_engine(folder, **mode, **arguments)
    return Pair(request.param, engine, reference, PromptMaker(reference.tokenizer))


def compare(pair: Pair, requests: list[Request]) -> None:
    """Token for token, and the likelihoods of those tokens."""
    expected = pair.reference.generate(requests)
    assert pair.vllm.generate(requests) == expected
    targets = [result.token_ids for result in expected]
    likelihoods = pair.vllm.logprobs(requests, targets)
    for found, wanted in zip(likelihoods, pair.reference.logprobs(requests, targets), strict=True):
        torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=0)


def test_tokens_and_logprobs_equal_the_hugging_face_engine(pair):
    maker = pair.maker
    sides = [maker.request(user_vector=None), maker.request(item_vector=None)]
    off = maker.request(user_vector=None, item_vector=None)
    plain = Request(maker.prompt(20).token_ids[:10], sampling=GREEDY)
    compare(pair, [*maker.requests(9), *sides, off, plain])


def test_texts_are_the_vectors_own(pair):
    """The same text with other vectors, twice, so that what the first round cached is there for the second."""
    prompt, (user, other) = pair.maker.prompt(30), (pair.maker.vector() for _ in range(2))
    requests = [
        pair.maker.request(prompt, user_vector=one, item_vector=two) for one in (user, other) for two in (user, other)
    ]
    expected = pair.reference.generate(requests)
    assert distinct(expected) == len(requests)
    before = pair.vllm.cached_tokens
    for _ in range(2):
        assert pair.vllm.generate(requests) == expected
    assert (pair.vllm.cached_tokens > before) == (pair.name != "split-prompts")


def test_configurations_are_what_they_are_called(pair):
    """That vLLM took the arguments, and did what they say."""
    config = pair.vllm._llm.vllm_config
    assert config.scheduler_config.max_num_batched_tokens == CHUNK or pair.name != "split-prompts"
    assert config.parallel_config.world_size == (2 if pair.name.endswith("parallel") else 1)
    compiled = list(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.so"))
    assert bool(compiled) == (pair.name in ("compiled", "pipeline-parallel"))
    (architecture,) = config.model_config.architectures
    assert architecture == FAMILIES[pair.reference.model.backbone.config.architectures[0]]


@pytest.mark.parametrize("pair", ["split-prompts"], indirect=True)
def test_prompts_split_anywhere_about_their_vectors(pair):
    """Boundaries at multiples of 64 tokens: before, between, after and next to the reserved positions."""
    maker, requests = pair.maker, []
    for user, item in ((5, 10), (62, 63), (63, 64), (64, 65), (30, 100), (70, 140), (127, 128), (0, 191), (128, 129)):
        ids = maker.builder._plain(maker.text(192))[:192]
        assert len(ids) == 192 and pair.vllm.reserved_id not in ids
        ids[user] = ids[item] = pair.vllm.reserved_id
        requests.append(Request(ids, [user], [item], maker.vector(), maker.vector(), GREEDY))
    for request in requests:
        compare(pair, [request])
    compare(pair, requests)


def test_quantised_weights_are_run_as_they_are(tiny_backbone, start_engine):
    backbone, tokenizer = load_backbone(tiny_backbone("llama-grouped-query"))
    quantise(backbone)
    reference = HuggingFaceEngine(backbone, tokenizer)
    engine = start_engine(tiny_backbone("llama-grouped-query", quantised=True))
    maker = PromptMaker(tokenizer)
    assert engine._llm.model_config.quantization == "compressed-tensors"
    requests = maker.requests(8)
    targets = [result.token_ids for result in reference.generate(requests)]

    def mean_difference(likelihoods: list[torch.Tensor]) -> float:
        return float((torch.cat(likelihoods) - torch.cat(wanted)).abs().mean())

    wanted = reference.logprobs(requests, targets)
    assert mean_difference(engine.logprobs(requests, targets)) < CLOSE_QUANTISED
    # What such a tolerance must not hide: other vectors.
    for request in requests:
        request.user_vector = maker.vector()
    assert mean_difference(engine.logprobs(requests, targets)) > 10 * CLOSE_QUANTISED
