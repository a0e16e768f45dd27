"""The injecting vLLM engine in use, on one small decoder: what it answers, refuses, streams, drops and forgets."""

import asyncio
import dataclasses
import re
import threading
import time

import pytest
import torch

from tests.unit.explainer.decoders import reference_logits
from tests.vllm.tiny_backbones import CONTEXT, GREEDY, HIDDEN, WORDS, PromptMaker, digest, distinct
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.generation import HuggingFaceEngine
from xrec.explainer.model import load_backbone

pytestmark = pytest.mark.timeout(600)
FAMILY, BLOCK, CLOSE = "llama-grouped-query", 32, 1e-4
SENTENCES = Sampling(max_words=20, max_new_tokens=100)
# Goes on until the context is full.
ENDLESS = Sampling(max_words=100_000, max_new_tokens=CONTEXT)


@pytest.fixture(scope="module")
def folder(tiny_backbone):
    return tiny_backbone(FAMILY)


@pytest.fixture(scope="module")
def files(folder):
    """The checkpoint's files as they were before any engine read them."""
    return digest(folder)


@pytest.fixture(scope="module")
def engine(files, folder, start_engine):
    return start_engine(folder, max_model_len=CONTEXT, block_size=BLOCK, disable_log_stats=False)


@pytest.fixture(scope="module")
def reference(folder):
    return HuggingFaceEngine(*load_backbone(folder))


@pytest.fixture
def maker(reference, request):
    """Other texts and vectors for each test, so that none finds another's prefixes in the cache."""
    return PromptMaker(reference.tokenizer, seed=sum(map(ord, request.node.name)))


def counted(name: str) -> float:
    """One of vLLM's own metrics."""
    from prometheus_client import REGISTRY

    return sum(s.value for metric in REGISTRY.collect() for s in metric.samples if s.name == f"vllm:{name}")


def wait_for(condition, what: str):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# What it answers ------------------------------------------------------------------------------------------------


def test_greedy_tokens_equal_equation_12_taken_literally(engine, folder, maker):
    """Not our Hugging Face engine but one sequence at a time, no cache, and W a added to each projection."""
    model, _ = load_backbone(folder)
    requests = [*maker.requests(4), maker.request(user_vector=None), maker.request(item_vector=None)]
    results = engine.generate(requests)
    likelihoods = engine.logprobs(requests, [result.token_ids for result in results])
    for request, result, likelihood in zip(requests, results, likelihoods, strict=True):
        placed = [(p, request.user_vector) for p in request.user_positions if request.user_vector is not None]
        placed += [(p, request.item_vector) for p in request.item_positions if request.item_vector is not None]
        positions, vectors = zip(*placed, strict=True)
        ids = request.token_ids + result.token_ids
        logits = reference_logits(model, ids[:-1], list(positions), torch.stack(vectors))[-len(result.token_ids) :]
        expected = logits.log_softmax(-1)[range(len(logits)), result.token_ids]
        torch.testing.assert_close(likelihood, expected, atol=CLOSE, rtol=0)
        logits[:, engine.reserved_id] = float("-inf")
        assert result.token_ids == logits.argmax(-1).tolist()


def test_the_reserved_id_never_comes_out_though_the_model_wants_it(engine, folder, maker):
    model, _ = load_backbone(folder)
    request = maker.request(user_vector=None, item_vector=None)
    logits = reference_logits(model, request.token_ids, [], torch.empty(0, HIDDEN))
    assert int(logits[-1].argmax()) == engine.reserved_id
    hot = dataclasses.replace(GREEDY, temperature=2.0)
    for result in engine.generate([request, *maker.requests(4, sampling=hot)]):
        assert engine.reserved_id not in result.token_ids


def test_adapters_mixed_in_one_batch_with_sides_switched_off(engine, reference, maker):
    """Forty at once, of two adapters whose vectors differ in scale, over a few texts and in random order."""
    prompts, requests = [maker.prompt() for _ in range(5)], []
    for index in range(40):
        scale = 1.0 if index % 2 else 3.0
        changes = {"user_vector": scale * maker.vector(), "item_vector": scale * maker.vector()}
        changes |= [{}, {"user_vector": None}, {"item_vector": None}, {"user_vector": None, "item_vector": None}][
            index // 2 % 4
        ]
        requests.append(maker.request(prompts[index % 5], **changes))
    order = maker.generator.permutation(len(requests))
    results = engine.generate([requests[i] for i in order])
    expected = reference.generate([requests[i] for i in order])
    assert results == expected
    # 30 with vectors, and 5 texts without, two of each.
    assert distinct(expected) >= 30


def test_calls_from_several_threads_share_the_batch(engine, reference, maker):
    shares = [maker.requests(5) for _ in range(3)]
    found: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: engine.generate(shares[n])})) for n in range(len(shares))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, share in enumerate(shares):
        assert found[number] == reference.generate(share)


def test_a_plain_prompt_is_answered_as_by_plain_transformers(engine, folder, maker):
    model, tokenizer = load_backbone(folder)
    ids = [tokenizer.bos_token_id, *tokenizer(maker.text(30), add_special_tokens=False)["input_ids"]]
    expected = model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=24, bad_words_ids=[[engine.reserved_id]]
    )[0, len(ids) :]
    (result,) = engine.generate([Request(ids, sampling=GREEDY)])
    assert result.token_ids == expected.tolist()


def test_logprobs_take_any_target(engine, reference, maker):
    requests = maker.requests(4)
    words = reference.tokenizer(maker.text(20), add_special_tokens=False)["input_ids"]
    # The reserved id, too, which is but a token there: no vector stands at it.
    targets = [[], [7], words, [9, engine.reserved_id, 8, engine.end_ids[0]]]
    found, expected = engine.logprobs(requests, targets), reference.logprobs(requests, targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=CLOSE, rtol=0)
    with pytest.raises(ValueError, match="4 requests but 1 targets"):
        engine.logprobs(requests, targets[:1])


# Prefix caching -------------------------------------------------------------------------------------------------


def crossed(maker) -> list[Request]:
    """Four users and four items over one and the same text."""
    prompt = maker.prompt(40)
    users, items = ([maker.vector() for _ in range(4)] for _ in range(2))
    return [maker.request(prompt, user_vector=user, item_vector=item) for user in users for item in items]


def test_prefixes_are_shared_by_equal_vectors_alone(engine, reference, maker):
    requests = crossed(maker)
    expected = reference.generate(requests)
    # The control: were vectors not part of a prefix, all would get the first one's result.
    assert distinct(expected) == len(requests)
    (user,), (item,) = requests[0].user_positions, requests[0].item_positions
    assert user < BLOCK <= item - BLOCK
    for repeated in (False, True):
        for index, request in enumerate(requests):
            before = engine.cached_tokens
            assert engine.generate([request]) == [expected[index]]
            shared = len(request.token_ids) - 1 if repeated else item if index % 4 else 0
            assert engine.cached_tokens - before == shared // BLOCK * BLOCK
    assert engine.generate(requests) == expected


def test_that_comparison_fails_where_hashes_ignore_the_vectors(engine, reference, maker, monkeypatch):
    first, second = crossed(maker)[:2]
    expected = reference.generate([first, second])
    honest = engine._prompt

    def all_alike(*arguments):
        return honest(*arguments) | {"multi_modal_uuids": {"vector": ["user", "item"]}}

    monkeypatch.setattr(engine, "_prompt", all_alike)
    results = [engine.generate([request])[0] for request in (first, second)]
    assert results == [expected[0], expected[0]] != expected
    monkeypatch.undo()
    assert engine.generate([first, second]) == expected


# Streams --------------------------------------------------------------------------------------------------------


async def collect(engine, request) -> list[str]:
    return [piece async for piece in engine.stream(request)]


def test_streams_are_whole_sentences_and_joined_the_generated_text(engine, reference, maker):
    requests = maker.requests(8, sampling=SENTENCES)
    expected = engine.generate(requests)
    assert expected == reference.generate(requests)

    async def all_at_once():
        return await asyncio.gather(*[collect(engine, request) for request in requests])

    streams = asyncio.run(all_at_once())
    assert ["".join(pieces) for pieces in streams] == [result.text for result in expected]
    for pieces, result in zip(streams, expected, strict=True):
        for piece in pieces[:-1]:
            assert re.search(r"[.!?]$", piece)
        assert len(result.text.split()) <= SENTENCES.max_words
        assert result.text.endswith(".") == (result.finish_reason == "sentence")
        # Generation ended with the words, not with the tokens.
        assert len(result.token_ids) < SENTENCES.max_new_tokens
    assert sum(result.finish_reason == "sentence" for result in expected) >= 4
    assert max(map(len, streams)) >= 2
    wait_for(lambda: engine.unfinished == 0, "streams that ended by themselves are still generated")


def test_complete_equals_generate(engine, maker):
    requests = maker.requests(3)

    async def all_at_once():
        return await asyncio.gather(*[engine.complete(request) for request in requests])

    assert asyncio.run(all_at_once()) == engine.generate(requests)


def test_generation_and_stream_end_where_the_context_is_full(engine, reference, maker):
    room = 5
    words = reference.tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"]
    ids = (words * CONTEXT)[: CONTEXT - room]
    request = Request(ids, sampling=GREEDY)
    (result,) = engine.generate([request])
    (longer,) = reference.generate([request])
    assert result.token_ids == longer.token_ids[:room] and result.text
    assert result.finish_reason == ("sentence" if result.text.endswith(".") else "length")
    assert "".join(asyncio.run(collect(engine, request))) == result.text


# Requests that are dropped --------------------------------------------------------------------------------------


def no_request_runs(engine, maker) -> bool:
    """Whether vLLM's core, too, has forgotten all; it says so with the next request's last step."""
    engine.generate([maker.request(sampling=Sampling(max_new_tokens=2))])
    return counted("num_requests_running") + counted("num_requests_waiting") == 0


def test_a_cancelled_task_frees_its_request(engine, reference, maker):
    async def cancel():
        task = asyncio.create_task(engine.complete(maker.request(sampling=ENDLESS)))
        before = counted("generation_tokens_total")
        while counted("generation_tokens_total") - before < 5:
            await asyncio.sleep(0.01)
        assert engine.unfinished == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = counted("generation_tokens_total")
    asyncio.run(cancel())
    wait_for(lambda: engine.unfinished == 0, "the cancelled request still runs")
    wait_for(lambda: no_request_runs(engine, maker), "vLLM's core still runs the cancelled request")
    assert counted("generation_tokens_total") - before < CONTEXT / 2
    request = maker.request()
    assert engine.generate([request]) == reference.generate([request])


def test_a_closed_stream_frees_its_request(engine, reference, maker):
    async def close():
        stream = engine.stream(maker.request(sampling=ENDLESS))
        first = await anext(stream)
        assert engine.unfinished == 1
        await stream.aclose()
        return first

    before = counted("generation_tokens_total")
    assert asyncio.run(close())
    wait_for(lambda: engine.unfinished == 0, "the closed stream still runs")
    wait_for(lambda: no_request_runs(engine, maker), "vLLM's core still runs the closed stream's request")
    assert counted("generation_tokens_total") - before < CONTEXT / 2
    request = maker.request()
    assert engine.generate([request]) == reference.generate([request])


# Sampling -------------------------------------------------------------------------------------------------------


def test_draws_depend_on_the_request_alone(engine, maker):
    warm, warmer = {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.9}
    settings = [Sampling(1000, 16, seed=seed, **kind) for seed, kind in enumerate([warm, warmer] * 3)]
    requests = [maker.request(sampling=sampling) for sampling in settings]
    together = engine.generate(requests + maker.requests(6))[: len(requests)]
    apart = [engine.generate([request])[0] for request in reversed(requests)][::-1]
    assert together == apart
    other_seeds = [dataclasses.replace(r, sampling=dataclasses.replace(r.sampling, seed=99)) for r in requests]
    for result, other in zip(together, engine.generate(other_seeds), strict=True):
        assert result.token_ids != other.token_ids


def test_each_request_of_a_batch_is_sampled_by_its_own_settings(engine, reference, maker):
    prompt, vectors = maker.prompt(), {"user_vector": maker.vector(), "item_vector": maker.vector()}
    hot = [Sampling(1000, 24, temperature=2.0, seed=seed) for seed in range(4)]
    nucleus = [Sampling(1000, 24, temperature=2.0, top_p=1e-6, seed=seed) for seed in range(4)]
    requests = [maker.request(prompt, sampling=s, **vectors) for s in (GREEDY, *hot, *nucleus)]
    greedy, *results = engine.generate(requests)
    assert [greedy] == reference.generate(requests[:1])
    assert distinct([greedy, *results[:4]]) == 5
    assert results[4:] == [greedy] * 4


# What it refuses ------------------------------------------------------------------------------------------------


def refused(maker, reserved_id: int) -> dict[str, tuple[dict, str]]:
    """What is wrong: a request's fields, and what is said of them."""
    prompt = maker.prompt(20)
    ids, (user,), (item,) = prompt.token_ids, prompt.user_positions, prompt.item_positions
    good = {"token_ids": ids, "user_positions": [user], "item_positions": [item]}
    good |= {"user_vector": maker.vector(), "item_vector": maker.vector()}
    more = list(range(len(ids), len(ids) + 15))
    long = ids + [5] * CONTEXT
    cases: dict[str, tuple[dict, str]] = {
        "surplus user vector": (
            {"user_positions": [], "token_ids": [*ids[:user], 5, *ids[user + 1 :]]},
            "user_vector is given, but the prompt has no user_positions",
        ),
        "surplus item vector": (
            {"item_positions": [], "token_ids": [*ids[:item], 5, *ids[item + 1 :]]},
            "item_vector is given, but the prompt has no item_positions",
        ),
        "wrong size": (
            {"user_vector": torch.ones(HIDDEN - 1)},
            rf"user_vector has shape \({HIDDEN - 1},\), not \({HIDDEN},\)",
        ),
        "two vectors in one": ({"item_vector": torch.ones(2, HIDDEN)}, rf"item_vector has shape \(2, {HIDDEN}\)"),
        "not a number": ({"user_vector": torch.full((HIDDEN,), float("nan"))}, "user_vector holds .* not finite"),
        "infinite": ({"item_vector": torch.full((HIDDEN,), float("inf"))}, "item_vector holds .* not finite"),
        "all zeros": ({"item_vector": torch.zeros(HIDDEN)}, "item_vector is all zeros; give None"),
        "undeclared reserved id": (
            {"token_ids": [*ids, reserved_id]},
            f"has the reserved id {reserved_id} at {len(ids)}, which is neither in user_positions nor in item_positi",
        ),
        "missing positions and vector": (
            {"item_positions": [], "item_vector": None},
            f"has the reserved id {reserved_id} at {item}",
        ),
        "position of another token": (
            {"user_positions": [user + 1]},
            f"user_positions has {user + 1}, where token_ids has {ids[user + 1]}, not the reserved id",
        ),
        "position outside": (
            {"item_positions": [len(ids)]},
            f"item_positions has {len(ids)}, outside 0..{len(ids) - 1}",
        ),
        "position of both sides": (
            {"item_positions": [user]},
            f"position {user} is in item_positions and in user_positions",
        ),
        "no tokens": ({"token_ids": []}, "token_ids is empty"),
        "too long": ({"token_ids": long}, rf"\d+ tokens leave no room to generate within max_model_len = {CONTEXT}"),
        "hotter than vLLM allows": ({"sampling": Sampling(temperature=2.5)}, r"temperature must be in \[0, 2\]"),
        "too many positions": (
            {"token_ids": ids + [reserved_id] * 15, "item_positions": [item, *more]},
            "17 reserved positions; the vLLM engine takes 16",
        ),
    }
    return {name: (good | changes, message) for name, (changes, message) in cases.items()}


def test_malformed_requests_are_refused_by_name_before_any_is_generated(engine, reference, maker):
    good, generated = maker.request(), counted("generation_tokens_total")
    for name, (fields, message) in refused(maker, engine.reserved_id).items():
        request = Request(**fields)
        with pytest.raises(ValueError, match="request 1: .*" + message):
            engine.generate([good, request])
        with pytest.raises(ValueError, match="request 1: .*" + message):
            engine.logprobs([good, request], [[5], [5]])
        with pytest.raises(ValueError, match="request 0: .*" + message):
            asyncio.run(engine.complete(request))
        with pytest.raises(ValueError, match="request 0: .*" + message):
            asyncio.run(collect(engine, request))
        assert engine.unfinished == 0, name
    assert counted("generation_tokens_total") == generated
    assert engine.generate([good]) == reference.generate([good])


def test_vllm_itself_refuses_vectors_that_do_not_fit(engine, reference, maker):
    """Below our checks, as a server's client would send them; and reserved ids without vectors inject nothing."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    good = maker.request()
    sampling = SamplingParams(temperature=0, max_tokens=24, logit_bias={engine.reserved_id: -100})

    async def raw(vectors):
        prompt = {"prompt_token_ids": good.token_ids} | ({"multi_modal_data": {"vector": vectors}} if vectors else {})
        async for output in engine._llm.generate(prompt, sampling, f"raw-{id(vectors)}"):
            last = output
        return list(last.outputs[0].token_ids)

    for vectors, message in (
        ([torch.ones(HIDDEN)], "2 reserved positions, but 1 vectors"),
        ([torch.ones(HIDDEN)] * 3, "2 reserved positions, but 3 vectors"),
        ([torch.ones(HIDDEN), torch.ones(3)], rf"vector 1 has the shape \(3,\), not \({HIDDEN},\)"),
        ([torch.full((HIDDEN,), float("nan")), torch.ones(HIDDEN)], "vector 0 holds values that are not finite"),
    ):
        with pytest.raises(VLLMValidationError, match=message):
            engine._run(raw(vectors))
    (silent,) = reference.generate([dataclasses.replace(good, user_vector=None, item_vector=None)])
    assert engine._run(raw(None)) == silent.token_ids
    given = [good.user_vector.tolist(), good.item_vector.numpy()]
    assert engine._run(raw(given)) == reference.generate([good])[0].token_ids


# What it leaves -------------------------------------------------------------------------------------------------


def test_the_checkpoint_and_its_vocabulary_stay_as_they_were(engine, folder, files):
    assert digest(folder) == files and "model.safetensors" in files
    sizes = {engine._llm.model_config.get_vocab_size(), load_backbone(folder)[0].config.vocab_size}
    assert sizes == {len(engine.tokenizer)}


def test_what_cannot_run_is_refused_before_anything_starts(folder, start_engine, tmp_path):
    from transformers import GPT2Config, LlamaConfig

    from xrec.explainer.vllm_engine import VLLMEngine

    with pytest.raises(ValueError, match="injection = 'output' adds vectors after .* use the Hugging Face engine"):
        VLLMEngine(folder, injection="output")
    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    tokenizer = load_backbone(folder)[1]
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="architecture is GPT2LMHeadModel; the vLLM engine runs LlamaForCausalLM"):
        VLLMEngine(str(tmp_path))
    LlamaConfig(
        architectures=["LlamaForCausalLM"], hidden_size=96, num_attention_heads=4, vocab_size=len(tokenizer)
    ).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="attention heads are 24 wide; on a CPU vLLM runs 32, 64, .*explain.engine = hf"
    ):
        VLLMEngine(str(tmp_path))
