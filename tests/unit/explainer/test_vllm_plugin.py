"""What the vLLM engine says of a backbone before vLLM is there."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
from transformers import AutoConfig, Gemma2Config, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config, Qwen3Config

from xrec.explainer.vllm_plugin import FAMILIES, overrides, unsupported

ROOT = Path(__file__).resolve().parents[3]
RUN = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}


@pytest.mark.parametrize("architecture", RUN)
@pytest.mark.parametrize("injection", ["input", "none"])
def test_families_are_known_by_the_config_that_a_checkpoint_has(architecture, injection, tmp_path):
    assert set(RUN) == set(FAMILIES)
    RUN[architecture](architectures=[architecture]).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert unsupported(config, injection) is None
    before = config.to_dict()
    assert overrides(config, 3, injection, False) == {
        "architectures": [FAMILIES[architecture]],
        "xrec_reserved_id": 3,
        "xrec_injection": injection,
        "xrec_input_replacement": False,
    }
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Phi3Config(architectures=["Phi3ForCausalLM"]), "architecture is Phi3ForCausalLM; the vLLM engine runs Llama"),
        (Gemma2Config(architectures=["Gemma2ForCausalLM"]), "architecture is Gemma2ForCausalLM; the vLLM engine runs"),
        # A base model without a head: vLLM would run it as something else.
        (LlamaConfig(architectures=["LlamaModel"]), "architecture is LlamaModel; the vLLM engine runs"),
        (LlamaConfig(), "architecture is none .model_type 'llama'.; the vLLM engine runs"),
        (object(), "architecture is none .model_type None.; the vLLM engine runs"),
    ],
)
def test_other_architectures_are_refused_by_name(config, reason):
    with pytest.raises(ValueError, match=reason + ".*; use the Hugging Face engine .explain.engine = hf."):
        overrides(config, 3, "input", True)
    assert all(name in (unsupported(config) or "") for name in FAMILIES)


def test_the_output_mode_is_refused_and_a_wrong_architecture_before_it():
    llama, phi = LlamaConfig(architectures=["LlamaForCausalLM"]), Phi3Config(architectures=["Phi3ForCausalLM"])
    with pytest.raises(ValueError, match="injection = 'output' adds vectors after the projections"):
        overrides(llama, 3, "output", True)
    assert "Phi3ForCausalLM" in (unsupported(phi, "output") or "")


def test_vllm_finds_the_plugin_under_its_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["vllm.general_plugins"]["xrec"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_asking_needs_no_vllm():
    program = (
        "import sys; sys.modules['vllm'] = None; from xrec.explainer.vllm_plugin import unsupported;"
        "from transformers import LlamaConfig; print(unsupported(LlamaConfig(architectures=['LlamaForCausalLM'])))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["None"]


def test_a_process_that_vllm_started_ends_with_the_killed_one_that_started_it():
    program = (
        "import multiprocessing, sys, time\n"
        "from xrec.explainer import vllm_plugin\n"
        "def work():\n"
        "    vllm_plugin._end_with_parent()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(500)\n"
        "process = multiprocessing.get_context('fork').Process(target=work)\n"
        "process.start()\n"
        "print(process.pid, flush=True)\n"
        "process.join()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        lines = sorted([starter.stdout.readline().strip(), starter.stdout.readline().strip()])
        assert lines[1] == "ready"
        child = psutil.Process(int(lines[0]))
        starter.kill()
        child.wait(timeout=60)
