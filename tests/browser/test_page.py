"""The web page against the real server, as a person with a keyboard meets it."""

import re
from urllib.parse import parse_qs, urlparse

import pytest

from tests.browser.pages import EXPLANATIONS, HOSTILE, USER, events, get, settled, visit, words

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def test_loads_without_an_error(page, live_server):
    page.goto(live_server.url)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator("#starters button").first).to_be_visible()
    expect(page.locator("#about")).to_contain_text("tiny")
    assert page.messages == []


def test_a_person_is_chosen_by_keyboard_alone(page, live_server):
    page.goto(live_server.url)
    expect(page.locator("#starters button").first).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "user":
            break
    field = page.get_by_role("combobox", name="Find a person by id")
    expect(field).to_be_focused()
    page.keyboard.type(USER)
    expect(field).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    option = page.get_by_role("option", selected=True)
    expect(option).to_have_count(1)
    expect(field).to_have_attribute("aria-activedescendant", option.get_attribute("id"))
    chosen = option.locator("span").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#person-name")).to_have_text(chosen)
    expect(page.get_by_role("listbox")).to_have_count(0)
    assert parse_qs(urlparse(page.url).query)["user"] == [chosen]
    details = get(page, live_server, f"v1/users/{chosen}")
    assert page.locator("#person .history li").count() == len(details["history"])
    assert settled(page)


def test_escape_closes_the_suggestions(page, live_server):
    page.goto(live_server.url)
    page.locator("#user").click()
    expect(page.get_by_role("listbox")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("listbox")).to_have_count(0)


# A second reader of each stream; Chromium keeps no body of a response that the page stops reading at its last event.
COPY = """
window.streams = [];
const plain = window.fetch;
window.fetch = async (...request) => {
  const response = await plain(...request);
  if (response.headers.get('Content-Type')?.startsWith('text/event-stream')) streams.push(response.clone().text());
  return response;
};
"""


def test_explanations_stream_in(page, live_server):
    page.add_init_script(COPY)
    count = visit(page, live_server)
    stream = events(page.evaluate("streams[0]"))
    rows = stream[0][1]["recommendations"]
    texts = {data["index"]: data["explanation"] for event, data in stream if event == "explanation"}
    assert count == len(rows) == len(texts)
    assert page.evaluate("pieces") >= sum(event == "delta" for event, _ in stream) > 0
    for index, row in enumerate(rows):
        shown = page.locator(".card").nth(index)
        expect(shown.locator("h3")).to_have_text(row["title"])
        expect(shown.locator(".score-number")).to_have_text(f"{row['score']:.2f}")
        assert words(shown.locator(".sentence").inner_text()) == words(texts[index]) or not texts[index]


def test_evidence_unfolds_once(page, live_server):
    visit(page, live_server)
    asked = []
    page.on("request", lambda sent: asked.append(sent.post_data_json) if EXPLANATIONS.search(sent.url) else None)
    card = page.locator(".card").first
    card.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(card.locator(".roots")).to_contain_text("score of")
    answer = page.request.post(f"{live_server.url}v1/explanations", data=asked[0]).json()
    evidence = answer["explanations"][0]["evidence"]
    names = [user["user_id"] for user in evidence["similar_users"]] + [item["title"] for item in evidence["history"]]
    assert [words(name) for name in card.locator(".root-name").all_inner_texts()] == [words(name) for name in names]
    expect(card.locator(".threads path")).to_have_count(len(names))
    page.keyboard.press("Enter")
    expect(card.locator(".roots")).not_to_be_visible()
    page.keyboard.press("Enter")
    expect(card.locator(".roots")).to_be_visible()
    assert len(asked) == 1 and asked[0]["evidence"] is True


@pytest.mark.parametrize("signal", ["average", "off"])
def test_another_signal_explains_again_and_compares(page, live_server, signal):
    count = visit(page, live_server)
    before = page.locator(".sentence").all_inner_texts()
    with page.expect_request(EXPLANATIONS) as request:
        page.locator(f"#signal input[value={signal}]").check()
    assert request.value.post_data_json["signal"] == signal
    expect(page.locator(f".card[data-signal={signal}][data-state=ready]")).to_have_count(count)
    expect(page.locator(".instead:visible")).to_have_count(count)
    after = page.locator(".sentence").all_inner_texts()
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        card = page.locator(".card").nth(index)
        if words(old) == words(new):
            expect(card.locator(".instead")).to_contain_text("The same")
        else:
            assert words(card.locator(".instead-text").inner_text()) == words(old)
            assert card.locator("mark").count() > 0
    # The comparison stays, the other way round, when the signal comes back; and the view can be shared.
    assert f"signal={signal}" in page.url
    page.locator("#signal input[value=true]").check()
    again = page.locator(".sentence").all_inner_texts()
    assert [words(text) for text in again] == [words(text) for text in before]


def test_a_shared_address_brings_the_signal_back(page, live_server):
    count = visit(page, live_server, f"?dataset=tiny&user={USER}&signal=average")
    expect(page.locator("#signal input[value=average]")).to_be_checked()
    expect(page.locator(".card[data-signal=average]")).to_have_count(count)


def test_someone_new_by_a_few_items(page, live_server):
    page.goto(live_server.url)
    page.get_by_label("Someone new").check()
    field = page.get_by_role("combobox", name="Add an item")
    for count, (query, title) in enumerate((("<img", HOSTILE), ("place", "place")), 1):
        field.fill(query)
        expect(page.get_by_role("option").first).to_contain_text(title)
        page.keyboard.press("ArrowDown")
        expect(page.get_by_role("option", selected=True)).to_have_count(1)
        page.keyboard.press("Enter")
        expect(page.locator("#chosen .chip")).to_have_count(count)
    expect(page.locator("#chosen .chip").first).to_contain_text(HOSTILE)
    with page.expect_request(re.compile("/v1/recommendations$")) as request:
        page.get_by_role("button", name="Recommend").click()
    chosen = request.value.post_data_json["interactions"]
    assert len(chosen) == 2
    settled(page)
    shown = [card.get_attribute("data-item") for card in page.locator(".card").all()]
    assert not set(chosen) & set(shown)
    page.reload()
    settled(page)
    expect(page.locator("#person .history li").first).to_have_text(HOSTILE)


def test_hostile_texts_are_texts(page, live_server):
    users = [user["user_id"] for user in get(page, live_server, "v1/users", limit=20)["users"]]
    details = [get(page, live_server, f"v1/users/{user}") for user in users]
    profile = next(one["user_id"] for one in details if HOSTILE in (one["profile"] or ""))
    title = next(one["user_id"] for one in details if any(item["title"] == HOSTILE for item in one["history"]))
    visit(page, live_server, f"?user={profile}")
    expect(page.locator(".profile")).to_contain_text(HOSTILE)
    visit(page, live_server, f"?user={title}")
    expect(page.locator("#person .history")).to_contain_text(HOSTILE)
    assert page.locator("main img").count() == 0
