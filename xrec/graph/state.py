"""What a LightGCN training run must remember to go on exactly where it was; keeping it is the caller's business."""

from dataclasses import dataclass, field

import torch

from xrec.training_state import pack, unpack


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
        return pack(scalars, self.tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainingState":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is something else, or damaged.
        """
        scalars, tensors = unpack(data, "a LightGCN training state", "delete the checkpoint and start anew")
        return cls(tensors=tensors, **scalars)
