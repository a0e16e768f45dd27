"""The load generator against a server whose replies are known."""

import asyncio
import contextlib

import pytest
from aiohttp import web

from tests.serving.load import closed_loop, events, open_loop, read_stream


class Server:
    """Refuses every third request, and streams what it is asked for."""

    def __init__(self) -> None:
        self.seen, self.keys, self.running, self.most = [], set(), 0, 0
        self.gone = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        self.seen.append(await request.json())
        self.running += 1
        self.most = max(self.most, self.running)
        refused = len(self.seen) % 3 == 0
        await asyncio.sleep(0.02)
        self.running -= 1
        if refused:
            error = {"code": "overloaded", "message": "", "field": None, "request_id": "r"}
            return web.json_response({"error": error}, status=503, headers={"Retry-After": "2"})
        return web.json_response({"n": self.seen[-1]})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        raw, end = (await request.json())["raw"], (await request.json())["end"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in raw:
            await response.write(piece.encode())
            await asyncio.sleep(0)
        if end == "cut":
            request.transport.close()
        while end == "never":
            try:
                await response.write(b": waiting\n\n")
                await asyncio.sleep(0.01)
            except ConnectionError:
                self.gone.set()
                raise
        return response


@contextlib.asynccontextmanager
async def serve():
    server, app = Server(), web.Application()
    app.add_routes([web.post("/answer", server.answer), web.post("/stream", server.stream)])
    runner = web.AppRunner(app, handler_cancellation=False)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_closed_loop_has_so_many_under_way():
    async def work():
        async with serve() as (server, url):
            replies = await closed_loop(url + "/answer", [1, 2], 4, requests=12, headers={"Authorization": "Bearer k"})
            assert server.most == 4 and sorted(server.seen) == [1] * 6 + [2] * 6 and server.keys == {"Bearer k"}
            timed = await closed_loop(url + "/answer", [1], 2, seconds=0.2)
        return replies, timed

    replies, timed = asyncio.run(work())
    assert sorted(reply.status for reply in replies) == [200] * 8 + [503] * 4
    for reply in replies:
        refused = reply.status == 503
        assert (reply.retry_after, reply.code) == ((2.0, "overloaded") if refused else (None, None))
        assert reply.seconds >= 0.02 and reply.error is None
    assert len(timed) >= 2


def test_open_loop_does_not_wait_for_replies():
    async def work():
        async with serve() as (server, url):
            replies = await open_loop(url + "/answer", [1], rate=400, seconds=0.1)
            return replies, server.most

    replies, most = asyncio.run(work())
    assert len(replies) == 40 and most > 1


def test_server_that_is_not_there_is_a_reply_without_a_status():
    async def work():
        async with serve() as (_, url):
            pass
        return await closed_loop(url + "/answer", [1], 1, requests=1), await read_stream(url + "/stream", {})

    (reply,), stream = asyncio.run(work())
    assert reply.status is None and isinstance(reply.error, OSError)
    assert stream.status is None and stream.end == "cut" and isinstance(stream.error, OSError)


DELTAS = ['event: delta\ndata: {"index": 0, "text": "a"}\n\n', 'event: delta\ndata: {"index": 0, "text": " b"}\n\n']


@pytest.mark.parametrize(
    ("raw", "end", "expected"),
    [
        ([*DELTAS, 'event: done\ndata: {"usage": {}}\n\n'], "whole", "done"),
        ([*DELTAS, "data: [DONE]\n\n"], "whole", "done"),
        ([*DELTAS, 'event: error\ndata: {"error": {"code": "x"}}\n\n'], "whole", "error"),
        (DELTAS, "whole", "cut"),
        (DELTAS, "cut", "cut"),
        ([*DELTAS, 'event: done\ndata: {"usage'], "whole", "cut"),
    ],
)
def test_end_of_a_stream(raw, end, expected):
    async def work():
        async with serve() as (_, url):
            return await read_stream(url + "/stream", {"raw": raw, "end": end})

    stream = asyncio.run(work())
    assert (stream.status, stream.end, stream.text()) == (200, expected, "a b")
    assert len(stream.times) == len(stream.events) and stream.times == sorted(stream.times)


def test_reader_that_goes_away_closes_the_connection():
    async def work():
        async with serve() as (server, url):
            stream = await read_stream(url + "/stream", {"raw": DELTAS, "end": "never"}, most=1)
            await asyncio.wait_for(server.gone.wait(), 10)
            return stream

    assert len(asyncio.run(work()).events) == 1


def test_refusal_of_a_stream_is_an_error():
    async def work():
        async with serve() as (_, url):
            return [await read_stream(url + "/answer", 1) for _ in range(3)][-1]

    stream = asyncio.run(work())
    assert (stream.status, stream.end, stream.events[0][1]["error"]["code"]) == (503, "error", "overloaded")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_however_the_bytes_are_cut(size):
    raw = ': hello\r\n\r\nevent: delta\r\ndata: {"text": "é😀"}\r\n\r\n'
    raw += "id: 4\ndata: one\ndata:two\n\nevent: none\n\ndata: 1\n\n"

    async def chunks():
        for start in range(0, len(raw.encode()), size):
            yield raw.encode()[start : start + size]

    async def work():
        return [event async for event in events(chunks())]

    assert asyncio.run(work()) == [("delta", {"text": "é😀"}), ("message", "one\ntwo"), ("message", 1)]
