"""One structured line and one set of figures a request: who asked for what, how it ended, and no text of anybody's."""

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from serve.metrics import ServerMetrics
from serve.protection import App, Receive, Scope, Send
from serve.service import Tally

_log = logging.getLogger("ray.serve")
_CLIENT_GONE = 499
_UNROUTED = "(none)"


class AccessLog:
    """ASGI middleware around everything else.

    Args:
        app: what it watches.
        metrics: what it counts.
    """

    def __init__(self, app: App, metrics: ServerMetrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        started, status = time.perf_counter(), _CLIENT_GONE
        ended = False

        async def watching(message: MutableMapping[str, Any]) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, watching)
        finally:
            self._write(scope, state, status if ended else _CLIENT_GONE, time.perf_counter() - started)

    def _write(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNROUTED).replace(":path", "")
        tally: Tally = state.get("tally") or Tally()
        code = state.get("code") or ""
        tags = {"route": route, "dataset": tally.dataset}
        self.metrics.requests.inc(1, {**tags, "status": str(status), "code": code})
        self.metrics.seconds.observe(seconds, tags)
        for kind, count in (("prompt", tally.usage.prompt_tokens), ("completion", tally.usage.completion_tokens)):
            if count:
                self.metrics.tokens.inc(count, {"dataset": tally.dataset, "kind": kind})
        # Ray Serve adds the request's id.
        fields = {
            "caller": state.get("caller"),
            "method": scope["method"],
            "route": route,
            "status": status,
            "code": code or None,
            "seconds": round(seconds, 4),
            "dataset": tally.dataset or None,
            "pairs": tally.pairs,
            "cached": tally.cached,
            "prompt_tokens": tally.usage.prompt_tokens,
            "completion_tokens": tally.usage.completion_tokens,
        }
        _log.info(f"{scope['method']} {route} {status}", extra=fields)
