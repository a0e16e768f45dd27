"""What vLLM loads at its start (entry point `vllm.general_plugins`): the architectures that inject, by name.

Nothing here imports vLLM, so that a driver can ask whether it could run a backbone. The model itself is
`vllm_model.py`'s business.
"""

import multiprocessing
import os
import signal
import threading
from typing import Any

from xrec.explainer.injection import Injection
from xrec.explainer.vllm_failures import record_failures

_MODULE = "xrec.explainer.vllm_model"
_WATCH = "xrec-parent-watch"
# Architectures of Hugging Face checkpoints, and what runs them here.
FAMILIES = {
    "LlamaForCausalLM": "XRecLlamaForCausalLM",
    "MistralForCausalLM": "XRecMistralForCausalLM",
    "Qwen2ForCausalLM": "XRecQwen2ForCausalLM",
    "Qwen3ForCausalLM": "XRecQwen3ForCausalLM",
}


def register() -> None:
    """Tell vLLM's registry of the injecting architectures; called by vLLM in each of its processes."""
    _end_with_parent()
    record_failures()
    from vllm import ModelRegistry  # pyright: ignore[reportMissingImports]

    known = ModelRegistry.get_supported_archs()
    for name in FAMILIES.values():
        if name not in known:
            # By name, so that a process that only hands requests on loads no model code.
            ModelRegistry.register_model(name, f"{_MODULE}:{name}")


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: after a kill -9 of that one, vLLM's would go on for ever.

    Does nothing in a process that `multiprocessing` has not started, such as the engine's own.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _WATCH for thread in threading.enumerate()):
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


def unsupported(config: Any, injection: Injection = "input") -> str | None:
    """Why the vLLM engine cannot run a backbone; None where it can.

    Args:
        config: the backbone's Hugging Face config.
        injection: how the adapter was tuned.
    """
    architectures = list(getattr(config, "architectures", None) or [])
    if not any(name in FAMILIES for name in architectures):
        named = ", ".join(architectures) or f"none (model_type {getattr(config, 'model_type', None)!r})"
        return f"the backbone's architecture is {named}; the vLLM engine runs {', '.join(FAMILIES)}"
    if injection == "output":
        return "injection = 'output' adds vectors after the projections, where the vLLM engine has no seam"
    return None


def overrides(config: Any, reserved_id: int, injection: Injection, input_replacement: bool) -> dict[str, Any]:
    """What the engine changes in its copy of the backbone's config; the checkpoint stays as it is.

    Args:
        config: the backbone's Hugging Face config.
        reserved_id: the token id at the reserved positions.
        injection, input_replacement: as the adapter was tuned.

    Raises:
        ValueError: the backbone or the injection mode is not supported.
    """
    reason = unsupported(config, injection)
    if reason is not None:
        raise ValueError(f"{reason}; use the Hugging Face engine (explain.engine = hf)")
    ours = next(FAMILIES[name] for name in config.architectures if name in FAMILIES)
    return {
        "architectures": [ours],
        "xrec_reserved_id": reserved_id,
        "xrec_injection": injection,
        "xrec_input_replacement": input_replacement,
    }
