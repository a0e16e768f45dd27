"""The page of a comparison: plain about who leads and where not, self-contained, safe against hostile texts."""

import re

import pytest

from tests.unit.evaluation.comparison_example import comparison
from tests.unit.evaluation.test_report import HOSTILE, Page
from xrec.evaluation.comparison_report import behind, comparison_content, render_comparison, standing


def _gap(value, low, high, p):
    return {"value": value, "low": low, "high": high, "p": p, "rows": 9}


def _sections(source):
    return set(re.findall(r'<a href="#(\w+)"', source))


def test_the_page_is_self_contained_and_complete():
    source = render_comparison(comparison(groups=True), "A <comparison>")
    page = Page(source)
    assert set(page.tags) & {"script", "link", "iframe", "img"} == set()
    assert not re.search(r"https?:|@import|url\((?!#)", source)
    assert _sections(source) == {"scores", "groups", "differences", "examples", "reading"}
    assert {link[1:] for link in page.links} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    text = " ".join(" ".join(page.text).split())
    assert "A <comparison>" in text and "published_a&b" in text
    assert page.tags.count("article") == 3 and page.tags.count("svg") == 12 and page.tags.count("table") == 6
    assert "The judges cost 1.75 in the currency of the prices that were given: XRec 1.25, w/o profiles 0.50." in text


def test_without_groups_examples_or_costs_their_sections_are_absent():
    found = comparison() | {"examples": []}
    for system in found["systems"]:
        system["cost"] = None
        system.pop("difference", None)
    source = render_comparison(found, "t")
    page = Page(source)
    assert _sections(source) == {"scores", "reading"} <= set(page.ids)
    assert "judges" not in " ".join(page.text)


@pytest.mark.parametrize(
    ("gap", "sentence"),
    [
        (
            _gap(0.05, 0.03, 0.07, 0.0001),
            "XRec leads on Feature accuracy with 88.0 % .*, ahead of w/o profiles with 83",
        ),
        (_gap(-0.05, -0.07, -0.03, 0.002), "XRec does not lead on Feature accuracy: .*-5.0 points, .*, p = 0.002"),
        (
            _gap(0.01, -0.01, 0.03, 0.4),
            "On Feature accuracy, XRec .* is level with w/o profiles .*which chance explains",
        ),
    ],
)
def test_the_first_sentence_says_who_leads(gap, sentence):
    found = comparison()
    found["systems"][1]["difference"]["feature/accuracy"] = gap
    assert re.match(sentence, comparison_content(found)["sentences"][0])


def test_where_the_reference_does_not_lead_is_said_for_each_metric():
    found = comparison()
    stands = standing(found)
    assert stands["bleurt"] == "behind" and stands["rouge_l"] == "first" and "words" not in stands
    [sentence] = behind(found)
    assert sentence.startswith("BLEURT: behind published_a&b (-0.0800, interval -0.0968 to -0.0632, p < 0.001); ")
    # Eight systems are ahead, the first by too little.
    assert sentence.endswith("; and 4 more.")
    found["systems"][1]["difference"]["rouge_l"] = _gap(0.001, -0.002, 0.004, 0.6)
    assert standing(found)["rouge_l"] == "level"
    counted = [list(standing(found).values()).count(kind) for kind in ("first", "behind", "level")]
    expected = "ahead of every other system on {}, significantly behind at least one on {}, and neither on {}."
    assert comparison_content(found)["sentences"][1].endswith(expected.format(*counted))


def test_examples_show_the_reference_first_then_the_best():
    found = comparison()
    found["examples"][0]["scores"]["nrt"] = 0.95
    del found["examples"][0]["texts"]["peter"], found["examples"][0]["scores"]["pepler"]
    [first, *_] = comparison_content(found)["examples"]
    labels = [text["label"] for text in first["texts"]]
    assert labels[:3] == ["XRec", "NRT", "w/o profiles"] and labels[-1] == "PEPLER" and "PETER" not in labels
    assert (first["texts"][1]["score"], first["texts"][-1]["score"]) == ("0.9500", "")
    assert first["metric"] == "BERTScore F1"


def test_hostile_texts_stay_text():
    found = comparison(groups=True)
    for system in found["systems"]:
        system["label"] = HOSTILE
    for group in found["groups"]:
        group["label"] = HOSTILE
    for example in found["examples"]:
        example |= {"title": HOSTILE, "user_id": HOSTILE, "reference": HOSTILE}
        example["texts"] = dict.fromkeys(example["texts"], HOSTILE)
    source = render_comparison(found, HOSTILE)
    assert set(Page(source).tags) & {"script", "img"} == set()
    assert "<script" not in source
