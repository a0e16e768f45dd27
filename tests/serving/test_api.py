"""The HTTP API of a running server: answers against the batch explainer, and errors by status, code and field."""

import asyncio
import json

import openai
import pytest

from tests.tiny_world import ITEMS, USERS
from xrec.explainer.explain import Explainer
from xrec.workspace import Workspace


@pytest.fixture(scope="module")
def batch(live_server):
    """Explains the same pairs as `xrec explain` does."""
    return Explainer.from_workspace(Workspace(live_server.workspace), device="cpu")


def pairs(*known: tuple[int, int]) -> list[dict]:
    return [{"user_id": f"u{user}", "item_id": f"i{item}"} for user, item in known]


def events(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_explanations_are_those_of_the_batch_stage(live_server, batch):
    known = [(0, 7), (3, 3), (13, 1), (5, 9)]
    status, headers, answer = live_server.post("v1/explanations", {"pairs": pairs(*known)})
    assert status == 200, answer
    assert answer["dataset"] == "tiny" and answer["id"] == headers["x-request-id"]
    rows = batch.explain(known)
    assert [row["explanation"] for row in answer["explanations"]] == [row["explanation"] for row in rows]
    assert [row["tokens"] for row in answer["explanations"]] == [row["tokens"] for row in rows]
    assert answer["usage"]["completion_tokens"] == sum(row["tokens"] for row in rows)
    prompts = [len(request.token_ids) for request in batch.requests(known)]
    assert answer["usage"]["prompt_tokens"] == sum(prompts)


def test_signal_off_is_that_of_the_batch_stage(live_server, batch):
    _, _, answer = live_server.post("v1/explanations", {"pairs": pairs((2, 4)), "signal": "off"})
    assert answer["explanations"][0]["explanation"] == batch.explain([(2, 4)], "off")[0]["explanation"]


def test_average_signal_gives_every_user_the_same_vector(live_server):
    body = {"pairs": [{"interactions": [f"i{n}"], "item_id": "i5"} for n in (1, 2)], "signal": "average"}
    _, _, average = live_server.post("v1/explanations", body)
    texts = [row["explanation"] for row in average["explanations"]]
    assert texts[0] == texts[1]


def test_a_stream_ends_with_the_same_explanations(live_server):
    body = {"pairs": pairs((0, 7), (3, 3))}
    _, _, answer = live_server.post("v1/explanations", body)
    status, headers, text = live_server.post("v1/explanations", body | {"stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    found = events(text)
    assert [name for name, _ in found].count("delta") > 4 and found[-1][0] == "done"
    whole = {data["index"]: data for name, data in found if name == "explanation"}
    for index, row in enumerate(answer["explanations"]):
        assert whole[index]["explanation"] == row["explanation"]
        told = "".join(data["text"] for name, data in found if name == "delta" and data["index"] == index)
        # A last character may be incomplete.
        assert told.startswith(row["explanation"].rstrip("\ufffd"))
    assert found[-1][1]["usage"] == answer["usage"]


def test_recommendations_are_the_largest_products_outside_the_history(live_server, batch):
    embeddings = batch.vectors.embeddings
    for user in (0, 13):
        _, _, details = live_server.get(f"v1/users/u{user}")
        history = {row["item_id"] for row in details["history"]}
        products = {
            f"i{item}": float(
                sum(a * b for a, b in zip(embeddings["user"][user], embeddings["item"][item], strict=True))
            )
            for item in range(ITEMS)
        }
        expected = sorted((i for i in products if i not in history), key=lambda i: -products[i])[:3]
        _, _, answer = live_server.get(f"v1/users/u{user}/recommendations?k=3")
        assert [row["item_id"] for row in answer["recommendations"]] == expected
        assert [row["rank"] for row in answer["recommendations"]] == list(range(1, len(expected) + 1))
        for row in answer["recommendations"]:
            assert row["score"] == pytest.approx(products[row["item_id"]], abs=1e-5)


def test_recommendations_carry_the_explanations_of_their_pairs(live_server):
    _, _, answer = live_server.get("v1/users/u4/recommendations?k=3&explain=true")
    rows = answer["recommendations"]
    assert rows
    body = {"pairs": [{"user_id": "u4", "item_id": row["item_id"]} for row in rows]}
    _, _, plain = live_server.post("v1/explanations", body)
    assert [row["explanation"] for row in rows] == [row["explanation"] for row in plain["explanations"]]
    _, _, text = live_server.get("v1/users/u4/recommendations?k=3&explain=true&stream=true")
    found = events(text)
    assert found[0][0] == "recommendations" and found[-1][0] == "done"
    whole = {data["index"]: data["explanation"] for name, data in found if name == "explanation"}
    assert [whole[n] for n in range(len(rows))] == [row["explanation"] for row in rows]


def test_a_new_user_gets_recommendations_and_explanations(live_server):
    _, _, answer = live_server.post("v1/recommendations", {"interactions": ["i1", "i2"], "k": 3, "explain": True})
    rows = answer["recommendations"]
    assert len(rows) == 3 and not {"i1", "i2"} & {row["item_id"] for row in rows}
    pair = {"interactions": ["i1", "i2"], "item_id": rows[0]["item_id"]}
    _, _, plain = live_server.post("v1/explanations", {"pairs": [pair]})
    assert plain["explanations"][0]["explanation"] == rows[0]["explanation"]
    assert plain["explanations"][0]["cold_start"] and plain["explanations"][0]["user_id"] is None


def test_a_new_item_is_explained(live_server):
    item = {"title": "garden cafe", "interactions": ["u0", "u3"], "profile": "warm bread"}
    status, _, answer = live_server.post("v1/explanations", {"pairs": [{"user_id": "u2", "item": item}]})
    assert status == 200 and answer["explanations"][0]["cold_start"]
    assert answer["explanations"][0]["title"] == "garden cafe"


def test_evidence_names_real_history_and_the_effect_of_the_signal(live_server, batch):
    body = {"pairs": pairs((0, 7)), "evidence": True}
    _, _, answer = live_server.post("v1/explanations", body)
    row, evidence = answer["explanations"][0], answer["explanations"][0]["evidence"]
    _, _, details = live_server.get("v1/users/u0")
    assert {h["item_id"] for h in evidence["history"]} <= {h["item_id"] for h in details["history"]}
    for similar in evidence["similar_users"]:
        _, _, other = live_server.get(f"v1/users/{similar['user_id']}")
        assert "i7" in {h["item_id"] for h in other["history"]}
    _, _, average = live_server.post("v1/explanations", {"pairs": pairs((0, 7)), "signal": "average"})
    effect = evidence["signal_effect"]
    assert effect["explanation"] == average["explanations"][0]["explanation"]
    assert effect["changed"] == (effect["explanation"] != row["explanation"])
    assert answer["usage"]["completion_tokens"] == row["tokens"] > 0


def test_lists_of_users_items_and_models(live_server):
    _, _, users = live_server.get("v1/users?query=u1&limit=3")
    assert [row["user_id"] for row in users["users"]] == ["u1", "u10", "u11"]
    _, _, items = live_server.get("v1/items?query=PLACE%207")
    assert [row["title"] for row in items["items"]] == ["place 7"]
    _, _, models = live_server.get("v1/models")
    (model,) = models["data"]
    assert (model["id"], model["users"], model["items"], model["error"]) == ("tiny", USERS, ITEMS, None)


def test_openai_client_reads_answers_streams_and_errors(live_server):
    client = openai.OpenAI(base_url=live_server.url + "v1", api_key="none", max_retries=0)
    question = [{"role": "user", "content": json.dumps({"user_id": "u0", "item_id": "i7"})}]
    _, _, plain = live_server.post("v1/explanations", {"pairs": pairs((0, 7))})
    text = plain["explanations"][0]["explanation"]
    answer = client.chat.completions.create(model="tiny", messages=question)
    assert answer.choices[0].message.content == text
    assert answer.usage.total_tokens == plain["usage"]["total_tokens"]
    named = {"xrec": {"user_id": "u0", "item_id": "i7"}}
    chunks = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Why?"}], extra_body=named, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    with pytest.raises(openai.UnprocessableEntityError, match="does not name a pair"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "Why?"}])
    with pytest.raises(openai.NotFoundError, match="no dataset 'other'"):
        client.chat.completions.create(model="other", messages=question, stream=True)
    assert [model.id for model in client.models.list()] == ["tiny"]


ERRORS = [
    ({"pairs": pairs((0, 7), (99, 7))}, 404, "user_not_found", "pairs.1.user_id"),
    ({"pairs": pairs((0, 99))}, 404, "item_not_found", "pairs.0.item_id"),
    ({"pairs": [{"interactions": ["i1", "i99"], "item_id": "i2"}]}, 404, "item_not_found", "pairs.0.interactions.1"),
    ({"pairs": pairs((0, 7)), "dataset": "other"}, 404, "dataset_not_found", "dataset"),
    ({"pairs": []}, 422, "invalid_request", "pairs"),
    ({"pairs": [{"user_id": 7, "item_id": "i1"}]}, 422, "invalid_request", "pairs.0.user_id"),
    ({"pairs": [{"item_id": "i1"}]}, 422, "invalid_request", "pairs.0"),
    ({"pairs": pairs((0, 7)), "temprature": 1}, 422, "invalid_request", "temprature"),
    ({"pairs": pairs((0, 7)), "max_words": 10_000}, 422, "too_large", "max_words"),
    ({"pairs": pairs((0, 7)) * 65}, 422, "too_large", "pairs"),
    ({"pairs": [{"interactions": ["i1"] * 1001, "item_id": "i1"}]}, 422, "too_large", "pairs.0.interactions"),
    (b"{not json", 422, "invalid_json", None),
    (b"x" * 1_000_001, 413, "body_too_large", None),
]


@pytest.mark.parametrize(("body", "status", "code", "field"), ERRORS, ids=[f"{e[2]}-{e[3]}" for e in ERRORS])
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_a_status_a_code_and_a_field(live_server, body, status, code, field, stream):
    if stream and isinstance(body, dict):
        body = body | {"stream": True}
    found, headers, answer = live_server.post("v1/explanations", body)
    assert (found, answer["error"]["code"], answer["error"]["field"]) == (status, code, field)
    assert answer["error"]["request_id"] == headers["x-request-id"]


def test_errors_of_other_routes(live_server):
    assert live_server.get("v1/users/nobody/recommendations")[2]["error"]["code"] == "user_not_found"
    assert live_server.get("v1/users/u0/recommendations?k=0")[2]["error"]["field"] == "k"
    assert live_server.get("v1/users/u0/recommendations?k=many")[0] == 422
    assert live_server.get("v1/nothing")[2]["error"]["code"] == "not_found"
    status, _, answer = live_server.post("v1/explanations", b"{}", {"Content-Type": "text/plain"})
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


def test_a_deadline_ends_the_answer(live_server):
    body = {"pairs": pairs(*[(user, item) for user in range(8) for item in range(8)]), "deadline_seconds": 0.001}
    for stream in (False, True):
        status, _, answer = live_server.post("v1/explanations", body | {"stream": stream})
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")


def test_pages_and_answers_carry_the_headers_that_browsers_obey(live_server):
    for path in ("", "docs", "v1/models", "static/app.js", "v1/nothing"):
        _, headers, _ = live_server.get(path)
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    assert live_server.get("v1/models")[1]["cache-control"] == "no-store"
    assert live_server.get("v1/models", {"Host": "elsewhere.example"})[0] == 400


def test_figures_count_what_was_asked(live_server):
    for _ in range(3):
        live_server.post("v1/explanations", {"pairs": [{"interactions": ["i1"], "item_id": "i2"}]})

    async def wait() -> str:
        for _ in range(120):
            figures = live_server.figures()
            if "ray_xrec_requests_total{" in figures and "ray_xrec_cold_starts_total" in figures:
                return figures
            await asyncio.sleep(0.5)
        raise AssertionError("the figures never came")

    figures = asyncio.run(wait())
    for name in (
        "request_seconds_bucket",
        "tokens_total",
        "engine_unfinished",
        "snapshot_refused",
        "explanations_total",
    ):
        assert f"ray_xrec_{name}" in figures, name
