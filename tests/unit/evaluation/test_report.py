"""The report: complete, self-contained, safe against hostile texts, and honest about what is absent."""

import html
import re
import shutil
from html.parser import HTMLParser

import pytest

from ray_jobs import preprocess, report, sample
from tests.unit.evaluation.comparison_example import comparison
from tests.unit.evaluation.trust_example import trust
from xrec.config import PreprocessConfig, ReportConfig, SampleConfig
from xrec.evaluation import report_content, report_headline
from xrec.evaluation.report import render_report
from xrec.tables import from_rows
from xrec.workspace import Workspace, WorkspaceError

HOSTILE = "</p><script>alert('x')</script><img src=http://evil.example/a onerror=alert(1)>{{ 7*7 }} \"quoted\" & more"
_VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags, ids, links and visible text, and checks that elements are nested properly."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.links, self.text, self.open = [], [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[a] for a in ("href", "src") if a in values]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def source(evaluated):
    return render_report(evaluated, ReportConfig(title="A <run>", examples=5))


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


def test_is_self_contained(source, page):
    assert set(page.tags) & {"script", "link", "iframe", "img"} == set()
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|@import|url\((?!#)", source)


def test_every_link_leads_somewhere_and_ids_are_unique(page):
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_has_every_section_with_its_figures(page, evaluated):
    text = " ".join(" ".join(page.text).split())
    for section in ("vectors", "metrics", "causal", "likelihood", "probes", "examples", "training", "stages"):
        assert section in page.ids
    assert "A <run>" in text
    for words in ("60 users", "40 items", "no explained test pair is an edge of the training graph", "Chance level"):
        assert words in re.sub(r"\s+", " ", text)
    accuracy = evaluated.read_json("evaluate", "metrics.json")["test/feature/accuracy"]
    assert f"{100 * accuracy:.1f} %" in text and "Recall@20" in text
    assert page.tags.count("article") == 5
    assert page.tags.count("svg") >= 9


def test_the_first_table_compares_the_signals_with_each_other_and_with_chance(page, evaluated):
    text = " ".join(" ".join(page.text).split())
    first = text[text.index("What the vectors change") : text.index("Data and language model")]
    assert "Vectors own shuffled another user's none" in first
    found = evaluated.read_json("evaluate", "summary.json")
    for signal, interval in found["likelihood"]["signals"].items():
        assert f"{interval['value']:.4f}" in first, signal
    for signal, interval in found["likelihood"]["difference"].items():
        assert f"{interval['value']:+.4f} {interval['low']:+.4f} to {interval['high']:+.4f}" in first, signal
    for level in ("chance", "prompt_chance", "majority"):
        assert f"{100 * found['feature'][level]:.1f} %" in first
    for label in ("Feature accuracy", "Negative log-likelihood", "Unique sentence ratio", "Copies of the prompt"):
        assert label in first
    assert text.index("What the vectors change") < text.index("Metric Value")


def test_the_language_model_is_named(page):
    text = " ".join(page.text)
    assert "Language model: SmolLM2-135M-Instruct, 134,515,008 parameters, 30 layers, frozen." in text
    sentence = report_headline._backbone_sentence
    assert sentence({}, {}, {}) == ""
    assert sentence({}, {"pretrained": "/models/own-7b/"}, {}) == "Language model: own-7b, frozen."
    given = sentence({"backbone": "lab/model"}, {"pretrained": "smollm2"}, {"parameters": 1.0})
    assert given == "Language model: lab/model, frozen."


def test_studies_and_what_speaks_for_the_figures_have_sections(tmp_path, evaluated):
    shutil.copytree(evaluated.path(), tmp_path / "copy")
    workspace = Workspace(tmp_path / "copy")
    workspace.write_json(workspace.read_json("evaluate", "summary.json") | trust(), "evaluate", "summary.json")
    for name, groups in (("compare", False), ("sparsity", True)):
        stage = workspace.stage(name, {})
        stage.write_json("comparison.json", comparison(groups))
        stage.finish({})
    page = Page(render_report(workspace, ReportConfig()))
    assert {"compare", "sparsity", "leaks", "causal"} <= set(page.ids) and "ablate" not in page.ids
    assert {link[1:] for link in page.links} <= set(page.ids) and len(page.ids) == len(set(page.ids))
    text = " ".join(" ".join(page.text).split())
    assert text.count("XRec leads on Feature accuracy with 88.0 %") == 2
    assert "Where XRec does not lead: BLEURT: behind published_a&b" in text
    for words in ("judge-a and judge-b; 94 requests", "How far the texts change", "12 of 48", "± 30."):
        assert words in text


def test_another_users_signal_is_a_control(evaluated):
    found = evaluated.read_json("evaluate", "summary.json")
    found["counts"] |= {"off": found["counts"]["shuffled"], "other_user": found["counts"]["shuffled"]}
    for figures in found["metrics"].values():
        figures["other_user"] = figures["shuffled"]
    assert report_content.controls_of(found) == ["shuffled", "other_user", "off"]
    row = report_content.causal_rows(found)[0]
    assert row["cells"][1] == row["cells"][2] != "" and row["cells"][3] == "" and row["gains"][1] is None


def test_shows_the_settings_and_versions(page):
    text = " ".join(page.text)
    assert "interactions_per_user: 8" in text
    assert "torch 2" in text


def test_examples_show_reference_prediction_and_shuffled_prediction(evaluated):
    found = report_content.examples(evaluated, 3)
    assert len(found) == 3
    for example in found:
        assert [p["signal"] for p in example.predictions][:1] == ["true"]
        assert example.feature in example.reference
        assert example.user_id.startswith("user-")
        assert example.user_profile and example.item_profile
    assert report_content.examples(evaluated, 0) == []


def test_hostile_texts_stay_text(tmp_path, explained):
    """Every text of the data ends up as characters on the page, whatever it holds."""
    workspace = Workspace(tmp_path / "hostile")
    stage = workspace.stage("preprocess", {"note": HOSTILE})
    stage.write_table("users", from_rows("users", [{"user": 0, "user_id": HOSTILE, "zero_shot": False}]))
    item = {"item": 0, "item_id": "i", "title": HOSTILE, "zero_shot": False}
    stage.write_table("items_index", from_rows("items_index", [item]))
    provenance = {"model": "m", "prompt_hash": "p", "tokens_in": 0, "tokens_out": 0, "status": "ok"}
    for side in ("user", "item"):
        rows = [{side: 0, "profile": HOSTILE, **provenance}]
        stage.write_table(f"{side}_profiles", from_rows(f"{side}_profiles", rows))
    rows = [{"user": 0, "item": 0, "split": "test", "explanation": HOSTILE, "feature": HOSTILE, **provenance}]
    stage.write_table("explanations", from_rows("explanations", rows))
    stage.finish({})
    row = explained.read_table("explain", "predictions").slice(0, 1).to_pylist()[0]
    stage = workspace.stage("explain", {}, inputs=["preprocess"])
    rows = [row | {"user": 0, "item": 0, "signal": "true", "explanation": HOSTILE}]
    stage.write_table("predictions", from_rows("predictions", rows))
    stage.finish({})
    source = render_report(workspace, ReportConfig(title=HOSTILE))
    page = Page(source)
    assert set(page.tags) & {"script", "img"} == set()
    # user id, title (twice), item title, feature, two profiles, reference, prediction
    assert sum(text.count(HOSTILE) for text in page.text) >= 8
    assert html.escape("<script>") in source and "<script" not in source


def test_absent_stages_are_named_with_their_command(tmp_path):
    workspace = Workspace(tmp_path / "young")
    with pytest.raises(WorkspaceError, match="no stage has finished"):
        render_report(workspace, ReportConfig())
    sample.run(workspace, SampleConfig(users=30, items=20, interactions_per_user=5, features=4))
    text = " ".join(Page(render_report(workspace, ReportConfig())).text)
    for stage in ("preprocess", "embed", "tune", "explain", "evaluate"):
        assert f"come with `xrec {stage}`" in text
    preprocess.run(workspace, PreprocessConfig())
    text = " ".join(Page(render_report(workspace, ReportConfig())).text)
    assert "come with `xrec preprocess`" not in text


def test_the_writer_of_the_texts_is_named():
    sentence = report_headline._texts_sentence
    written = {"item_profiles/rows": 40.0, "explanations/rows": 160.0, "explanations/failed": 0.0}
    assert "without a language model" in sentence({"writer": "extractive-yake-1"}, written)
    written |= {"explanations/failed": 3.0, "explanations/failed/refused": 3.0}
    assert sentence({"model": "m-7"}, written).endswith("were written by m-7 from the reviews; 3 of 200 failed.")
    assert sentence({}, {}) == ""


def test_a_leaking_split_is_called_out():
    sentence = report_headline._leak_sentence
    leaky = {"leak/explained_test_pairs_in_train_graph": 81, "explanations/test": 100}
    assert sentence(leaky).startswith("Leak: 81 of 100 explained test pairs")
    assert sentence({"leak/explained_test_pairs_in_train_graph": 0}).startswith("Leak check: no explained")
    assert sentence({}) == ""


def test_stage_writes_once_and_refuses_a_change(tmp_path, evaluated):
    workspace = Workspace(tmp_path / "copy")
    sample.run(workspace, SampleConfig(users=30, items=20, interactions_per_user=5, features=4))
    assert "would show data" in report.run(workspace, ReportConfig(), dry_run=True)
    assert not workspace.exists("report")
    assert "report.html" in report.run(workspace, ReportConfig())
    first = workspace.read_bytes("report", "report.html")
    assert "already finished" in report.run(workspace, ReportConfig())
    preprocess.run(workspace, PreprocessConfig())
    with pytest.raises(WorkspaceError, match="--force"):
        report.run(workspace, ReportConfig())
    report.run(workspace, ReportConfig(), force=True)
    assert workspace.read_bytes("report", "report.html") != first
