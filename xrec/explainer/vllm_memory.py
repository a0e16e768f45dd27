"""How much memory vLLM's cache of keys and values gets on a CPU.

vLLM by itself reserves 92 % of the machine's memory and refuses to start where that much is not free. Sequences share
the cache block by block, so it needs room for one sequence of full length, and more lets more of them run at a time.
Nothing here imports vLLM.
"""

import math
from collections.abc import Mapping
from typing import Any

_GIB = 1024**3
# What is taken where a running batch could use more.
_USUAL_BYTES = 4 * _GIB
# vLLM's own defaults on a CPU.
_SEQUENCES, _BLOCK_SIZE = 256, 128
# Whoever names one of these has decided.
_ARGUMENTS = ("kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override")
_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
_TWO_BYTES = ("half", "float16", "bfloat16")


def cache_arguments(
    config: Any, arguments: Mapping[str, Any], environment: Mapping[str, str], available: int | None = None
) -> dict[str, int]:
    """The engine argument that gives the cache what a running batch can use, 4 GiB at most where one sequence fits.

    Args:
        config: the model's Hugging Face config.
        arguments: vLLM's engine arguments so far.
        environment: of the engine's processes.
        available: bytes of memory on the engine's machine; None where that is not known here.

    Returns:
        `kv_cache_memory_bytes` of each of the engine's workers. Nothing where the arguments or the environment say how
        much memory the cache takes, or where the model's attention is of a kind that is not known here.

    Raises:
        ValueError: less memory is available than one sequence takes.
    """
    if any(arguments.get(name) is not None for name in _ARGUMENTS) or environment.get(_VARIABLE):
        return {}
    text = config.get_text_config()
    token = _bytes_per_token(text, arguments)
    if token is None:
        return {}
    length = arguments.get("max_model_len")
    if length is None:
        length = getattr(text, "max_position_embeddings", None)
    # vLLM takes other values for "as many as fit".
    length = length if isinstance(length, int) and length > 0 else 1
    block = (arguments.get("block_size") or _BLOCK_SIZE) * token
    blocks = math.ceil(length * token / block)
    # vLLM keeps one block for itself.
    one, most = (blocks + 1) * block, ((arguments.get("max_num_seqs") or _SEQUENCES) * blocks + 1) * block
    if available is None:
        return {"kv_cache_memory_bytes": min(most, max(one, _USUAL_BYTES))}
    if one > available:
        fits = max(0, available // 2 // block - 1) * block // token
        raise ValueError(
            f"on a CPU, vLLM's cache needs {one / _GIB:.1f} GiB for one sequence of max_model_len = {length:,} tokens, "
            f"and {available / _GIB:.1f} GiB of memory are available; set engine_arguments.max_model_len (of "
            "explain.compute, or of the server's explainer) to what a prompt and its explanation take, "
            f"{fits:,} tokens at most, or engine_arguments.kv_cache_memory_bytes"
        )
    # The weights and a step's activations come to the same memory later.
    return {"kv_cache_memory_bytes": min(most, max(one, min(_USUAL_BYTES, available // 2)))}


def _bytes_per_token(text: Any, arguments: Mapping[str, Any]) -> int | None:
    """Keys and values of one token in one worker; None for a model that has none in the usual place."""
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    if not layers or not heads:
        return None
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head = getattr(text, "head_dim", None) or text.hidden_size // heads
    layers = math.ceil(layers / (arguments.get("pipeline_parallel_size") or 1))
    kv_heads = math.ceil(kv_heads / (arguments.get("tensor_parallel_size") or 1))
    number = 2 if str(arguments.get("dtype")).removeprefix("torch.") in _TWO_BYTES else 4
    return 2 * layers * kv_heads * head * number
