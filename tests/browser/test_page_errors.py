"""The web page when something goes wrong: every failure is said in words, and the page goes on working."""

import json
import re

import pytest

from tests.browser.pages import EXPLANATIONS, RECOMMENDATIONS, USER, get, settled

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("?user=nobody%20at%20all%2F%3Cb%3E", "There is no such person"),
        (f"?dataset=nowhere&user={USER}", "There is no such dataset"),
    ],
)
def test_an_unknown_address_is_said_and_the_page_goes_on(page, live_server, query, title):
    page.goto(live_server.url + query)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(title)
    expect(alert.locator("code")).not_to_be_empty()
    page.locator("#starters button").first.click()
    assert settled(page)
    expect(alert).to_be_empty()


def test_a_server_that_is_gone_and_comes_back(page, live_server):
    page.goto(live_server.url)
    expect(page.locator("#starters button").first).to_be_visible()
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#starters button").first.click()
    expect(page.get_by_role("alert")).to_contain_text("No connection")
    page.unroute("**/v1/**")
    page.get_by_role("button", name="Try again").click()
    assert settled(page)
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize(("status", "title"), [(429, "Too many requests"), (503, "The server is busy")])
def test_says_when_to_try_again(page, live_server, status, title):
    error = {"code": "later", "message": "Not now.", "field": None, "request_id": "request-7"}
    answer = {"status": status, "headers": {"Retry-After": "30"}, "json": {"error": error}}
    page.route(RECOMMENDATIONS, lambda route: route.fulfill(**answer))
    page.goto(f"{live_server.url}?user={USER}")
    alert = page.get_by_role("alert")
    for text in (title, "Not now.", "in 30 seconds", "request-7"):
        expect(alert).to_contain_text(text)
    expect(alert.get_by_role("button")).to_have_text(re.compile(r"Try again \(\d+ s\)"))
    page.unroute(RECOMMENDATIONS)
    alert.get_by_role("button").click()
    assert settled(page)


DIED = {"code": "engine_lost", "message": "The replica died.", "field": None, "request_id": "r-9"}
FAILED = f"event: error\ndata: {json.dumps({'error': DIED})}\n\n"


@pytest.mark.parametrize(("end", "texts"), [("", ["Cut off"]), (FAILED, ["The replica died.", "r-9"])])
def test_a_stream_that_fails_midway_is_shown_and_finished_on_retry(page, live_server, end, texts):
    rows = get(page, live_server, f"v1/users/{USER}/recommendations", k=2)["recommendations"]
    first = {**rows[0], "index": 0, "explanation": "Whole.", "finish_reason": "stop"}
    half = {"index": 1, "text": " Half a"}
    stream = [("recommendations", {"recommendations": rows}), ("delta", half), ("explanation", first)]
    body = "".join(f"event: {event}\ndata: {json.dumps(data)}\n\n" for event, data in stream) + end
    page.route(RECOMMENDATIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    page.goto(f"{live_server.url}?user={USER}")
    for text in texts:
        expect(page.get_by_role("alert")).to_contain_text(text)
    cut = page.locator(".card[data-state=cut]")
    expect(cut).to_have_count(1)
    expect(cut).to_contain_text("Half a")
    expect(cut).to_contain_text("Not finished")
    with page.expect_request(EXPLANATIONS) as request:
        page.get_by_role("button", name="Try again").click()
    assert [pair["item_id"] for pair in request.value.post_data_json["pairs"]] == [rows[1]["item_id"]]
    assert settled(page) == 2
    expect(page.locator(".sentence").first).to_have_text("Whole.")


def test_choosing_another_person_aborts_the_running_stream(page, live_server):
    page.route(re.compile(f"/v1/users/{USER}/recommendations"), lambda route: None)  # never answered
    with page.expect_request(RECOMMENDATIONS) as request:
        page.goto(f"{live_server.url}?user={USER}")
    with page.expect_event("requestfailed", lambda failed: failed is request.value):
        page.locator("#user").fill("u2")
        page.keyboard.press("Enter")
    expect(page.locator("#person-name")).to_have_text("u2")
    assert settled(page)
    expect(page.get_by_role("alert")).to_be_empty()


def test_asks_for_a_key_and_keeps_it_in_the_tab_only(page, live_server):
    keys = []

    def guard(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer right key":
            return route.continue_()
        error = {"code": "invalid_api_key", "message": "This is not a key.", "field": None, "request_id": "r"}
        return route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", guard)
    page.goto(f"{live_server.url}?user={USER}")
    field = page.get_by_label("This server wants an API key")
    expect(field).to_be_focused()
    page.keyboard.type("wrong key")
    page.keyboard.press("Enter")
    expect(page.locator("#key-hint")).to_contain_text("This is not a key. Please try another.")
    expect(field).to_be_focused()
    page.keyboard.type("right key")
    page.keyboard.press("Enter")
    assert settled(page)
    expect(field).not_to_be_visible()
    assert keys[:2] == [None, "Bearer wrong key"]
    assert "right key" in page.evaluate("JSON.stringify(sessionStorage)")
    assert "right key" not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
