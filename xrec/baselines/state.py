"""What the training of a baseline must remember to go on exactly where it was; keeping it is the caller's business."""

import math
from dataclasses import dataclass, field

import torch

from xrec.training_state import pack, unpack


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
        return pack(scalars, self.tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainingState":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else, or damaged.
        """
        scalars, tensors = unpack(data, "a baseline's training state", "rebuild with --force")
        return cls(tensors=tensors, **scalars)


def copied(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU under `prefix.name`; tensors that share memory get a copy each."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()}
