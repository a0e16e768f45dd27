"""Costs, the cap, and the figures of a table of texts, against loops over the rows."""

import random

import numpy as np
import pyarrow as pa
import pytest

from xrec import tables
from xrec.config import ConfigError, Price
from xrec.profiles.accounting import Budget, TokenCounter, cost_of, estimate, failure_reasons, spent, text_metrics

PRICE = Price(input=0.5, output=1.5)


def test_a_cost_is_tokens_times_price_for_a_million():
    assert cost_of(2_000_000, 1_000_000, PRICE) == pytest.approx(2 * 0.5 + 1.5)
    assert cost_of(123, 45, PRICE) == pytest.approx(123 * 0.0000005 + 45 * 0.0000015)
    assert cost_of(123, 45, None) is None


def test_estimates_add_up():
    parts = [estimate(10, 4_000, 256, PRICE), estimate(3, 900, 256, PRICE)]
    total = parts[0] + parts[1]
    assert (total.rows, total.tokens_in, total.tokens_out) == (13, 4_900, 13 * 256)
    assert total.cost == pytest.approx(cost_of(4_900, 13 * 256, PRICE))
    assert (total + estimate(1, 1, 1, None)).cost is None


def test_the_budget_never_lets_more_begin_than_fits():
    cap, budget, generator = 10.0, Budget(10.0, spent=1.5), random.Random(0)
    open_blocks, paid, refused = [], 1.5, 0
    for _ in range(400):
        if open_blocks and generator.random() < 0.5:
            reserved = open_blocks.pop(generator.randrange(len(open_blocks)))
            actual = reserved * generator.uniform(0.1, 1.0)
            budget.settle(reserved, actual)
            paid += actual
        else:
            amount = generator.uniform(0.05, 1.0)
            fits = paid + sum(open_blocks) + amount <= cap
            assert budget.reserve(amount) == fits
            if fits:
                open_blocks.append(amount)
            refused += not fits
        assert paid + sum(open_blocks) <= cap + 1e-9
    assert refused and budget.spent == pytest.approx(paid)


def test_without_a_cap_everything_begins():
    budget = Budget(None)
    assert all(budget.reserve(1e9) for _ in range(3))


def texts(rows):
    base = {"model": "m", "prompt_hash": "h"}
    return tables.from_rows("item_profiles", [base | {"item": i} | row for i, row in enumerate(rows)])


def test_figures_and_reasons_of_a_table():
    generator = np.random.default_rng(0)
    rows = []
    for k in range(60):
        failed = k % 7 == 0
        rows.append(
            {
                "profile": "" if failed else "good",
                "tokens_in": int(generator.integers(1000)),
                "tokens_out": int(generator.integers(90)),
                "status": "failed" if failed else "ok",
                "error": ("deadline: 5 s" if k % 2 else "not_json: x") if failed else None,
                "attempts": int(generator.integers(1, 5)),
                "latency": float(generator.random()),
                "cost": float(generator.random()),
            }
        )
    table = texts(rows)
    figures = text_metrics(table, "item_profiles")
    assert figures["item_profiles/rows"] == 60
    assert figures["item_profiles/failed"] == sum(r["status"] == "failed" for r in rows) == 9
    for name in ("tokens_in", "tokens_out", "attempts", "cost"):
        assert figures[f"item_profiles/{name}"] == pytest.approx(sum(r[name] for r in rows))
    ordered = sorted(r["latency"] for r in rows)
    below = ordered[int(0.5 * 59)], ordered[int(0.5 * 59) + 1]
    assert below[0] - 1e-6 <= figures["item_profiles/latency_p50"] <= below[1] + 1e-6
    assert failure_reasons(table) == {"not_json": 5, "deadline": 4}
    assert spent([table, table]) == pytest.approx(2 * sum(r["cost"] for r in rows))


def test_a_table_without_prices_has_no_cost():
    row = {"profile": "x", "tokens_in": 0, "tokens_out": 0, "status": "ok"}
    figures = text_metrics(texts([row]), "item_profiles")
    assert not [name for name in figures if "cost" in name or "latency" in name]
    assert spent([texts([row])]) == 0.0
    assert failure_reasons(pa.table({"status": ["ok"], "error": pa.nulls(1, pa.string())})) == {}


def test_tokens_are_estimated_or_counted(tmp_path):
    from tests.tiny_world import save_backbone

    plain = TokenCounter(None)
    assert plain.count("abcdefgh") == 2
    assert plain.of_characters(4_000) == 1_000
    save_backbone(str(tmp_path))
    sample = ["warm bread", "fresh coffee and tea"]
    counter = TokenCounter(str(tmp_path), sample)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    counts = [len(tokenizer(text).input_ids) for text in sample]
    assert [counter.count(text) for text in sample] == counts
    assert counter.of_characters(3_000) == round(3_000 * sum(counts) / sum(map(len, sample)))
    with pytest.raises(ConfigError, match=r"profile.tokenizer = '/no/such"):
        TokenCounter("/no/such/folder")
