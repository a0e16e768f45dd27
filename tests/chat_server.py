"""A local server that speaks OpenAI's chat completions, with faults on demand; the Batch API is in batch_api_routes.py.

It answers every prompt with a sentence made of the prompt's hash. Which fault a request meets is drawn from (seed, hash
of the first user message, how often that message has been sent), so that counts can be reproduced. Run it apart with
`python -m tests.chat_server --port 0 --latency 0.2 --rate-429 0.1`; its first line of output is {"port": …, "url": …}.

GET /stats: counts; GET /log: every request; GET /prompts: last messages seen (with --keep-prompts); POST /config:
change settings of the run, such as {"latency": 0.5, "faults": {"429": 0.2}}; POST /reset: forget what was counted.
"""

import argparse
import asyncio
import dataclasses
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web

from tests import chat_faults
from tests.batch_api_routes import BatchApi
from tests.chat_faults import Settings, error_response, hash_of_prompt, key_of

ROOT = Path(__file__).resolve().parents[1]


class ChatServer:
    """The application and all that it has counted."""

    def __init__(self, settings: Settings | None = None):
        self.settings = settings or Settings()
        self.app = web.Application(client_max_size=1 << 30)
        self.batches = BatchApi(self.settings, self.authorized)
        routes = [
            web.post("/v1/chat/completions", self.chat),
            web.get("/v1/models", self.models),
            web.get("/stats", self.stats),
            web.get("/log", self.get_log),
            web.get("/prompts", self.get_prompts),
            web.post("/config", self.config),
            web.post("/reset", self.post_reset),
        ]
        self.app.add_routes([*routes, *self.batches.routes()])
        self.url = ""
        self._slots: tuple[int, asyncio.Semaphore] | None = None
        self.reset()

    def reset(self) -> None:
        self.log: list[tuple[float, str, int, str]] = []  # (monotonic seconds, hash, sending, fault or "ok")
        self.per_prompt: Counter[str] = Counter()
        self.prompts: list[str] = []
        self.open = self.peak = self.unauthorized = 0

    def authorized(self, request: web.Request) -> bool:
        allowed = self.settings.key is None or key_of(request) == self.settings.key
        self.unauthorized += not allowed
        return allowed

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            body = json.loads(await request.read())
            return self._refused(request, body) or await self._chat(request, body)
        finally:
            self.open -= 1

    def _refused(self, request: web.Request, body: dict) -> web.Response | None:
        if not self.authorized(request):
            return error_response(401, "invalid_api_key", f"Incorrect API key provided: {key_of(request)}")
        if self.settings.models and body["model"] not in self.settings.models:
            return error_response(404, "model_not_found", f"The model `{body['model']}` does not exist.")
        for name in self.settings.refuse:
            if name in body:
                return error_response(400, "unsupported_parameter", f"'{name}' is not supported", name)
        return None

    async def _chat(self, request: web.Request, body: dict) -> web.StreamResponse:
        digest = hash_of_prompt(body["messages"])
        self.per_prompt[digest] += 1
        sending = self.per_prompt[digest]
        fault = self.settings.fault_of(digest, sending)
        self.log.append((time.monotonic(), digest, sending, fault or "ok"))
        if self.settings.keep_prompts:
            self.prompts.append(body["messages"][-1]["content"])
        async with self._slot():
            if self.settings.latency:
                await asyncio.sleep(self.settings.latency)
        if fault in chat_faults.STATUS:
            return self._error(fault, request)
        payload = json.dumps(chat_faults.completion(self.settings, body, digest, sending, fault)).encode()
        if fault in chat_faults.TRANSPORT:
            return await self._broken(fault, request, payload)
        return web.Response(body=payload, content_type="application/json")

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        limit = self.settings.max_concurrency
        if limit is None:
            yield
            return
        if self._slots is None or self._slots[0] != limit:
            self._slots = (limit, asyncio.Semaphore(limit))
        async with self._slots[1]:
            yield

    def _error(self, fault: str, request: web.Request) -> web.Response:
        status, code, message = chat_faults.STATUS[fault]
        if code is None:
            return web.Response(status=status, text=message)
        response = error_response(status, code, message.format(key=key_of(request)))
        if fault == "429" and self.settings.retry_after_ms:
            response.headers["retry-after-ms"] = f"{self.settings.retry_after * 1000:g}"
        elif fault == "429":
            response.headers["Retry-After"] = f"{self.settings.retry_after:g}"
        return response

    async def _broken(self, fault: str, request: web.Request, payload: bytes) -> web.StreamResponse:
        """An answer that never comes, comes byte by byte, or is not whole."""
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "broken-body":
            return web.Response(body=payload[: len(payload) // 2], content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(payload))})
        await response.prepare(request)
        if fault == "slow":
            for i in range(len(payload)):
                await response.write(payload[i : i + 1])
                await asyncio.sleep(self.settings.slow_seconds / len(payload))
            return response
        await response.write(payload[: len(payload) // 2])
        if request.transport is not None:
            request.transport.abort()
        return response

    async def models(self, request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"} for name in self.settings.models]
        return web.json_response({"object": "list", "data": data})

    def counts(self) -> dict:
        """What GET /stats says."""
        return {
            "requests": len(self.log),
            "unauthorized": self.unauthorized,
            "per_prompt": dict(self.per_prompt),
            "peak_concurrency": self.peak,
            "open": self.open,
            "per_second": dict(Counter(str(int(at)) for at, *_ in self.log)),
            "faults": dict(Counter(fault for *_, fault in self.log)),
        }

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.counts())

    async def get_log(self, request: web.Request) -> web.Response:
        return web.json_response(self.log)

    async def get_prompts(self, request: web.Request) -> web.Response:
        return web.json_response(self.prompts)

    async def config(self, request: web.Request) -> web.Response:
        try:
            self.settings.update(await request.json())
        except ValueError as error:
            return error_response(400, "invalid_settings", str(error))
        return web.json_response(dataclasses.asdict(self.settings))

    async def post_reset(self, request: web.Request) -> web.Response:
        self.reset()
        return web.json_response({})


@asynccontextmanager
async def serving(port: int = 0, **settings) -> AsyncIterator[ChatServer]:
    """The server inside the running event loop; `server.url` is what a client's base_url wants."""
    server = ChatServer(Settings(**settings))
    # A request whose client has gone is no open request.
    runner = web.AppRunner(server.app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


@contextmanager
def server_thread(**settings) -> Iterator[ChatServer]:
    """The server in a thread with an event loop of its own, for clients that run one themselves."""
    started: Future[tuple[ChatServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        async with serving(**settings) as server:
            stop = asyncio.Event()
            started.set_result((server, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    server, loop, stop = started.result(timeout=60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


class ServerProcess:
    """A server in a process of its own, as tests reach it."""

    def __init__(self, process: subprocess.Popen, url: str):
        self.process, self.url = process, url

    def get(self, path: str):
        """What GET `path` says, such as `stats`."""
        with urllib.request.urlopen(f"{self.url.removesuffix('v1')}{path}", timeout=60) as response:
            return json.load(response)

    def post(self, path: str, **body):
        """POST, such as `config` with settings."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url.removesuffix('v1')}{path}", data=data, method="POST")
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


@contextmanager
def server_process(*arguments: str) -> Iterator[ServerProcess]:
    """Run `python -m tests.chat_server ARGUMENTS` for the time of a with block."""
    command = [sys.executable, "-m", "tests.chat_server", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield ServerProcess(process, json.loads(process.stdout.readline())["url"])
    finally:
        process.kill()
        process.wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    for f in dataclasses.fields(Settings):
        option = f"--{f.name.replace('_', '-')}"
        if f.name == "faults":
            continue
        if isinstance(f.default, bool):
            parser.add_argument(option, action="store_true")
        elif isinstance(f.default, tuple):
            parser.add_argument(option, nargs="*", default=[])
        else:
            kind = {"max_concurrency": int, "key": str, "seed": int}.get(f.name, float)
            parser.add_argument(option, type=kind, default=f.default)
    for name in (*chat_faults.FAULTS, *chat_faults.BATCH, chat_faults.NO_USAGE):
        parser.add_argument(f"--rate-{name}", type=float, default=0.0, metavar="P")
    return parser.parse_args()


async def _main() -> None:
    values = vars(_arguments())
    port = values.pop("port")
    rates = {name.removeprefix("rate_"): values.pop(name) for name in list(values) if name.startswith("rate_")}
    faults = {name.replace("_", "-"): rate for name, rate in rates.items() if rate}
    async with serving(
        port, faults=faults, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    ) as server:
        print(json.dumps({"port": int(server.url.rsplit(":")[-1].removesuffix("/v1")), "url": server.url}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
