"""What stands before the routes, asked as a server asks it: ASGI messages in, ASGI messages out."""

import asyncio
import json
from typing import Any

import pytest

from serve.protection import ApiKeys, Protection, RateLimit, load_keys
from xrec.config import ConfigError

KEYS = ApiKeys({"shop": "shop-key-0123456789", "maps": "maps-key-0123456789"})


async def echo(scope, receive, send) -> None:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def ask(
    app: Any, path: str = "/v1/explanations", method: str = "GET", parts: tuple[bytes, ...] = (b"",), **headers: str
) -> tuple[int, dict[str, str], bytes]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": named, "client": ("10.0.0.1", 1234)}
    pending = [{"type": "http.request", "body": p, "more_body": n < len(parts) - 1} for n, p in enumerate(parts)]
    sent: list[dict[str, Any]] = []

    async def receive():
        return pending.pop(0)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    answered = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(m.get("body", b"") for m in sent[1:])


def test_each_key_opens_the_api_and_nothing_else_does():
    async def check() -> None:
        app = Protection(echo, KEYS, None, 100)
        for key in ("shop-key-0123456789", "maps-key-0123456789"):
            assert (await ask(app, authorization=f"Bearer {key}"))[0] == 200
        for wrong in ("Bearer shop-key-012345678", "Bearer shop-key-01234567890", "Basic shop-key-0123456789", ""):
            status, headers, body = await ask(app, authorization=wrong)
            assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
        assert (await ask(app))[0] == 401
        assert (await ask(app, path="/healthz"))[0] == 200
        # A browser's question whether it may ask carries no key.
        assert (await ask(app, method="OPTIONS"))[0] == 200

    asyncio.run(check())


def test_the_rate_is_each_keys_own():
    async def check() -> None:
        app = Protection(echo, KEYS, RateLimit("3/minute", "memory://"), 100)
        for _ in range(3):
            assert (await ask(app, authorization="Bearer shop-key-0123456789"))[0] == 200
        status, headers, body = await ask(app, authorization="Bearer shop-key-0123456789")
        assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limited")
        assert 1 <= int(headers["retry-after"]) <= 60
        assert (await ask(app, authorization="Bearer maps-key-0123456789"))[0] == 200
        # A wrong key is no way to use up somebody's rate.
        assert (await ask(app, authorization="Bearer wrong"))[0] == 401

    asyncio.run(check())


def test_without_keys_the_rate_is_an_addresss():
    async def check() -> None:
        app = Protection(echo, ApiKeys({}), RateLimit("1/minute", "memory://"), 100)
        assert [(await ask(app))[0] for _ in range(2)] == [200, 429]

    asyncio.run(check())


def test_a_body_is_measured_whatever_its_header_promises():
    async def check() -> None:
        app = Protection(echo, ApiKeys({}), None, 10)
        json_type = {"content_type": "application/json; charset=utf-8"}
        assert await _posted(app, (b"12345", b"67890"), **json_type) == 200
        status, _, body = await ask(app, method="POST", parts=(b"",), content_length="11", **json_type)
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
        with pytest.raises(Exception, match="longer than 10 bytes") as caught:
            await _posted(app, (b"123456", b"789012"), content_length="3", **json_type)
        assert caught.value.status_code == 413

    asyncio.run(check())


async def _posted(app: Any, parts: tuple[bytes, ...], **headers: str) -> int:
    return (await ask(app, method="POST", parts=parts, **headers))[0]


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_a_body_must_say_that_it_is_json(kind):
    app = Protection(echo, ApiKeys({}), None, 10)
    assert asyncio.run(_posted(app, (b"{}",), content_type=kind)) == 415


def test_keys_come_from_the_environment_and_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XREC_API_KEYS", "shop:shop-key-0123456789, maps:with:colon-0123456789")
    file = tmp_path / "keys"
    file.write_text("# ours\n\nreview:review-key-0123456789\n")
    keys = load_keys(str(file))
    assert keys.name_of("shop-key-0123456789") == "shop"
    assert keys.name_of("with:colon-0123456789") == "maps"
    assert keys.name_of("review-key-0123456789") == "review"
    assert keys.name_of("") is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("only-a-key-0123456789", "not of the form name:key"),
        ("shop:short", "shorter than 16"),
        ("a:0123456789abcdef,a:0123456789abcdeg", "two keys are named 'a'"),
    ],
)
def test_malformed_keys_are_refused_without_repeating_them(monkeypatch, entries, message):
    monkeypatch.setenv("XREC_API_KEYS", entries)
    with pytest.raises(ConfigError, match=message) as caught:
        load_keys(None)
    assert "0123456789" not in str(caught.value)


def test_a_missing_file_of_keys_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("XREC_API_KEYS", raising=False)
    with pytest.raises(ConfigError, match="nowhere"):
        load_keys(str(tmp_path / "nowhere"))
