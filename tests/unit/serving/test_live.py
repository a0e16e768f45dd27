"""Explanations for many callers, against the batch explainer and the engine's likelihoods asked one by one."""

import asyncio
import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from serve.explainer import open_live_explainer
from xrec.config.serve import ExplainerReplicas
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.explain import Explainer
from xrec.serving.live import Explanation, ExplanationTask
from xrec.serving.lookup import DatasetLookup
from xrec.serving.queries import ItemQuery, PairInputs, RequestError, UserQuery

PAIRS = [(0, 7), (3, 3), (11, 1), (5, 6), (13, 9)]


@pytest.fixture(scope="module")
def live(published):
    live = open_live_explainer(published.uri, ExplainerReplicas(threads=1, batch_size=3))
    yield live
    live.engine.close()


@pytest.fixture(scope="module")
def batch(published):
    return Explainer.from_workspace(published, device="cpu")


@pytest.fixture(scope="module")
def tasks(snapshot):
    users = [UserQuery(user_id=f"u{user}") for user, _ in PAIRS]
    items = [ItemQuery(item_id=f"i{item}") for _, item in PAIRS]
    return [ExplanationTask(inputs, Sampling()) for inputs in DatasetLookup(snapshot).resolve(users, items, "true")]


def test_explanations_are_those_of_the_batch_explainer(live, tasks, batch):
    answers = asyncio.run(live.explain(tasks))
    rows = batch.explain(PAIRS)
    assert [a.text for a in answers] == [row["explanation"] for row in rows]
    assert [(a.tokens, a.finish_reason) for a in answers] == [(row["tokens"], row["finish_reason"]) for row in rows]
    assert [a.prompt_tokens for a in answers] == [len(request.token_ids) for request in batch.requests(PAIRS)]


def test_a_stream_grows_to_the_same_explanations(live, tasks):
    async def watch() -> list:
        return [update async for update in live.stream(tasks)]

    updates, answers = asyncio.run(watch()), asyncio.run(live.explain(tasks))
    for index, answer in enumerate(answers):
        *growing, last = [update for n, update in updates if n == index]
        assert isinstance(last, Explanation) and last.text == answer.text and last.first_token_seconds > 0
        assert len(growing) > 3
        # A character of which some bytes are still to come.
        growing = [text.rstrip("\ufffd") for text in growing]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(growing))
        assert growing[-1].startswith(answer.text.rstrip("\ufffd"))


def test_the_effect_is_the_difference_of_mean_log_probabilities(live, tasks):
    task = tasks[0]
    average = np.random.default_rng(0).standard_normal(task.inputs.user_vector.shape).astype(np.float32)
    (answer,) = asyncio.run(live.explain([replace(task, average=average)]))
    (without,) = asyncio.run(live.explain([replace(task, inputs=replace(task.inputs, user_vector=average))]))
    assert answer.effect.explanation == without.text
    assert answer.effect.changed == (without.text != answer.text)
    # Each token's probability by a pass of its own, from the prompt and the tokens before it.
    own, other = (
        live._request(replace(task, inputs=replace(task.inputs, user_vector=v))) for v in _vectors(task, average)
    )
    target = live.engine.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    difference = [_next(live, own, target[:n], t) - _next(live, other, target[:n], t) for n, t in enumerate(target)]
    assert answer.effect.nats_per_token == pytest.approx(float(np.mean(difference)), abs=1e-4)
    assert answer.tokens > without.tokens


def _vectors(task: ExplanationTask, average: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    return task.inputs.user_vector, average


def _next(live, request: Request, before: list[int], token: int) -> float:
    longer = replace(request, token_ids=[*request.token_ids, *before])
    return float(live.engine.logprobs([longer], [[token]])[0])


def test_cancelling_leaves_nothing_running(live, tasks):
    endless = [replace(task, sampling=Sampling(max_words=10**6, max_new_tokens=10**6)) for task in tasks]

    async def leave() -> None:
        asking = asyncio.create_task(live.explain(endless))
        stream = live.stream(endless)
        await anext(stream)
        assert live.engine.unfinished > 0
        asking.cancel()
        await stream.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asking
        for _ in range(1000):
            if live.engine.unfinished == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("something is running still")

    asyncio.run(leave())
    assert asyncio.run(live.explain(tasks[:1]))[0].text


def test_tasks_for_another_backbone_or_template_are_refused(live, tasks):
    for change, code in (({"backbone": "other"}, "backbone_mismatch"), ({"prompt_hash": "other"}, "template_mismatch")):
        task = replace(tasks[0], inputs=replace(tasks[0].inputs, **change))
        with pytest.raises(RequestError) as caught:
            asyncio.run(live.explain([tasks[1], task]))
        assert (caught.value.status, caught.value.code) == (503, code)


def test_what_the_engine_refuses_is_the_requests_fault(live, tasks):
    wrong = replace(tasks[0], inputs=replace(tasks[0].inputs, user_vector=np.ones(3, np.float32)))
    for work in (live.explain([wrong]), anext(live.stream([wrong]))):
        with pytest.raises(RequestError, match="shape") as caught:
            asyncio.run(_awaited(work))
        assert (caught.value.status, caught.value.code) == (422, "refused_by_engine")


async def _awaited(work):
    return await work


def test_the_key_changes_with_everything_that_the_answer_depends_on(tasks):
    task = tasks[0]
    same = ExplanationTask(replace(task.inputs, user_vector=task.inputs.user_vector.copy()), Sampling())
    assert same.key == task.key
    new = np.ones(32, np.float32)
    changes: dict = {
        "user_vector": new,
        "item_vector": new,
        "title": "another",
        "user_profile": "another",
        "item_profile": None,
        "prompt": {"order": "user_first"},
        "prompt_hash": "another",
        "backbone": "another",
        "adapter_hash": "another",
    }
    assert set(changes) == {f.name for f in fields(PairInputs)} - {"cold_start"}
    others = [replace(task, inputs=replace(task.inputs, **{name: value})) for name, value in changes.items()]
    others += [
        replace(task, sampling=replace(task.sampling, **{name: 7 if name != "top_p" else 0.7}))
        for name in ("max_words", "max_new_tokens", "temperature", "top_p", "seed")
    ]
    others += [
        replace(task, average=new),
        replace(task, inputs=replace(task.inputs, user_vector=None)),
        replace(task, inputs=replace(task.inputs, item_vector=None)),
    ]
    keys = {task.key, *(other.key for other in others)}
    assert len(keys) == len(others) + 1


def test_vectors_from_another_process_may_be_read_only(live, tasks):
    frozen = tasks[0].inputs.user_vector.copy()
    frozen.flags.writeable = False
    task = replace(tasks[0], inputs=replace(tasks[0].inputs, user_vector=frozen))
    with torch.inference_mode():
        assert asyncio.run(live.explain([task]))[0].text
