"""Models that metrics read from a folder or a hub, and the order in which texts are put to them.

No code is ever downloaded, and a model that lacks weights is refused rather than completed at random.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer


def by_length(texts: Sequence[str], others: Sequence[str], size: int) -> list[list[int]]:
    """Places of pairs of texts in batches of `size`, the longest first: little padding, and memory peaks at once."""
    order = np.argsort([-len(text) - len(other) for text, other in zip(texts, others, strict=True)], kind="stable")
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def load_config(name: str, setting: str) -> Any:
    """A model's config, which says what it is before its weights are read.

    Args:
        name: Hugging Face name or folder.
        setting: what the errors call it, such as `evaluate.bleurt.model`.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(_not_loaded(name, setting, error)) from error


def load_model(model_class: Any, name: str, setting: str, device: str = "cpu") -> tuple[Any, Any]:
    """Tokenizer and model, in evaluation mode and float32; texts are cut to the model's positions.

    Args:
        model_class: of transformers, such as `BartForConditionalGeneration`.
        name: Hugging Face name or folder.
        setting: what the errors call it, such as `evaluate.bleurt.model`.
        device: torch device.

    Raises:
        ValueError: it cannot be loaded, or lacks weights that the class has.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, loading = model_class.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(_not_loaded(name, setting, error)) from error
    if loading["missing_keys"]:
        raise ValueError(
            f"{setting} = {name!r} has no weights for {sorted(loading['missing_keys'])[:3]}, which would stay random; "
            "name a model that was trained for this score"
        )
    limit_length(tokenizer, model.config)
    return tokenizer, model.eval().to(device)


def _not_loaded(name: str, setting: str, error: Exception) -> str:
    return (
        f"{setting} = {name!r} cannot be loaded ({error}); use the folder of a Hugging Face model, or a name that this "
        "machine can fetch"
    )


def limit_length(tokenizer: Any, config: Any) -> None:
    """Let a tokenizer cut texts where the model's positions end; many leave their limit at 1e30."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
