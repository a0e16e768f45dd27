"""What a process of vLLM's logs as it fails, as the process that started it reads it."""

import logging
import multiprocessing

from xrec.explainer.vllm_failures import VARIABLE, blames_another_process, describe, record_failures, root_cause


def _log(*errors: Exception | str) -> None:
    """In a process of its own, as vLLM's are."""
    record_failures()
    record_failures()
    logger = logging.getLogger("vllm.part")
    logger.info("nothing of note")
    for error in errors:
        if isinstance(error, str):
            logger.error(error)
            continue
        try:
            raise error
        except Exception:
            logger.exception("it failed")


def _run(*errors: Exception | str) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_log, args=errors)
    process.start()
    process.join()
    assert process.exitcode == 0


VAGUE = RuntimeError("WorkerProc initialization failed. See stack trace for root cause.")


def test_the_first_exception_of_a_process_is_the_cause(tmp_path, monkeypatch):
    folder = tmp_path / "failures"
    monkeypatch.setenv(VARIABLE, str(folder))
    assert root_cause(str(folder)) is None
    _run("all is lost", ValueError("too little\n  memory"), KeyError("later"))
    _run(VAGUE)
    assert root_cause(str(folder)) == "ValueError: too little memory"
    # Once each, though it was asked for twice.
    assert len(list(folder.iterdir())) == 4


def test_an_exception_that_points_elsewhere_comes_last(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"file://{tmp_path}")
    _run(VAGUE)
    assert root_cause(f"file://{tmp_path}") == describe(VAGUE) and blames_another_process(describe(VAGUE))
    _run("a worker died unexpectedly")
    assert root_cause(f"file://{tmp_path}") == "a worker died unexpectedly"
    _run(OSError("no such file"))
    assert root_cause(f"file://{tmp_path}") == "OSError: no such file"


def test_a_process_writes_a_few_and_one_that_vllm_did_not_start_none(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    _run(*[ValueError(f"number {n}") for n in range(40)])
    assert 1 < len(list(tmp_path.iterdir())) < 20 and root_cause(str(tmp_path)) == "ValueError: number 0"
    record_failures()
    assert not logging.getLogger("vllm").handlers


def test_causes_of_an_exception_are_named():
    try:
        try:
            raise KeyError("q_proj")
        except KeyError as error:
            raise ValueError("weights are missing") from error
    except ValueError as error:
        assert describe(error) == "ValueError: weights are missing, because of KeyError: 'q_proj'"
