"""Explanations for many callers at once: what was looked up for a pair becomes a prompt, and a text the answer.

`lookup.py` looks up, and the engine shares the language model between callers.
"""

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch

from xrec.explainer.concurrency import together
from xrec.explainer.engine import LiveEngine, Progress, Request, Result, Sampling
from xrec.explainer.prompt import PromptBuilder
from xrec.fingerprint import hash_of
from xrec.serving.queries import PairInputs, RequestError


@dataclass(frozen=True)
class ExplanationTask:
    """One pair to explain.

    Attributes:
        inputs: what was looked up.
        sampling: how to generate.
        average: `[H]` the average user's vector, where the effect of the collaborative signal is asked for.
    """

    inputs: PairInputs
    sampling: Sampling
    average: np.ndarray | None = None

    @cached_property
    def key(self) -> str:
        """Equal for tasks that have the same answer, and for these alone."""
        digest = hashlib.sha256()
        for vector in (self.inputs.user_vector, self.inputs.item_vector, self.average):
            digest.update(b"none" if vector is None else vector.tobytes())
            digest.update(b"|")
        plain = replace(self.inputs, user_vector=None, item_vector=None, cold_start=False)
        return hash_of([digest.hexdigest(), asdict(plain), asdict(self.sampling)])


@dataclass(frozen=True)
class SignalEffect:
    """What the user's own vector changed.

    Attributes:
        explanation: the same request's with the average user's vector.
        changed: whether that is another text.
        nats_per_token: how much more likely a token of the explanation is with the user's own vector than with the
            average user's, on average, in nats.
    """

    explanation: str
    changed: bool
    nats_per_token: float


@dataclass(frozen=True)
class Explanation:
    """An answer.

    Attributes:
        finish_reason: of `Result`.
        prompt_tokens, tokens: read and written, those for the effect included.
        first_token_seconds: from the request's arrival at the engine to its first token; None where not watched.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    tokens: int
    effect: SignalEffect | None = None
    first_token_seconds: float | None = None


class LiveExplainer:
    """Turns tasks into explanations on one engine, any number at once.

    Args:
        engine: runs the language model.
        backbone: what `PairInputs.backbone` must be.
    """

    def __init__(self, engine: LiveEngine, backbone: str):
        self.engine, self.backbone = engine, backbone
        self._prompts: dict[str, PromptBuilder] = {}
        # A tokenizer changes its own settings as it switches between plain text and templates.
        self._tokenizing = threading.Lock()

    async def explain(self, tasks: Sequence[ExplanationTask]) -> list[Explanation]:
        """Explanations in the order of the tasks; cancelling the call ends their generation.

        Raises:
            RequestError: a task is for another backbone or template, or the engine refuses it.
        """
        requests = [self._request(task) for task in tasks]
        return await together([self._answer(task, request) for task, request in zip(tasks, requests, strict=True)])

    async def stream(self, tasks: Sequence[ExplanationTask]) -> AsyncIterator[tuple[int, str | Explanation]]:
        """For each task by its index: the whole text so far, again and again, and at last the explanation.

        A later text may be shorter: generation is cut back to the end of a sentence.

        Raises:
            RequestError: as `explain`, before anything is generated.
        """
        requests = [self._request(task) for task in tasks]
        queue: asyncio.Queue[tuple[int, str | Explanation] | None] = asyncio.Queue()

        async def watch(index: int) -> None:
            async for update in self._watch(tasks[index], requests[index]):
                queue.put_nowait((index, update))

        async def watch_all() -> None:
            try:
                await together([watch(index) for index in range(len(tasks))])
            finally:
                queue.put_nowait(None)

        watching = asyncio.create_task(watch_all())
        try:
            while (update := await queue.get()) is not None:
                yield update
            await watching
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching

    async def _watch(self, task: ExplanationTask, request: Request) -> AsyncIterator[str | Explanation]:
        started, first, last = time.perf_counter(), None, Progress("")
        try:
            async with contextlib.aclosing(self.engine.progress(request)) as steps:
                async for last in steps:
                    first = first or time.perf_counter() - started
                    if last.result is None and last.text:
                        yield last.text
        except ValueError as error:
            raise _refused(error) from error
        assert last.result is not None, "an engine's last step holds the result"
        yield await self._finished(task, request, last.result, first)

    async def _answer(self, task: ExplanationTask, request: Request) -> Explanation:
        return await self._finished(task, request, await self._complete(request), None)

    async def _finished(
        self, task: ExplanationTask, request: Request, result: Result, first: float | None
    ) -> Explanation:
        read, written, effect = len(request.token_ids), len(result.token_ids), None
        if task.average is not None and result.text:
            other = replace(request, user_vector=_tensor(task.average))
            without = await self._complete(other)
            effect = await self._effect(request, other, result, without)
            read, written = 2 * read, written + len(without.token_ids)
        return Explanation(result.text, result.finish_reason, read, written, effect, first)

    async def _effect(self, request: Request, other: Request, result: Result, without: Result) -> SignalEffect:
        target = self.engine.tokenizer(result.text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        own, average = await asyncio.to_thread(self.engine.logprobs, [request, other], [target, target])
        return SignalEffect(without.text, without.text != result.text, float((own - average).double().mean()))

    async def _complete(self, request: Request) -> Result:
        try:
            return await self.engine.complete(request)
        except ValueError as error:
            raise _refused(error) from error

    def _request(self, task: ExplanationTask) -> Request:
        inputs = task.inputs
        if inputs.backbone != self.backbone:
            raise RequestError(
                503,
                "backbone_mismatch",
                "the dataset's snapshot is for another backbone than the one that is loaded; redeploy the server",
            )
        with self._tokenizing:
            prompt = self._builder(inputs).explain(inputs.title, inputs.user_profile, inputs.item_profile)
        places = prompt.token_ids, prompt.user_positions, prompt.item_positions
        return Request(*places, _tensor(inputs.user_vector), _tensor(inputs.item_vector), task.sampling)

    def _builder(self, inputs: PairInputs) -> PromptBuilder:
        key = hash_of(inputs.prompt)
        if key not in self._prompts:
            self._prompts[key] = PromptBuilder.from_settings(self.engine.tokenizer, inputs.prompt)
        prompts = self._prompts[key]
        if inputs.prompt_hash not in ("", prompts.hash):
            raise RequestError(
                503,
                "template_mismatch",
                "the dataset's adapter was tuned with another prompt template than this version of XRec has; tune it "
                "again with `xrec tune --force` and publish a snapshot",
            )
        return prompts


def _tensor(vector: np.ndarray | None) -> torch.Tensor | None:
    # An array that came from another process is read-only, which torch warns of.
    return None if vector is None else torch.from_numpy(np.array(vector))


def _refused(error: ValueError) -> RequestError:
    return RequestError(422, "refused_by_engine", str(error).removeprefix("request 0: "))
