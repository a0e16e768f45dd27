"""One rate limit and one budget for all actors of the stage `profile`, in an actor of their own.

The arithmetic is `xrec.profiles`' business (`rate_limit.py`, `accounting.py`).
"""

import asyncio
import contextlib
import time
from typing import Any

from ray.exceptions import RayError

from xrec.profiles.accounting import Budget
from xrec.profiles.rate_limit import CallLimits, RateLimiter


class SharedLimits:
    """The rate limit and the budget of all actors: the one place that knows what everybody sends and spends."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, budget: Budget):
        self.limiter = RateLimiter(requests_per_minute, tokens_per_minute)
        self.budget = budget
        self.settled = asyncio.Condition()

    async def reserve_calls(self, tokens: list[int], correction: int) -> tuple[list[float], int]:
        """Book requests of so many tokens each; returns seconds to wait for each, and the number of pauses so far."""
        now = time.monotonic()
        if correction:
            self.limiter.settle(correction, now)
        return [self.limiter.reserve(count, now) for count in tokens], self.limiter.pauses

    async def pause(self, seconds: float) -> None:
        self.limiter.pause(seconds, time.monotonic())

    async def pauses(self) -> int:
        return self.limiter.pauses

    async def reserve_cost(self, amount: float, patience: float) -> bool:
        """Whether a block that may cost `amount` may begin: it waits for room while others are at work.

        Args:
            patience: seconds to wait at most; a block whose actor was killed never settles what it had reserved.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience), self.settled:
                await self.settled.wait_for(lambda: self.budget.fits(amount) or self.budget.blocks == 0)
        return self.budget.reserve(amount)

    async def settle_cost(self, reserved: float, spent: float) -> None:
        async with self.settled:
            self.budget.settle(reserved, spent)
            self.settled.notify_all()


class RemoteLimits(CallLimits):
    """One actor's side of `SharedLimits`: asks for all rows that wait in one call, so that asking costs little."""

    def __init__(self, shared: Any):
        self.shared, self.correction = shared, 0
        self.waiting: list[tuple[int, asyncio.Future[tuple[float, int]]]] = []
        self.asking: asyncio.Task | None = None
        self.checking: asyncio.Future[int] | None = None

    async def acquire(self, tokens: int) -> None:
        while True:
            granted: asyncio.Future[tuple[float, int]] = asyncio.get_running_loop().create_future()
            self.waiting.append((tokens, granted))
            if self.asking is None or self.asking.done():
                self.asking = asyncio.create_task(self._ask())
            delay, pauses = await granted
            if delay <= 0:
                return
            await asyncio.sleep(delay)
            if await self._current_pauses() == pauses:  # a pause in the meantime has voided the booking
                return

    async def settle(self, estimated: int, actual: int) -> None:
        self.correction += actual - estimated

    async def pause(self, seconds: float) -> None:
        await self.shared.pause.remote(seconds)

    async def _current_pauses(self) -> int:
        """How many pauses there were; rows that wake together ask together."""
        checking = self.checking
        if checking is None or checking.done():
            checking = self.checking = asyncio.ensure_future(self.shared.pauses.remote())
        # Shielded, because a row that is given up must not take the question from the others.
        return await asyncio.shield(checking)

    async def _ask(self) -> None:
        while self.waiting:
            asked, self.waiting = self.waiting, []
            correction, self.correction = self.correction, 0
            try:
                delays, pauses = await self.shared.reserve_calls.remote([t for t, _ in asked], correction)
            except RayError as error:  # whoever waits has to learn of it
                for _, granted in asked:
                    if not granted.done():
                        granted.set_exception(error)
                raise
            for (_, granted), delay in zip(asked, delays, strict=True):
                if not granted.done():  # its row may have been given up meanwhile
                    granted.set_result((delay, pauses))
