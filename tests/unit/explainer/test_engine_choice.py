"""Which engine `auto` means, what is refused with which remedy, and what vLLM is started with."""

import importlib.util

import pytest

from xrec.config import ConfigError, ExplainCompute, ExplainConfig
from xrec.explainer import engine_choice
from xrec.explainer.adapter import AdapterSpec
from xrec.explainer.engine_choice import check_engine, choose_engine, open_engine, vllm_arguments
from xrec.workspace import Workspace, WorkspaceError

GPU = ExplainCompute(gpus_per_actor=1)


@pytest.fixture(scope="module")
def workspace(tuned_workspace):
    return Workspace(tuned_workspace)


def adapter(injection="input"):
    return AdapterSpec(embedding_dim=8, hidden_size=32, experts=2, injection=injection)


@pytest.fixture
def vllm_is_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: name == "vllm")


@pytest.fixture
def vllm_is_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)


def test_auto_is_vllm_on_gpus_where_it_runs_the_backbone(workspace, vllm_is_installed):
    assert choose_engine(workspace, ExplainConfig(compute=GPU), adapter()) == "vllm"
    assert choose_engine(workspace, ExplainConfig(), adapter()) == "hf"
    assert choose_engine(workspace, ExplainConfig(compute=GPU), adapter("output")) == "hf"
    assert choose_engine(workspace, ExplainConfig(compute=GPU, engine="hf"), adapter()) == "hf"


def test_auto_is_hugging_face_where_vllm_is_not_installed(workspace, vllm_is_absent):
    assert choose_engine(workspace, ExplainConfig(compute=GPU), adapter()) == "hf"
    config = ExplainConfig(engine="vllm")
    assert choose_engine(workspace, config, adapter()) == "vllm"
    with pytest.raises(ConfigError, match=r"not installed here; install it: `pip install 'xrec\[vllm-gpu\]'`"):
        check_engine(workspace, config, adapter())
    with pytest.raises(ConfigError, match="not installed here"):
        open_engine(workspace, config, adapter(), "cpu")


def test_what_vllm_does_not_run_is_refused_with_the_reason(workspace, vllm_is_installed, tmp_path):
    config = ExplainConfig(engine="vllm")
    check_engine(workspace, config, adapter())
    with pytest.raises(ConfigError, match="injection = 'output'.*set explain.engine to hf"):
        check_engine(workspace, config, adapter("output"))
    other = Workspace(tmp_path / "w")
    stage = other.stage("tune", {"backbone": None})
    other.write_json({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "backbone", "model", "config.json")
    stage.finish({})
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel; the vLLM engine runs LlamaForCausalLM.*engine to hf"):
        check_engine(other, config, adapter())


def test_several_workers_need_vllm(workspace):
    config = ExplainConfig(engine="hf", compute=ExplainCompute(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="tensor_parallel_size = 2 .* the engine is hf"):
        check_engine(workspace, config, adapter())


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ({"actors": (2, 1)}, "the largest number is below the smallest"),
        ({"gpus_per_actor": 2}, "set tensor_parallel_size to 2, or gpus_per_actor to 1"),
        ({"gpus_per_actor": 1, "tensor_parallel_size": 2}, "need one GPU each; set gpus_per_actor to 2"),
        ({"placement": "PACK", "tensor_parallel_size": 2}, "on GPUs alone; set gpus_per_actor"),
        ({"engine_arguments": {"tensor_parallel_size": 2}}, "by explain.compute.tensor_parallel_size; move it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(compute, message):
    with pytest.raises(ValueError, match=message):
        ExplainCompute.model_validate(compute)


def test_vllms_arguments_follow_from_the_settings():
    assert vllm_arguments(ExplainCompute()) == {"max_num_seqs": engine_choice.SEQUENCES}
    compute = ExplainCompute(
        tensor_parallel_size=2, pipeline_parallel_size=2, gpus_per_actor=4, engine_arguments={"max_num_seqs": 8}
    )
    parallel = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert vllm_arguments(compute) == {"max_num_seqs": 8, "distributed_executor_backend": "mp"} | parallel
    spread = vllm_arguments(compute.model_copy(update={"placement": "PACK"}))
    assert spread["distributed_executor_backend"] == "ray"


def test_another_backbone_is_refused(workspace):
    spec = AdapterSpec(embedding_dim=8, hidden_size=32, experts=2, backbone_hash="f" * 64)
    with pytest.raises(WorkspaceError, match="tuned for the backbone"):
        open_engine(workspace, ExplainConfig(), spec, "cpu")
