"""Charts: well-formed, self-contained, coloured by the page, readable by a screen reader."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from xrec.evaluation.plots import Estimate, Line, interval_chart, line_chart

ESTIMATES = [Estimate("own <b>", 0.9, 0.8, 0.95), Estimate("shuffled", 0.2, 0.1, 0.3, 1)]
CHARTS = {
    "lines": line_chart(
        [Line("a", [0, 1, 2], [3, 2, 1]), Line("b", range(30), [1.0] * 30)], "epoch", "loss", "Loss & co"
    ),
    "intervals": interval_chart(ESTIMATES, "share", 'A "chart"', [("chance", 0.1), ("most common", 0.2)], (0, 1)),
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
