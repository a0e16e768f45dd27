"""Limits on requests and tokens a minute.

`RateLimiter` is arithmetic on the clock that the caller passes; who waits, and where, is a `CallLimits`' business. The
arithmetic is the generic cell rate algorithm (ITU-T I.371), a token bucket that stores one time instead of a level.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

SECONDS_PER_MINUTE = 60.0


class _Bucket:
    """One limit: amounts are turned into the seconds that they take at the permitted rate."""

    def __init__(self, per_minute: float, burst_seconds: float):
        self.seconds_each = SECONDS_PER_MINUTE / per_minute
        self.burst = burst_seconds
        self.empty_until = float("-inf")  # when all that was booked will have been earned ("theoretical arrival time")

    def earliest(self, amount: int) -> float:
        """When `amount` may be sent: as soon as the bucket holds it or, where it is more than fits, is full."""
        return self.empty_until + min(amount * self.seconds_each, self.burst) - self.burst

    def book(self, amount: int, at: float) -> None:
        self.empty_until = max(self.empty_until, at) + amount * self.seconds_each

    def give_back(self, amount: int) -> None:
        self.empty_until -= amount * self.seconds_each


class RateLimiter:
    """Says when a request may be sent, so that no window exceeds the rate by more than one burst.

    In any window of T seconds at most `rate * T + burst` requests are sent, the burst being what `burst_seconds` earn,
    or one request if that is more; the same holds for tokens as they were estimated, the burst being then at least
    one row's. Requests are granted in the order in which they were booked.

    Args:
        requests_per_minute, tokens_per_minute: the limits; None: unlimited.
        burst_seconds: how much of unused time may be made up for at once.
    """

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None, burst_seconds: float = 1.0):
        self._requests = _Bucket(requests_per_minute, burst_seconds) if requests_per_minute else None
        self._tokens = _Bucket(tokens_per_minute, burst_seconds) if tokens_per_minute else None
        self._paused_until = self._last = float("-inf")
        self._booked: deque[tuple[float, int]] = deque()
        self.pauses = 0

    def reserve(self, tokens: int, now: float) -> float:
        """Book a request of `tokens` and say how many seconds to wait before sending it.

        A pause that begins in the meantime (`pauses` has grown) voids the booking: reserve again.
        """
        at = max(now, self._paused_until, self._last)
        for bucket, amount in self._buckets(1, tokens):
            at = max(at, bucket.earliest(amount))
        for bucket, amount in self._buckets(1, tokens):
            bucket.book(amount, at)
        self._last = at
        while self._booked and self._booked[0][0] <= now:
            self._booked.popleft()
        if at > now:
            self._booked.append((at, tokens))
        return at - now

    def settle(self, difference: int, now: float) -> None:
        """Correct the account by the tokens really used minus those estimated."""
        if self._tokens and difference > 0:
            self._tokens.book(difference, now)
        elif self._tokens:
            self._tokens.give_back(-difference)

    def pause(self, seconds: float, now: float) -> None:
        """Let nobody send before `now + seconds`; bookings for a later time than `now` are void."""
        if now + seconds <= max(now, self._paused_until):
            return
        self._paused_until = now + seconds
        self.pauses += 1
        void = [tokens for at, tokens in self._booked if at > now]
        for bucket, amount in self._buckets(len(void), sum(void)):
            bucket.give_back(amount)
        self._booked.clear()
        self._last = now

    def _buckets(self, requests: int, tokens: int) -> list[tuple[_Bucket, int]]:
        both = ((self._requests, requests), (self._tokens, tokens))
        return [(bucket, amount) for bucket, amount in both if bucket]


class CallLimits(Protocol):
    """Where writers wait before they send."""

    async def acquire(self, tokens: int) -> None:
        """Return when a request of about `tokens` may be sent."""
        ...

    async def settle(self, estimated: int, actual: int) -> None:
        """Tell how many tokens a request took that had been estimated."""
        ...

    async def pause(self, seconds: float) -> None:
        """Let nobody send for some seconds; a longer pause that is on stays."""
        ...


class LocalLimits(CallLimits):
    """Limits for the writers of one process, or of many where it runs as a service that they share."""

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_seconds: float = 1.0,
    ):
        self._limiter = RateLimiter(requests_per_minute, tokens_per_minute, burst_seconds)

    async def acquire(self, tokens: int) -> None:
        while True:
            pauses = self._limiter.pauses
            wait = self._limiter.reserve(tokens, time.monotonic())
            if wait <= 0:
                return
            await asyncio.sleep(wait)
            if self._limiter.pauses == pauses:
                return

    async def settle(self, estimated: int, actual: int) -> None:
        self._limiter.settle(actual - estimated, time.monotonic())

    async def pause(self, seconds: float) -> None:
        self._limiter.pause(seconds, time.monotonic())
