"""Requests that share a running batch, against the same requests generated one at a time."""

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, MistralConfig
from transformers.cache_utils import DynamicLayer

from tests.random_models import train_tokenizer
from tests.unit.explainer.decoders import FAMILIES, SIZE, make_decoder, make_requests
from tests.unit.explainer.live_requests import TIMEOUT, Watch, arriving, fail, until
from xrec.explainer import running_batch
from xrec.explainer.continuous_batching import BatchedEngine
from xrec.explainer.engine import Progress, Request, Result, Sampling
from xrec.explainer.generation import HuggingFaceEngine

WINDOWED = {
    "every layer sees 6 tokens": lambda: MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=6),
    "every other layer does": lambda: Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8, sliding_window=6),
}
SAMPLINGS = [
    Sampling(max_words=1000, max_new_tokens=16),
    Sampling(max_words=1000, max_new_tokens=9, temperature=1.0, top_p=0.9, seed=3),
    Sampling(max_words=6, max_new_tokens=30, temperature=1.3, seed=4),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["warm bread and fresh coffee. a quiet garden! spicy noodles?"], 300)


@pytest.fixture
def engine(tokenizer):
    return HuggingFaceEngine(make_decoder("llama-grouped-query"), tokenizer)


def mixed_requests(engine, count: int, seed: int = 0) -> list[Request]:
    requests = make_requests(engine, count, Sampling(), seed)
    for index, request in enumerate(requests):
        request.sampling = SAMPLINGS[index % len(SAMPLINGS)]
    return requests


def long_requests(engine, count: int, tokens: int = 400) -> list[Request]:
    """Requests that no end-of-sequence token cuts short, if `never_ending` is called too."""
    return make_requests(engine, count, Sampling(max_words=10_000, max_new_tokens=tokens))


def never_ending(engine) -> None:
    engine.end_ids = []


def talkative(engine) -> None:
    """Make the model write words and full stops, and nothing else."""
    head = engine.model.backbone.lm_head
    bias = torch.full((head.out_features,), -50.0)
    for text in (" warm", " bread", " fresh", "."):
        bias[engine.tokenizer(text, add_special_tokens=False)["input_ids"]] = 0.0
    head.bias = torch.nn.Parameter(bias, requires_grad=False)


@pytest.mark.parametrize(
    ("family", "implementation"),
    [(family, "eager") for family in FAMILIES] + [(kind, "sdpa") for kind in ("llama-grouped-query", *WINDOWED)],
)
def test_requests_that_join_and_leave_equal_one_at_a_time(family, implementation, tokenizer):
    torch.manual_seed(0)
    if family in WINDOWED:
        model = AutoModelForCausalLM.from_config(WINDOWED[family]()).float().eval()
    else:
        model = make_decoder(family)
    model.set_attn_implementation(implementation)
    apart, engine = (HuggingFaceEngine(copy.deepcopy(model), tokenizer) for _ in range(2))
    watch, requests = Watch(engine), mixed_requests(engine, 12)
    places = {0: [0, 1, 2], 2: [3], 3: [4, 5], 5: [6], 8: [7, 8, 9], 11: [10], 13: [11]}
    arrivals = {number: {key: requests[key] for key in keys} for number, keys in places.items()}
    with BatchedEngine(engine, max_batch=5) as batched:
        results = asyncio.run(arriving(batched, watch, arrivals, {4: [0], 9: [6, 8]}))
    cancelled = {key for key, result in results.items() if isinstance(result, asyncio.CancelledError)}
    assert {6, 8} & cancelled and cancelled <= {0, 6, 8}
    for key in set(results) - cancelled:
        assert results[key] == apart.generate([requests[key]])[0]
    assert max(watch.rows) <= 5 and sum(watch.prompts) >= 4


def test_cache_is_as_wide_as_the_longest_row_that_is_left(engine):
    watch, requests = Watch(engine), mixed_requests(engine, 60, seed=1)
    with BatchedEngine(engine, max_batch=4) as batched:
        batched.generate(requests)
    assert sum(watch.prompts) > 15
    for mask in watch.masks:
        assert mask.sum(1).max() == mask.shape[1]
    assert max(mask.shape[1] for mask in watch.masks) <= 19 + 30


def test_requests_join_in_order_and_no_more_prompts_at_once_than_allowed(engine):
    started, start = [], engine.start
    engine.start = lambda rows: started.append([row.request for row in rows]) or start(rows)
    requests = mixed_requests(engine, 20)
    with BatchedEngine(engine, max_batch=8, max_prefill_tokens=40) as batched:
        batched.generate(requests)
    assert [request for rows in started for request in rows] == requests
    sizes = [len(rows) * max(len(r.token_ids) for r in rows) for rows in started]
    assert max(sizes) <= 40 and max(map(len, started)) > 1
    with BatchedEngine(engine, max_prefill_tokens=1) as batched:
        assert len(batched.generate(requests[:2])) == 2


def test_cancelled_request_is_in_no_later_step(engine):
    never_ending(engine)
    watch, requests = Watch(engine), long_requests(engine, 3)
    with BatchedEngine(engine) as batched:
        results = asyncio.run(arriving(batched, watch, {0: dict(enumerate(requests))}, {10: [1], 20: [0, 2]}))
        assert batched.unfinished == 0
    assert all(isinstance(result, asyncio.CancelledError) for result in results.values())
    # The pass before which the cancellation comes is the last that has the row.
    assert [len(mask) for mask in watch.masks][5:] == [3] * 6 + [2] * 10


def test_cancelled_request_that_waits_never_runs(engine):
    never_ending(engine)
    watch, requests = Watch(engine), long_requests(engine, 3, 12)
    with BatchedEngine(engine, max_batch=1) as batched:
        results = asyncio.run(arriving(batched, watch, {0: dict(enumerate(requests))}, {3: [1]}))
    assert isinstance(results[1], asyncio.CancelledError)
    assert [len(results[key].token_ids) for key in (0, 2)] == [12, 12]
    assert len(watch.masks) == 24


def test_streams_of_one_batch_give_their_results(engine):
    talkative(engine)
    requests = make_requests(engine, 8, Sampling(max_words=20, max_new_tokens=60, temperature=1.5))
    expected = [engine.generate([request])[0] for request in requests]

    async def follow(batched, request) -> list[Progress]:
        return [step async for step in batched.progress(request)]

    async def collect(batched, request) -> list[str]:
        return [piece async for piece in batched.stream(request)]

    async def both(batched):
        followed = asyncio.gather(*(follow(batched, request) for request in requests))
        streamed = asyncio.gather(*(collect(batched, request) for request in requests))
        return await followed, await streamed

    with BatchedEngine(engine) as batched:
        followed, streamed = asyncio.run(both(batched))
    assert ["".join(pieces) for pieces in streamed] == [result.text for result in expected]
    assert [steps[-1] for steps in followed] == [Progress(result.text, result) for result in expected]
    assert [len(steps) for steps in followed] == [len(result.token_ids) for result in expected]
    assert not any(step.result for steps in followed for step in steps[:-1])
    assert min(map(len, streamed)) > 1


def test_closed_stream_ends_its_generation(engine):
    talkative(engine)
    request = make_requests(engine, 1, Sampling(max_words=10**6, max_new_tokens=10**6, temperature=1.5))[0]

    async def first_piece(batched) -> str:
        async with aclosing(batched.stream(request)) as pieces:
            async for piece in pieces:
                return piece
        raise AssertionError("the stream ended")

    with BatchedEngine(engine) as batched:
        assert asyncio.run(asyncio.wait_for(first_piece(batched), TIMEOUT))
        assert batched.unfinished == 0
        # The thread is free for others.
        assert len(batched.generate(long_requests(engine, 1, 5))[0].token_ids) == 5


def test_two_loops_and_a_plain_thread_share_the_batch(engine):
    requests = mixed_requests(engine, 12)
    expected = [engine.generate([request])[0] for request in requests]
    watch = Watch(engine)

    def on_own_loop(batched, part) -> list[Result]:
        async def gather():
            return await asyncio.gather(*(batched.complete(request) for request in part))

        return asyncio.run(gather())

    with BatchedEngine(engine) as batched, ThreadPoolExecutor(3) as threads:
        gate = threading.Event()
        watch.acts[0] = lambda: gate.wait(TIMEOUT)
        first = threads.submit(on_own_loop, batched, requests[:4])
        second = threads.submit(on_own_loop, batched, requests[4:8])
        third = threads.submit(batched.generate, requests[8:])
        until(lambda: batched.unfinished == 12)
        gate.set()
        found = [*first.result(TIMEOUT), *second.result(TIMEOUT), *third.result(TIMEOUT)]
    assert found == expected
    assert max(watch.rows) > 4


def test_failure_reaches_the_requests_of_the_batch_and_no_others(engine, caplog):
    requests = [*long_requests(engine, 2, 12), *mixed_requests(engine, 4)]
    expected = engine.generate(requests)
    watch = Watch(engine)
    with BatchedEngine(engine, max_batch=2) as batched:
        watch.acts[5] = fail
        results = asyncio.run(arriving(batched, watch, {0: dict(enumerate(requests))}, {}))
        # The prompts of those who join fail: those who run go on.
        start = len(watch.masks)
        watch.acts[start + 4] = fail
        arrivals = {0: {0: requests[0]}, start + 3: {2: requests[2]}}
        again = asyncio.run(arriving(batched, watch, arrivals, {}))
        assert batched.unfinished == 0
    for key in (0, 1):
        assert str(results[key]) == "the language model failed: MemoryError: none left"
    assert [results[key] for key in range(2, 6)] == expected[2:]
    assert again[0] == expected[0] and isinstance(again[2], RuntimeError)
    assert len([record for record in caplog.records if record.exc_info]) == 2


def test_failure_reaches_a_stream(engine):
    watch, request = Watch(engine), long_requests(engine, 1)[0]
    watch.acts[3] = fail

    async def collect(batched):
        return [piece async for piece in batched.stream(request)]

    with BatchedEngine(engine) as batched, pytest.raises(RuntimeError, match="none left"):
        asyncio.run(collect(batched))


def test_malformed_requests_are_refused_before_they_wait(engine):
    watch, sound = Watch(engine), make_requests(engine, 1, Sampling())[0]
    bad = Request([], [], [])

    async def stream(batched):
        return [piece async for piece in batched.stream(bad)]

    with BatchedEngine(engine) as batched:
        for call in (lambda: asyncio.run(batched.complete(bad)), lambda: asyncio.run(stream(batched))):
            with pytest.raises(ValueError, match="token_ids is empty"):
                call()
        with pytest.raises(ValueError, match="request 1: token_ids is empty"):
            batched.generate([sound, bad])
        with pytest.raises(ValueError, match="1 requests but 0 targets"):
            batched.logprobs([sound], [])
        assert batched.unfinished == 0
    assert not watch.masks
    with pytest.raises(ValueError, match="max_batch = 0"):
        BatchedEngine(engine, max_batch=0)


def test_likelihoods_are_computed_between_the_steps(engine):
    requests = make_requests(engine, 9, Sampling())
    targets = [list(range(10, 10 + length)) for length in (3, 1, 6, 0, 4, 2, 5, 1, 1)]
    expected = engine.logprobs(requests, targets)
    running = long_requests(engine, 1, 200)
    never_ending(engine)
    watch = Watch(engine)
    with BatchedEngine(engine, max_batch=4) as batched, ThreadPoolExecutor(1) as threads:
        whole = threads.submit(batched.generate, running)
        until(lambda: len(watch.masks) > 2)
        found = batched.logprobs(requests, targets)
        assert not whole.done()
        assert len(whole.result(TIMEOUT)[0].token_ids) == 200
        assert batched.logprobs([], []) == []
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_close_fails_those_that_wait_and_run(engine):
    never_ending(engine)
    watch, requests = Watch(engine), long_requests(engine, 3, 10**6)
    batched = BatchedEngine(engine, max_batch=2)
    with ThreadPoolExecutor(3) as threads:
        calls = [threads.submit(batched.generate, [request]) for request in requests]
        until(lambda: batched.unfinished == 3 and len(watch.masks) > 3)
        batched.close()
        for call in calls:
            with pytest.raises(RuntimeError, match="the engine is closed"):
                call.result(TIMEOUT)
    assert batched.unfinished == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("explanations")]
    with pytest.raises(RuntimeError, match="the engine is closed"):
        batched.generate(requests)
    batched.close()


def test_rows_that_cannot_join_wait_for_the_batch_to_end(engine, monkeypatch):
    class OtherLayer(DynamicLayer):
        """Of which `kv_cache` knows nothing."""

    def other_cache(config) -> DynamicCache:
        cache = DynamicCache(config=config)
        cache.layers = [OtherLayer() for _ in cache.layers]  # pyright: ignore
        return cache

    monkeypatch.setattr(running_batch, "DynamicCache", other_cache)
    requests = mixed_requests(engine, 7)
    expected = [engine.generate([request])[0] for request in requests]
    watch = Watch(engine)
    places = {0: [0], 1: [1, 2], 3: [3, 4, 5, 6]}
    arrivals = {number: {key: requests[key] for key in keys} for number, keys in places.items()}
    with BatchedEngine(engine) as batched:
        results = asyncio.run(arriving(batched, watch, arrivals, {}))
    assert [results[key] for key in range(7)] == expected
    assert sum(watch.prompts) == 2
