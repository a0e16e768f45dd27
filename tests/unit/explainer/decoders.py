"""Tiny random decoders of every supported family, requests, and an independent implementation of Eq. 12."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from xrec.explainer.engine import Request, Sampling

SIZE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, Callable] = {
    "llama-multi-head": lambda: LlamaConfig(**SIZE, num_key_value_heads=4),
    "llama-grouped-query": lambda: LlamaConfig(**SIZE, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**SIZE, num_key_value_heads=2),
    "qwen3": lambda: Qwen3Config(**SIZE, num_key_value_heads=2, head_dim=16),
    "phi3-fused": lambda: Phi3Config(**SIZE, num_key_value_heads=2),
    "gemma": lambda: GemmaConfig(**SIZE, num_key_value_heads=1, head_dim=8),
    "gemma2": lambda: Gemma2Config(**SIZE, num_key_value_heads=2, head_dim=8),
}


def make_decoder(family: str, seed: int = 0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def reference_logits(model, input_ids, positions: list[int], vectors: torch.Tensor, replace: bool = True):
    """Eq. 12 taken literally: each projection's output gets W a added at the positions. `[T, V]` for one sequence."""
    table = model.get_input_embeddings()
    embeddings = table(torch.tensor([input_ids])).clone()
    addend = torch.zeros_like(embeddings)
    for position, vector in zip(positions, vectors, strict=True):
        addend[0, position] = vector
        if replace:
            embeddings[0, position] = vector

    def add_projected(module, args, output):
        return output + addend @ module.weight.T

    names = ("q_proj", "k_proj", "v_proj", "qkv_proj")
    handles = [m.register_forward_hook(add_projected) for n, m in model.named_modules() if n.split(".")[-1] in names]
    try:
        with torch.no_grad():
            return model(inputs_embeds=embeddings, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def make_requests(engine, count: int, sampling: Sampling, seed: int = 0) -> list[Request]:
    """Prompts of ragged length; every third without a signal."""
    generator, requests = np.random.default_rng(seed), []
    for index in range(count):
        ids = generator.integers(5, 299, int(generator.integers(5, 20))).tolist()
        ids[1], ids[3] = engine.reserved_id, engine.reserved_id
        vectors = (None, None) if index % 3 == 2 else tuple(torch.from_numpy(generator.normal(size=(2, 32))).float())
        requests.append(Request([0, *ids[1:]], [1], [3], *vectors, sampling))
    return requests
