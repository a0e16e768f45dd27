"""The server with vLLM as its engine: the answers of the Hugging Face one, streams, and a client that goes away."""

import http.client
import json

import pytest

from tests.serving_process import ServingProcess
from tests.tiny_world import DIM, finish_tune, make_workspace
from tests.vllm.test_explain_vllm import ARGUMENTS, ENVIRONMENT, as_hugging_face_writes, settings
from tests.vllm.tiny_backbones import HIDDEN, save_backbone

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

EXPLAINER = {
    "engine": "vllm",
    "threads": 1,
    "engine_arguments": ARGUMENTS | {"max_num_seqs": 1},
    "engine_environment": ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
}
PAIRS = [(0, 7), (3, 3), (5, 6)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = make_workspace(tmp_path_factory.mktemp("serving") / "tiny")
    stage = workspace.stage("backbone", {}, force=True)
    save_backbone(workspace.path("backbone", "model"), "llama-grouped-query")
    stage.finish({})
    finish_tune(workspace, hidden_size=HIDDEN, embedding_dim=DIM)
    return workspace


@pytest.fixture(scope="module")
def server(workspace):
    limits = {"new_tokens": 400, "words": 400}
    with ServingProcess(workspace.uri, {"explainer": EXPLAINER, "limits": limits}) as server:
        yield server


def test_answers_are_those_of_the_hugging_face_engine(server, workspace):
    expected = as_hugging_face_writes(workspace, settings(), PAIRS, ["true", "off"])
    pairs = [{"user_id": f"u{user}", "item_id": f"i{item}"} for user, item in PAIRS]
    for signal in ("true", "off"):
        status, _, answer = server.post("v1/explanations", {"pairs": pairs, "signal": signal})
        assert status == 200, answer
        texts = [row["explanation"] for row in answer["explanations"]]
        assert texts == [expected[user, item, signal] for user, item in PAIRS]
    _, _, stream = server.post("v1/explanations", {"pairs": pairs[:1], "stream": True})
    *_, explanation, done, _ = stream.split("\n\n")
    assert json.loads(explanation.split("data: ")[1])["explanation"] == expected[*PAIRS[0], "true"]
    assert done.startswith("event: done")


def test_evidence_and_recommendations(server):
    body = {"pairs": [{"user_id": "u0", "item_id": "i7"}], "evidence": True}
    _, _, answer = server.post("v1/explanations", body)
    assert answer["explanations"][0]["evidence"]["signal_effect"]["explanation"]
    _, _, answer = server.get("v1/users/u0/recommendations?k=3&explain=true")
    assert all(row["explanation"] for row in answer["recommendations"])


def test_a_client_that_leaves_gives_its_place_to_the_next(server):
    body = {"pairs": [{"user_id": f"u{n}", "item_id": "i7"} for n in range(10)] * 6}
    body |= {"stream": True, "max_words": 400, "max_new_tokens": 300}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/explanations", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200 and response.readline()
    response.close()
    connection.close()
    # One request runs at a time: without the cancellation this one would wait for the sixty.
    status, _, _ = server.post("v1/explanations", {"pairs": body["pairs"][:1], "deadline_seconds": 15})
    assert status == 200
