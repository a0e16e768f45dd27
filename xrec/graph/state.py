"""What a LightGCN training run must remember to go on exactly where it was; keeping it is the caller's business."""

import json
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

_HEADER = "state"


@dataclass
class TrainingState:
    """The state at the end of an epoch.

    Attributes:
        epoch: the next epoch, from 0.
        stale: evaluations since the best one.
        best_recall, best_epoch: the best validation Recall@20 so far, and its epoch (-1: none yet).
        history: the epochs' figures.
        tensors: `best` (layer-0 embeddings of the best epoch, `[N + M, D]`) and, in a state to resume from,
            `embedding` (the current ones) and Adam's `exp_avg`, `exp_avg_sq` and `step`.
    """

    epoch: int = 0
    stale: int = 0
    best_recall: float = -1.0
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A safetensors file, the scalars in its header."""
        scalars = {name: value for name, value in vars(self).items() if name != "tensors"}
        scalars_tensor = torch.frombuffer(bytearray(json.dumps(scalars).encode()), dtype=torch.uint8)
        return save({**self.tensors, _HEADER: scalars_tensor})

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
            raise ValueError(
                f"not a LightGCN training state ({error}); delete the checkpoint and start anew"
            ) from error
        return cls(tensors=tensors, **scalars)
