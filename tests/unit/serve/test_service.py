"""What the ingress does with its deployments, which are here in the same process: cache, admission, lost replicas."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from serve import calls
from serve.answers import explanation_events, explanations
from serve.explainer import Explainer
from serve.lookup import EmbeddingLookup
from serve.metrics import ServerMetrics
from serve.schemas import ExplanationsRequest
from serve.service import Service, Tally
from tests.tiny_world import finish_tune, make_workspace
from xrec.config import ServeConfig
from xrec.serving.publishing import publish
from xrec.serving.queries import RequestError

PAIRS = [{"user_id": "u0", "item_id": "i7"}, {"user_id": "u3", "item_id": "i3"}]


class Method:
    """A deployment's method as a handle has it; `problems` are raised before it answers, one a call."""

    def __init__(self, method: Callable[..., Any], problems: list[Exception] | None = None):
        self.method, self.problems, self.count = method, problems or [], 0

    def options(self, stream: bool) -> "Method":
        return self

    def remote(self, *arguments: Any) -> Any:
        self.count += 1
        answer = self.method(*arguments)
        return Iteration(self, answer) if hasattr(answer, "__aiter__") else self._answer(answer)

    async def _answer(self, answer: Any) -> Any:
        if self.problems:
            answer.close()
            raise self.problems.pop()
        return await answer


class Iteration:
    def __init__(self, method: Method, answers: AsyncIterator[Any]):
        self.method, self.answers = method, answers

    async def __aiter__(self) -> AsyncIterator[Any]:
        if self.method.problems:
            raise self.method.problems.pop()
        async for answer in self.answers:
            yield answer

    def cancel(self) -> None:
        pass


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> str:
    workspace = make_workspace(tmp_path_factory.mktemp("service") / "tiny")
    finish_tune(workspace)
    publish(workspace)
    return workspace.uri


class Deployed:
    """The service with real deployments behind it."""

    def __init__(self, workspace: str, **settings: Any):
        config = ServeConfig.model_validate({"datasets": {"tiny": workspace}} | settings)
        self.parts = EmbeddingLookup(config.datasets, 60), Explainer(workspace, {"threads": 1})
        lookup, explainer = self.parts
        self.lookup, self.explainer = type("Handle", (), {})(), type("Handle", (), {})()
        self.lookup.resolve, self.lookup.states = Method(lookup.resolve), Method(lookup.states)
        self.explainer.explain, self.explainer.stream = Method(explainer.explain), Method(explainer.stream)
        self.service = Service(self.lookup, self.explainer, config, ServerMetrics())

    async def ask(self, **changes: Any) -> Any:
        return await explanations(self.service, ExplanationsRequest.model_validate({"pairs": PAIRS} | changes), Tally())

    def close(self) -> None:
        self.parts[0].refreshing.cancel()
        self.parts[1].reporting.cancel()


def with_service(workspace: str, check: Callable[[Deployed], Any], **settings: Any) -> None:
    async def run() -> None:
        deployed = Deployed(workspace, **settings)
        try:
            await check(deployed)
        finally:
            deployed.close()

    asyncio.run(run())


def texts(answer: Any) -> list[str]:
    return [row.explanation for row in answer.explanations]


def test_the_cache_answers_what_was_asked_before_and_nothing_else(workspace):
    async def check(deployed: Deployed) -> None:
        first = await deployed.ask()
        again = await deployed.ask(pairs=[*PAIRS, {"user_id": "u5", "item_id": "i6"}])
        assert [row.cached for row in first.explanations] == [False, False]
        assert [row.cached for row in again.explanations] == [True, True, False]
        assert texts(again)[:2] == texts(first)
        # What the cache had costs no tokens.
        assert again.usage.completion_tokens == again.explanations[2].tokens
        other = await deployed.ask(max_words=3)
        assert not any(row.cached for row in other.explanations)
        assert not any(row.cached for row in (await deployed.ask(signal="off")).explanations)
        evident = await deployed.ask(evidence=True)
        assert not any(row.cached for row in evident.explanations)
        assert all(row.evidence.signal_effect for row in (await deployed.ask(evidence=True)).explanations)

    with_service(workspace, check, cache={"entries": 100})


def test_without_a_cache_everything_is_written_again(workspace):
    async def check(deployed: Deployed) -> None:
        assert texts(await deployed.ask()) == texts(await deployed.ask())
        assert deployed.explainer.explain.count == 2

    with_service(workspace, check)


def test_a_stream_takes_from_the_cache_too(workspace):
    async def check(deployed: Deployed) -> None:
        whole = texts(await deployed.ask())
        body = ExplanationsRequest.model_validate({"pairs": PAIRS, "stream": True})
        events = [event async for event in explanation_events(deployed.service, body, Tally())]
        assert [event.name for event in events] == ["explanation", "explanation", "done"]
        assert [event.data.explanation for event in events[:2]] == whole
        assert deployed.explainer.stream.count == 0

    with_service(workspace, check, cache={"entries": 100})


def test_no_more_pairs_are_admitted_than_there_is_room_for_and_room_comes_back(workspace):
    async def check(deployed: Deployed) -> None:
        asked = [asyncio.create_task(deployed.ask()) for _ in range(3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
        assert [(error.status, error.code) for error in refused] == [(503, "overloaded")]
        assert deployed.service.held == 0
        await deployed.ask()
        leaving = explanation_events(deployed.service, ExplanationsRequest.model_validate({"pairs": PAIRS}), Tally())
        await anext(leaving)
        assert deployed.service.held == 2
        await leaving.aclose()
        assert deployed.service.held == 0
        with pytest.raises(RequestError, match="not in this dataset"):
            await deployed.ask(pairs=[{"user_id": "nobody", "item_id": "i1"}])
        assert deployed.service.held == 0

    with_service(workspace, check, limits={"in_flight": 5, "pairs": 5})


def test_lost_replicas_are_asked_again(workspace, monkeypatch):
    monkeypatch.setattr(calls, "_PAUSE", 0.001)

    async def check(deployed: Deployed) -> None:
        expected = texts(await deployed.ask())
        for method in (deployed.lookup.resolve, deployed.explainer.explain):
            method.problems = [ActorDiedError(), ActorDiedError()]
            assert texts(await deployed.ask()) == expected
        deployed.explainer.explain.problems = [ActorDiedError() for _ in range(9)]
        with pytest.raises(RequestError) as caught:
            await deployed.ask()
        assert (caught.value.status, caught.value.code) == (503, "unavailable")
        deployed.explainer.explain.problems = [BackPressureError(num_queued_requests=1, max_queued_requests=1)]
        with pytest.raises(RequestError) as caught:
            await deployed.ask()
        assert caught.value.code == "overloaded"
        deployed.explainer.stream.problems = [ActorDiedError()]
        body = ExplanationsRequest.model_validate({"pairs": PAIRS})
        events = [event async for event in explanation_events(deployed.service, body, Tally())]
        assert events[-1].name == "done"

    with_service(workspace, check)


def test_a_stream_that_has_begun_is_not_begun_again():
    async def begins_and_dies():
        yield "one"
        raise ActorDiedError()

    async def check() -> None:
        method = Method(begins_and_dies)
        seen = []
        with pytest.raises(RequestError) as caught:
            async for update in calls.stream(method):
                seen.append(update)
        assert (seen, method.count, caught.value.code) == (["one"], 1, "interrupted")

    asyncio.run(check())


def test_the_deadline_is_the_shorter_of_the_clients_and_the_servers(workspace):
    async def check(deployed: Deployed) -> None:
        for deadline in ({"deadline_seconds": 1e-9}, {}):
            if not deadline:
                deployed.service.config = ServeConfig.model_validate({"limits": {"deadline_seconds": 1e-9}})
            with pytest.raises(RequestError) as caught:
                await deployed.ask(**deadline)
            assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")

    with_service(workspace, check)


def test_sampled_explanations_depend_on_the_seed_alone(workspace):
    async def check(deployed: Deployed) -> None:
        same = [{"user_id": "u0", "item_id": "i7"}] * 2
        first = texts(await deployed.ask(pairs=same, temperature=1.5, seed=1))
        assert texts(await deployed.ask(pairs=same, temperature=1.5, seed=1)) == first
        assert texts(await deployed.ask(pairs=same, temperature=1.5, seed=2)) != first
        assert first[0] != first[1]

    with_service(workspace, check)
