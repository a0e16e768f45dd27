"""Questions put to a chat model: many at once, repeated where that helps, until each has an answer or none.

What a request is and what its errors mean is the business of `xrec.profiles`, whose writers of texts ask the same way.
"""

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import openai

from xrec.profiles.answers import FatalError
from xrec.profiles.client import Completion, OpenAIClient
from xrec.profiles.failures import EndpointHealth, Failure, classify
from xrec.profiles.rate_limit import LocalLimits
from xrec.profiles.writer import corrected

Chat = list[dict[str, str]]
Parsed = TypeVar("Parsed")

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 20.0
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL | re.IGNORECASE)


@dataclass
class Question(Generic[Parsed]):
    """One chat, and how far it has come.

    Attributes:
        messages: the chat; with a correction, where the first answer was of no use.
        schema: JSON schema of the answer.
        parse: makes of the JSON document what is wanted, or raises a ValueError.
        attempts: requests made.
        tokens_in, tokens_out: of all requests.
        trouble: in a word, what kept it from an answer the last time.
        model: the model that answered, as the endpoint names it.
        content: the JSON document.
        answer: what was made of it; None as long as there is none.
    """

    messages: Chat
    schema: dict[str, Any]
    parse: Callable[[str], Parsed]
    attempts: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    trouble: str = ""
    model: str = ""
    content: str = ""
    answer: Parsed | None = None

    def accepts(self, content: str) -> bool:
        """Whether a document is an answer; then it is this question's."""
        try:
            self.answer = self.parse(content)
        except ValueError:
            return False
        self.content = content
        return True


class Asking:
    """One endpoint at work on questions, within one event loop.

    Args:
        client: the endpoint and its model.
        health: what is known of the endpoint.
        concurrency: questions in work at once.
        max_attempts: requests that a question may make.
    """

    def __init__(self, client: OpenAIClient, health: EndpointHealth, concurrency: int, max_attempts: int):
        self._client, self._health, self._max_attempts = client, health, max_attempts
        self._slots, self._limits = asyncio.Semaphore(concurrency), LocalLimits()

    async def answer_all(self, questions: Sequence[Question]) -> None:
        """Answer each question that can be answered.

        Raises:
            FatalError: nothing further can succeed; questions that were answered before have their answers.
        """
        tasks = [asyncio.create_task(self._answer(question)) for question in questions]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, question: Question) -> None:
        async with self._slots:
            rejected = False
            while question.attempts < self._max_attempts:
                outcome = await self._request(question)
                if isinstance(outcome, Failure):
                    question.trouble = outcome.reason
                    if outcome.verdict in ("row", "refused"):
                        return
                    await self._wait(question, outcome)
                elif self._takes(question, outcome) or rejected:
                    return
                else:
                    rejected = True

    def _takes(self, question: Question, completion: Completion) -> bool:
        """Whether a completion answers the question; if not, it is asked otherwise the next time."""
        question.model = completion.model
        question.tokens_in += completion.tokens_in
        question.tokens_out += completion.tokens_out
        content = (completion.content or "").strip()
        fenced = _FENCED.fullmatch(content)
        refused = completion.refusal or completion.finish_reason == "content_filter"
        if not refused and question.accepts(fenced.group(1) if fenced else content):
            return True
        question.trouble = "refused" if refused else "cut_off" if completion.finish_reason == "length" else "not_json"
        said = content or completion.refusal or ""
        question.messages = corrected(question.messages, said, "refused" if refused else "not_json", max_words=0)
        return False

    async def _request(self, question: Question) -> Completion | Failure:
        await self._limits.acquire(0)
        self._health.check()
        question.attempts += 1
        try:
            completion = await self._client.complete(question.messages, question.schema)
        except openai.APIError as error:
            failure = classify(error, self._client)
        else:
            self._health.answered()
            return completion
        # Outside the handler, so that no error of the endpoint, which may repeat the key, becomes this one's context.
        self._health.failed(failure)
        if failure.verdict == "unreachable" and question.attempts >= self._max_attempts:
            raise FatalError(
                f"{self._client.base_url} cannot be used ({failure}); check profile.compute.base_url, and that the "
                "server is up"
            )
        return failure

    async def _wait(self, question: Question, failure: Failure) -> None:
        """Until the next request may be sent; everybody waits where the endpoint asks for it."""
        if question.attempts >= self._max_attempts:
            return
        if failure.wait:
            await self._limits.pause(failure.wait)
            await asyncio.sleep(failure.wait + random.uniform(0.0, min(0.1 * failure.wait, 1.0)))
        else:
            backoff = min(_FIRST_BACKOFF * 2.0 ** (question.attempts - 1), _LONGEST_BACKOFF)
            await asyncio.sleep(random.uniform(0.5, 1.0) * backoff)
