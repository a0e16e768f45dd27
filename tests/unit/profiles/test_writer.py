"""The chat writer against the local server: what every fault does to rows, requests and the run."""

import asyncio
import json
import logging
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable

import pytest
from aiohttp import web

from tests.chat_faults import hash_of_prompt, sentence
from tests.chat_server import ChatServer, Settings, serving
from xrec.config.profile import WritingPrompts
from xrec.profiles import rate_limit as rate_limit_module
from xrec.profiles import writer as writer_module
from xrec.profiles.client import Completion, OpenAIClient
from xrec.profiles.prompts import Prompts
from xrec.profiles.rate_limit import LocalLimits
from xrec.profiles.writer import Answer, ChatWriter, FatalError

KEY = "sk-a-key-that-nobody-may-see"
PROMPTS = Prompts(WritingPrompts(), 50)


def records(count: int) -> list[str]:
    return [json.dumps({"review": f"review number {i}"}) for i in range(count)]


def digest_of(record: str) -> str:
    return hash_of_prompt(PROMPTS.messages("explanation", record))


def chat_writer(url: str, request_timeout: float = 60.0, **options) -> ChatWriter:
    concurrency = options.get("concurrency", 64)
    client = OpenAIClient("m", url, KEY, request_timeout=request_timeout, concurrency=concurrency)
    return ChatWriter(client, PROMPTS, **options)


def write(count: int, settings: dict, **options) -> tuple[list[Answer], ChatServer]:
    """Answers to so many records from a server with these settings."""

    async def scenario():
        async with serving(**settings) as server:
            writer = chat_writer(server.url, **options)
            try:
                return await writer.write("explanation", records(count)), server
            finally:
                await writer.client.close()

    return asyncio.run(scenario())


def fatal(count: int, settings: dict, **options) -> str:
    """The message of the error that ends the run."""
    with pytest.raises(FatalError) as caught:
        write(count, settings, **options)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert KEY not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch):
    monkeypatch.setattr(writer_module, "_FIRST_BACKOFF", 0.02)


def test_answers_are_in_the_records_order():
    answers, server = write(200, {"key": KEY}, concurrency=16)
    assert [answer.text for answer in answers] == [sentence(digest_of(record)) for record in records(200)]
    assert {(a.status, a.error, a.model, a.attempts, a.tokens_out) for a in answers} == {("ok", None, "m", 1, 13)}
    assert all(a.tokens_in > 50 and a.latency > 0 for a in answers)
    assert set(server.per_prompt.values()) == {1}


def test_open_requests_never_exceed_the_concurrency_over_several_blocks():
    async def scenario():
        async with serving(latency=0.02) as server:
            writer = chat_writer(server.url, concurrency=7)
            blocks = [records(40)[i : i + 10] for i in range(0, 40, 10)]
            answers = await asyncio.gather(*(writer.write("explanation", block) for block in blocks))
            await writer.client.close()
            return answers, server.peak

    answers, peak = asyncio.run(scenario())
    assert [len(block) for block in answers] == [10] * 4
    assert peak == 7


def test_no_records_make_no_request():
    answers, server = write(0, {})
    assert answers == [] and server.log == []


@pytest.mark.parametrize("fault", ["500-text", "500-json", "broken-body", "disconnect", "429"])
def test_a_passing_fault_is_repeated_until_it_has_passed(fault):
    """The server's own draws say how many requests each row must have needed."""
    faults = {fault: 0.4}
    answers, server = write(60, {"faults": faults, "retry_after": 0.01}, max_attempts=30)
    draws = Settings(faults=faults)
    for record, answer in zip(records(60), answers, strict=True):
        digest, needed = digest_of(record), 1
        while draws.fault_of(digest, needed):
            needed += 1
        assert (answer.status, answer.attempts, server.per_prompt[digest]) == ("ok", needed, needed)
    assert max(answer.attempts for answer in answers) > 2


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("500-text", "http_500: upstream connect error"),
        ("500-json", "http_500: The server had an error"),
        ("broken-body", "bad_response: "),
        ("disconnect", "connection: "),
        ("429", "http_429: Rate limit reached"),
    ],
)
def test_a_fault_that_stays_fails_the_row_after_so_many_requests(fault, error):
    answers, server = write(3, {"faults": {fault: 1.0}, "retry_after": 0.01}, max_attempts=4)
    assert {(a.status, a.text, a.attempts, a.tokens_in) for a in answers} == {("failed", "", 4, 0)}
    assert all((a.error or "").startswith(error) for a in answers)
    assert set(server.per_prompt.values()) == {4}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("malformed", "not_json"),
        ("empty", "empty"),
        ("too-long", "too_long"),
        ("refusal", "refused"),
        ("refusal-text", "refused"),
        ("filtered", "refused"),
        ("cut-off", "cut_off"),
    ],
)
def test_a_useless_answer_is_asked_for_again_exactly_once(fault, reason):
    answers, server = write(4, {"faults": {fault: 1.0}, "keep_prompts": True})
    assert {(a.status, a.text, a.attempts, (a.error or "").split(":")[0]) for a in answers} == {
        ("failed", "", 2, reason)
    }
    assert set(server.per_prompt.values()) == {2}
    correction = writer_module._CORRECTIONS[reason].format(max_words=50)
    assert Counter(server.prompts)[correction] == 4


def test_the_second_asking_shows_the_model_its_answer_and_counts_both():
    """Half of the first answers are useless; the log says which rows were asked twice."""
    bodies: list[dict] = []

    async def scenario():
        async with serving(faults={"malformed": 0.5}, seed=3) as server:
            writer = chat_writer(server.url)
            complete = writer.client.complete

            async def recorded(messages, schema):
                bodies.append({"messages": messages})
                return await complete(messages, schema)

            writer.client.complete = recorded
            answers = await writer.write("explanation", records(30))
            await writer.client.close()
            return answers

    answers = asyncio.run(scenario())
    draws = Settings(seed=3, faults={"malformed": 0.5})
    twice = 0
    for record, answer in zip(records(30), answers, strict=True):
        faults = [draws.fault_of(digest_of(record), sending) for sending in (1, 2)]
        expected = (1, "ok") if faults[0] is None else (2, "ok" if faults[1] is None else "failed")
        assert (answer.attempts, answer.status) == expected
        twice += answer.attempts == 2
    again = [body["messages"] for body in bodies if len(body["messages"]) == 4]
    assert len(again) == twice > 5
    assert all([m["role"] for m in messages] == ["system", "user", "assistant", "user"] for messages in again)
    assert all(messages[2]["content"].startswith("Here is what I think") for messages in again)
    assert all(a.tokens_out > 20 for a in answers if a.attempts == 2)


def test_fenced_answers_and_answers_without_usage_are_good():
    answers, _ = write(10, {"faults": {"fenced": 1.0, "no-usage": 1.0}})
    assert {(a.status, a.attempts) for a in answers} == {("ok", 1)}
    assert all(a.tokens_in > 50 and a.tokens_out > 10 for a in answers)


def test_a_wait_that_the_endpoint_asks_for_is_kept_by_every_row():
    """One row meets a 429; none is sent between then and the end of the wait."""
    record = records(1)[0]

    class Watched(LocalLimits):
        paused = 0.0

        async def pause(self, seconds: float) -> None:
            await super().pause(seconds)
            self.paused = seconds

    async def scenario():
        limits = Watched()
        async with serving(latency=0.05, faults={"429": 1.0}, retry_after=1.0) as server:
            writer = chat_writer(server.url, limits=limits)
            first = asyncio.create_task(writer.write("explanation", [record]))
            while not limits.paused:
                await asyncio.sleep(0.01)
            server.settings.faults = {}
            others = await writer.write("explanation", records(5)[1:])
            answers = await first
            await writer.client.close()
            return [*answers, *others], server.log

    answers, log = asyncio.run(scenario())
    assert [a.status for a in answers] == ["ok"] * 5
    assert (answers[0].attempts, log[0][3]) == (2, "429")
    assert len(log) == 6
    assert all(at - log[0][0] >= 1.0 + 0.05 - 0.01 for at, *_ in log[1:])


def test_a_wait_beyond_the_deadline_fails_the_row_at_once():
    started = time.monotonic()
    answers, server = write(1, {"faults": {"429": 1.0}, "retry_after": 50}, deadline=20.0)
    assert time.monotonic() - started < 10
    assert (answers[0].error or "").startswith("deadline: no answer within 20 s; the last trouble was http_429")
    assert len(server.log) == 1


def test_an_endpoint_that_asks_to_come_back_tomorrow_ends_the_run():
    message = fatal(2, {"faults": {"429": 1.0}, "retry_after": 86400})
    assert "asks to wait 86400 s" in message


@pytest.mark.parametrize("fault", ["hang", "slow"])
def test_an_answer_that_does_not_come_is_given_up_at_the_deadline(fault):
    started = time.monotonic()
    answers, _ = write(20, {"faults": {fault: 1.0}}, deadline=1.5, request_timeout=60.0)
    assert time.monotonic() - started < 10
    assert {(a.status, a.attempts, a.error) for a in answers} == {("failed", 1, "deadline: no answer within 1.5 s")}
    assert all(1.5 <= a.latency < 8 for a in answers)


def test_a_request_that_hangs_is_repeated_within_the_deadline():
    answers, server = write(30, {"faults": {"hang": 0.3}}, deadline=60.0, request_timeout=0.5, max_attempts=20)
    assert {a.status for a in answers} == {"ok"}
    assert sum(a.attempts for a in answers) == len(server.log) > 30
    assert all(a.latency >= 0.5 for a in answers if a.attempts > 1)


def test_waiting_for_the_first_grant_is_not_the_rows_time():
    """Five a second: the last of 15 rows waits for two seconds, which is more than its deadline."""
    answers, server = write(15, {}, deadline=1.5, request_timeout=1.5, limits=LocalLimits(300))
    assert {a.status for a in answers} == {"ok"}
    times = sorted(at for at, *_ in server.log)
    assert times[-1] - times[0] > 1.5


def test_the_rate_limit_is_kept():
    """As the server sees it, after a first request has made the client load what it loads."""

    async def scenario():
        async with serving(latency=0.05) as server:
            writer = chat_writer(server.url, limits=LocalLimits(1200))
            await writer.write("explanation", records(1))
            await writer.write("explanation", records(46)[1:])
            await writer.client.close()
            return sorted(at for at, *_ in server.log)[1:]

    times = asyncio.run(scenario())
    assert times[-1] - times[0] >= 25 / 20 - 0.3


class _Clock:
    """Time that passes only while everybody sleeps, so that rates can be measured on a busy machine."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: _Clock):
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> list:
        self.clock.now += timeout or 0.0
        return super().select(0)


class _SleepingClient(OpenAIClient):
    """Answers after 200 ms, for 200 tokens."""

    async def complete(self, messages: list[dict[str, str]], schema: dict) -> Completion:
        await asyncio.sleep(0.2)
        return Completion('{"explanation": "The user would enjoy it."}', None, "stop", "m", 190, 10)


@pytest.mark.parametrize(
    ("requests", "tokens", "rate"), [(6000, None, 100.0), (None, 6000 * 200, 100.0), (6000, 3000 * 200, 50.0)]
)
def test_nearly_all_of_a_rate_is_used_at_200_milliseconds_a_request(monkeypatch, requests, tokens, rate):
    """Estimates, which count the longest answer, are above 200 tokens: what was not used has to come back."""
    clock = _Clock()
    monkeypatch.setattr(rate_limit_module.time, "monotonic", clock)

    def virtual_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(_Selector(clock))
        loop.time = clock
        return loop

    async def scenario() -> float:
        writer = ChatWriter(_SleepingClient("m", "http://host/v1", KEY), PROMPTS, limits=LocalLimits(requests, tokens))
        started = clock.now
        answers = await writer.write("explanation", records(1200))
        assert {a.status for a in answers} == {"ok"}
        return 1200 / (clock.now - started)

    with asyncio.Runner(loop_factory=virtual_loop) as runner:
        measured = runner.run(scenario())
    # The first second's burst comes on top; what the last rows' estimates hold too much is about a second, too.
    seconds = 1200 / rate
    assert 0.95 * rate <= measured <= rate * seconds / (seconds - 1)


def test_limits_learn_what_was_used():
    calls: list[tuple] = []

    class Recorded(LocalLimits):
        async def acquire(self, tokens: int) -> None:
            calls.append(("acquire", tokens))

        async def settle(self, estimated: int, actual: int) -> None:
            calls.append(("settle", estimated, actual))

    faults = {"500-json": 0.5}
    answers, _ = write(1, {"faults": faults, "seed": 1}, limits=Recorded())
    draws, needed = Settings(faults=faults, seed=1), 1
    while draws.fault_of(digest_of(records(1)[0]), needed):
        needed += 1
    assert needed > 1, "choose a seed whose first draw is a fault"
    estimated = calls[0][1]
    assert estimated > 256
    used = answers[0].tokens_in + answers[0].tokens_out
    assert [c for c in calls if c[0] == "acquire"] == [("acquire", estimated)] * needed
    assert [c[2] for c in calls if c[0] == "settle"] == [0] * (needed - 1) + [used]
    assert {c[1] for c in calls if c[0] == "settle"} == {estimated}


def test_a_wrong_key_ends_the_run_at_once():
    started = time.monotonic()
    message = fatal(200, {"key": "another", "latency": 0.02}, concurrency=8)
    assert time.monotonic() - started < 10
    assert "http_401: Incorrect API key provided: [key]" in message and "api_key_variable" in message


def test_a_wrong_key_ends_other_blocks_too():
    async def scenario():
        async with serving(key="another", latency=0.02) as server:
            writer = chat_writer(server.url, concurrency=4)
            blocks = [writer.write("explanation", records(50)) for _ in range(3)]
            outcomes = await asyncio.gather(*blocks, return_exceptions=True)
            await writer.client.close()
            return outcomes, server.unauthorized

    outcomes, requests = asyncio.run(scenario())
    assert [type(outcome) for outcome in outcomes] == [FatalError] * 3
    assert requests <= 8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"models": ("other",)}, "http_404: The model `m` does not exist."),
        ({"faults": {"403": 1.0}}, "http_403: You are not allowed"),
        ({"faults": {"quota": 1.0}}, "the account has no credit left"),
        ({"refuse": ("response_format",)}, "set profile.structured_output to json_object or none"),
        ({"faults": {"400": 1.0}}, "http_400: Invalid value in the request, sent with [key]"),
    ],
    ids=str,
)
def test_what_no_repetition_can_mend_ends_the_run(settings, words):
    assert words in fatal(20, settings)


def test_a_refused_row_among_good_ones_fails_alone():
    faults = {"400": 0.1, "context-length": 0.1, "content-filter": 0.1}

    async def scenario():
        async with serving() as server:
            writer = chat_writer(server.url)
            first = await writer.write("explanation", ['{"review": "the first success"}'])
            server.settings.faults = faults
            answers = await writer.write("explanation", records(100))
            await writer.client.close()
            return first[0], answers

    first, answers = asyncio.run(scenario())
    assert first.status == "ok"
    draws = Settings(faults=faults)
    reasons = {"400": "http_400", "context-length": "http_400", "content-filter": "refused", None: ""}
    for record, answer in zip(records(100), answers, strict=True):
        assert answer.attempts == 1
        assert (answer.error or "").split(":")[0] == reasons[draws.fault_of(digest_of(record), 1)]
        assert KEY not in (answer.error or "")
    assert 15 < sum(a.status == "failed" for a in answers) < 50


def test_rows_that_are_too_long_do_not_end_the_run():
    answers, _ = write(20, {"faults": {"context-length": 1.0}})
    assert {(a.status, a.attempts) for a in answers} == {("failed", 1)}


def test_an_endpoint_that_was_never_reached_ends_the_run():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        async def scenario():
            writer = chat_writer(url)
            try:
                await writer.write("explanation", records(10))
            finally:
                await writer.client.close()

        with pytest.raises(FatalError, match="that the server is up") as caught:
            asyncio.run(scenario())
    assert url in str(caught.value)


def test_an_endpoint_that_went_away_is_waited_for():
    """It answers once, is gone for longer than an endpoint may be that never answered, and comes back."""

    async def scenario():
        async with serving() as server:
            port = int(server.url.split(":")[-1].removesuffix("/v1"))
            writer = chat_writer(server.url, max_attempts=2)
            before = await writer.write("explanation", records(1))
        rest = asyncio.create_task(writer.write("explanation", records(6)[1:]))
        await asyncio.sleep(4.0)
        assert not rest.done()
        async with serving(port):
            after = await rest
            await writer.client.close()
        return [*before, *after]

    answers = asyncio.run(scenario())
    assert {a.status for a in answers} == {"ok"}
    assert all(a.latency >= 3 for a in answers[1:])


def test_everything_at_once_leaves_every_row_accounted_for():
    faults = {"429": 0.1, "500-text": 0.03, "500-json": 0.03, "malformed": 0.05, "hang": 0.01, "slow": 0.01}
    faults |= {"disconnect": 0.02, "broken-body": 0.02, "empty": 0.02, "refusal": 0.02, "too-long": 0.02}
    settings = {"faults": faults, "retry_after": 0.02}
    answers, server = write(200, settings, deadline=30.0, request_timeout=1.5, concurrency=32)
    assert sum(a.attempts for a in answers) == len(server.log)
    for record, answer in zip(records(200), answers, strict=True):
        assert answer.attempts == server.per_prompt[digest_of(record)]
        assert answer.status == ("ok" if answer.text else "failed")
        assert answer.text in ("", sentence(digest_of(record)))
    assert sum(a.status == "ok" for a in answers) > 180
    assert server.peak <= 32


def test_the_key_is_in_no_answer_and_no_log(caplog):
    with caplog.at_level(logging.DEBUG):
        answers, _ = write(4, {"faults": {"400": 0.9, "500-json": 0.1}}, max_attempts=2)
    assert caplog.records
    assert "[key]" in repr(answers) and KEY not in repr(answers) + caplog.text


def test_the_client_reports_the_model_that_answered(monkeypatch):
    async def renamed(self: ChatServer, request: web.Request, body: dict) -> web.StreamResponse:
        return await original(self, request, {**body, "model": "m-2026-01-01"})

    original: Callable = ChatServer._chat
    monkeypatch.setattr(ChatServer, "_chat", renamed)
    answers, _ = write(1, {})
    assert answers[0].model == "m-2026-01-01"
