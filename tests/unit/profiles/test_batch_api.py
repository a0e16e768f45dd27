"""Texts through the Batch API of a local server: rounds, faults, kills, and what is never submitted twice."""

import json
import threading
from contextlib import contextmanager

import pyarrow as pa
import pytest
from pydantic import SecretStr

from ray_jobs.profile_batch_api import write_blocks
from tests.chat_server import server_process
from xrec.config import ProfileConfig, WritingPrompts
from xrec.profiles import parts
from xrec.profiles.answers import FatalError
from xrec.profiles.batch_api import BatchRun
from xrec.profiles.batch_rows import Account, Answers, Correspondent, chunks, read_answers
from xrec.profiles.client import OpenAIClient
from xrec.profiles.prompts import Prompts
from xrec.workspace import Workspace

KIND, KEY, FOLDER = "item_profile", "sk-of-the-test", "item_profile_batches"
BLOCKS, ROWS = 4, 5
ALL = dict.fromkeys(range(BLOCKS))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    workspace = Workspace(tmp_path / "w")
    make = [json.dumps({"title": f"place {n}", "reviews": [f"review number {n}"]}) for n in range(BLOCKS * ROWS)]
    table = pa.table({"item": pa.array(range(BLOCKS * ROWS), pa.int32()), "record": make})
    parts.write_requests(workspace, KIND, [table.slice(b * ROWS, ROWS) for b in range(BLOCKS)])
    return workspace


@pytest.fixture
def server():
    with server_process("--key", KEY, "--batch-delay", "0") as server:
        yield server


def _config(server, **compute) -> ProfileConfig:
    compute = {"base_url": server.url, "poll_seconds": 0.02, "rows_per_block": ROWS} | compute
    return ProfileConfig.model_validate({"backend": "batch", "model": "m", "compute": compute})


def _write(workspace, config, work=ALL, key=KEY, **options):
    return list(write_blocks(workspace, config, KIND, dict(work), SecretStr(key), **options))


def _rows(workspace):
    return [row for block in range(BLOCKS) for row in parts.read_part(workspace, KIND, block).to_pylist()]


def _batches(server) -> list[dict]:
    import openai

    with openai.OpenAI(api_key=KEY, base_url=server.url) as sdk:
        return [batch.to_dict() for batch in sdk.batches.list(limit=100)]


def _correspondent(url="http://localhost:1/v1", max_attempts=3) -> Correspondent:
    client = OpenAIClient("m", url, KEY)
    return Correspondent(KIND, Prompts(WritingPrompts(), 50), client, 50, max_attempts)


def test_every_row_is_answered_once(workspace, server):
    said = []
    results = _write(workspace, _config(server), progress=said.append)
    assert sorted(result["block"] for result in results) == list(range(BLOCKS))
    assert all(result["rows"] == ROWS and result["failed"] == 0 and not result["deferred"] for result in results)
    rows = _rows(workspace)
    assert [row["item"] for row in rows] == list(range(BLOCKS * ROWS))
    assert all(row["status"] == "ok" and row["model"] == "m" and row["attempts"] == 1 for row in rows)
    assert len({row["profile"] for row in rows}) == len(rows)
    assert sum(row["tokens_in"] for row in rows) == sum(result["tokens_in"] for result in results) > 0
    assert len(_batches(server)) == 1 and "20 of 20 requests answered" in " ".join(said)
    assert not workspace.files("profile", "work", FOLDER)


def test_rows_that_expired_or_failed_are_asked_again_and_bad_answers_corrected(workspace, server):
    server.post("config", faults={"expired": 0.25, "row-error": 0.25, "malformed": 0.2})
    _write(workspace, _config(server))
    rows = _rows(workspace)
    assert [row["item"] for row in rows] == list(range(BLOCKS * ROWS))
    assert {row["attempts"] for row in rows} >= {1, 2, 3}
    assert all(row["attempts"] <= 4 for row in rows)
    failed = [row for row in rows if row["status"] == "failed"]
    # What is left failed four times over, or answered twice with no JSON.
    assert len(failed) < 5
    for row in failed:
        assert row["error"].partition(":")[0] in ("batch_expired", "http_500", "not_json") and row["profile"] == ""
    assert any(row["status"] == "ok" and row["attempts"] > 1 for row in rows)


def test_no_row_is_asked_more_often_than_the_bound(workspace, server):
    server.post("config", faults={"expired": 1.0})
    results = _write(workspace, _config(server, max_attempts=3))
    assert sum(result["failed"] for result in results) == BLOCKS * ROWS
    rows = _rows(workspace)
    assert all(row["attempts"] == 3 and row["error"].startswith("batch_expired: ") for row in rows)
    assert len(_batches(server)) == 3


def test_repair_asks_for_the_named_rows_alone(workspace, server):
    server.post("config", faults={"malformed": 1.0})
    _write(workspace, _config(server))
    assert all(row["attempts"] == 2 and row["error"].startswith("not_json: ") for row in _rows(workspace))
    server.post("config", faults={})
    results = _write(workspace, _config(server), {1: [0, 3], 2: [4]})
    assert sorted((r["block"], r["rows"], r["failed"]) for r in results) == [(1, 2, 0), (2, 1, 0)]
    assert [row["item"] for row in _rows(workspace) if row["status"] == "ok"] == [5, 8, 14]


def test_files_hold_whole_blocks_within_the_limits(workspace, server):
    requests = _correspondent(server.url)
    run = BatchRun(workspace, requests, KEY, poll_seconds=0.02, most_requests=2 * ROWS + 1)
    done = dict(run.write(dict(ALL)))
    assert sorted(done) == list(range(BLOCKS)) and all(len(accounts) == ROWS for accounts in done.values())
    assert [batch["request_counts"]["total"] for batch in _batches(server)] == [2 * ROWS] * 2
    with pytest.raises(FatalError, match="lower profile.compute.rows_per_block"):
        list(BatchRun(workspace, requests, KEY, most_bytes=100).write(dict(ALL)))


class _KilledError(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


@contextmanager
def _killed_after(monkeypatch, owner, name, times=1):
    """The driver dies right after the n-th call of a method has done its work."""
    original, calls = getattr(owner, name), []

    def dies(*arguments, **options):
        result = original(*arguments, **options)
        calls.append(result)
        if len(calls) == times:
            raise _KilledError
        return result

    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(owner, name, dies)
        yield


def test_a_kill_between_submitting_and_noting_it_down_submits_nothing_twice(workspace, server, monkeypatch):
    with _killed_after(monkeypatch, BatchRun, "_create"):
        _write(workspace, _config(server))
    assert len(_batches(server)) == 1
    assert workspace.read_json("profile", "work", FOLDER, "round-1.json")["chunks"][0]["batch"] is None
    _write(workspace, _config(server))
    assert len(_batches(server)) == 1
    assert all(row["status"] == "ok" and row["attempts"] == 1 for row in _rows(workspace))


def test_a_lost_state_file_submits_nothing_twice(workspace, server, monkeypatch):
    server.post("config", batch_delay=30.0)
    with _killed_after(monkeypatch, BatchRun, "_tell"):
        _write(workspace, _config(server))
    workspace.remove("profile", "work", FOLDER, "round-1.json")
    server.post("config", batch_delay=0.0)
    _write(workspace, _config(server))
    assert len(_batches(server)) == 1 and len(_rows(workspace)) == BLOCKS * ROWS


def test_a_run_killed_while_it_polls_goes_on_polling(workspace, server, monkeypatch):
    server.post("config", batch_delay=30.0)
    with _killed_after(monkeypatch, BatchRun, "_tell", times=3):
        _write(workspace, _config(server))
    threading.Timer(0.2, lambda: server.post("config", batch_delay=0.0)).start()
    results = _write(workspace, _config(server))
    assert len(results) == BLOCKS and len(_batches(server)) == 1


def test_a_kill_before_the_files_are_written_asks_for_nothing_again(workspace, server, monkeypatch):
    server.post("config", faults={"row-error": 0.3})
    with _killed_after(monkeypatch, parts, "write_part", times=2):
        _write(workspace, _config(server))
    done = parts.done_blocks(workspace, KIND)
    assert len(done) == 2
    _write(workspace, _config(server), {b: None for b in ALL if b not in done})
    rows = _rows(workspace)
    assert [row["item"] for row in rows] == list(range(BLOCKS * ROWS))
    # As many requests as attempts were noted down, and no more.
    assert sum(batch["request_counts"]["total"] for batch in _batches(server)) == sum(r["attempts"] for r in rows)


def test_what_an_earlier_run_left_undone_is_not_taken_for_the_repair(workspace, server, monkeypatch):
    server.post("config", faults={"malformed": 1.0})
    with _killed_after(monkeypatch, parts, "write_part", times=BLOCKS):
        _write(workspace, _config(server))  # all files are written, but the run has not been told to end
    assert workspace.files("profile", "work", FOLDER)
    server.post("config", faults={})
    results = _write(workspace, _config(server), {1: [2]})
    assert [(r["block"], r["rows"]) for r in results] == [(1, 1)]
    assert [row["item"] for row in _rows(workspace) if row["status"] == "ok"] == [7]
    assert not workspace.files("profile", "work", FOLDER)


def test_a_file_that_the_server_refuses_ends_the_run_with_its_message(workspace, server, monkeypatch):
    monkeypatch.setattr("xrec.profiles.batch_rows.URL", "/v1/other")
    with pytest.raises(FatalError, match=r"refused batch batch_\d+: line 1: A field is missing, or the url differs"):
        _write(workspace, _config(server))
    monkeypatch.undo()
    assert len(_write(workspace, _config(server))) == BLOCKS  # another batch, since the first brought nothing


def test_a_cancelled_batch_stops_the_run_and_a_rerun_asks_for_the_rest(workspace, server):
    import openai

    server.post("config", batch_delay=30.0)

    def cancel(sentence):
        if "is submitted" in sentence:
            with openai.OpenAI(api_key=KEY, base_url=server.url) as sdk:
                sdk.batches.cancel(sentence.split()[1])

    with pytest.raises(FatalError, match=r"was cancelled; run again to ask for the 20 rows"):
        _write(workspace, _config(server), progress=cancel)
    server.post("config", batch_delay=0.0)
    assert len(_write(workspace, _config(server))) == BLOCKS
    assert all(row["status"] == "ok" and row["attempts"] == 2 for row in _rows(workspace))


def test_a_wrong_key_ends_the_run_and_is_shown_nowhere(workspace, server):
    with pytest.raises(FatalError, match="http_401.*api_key_variable") as caught:
        _write(workspace, _config(server), key="sk-wrong-key")
    assert "sk-wrong-key" not in str(caught.value)


def test_an_endpoint_without_batches_is_named(workspace):
    config = _config(type("Server", (), {"url": "http://127.0.0.1:9/v1"}), request_timeout=1.0)
    with pytest.raises(FatalError, match="http://127.0.0.1:9/v1 cannot be used for batches"):
        _write(workspace, config)


def test_blocks_beyond_the_spend_cap_are_deferred(workspace, server):
    # An answer may cost 256 tokens at 1 a token, so a block 1,280; prompts cost nothing.
    prices = {"m": {"input": 0.0, "output": 1e6}}
    results = _write(workspace, _config(server, prices=prices, spend_cap=3000.0), spent=400.0)
    assert [(r["block"], r["deferred"]) for r in results] == [(0, False), (1, False), (2, True), (3, True)]
    assert parts.done_blocks(workspace, KIND) == {0, 1}


# Rows, without a server ----------------------------------------------------------------------------------------------


def _line(status=200, content='{"profile": "warm"}', **changes):
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "model": "m-1"}
    body["usage"] = {"prompt_tokens": 10, "completion_tokens": 3}
    return {"custom_id": "x", "response": {"status_code": status, "body": body}, "error": None} | changes


def test_a_request_carries_its_row_and_the_correction_of_the_second_time():
    rows, record = _correspondent(), '{"title": "a"}'
    first = json.loads(rows.line(Account(3, 7), record))
    assert first["custom_id"] == "item_profile/3/7" and first["url"] == "/v1/chat/completions"
    assert first["body"]["response_format"]["json_schema"]["schema"]["required"] == ["profile"]
    second = json.loads(rows.line(Account(3, 7, "correct", said="no", reason="not_json"), record))
    assert second["custom_id"] == "item_profile/3/7/2"
    assert second["body"]["messages"][:2] == first["body"]["messages"]
    assert [m["role"] for m in second["body"]["messages"][2:]] == ["assistant", "user"]


def test_accounts_add_up_over_two_rounds():
    rows, record = _correspondent(), '{"title": "a"}'
    first, failure = rows.settle(Account(0, 0), record, _line(content="nothing of the kind"), 100.0, 160.0)
    assert failure is None and first.state == "correct" and first.said == "nothing of the kind"
    second, _ = rows.settle(first, record, _line(), 200.0, 250.0)
    answer = second.answer("m")
    assert (answer.text, answer.status, answer.error, answer.model) == ("warm", "ok", None, "m-1")
    assert (answer.tokens_in, answer.tokens_out, answer.attempts, answer.latency) == (20, 6, 2, 150.0)
    third, _ = rows.settle(first, record, _line(content="again not"), 200.0, 250.0)
    assert third.state == "failed" and third.answer("m").error.startswith("not_json: ")


@pytest.mark.parametrize(
    ("line", "state", "reason"),
    [
        (None, "ask", "missing"),
        (_line(response=None, error={"code": "batch_expired", "message": f"late, {KEY}"}), "ask", "batch_expired"),
        (_line(503), "ask", "http_503"),
        (_line(429), "ask", "http_429"),
        (_line(200, response={"status_code": 200, "body": {"choices": []}}), "ask", "bad_response"),
        (_line(response={"status_code": 400, "body": {"error": {"message": "no", "code": "x"}}}), "failed", "http_400"),
    ],
)
def test_what_a_line_means_for_its_row(line, state, reason):
    account, _ = _correspondent().settle(Account(0, 0), "{}", line, 1.0, 2.0)
    assert account.state == state and account.trouble.partition(":")[0] == reason and KEY not in account.trouble
    last, _ = _correspondent(max_attempts=1).settle(Account(0, 0), "{}", line, 1.0, 2.0)
    assert last.state == "failed" and last.attempts == 1


def test_lines_of_no_request_of_ours_and_second_lines_are_counted_and_left_out():
    answers = Answers()
    lines = [{"custom_id": "a", "n": 1}, {"custom_id": "b"}, {"custom_id": "a", "n": 2}, {"id": 3}]
    read_answers([*(json.dumps(line) for line in lines), "{half", "", "[]"], {"a"}, answers)
    assert answers.by_id == {"a": {"custom_id": "a", "n": 1}}
    assert (answers.unknown, answers.repeated, answers.unreadable) == (1, 1, 3)


def test_chunks_are_cut_by_count_and_by_bytes():
    assert list(chunks([(0, 2, 10), (1, 2, 10), (2, 1, 10)], 4, 100)) == [[0, 1], [2]]
    assert list(chunks([(5, 1, 60), (7, 1, 40), (9, 1, 1)], 100, 100)) == [[5, 7], [9]]
    assert list(chunks([], 1, 1)) == []
