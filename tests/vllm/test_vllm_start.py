"""Engines of vLLM that cannot start: what failed in vLLM's own processes is what users are told."""

import os

import pytest

from tests.vllm.conftest import ENVIRONMENT
from xrec.explainer.vllm_failures import VARIABLE

pytestmark = pytest.mark.timeout(600)
SMALL = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 2}


@pytest.fixture
def start(tiny_backbone, monkeypatch):
    """Starts the engine, its memory being what the arguments say."""
    from xrec.explainer.vllm_engine import VLLMEngine

    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    folder = tiny_backbone("llama-grouped-query")
    return lambda **arguments: VLLMEngine(folder, **(SMALL | arguments))


def test_memory_that_is_not_there_is_named_by_the_worker_that_asked_for_it(start):
    """The cause is known to a worker alone: to the process that starts it, vLLM says "See root cause above"."""
    monitored = set(os.environ)
    # Some of the machine's memory is always in use.
    with pytest.raises(ValueError, match=r"less than desired CPU memory utilization \(0\.9999, ") as raised:
        start(gpu_memory_utilization=0.9999)
    words = str(raised.value)
    assert words.startswith("vLLM did not start: ValueError: Available memory on node")
    assert "set by engine_arguments and engine_environment (of explain.compute" in words and "\n" not in words
    assert "root cause" in str(raised.value.__cause__) and VARIABLE not in set(os.environ) - monitored


def test_wrong_arguments_are_named_before_anything_starts(start):
    with pytest.raises(ValueError, match="vLLM did not start: TypeError: .*unexpected keyword argument 'max_lenght'"):
        start(max_lenght=3)
    with pytest.raises(ValueError, match=r"GiB for one sequence of max_model_len = 9,999,999,999 tokens, and .* avail"):
        start(max_model_len=9_999_999_999)
