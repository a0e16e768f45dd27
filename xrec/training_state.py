"""What a training run must remember to go on, as the bytes of a file: tensors and scalars, in safetensors.

What they are is each training's own business.
"""

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

_SCALARS = "state"


def pack(scalars: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file, the scalars (anything that JSON can hold) as a tensor of JSON."""
    header = torch.frombuffer(bytearray(json.dumps(scalars).encode()), dtype=torch.uint8)
    return save({**{name: tensor.contiguous() for name, tensor in tensors.items()}, _SCALARS: header})


def unpack(data: bytes, what: str, remedy: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Scalars and tensors of what `pack` wrote.

    Args:
        data: the file's bytes.
        what: what the error calls the state, such as `a LightGCN training state`.
        remedy: how to do without it.

    Raises:
        ValueError: it is something else, or damaged.
    """
    try:
        tensors = load(data)
        scalars = json.loads(bytes(tensors.pop(_SCALARS).numpy()))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"not {what} ({error}); {remedy}") from error
    return scalars, tensors
