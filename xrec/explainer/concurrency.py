"""What asynchronous engines and their callers share: work that ends together, and values from another thread."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure, or a cancellation, ends all others."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class Handover(Generic[T]):
    """Values that any thread puts in, and the event loop that it was made in reads, up to None."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._values: asyncio.Queue[T | None] = asyncio.Queue()

    def put(self, value: T | None) -> None:
        # A loop that has ended has nobody who listens.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._values.put_nowait, value)

    async def __aiter__(self) -> AsyncIterator[T]:
        while (value := await self._values.get()) is not None:
            yield value
