"""Checkpoints on disk of every family that the vLLM engine runs: random weights, and prompts for them.

All write words and full stops rather than scraps of bytes: see `_prefer_words`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tests.random_models import train_tokenizer
from xrec.config import PromptConfig
from xrec.explainer.engine import Request, Sampling
from xrec.explainer.prompt import Prompt, PromptBuilder, reserved_token_id

HIDDEN, LAYERS, CONTEXT = 128, 4, 4096
_TEXT = (
    "warm bread fresh coffee quiet garden spicy noodles friendly staff rich plot strong characters slow service cosy "
    "room great value long walk small shop bright colours loud music soft chairs deep story fast delivery old town"
)
WORDS = _TEXT.split()
SYSTEM = PromptConfig().system
SIZE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 192,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    # Far above the usual 0.02, so that attention is not flat and the vectors move what is written.
    "initializer_range": 0.15,
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama-multi-head": lambda **ids: LlamaConfig(**SIZE, **ids, num_key_value_heads=4),
    "llama-grouped-query": lambda **ids: LlamaConfig(**SIZE, **ids, num_key_value_heads=2),
    "mistral": lambda **ids: MistralConfig(**SIZE, **ids, num_key_value_heads=2, head_dim=32, sliding_window=None),
    "qwen2": lambda **ids: Qwen2Config(**SIZE, **ids, num_key_value_heads=2),
    # Heads that are not the hidden size in all, and one table for reading and writing.
    "qwen3": lambda **ids: Qwen3Config(**SIZE, **ids, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True),
}
# So large beside random weights that it stays what it is through all layers and the normalisation.
_CONSTANT = 10.0


def save_backbone(folder: str, family: str, quantised: bool = False, seed: int = 0) -> str:
    """Write a checkpoint and its tokenizer, as `save_pretrained` does; returns the folder."""
    generator = np.random.default_rng(seed)
    sentences = [" ".join(generator.permutation(WORDS)[:8]) + "." for _ in range(200)]
    labels = [" user record: item record: item name: user profile: item profile: explanation:", SYSTEM] * 20
    tokenizer = train_tokenizer([*sentences, *labels], 480)
    torch.manual_seed(seed)
    ids = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    config = FAMILIES[family](vocab_size=len(tokenizer), **ids)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
        _prefer_words(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if quantised:
        _quantise_files(Path(folder))
    return folder


def _prefer_words(model: Any, tokenizer: Any) -> None:
    """All embeddings share one large coordinate, so the weight by which a token's output row reads it is a bias.

    Where one table serves both ends nothing can be preferred that way.
    """
    if model.config.tie_word_embeddings:
        return
    table = model.get_input_embeddings().weight
    table.normal_()
    table[:, 0] = _CONSTANT
    model.model.norm.weight[0] = 1.0
    words = [f" {word}" for word in WORDS]
    preferred = [t[0] for t in (tokenizer(w, add_special_tokens=False)["input_ids"] for w in words) if len(t) == 1]
    head = model.lm_head.weight
    head[:, 0] = -4.0
    head[preferred, 0] = 0.0
    head[tokenizer("x.", add_special_tokens=False)["input_ids"][-1], 0] = 0.8
    # What would come out nearly always, were it not forbidden.
    head[reserved_token_id(tokenizer), 0] = 4.0


def _quantise_files(folder: Path) -> None:
    """Rewrite a checkpoint's layers with int8 weights, as `llm-compressor` does (compressed-tensors, W8A8).

    Of the quantised formats this is the one whose kernels vLLM has on any x86 CPU. Levels stay within 63, for where a
    processor has no instructions of its own for them (VNNI), sums of two products of larger ones saturate.
    """
    weights = load_file(folder / "model.safetensors")
    for name in [n for n in weights if n.endswith("_proj.weight")]:
        levels, weights[name + "_scale"] = _levels(weights[name])
        weights[name] = levels.to(torch.int8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    number = {"num_bits": 8, "type": "int", "symmetric": True}
    scheme = {
        "targets": ["Linear"],
        "weights": {**number, "strategy": "channel", "dynamic": False},
        "input_activations": {**number, "strategy": "token", "dynamic": True},
    }
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def quantise(model: Any) -> None:
    """What such a checkpoint means, for the model that it was made of: weights and inputs of layers rounded to int8."""

    def rounded(module: Any, args: tuple) -> tuple:
        # A padded row is all zeros.
        scale = args[0].abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
        return ((args[0] / scale).round() * scale, *args[1:])

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            levels, scale = _levels(module.weight.detach())
            module.weight.data = levels * scale
            module.register_forward_pre_hook(rounded)


def _levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 63
    return (weight / scale).round(), scale


class PromptMaker:
    """Requests with prompts of ragged length, made by the product's own builder."""

    def __init__(self, tokenizer: Any, order: str = "user_first", seed: int = 0):
        self.builder = PromptBuilder(tokenizer, PromptConfig(order=order))
        self.generator = np.random.default_rng(seed)

    def text(self, words: int) -> str:
        return " ".join(self.generator.choice(WORDS, words))

    def prompt(self, words: int | None = None) -> Prompt:
        """A prompt whose profiles have about that many words each."""
        count = int(self.generator.integers(3, 60)) if words is None else words
        return self.builder.explain(self.text(3), self.text(count), self.text(max(1, count // 2)))

    def vector(self) -> torch.Tensor:
        return torch.from_numpy(self.generator.normal(size=HIDDEN)).float()

    def request(self, prompt: Prompt | None = None, **changes: Any) -> Request:
        """A request for the prompt, with new vectors where `changes` names none."""
        prompt = prompt or self.prompt()
        fields = {"user_vector": self.vector(), "item_vector": self.vector(), "sampling": GREEDY} | changes
        return Request(prompt.token_ids, prompt.user_positions, prompt.item_positions, **fields)

    def requests(self, count: int, **changes: Any) -> list[Request]:
        return [self.request(**changes) for _ in range(count)]


# Longer than any generation, so that every token is compared.
GREEDY = Sampling(max_words=1000, max_new_tokens=24)


def digest(folder: str) -> dict[str, str]:
    """The hash of every file below the folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def distinct(results: Sequence[Any]) -> int:
    return len({tuple(result.token_ids) for result in results})
