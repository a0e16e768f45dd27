"""A client that loads a server: so many callers at once, or so many requests a second; and one that reads streams.

What a reply should be is the tests' and the benchmark's business; here nothing that a server does is an error.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    Attributes:
        status: HTTP status; None where no whole reply came.
        seconds: from when the request was due until the whole reply was there or had failed.
        retry_after: the header Retry-After, in seconds.
        code: the body's `error.code`.
        body: the parsed JSON, where it is JSON.
        error: what went wrong where no whole reply came.
    """

    status: int | None
    seconds: float
    retry_after: float | None = None
    code: str | None = None
    body: Any = None
    error: Exception | None = None


@dataclass
class Stream:
    """A stream of server-sent events, read to its end.

    Attributes:
        status: HTTP status; None where there was no connection.
        events: (event, data) in order; data is parsed where it is JSON.
        times: when each came, in seconds from the request.
        end: the last event was `done` (or the data was [DONE]) or `error`; `cut` where it was neither.
        error: the exception that cut it, if one did.
    """

    status: int | None = None
    events: list[tuple[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    end: Literal["done", "error", "cut"] = "cut"
    error: Exception | None = None

    def text(self, index: int = 0) -> str:
        """The pieces of one explanation, joined."""
        return "".join(data["text"] for event, data in self.events if event == "delta" and data["index"] == index)


async def closed_loop(
    url: str,
    payloads: Sequence[Any],
    clients: int,
    seconds: float | None = None,
    requests: int | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> list[Reply]:
    """So many clients, each of which sends its next request when it has its reply.

    Args:
        url: requested with POST for a payload, with GET for None.
        payloads: taken in turn, again and again.
        clients: at once.
        seconds: no request is sent later; those sent are waited for.
        requests: sent in all; one of the two must be given.
        headers: of every request.
        timeout: of a request, in seconds.
    """
    if (seconds is None) == (requests is None):
        raise ValueError("closed_loop: give seconds or requests, not both")
    begun, replies = time.perf_counter(), []
    turns = itertools.islice(itertools.cycle(payloads), requests)

    async def client(session: aiohttp.ClientSession) -> None:
        while seconds is None or time.perf_counter() - begun < seconds:
            try:
                payload = next(turns)
            except StopIteration:
                return
            replies.append(await send(session, url, payload))

    async with open_session(headers, timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return replies


async def open_loop(
    url: str,
    payloads: Sequence[Any],
    rate: float,
    seconds: float,
    headers: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> list[Reply]:
    """So many requests a second, at even distances, however long the replies take; in the order they were due.

    A request that this client sends late (it is busy) counts from when it was due.
    """
    begun, tasks = time.perf_counter(), []
    async with open_session(headers, timeout) as session:
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(send(session, url, payloads[number % len(payloads)], due)))
        return list(await asyncio.gather(*tasks))


async def send(session: aiohttp.ClientSession, url: str, payload: Any, due: float | None = None) -> Reply:
    """One request and its whole reply."""
    due = time.perf_counter() if due is None else due
    try:
        async with session.request("GET" if payload is None else "POST", url, json=payload) as response:
            raw = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Reply(None, time.perf_counter() - due, error=error)
    taken, body = time.perf_counter() - due, _parsed(raw.decode(errors="replace"))
    problem = body.get("error") if isinstance(body, dict) else None
    code = problem.get("code") if isinstance(problem, dict) else None
    return Reply(response.status, taken, _seconds(response.headers.get("Retry-After")), code, body)


async def read_stream(
    url: str, payload: Any, headers: Mapping[str, str] | None = None, timeout: float = 120, most: int | None = None
) -> Stream:
    """One streamed reply, to its end, to its cut, or to the event of number `most`, where the client goes away.

    A reply that is no stream (a refusal in JSON) is one event `error` with its body.
    """
    stream, begun = Stream(), time.perf_counter()
    try:
        async with (
            open_session(headers, timeout) as session,
            session.request("GET" if payload is None else "POST", url, json=payload) as response,
        ):
            stream.status = response.status
            if response.content_type != "text/event-stream":
                stream.events.append(("error", _parsed(await response.text())))
                stream.end = "error"
                return stream
            async for event, data in events(response.content.iter_any()):
                stream.events.append((event, data))
                stream.times.append(time.perf_counter() - begun)
                if most is not None and len(stream.events) >= most:
                    break
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        stream.error = error
    if stream.events:
        event, data = stream.events[-1]
        stream.end = "error" if event == "error" else "done" if event == "done" or data == "[DONE]" else "cut"
    return stream


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, Any]]:
    """Server-sent events, (event, data) each, of bytes however they are cut; one without its blank line is none.

    Lines end in a line feed, with or without a carriage return.
    """
    rest, event, data = b"", "message", []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").decode().partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                event = value
            elif name == "data":
                data.append(value)
            elif not name and not value and not line.startswith(b":"):
                if data:
                    yield event, _parsed("\n".join(data))
                event, data = "message", []


def open_session(headers: Mapping[str, str] | None = None, timeout: float = 120) -> aiohttp.ClientSession:
    """A session with no bound of its own on connections."""
    return aiohttp.ClientSession(
        headers=headers, timeout=aiohttp.ClientTimeout(total=timeout), connector=aiohttp.TCPConnector(limit=0)
    )


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None else None
