"""The web page on a phone, in light and dark, and the API reference."""

import re

import pytest

from tests.browser.pages import get, settled, visit

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


CONTRASTS = """() => {
  const pixel = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const luminance = (colours) => {
    pixel.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = [...pixel.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    const texts = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
    const text = texts.map((child) => child.data.trim()).join('');
    if (!text || !node.checkVisibility() || node.closest('.visually-hidden, .skip, :disabled, option')) continue;
    const grounds = [];
    for (let at = node; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [luminance([...grounds, getComputedStyle(node).color]), luminance(grounds)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_and_can_be_read(open_page, live_server, scheme):
    page = open_page(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    visit(page, live_server)
    page.locator("summary:visible").last.click()
    expect(page.locator(".roots:visible")).to_contain_text("score of")
    page.locator("#signal label").last.tap()
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [(round(ratio, 2), text) for ratio, text in contrasts if ratio < 4.5] == []  # WCAG 2.2, level AA


def test_the_reference_shows_every_operation(open_page, live_server):
    page = open_page(viewport={"width": 360, "height": 740})
    page.goto(f"{live_server.url}docs")
    paths = get(page, live_server, "openapi.json")["paths"]
    expect(page.locator("article").first).to_be_visible()
    expected = sorted(path for path, item in paths.items() for _ in item)
    assert sorted(page.locator("article .address code").all_inner_texts()) == expected
    article = page.locator("article", has_text="/v1/explanations").first
    expect(article.locator(".curl code")).to_contain_text(f"curl '{live_server.url}v1/explanations'")
    expect(article.locator(".fields code", has_text=re.compile("^pairs$"))).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.messages == []
