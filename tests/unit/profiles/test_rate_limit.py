"""Limits: no window is ever overrun, and nearly nothing of what is allowed is lost."""

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrec.profiles.rate_limit import LocalLimits, RateLimiter
from xrec.profiles.tokens import estimate_message_tokens, estimate_tokens

_ROUNDING = 1e-6


def assert_no_window_is_overrun(sent: list[tuple[float, int]], per_second: float, burst: float) -> None:
    """Every window between two sendings, both included, by brute force."""
    for i, (start, _) in enumerate(sent):
        total = 0.0
        for at, amount in sent[i:]:
            total += amount
            assert total <= per_second * (at - start) + burst + _ROUNDING


arrivals = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 400)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=200)
@given(
    arrivals=arrivals,
    requests=st.floats(6, 6000),
    tokens=st.one_of(st.none(), st.floats(60, 60_000)),
    burst=st.floats(0.1, 3),
)
def test_no_window_exceeds_the_rate_by_more_than_a_burst(arrivals, requests, tokens, burst):
    limiter = RateLimiter(requests, tokens, burst)
    now, sent = 0.0, []
    for gap, amount in arrivals:
        now += gap
        sent.append((now + limiter.reserve(amount, now), amount))
    assert [at for at, _ in sent] == sorted(at for at, _ in sent)
    rate = requests / 60
    assert_no_window_is_overrun([(at, 1) for at, _ in sent], rate, max(1.0, rate * burst))
    if tokens:
        rate = tokens / 60
        assert_no_window_is_overrun(sent, rate, max(rate * burst, *(amount for _, amount in arrivals), 1))


@settings(deadline=None, max_examples=200)
@given(arrivals=arrivals, pauses=st.lists(st.tuples(st.integers(0, 59), st.floats(0.01, 5)), max_size=4))
def test_a_pause_voids_what_was_booked_and_the_rate_holds_after_it(arrivals, pauses):
    limiter = RateLimiter(600, 6000, 1.0)
    at_arrival = dict(pauses)
    now, until, waiting, sent = 0.0, 0.0, [], []
    for i, (gap, amount) in enumerate(arrivals):
        now += gap / 10
        sent += [booking for booking in waiting if booking[0] <= now]
        waiting = [booking for booking in waiting if booking[0] > now]
        waiting.append((now + limiter.reserve(amount, now), amount))
        if i in at_arrival:
            sent += [booking for booking in waiting if booking[0] <= now]
            void = [booking for booking in waiting if booking[0] > now]
            before = limiter.pauses
            limiter.pause(at_arrival[i], now)
            until = max(until, now + at_arrival[i])
            if limiter.pauses > before:
                waiting = [(now + limiter.reserve(amount, now), amount) for _, amount in void]
            assert all(at >= until - _ROUNDING for at, _ in waiting)
    sent += waiting
    assert_no_window_is_overrun([(at, 1) for at, _ in sent], 10.0, 10.0)
    assert_no_window_is_overrun(sent, 100.0, max(100, *(amount for _, amount in sent), 1))


def test_a_steady_queue_gets_the_whole_rate():
    limiter = RateLimiter(6000, None)
    waits = [limiter.reserve(100, 0.0) for _ in range(1500)]
    sent_in_ten_seconds = sum(wait < 10.0 for wait in waits)
    assert 1000 <= sent_in_ten_seconds <= 1100
    assert waits[:101] == pytest.approx([0.0] * 100 + [0.01])


def test_a_row_larger_than_the_burst_passes_and_is_paid_for_afterwards():
    limiter = RateLimiter(None, 600)
    assert limiter.reserve(100, 0.0) == 0.0
    assert limiter.reserve(1, 0.0) == pytest.approx(9.1)
    assert limiter.reserve(100, 10.2) == 0.0, "the bucket is full again at 10.1"


def test_tokens_that_were_not_used_come_back_and_those_used_beyond_are_charged():
    limiter = RateLimiter(None, 60 * 100)
    limiter.reserve(100, 0.0)
    assert limiter.reserve(50, 0.0) == pytest.approx(0.5)
    limiter.settle(-50, 0.0)
    limiter.settle(-50, 0.0)
    assert limiter.reserve(50, 0.5) == 0.0
    limiter.settle(100, 0.5)
    assert limiter.reserve(50, 0.5) == pytest.approx(1.0)


def test_nobody_is_overtaken_when_tokens_come_back():
    limiter = RateLimiter(None, 60 * 100)
    assert [limiter.reserve(100, 0.0) for _ in range(3)] == pytest.approx([0.0, 1.0, 2.0])
    limiter.settle(-200, 0.5)
    assert limiter.reserve(10, 0.5) == pytest.approx(1.5), "as soon as the third"


def test_without_limits_only_a_pause_makes_wait():
    limiter = RateLimiter(None, None)
    assert [limiter.reserve(10**9, 5.0) for _ in range(3)] == [0.0] * 3
    limiter.pause(2.0, 5.0)
    assert limiter.reserve(1, 6.0) == pytest.approx(1.0)


def test_a_pause_is_extended_and_never_shortened():
    limiter = RateLimiter(None, None)
    limiter.pause(10.0, 0.0)
    limiter.pause(1.0, 2.0)
    assert limiter.reserve(1, 3.0) == pytest.approx(7.0)
    limiter.pause(10.0, 4.0)
    assert limiter.reserve(1, 4.0) == pytest.approx(10.0)


def test_pauses_do_not_use_up_the_rate():
    """Whoever waits books again after a pause; the booking that became void is given back."""
    limiter = RateLimiter(60, 6000, 1.0)
    for _ in range(50):
        limiter.reserve(100, 0.0)
    limiter.pause(1.0, 0.0)
    assert [limiter.reserve(100, 0.0) for _ in range(3)] == pytest.approx([1.0, 2.0, 3.0])


def test_a_pause_reaches_those_who_wait_already():
    async def scenario() -> list[float]:
        limits = LocalLimits(600)
        times: list[float] = []

        async def one():
            await limits.acquire(1)
            times.append(time.monotonic())

        tasks = [asyncio.create_task(one()) for _ in range(14)]
        await asyncio.sleep(0.05)
        paused_at = time.monotonic()
        await limits.pause(0.6)
        await asyncio.gather(*tasks)
        return [at - paused_at for at in times]

    times = asyncio.run(scenario())
    assert sum(at < 0 for at in times) == 10
    assert min(at for at in times if at > 0) >= 0.6


def test_tokens_are_estimated_from_bytes():
    assert [estimate_tokens(text) for text in ("", "a", "abcd", "abcde", "日本語です")] == [0, 1, 1, 2, 4]
    messages = [{"role": "system", "content": "abcd"}, {"role": "user", "content": "abcdefgh"}]
    assert estimate_message_tokens(messages) == 1 + 2 + 2 * 4
