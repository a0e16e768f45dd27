"""Which charts a comparison has, and that their text alternatives say what they show."""

import xml.etree.ElementTree as ElementTree

from tests.unit.evaluation.comparison_example import comparison
from xrec.evaluation import comparison_charts as charts


def _texts(chart):
    return {text.text for text in ElementTree.fromstring(chart.svg).iter("text")}


def test_one_chart_a_main_metric_with_every_system():
    drawn = charts.system_charts(comparison())
    assert [c.title.split("\u00a0")[0] for c in drawn] == ["Feature accuracy", "GPTScore", "BERTScore F1", "BARTScore"]
    assert {"XRec", "PETER+", "published_a&b", "BERTScore F1 (higher is better)"} <= _texts(drawn[2])
    assert "XRec 88.0 %, interval " in drawn[0].svg


def test_differences_leave_the_reference_out():
    drawn = charts.difference_charts(comparison(), count=2)
    assert len(drawn) == 2
    assert "XRec" not in _texts(drawn[0]) and {"no difference", "PETER"} <= _texts(drawn[0])
    assert "percentage points by which XRec is better" in _texts(drawn[0])
    found = comparison()
    for system in found["systems"]:
        system.pop("difference", None)
    assert charts.difference_charts(found) == []


def test_groups_draw_eight_systems_and_name_the_others():
    found = comparison(groups=True)
    drawn = charts.group_charts(found)
    assert len(drawn) == 4 and charts.group_charts(comparison()) == []
    texts = _texts(drawn[2])
    assert {"1–5", "32–214", "zero-shot", "XRec", "Item profile"} <= texts
    assert "published_a&b" not in texts and drawn[2].caption.endswith("Only in the table: published_a&b.")
    assert "zero-shot 0." in drawn[2].svg
    # The reference is drawn even where it is the worst.
    for key, figure in found["systems"][0]["metrics"].items():
        figure["value"] = -99.0 if key == "feature/accuracy" else figure["value"]
    assert "XRec" in _texts(charts.group_charts(found)[0])


def test_a_group_that_a_system_lacks_is_a_gap():
    found = comparison(groups=True)
    found["systems"] = [found["systems"][0], found["systems"][-1]]
    chart = charts.group_charts(found)[0]
    spoken = ElementTree.fromstring(chart.svg).get("aria-label")
    own, published = spoken.split("; ")
    assert "zero-shot" in own and "zero-shot" not in published
    assert "nan" not in chart.svg.lower()
