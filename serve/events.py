"""Answers as server-sent events: explanations as they grow, and an explicit end, good or bad."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar

from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from ray.exceptions import RayError
from starlette.requests import Request

from serve import errors
from serve.service import Written
from xrec.serving.queries import RequestError

T = TypeVar("T")
_log = logging.getLogger("ray.serve")
# What a tokenizer shows for a character of which only some bytes are there yet.
_INCOMPLETE = "\ufffd"


class Event(NamedTuple):
    """One event: its name, and data to be sent as JSON (a text is sent as it is)."""

    name: str | None
    data: Any

    def encode(self) -> str:
        data = self.data.model_dump_json() if isinstance(self.data, BaseModel) else str(self.data)
        return (f"event: {self.name}\n" if self.name else "") + f"data: {data}\n\n"


class Delta(BaseModel):
    """A piece of one explanation; the event `explanation` has the whole, which may be shorter."""

    index: int
    text: str


async def event_stream(request: Request, events: AsyncGenerator[Event, None]) -> StreamingResponse:
    """A response that sends events. What fails before the first is raised here, and so has its own status; what fails
    later is the last event.

    Raises:
        RequestError: the request cannot be answered.
    """
    first = await anext(events)

    async def sending() -> AsyncIterator[str]:
        async with aclosing(events):
            yield first.encode()
            try:
                async for event in events:
                    yield event.encode()
            except RequestError as error:
                request.state.code = error.code
                yield Event("error", errors.body(error)).encode()
            except RayError:
                request.state.code = "internal_error"
                _log.exception("a stream failed")
                yield Event("error", errors.body(errors.internal())).encode()

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(sending(), media_type="text/event-stream", headers=headers)


async def growing(
    updates: AsyncGenerator[tuple[int, str | Written], None], deadline: float
) -> AsyncGenerator[tuple[int, str | Written], None]:
    """Texts so far become pieces: what is new since the last one.

    Raises:
        RequestError: the deadline passes (504).
    """
    sent: dict[int, str] = {}
    async with aclosing(updates):
        while True:
            try:
                index, update = await before(deadline, anext(updates))
            except StopAsyncIteration:
                return
            if isinstance(update, Written):
                yield index, update
                continue
            text, known = update.rstrip(_INCOMPLETE), sent.get(index, "")
            if len(text) > len(known) and text.startswith(known):
                sent[index] = text
                yield index, text[len(known) :]


async def before(deadline: float, work: Awaitable[T]) -> T:
    """The result of work that is ended at a clock time (`time.monotonic`).

    Raises:
        RequestError: the deadline passes first (504).
    """
    try:
        return await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
    except TimeoutError as error:
        raise RequestError(
            504, "deadline_exceeded", "the answer took longer than the deadline; ask for fewer pairs, or later"
        ) from error
