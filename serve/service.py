"""What the API's routes do: look up, ask the cache, have the rest written, and put the answer together.

HTTP is `api.py`'s business, and what a lost replica means `calls.py`'s.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from cachetools import TTLCache

from serve.calls import call, overloaded, stream
from serve.metrics import ServerMetrics
from serve.schemas import ExplanationsRequest, Generation, Pair, SignalField, Usage
from xrec.config import ServeConfig
from xrec.explainer.engine import LEAST_TEMPERATURE, Sampling
from xrec.fingerprint import hash_of
from xrec.serving.live import Explanation, ExplanationTask
from xrec.serving.queries import ItemQuery, RequestError, Resolved, UserQuery


@dataclass
class Tally:
    """What a request has cost so far, for its log line and its figures.

    Attributes:
        dataset: that it was for.
        pairs: to explain.
    """

    dataset: str = ""
    pairs: int = 0
    cached: int = 0
    usage: Usage = field(default_factory=Usage)

    def add(self, explanation: Explanation) -> None:
        self.usage.prompt_tokens += explanation.prompt_tokens
        self.usage.completion_tokens += explanation.tokens
        self.usage.total_tokens = self.usage.prompt_tokens + self.usage.completion_tokens


@dataclass
class Written:
    """An explanation, and whether the cache had it."""

    explanation: Explanation
    cached: bool


@dataclass(frozen=True)
class RecommendationsQuery:
    """What is asked of a recommendation, by whichever route.

    Attributes:
        user: known or new.
        how: to write the explanations.
    """

    dataset: str | None
    user: UserQuery
    k: int
    explain: bool
    evidence: bool
    signal: SignalField
    how: Generation


class Service:
    """Answers requests with the two deployments behind it.

    Args:
        lookup, explainer: handles.
        config: limits and cache.
        metrics: what is counted.
    """

    def __init__(self, lookup: Any, explainer: Any, config: ServeConfig, metrics: ServerMetrics):
        self.lookup, self.explainer, self.config, self.metrics = lookup, explainer, config, metrics
        self.held = 0
        self._cache: TTLCache[str, Explanation] = TTLCache(config.cache.entries, config.cache.seconds)

    async def look_up(self, body: ExplanationsRequest, tally: Tally) -> Resolved:
        """What the explainer needs for each pair of a request.

        Raises:
            RequestError: an id is unknown, or a limit is passed.
        """
        users = [self._user(pair, f"pairs.{n}") for n, pair in enumerate(body.pairs)]
        items = [self._item(pair, f"pairs.{n}.item") for n, pair in enumerate(body.pairs)]
        try:
            resolved = await call(self.lookup.resolve, body.dataset, users, items, body.signal, body.evidence)
        except RequestError as error:
            if error.index is None:
                raise
            place = f"pairs.{error.index}" + (f".{error.field}" if error.field else "")
            raise RequestError(error.status, error.code, error.message, place) from error
        return self._counted(resolved, tally)

    async def recommend(self, query: RecommendationsQuery, tally: Tally) -> Resolved:
        """The user's top-k items, and what the explainer needs for each where they are to be explained.

        Raises:
            RequestError: an id is unknown, or a limit is passed.
        """
        user = query.user
        self._check_lengths(interactions=user.interactions, user_profile=user.profile)
        wanted = query.dataset, user, query.k, query.signal, query.explain, query.evidence
        return self._counted(await call(self.lookup.recommend, *wanted), tally)

    @contextmanager
    def admitted(self, pairs: int) -> Iterator[None]:
        """Hold room for pairs while they are answered.

        Raises:
            RequestError: there is none (503).
        """
        if self.held + pairs > self.config.limits.in_flight:
            raise overloaded()
        self._hold(pairs)
        try:
            yield
        finally:
            self._hold(-pairs)

    async def write(self, resolved: Resolved, how: Generation, tally: Tally) -> list[Written]:
        """Explanations of everything looked up, in order."""
        tasks = self._tasks(resolved, how)
        written = self._from_cache(tasks, tally)
        missing = [n for n, one in enumerate(written) if one is None]
        if missing:
            answers = await call(self.explainer.explain, [tasks[n] for n in missing])
            for n, explanation in zip(missing, answers, strict=True):
                written[n] = self._keep(tasks[n], explanation, tally)
        return [one for one in written if one is not None]

    async def write_streaming(
        self, resolved: Resolved, how: Generation, tally: Tally
    ) -> AsyncGenerator[tuple[int, str | Written], None]:
        """For each pair by its index: its text so far, again and again, and at last the explanation."""
        tasks = self._tasks(resolved, how)
        written = self._from_cache(tasks, tally)
        for n, one in enumerate(written):
            if one is not None:
                yield n, one
        missing = [n for n, one in enumerate(written) if one is None]
        if not missing:
            return
        async with aclosing(stream(self.explainer.stream, [tasks[n] for n in missing])) as updates:
            async for position, update in updates:
                n = missing[position]
                if isinstance(update, Explanation):
                    if update.first_token_seconds is not None:
                        self.metrics.first_token.observe(update.first_token_seconds, {"dataset": tally.dataset})
                    yield n, self._keep(tasks[n], update, tally)
                else:
                    yield n, update

    async def states(self) -> dict[str, Any]:
        return await call(self.lookup.states)

    async def ready(self) -> None:
        """Returns when every deployment answers."""
        await asyncio.gather(call(self.lookup.states), call(self.explainer.ready))

    def check(self, how: Generation, pairs: int, field: str) -> None:
        """Hold a request to the server's limits.

        Args:
            how: to write.
            pairs: how many, by the field that says so.

        Raises:
            RequestError: a limit is passed (422).
        """
        limits = self.config.limits
        _check_size(field, pairs, limits.pairs)
        _check_size("max_words", how.max_words, limits.words)
        _check_size("max_new_tokens", how.max_new_tokens, limits.new_tokens)

    def deadline(self, how: Generation) -> float:
        """The clock time (`time.monotonic`) at which a request has failed."""
        longest = self.config.limits.deadline_seconds
        return time.monotonic() + min(how.deadline_seconds or longest, longest)

    # ------------------------------------------------------------------------------------------------------------

    def _hold(self, pairs: int) -> None:
        self.held += pairs
        self.metrics.in_flight.set(self.held)

    def _counted(self, resolved: Resolved, tally: Tally) -> Resolved:
        tally.dataset, tally.pairs = resolved.dataset, len(resolved.inputs)
        new = sum(inputs.cold_start for inputs in resolved.inputs)
        if new:
            self.metrics.cold_starts.inc(new, {"dataset": resolved.dataset})
        return resolved

    def _user(self, pair: Pair, place: str) -> UserQuery:
        if pair.user_id is not None:
            return UserQuery(user_id=pair.user_id)
        own = tuple(pair.interactions or ())
        self._check_lengths(f"{place}.", interactions=own, user_profile=pair.user_profile)
        return UserQuery(interactions=own, profile=pair.user_profile)

    def _item(self, pair: Pair, place: str) -> ItemQuery:
        if pair.item is None:
            return ItemQuery(item_id=pair.item_id)
        own, new = tuple(pair.item.interactions), pair.item
        self._check_lengths(f"{place}.", interactions=own, profile=new.profile, title=new.title)
        return ItemQuery(title=new.title, interactions=own, profile=new.profile)

    def _check_lengths(self, place: str = "", *, interactions: Sequence[str], **texts: str | None) -> None:
        """Hold what a request says of a new user or item to the server's limits, by the names of its fields."""
        limits = self.config.limits
        _check_size(f"{place}interactions", len(interactions), limits.interactions)
        for name, text in texts.items():
            _check_size(f"{place}{name}", len(text or ""), limits.text_characters)

    def _tasks(self, resolved: Resolved, how: Generation) -> list[ExplanationTask]:
        # Between greedy and the least temperature there is nothing that a client could tell apart.
        temperature = max(how.temperature, LEAST_TEMPERATURE) if how.temperature > 0 else 0.0
        sampling = Sampling(how.max_words, how.max_new_tokens, temperature, how.top_p)
        tasks = []
        for n, (inputs, average) in enumerate(zip(resolved.inputs, resolved.averages, strict=True)):
            if how.temperature > 0:
                sampling = replace(sampling, seed=int(hash_of([how.seed, n])[:15], 16))
            tasks.append(ExplanationTask(inputs, sampling, average))
        return tasks

    def _from_cache(self, tasks: Sequence[ExplanationTask], tally: Tally) -> list[Written | None]:
        if not self._cache.maxsize:
            return [None] * len(tasks)
        found = [self._cache.get(task.key) for task in tasks]
        tally.cached = sum(one is not None for one in found)
        for result, count in (("hit", tally.cached), ("miss", len(found) - tally.cached)):
            if count:
                self.metrics.cache.inc(count, {"dataset": tally.dataset, "result": result})
        return [None if one is None else Written(one, True) for one in found]

    def _keep(self, task: ExplanationTask, explanation: Explanation, tally: Tally) -> Written:
        tally.add(explanation)
        if self._cache.maxsize:
            self._cache[task.key] = explanation
        return Written(explanation, False)


def _check_size(field: str, value: int, largest: int) -> None:
    if value > largest:
        message = f"{field} has or asks for {value}; this server takes {largest}"
        raise RequestError(422, "too_large", message, field)
