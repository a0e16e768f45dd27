"""What the report says about trust in its figures."""

from tests.unit.evaluation.trust_example import trust
from xrec.evaluation.report_trust import bert_score_model, change_rows, leak_rows, scorer_rows


def test_a_summary_without_the_parts_says_nothing():
    for summary in ({}, {"scorers": None, "counterfactual": None, "leakage": None}):
        assert scorer_rows(summary) == change_rows(summary, ["off"]) == leak_rows(summary) == []
        assert bert_score_model(summary) == ""
    assert bert_score_model(None) == ""


def test_scorers_name_their_models_and_count():
    rows = {row["label"]: (row["by"], row["notes"]) for row in scorer_rows(trust())}
    assert rows == {
        "BERTScore": ("roberta-large, layer 17, rescaled by the model's baseline", "1 empty text"),
        "GPTScore": (
            "judge-a and judge-b",
            "94 requests; 2 answers taken from an earlier run; 2 without an answer; 1.50 in the currency of the prices",
        ),
        "Hallucination rate": (
            "words, names and negations compared, without a model's judgement",
            "support from 0.5 on counts; 3 of 140 statements say nothing to check",
        ),
    }
    assert bert_score_model(trust()).startswith("roberta-large, layer 17")


def test_checkers_with_a_model_name_it():
    found = {"factuality": {"checker": "nli", "model": "m/nli", "empty": 0}, "bleurt": {"model": "b", "empty": 2}}
    rows = scorer_rows({"scorers": found})
    assert [row["by"] for row in rows] == ["b", "entailment by m/nli"]
    judged = {"factuality": {"checker": "judge", "calls": 1, "cached": 0, "cost": None, "unscored": 0}}
    assert scorer_rows({"scorers": judged}) == [
        {"label": "Statement precision, recall and F1", "by": "asked of a language model", "notes": "1 request"}
    ]


def test_changes_have_a_cell_a_control():
    rows = change_rows(trust(), ["shuffled", "off"])
    assert [row["label"] for row in rows] == ["Unchanged", "1 - ROUGE-L", "Words"]
    assert rows[0]["cells"] == [{"value": "25.0 %", "interval": "23.0 % to 27.0 %"}, None]
    assert rows[2]["cells"][0]["value"] == "-1.5"
    assert rows[1]["meaning"] == "1 - ROUGE-L F1 of the two texts."


def test_leaks_have_counts_and_shares_where_they_are_known():
    assert leak_rows(trust()) == [
        {"meaning": "Explained test pairs that are edges", "count": "12 of 48", "share": "25.0 %"},
        {"meaning": "References in a review", "count": "no such texts", "share": ""},
    ]
