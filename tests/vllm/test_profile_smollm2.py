"""A pretrained model as the writer: `xrec profile` has SmolLM2, behind vLLM's own server, read raw reviews."""

import re
import urllib.request
from collections import Counter

import pytest

from tests.raw_world import expected_keys, keys, make_raw_workspace, profile_config
from tests.vllm.served_model import served_model

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]
TABLES = {"item_profiles": "profile", "user_profiles": "profile", "explanations": "explanation"}
# What `xrec profile` calls answers that are of no use.
REASONS = {"not_json", "empty", "too_long", "refused", "cut_off"}
MAX_WORDS, EXPLAINED = 50, 20


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with served_model(smollm2, "smollm2", log) as address:
        yield address


def counted(server: str, name: str) -> int:
    """One of the server's own metrics."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"vllm:{name}(\{{| )", line)))


def test_every_row_is_an_answer_or_a_named_failure_and_every_token_is_booked(ray_session, server, tmp_path, capsys):
    from ray_jobs.profile import run

    workspace = make_raw_workspace(tmp_path / "w", users=15, items=15, interactions=4)
    compute = {"concurrency": 8, "request_timeout": 600.0, "deadline": 1200.0}
    size = {"max_words": MAX_WORDS, "max_tokens": 80, "reviews_per_item": 3, "explained_pairs": EXPLAINED}
    config = profile_config(f"{server}/v1", compute, model="smollm2", **size)
    summary = run(workspace, config)
    rows = {table: workspace.read_table("profile", table).to_pylist() for table in TABLES}
    for table, wanted in expected_keys(workspace).items():
        found = keys(rows[table], table)
        assert found == wanted or (table == "explanations" and set(found) < set(wanted)), table
    assert len(rows["explanations"]) == EXPLAINED
    every = [(table, row) for table in TABLES for row in rows[table]]
    failed = Counter(f"{table}: {row['error'].partition(':')[0]}" for table, row in every if row["status"] != "ok")
    attempts = sum(row["attempts"] for _, row in every)
    tokens = {side: sum(row[side] for _, row in every) for side in ("tokens_in", "tokens_out")}
    with capsys.disabled():
        print(f"\n{summary}\n{len(every)} rows, {attempts} requests, {tokens}, failed: {dict(failed) or 'none'}")
        for table, column in TABLES.items():
            print(f"{table}: {next((row[column] for row in rows[table] if row['status'] == 'ok'), None)!r}")
    for table, row in every:
        text = row[TABLES[table]]
        if row["status"] == "ok":
            assert 0 < len(text.split()) <= MAX_WORDS and "\n" not in text and row["error"] is None
        else:
            assert row["status"] == "failed" and text == "" and row["error"].partition(":")[0] in REASONS, row
        assert row["tokens_in"] > 100 and row["tokens_out"] > 0 and row["attempts"] in (1, 2)
        assert row["model"] == "smollm2"
    # By the server's own account: nothing was asked that is not in the tables.
    assert tokens["tokens_in"] == counted(server, "prompt_tokens_total")
    assert tokens["tokens_out"] == counted(server, "generation_tokens_total")
    assert attempts == counted(server, "request_success_total")
    # A model of this size writes what it is asked for most of the time.
    assert sum(failed.values()) < len(every) / 2
