"""Texts from a chat model behind an OpenAI-compatible endpoint: repetition, limits, deadlines, and what failed why.

What is asked is `prompts.py`'s business, what counts as an answer `parsing.py`'s, what an error means `failures.py`'s.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field

import openai

from xrec.config.profile import TextKind
from xrec.profiles.answers import Answer, FatalError, Writer
from xrec.profiles.client import Completion, OpenAIClient
from xrec.profiles.failures import EndpointHealth, Failure, classify
from xrec.profiles.parsing import AnswerError, Reason, parse_answer
from xrec.profiles.prompts import SCHEMAS, Prompts
from xrec.profiles.rate_limit import CallLimits, LocalLimits
from xrec.profiles.tokens import estimate_message_tokens

__all__ = ["Answer", "ChatWriter", "FatalError", "Writer"]

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.5, 20.0

_CORRECTIONS = {
    "not_json": "That was not the JSON object asked for. Answer again with that one JSON object and nothing else.",
    "empty": "The text was empty. Answer again with the JSON object asked for, with a text in it.",
    "too_long": "The text was too long. Answer again with the same JSON object and at most {max_words} words of text.",
    "refused": "Nothing is asked but what the data say. Answer again with the JSON object asked for, and rely on the "
    "harmless parts of the data.",
    "cut_off": "The answer was cut off. Answer again with the JSON object asked for and at most {max_words} words of "
    "text.",
}


def corrected(messages: list[dict[str, str]], said: str, reason: Reason, max_words: int) -> list[dict[str, str]]:
    """The chat that asks once more, after an answer that was of no use.

    Args:
        messages: what was asked.
        said: the answer.
        reason: why it was rejected.
        max_words: the longest text that is accepted.
    """
    # Chat templates want roles to take turns, and some endpoints want every message to say something.
    return [
        *messages,
        {"role": "assistant", "content": said or "{}"},
        {"role": "user", "content": _CORRECTIONS[reason].format(max_words=max_words)},
    ]


class _RowError(Exception):
    """A row is given up; the message is its error."""


@dataclass
class _Row:
    """How far a row has come; `trouble` is what kept it from the last answer, for its error."""

    kind: TextKind
    messages: list[dict[str, str]]
    model: str
    attempts: int = 0
    failures: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    trouble: str = ""
    started: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def answer(self, text: str, error: str | None = None) -> Answer:
        status = "ok" if error is None else "failed"
        tokens = (self.tokens_in, self.tokens_out)
        return Answer(text, self.model, *tokens, self.attempts, self.elapsed(), status, error)


class ChatWriter(Writer):
    """Asks a model for one text a record, many at once.

    A request that fails for a passing reason is repeated, with exponential backoff or after the time that the endpoint
    asks for, until the row has made `max_attempts` requests or taken `deadline` seconds. An answer that is of no use is
    asked for again once, with a word on what was wrong.

    Args:
        client: the endpoint and its model.
        prompts: makes the messages.
        max_words: longest text that is accepted.
        concurrency: rows in work at once, over all `write` calls.
        deadline: seconds that a row may take from its first request on, waiting included.
        max_attempts: requests that a row may make.
        limits: shared with other writers; None: no limits but a wait that the endpoint asks for.
    """

    def __init__(
        self,
        client: OpenAIClient,
        prompts: Prompts,
        *,
        max_words: int = 50,
        concurrency: int = 64,
        deadline: float = 300.0,
        max_attempts: int = 8,
        limits: CallLimits | None = None,
    ):
        self.client, self.prompts, self.limits = client, prompts, limits or LocalLimits()
        self.max_words, self.deadline, self.max_attempts = max_words, deadline, max_attempts
        self._slots = asyncio.Semaphore(concurrency)
        self._health = EndpointHealth(client)

    async def write(self, kind: TextKind, records: list[str]) -> list[Answer]:
        tasks = [asyncio.create_task(self._write_row(kind, record)) for record in records]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write_row(self, kind: TextKind, record: str) -> Answer:
        async with self._slots:
            self._health.check()
            messages = self.prompts.messages(kind, record)
            await self.limits.acquire(self._estimate(messages))
            row = _Row(kind, messages, self.client.model)
            try:
                async with asyncio.timeout(self.deadline):
                    return row.answer(await self._text(row))
            except _RowError as error:
                return row.answer("", self.client.redact(str(error)))
            except TimeoutError:
                return row.answer("", self._overdue(row))

    async def _text(self, row: _Row) -> str:
        """The row's text, asked for once more where the first answer is of no use."""
        for last in (False, True):
            completion = await self._ask(row)
            try:
                return parse_answer(row.kind, completion, self.max_words)
            except AnswerError as error:
                rejected = error
            row.trouble = f"{rejected.reason}: {rejected}"
            if last or row.attempts >= self.max_attempts:
                break
            said = completion.content or completion.refusal or ""
            row.messages = corrected(row.messages, said, rejected.reason, self.max_words)
            await self.limits.acquire(self._estimate(row.messages))
        raise _RowError(row.trouble)

    async def _ask(self, row: _Row) -> Completion:
        """What the model says, through as many requests as it takes."""
        while True:
            outcome = await self._request(row)
            if isinstance(outcome, Completion):
                return outcome
            row.trouble = str(outcome)
            if outcome.verdict in ("row", "refused") or row.attempts >= self.max_attempts:
                raise _RowError(row.trouble)
            await self._wait(row, outcome)

    async def _request(self, row: _Row) -> Completion | Failure:
        self._health.check()
        estimated = self._estimate(row.messages)
        row.attempts += 1
        try:
            completion = await self.client.complete(row.messages, SCHEMAS[row.kind])
        except openai.APIError as error:
            failure = classify(error, self.client)
        else:
            self._health.answered()
            row.model = completion.model
            row.tokens_in += completion.tokens_in
            row.tokens_out += completion.tokens_out
            await self.limits.settle(estimated, completion.tokens_in + completion.tokens_out)
            return completion
        # Outside the handler, so that no error of the endpoint, which may repeat the key, becomes this one's context.
        row.attempts -= failure.verdict == "unreachable"
        self._health.failed(failure)
        if failure.settles:
            await self.limits.settle(estimated, 0)
        return failure

    async def _wait(self, row: _Row, failure: Failure) -> None:
        """Until the next request may be sent; everybody waits where the endpoint asks for it."""
        if failure.wait:
            wait = failure.wait + random.uniform(0.0, min(0.1 * failure.wait, 1.0))
            await self.limits.pause(failure.wait)
        else:
            # The exponent is bounded because an endpoint out of reach is tried for as long as the deadline allows.
            backoff = _FIRST_BACKOFF * 2.0 ** min(row.failures, 10)
            wait = random.uniform(0.5, 1.0) * min(backoff, _LONGEST_BACKOFF)
        row.failures += 1
        if row.elapsed() + wait >= self.deadline:
            raise _RowError(self._overdue(row))
        await asyncio.sleep(wait)
        await self.limits.acquire(self._estimate(row.messages))

    def _overdue(self, row: _Row) -> str:
        passed = f"deadline: no answer within {self.deadline:g} s"
        return self.client.redact(f"{passed}; the last trouble was {row.trouble}" if row.trouble else passed)

    def _estimate(self, messages: list[dict[str, str]]) -> int:
        """Tokens that a request may take: endpoints hold the longest answer against a limit, too."""
        return estimate_message_tokens(messages) + self.client.max_tokens
