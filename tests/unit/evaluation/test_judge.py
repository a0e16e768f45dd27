"""The judge against a local server: what every fault does to answers, counts and the run, and what is kept."""

import io
import json

import pyarrow.parquet as pq
import pytest

from tests.chat_faults import hash_of_prompt, value
from tests.chat_server import server_thread
from tests.ports import free_port
from xrec.config import Price
from xrec.config.evaluation import JudgeConfig
from xrec.evaluation import judge_requests
from xrec.evaluation.judge import FatalError, Judge
from xrec.workspace import Workspace

KEY = "sk-a-key-that-nobody-may-see"
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 100}}}


def chats(count, first=0):
    return [[{"role": "user", "content": f"question {n}, answer in JSON"}] for n in range(first, first + count)]


def expected(chat):
    return value("m", hash_of_prompt(chat), SCHEMA["properties"]["score"])


def parse(text):
    score = json.loads(text)["score"]
    if not isinstance(score, int):
        raise ValueError("no number")
    return score


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setattr(judge_requests, "_FIRST_BACKOFF", 0.01)


def judge(url, cache=None, model="m", **settings):
    return Judge(model, JudgeConfig(base_url=url, api_key_variable="JUDGE_KEY", **settings), cache)


def test_answers_are_parsed_counted_and_priced():
    with server_thread(key=KEY) as server:
        asked = judge(server.url, prices={"m": Price(input=2.0, output=30.0)})
        assert asked.ask(chats(7), SCHEMA, parse) == [expected(c) for c in chats(7)]
    # The server counts a token a word.
    tokens_in, tokens_out = 7 * 5, 7 * 2
    assert asked.facts() == {
        "calls": 7,
        "cached": 0,
        "unscored": 0,
        "reasons": {},
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "cost": pytest.approx((tokens_in * 2 + tokens_out * 30) / 1e6),
    }
    assert judge(server.url).facts()["cost"] is None


def test_a_question_is_asked_once(tmp_path):
    workspace = Workspace(tmp_path)
    with server_thread() as server:
        first = judge(server.url, workspace)
        answers = first.ask([*chats(3), *chats(2)], SCHEMA, parse)
        assert answers == [expected(c) for c in [*chats(3), *chats(2)]]
        first.ask(chats(2, first=2), SCHEMA, parse)
        assert (first.facts()["calls"], first.facts()["cached"]) == (4, 3)
        assert len(server.log) == 4
        # Another model, or another schema, is another question.
        judge(server.url, workspace, model="other").ask(chats(1), SCHEMA, parse)
        judge(server.url, workspace).ask(chats(1), {**SCHEMA, "required": ["score"]}, parse)
        assert len(server.log) == 6
    # Nobody listens any more, and nobody needs to.
    again = judge(server.url, Workspace(tmp_path))
    assert again.ask(chats(4), SCHEMA, parse) == [expected(c) for c in chats(4)]
    assert (again.facts()["calls"], again.facts()["cached"], again.facts()["tokens_in"]) == (0, 4, 0)


def test_kept_answers_need_no_key(tmp_path, monkeypatch):
    with server_thread() as server:
        judge(server.url, Workspace(tmp_path)).ask(chats(1), SCHEMA, parse)
    monkeypatch.delenv("JUDGE_KEY")
    config = JudgeConfig(api_key_variable="JUDGE_KEY")
    assert Judge("m", config, Workspace(tmp_path)).ask(chats(1), SCHEMA, parse) == [expected(chats(1)[0])]
    with pytest.raises(
        FatalError, match="JUDGE_KEY is not set.*evaluate.judge.api_key_variable, or set evaluate.judge"
    ):
        Judge("another", config, Workspace(tmp_path))


def test_what_is_kept(tmp_path):
    workspace = Workspace(tmp_path)
    with server_thread(key=KEY) as server:
        judge(server.url, workspace).ask(chats(2), SCHEMA, parse)
    (file,) = workspace.files("judge")
    rows = pq.read_table(io.BytesIO(workspace.read_bytes("judge", file))).to_pylist()
    assert [json.loads(row["content"])["score"] for row in rows] == [expected(c) for c in chats(2)]
    assert {(row["judge"], row["model"], row["tokens_in"], row["tokens_out"]) for row in rows} == {("m", "m", 5, 2)}
    assert KEY.encode() not in workspace.read_bytes("judge", file)


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("malformed", "not_json"),
        ("empty", "not_json"),
        ("refusal", "refused"),
        ("refusal-text", "not_json"),
        ("filtered", "refused"),
        ("cut-off", "cut_off"),
    ],
)
def test_an_answer_of_no_use_is_asked_for_again_once_and_unscored(fault, reason, tmp_path):
    with server_thread(faults={fault: 1.0}) as server:
        asked = judge(server.url, Workspace(tmp_path))
        assert asked.ask(chats(3), SCHEMA, parse) == [None] * 3
        assert asked.facts()["reasons"] == {reason: 3}
        assert (asked.facts()["unscored"], asked.facts()["calls"], len(server.log)) == (3, 6, 6)
        assert Workspace(tmp_path).files("judge") == []
        server.settings.update({"faults": {}})
        # Nothing is kept of it: the next run asks again.
        assert judge(server.url, Workspace(tmp_path)).ask(chats(3), SCHEMA, parse) == [expected(c) for c in chats(3)]


def test_a_code_fence_is_no_fault():
    with server_thread(faults={"fenced": 1.0}) as server:
        assert judge(server.url).ask(chats(2), SCHEMA, parse) == [expected(c) for c in chats(2)]


def test_the_second_asking_may_succeed():
    """Which prompts meet the fault the first time, and which the second, is known from the server's draws."""
    with server_thread(faults={"malformed": 0.5}, seed=3) as server:
        asked = judge(server.url)
        answers = asked.ask(chats(40), SCHEMA, parse)
        hit = [
            [server.settings.fault_of(hash_of_prompt(c), sending) is not None for sending in (1, 2)] for c in chats(40)
        ]
    assert answers == [None if all(h) else expected(c) for c, h in zip(chats(40), hit, strict=True)]
    assert asked.facts()["unscored"] == sum(all(h) for h in hit) > 0
    assert asked.facts()["calls"] == 40 + sum(first for first, _ in hit)


@pytest.mark.parametrize("fault", ["429", "500-text", "500-json", "broken-body", "disconnect"])
def test_passing_troubles_are_tried_again(fault):
    with server_thread(faults={fault: 0.3}, retry_after=0.02, retry_after_ms=True) as server:
        asked = judge(server.url, max_attempts=20, concurrency=4)
        assert asked.ask(chats(20), SCHEMA, parse) == [expected(c) for c in chats(20)]
        assert asked.facts()["calls"] == len(server.log) > 20


@pytest.mark.parametrize("fault, reason", [("500-json", "http_500"), ("429", "http_429"), ("hang", "timeout")])
def test_a_trouble_that_does_not_pass_leaves_a_row_unscored(fault, reason):
    with server_thread(faults={fault: 1.0}, retry_after=0.02, retry_after_ms=True) as server:
        asked = judge(server.url, max_attempts=2, request_timeout=0.3)
        assert asked.ask(chats(2), SCHEMA, parse) == [None, None]
        assert asked.facts()["reasons"] == {reason: 2}
        assert len(server.log) == 4


@pytest.mark.parametrize("fault", ["context-length", "content-filter"])
def test_a_refused_row_is_not_asked_again(fault):
    with server_thread(faults={fault: 1.0}) as server:
        asked = judge(server.url)
        assert asked.ask(chats(8), SCHEMA, parse) == [None] * 8
        assert len(server.log) == 8


def fatal(match, faults=None, cache=None, server_settings=None, **settings):
    with server_thread(faults=faults or {}, **(server_settings or {})) as server:
        with pytest.raises(FatalError, match=match) as caught:
            judge(server.url, cache, **settings).ask(chats(20), SCHEMA, parse)
        assert KEY not in str(caught.value)
        assert "profile." not in str(caught.value)
        return server


def test_fatal_errors_name_the_judges_settings():
    settings = {"concurrency": 2}
    server = fatal("http_401.*evaluate.judge.api_key_variable", server_settings={"key": "another"}, **settings)
    assert server.unauthorized <= 2
    fatal("http_404.*evaluate.judge.models = 'm' and evaluate.judge.base_url", server_settings={"models": ["x"]})
    fatal("http_429.*no credit left", {"quota": 1.0}, **settings)
    refusing = [
        ("response_format", "set evaluate.judge.structured_output to json_object or none"),
        ("temperature", "name a judge that takes temperature 0 in evaluate.judge.models"),
        ("max_tokens", "set evaluate.judge.max_tokens"),
    ]
    for name, remedy in refusing:
        fatal(remedy, server_settings={"refuse": [name]}, **settings)


def test_the_answers_before_a_fatal_error_are_kept(tmp_path):
    workspace = Workspace(tmp_path)

    with server_thread() as server:
        asked = judge(server.url, workspace, concurrency=1)
        original = server.settings.fault_of
        # From the eleventh request on the key is refused.
        server.settings.fault_of = lambda *a: "401" if len(server.log) >= 10 else original(*a)
        with pytest.raises(FatalError, match="http_401"):
            asked.ask(chats(20), SCHEMA, parse)
        assert asked.facts()["calls"] == 11
        assert asked.facts()["tokens_in"] == 50
        with pytest.raises(FatalError, match="http_401"):
            asked.ask(chats(20), SCHEMA, parse)
        assert len(server.log) == 11, "a fatal error is not tried again"
        del server.settings.fault_of
        again = judge(server.url, workspace)
        assert again.ask(chats(20), SCHEMA, parse) == [expected(c) for c in chats(20)]
        assert (again.facts()["cached"], again.facts()["calls"]) == (10, 10)


def test_an_endpoint_out_of_reach_is_fatal():
    for answered_before in (False, True):
        with server_thread() as server:
            asked = judge(server.url, max_attempts=3)
            if answered_before:
                asked.ask(chats(1), SCHEMA, parse)
        with pytest.raises(FatalError, match="cannot be used .connection.*check evaluate.judge.base_url"):
            asked.ask(chats(3, first=1), SCHEMA, parse)
    with pytest.raises(FatalError, match="evaluate.judge.base_url = 'localhost"):
        judge(f"localhost:{free_port()}").ask(chats(1), SCHEMA, parse)


def test_requests_stay_within_the_concurrency():
    with server_thread(latency=0.02) as server:
        judge(server.url, concurrency=3).ask(chats(20), SCHEMA, parse)
        assert server.peak == 3
