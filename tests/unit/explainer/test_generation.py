"""The batched engine against one sequence at a time, without padding, batch or cache, and with literal Eq. 12."""

import asyncio
import copy

import pytest
import torch

from tests.random_models import train_tokenizer
from tests.unit.explainer.decoders import FAMILIES, make_decoder, make_requests, reference_logits
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.generation import HuggingFaceEngine

TOKENS = 12


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["warm bread and fresh coffee. a quiet garden! spicy noodles?"], 300)


def literal_next_logits(model, request: Request, generated: list[int]) -> torch.Tensor:
    ids = request.token_ids + generated
    if request.user_vector is None:
        return reference_logits(model, ids, [], torch.empty(0, 32))
    return reference_logits(model, ids, [1, 3], torch.stack([request.user_vector, request.item_vector]))


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_greedy_generation_equals_one_at_a_time_without_a_cache(family, tokenizer):
    model = make_decoder(family)
    engine = HuggingFaceEngine(copy.deepcopy(model), tokenizer, batch_size=4)
    requests = make_requests(engine, 7, Sampling(max_words=1000, max_new_tokens=TOKENS))
    for request, result in zip(requests, engine.generate(requests), strict=True):
        generated: list[int] = []
        while len(generated) < TOKENS and 1 not in generated:
            logits = literal_next_logits(model, request, generated)[-1]
            logits[engine.reserved_id] = float("-inf")
            generated.append(int(logits.argmax()))
        assert result.token_ids == generated


def test_logprobs_equal_one_at_a_time(tokenizer):
    model = make_decoder("llama-grouped-query")
    engine = HuggingFaceEngine(copy.deepcopy(model), tokenizer, batch_size=3)
    requests = make_requests(engine, 7, Sampling())
    targets = [list(range(10, 10 + length)) for length in (3, 1, 6, 0, 4, 2, 5)]
    for request, target, found in zip(requests, targets, engine.logprobs(requests, targets), strict=True):
        logprobs = literal_next_logits(model, request, target).log_softmax(-1)
        start = len(request.token_ids) - 1
        expected = torch.tensor([float(logprobs[start + i, t]) for i, t in enumerate(target)])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_vectors_change_the_text_and_positions_matter(tokenizer):
    engine = HuggingFaceEngine(make_decoder("llama-grouped-query"), tokenizer)
    request = make_requests(engine, 1, Sampling(max_new_tokens=TOKENS))[0]
    swapped = Request(request.token_ids, [1], [3], request.item_vector, request.user_vector, request.sampling)
    off = Request(request.token_ids, [1], [3], None, None, request.sampling)
    results = [r.token_ids for r in engine.generate([request, swapped, off, request])]
    assert results[0] == results[3]
    assert results[0] != results[1] and results[0] != results[2]


def test_sampling_depends_on_the_request_alone(tokenizer):
    engine = HuggingFaceEngine(make_decoder("llama-grouped-query"), tokenizer, batch_size=2)
    sampled = [Sampling(temperature=1.0, top_p=0.9, seed=s, max_new_tokens=TOKENS) for s in range(5)]
    requests = make_requests(engine, 5, Sampling())
    for request, sampling in zip(requests, sampled, strict=True):
        request.sampling = sampling
    together = [r.token_ids for r in engine.generate(requests)]
    apart = [engine.generate([r])[0].token_ids for r in reversed(requests)][::-1]
    assert together == apart
    requests[0].sampling = Sampling(temperature=1.0, top_p=0.9, seed=99, max_new_tokens=TOKENS)
    assert engine.generate(requests[:1])[0].token_ids != together[0]


def test_tiny_nucleus_is_greedy(tokenizer):
    engine = HuggingFaceEngine(make_decoder("llama-grouped-query"), tokenizer)
    greedy = make_requests(engine, 3, Sampling(max_new_tokens=TOKENS))
    nucleus = make_requests(engine, 3, Sampling(max_new_tokens=TOKENS, temperature=1.0, top_p=1e-6))
    assert [r.token_ids for r in engine.generate(greedy)] == [r.token_ids for r in engine.generate(nucleus)]


def test_word_limit_and_stream_agree(tokenizer):
    engine = HuggingFaceEngine(make_decoder("mistral"), tokenizer)
    for request in make_requests(engine, 6, Sampling(max_words=3, max_new_tokens=60, temperature=1.5), seed=3):
        (result,) = engine.generate([request])
        assert len(result.text.split()) <= 3

        async def collect(request=request):
            return [piece async for piece in engine.stream(request)]

        assert "".join(asyncio.run(collect())) == result.text


def test_wrong_numbers_of_targets_are_refused(tokenizer):
    engine = HuggingFaceEngine(make_decoder("llama-grouped-query"), tokenizer)
    with pytest.raises(ValueError, match="1 requests but 0 targets"):
        engine.logprobs(make_requests(engine, 1, Sampling()), [])
