"""A language model as a judge behind an OpenAI-compatible endpoint: its answers checked, kept, counted and priced.

What is asked is the metrics' business (`gpt_score.py`, `entailment.py`), how `judge_requests.py`'s, and what is kept
`judge_cache.py`'s.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from xrec.config.evaluation import JudgeConfig
from xrec.evaluation.judge_cache import AnswerCache, KeptAnswer, key_of
from xrec.evaluation.judge_requests import Asking, Chat, Parsed, Question
from xrec.profiles.accounting import cost_of
from xrec.profiles.answers import FatalError
from xrec.profiles.client import OpenAIClient
from xrec.profiles.failures import EndpointHealth
from xrec.workspace import Workspace

__all__ = ["FatalError", "Judge"]

# The endpoint's errors name the settings of `profile`; a judge's are these.
_SETTINGS = (
    (r"set profile\.temperature to [^;]*", "name a judge that takes temperature 0 in evaluate.judge.models"),
    (r"\bprofile\.model\b", "evaluate.judge.models"),
    (r"\bprofile\.(?:compute\.)?(?=\w)", "evaluate.judge."),
)


class Judge:
    """One model that answers questions in JSON, at temperature 0.

    A request that fails for a passing reason is repeated, and an answer of no use is asked for again once, with a word
    on what was wrong, until `config.max_attempts` requests are made. What then has no answer is unscored: it is None,
    it is counted, and the next run asks again.

    Args:
        model: its name at the endpoint.
        config: the endpoint and how to ask.
        cache: workspace that keeps the answers; None: this object keeps them.

    Raises:
        FatalError: there is no key, and no kept answer to do without.
    """

    def __init__(self, model: str, config: JudgeConfig, cache: Workspace | None = None):
        self.model, self.config = model, config
        self._kept = AnswerCache(cache, model)
        self._health: EndpointHealth | None = None
        self._calls = self._cached = self._tokens_in = self._tokens_out = 0
        self._unscored: Counter[str] = Counter()
        if not len(self._kept):
            self._key()

    def ask(self, chats: Sequence[Chat], schema: dict[str, Any], parse: Callable[[str], Parsed]) -> list[Parsed | None]:
        """Put every question, many at once; not from within a running event loop.

        Args:
            chats: n lists of messages. They must say that JSON is wanted, and its shape: not every endpoint is told
                of the schema.
            schema: JSON schema of an answer.
            parse: makes of the JSON document, its code fence removed, what is returned; a ValueError means that the
                document is of no use.

        Returns:
            n results, in order; None where the judge gave no usable answer.

        Raises:
            FatalError: nothing further can succeed (a wrong key, an unknown model, an endpoint out of reach); the
                answers so far are kept.
        """
        keys = [key_of(self.model, chat, schema) for chat in chats]
        questions = {key: Question(chat, schema, parse) for key, chat in zip(keys, chats, strict=True)}
        waiting = {key: question for key, question in questions.items() if not self._answered_before(key, question)}
        self._cached += len(chats) - len(waiting)
        if waiting:
            self._answer(waiting)
        answers = [questions[key].answer for key in keys]
        self._unscored.update(questions[key].trouble for key in keys if questions[key].answer is None)
        return answers

    def facts(self) -> dict[str, Any]:
        """Counts since this was made.

        `calls` are requests, repetitions included; `cached` questions that needed none; `unscored` questions without
        an answer, and `reasons` why. `tokens_in` and `tokens_out` are of the requests; `cost` is None without a price.
        """
        return {
            "calls": self._calls,
            "cached": self._cached,
            "unscored": self._unscored.total(),
            "reasons": dict(self._unscored),
            "tokens_in": self._tokens_in,
            "tokens_out": self._tokens_out,
            "cost": cost_of(self._tokens_in, self._tokens_out, self.config.prices.get(self.model)),
        }

    def _answered_before(self, key: str, question: Question) -> bool:
        content = self._kept.get(key)
        return content is not None and question.accepts(content)

    def _answer(self, waiting: dict[str, Question]) -> None:
        try:
            asyncio.run(self._ask(list(waiting.values())))
        except FatalError as error:
            raise FatalError(_renamed(str(error))) from None
        finally:  # also what an error leaves behind is paid for
            self._calls += sum(question.attempts for question in waiting.values())
            self._tokens_in += sum(question.tokens_in for question in waiting.values())
            self._tokens_out += sum(question.tokens_out for question in waiting.values())
            self._kept.add(
                [
                    KeptAnswer(key, self.model, q.model, q.content, q.tokens_in, q.tokens_out)
                    for key, q in waiting.items()
                    if q.answer is not None
                ]
            )

    async def _ask(self, questions: list[Question]) -> None:
        config = self.config
        client = OpenAIClient(
            self.model,
            config.base_url,
            self._key(),
            max_tokens=config.max_tokens,
            structured_output=config.structured_output,
            request_timeout=config.request_timeout,
            concurrency=config.concurrency,
        )
        # It outlives the client: what is known of the endpoint holds for the next questions, too.
        self._health = self._health or EndpointHealth(client)
        try:
            await Asking(client, self._health, config.concurrency, config.max_attempts).answer_all(questions)
        finally:
            await client.close()

    def _key(self) -> str:
        try:
            return OpenAIClient.api_key_from(self.config.api_key_variable, self.config.base_url)
        except FatalError as error:
            raise FatalError(_renamed(str(error))) from None


def _renamed(message: str) -> str:
    for pattern, name in _SETTINGS:
        message = re.sub(pattern, name, message)
    return message
