"""What the training of a baseline must remember to go on exactly where it was; keeping it is the caller's business."""

import json
import math
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

_HEADER = "state"


@dataclass
class TrainingState:
    """The state at the end of an epoch.

    Attributes:
        phase: the phase under way, from 0.
        epoch: its next epoch, from 0.
        step: epochs of all phases so far.
        stale: epochs since the phase's best one.
        best: the phase's lowest validation loss; infinity before its first validation.
        figures: of finished phases and of the present one's best epoch.
        tensors: `model.*`, the weights; `best.*`, those of the phase's best epoch; `optimizer.*`, Adam's moments.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    stale: int = 0
    best: float = math.inf
    figures: dict[str, float] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin with `name.`, without that beginning."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}

    def to_bytes(self) -> bytes:
        """A safetensors file, the scalars as a tensor of JSON."""
        scalars = {name: value for name, value in vars(self).items() if name != "tensors"}
        header = torch.frombuffer(bytearray(json.dumps(scalars).encode()), dtype=torch.uint8)
        return save({**{k: v.contiguous() for k, v in self.tensors.items()}, _HEADER: header})

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainingState":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else, or damaged.
        """
        try:
            tensors = load(data)
            scalars = json.loads(bytes(tensors.pop(_HEADER).numpy()))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"not a baseline's training state ({error}); rebuild with --force") from error
        return cls(tensors=tensors, **scalars)


def copied(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU under `prefix.name`; tensors that share memory get a copy each."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()}
