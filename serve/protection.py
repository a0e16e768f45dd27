"""What stands before every route: keys, rates, body sizes, and the headers that browsers obey.

Plain ASGI, because Starlette's own base class would hold streams back and hide disconnects.
"""

import hashlib
import hmac
import math
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from limits import parse
from limits.aio.storage import Storage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError
from limits.storage import storage_from_string
from starlette.exceptions import HTTPException

from serve import errors
from xrec.config import ConfigError
from xrec.serving.queries import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEYS_VARIABLE = "XREC_API_KEYS"
_PROTECTED = "/v1/"
_SHORTEST_KEY = 16
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class ApiKeys:
    """The keys that open the API, kept as digests.

    Args:
        keys: name: key.
    """

    def __init__(self, keys: dict[str, str]):
        self._digests = {name: _digest(key) for name, key in keys.items()}

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; takes the same time whichever it is, or none."""
        given, found = _digest(key), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def load_keys(path: str | None) -> ApiKeys:
    """Keys of the environment's XREC_API_KEYS (`name:key`, separated by commas) and of a file (one a line).

    Raises:
        ConfigError: an entry is not `name:key`, is short, or two have one name; or the file is not there.
    """
    entries = [("the environment's " + KEYS_VARIABLE, e) for e in os.environ.get(KEYS_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"serve.api_keys_file = {path!r} cannot be read: {error}") from error
        entries += [(path, line) for line in lines if not line.lstrip().startswith("#")]
    keys: dict[str, str] = {}
    for source, entry in entries:
        if not entry.strip():
            continue
        name, separator, key = (part.strip() for part in entry.partition(":"))
        if not (name and separator and key):
            # The entry itself may be a key: it is not repeated.
            raise ConfigError(f"{source}: an entry is not of the form name:key; write one such as shop:{'x' * 8}…")
        if len(key) < _SHORTEST_KEY:
            raise ConfigError(f"{source}: the key of {name!r} is shorter than {_SHORTEST_KEY} characters; lengthen it")
        if name in keys:
            raise ConfigError(f"{source}: two keys are named {name!r}; give each its own name")
        keys[name] = key
    return ApiKeys(keys)


class RateLimit:
    """How many requests a caller may make in a time.

    Args:
        rate: such as `600/minute`.
        storage: where they are counted.

    Raises:
        ConfigError: the storage is unknown, or its client is not installed.
    """

    def __init__(self, rate: str, storage: str):
        self._rate = parse(rate)
        try:
            store = storage_from_string(f"async+{storage}")
        except ConfigurationError as error:
            raise ConfigError(
                f"serve.limits.rate_storage = {storage!r}: {error}; use memory://, or redis://HOST:PORT with "
                "`pip install 'xrec[redis]'`"
            ) from error
        assert isinstance(store, Storage)
        self._limiter = MovingWindowRateLimiter(store)

    async def seconds_to_wait(self, caller: str) -> int | None:
        """None where the request is within the rate, and is counted; else whole seconds until one is again."""
        if await self._limiter.hit(self._rate, caller):
            return None
        reset, _ = await self._limiter.get_window_stats(self._rate, caller)
        return max(1, math.ceil(reset - time.time()))


class Protection:
    """ASGI middleware before the routes.

    Args:
        app: what it protects.
        keys: none of them: no key is asked for.
        rate: None: no limit.
        body_bytes: the longest body.
    """

    def __init__(self, app: App, keys: ApiKeys, rate: RateLimit | None, body_bytes: int):
        self.app, self.keys, self.rate, self.body_bytes = app, keys, rate, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_headers(send, private=_PROTECTED in scope["path"])
        try:
            # A browser asks without a key whether it may ask with one.
            if _PROTECTED in scope["path"] and scope["method"] != "OPTIONS":
                scope["state"]["caller"] = caller = self._caller(headers, scope)
                await self._within_rate(caller)
            self._check_announced(scope, headers)
        except Refusal as refusal:
            scope["state"]["code"] = refusal.error.code
            await errors.response(refusal.error, refusal.headers)(scope, receive, send)
            return
        await self.app(scope, self._limited(receive), send)

    def _caller(self, headers: dict[str, str], scope: Scope) -> str:
        """Whom rates are counted for."""
        if not self.keys:
            client: Sequence[Any] = scope.get("client") or ("unknown",)
            return f"address {client[0]}"
        scheme, _, key = headers.get("authorization", "").partition(" ")
        name = self.keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise Refusal(
                RequestError(
                    401, "invalid_api_key", "the key is missing or wrong; send the header `Authorization: Bearer KEY`"
                ),
                {"WWW-Authenticate": "Bearer"},
            )
        return f"key {name}"

    async def _within_rate(self, caller: str) -> None:
        wait = await self.rate.seconds_to_wait(caller) if self.rate else None
        if wait is not None:
            raise Refusal(
                RequestError(429, "rate_limited", f"more requests than the rate allows; ask again in {wait} s"),
                {"Retry-After": str(wait)},
            )

    def _check_announced(self, scope: Scope, headers: dict[str, str]) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and _PROTECTED in scope["path"] and kind != "application/json":
            # A page of another site may send other types here without being asked whether it may.
            message = f"the content type is {kind or 'not given'}; send JSON, with `Content-Type: application/json`"
            raise Refusal(RequestError(415, "unsupported_media_type", message), {})
        announced = headers.get("content-length", "")
        if announced.isdigit() and int(announced) > self.body_bytes:
            raise Refusal(RequestError(413, "body_too_large", self._too_long), {})

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, which fails where the body grows too long, whatever its header promised."""
        seen = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                # The one exception that FastAPI, which reads the body, lets through.
                raise HTTPException(413, self._too_long)
            return message

        return limited

    @property
    def _too_long(self) -> str:
        return f"the body is longer than {self.body_bytes} bytes; send fewer pairs a request"


class Refusal(Exception):
    """A request goes no further.

    Args:
        error: why.
        headers: of the response.
    """

    def __init__(self, error: RequestError, headers: dict[str, str]):
        super().__init__(str(error))
        self.error, self.headers = error, headers


def _with_headers(send: Send, private: bool) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    if private:
        added.append((b"cache-control", b"no-store"))

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return sending


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
