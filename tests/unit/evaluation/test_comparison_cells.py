"""What a comparison's tables say: ranks, marks, spreads, and what is left out."""

import pytest

from tests.unit.evaluation.comparison_example import LEVELS, comparison
from xrec.evaluation.comparison_cells import (
    difference_table,
    group_tables,
    is_significant,
    main_metrics,
    metrics_of,
    score_table,
)
from xrec.evaluation.metrics import METRICS


def _column(table, header):
    place = next(n for n, column in enumerate(table.columns) if column.startswith(header))
    return {name: cells[place] for name, _, cells in table.rows}


def test_metrics_come_in_their_own_order_or_in_that_asked_for():
    own = [m.key for m in metrics_of(comparison())]
    assert own == [m.key for m in METRICS if m.key in LEVELS]
    assert [m.key for m in metrics_of(comparison(), ["usr", "bleurt"])] == ["usr", "bleurt"]
    with pytest.raises(ValueError, match="no metric 'rouge_1'; it has feature/accuracy"):
        metrics_of(comparison(), ["rouge_1"])


def test_best_and_second_best_whichever_way_a_metric_counts():
    table = score_table(comparison())
    for header, best, second in (
        ("BERTScore F1", "xrec", "without_profiles"),  # higher is better
        ("Hallucination", "xrec", "without_profiles"),  # lower is better
        ("BLEURT", "published_a&b", "item_profile"),  # the reference is last
        ("Unique sentence", "xrec", "without_profiles"),  # of the whole set of texts
    ):
        ranks = {name: cell.rank for name, cell in _column(table, header).items()}
        assert {n: r for n, r in ranks.items() if r} == {best: 1, second: 2}
    assert not any(cell.rank for cell in _column(table, "Words").values())


def test_figures_that_are_written_alike_rank_alike():
    found = comparison()
    for system, value in zip(found["systems"], (0.99999, 1.0, 0.5, 0.4), strict=False):
        system["metrics"]["usr"]["value"] = value
    found["systems"] = found["systems"][:4]
    ranks = {name: cell.rank for name, cell in _column(score_table(found, ["usr"]), "Unique").items()}
    assert ranks == {"xrec": 1, "without_profiles": 1, "att2seq": 2, "nrt": 0}
    for system in found["systems"]:
        system["metrics"]["usr"]["value"] = 1.0
    assert {cell.rank for cell in _column(score_table(found, ["usr"]), "Unique").values()} == {0}


def test_marks_say_which_way_the_reference_differs():
    found = comparison()
    found["systems"][1]["difference"]["bert_score_f1"] = {
        "value": 0.02,
        "low": -0.01,
        "high": 0.05,
        "p": 0.2,
        "rows": 9,
    }
    table = score_table(found)
    assert _column(table, "BERTScore F1")["xrec"].mark == ""
    assert _column(table, "BERTScore F1")["without_profiles"].mark == ""
    assert _column(table, "BERTScore F1")["peter"].mark == "*"
    assert _column(table, "BLEURT")["peter"].mark == "†"
    assert _column(table, "Words")["peter"].mark == ""


def test_without_a_p_value_the_interval_decides():
    assert is_significant({"value": 1, "low": 0.5, "high": 2})
    assert not is_significant({"value": 1, "low": -0.5, "high": 2, "p": None})
    assert not is_significant({"value": 1, "low": 0.5, "high": 2, "p": 0.051})


def test_a_cell_has_spread_interval_seeds_and_a_different_number_of_pairs():
    table = score_table(comparison())
    own, published = (_column(table, "BERTScore F1")[name] for name in ("xrec", "published_a&b"))
    figure = comparison()["systems"][0]["metrics"]["bert_score_f1"]
    assert (own.value, own.spread) == ("0.4120", "0.1200")
    assert own.lines == (f"{figure['low']:.4f} to {figure['high']:.4f}", f"seeds ± {figure['seed_std']:.4f}")
    assert published.lines[-1] == "1,311 pairs"
    assert _column(table, "Unique")["xrec"].lines == ()
    assert _column(table, "GPTScore")["xrec"].value == "77.20"
    assert _column(table, "Hallucination")["xrec"].value == "21.0 %"


def test_differences_leave_the_reference_and_unpaired_metrics_out():
    table = difference_table(comparison())
    assert "xrec" not in [name for name, _, _ in table.rows] and len(table.rows) == 8
    assert "Unique sentence ratio" not in table.columns
    cell = _column(table, "Hallucination")["att2seq"]
    assert (cell.value, cell.kind, cell.mark) == ("+6.0 points", "gain", "*")
    assert _column(table, "BLEURT")["att2seq"].kind == "loss"
    assert _column(table, "Words")["peter"].kind == ""
    found = comparison()
    for system in found["systems"]:
        system.pop("difference", None)
    assert difference_table(found) is None


def test_groups_have_a_table_a_main_metric_and_gaps():
    found = comparison(groups=True)
    tables = group_tables(found)
    assert len(tables) == len(main_metrics(found)) == 4
    assert tables[0].columns[0] == "1 to 5 interactions (90 users, 242 pairs)"
    assert [name for name, _, cells in tables[0].rows if cells[-1] is None] == ["published_a&b"]
    assert [t.caption.split("\u00a0")[0] for t in group_tables(found, ["bleurt"])] == ["BLEURT"]
    assert group_tables(comparison()) == []


def test_main_metrics_have_intervals_and_a_direction():
    assert [m.key for m in main_metrics(comparison())] == [
        "feature/accuracy",
        "gpt_score",
        "bert_score_f1",
        "bart_score",
    ]
    found = comparison()
    for system in found["systems"]:
        system["metrics"] = {k: system["metrics"][k] for k in ("usr", "words", "cut_off")}
    assert [m.key for m in main_metrics(found)] == ["cut_off"]
