"""One request to the local server, and what every kind of failure means for row and run."""

import asyncio
import json
import logging
import socket
import time
from email.utils import formatdate

import httpx2
import openai
import pytest

from tests.chat_server import serving
from xrec.profiles.answers import FatalError
from xrec.profiles.client import Completion, OpenAIClient
from xrec.profiles.failures import Failure, classify, retry_after
from xrec.profiles.prompts import SCHEMAS
from xrec.profiles.tokens import estimate_message_tokens, estimate_tokens

KEY = "sk-a-key-that-nobody-may-see"
MESSAGES = [{"role": "system", "content": "one two three"}, {"role": "user", "content": "four five"}]


def ask(settings: dict, **options) -> tuple[Completion | Failure, list]:
    """The outcome of one request to a server with these settings, and the server's log."""

    async def scenario():
        async with serving(**settings) as server:
            values = {"model": "m", "base_url": server.url, "api_key": KEY, **options}
            client = OpenAIClient(**values)
            try:
                return await client.complete(MESSAGES, SCHEMAS["item_profile"]), server.log
            except openai.APIError as error:
                return classify(error, client), server.log
            finally:
                await client.close()

    return asyncio.run(scenario())


def test_a_completion_says_what_was_answered_by_whom_and_at_what_cost():
    completion, log = ask({"key": KEY})
    assert isinstance(completion, Completion)
    assert set(json.loads(completion.content or "")) == {"profile"}
    answered = len((completion.content or "").split())
    assert completion == Completion(completion.content, None, "stop", "m", 5, answered)
    assert [fault for *_, fault in log] == ["ok"]


def test_tokens_are_estimated_where_the_endpoint_does_not_count():
    completion, _ = ask({"faults": {"no-usage": 1.0}})
    assert isinstance(completion, Completion)
    assert completion.tokens_in == estimate_message_tokens(MESSAGES)
    assert completion.tokens_out == estimate_tokens(completion.content or "")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("null", (15, 3)),
        ("{}", (15, 3)),
        ('{"prompt_tokens": 7, "completion_tokens": null}', (7, 3)),
        ('{"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}', (7, 2)),
    ],
)
def test_counts_may_be_missing_one_by_one(usage, expected):
    client = OpenAIClient("m", "http://host/v1", KEY)
    body = f'{{"choices": [{{"message": {{"content": "ten letters"}}}}], "usage": {usage}}}'
    completion = client.completion(MESSAGES, body)
    assert (completion.tokens_in, completion.tokens_out) == expected
    assert (completion.model, completion.finish_reason) == ("m", "")


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {"content": 3}}]}', '{"error": "overloaded"}']
)
def test_a_body_that_is_no_completion_is_an_error(body):
    client = OpenAIClient("m", "http://host/v1", KEY)
    with pytest.raises(ValueError, match="no chat completion"):
        client.completion(MESSAGES, body)


@pytest.mark.parametrize(
    ("structured_output", "expected"),
    [
        (
            "json_schema",
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": SCHEMAS["item_profile"]},
            },
        ),
        ("json_object", {"type": "json_object"}),
        ("none", None),
    ],
)
@pytest.mark.parametrize(("base_url", "limit"), [("http://host/v1", "max_tokens"), (None, "max_completion_tokens")])
def test_the_request_carries_the_settings(monkeypatch, structured_output, expected, base_url, limit):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere/v1")
    sent: list[httpx2.Request] = []

    async def scenario():
        client = OpenAIClient("m", base_url, KEY, 0.25, 99, structured_output)

        async def capture(request: httpx2.Request) -> None:
            sent.append(request)
            raise openai.APIConnectionError(request=request)

        monkeypatch.setattr(client._sdk, "_prepare_request", capture)
        with pytest.raises(openai.APIConnectionError):
            await client.complete(MESSAGES, SCHEMAS["item_profile"])
        await client.close()

    asyncio.run(scenario())
    body = json.loads(sent[0].content)
    assert body.pop("response_format", None) == expected
    assert body == {"model": "m", "temperature": 0.25, limit: 99, "messages": MESSAGES}
    assert str(sent[0].url) == f"{base_url or 'https://api.openai.com/v1'}/chat/completions"


@pytest.mark.parametrize(
    ("settings", "verdict", "reason"),
    [
        ({"faults": {"429": 1.0}}, "retry", "http_429"),
        ({"faults": {"500-text": 1.0}}, "retry", "http_500"),
        ({"faults": {"500-json": 1.0}}, "retry", "http_500"),
        ({"faults": {"broken-body": 1.0}}, "retry", "bad_response"),
        ({"faults": {"disconnect": 1.0}}, "retry", "connection"),
        ({"faults": {"hang": 1.0}}, "retry", "timeout"),
        ({"faults": {"slow": 1.0}}, "retry", "timeout"),
        ({"faults": {"context-length": 1.0}}, "row", "http_400"),
        ({"faults": {"content-filter": 1.0}}, "row", "refused"),
        ({"faults": {"400": 1.0}}, "refused", "http_400"),
        ({"faults": {"401": 1.0}}, "fatal", "http_401"),
        ({"faults": {"403": 1.0}}, "fatal", "http_403"),
        ({"faults": {"quota": 1.0}}, "fatal", "http_429"),
        ({"models": ("other",)}, "fatal", "http_404"),
        ({"key": "another"}, "fatal", "http_401"),
        ({"refuse": ("response_format",)}, "refused", "http_400"),
    ],
    ids=str,
)
def test_every_failure_has_its_verdict(settings, verdict, reason):
    started = time.monotonic()
    failure, _ = ask(settings, request_timeout=0.5)
    assert isinstance(failure, Failure)
    assert (failure.verdict, failure.reason) == (verdict, reason)
    assert KEY not in repr(failure)
    assert time.monotonic() - started < 10


def test_a_closed_port_is_unreachable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        failure, _ = ask({}, base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
    assert isinstance(failure, Failure)
    assert (failure.verdict, failure.reason) == ("unreachable", "connection")


def test_a_host_that_does_not_exist_is_unreachable():
    failure, _ = ask({}, base_url="http://no-such-host.invalid/v1")
    assert isinstance(failure, Failure)
    assert (failure.verdict, failure.reason) == ("unreachable", "connection")


def test_a_server_that_speaks_no_http_is_an_error_of_the_connection():
    async def scenario():
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        client = OpenAIClient("m", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", KEY)
        with pytest.raises(openai.APIError) as caught:
            await client.complete(MESSAGES, SCHEMAS["item_profile"])
        await client.close()
        server.close()
        return classify(caught.value, client)

    failure = asyncio.run(scenario())
    assert (failure.verdict, failure.reason) == ("retry", "connection")


def status_error(status: int, body: object) -> openai.APIStatusError:
    """An error as the SDK makes it of a response with that body."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    response = httpx2.Response(status, content=content, request=httpx2.Request("POST", "http://host/v1"))
    return openai.AsyncOpenAI(api_key="none")._make_status_error_from_response(response)


@pytest.mark.parametrize(
    ("status", "body", "verdict", "detail"),
    [
        # vLLM
        (
            400,
            {"object": "error", "message": "This model's maximum context length is 8", "param": "max_tokens"},
            "row",
            None,
        ),
        (404, {"error": {"message": "The model `m` does not exist.", "code": 404}}, "fatal", None),
        # FastAPI in general
        (503, {"detail": "Service Unavailable"}, "retry", "Service Unavailable"),
        (422, {"detail": [{"loc": ["body", "temperature"], "msg": "too high"}]}, "refused", None),
        # Azure
        (400, {"error": {"code": "content_filter", "message": "Blocked", "innererror": {}}}, "row", "Blocked"),
        # A proxy
        (502, "<html>  Bad\n Gateway </html>", "retry", "<html> Bad Gateway </html>"),
        (408, {}, "retry", "{}"),
        (500, "", "retry", "Internal Server Error"),
        (529, "x" * 1000, "retry", "x" * 299 + "…"),
    ],
)
def test_errors_in_the_words_of_many_servers(status, body, verdict, detail):
    failure = classify(status_error(status, body), OpenAIClient("m", "http://host/v1", KEY))
    assert failure.verdict == verdict
    assert failure.detail
    assert detail in (None, failure.detail)


def test_what_the_endpoint_asks_for_is_known():
    failure, _ = ask({"faults": {"429": 1.0}, "retry_after": 7})
    assert isinstance(failure, Failure) and failure.wait == 7.0
    failure, _ = ask({"faults": {"429": 1.0}, "retry_after": 0.25, "retry_after_ms": True})
    assert isinstance(failure, Failure) and failure.wait == 0.25


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5, 1.5),
        ({"retry-after": "2.5"}, 2.5, 2.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0, 2.0),
    ],
)
def test_retry_after_in_all_its_forms(headers, low, high):
    assert low <= (retry_after(httpx2.Headers(headers)) or 0.0) <= high


@pytest.mark.parametrize(("ahead", "low", "high"), [(3600, 3500.0, 3600.0), (-3600, 0.0, 0.0)])
def test_retry_after_as_a_date(ahead, low, high):
    headers = httpx2.Headers({"retry-after": formatdate(time.time() + ahead, usegmt=True)})
    assert low <= (retry_after(headers) or 0.0) <= high


@pytest.mark.parametrize("headers", [{}, {"retry-after": "-3"}, {"retry-after": "nan"}, {"retry-after": "later"}])
def test_no_wait_is_made_up(headers):
    assert retry_after(httpx2.Headers(headers)) is None


def test_a_remedy_names_the_setting():
    failure, _ = ask({"refuse": ("response_format",)})
    assert isinstance(failure, Failure) and "profile.structured_output to json_object or none" in failure.remedy
    failure, _ = ask({"refuse": ("temperature",)})
    assert isinstance(failure, Failure) and "profile.temperature" in failure.remedy
    failure, _ = ask({"models": ("other",)})
    assert isinstance(failure, Failure) and "profile.model = 'm'" in failure.remedy


def test_the_key_is_in_no_log_and_no_representation(caplog):
    with caplog.at_level(logging.DEBUG):
        failure, _ = ask({"faults": {"401": 1.0}})
        client = OpenAIClient("m", "http://host/v1", KEY)
    assert isinstance(failure, Failure) and "[key]" in failure.detail
    assert caplog.records
    assert KEY not in caplog.text + repr(client) + str(client) + repr(failure)


def test_a_key_is_removed_wherever_it_was_repeated():
    client = OpenAIClient("m", "http://host/v1", KEY)
    assert (
        client.redact(f"key {KEY}, header 'Authorization: Bearer {KEY}'")
        == "key [key], header 'Authorization: Bearer [key]"
    )
    assert OpenAIClient("m", "http://host/v1", "none").redact("none of it") == "none of it"


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    assert OpenAIClient.api_key_from("SOME_KEY") == KEY
    monkeypatch.delenv("SOME_KEY")
    assert OpenAIClient.api_key_from("SOME_KEY", "http://host/v1") == "none"
    with pytest.raises(FatalError, match="SOME_KEY is not set"):
        OpenAIClient.api_key_from("SOME_KEY")


def test_what_cannot_be_sent_is_refused_at_once():
    with pytest.raises(FatalError, match="must begin with http"):
        OpenAIClient("m", "host:8000/v1", KEY)
    for key in (f"{KEY}\nX-Other: 1", "schlüssel"):
        with pytest.raises(FatalError, match="characters") as caught:
            OpenAIClient("m", None, key)
        assert key not in str(caught.value)
