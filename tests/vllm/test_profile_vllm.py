"""Texts written by real vLLM engines inside Ray Data, for the published prompts."""

import re
import signal
import threading
import time

import psutil
import pytest

from xrec.config import TEXT_KINDS
from xrec.profiles import parts
from xrec.profiles.prompts import Prompts

pytestmark = pytest.mark.timeout(900)


def _write(workspace, config, kind, work=None):
    from ray_jobs.profile_vllm import write_blocks

    return list(write_blocks(workspace, config, kind, work or {0: None, 1: None}))


def _rows(workspace, kind):
    return [row for block in (0, 1) for row in parts.read_part(workspace, kind, block).to_pylist()]


# The engine starts once or twice a kind, and `.ci/run` has its limit; `test_vllm_server.py` asks for all three.
@pytest.mark.parametrize("kind", [TEXT_KINDS[0], *(pytest.param(k, marks=pytest.mark.slow) for k in TEXT_KINDS[1:])])
def test_published_prompts_bring_answers_of_the_schema(ray_session, workspace, settings, kind):
    config = settings()
    results = _write(workspace, config, kind)
    assert sorted(result["block"] for result in results) == [0, 1]
    assert sum(result["rows"] for result in results) == 6
    text = "explanation" if kind == "explanation" else "profile"
    for number, row in enumerate(_rows(workspace, kind)):
        assert row[parts.KEYS[kind][0]] == number
        # The model draws random words, so a text may be empty, or go on too long; but it is JSON of the schema.
        assert row["status"] == "ok" or row["error"].partition(":")[0] in ("empty", "cut_off"), row["error"]
        assert bool(row[text]) == (row["status"] == "ok")
        assert row["tokens_in"] > 100 and row["tokens_out"] > 0 and row["attempts"] in (1, 2) and row["latency"] > 0
        assert row["model"] == config.model
        assert row["prompt_hash"] == Prompts(config.prompts, config.max_words).hash(kind)
    assert sum(result["failed"] for result in results) <= 2
    assert not workspace.files("profile", "work", f"{kind}_first_answers")


def test_refused_and_rejected_rows_are_marked_and_a_repair_asks_for_them_alone(ray_session, workspace, settings):
    kind, few = "user_profile", {"max_tokens": 40, "temperature": 0.5}
    # The control of the test above: it is the schema that makes the answers JSON.
    config = settings(structured_output="none", **few)
    # Too little for the longest prompts.
    short = config.compute.model_copy(update={"engine": {**config.compute.engine, "max_model_len": 1000}})
    _write(workspace, config.model_copy(update={"compute": short}), kind)
    before = _rows(workspace, kind)
    reasons = [row["error"].partition(":")[0] for row in before]
    assert all(row["status"] == "failed" and row["profile"] == "" for row in before)
    for row, reason in zip(before, reasons, strict=True):
        assert reason in ("engine", "not_json", "cut_off")
        if reason == "engine":
            # The engine words it differently for a prompt of just that length.
            assert re.search(r"(context|model) length .*1000|max_model_len", row["error"])
        # A prompt that fits may be too long the second time, when it quotes the first answer.
        assert row["attempts"] == 2 or reason == "engine"
        assert (row["tokens_out"] > 2) == (row["attempts"] == 2)
    refused = [row for row in before if row["attempts"] == 1]
    assert 1 <= len(refused) <= 5
    # With room and a schema, the rows that the repair names.
    results = _write(workspace, settings(), kind, {0: [1], 1: [0, 2]})
    assert sorted((result["block"], result["rows"]) for result in results) == [(0, 1), (1, 2)]
    after = _rows(workspace, kind)
    assert [row["user"] for row in after] == list(range(6))
    for number, row in enumerate(after):
        if number in (1, 3, 5):
            assert row["status"] == "ok" or row["error"].partition(":")[0] in ("empty", "cut_off")
        else:
            assert row == before[number]


def test_an_engine_that_cannot_start_ends_the_job_with_its_cause(ray_session, workspace, settings):
    from xrec.profiles.answers import FatalError

    compute = settings().compute.model_copy(update={"engine": {"dtype": "float7"}})
    with pytest.raises(FatalError, match="float7"):
        _write(workspace, settings().model_copy(update={"compute": compute}), "item_profile")


@pytest.mark.slow
def test_an_engine_that_cannot_start_ends_the_job_with_the_cause_in_its_worker(ray_session, workspace, settings):
    from xrec.profiles.answers import FatalError

    # Some of the machine's memory is always in use.
    engine = settings().compute.engine | {"gpu_memory_utilization": 0.9999}
    compute = settings().compute.model_copy(update={"engine": engine, "engine_environment": {}})
    with pytest.raises(FatalError, match=r"less than desired CPU memory .* profile\.compute\.engine_environment"):
        _write(workspace, settings().model_copy(update={"compute": compute}), "item_profile")


@pytest.mark.slow
def test_a_killed_engine_loses_and_doubles_no_row(ray_session, workspace, settings):
    kind, killed = "item_profile", []

    def kill():
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not killed:
            time.sleep(0.5)
            for process in psutil.Process().children(recursive=True):
                title = " ".join(process.cmdline()) if process.is_running() else ""
                if title.startswith("ray::") and "vLLMEngine" in title and "__init__" not in title:
                    time.sleep(2)  # by then it writes
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)
                    return

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    # Free talk up to the limit, so that the engine is busy for long.
    results = _write(workspace, settings(structured_output="none", max_tokens=800), kind)
    thread.join()
    assert killed
    assert sorted((result["block"], result["rows"]) for result in results) == [(0, 3), (1, 3)]
    assert [(row["item"], row["attempts"]) for row in _rows(workspace, kind)] == [(n, 2) for n in range(6)]
