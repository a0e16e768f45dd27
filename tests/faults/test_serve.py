"""A server under load while its replicas are killed and replaced, its clients go away, and its snapshot is corrupt."""

import http.client
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving_process import ServingProcess
from tests.snapshot_changes import flip_byte, publish_next
from tests.tiny_world import ITEMS, USERS, finish_tune, make_workspace
from xrec.workspace import Workspace

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 180
KEY = {"Authorization": "Bearer a-key-for-these-tests"}
PAIR = {"user_id": "u0", "item_id": "i7"}
# The model ends no text by itself: this one takes minutes, unless it is cancelled.
ENDLESS = {"pairs": [PAIR], "max_words": 100_000, "max_new_tokens": 100_000, "stream": True}
LONG = {"pairs": [PAIR], "max_words": 2_000, "max_new_tokens": 1_500}


def settings(**changes) -> dict:
    parts = {
        "lookup": {"replicas": [2, 2], "cpus": 0.1, "refresh_seconds": 0.5},
        "explainer": {"replicas": [2, 2], "cpus": 0.1, "threads": 1, "batch_size": 4},
        "ingress": {"cpus": 0.1},
        "limits": {"words": 100_000, "new_tokens": 100_000, "in_flight": 12, "pairs": 12, "deadline_seconds": 300},
    }
    for path, value in changes.items():
        section, name = path.split("__")
        parts[section][name] = value
    return parts


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("faults") / "tiny", zero_shot_users=0, endless=True)
    finish_tune(workspace)
    with ServingProcess(workspace.uri, settings(), keys="tests:a-key-for-these-tests") as server:
        yield server


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


@contextmanager
def load(server: ServingProcess, clients: int = 3):
    """Clients that ask one after the other; yields the answers so far, as (status, body)."""
    answers: list[tuple[int, object]] = []
    stop = threading.Event()

    def ask(client: int) -> None:
        count = client
        while not stop.is_set():
            pair = {"user_id": f"u{count % USERS}", "item_id": f"i{count % ITEMS}"}
            status, _, body = server.post("v1/explanations", {"pairs": [pair]}, KEY)
            answers.append((status, body))
            count += clients

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until("the first answers", lambda: len(answers) > 5)
        yield answers
        wanted = len(answers) + 5
        wait_until("answers after it", lambda: len(answers) > wanted)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Stream:
    """A streaming request over a connection of its own."""

    def __init__(self, server: ServingProcess, body: dict):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        headers = {"Content-Type": "application/json", **KEY}
        self.connection.request("POST", "/v1/explanations", json.dumps(body), headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        self.first = self.response.readline()

    def last_event(self) -> tuple[str, dict]:
        *_, event, data = self.response.read().decode().rstrip("\n").split("\n")
        return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    def leave(self) -> None:
        self.connection.close()


def healthy(server: ServingProcess, deployment: str, old: set[int]) -> bool:
    """Whether two replicas run, none of them among the old ones that were killed."""
    pids = {process.pid for process in server.replicas(deployment)}
    return len(pids - old) == 2


def test_a_killed_explainer_costs_no_answer_and_ends_its_streams_with_an_error(server):
    streams = [Stream(server, LONG | {"stream": True}) for _ in range(6)]
    before = {process.pid for process in server.replicas("Explainer")}
    assert len(before) == 2
    with load(server) as answers:
        victim = server.replicas("Explainer")[0]
        victim.kill()
        wait_until("its successor", lambda: healthy(server, "Explainer", {victim.pid}))
    assert [body for status, body in answers if status != 200] == []
    ends = [stream.last_event() for stream in streams]
    assert {name for name, _ in ends} == {"error", "done"}, "some streams were on either replica"
    assert {data["error"]["code"] for name, data in ends if name == "error"} == {"interrupted"}


def test_a_killed_lookup_costs_no_answer(server):
    with load(server) as answers:
        victim = server.replicas("EmbeddingLookup")[0]
        victim.kill()
        wait_until("its successor", lambda: healthy(server, "EmbeddingLookup", {victim.pid}))
    assert [body for status, body in answers if status != 200] == []


def test_a_client_that_leaves_ends_its_generation(server):
    streams = [Stream(server, ENDLESS) for _ in range(8)]
    # Every place in both batches is taken now.
    for stream in streams:
        stream.leave()
    body = {"pairs": [PAIR], "deadline_seconds": 20}
    answers = [server.post("v1/explanations", body, KEY) for _ in range(4)]
    assert [status for status, _, _ in answers] == [200] * 4


def test_overload_is_refused_and_nothing_else_happens(server):
    answers: list[tuple[int, dict, object]] = []

    def ask() -> None:
        answers.append(server.post("v1/explanations", {"pairs": [PAIR]}, KEY))

    threads = [threading.Thread(target=ask) for _ in range(120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _, _ in answers} == {200, 503}
    for status, headers, body in answers:
        if status == 503:
            assert int(headers["retry-after"]) >= 1
            assert body["error"]["code"] == "overloaded"
    assert server.post("v1/explanations", {"pairs": [PAIR]}, KEY)[0] == 200


def test_a_key_is_needed(server):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a-key-for-these-tests"}):
        status, answered, body = server.post("v1/explanations", {"pairs": [PAIR]}, headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
        assert answered["www-authenticate"] == "Bearer"
    assert server.get("healthz")[0] == server.get("")[0] == 200


def test_a_corrupt_snapshot_is_refused_and_a_sound_one_taken_over(server, tmp_path):
    workspace = Workspace(server.workspace)

    def model() -> dict:
        return server.get("v1/models", KEY)[2]["data"][0]

    second = publish_next(workspace, seed=1)
    wait_until("the new snapshot", lambda: model()["snapshot"] == second)
    # Made elsewhere, so that the server never sees it whole before it sees it corrupt.
    twin = Workspace(shutil.copytree(server.workspace, tmp_path / "twin"))
    third = publish_next(twin, seed=2)
    shutil.copytree(twin.path("snapshot", third), workspace.path("snapshot", third))
    weights = Path(workspace.path("snapshot", third, "adapter", "adapter.safetensors"))
    flip_byte(weights)
    with load(server) as answers:
        workspace.write_json({"snapshot": third}, "snapshot", "current.json")
        wait_until("the refusal", lambda: model()["error"] is not None)
        assert model()["snapshot"] == second
        flip_byte(weights)
        wait_until("the sound one", lambda: (model()["snapshot"], model()["error"]) == (third, None))
    assert [body for status, body in answers if status != 200] == []


def test_new_settings_replace_every_replica_without_a_failed_request(server):
    names = ("EmbeddingLookup", "Explainer", "Ingress")
    before = {name: {process.pid for process in server.replicas(name)} for name in names}
    with load(server) as answers:
        server.write_settings(
            settings(lookup__refresh_seconds=0.7, explainer__batch_size=3, limits__retry_after_seconds=2)
        )
        server.process.send_signal(signal.SIGHUP)
        wait_until("the new settings", lambda: "serving with the new settings" in server.output.read_text())
        wait_until(
            "the end of the old replicas",
            lambda: not any({p.pid for p in server.replicas(name)} & before[name] for name in names),
        )
    assert [body for status, body in answers if status != 200] == []


def test_settings_that_are_wrong_change_nothing(server):
    server.write_settings({"limits": {"pears": 3}})
    server.process.send_signal(signal.SIGHUP)
    wait_until("the refusal", lambda: "the new settings are refused" in server.output.read_text())
    assert "pears" in server.output.read_text()
    assert server.post("v1/explanations", {"pairs": [PAIR]}, KEY)[0] == 200


def test_a_server_told_to_stop_finishes_what_it_has_in_hand(server):
    stream = Stream(server, LONG | {"stream": True})
    ends: list[tuple[str, dict]] = []
    reader = threading.Thread(target=lambda: ends.append(stream.last_event()))
    reader.start()
    assert server.stop() == 0
    reader.join()
    assert [name for name, _ in ends] == ["done"]
    assert not [process for process in server.descendants() if process.is_running()]
