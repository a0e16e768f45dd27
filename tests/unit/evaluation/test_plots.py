"""Charts: well-formed, self-contained, coloured by the page, readable by a screen reader."""

import re
import xml.etree.ElementTree as ElementTree
from math import nan

import pytest
from jinja2 import Environment, PackageLoader

from xrec.evaluation.plots import SERIES, Estimate, Line, Points, category_chart, interval_chart, line_chart

ESTIMATES = [Estimate("own <b>", 0.9, 0.8, 0.95), Estimate("shuffled", 0.2, 0.1, 0.3, 1)]
CHARTS = {
    "lines": line_chart(
        [Line("a", [0, 1, 2], [3, 2, 1]), Line("b", range(30), [1.0] * 30)], "epoch", "loss", "Loss & co"
    ),
    "intervals": interval_chart(ESTIMATES, "share", 'A "chart"', [("chance", 0.1), ("most common", 0.2)], (0, 1)),
    "categories": category_chart(
        ["few", "many", "none <yet>"],
        [Points(f"s{n}", [n, n + 1.0, nan], [n - 0.5, n, nan], [n + 0.5, n + 2.0, nan]) for n in range(SERIES)],
        "users",
        "score",
        "Categories",
    ),
    "one row": interval_chart(ESTIMATES[:1], "share", "One", [("no effect", 0.0)]),
}


@pytest.fixture(params=list(CHARTS))
def svg(request):
    return CHARTS[request.param]


def test_is_one_well_formed_element_without_outside_addresses(svg):
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert "http" not in svg and "xmlns" not in svg and "<style" not in svg
    assert root.get("viewBox") and root.get("width") is None


def test_has_a_text_alternative(svg):
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == root.findtext("title")


def test_every_colour_is_a_variable_of_the_page(svg):
    assert re.findall(r"#[0-9a-fA-F]{6}", svg) == []
    assert set(re.findall(r"var\((--[\w-]+)\)", svg)) >= {"--line", "--muted", "--series-1"}


def test_every_reference_has_its_target(svg):
    targets = set(re.findall(r'\sid="([^"]+)"', svg))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) == targets


def test_texts_are_texts_and_escaped():
    texts = [t.text for t in ElementTree.fromstring(CHARTS["intervals"]).iter("text")]
    assert {"own <b>", "shuffled", "chance", "share"} <= set(texts)


def test_the_reference_value_is_in_view():
    """With the data at 0.8 to 0.95, the line at 0 still has to be inside the axes."""
    root = ElementTree.fromstring(CHARTS["one row"])
    dashed = [p for p in root.iter("path") if "stroke-dasharray" in p.get("style", "")]
    x = float(re.findall(r"[-\d.]+", dashed[0].get("d"))[0])
    assert 0 < x < float(root.get("viewBox").split()[2])


def test_ids_of_different_charts_do_not_collide():
    ids = [set(re.findall(r'\sid="([^"]+)"', svg)) for svg in CHARTS.values()]
    assert not ids[0] & ids[1] and not ids[1] & ids[2]


def test_categories_have_a_colour_and_a_name_for_each_of_the_systems():
    svg = CHARTS["categories"]
    assert set(re.findall(r"var\((--series-\d)\)", svg)) == {f"--series-{n + 1}" for n in range(SERIES)}
    texts = [t.text for t in ElementTree.fromstring(svg).iter("text")]
    assert {"few", "none <yet>", "users", "score", *(f"s{n}" for n in range(SERIES))} <= set(texts)


def test_every_colour_stands_out_from_the_card_in_light_and_dark():
    """WCAG 2.2, 1.4.11: graphics have a contrast of at least 3 to their background."""
    css = Environment(loader=PackageLoader("xrec.evaluation")).get_template("report.css").render()
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{[^}]*\}", css)]
    assert len(themes) == 2
    for theme in themes:
        for series in range(1, SERIES + 1):
            assert _contrast(theme[f"series-{series}"], theme["card"]) >= 3


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_are_texts_not_formulas_and_leave_room_for_the_chart():
    svg = interval_chart([Estimate(r"$\bad", 1, 0, 2), Estimate("$x_1$ " + "w" * 99, 1, 0, 2)], "x", "Names")
    texts = [t.text for t in ElementTree.fromstring(svg).iter("text")]
    assert r"$\bad" in texts and "$x_1$ " + "w" * 21 + "…" in texts
