"""A pretrained model in the injecting vLLM engine: SmolLM2 writes what it writes in the Hugging Face engine."""

import dataclasses

import pytest
import torch

from tests.vllm.conftest import ENVIRONMENT
from xrec.config import PromptConfig, SampleConfig
from xrec.data.sample import make_world, world_tables
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.model import load_backbone
from xrec.explainer.prompt import PromptBuilder

pytestmark = pytest.mark.timeout(600)
PROMPTS, CLOSE = 32, 1e-4
# Likelihoods take a second pass over the prompts in either engine, and `.ci/run` has its limit.
WITH_LIKELIHOODS = 12
# Of the embeddings' root mean square: as large as vectors of an adapter that is about to be tuned.
SCALE = 0.1
# Longer than any generation, so that every token is compared.
GREEDY = Sampling(max_words=1000, max_new_tokens=12)


@pytest.fixture(scope="module")
def reference(smollm2) -> HuggingFaceEngine:
    return HuggingFaceEngine(*load_backbone(smollm2))


@pytest.fixture(scope="module")
def engine(smollm2):
    """With the engine's own defaults for memory and length."""
    from xrec.explainer.vllm_engine import VLLMEngine

    with pytest.MonkeyPatch.context() as patch:
        for name in ENVIRONMENT:
            patch.delenv(name, raising=False)
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        with VLLMEngine(smollm2, enforce_eager=True) as engine:
            yield engine


@pytest.fixture(scope="module")
def requests(reference) -> list[Request]:
    """Pairs of the sample world, each with vectors of its own; prompts in SmolLM2's chat format."""
    world = world_tables(make_world(SampleConfig(users=PROMPTS, items=PROMPTS, interactions_per_user=4, seed=3)))
    titles = world["items"]["title"].to_pylist()
    users = world["source_user_profiles"]["profile"].to_pylist()
    items = world["source_item_profiles"]["profile"].to_pylist()
    builder = PromptBuilder(reference.tokenizer, PromptConfig())
    backbone = reference.model.backbone
    size = SCALE * float(backbone.get_input_embeddings().weight.square().mean().sqrt())
    generator = torch.Generator().manual_seed(0)
    made = []
    for title, user, item in zip(titles, users, items, strict=True):
        prompt = builder.explain(title, user, item)
        vectors = (size * torch.randn(backbone.config.hidden_size, generator=generator) for _ in range(2))
        made.append(Request(prompt.token_ids, prompt.user_positions, prompt.item_positions, *vectors, GREEDY))
    assert len(made) == PROMPTS
    return made


def test_greedy_tokens_and_their_likelihoods_equal_the_hugging_face_engine(engine, reference, requests):
    expected = reference.generate(requests)
    assert engine.generate(requests) == expected
    assert len({result.text for result in expected}) > PROMPTS / 2
    chosen, targets = requests[:WITH_LIKELIHOODS], [result.token_ids for result in expected[:WITH_LIKELIHOODS]]
    wanted = reference.logprobs(chosen, targets)
    for found, other in zip(engine.logprobs(chosen, targets), wanted, strict=True):
        torch.testing.assert_close(found, other, atol=CLOSE, rtol=0)
    # What that tolerance must not hide: vectors that are left out.
    silent = [dataclasses.replace(request, user_vector=None, item_vector=None) for request in requests[:4]]
    for found, other in zip(engine.logprobs(silent, targets[:4]), wanted, strict=False):
        assert float((found - other).abs().max()) > 10 * CLOSE


def test_the_defaults_fit_the_machine(engine):
    config = engine._llm.vllm_config
    # Longer than any prompt that we make: vLLM takes blocks of the cache as a sequence grows, so length costs nothing.
    assert engine.max_length == 8192 == config.model_config.max_model_len
    cache = config.cache_config
    # Two tensors of 30 layers, 3 heads and 64 numbers of 4 bytes: 46,080 bytes a token.
    assert cache.num_gpu_blocks == cache.kv_cache_memory_bytes // (46_080 * cache.block_size)
    assert cache.num_gpu_blocks * cache.block_size > engine.max_length
    assert cache.kv_cache_memory_bytes <= 4 * 2**30
