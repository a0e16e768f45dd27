"""The limits that actors share, with the service in this process: its methods are called as an actor's are."""

import asyncio
import time

import pytest

from ray_jobs.shared_limits import RemoteLimits, SharedLimits
from xrec.profiles.accounting import Budget


class InProcess:
    """Stands for an actor's handle: `handle.method.remote(...)` is awaited; counts the calls."""

    def __init__(self, service):
        self.service, self.calls = service, []

    def __getattr__(self, name):
        async def remote(*arguments):
            self.calls.append((name, arguments))
            await asyncio.sleep(0.001)
            return await getattr(self.service, name)(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})


def service(requests=None, tokens=None, cap=None):
    return InProcess(SharedLimits(requests, tokens, Budget(cap)))


def test_two_actors_share_one_rate():
    async def scenario():
        handle, sent = service(requests=6000), []
        sides = [RemoteLimits(handle), RemoteLimits(handle)]

        async def row(side):
            await side.acquire(10)
            sent.append(time.monotonic())

        started = time.monotonic()
        await asyncio.gather(*(row(side) for side in sides for _ in range(90)))
        return sorted(at - started for at in sent), handle.calls

    sent, calls = asyncio.run(scenario())
    assert len(sent) == 180
    # 100 a second with a burst of 100: the n-th request may not be sent before its time.
    assert all(at >= (n - 100) / 100 - 0.05 for n, at in enumerate(sent))
    asked = [arguments[0] for name, arguments in calls if name == "reserve_calls"]
    assert sum(map(len, asked)) == 180
    assert len(asked) < 20, "rows ask one by one"


def test_corrections_travel_with_the_next_question():
    async def scenario():
        handle = service(tokens=60_000)
        side = RemoteLimits(handle)
        await side.acquire(100)
        await side.settle(100, 40)
        await side.settle(100, 350)
        await side.acquire(5)
        return [arguments for name, arguments in handle.calls if name == "reserve_calls"]

    assert asyncio.run(scenario()) == [([100], 0), ([5], 190)]


def test_a_pause_holds_those_who_wait_in_other_actors():
    async def scenario():
        handle = service(requests=600)  # ten a second, ten at once
        waiting, other = RemoteLimits(handle), RemoteLimits(handle)
        await asyncio.gather(*(waiting.acquire(1) for _ in range(10)))
        row = asyncio.create_task(waiting.acquire(1))  # its turn is in a tenth of a second
        await asyncio.sleep(0.02)
        paused = time.monotonic()
        await other.pause(0.5)
        await row
        return time.monotonic() - paused

    assert asyncio.run(scenario()) >= 0.5


def test_a_row_that_is_given_up_takes_nothing_from_the_others():
    async def scenario():
        handle = service(requests=600)
        side = RemoteLimits(handle)
        await asyncio.gather(*(side.acquire(1) for _ in range(10)))
        rows = [asyncio.create_task(side.acquire(1)) for _ in range(6)]
        await asyncio.sleep(0.12)  # the first two are asking for pauses or done
        for row in rows[::2]:
            row.cancel()
        return await asyncio.gather(*rows, return_exceptions=True)

    results = asyncio.run(scenario())
    assert [type(result) for result in results[1::2]] == [type(None)] * 3


def test_a_block_waits_for_room_in_the_budget_and_is_told_when_there_is_none():
    async def scenario():
        limits = SharedLimits(None, None, Budget(10.0))
        assert await limits.reserve_cost(6.1, patience=5)
        second = asyncio.create_task(limits.reserve_cost(6.1, patience=5))
        await asyncio.sleep(0.01)
        assert not second.done()
        await limits.settle_cost(6.1, 1.3)
        assert await second
        await limits.settle_cost(6.1, 2.7)
        assert not await limits.reserve_cost(6.1, patience=5), "nobody is at work, so waiting would not help"
        assert await limits.reserve_cost(5.9, patience=5)
        assert not await limits.reserve_cost(1.0, patience=0.05), "an actor that was killed never settles"
        return limits.budget.spent

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == pytest.approx(4.0)
