"""What the tests of the web page share: addresses, the hostile text of the test dataset, and waiting."""

import json
import re

HOSTILE = "<img src=x onerror=window.hacked=1>"
USER = "u1"
RECOMMENDATIONS = re.compile(r"/v1/users/[^/]+/recommendations")
EXPLANATIONS = re.compile(r"/v1/explanations$")


def get(page, live_server, path: str, **params):
    answer = page.request.get(live_server.url + path, params=params)
    assert answer.ok, answer.text()
    return answer.json()


def settled(page) -> int:
    """Waits until every explanation is written; how many there are."""
    from playwright.sync_api import expect

    expect(page.locator(".card").first).to_be_visible()
    expect(page.locator(".card[aria-busy=true]")).to_have_count(0)
    assert page.locator(".card[data-state=cut]").count() == 0, page.get_by_role("alert").inner_text()
    return page.locator(".card").count()


def visit(page, live_server, query: str = f"?user={USER}") -> int:
    """Opens the page and waits; how many explanations it shows."""
    page.goto(live_server.url + query)
    return settled(page)


def events(body: str) -> list[tuple[str, dict]]:
    """The events of a stream, read by line rather than the way the page does it."""
    found = re.findall(r"^event: (.+)\r?\ndata: (.+)$", body, re.MULTILINE)
    return [(event, json.loads(data)) for event, data in found]


def words(text: str) -> str:
    return " ".join(text.split())
